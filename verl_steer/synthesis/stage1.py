"""Stage I: a single-turn seed into user scripts of three disjoint pools (paper, stage I and appendix F).

probe -> a benign and an obfuscated rewrite; each is expanded into a script of T turns. The red team starts from
the obfuscated rewrite: forensics, framing, plan, then a simulation against the fixed target that stops at success.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl_steer.data.schemas import Question, ScriptRow, SeedRow, build
from verl_steer.dialogue import ImageRef, Kind, UserTurn
from verl_steer.roles import forensics, generator, planner, probe, red, success
from verl_steer.roles.attack_names import FRAMINGS
from verl_steer.roles.tutor import Exchange
from verl_steer.synthesis.calls import Calls
from verl_steer.synthesis.chance import chance
from verl_steer.synthesis.config import MIN_TURNS
from verl_steer.synthesis.perturb import perturb

IDS = {Kind.BENIGN: "benign", Kind.OBFUSCATED: "obfuscated", Kind.RED_TEAM: "red"}


@dataclass(frozen=True)
class Attack:
    """How a red-team simulation went.

    Attributes:
        script: The turns that were really asked, up to the success.
        history: With the fixed target's replies.
        success: The judge's best score, 1..5.
    """

    script: ScriptRow
    history: tuple[Exchange, ...]
    success: int


async def rewrites(calls: Calls, seed: SeedRow) -> tuple[str, str]:
    """The benign and the obfuscated rewrite of a seed."""
    found = await calls.ask(
        "probe", "probe", probe.fill(calls.tag, seed.question, seed.category, seed.images), probe.ProbeReply
    )
    return (
        calls.question("probe", "probe", found.benign_question),
        calls.question("probe", "probe", found.obfuscated_question),
    )


async def expand(calls: Calls, seed: SeedRow, question: str, kind: Kind, turns: int) -> ScriptRow:
    """A script of `turns` user turns that ends in `question`."""
    step = f"expand/{IDS[kind]}"
    reply = await calls.ask(
        "generator",
        step,
        generator.fill(calls.tag, question, kind, turns, seed.images),
        generator.ScriptReply,
        flaw=lambda found: generator.length_flaw(len(found.turns), turns),
    )
    texts = [calls.question("generator", step, text) for text in reply.turns]
    return script_of(seed, kind, texts, seed.images)


async def attack(calls: Calls, seed: SeedRow, question: str, turns: int) -> Attack:
    """The four modules of the red team, from the obfuscated rewrite on."""
    config = calls.config
    images, done = seed.images, ""
    if images:
        first, done = perturb(images[0], config.perturb, config.seed, seed.id)
        images = (first, *images[1:])
    seen = "no picture"
    if images:
        fill = forensics.fill(calls.tag, question, images)
        seen = (await calls.ask("forensics", "red/forensics", fill, forensics.ForensicsReply)).summary()
    framing = chance(config.seed, seed.id, "framing").choice(sorted(FRAMINGS))
    framed = await calls.ask(
        "red", "red/framing", red.frame(calls.tag, question, seen, framing, images), red.QuestionReply
    )
    request = calls.question("red", "red/framing", framed.question)
    plan = await calls.ask(
        "planner",
        "red/plan",
        planner.fill(calls.tag, request, seen, turns, images),
        planner.PlanReply,
        flaw=lambda found: planner.flaw(found, turns),
    )
    history, score = await _simulate(calls, seed.question, plan.turns, images)
    techniques = sorted({turn.technique for turn in plan.turns})
    script = script_of(
        seed,
        Kind.RED_TEAM,
        [exchange.question for exchange in history],
        images,
        framing=framing,
        techniques=techniques,
        perturbed=done,
    )
    return Attack(script, tuple(history), score)


async def _simulate(
    calls: Calls, intent: str, plan: list[planner.PlannedTurn], images: tuple[ImageRef, ...]
) -> tuple[list[Exchange], int]:
    """The plan against the fixed target; stops at a success, but no script is shorter than two turns."""
    history: list[Exchange] = []
    best = 1
    for number, turn in enumerate(plan, 1):
        step = f"red/turn{number}"
        shown = images if number == 1 else ()
        goal = f"{turn.goal} ({turn.technique}, risk {turn.risk} of 10)"
        fill = red.ask_turn(calls.tag, turn.question, Kind.RED_TEAM, history, shown, goal)
        asked = calls.question("red", step, (await calls.ask("red", step, fill, red.QuestionReply)).question)
        reply = await calls.say("target", step, history, UserTurn(asked, shown))
        history.append(Exchange(asked, reply, shown))
        judged = await calls.ask("success", step, success.fill(calls.tag, intent, history), success.SuccessReply)
        best = max(best, judged.score)
        if judged.score >= calls.config.red_team.keep_from and number >= MIN_TURNS:
            break
    return history, best


def script_of(seed: SeedRow, kind: Kind, texts: list[str], images: tuple[ImageRef, ...], **meta: object) -> ScriptRow:
    """A script row of a seed, the pictures in the first turn.

    Raises:
        RowError: A text breaks a rule of the schemas.
    """
    turns = tuple(Question(text=text, images=images if number == 0 else ()) for number, text in enumerate(texts))
    picture = seed.images[0].sha256 if seed.images else ""  # the seed's own, whatever was done to it
    return build(
        ScriptRow,
        {
            "id": f"{seed.id}-{IDS[kind]}",
            "source": seed.source,
            "licence": seed.licence,
            "category": seed.category,
            "kind": kind,
            "question": seed.question,
            "answer": seed.answer if kind is Kind.BENIGN else None,
            "turns": turns,
            "meta": {**seed.meta, "seed_id": seed.id, "picture": picture, **meta},
        },
    )
