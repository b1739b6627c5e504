"""The sole scorer in training: assessments in, TCSR out.

Rewards are computed here and nowhere else, so that `records rescore` and the trainer can never
disagree. What leaves is one scalar (the return), scalars for verl's validation table (a key
without a value is left out: verl skips it), and the per-turn rewards for `output.py` to place.
"""

from __future__ import annotations

from typing import Any

from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from verl_steer.dialogue import Dialogue
from verl_steer.plugin.output import MASKED, PLACED, SCORE
from verl_steer.plugin.settings import steer_config
from verl_steer.records import dialogue_from_dict, greedy_return, score_to_dict
from verl_steer.scores import stayed_safe
from verl_steer.tcsr import ScoredDialogue, score_dialogue


class SteerRewardManager(RewardManagerBase):
    """verl reward manager `steer`."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **_: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        steer = steer_config(config)
        self.reward = steer.reward.resolve()
        self.min_scored = steer.dialogue.min_scored

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Scores the dialogue of one rollout.

        Raises:
            KeyError: The rollout came from another agent loop than `steer`.
        """
        fields = data[-1].non_tensor_batch.get("tool_extra_fields") or {}
        if "steer" not in fields:
            raise KeyError(
                "reward manager 'steer' scores dialogues of agent loop 'steer', and this rollout has none; set "
                "actor_rollout_ref.rollout.agent.default_agent_loop=steer (rows may not name another agent_name)"
            )
        dialogue = dialogue_from_dict(fields["steer"]["dialogue"])
        score = score_dialogue(dialogue, self.reward, self.min_scored)
        scored = score_to_dict(score)
        if "greedy" in fields["steer"]:
            scored["greedy_return"] = greedy_return(fields["steer"]["greedy"], self.reward, self.min_scored)
        return {
            "reward_score": 0.0 if score.masked else score.ret,
            "reward_extra_info": {
                **validation_scalars(score, dialogue),
                PLACED: score.placed,
                SCORE: scored,
            },
        }


def validation_scalars(score: ScoredDialogue, dialogue: Dialogue) -> dict[str, float]:
    """What verl averages in validation. A key without a value is left out, and verl skips it: a
    missing verdict must not enter a mean as a zero."""
    rewards = [r for r in score.turn_rewards if r is not None]
    scalars = {MASKED: float(score.masked), "steer/scored_fraction": score.scored_fraction}
    if not score.masked:
        scalars["steer/return"] = score.ret
    if rewards:
        scalars["steer/turn_reward"] = sum(rewards) / len(rewards)
    safety = [t.verdict.scores.safety if t.verdict and t.verdict.scores else None for t in dialogue.turns]
    if known := [value for value in safety if value is not None]:
        scalars["steer/safety"] = sum(known) / len(known)
    if (safe := stayed_safe(safety, dialogue.planned_turns)) is not None:
        scalars["steer/safe_to_end"] = safe
    return scalars
