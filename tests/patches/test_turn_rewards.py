"""patches/turn-rewards.patch"""

import asyncio
from types import SimpleNamespace

import pytest
import torch

TURNS = {"prompt_ids": [1, 2], "response_ids": [3, 4, 5, 6, 7], "response_mask": [1, 1, 0, 1, 1], "metrics": {}}


def output(**fields):
    from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

    return AgentLoopOutput(**TURNS | fields)


def scored(made, result=None):
    """What the worker's `_compute_score` leaves; its reward worker answers `result`, or must not be asked."""
    from verl.experimental.agent_loop import agent_loop

    async def answer(data):
        assert result is not None, "the reward worker was asked about an output that has its rewards"
        return result

    handle = SimpleNamespace(compute_score=SimpleNamespace(remote=answer))
    worker = SimpleNamespace(
        reward_loop_worker_handles=[handle],
        _compute_multi_modal_inputs=lambda output, input_ids: {},
        _compute_position_ids=lambda input_ids, *_: torch.arange(input_ids.shape[1]).unsqueeze(0),
        _get_mm_processor_kwargs=lambda audios: {},
    )
    asyncio.run(agent_loop.AgentLoopWorker._compute_score(worker, [made], kwargs={"uid": "a"}))
    return made


@pytest.mark.unpatched("KeyError: 'rm_scores'|was asked about an output")
def test_a_loop_returns_a_reward_for_every_turn():
    made = scored(output(turn_rewards=[0.25, -0.5]))
    assert made.reward_score == -0.25
    fields = made.as_dict()
    assert fields["rm_scores"].tolist() == [0.0, 0.25, 0.0, 0.0, -0.5]
    assert "turn_rewards" not in fields


@pytest.mark.unpatched(r"0\.0, 1\.5\] == ")
def test_a_reward_manager_may_score_every_turn():
    result = {"reward_score": 1.5, "turn_rewards": [0.5, 1.0], "reward_extra_info": {}}
    fields = scored(output(), result).as_dict()
    assert fields["rm_scores"].tolist() == [0.0, 0.5, 0.0, 0.0, 1.0]


@pytest.mark.unpatched("DID NOT RAISE")
def test_a_number_of_rewards_that_fits_no_turns_is_an_error():
    with pytest.raises(ValueError, match="3 turn_rewards for 2 assistant turns"):
        output(turn_rewards=[1.0, 1.0, 1.0]).as_dict()


def test_one_score_stands_on_the_last_token_as_before():
    assert output(reward_score=1.5).as_dict()["rm_scores"].tolist() == [0.0, 0.0, 0.0, 0.0, 1.5]
    fields = scored(output(), {"reward_score": 2.0, "reward_extra_info": {"acc": 1.0}}).as_dict()
    assert fields["rm_scores"].tolist() == [0.0, 0.0, 0.0, 0.0, 2.0]
    assert fields["extra_fields"]["reward_extra_info"] == {"acc": 1.0}
