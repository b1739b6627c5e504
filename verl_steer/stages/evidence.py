"""`docs/evidence.md`, written from the result files and nothing else: no figure in it is typed by hand.

Whatever is not there yet is said to be missing, with the command that would make it; a seed outside the confirmatory ones is
called what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from verl_steer.stages import ablations, decisions, pictures, sections
from verl_steer.stages.contrasts import ORDER, OUTCOMES, Runs
from verl_steer.stages.plan import ADDED_ARMS, ARMS, CONFIRMATORY_SEEDS, FIRST_ROUND_SEEDS
from verl_steer.stages.result import Result, read_all
from verl_steer.stages.tables import UNKNOWN, contrasts, mean, number, table
from verl_steer.whole import write_text

_WORDS = (
    "*Joint pass*: a dialogue passes if harmlessness and helpfulness both do, averaged over its turns. *Twin accuracy*: share of pairs of twins (two dialogues that "
    "differ in one detail of the picture or one early turn) in which the harmful one has no failed turn, and the benign one has none and is helpful; *strict*: "
    "the last reply is right in both, and nothing was breached or refused before it. *Safe turns*: expected number of safe turns among the first eight. An "
    "interval's *half-width* is half its length. Measures are the bench's ([bench_statistics.md](bench_statistics.md)), the judge is the oracle; arms stand in "
    "[prereg.md](prereg.md), rules and twins of the micro-world under *By rule*."
)
_COLUMNS = ("joint", "benign_joint", "twin_accuracy", "strict_twins", "over_refusal", "safe_turns", "gap")


def write_evidence(results: Path, out: Path, seeds: Sequence[int]) -> list[Path]:
    """Writes the page and its pictures beside it.

    Args:
        results: Folder of result files; it need not exist yet.
        out: The page.
        seeds: Which seeds count.

    Returns:
        What was written.

    Raises:
        ResultError: A result is damaged, or two are not of one experiment.
    """
    runs = Runs(read_all(results), seeds)
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn = [
        pictures.survival(runs, out.with_name(f"{out.stem}_survival.png")),
        pictures.learning(runs, out.with_name(f"{out.stem}_learning.png")),
    ]
    shown = [path for path in drawn if path is not None]
    write_text(out, page(runs, [path.name for path in shown]))
    return [out, *shown]


def page(runs: Runs, shown: Sequence[str] = ()) -> str:
    """The page as markdown.

    Args:
        runs: Results.
        shown: File names of pictures that lie beside it.
    """
    parts = [
        "# Evidence: the three stages on the micro-world",
        "*Written by `verl-steer stages evidence` from one file a run; nothing here is typed by hand. What was planned, and "
        "before which runs, is in [prereg.md](prereg.md); what this can and cannot say about real models in "
        "[microworld_limits.md](microworld_limits.md).*",
        _WORDS,
        _state(runs),
        "## What was confirmed\n\n" + decisions.hypotheses(runs),
        "## Arms\n\n" + _arms(runs),
        "## Order: base, stage II, stage III\n\n"
        + contrasts([runs.contrast(c) for c in ORDER])
        + "\n\nReached: the estimate is at the goal, the interval above 0 and p < .05, all together.\n\n"
        + _gates(runs),
        "## Benign dialogues\n\n" + sections.benign(runs),
        "## Ablations\n\n" + ablations.ablations(runs),
        "## By rule\n\n" + ablations.by_rule(runs),
        "## Survival\n\n" + sections.survival(runs),
        "## Do picture and history matter\n\n" + sections.reliance(runs),
        "## Reward hacking\n\n" + sections.hacking(runs),
    ]
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in shown]
    parts += ["## How it was run\n\n" + _how(runs)]
    return "\n\n".join(parts) + "\n"


# -- what is there --------------------------------------------------------------------------------------


def _state(runs: Runs) -> str:
    total = len(runs.seeds) * len(runs.by_arm)
    missing = runs.missing
    gaps = sum(map(len, missing.values()))
    added = [name for name in ADDED_ARMS if name in runs.by_arm]
    later = f"; of these {', '.join(added)} were added to the plan" if added else ""
    lines = [
        f"**{total - gaps} of {total} runs are there** ({len(runs.seeds)} seeds × {len(runs.by_arm)} arms{later})."
    ]
    first = set(runs.seeds) == set(FIRST_ROUND_SEEDS)
    if first:
        lines.append("This is the first round, which was stopped; [prereg.md](prereg.md) says why. It stays as it is.")
    elif set(runs.seeds) == set(CONFIRMATORY_SEEDS):
        lines.append(
            "This is the second round. The first one did not confirm that stage III adds to stage II and was stopped: "
            "[evidence_first_round.md](evidence_first_round.md)."
        )
    else:
        names = ", ".join(map(str, runs.seeds))
        lines.append(
            f"These are not the confirmatory seeds ({_seeds(CONFIRMATORY_SEEDS)}) but {names}: nothing below confirms anything."
        )
    if gaps == total:
        lines.append("No run has been made: every figure below is unknown.")
    elif missing:
        lines.append(
            "**Missing:**\n" + "\n".join(f"- {name}: seeds {_seeds(seeds)}" for name, seeds in missing.items())
        )
    if absent := runs.missing_constants:
        lines.append(f"**Missing:** constant policies: {', '.join(absent)}.")
    if (gaps or absent) and not first:
        names = " ".join(map(str, runs.seeds))
        lines.append(f"`bash examples/three_stages.sh --seeds {names}` makes what is missing and repeats nothing.")
    return "\n\n".join(lines)


def _seeds(seeds: Sequence[int]) -> str:
    """0–9 for a run of numbers, else a list."""
    ordered = sorted(seeds)
    whole = len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1))
    return f"{ordered[0]}–{ordered[-1]}" if whole else ", ".join(map(str, ordered))


# -- tables ---------------------------------------------------------------------------------------------


def _arms(runs: Runs) -> str:
    head = ["arm", "what it is", "seeds", *(OUTCOMES[name][0] for name in _COLUMNS)]
    rows = [
        [arm, ARMS[arm].label, str(len(found)), *(mean(runs.values(arm, name), name) for name in _COLUMNS)]
        for arm, found in runs.by_arm.items()
    ]
    for name, constant in runs.constants.items():
        rows.append([name, "always says the same", UNKNOWN, *(_one(constant, column) for column in _COLUMNS)])
    note = (
        "Means over an arm's own seeds with 95 % t intervals; rates in points of a hundred. Arms with fewer seeds than others are "
        "compared by the differences below, which are over the seeds that both have."
    )
    return f"{table(head, rows)}\n\n{note}"


def _one(result: Result, outcome: str) -> str:
    value = OUTCOMES[outcome][1](result)
    return UNKNOWN if value is None else number(value, outcome)


def _gates(runs: Runs) -> str:
    """Where base and stage II should lie, and whether a constant policy does as well."""
    lines = []
    for arm, (low, high) in decisions.GATES.items():
        centre, held = decisions.gate(runs, arm)
        said = UNKNOWN if held is None else f"{100 * centre:.1f}: {'yes' if held else 'no'}"
        lines.append(f"- {ARMS[arm].label} between {100 * low:.0f} and {100 * high:.0f} % joint pass: {said}")
    for name, label in (("joint", "joint pass, harmful"), ("twin_accuracy", "twin accuracy")):
        above, of, best = decisions.above_constants(runs, name)
        said = f"{above} of {of} seeds (the best constant policy: {100 * best:.1f})" if of else UNKNOWN
        lines.append(f"- stages II and III above every constant policy, {label}: {said}")
    return "\n".join(lines)


# -- how ------------------------------------------------------------------------------------------------


def _how(runs: Runs) -> str:
    results = [r for found in runs.by_arm.values() for r in found.values()]
    if not results:
        return "Nothing has been run."
    rows = []
    for arm, found in runs.by_arm.items():
        if found:
            seconds: Counter[str] = Counter()
            for result in found.values():
                seconds.update(result.seconds)
            parts = ("world", "rows", "sft", "rl", "bench")
            rows.append([arm, *(f"{seconds[p] / len(found) / 60:.1f}" if seconds[p] else UNKNOWN for p in parts)])
    first = results[0]
    versions = "; ".join(sorted({", ".join(f"{k} {v}" for k, v in sorted(r.versions.items())) for r in results}))
    # The commands of one arm that has every step.
    shown = min((r for r in results), key=lambda r: (r.arm != "full", r.seed or 0))
    commands = "\n".join(shown.commands)
    sizes = ", ".join(f"{name} {value}" for name, value in shown.sizes.items())
    return (
        f"World {first.world_hash}, bench {first.bench_sha256[:12]} ({first.dialogues} dialogues, {first.turns} turns). {versions}. {_paired(runs)}\n\n"
        f"Sizes: {sizes}.\n\nMinutes a run, all attempts of a step that was stopped added up, beside another run and whatever else the machine did (world, rows "
        "and sft are shared by the arms of a seed):\n\n"
        f"{table(['arm', *parts], rows)}\n\n"
        f"Commands of {shown.name}:\n\n```bash\n{commands}\n```"
    )


def _paired(runs: Runs) -> str:
    began = runs.began
    said = f"Began with the weights of their seed's base or SFT result, to the bit: {sum(v is True for v in began.values())} of {len(began)} trained runs"
    if unsaid := sum(v is None for v in began.values()):
        said += f", {unsaid} do not say"
    if others := [name for name, same in began.items() if same is False]:
        said += f"; **others: {', '.join(others)}**"
    return f"{said}."
