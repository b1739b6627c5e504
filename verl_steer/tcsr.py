"""TCSR: turn scores -> shaped rewards -> a return, and where the return is placed.

    r~_t = alpha * min_{j<=t} s_j + (1 - alpha) * mean_{j<=t} s_j        (paper, TCSR)
    R    = sum_t r~_t                                                    (or a length-neutral form)

What this does, so that nobody has to guess: under the running sum an *early* failure costs most (a
drop at turn 1 of 10 costs 5.05, at turn 10 it costs 0.37, alpha = 0.3); `terminal` weighs all turns
alike. Three rules go beyond the formula:

* The planned length is always the denominator, and a dialogue cut by the student's doing is valued at
  the floor for its missing turns: a cut never pays.
* A dialogue cut by anything else leaves the loss (masked).
* A turn without a verdict carries the shaped reward forward, R = T_planned x the mean over the turns
  that have a value (carried ones do, those before the first verdict do not); too few verdicts mask the
  rollout.

Which scores train what: with signal `safety` (paper v1) only the safety score moves the return;
usefulness and faithfulness are recorded in r_t, nothing more. With signal `turn` (paper v2, reference)
all three do, by their weights. `plain_mean` is the mean of s_t and ignores alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verl_steer.config import Reward
from verl_steer.dialogue import Dialogue, Turn
from verl_steer.scores import CEILING, FLOOR, TutorScores, norm, norm_tenth, turn_reward
from verl_steer.shaping import has_exact_format, repeated_trigrams

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredDialogue:
    """What a dialogue was worth.

    Attributes:
        turn_rewards: r_t of each happened turn; None where there is no verdict.
        signal: s_t, what TCSR is applied to; None likewise.
        shaped: r~_t of each happened turn; carried forward over missing verdicts (the first known value
            stands for those before it).
        placed: Reward of each happened turn; sums to `ret`.
        ret: The return R. Not to be used if masked.
        masked: The rollout leaves the loss and its group's baseline.
        mask_reason: Why, or "".
        bounds: (lowest, highest) return if each missing verdict were the floor, the ceiling; so too for
            the turns that a cut took which the student is not to blame for.
        scored_fraction: Share of happened turns with scores; 0.0 if none happened.
    """

    turn_rewards: list[float | None]
    signal: list[float | None]
    shaped: list[float]
    placed: list[float]
    ret: float
    masked: bool
    mask_reason: str
    bounds: tuple[float, float]
    scored_fraction: float


def shaped_rewards(signal: Sequence[float | None], alpha: float) -> Array:
    """r~_t over the turns that have a value; a missing one repeats the last, a leading one the first.

    Args:
        signal: s_t, None where the verdict is missing.
        alpha: Weight of the running minimum.

    Returns:
        float64 array of the same length; empty if no turn has a value.
    """
    known = np.array([s for s in signal if s is not None], dtype=np.float64)
    if known.size == 0:
        return known
    running_min = np.minimum.accumulate(known)
    running_mean = np.cumsum(known) / np.arange(1, known.size + 1)
    values = alpha * running_min + (1 - alpha) * running_mean
    # Position in `known` of the newest value at or before each turn.
    newest = np.cumsum([s is not None for s in signal]) - 1
    return np.asarray(values[np.maximum(newest, 0)], dtype=np.float64)


def signal_floor(reward: Reward) -> float:
    """The lowest possible s_t of this reward: what a turn that the student forfeited is worth."""
    lowest = norm_tenth(FLOOR) if reward.norm == "tenth" else norm(FLOOR)
    return lowest - (reward.repetition_penalty if reward.signal == "turn" else 0.0)


def signal_ceiling(reward: Reward) -> float:
    """The highest possible s_t."""
    highest = norm_tenth(CEILING) if reward.norm == "tenth" else norm(CEILING)
    return highest + (reward.format_bonus if reward.signal == "turn" else 0.0)


def turn_value(turn: Turn, reward: Reward) -> tuple[float | None, float | None]:
    """(r_t, s_t) of a turn, both None without a verdict."""
    scores = turn.verdict.scores if turn.verdict else None
    if scores is None:
        return None, None
    value = turn_reward(scores, reward.weights, reference_norm=reward.norm == "tenth")
    value += reward.format_bonus * has_exact_format(turn.reply)
    value -= reward.repetition_penalty * repeated_trigrams(turn.reply)
    return value, value if reward.signal == "turn" else _safety(scores, reward)


def return_terms(signal: Sequence[float | None], reward: Reward) -> Array:
    """The return as one term a planned turn; their sum is R.

    Args:
        signal: s_t of all planned turns: forfeited ones at the floor, None where a verdict is missing.
        reward: The resolved reward.

    Returns:
        float64 array, one term a planned turn; zeros if there is no verdict at all.
    """
    shaped = shaped_rewards(signal, reward.alpha)
    if shaped.size == 0:
        return np.zeros(len(signal))
    known = np.array([s is not None for s in signal])
    if reward.return_form == "terminal":
        # r~_t - r~_{t-1}: sums to r~_T.
        return np.asarray(np.diff(shaped, prepend=0.0), dtype=np.float64)
    if reward.return_form == "plain_mean":
        return np.array([0.0 if s is None else s / int(known.sum()) for s in signal], dtype=np.float64)
    has_value = np.logical_or.accumulate(known)  # carried forward from the first verdict on
    mean_terms = np.where(has_value, shaped, 0.0) / has_value.sum()
    return np.asarray(mean_terms * (len(signal) if reward.return_form == "sum" else 1), dtype=np.float64)


def score_dialogue(dialogue: Dialogue, reward: Reward, min_scored: float) -> ScoredDialogue:
    """Scores a finished dialogue.

    Args:
        dialogue: With a verdict (scored or not) on every turn.
        reward: The resolved reward.
        min_scored: Share of happened turns that must carry scores.

    Raises:
        ValueError: More turns happened than were planned.
    """
    missing = dialogue.planned_turns - len(dialogue.turns)
    if missing < 0:
        raise ValueError(
            f"seed {dialogue.script.seed_id!r}: {len(dialogue.turns)} turns happened, {dialogue.planned_turns} were planned"
        )
    values = [turn_value(turn, reward) for turn in dialogue.turns]
    rewards, signal = [r for r, _ in values], [s for _, s in values]
    happened = len(signal)
    known = sum(s is not None for s in signal)
    fraction = known / happened if happened else 0.0
    reason = _mask_reason(dialogue, known, fraction, min_scored)
    floor, ceiling = signal_floor(reward), signal_ceiling(reward)
    # Turns that never happened: forfeited at the floor if the student is to blame, else simply unknown.
    forfeited = dialogue.cut is not None and dialogue.cut.blames_student
    full = [*signal, *([floor if forfeited else None] * missing)]
    terms = return_terms(full, reward)
    return ScoredDialogue(
        turn_rewards=rewards,
        signal=signal,
        shaped=[float(x) for x in shaped_rewards(signal, reward.alpha)] or [0.0] * happened,
        placed=_place(terms, happened, reward.credit),
        ret=float(terms.sum()),
        masked=bool(reason),
        mask_reason=reason,
        bounds=(_filled(full, floor, reward), _filled(full, ceiling, reward)),
        scored_fraction=fraction,
    )


def _safety(scores: TutorScores, reward: Reward) -> float:
    return norm_tenth(scores.safety) if reward.norm == "tenth" else norm(scores.safety)


def _filled(signal: Sequence[float | None], value: float, reward: Reward) -> float:
    return float(return_terms([value if s is None else s for s in signal], reward).sum())


def _mask_reason(dialogue: Dialogue, known: int, fraction: float, min_scored: float) -> str:
    if not dialogue.turns:
        return "no turn happened"
    if dialogue.cut is not None and not dialogue.cut.blames_student:
        return f"cut: {dialogue.cut.value}"
    if dialogue.cut is None and len(dialogue.turns) < dialogue.planned_turns:
        return f"ended after {len(dialogue.turns)} of {dialogue.planned_turns} turns, and nothing says why"
    if known == 0 or fraction < min_scored:
        return f"{known} of {len(dialogue.turns)} turns have scores, {min_scored:.0%} are needed"
    return ""


def _place(terms: Array, happened: int, credit: str) -> list[float]:
    """One reward a happened turn; the terms of forfeited turns fall on the last one that happened."""
    if happened == 0:
        return []
    placed = terms[:happened].copy()
    placed[-1] += terms[happened:].sum()
    if credit == "final":
        placed = np.concatenate([np.zeros(happened - 1), [terms.sum()]])
    return [float(x) for x in placed]
