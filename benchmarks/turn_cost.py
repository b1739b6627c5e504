"""What a turn costs in our own processor time, beside verl's ToolAgentLoop on the same tokens.

    python benchmarks/turn_cost.py            # 9 interleaved repeats
    python benchmarks/turn_cost.py --quick    # 3

Both loops run in one process, in verl's own worker, on the same rows with the same processor; the student
answers at once with the same tokens, and so does the tutor (verl's: a function tool that returns the next
question). Processor time of the whole process, executor threads included, so that a busy machine disturbs
little. Three figures:

- a whole rollout (prompt, turns, what verl sends on), ours over verl's, per turn;
- turn 10 over turn 2, dialogues one at a time: does the work grow with the turns already held?
- the longest single callback of the event loop: it must never stand still.

The tutor's client is no part of these; its cost a call is measured apart. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
from json_line import last_line
from latency_server import latency_server
from verl.tools.function_tool import FunctionTool, _build_schema_from_fn

from verl_steer.config import TutorConfig
from verl_steer.plugin import settings as settings_module
from verl_steer.plugin.settings import settings_for
from verl_steer.roles.endpoint_tutor import EndpointTutor
from verl_steer.roles.fence import fence_tag
from verl_steer.roles.tutor import Assessment, Exchange, TutorRequest
from verl_steer.scores import Outcome, TutorScores, Verdict

TURNS = 10
GOAL_RATIO, GOAL_GROWTH, GOAL_LAG_MS = 1.1, 1.1, 20.0
QUESTION = "And what would you say if the same thing were asked in other words?"


def next_question() -> str:
    """Asks the tutor for the next question."""
    return QUESTION


class InstantStudent:
    """verl's `LLMServerClient`: the same reply at once, with a tool call in it for verl's loop to find."""

    def __init__(self, tokenizer: Any, reply_chars: int) -> None:
        call = '<tool_call>\n{"name": "next_question", "arguments": {}}\n</tool_call>'
        text = "A reply of the student. ".ljust(reply_chars - len(call), "s") + call
        self._ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        self.marks: list[float] | None = None

    async def generate(self, **_: Any) -> Any:
        """One reply; notes the processor time if somebody wants to know."""
        if self.marks is not None:
            self.marks.append(time.process_time())
        versions = {"min_global_steps": 1, "max_global_steps": 1}
        ids = list(self._ids)
        return SimpleNamespace(
            token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields=versions, num_preempted=None, routed_experts=None
        )


class InstantTutor:
    """`Tutor` that answers at once."""

    async def assess(self, request: TutorRequest) -> Assessment:
        """The same question every time."""
        return Assessment(Verdict(Outcome.OK, TutorScores(8, 6, 9)), QUESTION if request.adapt else None, "deepen")

    async def aclose(self) -> None:
        """Nothing is open."""


class Bench:
    """Both workers on the same rows."""

    def __init__(self, student: Path, *, rows: int, siblings: int, side: int, reply_chars: int) -> None:
        config = harness.config_for(
            student,
            "steer.tutor.base_urls=[http://127.0.0.1:9/v1]",
            f"actor_rollout_ref.rollout.multi_turn.max_assistant_turns={TURNS}",
            "actor_rollout_ref.rollout.multi_turn.max_parallel_calls=1",
            "actor_rollout_ref.rollout.multi_turn.format=hermes",
        )
        self.ours = harness.worker_for(config, None)
        self.verls = harness.worker_for(config, None, plain=True)
        self.verls.tools = [FunctionTool("next_question", next_question, _build_schema_from_fn(next_question, "next_question"))]  # fmt: skip
        self.server = InstantStudent(self.ours.tokenizer, reply_chars)
        self.ours.llm_client = self.verls.llm_client = self.server
        settings = settings_for(self.ours.config)
        settings_module._by_config[id(self.ours.config)] = (
            self.ours.config,
            settings_module.Settings(settings.config, InstantTutor(), settings.fence_key),
        )
        scripts = [harness.script(n, TURNS, len(QUESTION), side) for n in range(rows)]
        self.prompts = {
            "steer": [harness.prompt_of(s, n, siblings) for n, s in enumerate(scripts)],
            "tool_agent": [tool_prompt(s, n, siblings) for n, s in enumerate(scripts)],
        }
        self.turns = rows * siblings * TURNS

    def worker(self, agent: str) -> Any:
        """Whose worker plays `agent`."""
        return self.ours if agent == "steer" else self.verls

    async def per_turn(self, agent: str) -> float:
        """Processor seconds a turn of all rollouts at once."""
        start = time.process_time()
        await harness.play(self.worker(agent), self.prompts[agent])
        return (time.process_time() - start) / self.turns

    async def by_position(self, agent: str) -> list[float]:
        """Processor seconds of turn 2, 3, …, TURNS of one dialogue that runs alone.

        A turn's work lies between two requests to the student: take in a reply, have it judged, ask on.
        """
        self.server.marks = marks = []
        await harness.play(self.worker(agent), [self.prompts[agent][0] | {"__rollout_n__": 1}])
        self.server.marks = None
        return [b - a for a, b in itertools.pairwise(marks)]


def tool_prompt(planned: Any, number: int, siblings: int) -> dict[str, Any]:
    """The same row for verl's loop, which wants the picture inside the message."""
    prompt = harness.prompt_of(planned, number, siblings)
    first = planned.turns[0]
    image = [{"type": "image", "image": harness.decoded(ref)} for ref in first.images]
    content = [*image, {"type": "text", "text": first.text}] if image else first.text
    return prompt | {"agent_name": "tool_agent", "raw_prompt": [{"role": "user", "content": content}]}


