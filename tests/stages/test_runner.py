"""What is missing is run, once, in the order of what it rests on; crashes and Ctrl-C leave everything resumable."""

import json
import signal
import sys
import threading
import time

import pytest
from stages_results import result

from verl_steer.data.parts import file_hash
from verl_steer.stages import plan
from verl_steer.stages import result as results
from verl_steer.stages.console import Task
from verl_steer.stages.plan import ARMS, FAST
from verl_steer.stages.processes import StepError
from verl_steer.stages.runner import TRACKER, Runner


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path / "work", tmp_path / "results", FAST)


def own(runner: Runner, seed: int, arm: str, **more):
    """A result of this very experiment."""
    hashes = {"config_hash": plan.config_hash(ARMS[arm], runner.sizes), "world_hash": runner.world_hash}
    return result(seed, arm, **(hashes | more))


def test_what_exists_is_not_repeated_and_another_experiment_s_is_refused(runner):
    arms = [ARMS["base"], ARMS["full"]]
    assert runner.missing([0, 1], arms) == [Task(0, "base"), Task(0, "full"), Task(1, "base"), Task(1, "full")]
    results.write(own(runner, 0, "full"), runner.results)
    assert Task(0, "full") not in runner.missing([0, 1], arms)
    results.write(own(runner, 1, "full", config_hash="other"), runner.results)
    with pytest.raises(
        results.ResultError, match=r"seed1-full\.json is of another experiment: its config_hash is other"
    ):
        runner.missing([0, 1], arms)


def test_steps_come_after_what_they_rest_on_and_a_failure_stops_only_what_rests_on_it(runner, monkeypatch):
    done: list[Task] = []
    lock = threading.Lock()

    def do(task: Task, tell) -> None:
        if task == Task(1, "stage2"):
            raise StepError("ended with status 1")
        with lock:
            done.append(task)

    monkeypatch.setattr(runner, "_do", do)
    wanted = [Task(seed, arm) for seed in (0, 1) for arm in ("base", "full", "yoked")]
    told: list[tuple[Task, str]] = []
    failed = runner.run(wanted, 2, lambda task, what: told.append((task, what)))
    assert failed == [(Task(1, "stage2"), "ended with status 1")] == told
    assert {t.name for t in done if t.seed == 0} == {"world", "rows", "stage2", "base", "full", "yoked"}
    assert {t.name for t in done if t.seed == 1} == {"world", "rows", "base"}
    order = [t.name for t in done if t.seed == 0]
    assert (
        max(order.index("world"), order.index("rows"))
        < order.index("stage2")
        < order.index("full")
        < order.index("yoked")
    )


def test_no_more_steps_than_jobs_run_at_once(runner, monkeypatch):
    under_way, most = 0, 0
    lock = threading.Lock()

    def do(task: Task, tell) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1

    monkeypatch.setattr(runner, "_do", do)
    assert runner.run([Task(seed, "base") for seed in range(5)], 2, lambda *_: None) == []
    assert most == 2


def test_ctrl_c_is_heard_though_another_thread_got_it(runner, monkeypatch, request):
    stopped = threading.Event()

    def do(task: Task, tell) -> None:
        time.sleep(1.0)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        stopped.wait(30)

    monkeypatch.setattr(runner, "_do", do)
    monkeypatch.setattr(runner, "stop", stopped.set)
    # A job in the background of a shell inherits that Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        runner.run([Task(0, "base")], 1, lambda *_: None)
    assert stopped.is_set() and time.monotonic() - began < 20


def test_a_step_leaves_its_output_its_time_and_its_error(runner):
    place = plan.Place(runner.root, 0)
    runner.steps.run(place, "hello", [sys.executable, "-c", "print('said')"])
    assert (place.folder / "logs" / "hello.txt").read_text() == "said\n"
    assert json.loads((place.folder / "seconds.json").read_text()).keys() == {"hello"}
    with pytest.raises(StepError, match=r"broken of seed 0 ended with status 3; its end says: no luck .*broken\.txt"):
        runner.steps.run(place, "broken", [sys.executable, "-c", "print('no luck'); raise SystemExit(3)"])


