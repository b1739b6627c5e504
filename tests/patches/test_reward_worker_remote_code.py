"""patches/reward-worker-remote-code.patch"""

import pytest
from omegaconf import OmegaConf


def trusted(monkeypatch, **switch):
    """What the reward worker says of remote code for its two tokenizers."""
    from verl.experimental.reward_loop import reward_loop

    said = []
    monkeypatch.setattr(reward_loop, "copy_to_local", lambda path: path)
    monkeypatch.setattr(
        reward_loop, "hf_tokenizer", lambda path, trust_remote_code: said.append((path, trust_remote_code))
    )
    monkeypatch.setattr(reward_loop, "load_reward_manager", lambda *args, **kwargs: None)
    reward_loop.RewardLoopWorker(
        OmegaConf.create(
            {
                "actor_rollout_ref": {"model": {"path": "student", "tokenizer_path": None, **switch}},
                "reward": {"reward_model": {"enable": True, "model_path": "reward"}},
            }
        )
    )
    return said


@pytest.mark.unpatched(r"\('student', True\)")
@pytest.mark.parametrize("switch", [{}, {"trust_remote_code": False}])
def test_code_that_comes_with_a_model_is_not_run_unless_allowed(monkeypatch, switch):
    assert trusted(monkeypatch, **switch) == [("student", False), ("reward", False)]


def test_it_runs_where_the_switch_allows_it(monkeypatch):
    assert trusted(monkeypatch, trust_remote_code=True) == [("student", True), ("reward", True)]