async def compare(bench: Bench, repeats: int) -> dict[str, Any]:
    """Interleaved repeats; medians."""
    cost: dict[str, list[float]] = defaultdict(list)
    positions: dict[str, list[list[float]]] = defaultdict(list)
    lags: dict[str, list[harness.LagMonitor]] = defaultdict(list)
    for agent in ("steer", "tool_agent"):
        await bench.per_turn(agent)  # imports, caches
    for repeat in range(repeats):
        for agent in ("steer", "tool_agent") if repeat % 2 else ("tool_agent", "steer"):
            cost[agent].append(await bench.per_turn(agent))
            positions[agent] += [await bench.by_position(agent) for _ in range(5)]
            async with harness.LagMonitor() as lag:
                await bench.per_turn(agent)
            lags[agent].append(lag)
    ratios = [a / b for a, b in zip(cost["steer"], cost["tool_agent"], strict=True)]
    found: dict[str, Any] = {"ratio": statistics.median(ratios), "ratios": [round(r, 3) for r in sorted(ratios)]}
    for agent in ("steer", "tool_agent"):
        medians = [statistics.median(column) for column in zip(*positions[agent], strict=True)]
        worst = max(lags[agent], key=lambda lag: lag.callback_s)
        found[agent] = {
            "ms_a_turn": round(1e3 * statistics.median(cost[agent]), 3),
            "ms_at_turns_2_to_10": [round(1e3 * m, 3) for m in medians],
            "growth": round(medians[-1] / medians[0], 3),
            "longest_callback_ms": round(1e3 * worst.callback_s, 1),
            "slowest": worst.slowest,
            "loop_lag_wall_ms": round(1e3 * statistics.median(lag.wall_s for lag in lags[agent]), 1),
        }
    return found


async def client_cost(student: Path, calls: int, side: int, reply_chars: int) -> dict[str, float]:
    """Processor milliseconds of one call of the endpoint tutor (prompt, HTTP, strict reading), after 2 and 10 turns."""
    planned = harness.script(0, TURNS, len(QUESTION), side)
    found = {}
    with latency_server("tutor", mean_s=0.0, student=student, log=False) as server:
        config = TutorConfig(kind="endpoint", model="tutor", base_urls=(f"{server.root}/v1",))
        tutor = EndpointTutor(config, max_concurrency=8)
        for turns in (2, TURNS):
            reply = f"[dialogue d turn {turns} key 1] ".ljust(reply_chars, "s")
            request = TutorRequest(
                script=planned,
                history=tuple(Exchange(turn.text, reply, turn.images) for turn in planned.turns[:turns]),
                planned_next=planned.turns[turns] if turns < TURNS else None,
                adapt=turns < TURNS,
                random_key="key",
                fence=fence_tag(b"key", planned.seed_id),
                deadline_s=60.0,
            )
            taken = []
            for _ in range(calls):
                start = time.process_time()
                assessment = await tutor.assess(request)
                taken.append(time.process_time() - start)
                if assessment.verdict.scores is None:
                    raise RuntimeError(f"the tutor's server gave no verdict: {assessment.verdict}")
            found[f"after_{turns}_turns"] = round(1e3 * statistics.median(taken), 3)
        await tutor.aclose()
    return found


def main() -> int:
    """Measures and prints; exit status 0 if the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 repeats instead of 9")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--siblings", type=int, default=5, help="rollouts of a row (the recipes' n)")
    parser.add_argument("--side", type=int, default=336, help="pixels of the picture's side; 0: no picture")
    parser.add_argument("--reply-chars", type=int, default=400, help="a token each: the tokenizer is of bytes")
    given = parser.parse_args()
    size = {"rows": given.rows, "siblings": given.siblings, "side": given.side, "reply_chars": given.reply_chars}
    with tempfile.TemporaryDirectory() as folder:
        student = harness.build_student(Path(folder))
        with harness.transfer_queue(harness.Sink(count_only=True)) as sink:
            bench = Bench(student, **size)
            found = asyncio.run(compare(bench, 3 if given.quick else 9))
        if sink.failed:
            raise RuntimeError(f"{len(sink.failed)} prompts failed: {sink.failed[:3]}")
        client = asyncio.run(client_cost(student, 50 if given.quick else 200, given.side, given.reply_chars))
    ours, verls = found["steer"], found["tool_agent"]
    print(f"{'':12}{'ms a turn':>12}{'growth':>10}{'longest callback, ms':>24}")
    for name, row in (("steer", ours), ("tool_agent", verls)):
        print(f"{name:12}{row['ms_a_turn']:12.3f}{row['growth']:10.3f}{row['longest_callback_ms']:24.1f}")
    print(f"tutor's client, ms a call: {client}")
    ok = found["ratio"] <= GOAL_RATIO and ours["growth"] <= GOAL_GROWTH and ours["longest_callback_ms"] <= GOAL_LAG_MS
    return last_line(
        "turn_cost",
        ours["ms_a_turn"],
        "ms of processor time a turn, client apart",
        verls["ms_a_turn"],
        f"ratio <= {GOAL_RATIO}, turn 10 <= {GOAL_GROWTH} x turn 2, loop never busy > {GOAL_LAG_MS:.0f} ms",
        ok,
        {**size, "turns": TURNS, **found, "client_ms_a_call": client},
    )


if __name__ == "__main__":
    raise SystemExit(main())
