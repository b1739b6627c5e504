"""Advantage estimators for verl: `steer_grpo`, `_turn`, `_final`, `_remax`, and `masked_*` forms of verl's own.

verl hands an estimator padded token tensors and the rows' group ids; the mathematics lives in
`verl_steer.credit`, which knows nothing of tokens. A row with an empty mask is a masked rollout (or
one of verl's padding rows): it gets zeros and has no vote in any baseline.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from verl_steer.credit import TurnBaseline, group_advantages, tied, turn_advantages
from verl_steer.plugin.estimators import GROUP_RELATIVE, MASKABLE, REMAX
from verl_steer.plugin.turns import turn_ends

Estimator = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class GroupFacts:
    """What the estimator cannot see in tokens: a group's kind and planned turns, by group id.

    The sampler fills it just before the trainer computes advantages; both run in the trainer's
    process. A group that is not known (another sampler is configured) shares one bucket.
    """

    def __init__(self) -> None:
        self._facts: dict[str, tuple[str, int]] = {}
        self._greedy: dict[str, float | None] = {}

    def replace(self, facts: dict[str, tuple[str, int]], greedy: dict[str, float | None] | None = None) -> None:
        """Forgets the last step's groups and remembers this step's.

        Args:
            facts: uid -> (kind, planned turns).
            greedy: uid -> return of the greedy twin, None where it has too few verdicts.
        """
        self._facts, self._greedy = dict(facts), dict(greedy or {})

    def of(self, uid: Any) -> tuple[str, int]:
        """(kind, planned turns) of a group, or ("", 0)."""
        return self._facts.get(str(uid), ("", 0))

    def greedy_return(self, uid: Any) -> float | None:
        """Return of a group's greedy twin; None if its verdicts are missing.

        Raises:
            RuntimeError: The group has no twin at all: another agent loop or another sampler is configured.
        """
        if str(uid) not in self._greedy:
            raise RuntimeError(
                f"steer_remax: group {uid} has no greedy twin; it needs agent loop 'steer', reward manager 'steer' and "
                "verl_steer's sampler (trainer.v1.sampler.custom_sampler), as recipe steer_base sets them"
            )
        return self._greedy[str(uid)]


group_facts = GroupFacts()
_past = TurnBaseline()


def steer_option(config: Any, name: str, default: Any) -> Any:
    """`algorithm.steer.NAME`; a zero or false there is kept, only an absent key gives the default."""
    node = config.get("steer", None) if config is not None else None
    value = None if node is None else node.get(name, None)
    return default if value is None else value


def _returns_of(token_level_rewards: torch.Tensor, response_mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) float64 returns, and whether a row is in the loss at all."""
    return (token_level_rewards * 1.0).sum(-1).double().cpu().numpy(), response_mask.sum(-1).cpu().numpy() > 0


