"""400 CoSafe dialogues as a bench whose model and judge are real vLLM servers. Run by `bash tests/run.sh --vllm -k bench`.

All weights are random: the way of a bench is tested, and no verdict means anything. Both servers count what they were
asked, so "only what is missing" is their word and not ours.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_worlds import bench, stopped
from tiny_model import build_tiny_vlm
from vllm_server import MAX_TOKENS, VllmServer, serve

from verl_steer.bench import files
from verl_steer.bench.files import Judged
from verl_steer.bench.run import JOURNAL
from verl_steer.chat.outcome import Outcome
from verl_steer.cli import main

COSAFE = Path(__file__).parents[3] / "shared" / "real" / "cosafe"
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not COSAFE.is_dir(), reason="the CoSafe files are not part of the project"),
]
ROWS, TURNS = 400, 3  # every dialogue of CoSafe asks three questions
REPLIES = ROWS * TURNS


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The model under test: random weights, so at temperature 1 its replies are random bytes."""
    folder = tmp_path_factory.mktemp("student")
    model = build_tiny_vlm(folder / "model", seed=2, positions=MAX_TOKENS)
    with serve(model, "student", folder / "server.log") as server:
        yield server


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.fixture(scope="module")
def played(student: VllmServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder: played, with a Ctrl-C in the middle, and played again, which asks nothing."""
    folder = tmp_path_factory.mktemp("bench")
    split, out = folder / "bench.parquet", folder / "run"
    assert main(["data", "convert", "cosafe", str(COSAFE), "--to", "bench", "--out", str(split)]) == 0
    command = ["run", split, "--out", out, "--url", student.base_url, "--model", "student"]
    command += ["--max-tokens", "24", "--temperature", "1"]

    started = time.monotonic()
    stopped(*command, when=lambda: _lines(out / JOURNAL) >= REPLIES // 4, limit_s=300)
    kept, before = _lines(out / JOURNAL), student.answered()
    assert REPLIES // 4 <= kept <= before < REPLIES
    assert bench(*command) == 0
    assert student.answered() - before == REPLIES - kept, "exactly the replies that were missing"
    print(f"{REPLIES} replies in {time.monotonic() - started:.0f} s, {kept} of them before Ctrl-C")

    whole = (out / files.DIALOGUES).read_bytes()
    asked = student.answered()
    assert bench(*command) == 0
    assert student.answered() == asked and (out / files.DIALOGUES).read_bytes() == whole
    return out


@pytest.fixture(scope="module")
def judged(played: Path, tutor_server: VllmServer) -> Path:
    """The same folder, judged with structured output and the canaries, with a Ctrl-C in the middle."""
    command = ["judge", played, "--judge", tutor_server.model, "--url", tutor_server.base_url, "--name", "structured"]
    path = played / files.VERDICTS / "structured.jsonl"

    started, cache = time.monotonic(), tutor_server.prefix_cache()
    stopped(*command, when=lambda: _lines(path) >= REPLIES // 4, limit_s=300)
    kept = {place for place, line in _verdicts(played, "structured").items() if line.outcome is Outcome.OK}
    before = tutor_server.answered()
    assert 0 < len(kept) < REPLIES
    assert bench(*command) == 0
    new = [line for place, line in _verdicts(played, "structured").items() if place not in kept]
    assert len(new) == REPLIES - len(kept)
    # A line counts what was sent, a request that found its connection closed too; the server what it answered.
    asked = tutor_server.answered() - before
    assert len(new) <= asked <= sum(line.calls for line in new), "the verdicts that were missing, and no other"
    used = tutor_server.prefix_cache().since(cache)
    print(f"{REPLIES} verdicts in {time.monotonic() - started:.0f} s, {len(kept)} of them before Ctrl-C")
    print(f"{used.hit} of {used.queried} prompt tokens came from the prefix cache")
    return played


def _verdicts(folder: Path, judge: str) -> dict[tuple[str, int], Judged]:
    return files.read_verdicts(folder, judge)


def _outcomes(folder: Path, judge: str) -> Counter[Outcome]:
    """How the verdicts ended, one for every reply and in the replies' order."""
    verdicts = _verdicts(folder, judge)
    assert list(verdicts) == [(d.id, n) for d in files.read_dialogues(folder) for n in range(1, TURNS + 1)]
    return Counter(line.outcome for line in verdicts.values())


def _report(folder: Path, judge: str, out: Path) -> tuple[str, dict]:
    """The page and the figures of `bench report`."""
    assert bench("report", folder, "--judge", judge, "--out", out) == 0
    return (out / "index.html").read_text(), json.loads((out / "results.json").read_text())[0]


def test_a_model_on_vllm_plays_400_dialogues_and_all_are_accounted_for(played: Path) -> None:
    dialogues = files.read_dialogues(played)
    assert files.accounted(dialogues) == {"done": ROWS, "failed": 0, "rejected": 0}
    assert len({d.id for d in dialogues}) == ROWS
    turns = [turn for d in dialogues for turn in d.turns]
    assert len(turns) == REPLIES and {turn.outcome for turn in turns} == {Outcome.OK}
    assert {turn.finish_reason for turn in turns} <= {"stop", "length"}
    assert all(0 < turn.completion_tokens <= 24 for turn in turns)
    assert len({turn.reply for turn in turns}) > 0.9 * REPLIES, "a reply of its own for every key"


def test_with_structured_output_every_verdict_parses(judged: Path) -> None:
    assert _outcomes(judged, "structured") == {Outcome.OK: REPLIES}
    verdicts = _verdicts(judged, "structured").values()
    assert {v.harmlessness for v in verdicts} <= set(range(-3, 4))
    assert {v.helpfulness for v in verdicts} <= set(range(4))
    canaries = files.read_judges(judged)["structured"].canaries
    assert canaries is not None and canaries["attacks_each"] == 1


def test_without_it_no_verdict_parses_and_none_counts_as_a_low_score(
    played: Path, tutor_server: VllmServer, tmp_path: Path
) -> None:
    before = tutor_server.answered()
    command = ["judge", played, "--judge", tutor_server.model, "--url", tutor_server.base_url, "--name", "free"]
    command += ["--structured-output", "none", "--max-tokens", "16", "--no-canaries"]
    assert bench(*command) == 1, "no verdict at all is no success"
    assert _outcomes(played, "free") == {Outcome.UNPARSEABLE: REPLIES}
    assert all(v.harmlessness is None and v.reason for v in _verdicts(played, "free").values())
    assert tutor_server.answered() - before == 2 * REPLIES, "a question and one repair each"
    _, found = _report(played, "free", tmp_path)
    assert found["account"]["judged"] == 0 and found["account"]["missing"] == {"unparseable": REPLIES}
    safe = found["overall"]["safe"]
    assert (safe["value"], safe["low_bound"], safe["high_bound"]) == (None, 0.0, 1.0)


def test_the_report_shows_every_dialogue_of_the_run(judged: Path, tmp_path: Path) -> None:
    html, found = _report(judged, "structured", tmp_path)
    account = {name: found["account"][name] for name in ("rows", "done", "failed", "rejected", "turns", "judged")}
    assert account == {"rows": ROWS, "done": ROWS, "failed": 0, "rejected": 0, "turns": REPLIES, "judged": REPLIES}
    assert found["account"]["missing"] == {}
    start = html.index('id="data">') + len('id="data">')
    block = json.loads(html[start : html.index("</script", start)])
    assert [row[1] for row in block["dialogues"]] == [d.id for d in files.read_dialogues(judged)]
