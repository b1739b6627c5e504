"""What is missing is run, once, in the order of what it rests on; crashes and Ctrl-C leave everything resumable."""

import json
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from stages_results import result

from verl_steer.data.parts import file_hash
from verl_steer.local.checkpoint import TRACKER
from verl_steer.stages import plan
from verl_steer.stages import result as results
from verl_steer.stages.console import Task, progress
from verl_steer.stages.plan import ARMS
from verl_steer.stages.processes import StepError
from verl_steer.stages.runner import Runner
from verl_steer.stages.sizes import FAST, sized


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


@pytest.mark.parametrize(("field", "value"), [("world_hash", "other"), ("dialogues", 7), ("bench_sha256", "0" * 64)])
def test_constants_of_another_experiment_are_refused_before_anything_is_trained(runner, field, value):
    hashes = constant_of(runner)
    results.write(result(None, "refuse", **hashes), runner.results)
    assert runner.missing_constants() == ["perfect-refusal-template", "comply", "empty"]
    results.write(result(None, "refuse", **(hashes | {field: value})), runner.results)
    with pytest.raises(results.ResultError, match=rf"constant-refuse\.json is of another experiment: its {field} is"):
        runner.missing([0], [ARMS["base"]])


def constant_of(runner: Runner) -> dict:
    """What a constant policy's result of this very experiment holds; its bench is written, too."""
    bench = plan.Place(runner.root, -1).bench
    bench.parent.mkdir(parents=True, exist_ok=True)
    bench.write_bytes(b"of this experiment")
    own = {"config_hash": "constant", "world_hash": runner.world_hash, "bench_sha256": file_hash(bench)}
    return own | {"dialogues": 2 * runner.sizes.bench_pairs}


def test_a_constant_policy_that_was_left_out_is_played_though_no_run_is_missing(runner, monkeypatch):
    played: list[str] = []
    monkeypatch.setattr(runner.steps, "run", lambda _, name, command: played.append(name))
    monkeypatch.setattr("verl_steer.stages.result.from_bench", lambda folder, bench: from_hand)
    hashes = constant_of(runner)
    shown = result(None, "x", **hashes).model_dump()
    given = {"seed", "arm", "config_hash", "world_hash", "commands"}
    from_hand = {name: value for name, value in shown.items() if name not in given}
    results.write(result(None, "refuse", **hashes), runner.results)
    runner.constants()
    assert played == ["constants", *(f"constants-{name}" for name in ("perfect-refusal-template", "comply", "empty"))]
    assert runner.missing_constants() == []
    played.clear()
    runner.constants()
    assert played == []


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
    until(beat.exists)
    runner.stop()
    thread.join(30)
    assert not thread.is_alive() and errors
    last = beat.read_text()
    time.sleep(0.5)
    assert beat.read_text() == last, "the child's child is gone, too"
    with pytest.raises(StepError, match="stopped"):
        runner.steps.run(plan.Place(runner.root, 0), "next", [sys.executable, "-c", "pass"])


def test_other_sizes_work_in_another_folder(tmp_path, runner):
    other = Runner(tmp_path / "work", tmp_path / "results", sized(FAST, ["rl_steps=3"]))
    assert other.root != runner.root and other.world_hash == runner.world_hash


