"""What the loop hands back to verl: turn rewards at their turns' last tokens.

The loop stores assessments, the reward manager scores them (`reward_manager.py`), and this class
*places* the result. verl's V1 trainer calls `as_dict()` after scoring, which is the one moment where
tokens and scores are both known. With another reward manager configured there is nothing to place,
and verl's own behaviour (one scalar on the last token) stands.

patches/turn-rewards.patch lets verl place turn rewards itself. What it cannot do is empty a masked
rollout's mask and put the scored dialogue where the records look for it, so this class stays.
"""

from __future__ import annotations

from typing import Any

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from verl_steer.plugin.turns import turn_ends

PLACED = "steer_placed"  # per-turn rewards, popped here: verl wants scalars only in reward_extra_info
SCORE = "steer_score"  # the scored dialogue, for the records
MASKED = "steer/masked"  # 1.0 if the rollout leaves the loss and its group's baseline


class SteerOutput(AgentLoopOutput):
    """AgentLoopOutput whose reward is spread over its assistant turns."""

    def as_dict(self) -> dict[str, Any]:
        """verl's dictionary, with `rm_scores` (float32, one per response token) placed by turn.

        A masked rollout gets an all-zero `response_mask`: it carries no gradient, and our estimators
        leave it out of the group's baseline. verl's own `reward` figure counts it as 0; read
        `steer/return` instead.

        Raises:
            RuntimeError: There are more turn rewards than assistant turns (a bug, never data).
        """
        info = self.extra_fields.get("reward_extra_info", {})
        placed, score = info.pop(PLACED, None), info.pop(SCORE, None)
        if score is not None:
            self.extra_fields["steer"]["score"] = score
        output = super().as_dict()
        if placed is None:
            return output
        ends = turn_ends(self.response_mask)
        if len(ends) != len(placed):
            raise RuntimeError(f"{len(placed)} turn rewards for {len(ends)} assistant turns")
        rewards = torch.zeros(len(self.response_mask), dtype=torch.float32)
        rewards[torch.tensor(ends, dtype=torch.int64)] = torch.tensor(placed, dtype=torch.float32)
        output["rm_scores"] = rewards
        if info.get(MASKED):
            output["response_mask"] = torch.zeros_like(output["response_mask"])
            output["rm_scores"] = torch.zeros_like(rewards)
        return output
