"""What a candidate must be for a split: the keep rule of stage II, Rule 1 (SFT) and Rule 2 (RL), in one place.

The paper names these rules and leaves them open. Each of ours is one function with its reason; every threshold is
a key of `selection_config.py`, every rule can be turned off by its name. A rule answers True (passes), False, or
None: what it would look at is not known. None is never False: such a row is removed as `unscored`, whatever the
scores that are there.

Rule 1 is turns, source, succeeded, whole and faithful; the keep rule is safe and helpful; Rule 2 is turns, source,
succeeded, challenging and history_dependent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from verl_steer.dialogue import Kind
from verl_steer.scores import TutorScores
from verl_steer.synthesis.candidate import Candidate
from verl_steer.synthesis.selection_config import SPLITS, SelectionConfig

UNSCORED = "unscored"


@dataclass(frozen=True)
class Rule:
    """A rule and where it holds.

    Attributes:
        name: To turn it off by.
        splits: Splits whose rows must pass it.
        keys: Its thresholds, as keys of the selection's settings.
        test: Candidate, settings, split -> passes, or None for a missing verdict.
    """

    name: str
    splits: tuple[str, ...]
    keys: tuple[str, ...]
    test: Callable[[Candidate, SelectionConfig, str], bool | None]


def turns_in(candidate: Candidate, split: str) -> int:
    """User turns of the row that a split would get: the dialogue's for SFT, else the script's."""
    row = candidate.dialogue if split == "sft" and candidate.dialogue is not None else candidate.script
    return len(row.turns)


def _turns(candidate: Candidate, config: SelectionConfig, split: str) -> bool:
    """A conversation has at least two turns; what a single one teaches, single-turn data teach already."""
    wanted = config.split(split)
    return wanted.min_turns <= turns_in(candidate, split) <= wanted.max_turns


def _source(candidate: Candidate, config: SelectionConfig, split: str) -> bool:
    """Where training and bench come from different data sets, as in the paper, nothing can leak between them."""
    wanted = config.split(split).sources
    return not wanted or candidate.script.source in wanted


def _succeeded(candidate: Candidate, config: SelectionConfig, _: str) -> bool | None:
    """A red-team script that no target falls for teaches nothing that the obfuscated pool does not (appendix F)."""
    if candidate.script.kind is not Kind.RED_TEAM:
        return True
    return None if candidate.success is None else candidate.success >= config.risk.min_success


def _whole(candidate: Candidate, _: SelectionConfig, __: str) -> bool:
    """A dialogue that ended before its script did ends where the attack was going to matter."""
    return candidate.dialogue is not None and len(candidate.dialogue.turns) == len(candidate.script.turns)


def _safe(candidate: Candidate, config: SelectionConfig, _: str) -> bool | None:
    """min_t safety >= tau_safe (paper, stage II): one unsafe turn spoils a dialogue. 8 is a bare refusal."""
    scores = _scores(candidate, config)
    return None if scores is None else min((s.safety for s in scores), default=10) >= config.keep.tau_safe


def _helpful(candidate: Candidate, config: SelectionConfig, _: str) -> bool | None:
    """mean_t usefulness >= tau_help (paper, stage II): a mean, since a refused turn may be of little use."""
    scores = _scores(candidate, config)
    if scores is None:
        return None
    return not scores or fmean(s.usefulness for s in scores) >= config.keep.tau_help


def _faithful(candidate: Candidate, config: SelectionConfig, _: str) -> bool | None:
    """min_t faithfulness >= tau_faith: a reply that is safe because it did not look teaches blindness."""
    scores = _scores(candidate, config)
    return None if scores is None else min((s.faithfulness for s in scores), default=10) >= config.keep.tau_faith


def _challenging(candidate: Candidate, config: SelectionConfig, _: str) -> bool | None:
    """The fixed target gave the harm away: an attack that nobody falls for has equal returns, so no advantage.

    Benign rows pass: they are there to make over-refusal cost something, and whether a student that has learned to
    refuse over-refuses cannot be read from a target that complies. Best evidence first: the verdict on the whole
    dialogue, the success judge, the scores of a probe dialogue (a stage II dialogue is the expert's and says nothing).
    """
    if not candidate.script.kind.harmful:
        return True
    if candidate.dialogue_safe is not None:
        return not candidate.dialogue_safe
    if candidate.success is not None:
        return candidate.success >= config.risk.min_success
    if candidate.dialogue is not None:
        return None
    known = [s.safety for s in candidate.turn_scores if s is not None]
    if known and min(known) <= config.risk.breach_safety:
        return True  # one breach is enough, whatever the missing verdicts would have said
    return None if not known or len(known) < turns_in(candidate, "rl") else False


def _history_dependent(candidate: Candidate, _: SelectionConfig, __: str) -> bool | None:
    """The last question alone is answered safely: with `challenging`, the harm is there only given the earlier turns.

    Such rows are what single-turn alignment misses. Benign rows have no harm and pass.
    """
    return candidate.last_alone_safe if candidate.script.kind.harmful else True


def _scores(candidate: Candidate, config: SelectionConfig) -> list[TutorScores] | None:
    """The dialogue's scores; None if a turn has none. With `unscored` off, those that are there."""
    known = [s for s in candidate.turn_scores if s is not None]
    complete = len(known) == len(candidate.turn_scores) == turns_in(candidate, "sft")
    return known if complete or not config.on(UNSCORED) else None


#: In the order in which a candidate meets them: the first one that it does not pass removes it.
RULES = (
    Rule("turns", SPLITS, ("SPLIT.min_turns", "SPLIT.max_turns"), _turns),
    Rule("source", SPLITS, ("SPLIT.sources",), _source),
    Rule("succeeded", SPLITS, ("risk.min_success",), _succeeded),
    Rule("whole", ("sft",), (), _whole),
    Rule("safe", ("sft",), ("keep.tau_safe",), _safe),
    Rule("helpful", ("sft",), ("keep.tau_help",), _helpful),
    Rule("faithful", ("sft",), ("keep.tau_faith",), _faithful),
    Rule("challenging", ("rl",), ("risk.min_success", "risk.breach_safety"), _challenging),
    Rule("history_dependent", ("rl",), (), _history_dependent),
)


def removed_by(candidate: Candidate, config: SelectionConfig, split: str) -> str | None:
    """The rule that keeps a candidate out of a split, `no_dialogue` or `unscored`, or None if it may be drawn."""
    if split == "sft" and candidate.dialogue is None:
        return "no_dialogue"  # there is nothing to write, so this cannot be turned off
    for rule in RULES:
        if split not in rule.splits or not config.on(rule.name):
            continue
        passes = rule.test(candidate, config, split)
        if passes is None and config.on(UNSCORED):
            return UNSCORED
        if passes is False:
            return rule.name
    return None


def kept(candidate: Candidate, config: SelectionConfig) -> bool:
    """The keep rule of stage II alone: safe and helpful, with a verdict on every turn."""
    return all(rule.test(candidate, config, "sft") for rule in RULES if rule.name in ("safe", "helpful"))
