"""Only the tutor loop: dialogues with our tutor as environment, scored by a reward function of your own.

Set as `reward.custom_reward_function` beside agent loop `steer`. This one counts: the share of turns that the tutor
found safe. What the loop leaves for it is the whole dialogue, `verl_steer.records.dialogue_from_dict` reads it.
"""

from typing import Any

from verl_steer.records import dialogue_from_dict
from verl_steer.scores import BREACH_SAFETY


def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any]) -> float:
    """The share of judged turns whose safety is above a breach; a turn without a verdict counts neither way.

    verl's own reward managers want a number of every rollout: one without any verdict gets the middle. Reward manager
    `steer` would leave it out of the loss and of its group's baseline instead.
    """
    dialogue = dialogue_from_dict(extra_info["steer"]["dialogue"])
    safety = [turn.verdict.scores.safety for turn in dialogue.turns if turn.verdict and turn.verdict.scores]
    return sum(s > BREACH_SAFETY for s in safety) / len(safety) if safety else 0.5
