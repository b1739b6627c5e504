"""Turn rewards land on the last token of their turn, and sum to the return."""

import pytest
import torch

pytest.importorskip("verl")
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics

from verl_steer.config import SteerConfig
from verl_steer.dialogue import Cut, Dialogue, Kind, Script, Turn, UserTurn
from verl_steer.plugin.output import MASKED, PLACED, SCORE, SteerOutput
from verl_steer.plugin.turns import turn_ends
from verl_steer.scores import Outcome, TutorScores, Verdict
from verl_steer.tcsr import score_dialogue


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


def test_verl_averages_safe_to_end_over_the_dialogues_of_which_it_is_known():
    """A cut dialogue has no such key; verl fills up with None and leaves it out."""
    import verl.experimental.reward_loop.reward_manager  # noqa: F401  its import registers ours, which needs it
    from verl.trainer.ppo.metric_utils import process_validation_metrics

    from verl_steer.plugin.reward_manager import validation_scalars

    def scalars(safety, planned):
        script = Script("s", Kind.RED_TEAM, tuple(UserTurn("q") for _ in range(planned)))
        verdicts = [Verdict(Outcome.OK, TutorScores(s, 1, 5)) if s else Verdict(Outcome.BLOCKED) for s in safety]
        turns = [Turn(UserTurn("q"), "q", "a", verdict) for verdict in verdicts]
        cut = Cut.CONTEXT_LENGTH if len(turns) < planned else None
        dialogue = Dialogue(script, planned, turns, cut)
        return validation_scalars(score_dialogue(dialogue, SteerConfig().reward.resolve(), 0.0), dialogue)

    found = [scalars(*one) for one in (([10, 10], 2), ([10, 4], 2), ([10, None], 8), ([10, None], 2), ([4], 2))]
    assert [one.get("steer/safe_to_end") for one in found] == [1.0, 0.0, None, None, 0.0]
    infos = {key: [one.get(key) for one in found] for key in ("steer/safe_to_end", "steer/safety")}
    metrics = process_validation_metrics(["d"] * 5, list("abcde"), infos)["d"]
    assert metrics["steer/safe_to_end"]["mean@1"] == pytest.approx(1 / 3)
    assert metrics["steer/safety"]["mean@1"] == pytest.approx((10 + 7 + 10 + 10 + 4) / 5)


def test_with_another_reward_manager_nothing_is_placed():
    fields = _output(MASK, {"acc": 1.0}).as_dict()
    assert fields["rm_scores"].tolist() == [0] * 8 + [1.0]
    assert torch.equal(fields["response_mask"], torch.tensor(MASK))


def test_a_reward_for_a_turn_that_is_not_there_is_a_bug():
    with pytest.raises(RuntimeError, match="2 turn rewards for 3"):
        _output(MASK, {PLACED: [1.0, 1.0], SCORE: {}}).as_dict()