def test_an_arm_with_a_stage_two_of_its_own_trains_it_from_the_base_and_nothing_else(runner, monkeypatch):
    place = plan.Place(runner.root, 0)
    begun: list[list[str]] = []

    def run(_, name: str, command) -> None:
        begun.append([name, *command])
        if name.startswith("bench"):
            raise StepError("far enough")
        trained(place.arm("sft_twice"), 2 * (runner.sizes.sft_dialogues // runner.sizes.sft_batch))

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


def test_an_arm_whose_records_another_arm_reads_is_trained_again_where_only_its_result_is(runner, monkeypatch):
    """Results travel with the repository, records do not."""
    results.write(own(runner, 0, "full"), runner.results)
    place = plan.Place(runner.root, 0)
    begun: list[str] = []

    def run(_, name: str, command) -> None:
        begun.append(name)
        if name.startswith("bench"):
            raise StepError("far enough")
        trained(place.arm(name.removeprefix("rl-")), runner.sizes.rl_steps)

    monkeypatch.setattr(runner.steps, "run", run)
    monkeypatch.setattr("verl_steer.stages.runner.find", lambda folder: folder)
    assert runner.missing([0], [ARMS["full"], ARMS["yoked"]]) == [Task(0, "yoked")]
    with pytest.raises(StepError, match="far enough"):
        runner._arm(place, ARMS["yoked"])
    assert begun == ["rl-full", "rl-yoked", "bench-yoked-0"]
    begun.clear()
    (place.arm("yoked") / TRACKER).unlink()
    with pytest.raises(StepError, match="far enough"):
        runner._arm(place, ARMS["yoked"])
    assert begun == ["rl-yoked", "bench-yoked-0"]


def trained(folder: Path, step: int) -> None:
    """What verl leaves of a training that came to this step."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRACKER).write_text(str(step))


def test_a_training_that_ends_before_its_last_step_makes_no_result(runner, monkeypatch):
    """verl ends without an error where the rows give out; the result would claim steps that were not made."""
    place = plan.Place(runner.root, 0)
    short = runner.sizes.rl_steps - 4
    monkeypatch.setattr(runner.steps, "run", lambda _, name, command: trained(place.arm("full"), short))
    with pytest.raises(
        StepError, match=f"last checkpoint is of step {short} of {runner.sizes.rl_steps} .*rows give out"
    ):
        runner._stage3(place, ARMS["full"], place.sft)


def test_rows_and_world_that_are_there_are_not_made_again(runner, monkeypatch):
    begun: list[str] = []
    monkeypatch.setattr(runner.steps, "run", lambda _, name, command: begun.append(name))
    place = plan.Place(runner.root, 0)
    for part in ("world", "rows"):
        runner._do(Task(0, part), lambda *_: None)
    assert begun == ["world", "rows"]
    for path in (place.bench, *map(place.rows, ("sft", "rl", "single", "probe"))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    student = runner.root / "worlds" / "student"
    student.mkdir(parents=True)
    place.base.symlink_to(student)
    for part in ("world", "rows"):
        runner._do(Task(0, part), lambda *_: None)
    assert begun == ["world", "rows"]
    student.rmdir()
    runner._do(Task(0, "world"), lambda *_: None)
    assert begun == ["world", "rows", "world"], "a link to nothing is no world"


def test_no_two_commands_are_at_one_step(runner, monkeypatch, tmp_path):
    """A command that was killed outright leaves what it had started: nothing else may train in the same folder."""
    monkeypatch.setattr("verl_steer.stages.processes._LINGERS_S", 0.5)
    place, other = plan.Place(runner.root, 0), Runner(tmp_path / "work", tmp_path / "results", FAST)
    wait = [
        "import pathlib, time",
        f"end = pathlib.Path({str(tmp_path / 'end')!r})",
        "while not end.exists(): time.sleep(0.05)",
    ]
    program = "\n".join([wait[0], wait[1], f"pathlib.Path({str(tmp_path / 'begun')!r}).touch()", wait[2]])
    thread = threading.Thread(target=runner.steps.run, args=(place, "rl-full", [sys.executable, "-c", program]))
    thread.start()
    try:
        until(lambda: (tmp_path / "begun").exists())
        with pytest.raises(StepError, match="rl-full of seed 0 is under way in another process"):
            other.steps.run(place, "rl-full", [sys.executable, "-c", "pass"])
        other.steps.run(place, "rl-script", [sys.executable, "-c", "pass"])
    finally:
        (tmp_path / "end").touch()
        thread.join(30)
    other.steps.run(place, "rl-full", [sys.executable, "-c", "pass"])


def until(there) -> None:
    end = time.monotonic() + 60
    while not there() and time.monotonic() < end:
        time.sleep(0.05)
    assert there()


def test_steps_may_tell_at_the_same_time(capsys, monkeypatch):
    """Each does so from a thread of its own."""
    monkeypatch.setattr("rich._console", None)  # a library that another test imported may have silenced it
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    errors: list[Exception] = []

    def step(seed: int) -> None:
        try:
            for name in ("world", "rows") * 200:
                tell(Task(seed, name), "begins")
                tell(Task(seed, name), "ends")
        except RuntimeError as error:
            errors.append(error)

    try:
        with progress(1) as tell:
            threads = [threading.Thread(target=step, args=(seed,)) for seed in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not errors and capsys.readouterr().out.count("rows: ends") == 800