def test_stopping_ends_a_process_under_way_with_its_children_and_starts_no_other(runner, tmp_path):
    """The child ignores the first signal, as a busy one may; its own child writes as long as it lives."""
    beat = tmp_path / "beat"
    child = f"import time, pathlib\nwhile True:\n pathlib.Path({str(beat)!r}).write_text(str(time.time()))\n time.sleep(0.05)"
    program = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    errors: list[Exception] = []

    def step() -> None:
        try:
            runner.steps.run(plan.Place(runner.root, 0), "long", [sys.executable, "-c", program])
        except StepError as error:
            errors.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    end = time.monotonic() + 60
    while not beat.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert beat.exists()
    runner.stop()
    thread.join(30)
    assert not thread.is_alive() and errors
    last = beat.read_text()
    time.sleep(0.5)
    assert beat.read_text() == last, "the child's child is gone, too"
    with pytest.raises(StepError, match="stopped"):
        runner.steps.run(plan.Place(runner.root, 0), "next", [sys.executable, "-c", "pass"])


def test_other_sizes_work_in_another_folder(tmp_path, runner):
    other = Runner(tmp_path / "work", tmp_path / "results", plan.sized(FAST, ["rl_steps=3"]))
    assert other.root != runner.root and other.world_hash == runner.world_hash


def test_an_arm_with_a_stage_two_of_its_own_trains_it_from_the_base_and_nothing_else(runner, monkeypatch):
    place = plan.Place(runner.root, 0)
    begun: list[list[str]] = []

    def run(_, name: str, command) -> None:
        begun.append([name, *command])
        if name.startswith("bench"):
            raise StepError("far enough")

    monkeypatch.setattr(runner.steps, "run", run)
    monkeypatch.setattr("verl_steer.stages.runner.find", lambda folder: folder)
    task = Task(0, "sft_twice")
    assert runner.rests_on([task]) == {
        Task(0, "world"): set(),
        Task(0, "rows"): set(),
        task: {Task(0, "world"), Task(0, "rows")},
    }
    with pytest.raises(StepError, match="far enough"):
        runner._arm(place, ARMS["sft_twice"])
    training, bench = begun
    assert training[0] == "sft-sft_twice" and f"model.path={place.base.resolve()}" in training
    assert bench[0] == "bench-sft_twice-0" and str(place.arm("sft_twice")) in bench


def test_constants_of_another_bench_are_refused(runner, monkeypatch):
    bench = plan.Place(runner.root, -1).bench
    (runner.root / "constants" / "refuse").mkdir(parents=True)
    bench.write_bytes(b"of this experiment")
    monkeypatch.setattr(runner.steps, "run", lambda *_: None)
    hashes = {"config_hash": "constant", "world_hash": runner.world_hash}
    results.write(result(None, "refuse", **hashes, bench_sha256="0" * 64), runner.results)
    with pytest.raises(results.ResultError, match=r"constant-refuse\.json is of another experiment: its bench_sha256"):
        runner.constants()
    results.write(result(None, "refuse", **hashes, bench_sha256=file_hash(bench)), runner.results)
    runner.constants()


def test_an_arm_whose_records_another_arm_reads_is_trained_again_where_only_its_result_is(runner, monkeypatch):
    """Results travel with the repository, records do not."""
    results.write(own(runner, 0, "full"), runner.results)
    place = plan.Place(runner.root, 0)
    begun: list[str] = []

    def run(_, name: str, command) -> None:
        begun.append(name)
        if name.startswith("bench"):
            raise StepError("far enough")

    monkeypatch.setattr(runner.steps, "run", run)
    monkeypatch.setattr("verl_steer.stages.runner.find", lambda folder: folder)
    assert runner.missing([0], [ARMS["full"], ARMS["yoked"]]) == [Task(0, "yoked")]
    with pytest.raises(StepError, match="far enough"):
        runner._arm(place, ARMS["yoked"])
    assert begun == ["rl-full", "rl-yoked", "bench-yoked-0"]
    place.arm("full").mkdir(parents=True)
    (place.arm("full") / TRACKER).write_text(str(runner.sizes.rl_steps))
    begun.clear()
    with pytest.raises(StepError, match="far enough"):
        runner._arm(place, ARMS["yoked"])
    assert begun == ["rl-yoked", "bench-yoked-0"]