def steer_grpo(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A_i = R_i - mean of the group's valid returns (paper, equation of stage III); no std by default.

    Args:
        token_level_rewards: (rows, tokens) float; their sum over a row is the return.
        response_mask: (rows, tokens) 0/1; an all-zero row does not vote.
        index: (rows,) group ids.
        config: verl's `algorithm` node; `algorithm.steer.std` divides by the group's std.

    Returns:
        Advantages and returns, both (rows, tokens) float32, zero where the mask is.
    """
    returns, valid = _returns_of(token_level_rewards, response_mask)
    advantages = group_advantages(returns, list(index), valid, std=bool(steer_option(config, "std", False)))
    return _broadcast(advantages, response_mask), _broadcast(np.where(valid, returns, 0.0), response_mask)


def steer_remax(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A_i = R_i - R(greedy twin), ReMax (arXiv 2310.10505) over whole dialogues.

    The twin is the same row played with the likeliest reply at every turn; it is judged like any rollout and never
    trained on. A twin without enough verdicts is no baseline: its group gets zeros, as a group of one does.

    Args and returns: as `steer_grpo`.

    Raises:
        RuntimeError: A rollout's group has no twin.
    """
    returns, valid = _returns_of(token_level_rewards, response_mask)
    advantages = np.zeros(len(returns))
    for row in np.flatnonzero(valid):
        greedy = group_facts.greedy_return(index[row])
        advantages[row] = 0.0 if greedy is None else returns[row] - greedy
    return _broadcast(advantages, response_mask), _broadcast(np.where(valid, returns, 0.0), response_mask)


def steer_final(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`steer_grpo`'s advantage on the tokens of the last assistant turn alone (ablation `credit: final`)."""
    advantages, returns = steer_grpo(token_level_rewards, response_mask, index, config)
    last = torch.zeros_like(response_mask)
    for row, mask in enumerate(response_mask.cpu().tolist()):
        ends = turn_ends([int(m) for m in mask])
        if ends:
            last[row, ends[-2] + 1 if len(ends) > 1 else 0 : ends[-1] + 1] = 1
    return advantages * last, returns * last


def steer_turn(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A_{i,t} = G_{i,t} - b: return-to-go of turn t, minus siblings shrunk towards earlier batches.

    See `credit.turn_advantages`. The baseline's memory lives in the trainer's process: after a
    restart it starts empty and says so by falling back to the siblings alone.

    Args and returns: as `steer_grpo`; the advantage is constant over a turn's tokens, and `returns`
    holds G_{i,t}.
    """
    mask = response_mask.cpu().tolist()
    ends = [turn_ends([int(m) for m in row]) for row in mask]
    rewards = [_of_turns(row, e) for row, e in zip(token_level_rewards.cpu(), ends, strict=True)]
    facts = [group_facts.of(uid) for uid in index]
    args = {
        "rewards": rewards,
        # A baseline may depend on anything before the turn. A batch carries placed rewards alone: with `sum` they tell a breach from none;
        # other forms place less before the end, and a turn without a verdict places 0, so what earlier batches add is coarser there, not biased.
        "signals": rewards,
        "groups": list(index),
        "kinds": [kind for kind, _ in facts],
        "planned": [planned or len(e) for (_, planned), e in zip(facts, ends, strict=True)],
        "valid": np.array([bool(e) for e in ends]),
    }
    advantages = turn_advantages(**args, past=_past, prior_strength=float(steer_option(config, "prior_strength", 2.0)))
    _past.update(**args)  # after the step: b never contains this batch
    to_go = [np.cumsum(r[::-1])[::-1] if r else np.zeros(0) for r in rewards]
    return _spread(advantages, ends, response_mask), _spread(to_go, ends, response_mask)


def masked(base: Estimator, group_relative: bool) -> Estimator:
    """Wraps one of verl's estimators so that masked rollouts and padding rows do not vote.

    Drops rows with an empty mask, calls `base` on the rest, scatters the result back. With
    `group_relative`, a group that kept a single row is dropped too: verl's estimators would return its
    raw score as advantage, or raise, where there is nothing to compare with. And tied returns are made equal to
    the bit: verl's expect one reward on one token, and divide by the group's std.

    A verl with patches/empty-rows-in-baselines.patch drops the empty rows before it calls any estimator, by
    whatever name; then nothing is left to drop here but the single rows.
    """

    def estimator(
        token_level_rewards: torch.Tensor,
        response_mask: torch.Tensor,
        index: np.ndarray,
        config: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        votes = (response_mask.sum(-1) > 0).cpu().numpy()
        names = np.asarray(index).astype(str)
        if group_relative:
            groups, counts = np.unique(names[votes], return_counts=True)
            votes &= np.isin(names, groups[counts > 1])
        keep = torch.as_tensor(np.flatnonzero(votes))
        advantages = torch.zeros_like(token_level_rewards, dtype=torch.float32)
        returns = torch.zeros_like(advantages)
        if len(keep) == 0:
            return advantages, returns
        kept_index = np.asarray(index, dtype=object)[keep.cpu().numpy()]
        tensors = {
            k: v[keep] if isinstance(v, torch.Tensor) and v.shape[:1] == index.shape else v for k, v in kwargs.items()
        }
        rewards, mask = token_level_rewards[keep], response_mask[keep]
        if group_relative:
            rewards = _levelled(rewards, mask, kept_index)
        if "norm_adv_by_std_in_grpo" in inspect.signature(base).parameters:
            # verl hands this switch to its built-in grpo only.
            tensors["norm_adv_by_std_in_grpo"] = bool(config.get("norm_adv_by_std_in_grpo", True)) if config else True
        part, part_returns = base(
            token_level_rewards=rewards,
            response_mask=mask,
            index=kept_index,
            config=config,
            **tensors,
        )
        advantages[keep], returns[keep] = part.float(), part_returns.float()
        return advantages, returns

    return estimator


def _levelled(rewards: torch.Tensor, mask: torch.Tensor, index: np.ndarray) -> torch.Tensor:
    """Rewards whose row sums are equal wherever a group's returns are tied; estimators of groups read the sums alone."""
    sums, names, rewards = rewards.sum(-1), np.asarray(index).astype(str), rewards.clone()
    for name in np.unique(names):
        rows = torch.as_tensor(np.flatnonzero(names == name))
        if tied(sums[rows].tolist()):
            rewards[rows] = 0.0
            # With few bits, so that the mean of equal values is that value.
            rewards[rows, mask[rows].argmax(-1)] = torch.round(sums[rows].mean() * 1024) / 1024
    return rewards


def register_all(register: Callable[[str], Callable[[Estimator], Estimator]], get: Callable[[str], Estimator]) -> None:
    """Adds our names to verl's registry."""
    register("steer_grpo")(steer_grpo)
    register("steer_turn")(steer_turn)
    register("steer_final")(steer_final)
    register(REMAX)(steer_remax)
    for name in MASKABLE:
        register(f"masked_{name}")(masked(get(name), group_relative=name in GROUP_RELATIVE))


def _broadcast(per_row: np.ndarray, response_mask: torch.Tensor) -> torch.Tensor:
    column = torch.as_tensor(per_row, dtype=torch.float32, device=response_mask.device).unsqueeze(-1)
    return column * response_mask


def _of_turns(rewards: torch.Tensor, ends: list[int]) -> list[float]:
    """What a row's tokens earned, turn by turn: the placed reward, and with `use_kl_in_reward` every token's penalty."""
    starts = [0, *(end + 1 for end in ends)]
    return [float(rewards[a : b + 1].sum()) for a, b in zip(starts, ends, strict=False)]


def _spread(per_turn: list[np.ndarray], ends: list[list[int]], response_mask: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(response_mask.shape, dtype=torch.float32)
    for row, (values, row_ends) in enumerate(zip(per_turn, ends, strict=True)):
        start = 0
        for value, end in zip(values, row_ends, strict=True):
            out[row, start : end + 1] = float(value)
            start = end + 1
    return out.to(response_mask.device) * response_mask
