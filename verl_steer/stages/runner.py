"""Runs what is missing: steps in the order of what they rest on, two at a time, each in a process of its own.

A run that exists in the results folder is not repeated; a step that a crash or Ctrl-C ended is run again with the same command,
which goes on from its checkpoint where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from pathlib import Path

from verl_steer.bench.lines import BenchError
from verl_steer.data.parts import file_hash
from verl_steer.local.checkpoint import CheckpointError, find, reached, weights_hash
from verl_steer.stages import commandlines, plan, result
from verl_steer.stages.console import Task
from verl_steer.stages.met import met_in
from verl_steer.stages.plan import Arm, Place
from verl_steer.stages.processes import StepError, Steps
from verl_steer.stages.sizes import Sizes, flat

_WAKES_S = 0.5
_ORDER = ("world", "rows", "stage2", *plan.ARMS)


class Runner:
    """An experiment: a folder to work in and a folder for results.

    Args:
        work: Checkpoints, rows, logs; every set of sizes has a folder of its own in it.
        results: Where `seedN-ARM.json` go.
        sizes: Of everything.
    """

    def __init__(self, work: Path, results: Path, sizes: Sizes) -> None:
        from verl_steer.stages.world import world_config

        self.sizes = sizes
        self.results = results
        self.world_hash: str = world_config(sizes).fingerprint()
        self.root = (work / f"{self.world_hash}-{plan.config_hash(plan.ARMS['base'], sizes)}").absolute()
        self.steps = Steps()

    # -- what is to be done ----------------------------------------------------------------------------

    def missing(self, seeds: Sequence[int], arms: Sequence[Arm]) -> list[Task]:
        """The arms without a result.

        Raises:
            result.ResultError: A result exists that other sizes, another arm or another world made.
        """
        self.missing_constants()
        tasks = []
        for seed in seeds:
            for arm in arms:
                path = self.results / f"seed{seed}-{arm.name}.json"
                if not path.is_file():
                    tasks.append(Task(seed, arm.name))
                    continue
                self._same(path, config_hash=plan.config_hash(arm, self.sizes))
        return tasks

    def missing_constants(self) -> list[str]:
        """The constant policies without a result.

        Raises:
            result.ResultError: A result exists that another world or another bench made.
        """
        bench = Place(self.root, -1).bench
        known = {"bench_sha256": file_hash(bench)} if bench.is_file() else {}
        absent = []
        for name in plan.constants():
            path = self.results / f"constant-{name}.json"
            if path.is_file():
                self._same(path, config_hash="constant", dialogues=2 * self.sizes.bench_pairs, **known)
            else:
                absent.append(name)
        return absent

    def _same(self, path: Path, **mine: str | int) -> None:
        found = result.read(path)
        for name, value in {**mine, "world_hash": self.world_hash}.items():
            if getattr(found, name) != value:
                raise result.ResultError(
                    f"{path} is of another experiment: its {name} is {getattr(found, name)}, now {value}. Move it away, or "
                    "name another --results"
                )

    def rests_on(self, tasks: Sequence[Task]) -> dict[Task, set[Task]]:
        """Every step that these tasks need, with the steps before it."""
        graph: dict[Task, set[Task]] = {}
        for task in tasks:
            arm, sft = plan.ARMS[task.name], Task(task.seed, "stage2")
            before = made = {Task(task.seed, part) for part in ("world", "rows")}
            graph |= {part: set() for part in made}
            if arm.start == "sft":
                graph[sft] = made
                before = {sft}
            if arm.needs:
                other = Task(task.seed, arm.needs)
                if other in tasks:
                    before = before | {other}
            graph[task] = before
        return graph

    # -- doing it --------------------------------------------------------------------------------------

    def run(self, tasks: Sequence[Task], jobs: int, tell: Callable[[Task, str], None]) -> list[tuple[Task, str]]:
        """Does the tasks and what they rest on; what rests on a failed step is left out.

        Args:
            tasks: From `missing`.
            jobs: Steps at a time.
            tell: Called with "begins", "ends" or the error.

        Returns:
            The failed steps with their errors.
        """
        order = TopologicalSorter(self.rests_on(tasks))
        order.prepare()
        failed: list[tuple[Task, str]] = []
        with ThreadPoolExecutor(jobs) as pool:
            futures: dict[Future[None], Task] = {}
            waiting: list[Task] = []
            try:
                while order.is_active():
                    # The oldest seed first: whole seeds get done, not all seeds by halves.
                    waiting = sorted([*waiting, *order.get_ready()], key=lambda t: (t.seed, _ORDER.index(t.name)))
                    while waiting and len(futures) < jobs:
                        task = waiting.pop(0)
                        futures[pool.submit(self._do, task, tell)] = task
                    if not futures:
                        break  # the rest waits for a step that failed
                    # A signal that another thread got wakes nobody who waits without an end.
                    for future in wait(futures, _WAKES_S, return_when=FIRST_COMPLETED).done:
                        task = futures.pop(future)
                        error = future.exception()
                        if error is None:
                            order.done(task)
                        elif isinstance(error, (StepError, BenchError, OSError, ValueError)):
                            failed.append((task, str(error)))
                            tell(task, str(error))
                        else:
                            raise error
            except BaseException:
                self.stop()
                raise
        return failed

    def stop(self) -> None:
        """Ends every process that is under way, with its children."""
        self.steps.stop()

    def _do(self, task: Task, tell: Callable[[Task, str], None]) -> None:
        self.steps.check()
        tell(task, "begins")
        place = Place(self.root, task.seed)
        if task.name in ("world", "rows"):
            if not place.has(task.name):
                self.steps.run(place, task.name, commandlines.own_command(task.name, place, self.sizes))
        elif task.name == "stage2":
            self._stage2(place)
        else:
            self._arm(place, plan.ARMS[task.name])
        tell(task, "ends")

    def _stage2(self, place: Place) -> None:
        command = commandlines.sft_command(place, self.sizes)
        self._train(place, "sft", command, place.sft, self.sizes.sft_steps)

    def _arm(self, place: Place, arm: Arm) -> None:
        student = start = place.base.resolve() if arm.start == "base" else _student(place.sft)
        commands = [commandlines.own_command(part, place, self.sizes) for part in ("world", "rows")]
        if arm.start == "sft":
            commands.append(commandlines.sft_command(place, self.sizes))
        if arm.needs:
            self._stage3(place, plan.ARMS[arm.needs], start)
        trained = arm.overrides is not None
        if arm.sft_epochs:
            commands.append(self._stage2_of(place, arm))
            student = _student(place.arm(arm.name))
        elif trained:
            commands.append(self._stage3(place, arm, start))
            student = _student(place.arm(arm.name))
        elif arm.start == "sft":
            start = place.base.resolve()
        for number, command in enumerate(commandlines.bench_commands(place, arm.name, student)):
            commands.append(command)
            self.steps.run(place, f"bench-{arm.name}-{number}", command)
        flips = {}
        if arm.name in plan.PROBED_ARMS:
            commands.append(commandlines.causal_command(place, arm.name, student))
            if not place.flips(arm.name).is_file():
                self.steps.run(place, f"causal-{arm.name}", commands[-1])
            flips = result.flips_of(place.flips(arm.name), weights_hash(student))
        found = result.Result(
            seed=place.seed,
            arm=arm.name,
            config_hash=plan.config_hash(arm, self.sizes),
            world_hash=self.world_hash,
            sizes=flat(self.sizes),
            commands=[self._shown(command) for command in commands],
            start="" if student == start else weights_hash(start),
            student=weights_hash(student),
            seconds=self._seconds(place, arm),
            curve=result.curve_of(place.arm(arm.name) / "records") if trained else [],
            met=met_in(place.arm(arm.name) / "records") if trained else None,
            flips=flips,
            **result.from_bench(place.played(arm.name), place.bench),
        )
        result.write(found, self.results)

    def _stage2_of(self, place: Place, arm: Arm) -> list[str]:
        """A stage II that is the arm's own."""
        training = commandlines.sft_command(place, self.sizes, arm)
        updates = arm.sft_epochs * (self.sizes.sft_dialogues // self.sizes.sft_batch)
        self._train(place, f"sft-{arm.name}", training, place.arm(arm.name), updates)
        return training

    def _stage3(self, place: Place, arm: Arm, start: Path) -> list[str]:
        """Trains an arm to its last step; a result without its records, from another machine, does not stop that."""
        training = commandlines.rl_command(place, arm, self.sizes, start)
        self._train(place, f"rl-{arm.name}", training, place.arm(arm.name), self.sizes.rl_steps)
        return training

    def _train(self, place: Place, name: str, command: list[str], folder: Path, updates: int) -> None:
        """Trains to the last update or goes on to it; verl ends without an error where the rows give out before."""
        if reached(folder) >= updates:
            return
        self.steps.run(place, name, command)
        if reached(folder) < updates:
            raise StepError(
                f"{name} of seed {place.seed} ended without an error, but its last checkpoint is of step {reached(folder)} of {updates} "
                f"({folder}): did the rows give out? Its log is {place.folder / 'logs' / f'{name}.txt'}"
            )

    def constants(self) -> None:
        """Plays the constant policies that have no result on the bench and writes their results.

        Raises:
            StepError: A step failed.
            result.ResultError: A result is there that another world or another bench made.
        """
        place = Place(self.root, -1)
        names = self.missing_constants()
        if not names:
            return
        if not place.bench.is_file():
            raise StepError(f"{place.bench} is not there yet: it comes with a seed's rows")
        try:
            self._constants(place, names)
        except BaseException:
            self.stop()
            raise

    def _constants(self, place: Place, names: Sequence[str]) -> None:
        for command in commandlines.constant_commands(self.root):
            self.steps.run(place, "constants", command)
        for name in names:
            folder = self.root / "constants" / name
            judge = commandlines.judge_command(folder)
            self.steps.run(place, f"constants-{name}", judge)
            found = result.Result(
                arm=name,
                config_hash="constant",
                world_hash=self.world_hash,
                commands=[self._shown(c) for c in (*commandlines.constant_commands(self.root), judge)],
                **result.from_bench(folder, place.bench),
            )
            result.write(found, self.results)

    def _seconds(self, place: Place, arm: Arm) -> dict[str, float]:
        known = self.steps.seconds(place)
        parts = {"world": ("world",), "rows": ("rows",), "bench": (f"bench-{arm.name}-0", f"bench-{arm.name}-1")}
        if arm.start == "sft":
            parts["sft"] = ("sft",)
        if arm.sft_epochs:
            parts["sft"] = (f"sft-{arm.name}",)
        if arm.overrides is not None:
            parts["rl"] = (f"rl-{arm.name}",)
        return {part: round(sum(known.get(name, 0.0) for name in names), 1) for part, names in parts.items()}

    def _shown(self, command: Sequence[str]) -> str:
        """A command without this machine's folders."""
        return commandlines.described(command).replace(str(self.root), "WORK")


def _student(folder: Path) -> Path:
    try:
        return find(folder)
    except CheckpointError as error:
        raise StepError(str(error)) from error
