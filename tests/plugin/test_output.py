"""Turn rewards land on the last token of their turn, and sum to the return."""

import pytest
import torch

pytest.importorskip("verl")
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics

from verl_steer.plugin.output import MASKED, PLACED, SCORE, SteerOutput
from verl_steer.plugin.turns import turn_ends


def _output(mask: list[int], info: dict) -> SteerOutput:
    return SteerOutput(
        prompt_ids=[1, 2],
        response_ids=list(range(10, 10 + len(mask))),
        response_mask=mask,
        reward_score=1.0,
        metrics=AgentLoopMetrics(),
        extra_fields={"steer": {}, "reward_extra_info": info},
    )


MASK = [1, 1, 0, 0, 1, 0, 1, 1, 1]


def test_turn_ends_are_the_last_ones_of_each_run():
    assert turn_ends(MASK) == [1, 4, 8]
    assert turn_ends([0, 0]) == []


def test_turn_rewards_are_placed_at_turn_ends():
    fields = _output(MASK, {PLACED: [0.5, 0.25, 0.125], SCORE: {"ret": 0.875}, MASKED: 0.0}).as_dict()
    assert fields["rm_scores"].tolist() == [0, 0.5, 0, 0, 0.25, 0, 0, 0, 0.125]
    assert fields["response_mask"].tolist() == MASK
    assert fields["extra_fields"]["steer"]["score"] == {"ret": 0.875}
    assert set(fields["extra_fields"]["reward_extra_info"]) == {MASKED}, "verl wants scalars only"


def test_a_masked_rollout_carries_neither_mask_nor_reward():
    fields = _output(MASK, {PLACED: [0.5, 0.25, 0.125], SCORE: {}, MASKED: 1.0}).as_dict()
    assert not fields["response_mask"].any() and not fields["rm_scores"].any()


def test_with_another_reward_manager_nothing_is_placed():
    fields = _output(MASK, {"acc": 1.0}).as_dict()
    assert fields["rm_scores"].tolist() == [0] * 8 + [1.0]
    assert torch.equal(fields["response_mask"], torch.tensor(MASK))


def test_a_reward_for_a_turn_that_is_not_there_is_a_bug():
    with pytest.raises(RuntimeError, match="2 turn rewards for 3"):
        _output(MASK, {PLACED: [1.0, 1.0], SCORE: {}}).as_dict()
