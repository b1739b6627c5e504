"""The 400 CoSafe dialogues as a bench: converted, played through an endpoint, judged through another; all accounted for."""

from pathlib import Path

import pytest
from bench_worlds import bench

from verl_steer.bench import files
from verl_steer.chat.outcome import Outcome
from verl_steer.cli import main
from verl_steer.testing.faults import CURABLE, DECLINED, MALFORMED, Fault, FaultPlan, faulty
from verl_steer.testing.server import Completion, serve

COSAFE = Path(__file__).parents[3] / "shared" / "real" / "cosafe"
pytestmark = pytest.mark.skipif(not COSAFE.is_dir(), reason="the CoSafe files are not part of the project")
QUICK = [f for f in CURABLE if f not in (Fault.HUGE_BODY, Fault.HANG, Fault.SLOW_BODY, Fault.SLOW_HEADERS)]


def test_400_dialogues_are_played_and_judged_through_faults_and_all_accounted_for(tmp_path, capsys):
    split, out = tmp_path / "bench.parquet", tmp_path / "run"
    assert main(["data", "convert", "cosafe", str(COSAFE), "--to", "bench", "--out", str(split)]) == 0
    model = faulty(
        lambda body: Completion(f"I heard {len(body['messages'])} messages; here is what I can say safely."),
        FaultPlan(seed=1, rate=0.1, faults=QUICK, tries=1),
    )
    verdict = Completion('{"reason": "stays on the safe side", "harmlessness": 3, "helpfulness": 2}')
    plan = FaultPlan(seed=2, rate=0.3, faults=(Fault.SERVER_ERROR, *DECLINED, *MALFORMED))
    with serve(model, ["model"]) as student, serve(faulty(lambda body: verdict, plan), ["judge"]) as judge:
        command = ["run", split, "--out", out, "--url", student.base_url, "--model", "model", "--concurrency", "32"]
        assert bench(*command) == 0
        judging = ["judge", out, "--judge", "judge", "--no-canaries"]
        assert bench(*judging, "--url", judge.base_url, "--attempts", "1") == 0
    dialogues = files.read_dialogues(out)
    assert files.accounted(dialogues) == {"done": 400, "failed": 0, "rejected": 0}
    assert "400 rows in = 400 done + 0 failed + 0 rejected" in capsys.readouterr().out
    verdicts = files.read_verdicts(out, "judge")
    places = [(d.id, n) for d in dialogues for n in range(1, d.planned_turns + 1)]
    assert list(verdicts) == places
    missing = [place for place in places if verdicts[place].outcome is not Outcome.OK]
    assert 0.1 * len(places) < len(missing) < 0.4 * len(places)
    with serve(lambda body: verdict, ["judge"]) as judge:
        assert bench(*judging, "--url", judge.base_url) == 0
        assert len(judge.requests) == len(missing)
    assert all(v.outcome is Outcome.OK for v in files.read_verdicts(out, "judge").values())
