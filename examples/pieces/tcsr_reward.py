"""Only TCSR: verl's own multi-turn rollouts, verl's own reward manager, our shape of the return.

Set as `reward.custom_reward_function`. verl's `tool_agent` loop collects what each tool call of a rollout was
worth; a plain sum forgives one bad call among good ones, TCSR does not.
"""

from typing import Any

from verl_steer.tcsr import shaped_rewards


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any], alpha: float = 0.3
) -> float:
    """The mean of r~_t = alpha * min_{j<=t} s_j + (1 - alpha) * mean_{j<=t} s_j over a rollout's tool calls.

    Args:
        data_source: As verl calls any reward function; unused, as the next two.
        solution_str: The decoded response.
        ground_truth: Of the row.
        extra_info: Of the row, with the agent loop's `tool_rewards`.
        alpha: Weight of the running minimum, in [0, 1].

    Returns:
        The reward of the rollout; 0.0 if it called no tool.
    """
    shaped = shaped_rewards(extra_info.get("tool_rewards") or [], alpha)
    return float(shaped.mean()) if shaped.size else 0.0
