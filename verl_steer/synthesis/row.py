"""One seed through the stages: what the runner runs, here, in a thread or on another machine.

A row is a small state machine whose state is what its journal holds: run again, it replays the answers it has
and goes on at the first it has not. It ends with every one of its branches (benign, obfuscated, red team) as a
candidate, filtered by a named rule, or failed with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from verl_steer.chat.endpoints import ChatConfigError
from verl_steer.chat.journal import JournalError
from verl_steer.chat.outage import ModelOutage
from verl_steer.chat.text import sanitise
from verl_steer.data.schemas import SeedRow
from verl_steer.dialogue import Kind
from verl_steer.synthesis import stage1, stage2
from verl_steer.synthesis.calls import Calls, StepFailed, Usage
from verl_steer.synthesis.candidate import Candidate
from verl_steer.synthesis.chance import chance
from verl_steer.synthesis.config import MIN_TURNS, SynthConfig

T = TypeVar("T")
#: What stops a build: it is not the row's doing.
STOPS = (ChatConfigError, ModelOutage, JournalError)


@dataclass(frozen=True)
class Ended:
    """A branch that became no candidate.

    Attributes:
        id: Of the branch: the seed's id and the pool.
        why: The rule, or what went wrong.
        transient: Asking again later may help.
    """

    id: str
    why: str
    transient: bool = False


@dataclass
class Harvest:
    """What became of one seed's branches; branches = candidates + filtered + failed."""

    seed: str
    candidates: list[Candidate] = field(default_factory=list)
    filtered: list[Ended] = field(default_factory=list)
    failed: list[Ended] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)


def branches(config: SynthConfig, seed: SeedRow) -> tuple[Kind, ...]:
    """The pools that a seed is worked into; a benign seed (a capability data set's) holds nothing to attack with."""
    if seed.kind is Kind.BENIGN:
        return (Kind.BENIGN,)
    return tuple(kind for kind in Kind if kind is not Kind.RED_TEAM or config.red_team.enabled)


def for_sft(config: SynthConfig, seed: SeedRow) -> bool:
    """Whether a seed's scripts become STEER-SFT dialogues; else they are held for RL and bench."""
    return seed.source not in config.held_sources and chance(config.seed, seed.id, "split").random() < config.sft_share


async def grow(seed: SeedRow, calls: Calls, approved: Callable[[str], bool]) -> Harvest:
    """Works a seed into its branches.

    Args:
        seed: The row.
        calls: Its roles.
        approved: Whether a category has been reviewed for the red team.

    Raises:
        ChatConfigError, ModelOutage, JournalError: The build cannot go on; nothing is said of the row.
    """
    harvest = Harvest(seed.id, usage=calls.usage)
    kinds = branches(calls.config, seed)
    asked, wrong = await _guarded(stage1.rewrites(calls, seed))
    for kind in kinds:
        name = f"{seed.id}-{stage1.IDS[kind]}"
        found: Candidate | str | None = None
        if asked is not None:
            found, wrong = await _guarded(_branch(seed, calls, kind, asked, approved))
        if isinstance(found, Candidate):
            harvest.candidates.append(found)
        elif found is not None:
            harvest.filtered.append(Ended(name, found))
        else:
            assert wrong is not None, "a branch without a result has a reason"
            harvest.failed.append(Ended(name, str(wrong), isinstance(wrong, StepFailed) and wrong.transient))
    return harvest


async def _branch(
    seed: SeedRow, calls: Calls, kind: Kind, asked: tuple[str, str], approved: Callable[[str], bool]
) -> Candidate | str:
    """A candidate, or the rule that filtered the branch."""
    sft = for_sft(calls.config, seed)
    turns = _turns(calls.config, seed.id, kind, sft)
    if kind is not Kind.RED_TEAM:
        script = await stage1.expand(calls, seed, asked[kind is not Kind.BENIGN], kind, turns)
        return await (stage2.bootstrap(calls, script) if sft else stage2.measure(calls, script))
    if not approved(seed.category):
        return "category_not_reviewed"
    attack = await stage1.attack(calls, seed, asked[1], turns)
    if attack.success < calls.config.red_team.keep_from:
        return "attack_failed"
    if sft:
        return await stage2.bootstrap(calls, attack.script, attack.success)
    return await stage2.measure(calls, attack.script, attack.history, attack.success)


def _turns(config: SynthConfig, seed: str, kind: Kind, sft: bool) -> int:
    weights = config.turns.sft if sft else config.turns.held
    lengths = range(MIN_TURNS, MIN_TURNS + len(weights))
    return chance(config.seed, seed, "turns", kind.value).choices(lengths, weights)[0]


async def _guarded(work: Coroutine[Any, Any, T]) -> tuple[T | None, Exception | None]:
    """The result, or how the work ended. One poisoned row must not stop a build of a hundred thousand."""
    try:
        return await work, None
    except STOPS:
        raise
    except StepFailed as error:
        return None, error
    except Exception as error:  # whatever a row's data provokes; named with its type, in the sidecar
        return None, RuntimeError(sanitise(f"{type(error).__name__}: {error}", 500))
