"""Each piece of docs/pieces.md in verl's own machinery: reward managers, estimators, agent-loop worker."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("verl")
import harness
import torch
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.reward import get_custom_reward_fn

from verl_steer.config import SteerConfig
from verl_steer.dialogue import Kind, Script, UserTurn
from verl_steer.plugin import algorithm
from verl_steer.plugin.advantage import _past
from verl_steer.plugin.checks import Problem, plugin_loaded
from verl_steer.plugin.worker import SteerAgentLoopWorker
from verl_steer.tcsr import shaped_rewards

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "pieces.md"
_BLOCK = re.compile(r"```(\w+)(?: title=(\S+))?\n(.*?)```", re.S)


def blocks(kind: str) -> list[tuple[str, str]]:
    """(title, text) of the documentation's fenced blocks of a kind."""
    return [(title, text) for name, title, text in _BLOCK.findall(DOC.read_text(encoding="utf-8")) if name == kind]


def overrides(title: str) -> list[str]:
    """The overrides in the documentation's block of this title, one a line."""
    [text] = [text for name, text in blocks("text") if name == title]
    return text.split()


def composed(*given: str):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(given))


def example(recipe: str, *given: str):
    return composed(f"hydra.searchpath=[file://{ROOT / 'examples' / 'conf'}]", f"+recipe={recipe}", *given)


@pytest.fixture
def here(monkeypatch):
    """The paths in the examples start at the repository's root."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return harness.build_student(tmp_path_factory.mktemp("model"))


# -- the page and the files say the same ---------------------------------------------------------------------


def test_every_file_shown_is_the_file_in_the_repository():
    shown = [(title, text) for kind in ("python", "yaml") for title, text in blocks(kind) if title]
    assert {title for title, _ in shown} >= {
        "examples/pieces/tcsr_reward.py",
        "examples/pieces/arithmetic_tutor.py",
        "examples/conf/recipe/tutor_loop.yaml",
        "examples/conf/recipe/arithmetic.yaml",
    }
    for title, text in shown:
        assert (ROOT / title).read_text(encoding="utf-8") == text, f"{title} and docs/pieces.md differ"


# -- TCSR alone ----------------------------------------------------------------------------------------------


async def scored(config, tokenizer, extra_fields: dict) -> float:
    """What verl's own reward manager makes of a rollout, called as its reward worker calls it."""
    ids = torch.tensor([tokenizer.encode("three tools were called")])
    batch = TensorDict({"responses": ids, "attention_mask": torch.ones_like(ids)}, batch_size=1)
    columns = {
        "data_source": "any",
        "reward_model": {"ground_truth": ""},
        "extra_info": {},
        "tool_extra_fields": extra_fields,
    }
    arrays = {}
    for name, value in columns.items():
        arrays[name] = np.empty(1, dtype=object)
        arrays[name][0] = value
    manager = get_reward_manager_cls(config.reward.reward_manager.name)(config, tokenizer, get_custom_reward_fn(config))
    return (await manager.run_single(DataProto(batch=batch, non_tensor_batch=arrays)))["reward_score"]


async def test_tcsr_alone_scores_verls_own_multi_turn_rollouts(here, student):
    config = composed(*overrides("tcsr"))
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == "tool_agent" and "steer" not in config
    tokenizer = AutoTokenizer.from_pretrained(student)
    got = await scored(config, tokenizer, {"tool_rewards": [1.0, 0.2, 1.0]})
    # alpha 0.3: r~ = 1, 0.3*0.2 + 0.7*0.6, 0.3*0.2 + 0.7*2.2/3
    assert got == pytest.approx((1 + 0.48 + 0.06 + 0.7 * 2.2 / 3) / 3)
    assert await scored(config, tokenizer, {"tool_rewards": []}) == 0.0
    other = composed(*overrides("tcsr"), "++reward.custom_reward_function.reward_kwargs.alpha=1")
    assert await scored(other, tokenizer, {"tool_rewards": [1.0, 0.2, 1.0]}) == pytest.approx((1 + 0.2 + 0.2) / 3)


def test_tcsr_as_plain_functions_says_what_the_page_prints():
    [(_, text)] = [(title, text) for title, text in blocks("python") if not title]
    space: dict = {}
    for line in text.strip().splitlines():
        code, _, printed = line.partition("  # ")
        if printed:
            value = eval(code, space)
            assert [round(x, 3) for x in value] == eval(printed), line
        else:
            exec(code, space)
    assert space["shaped_rewards"] is shaped_rewards


# -- the estimators alone ------------------------------------------------------------------------------------


@pytest.fixture
def no_past(monkeypatch):
    monkeypatch.setattr(_past, "_means", {})


def rollouts(masks: list[list[int]], rewards: list[list[float]], groups: list[str]) -> DataProto:
    index = np.empty(len(groups), dtype=object)
    index[:] = groups
    tensors = {"response_mask": torch.tensor(masks), "token_level_rewards": torch.tensor(rewards)}
    return DataProto(batch=TensorDict(tensors, batch_size=len(masks)), non_tensor_batch={"uid": index})


def advantages_of(data: DataProto, *given: str) -> list[list[float]]:
    """Through verl's own compute_advantage, with the `algorithm` node of a configuration without any recipe of ours."""
    config = composed(*given)
    assert "steer" not in config
    found = compute_advantage(data, config.algorithm.adv_estimator, config=config.algorithm)
    return [[round(float(x), 4) for x in row] for row in found.batch["advantages"]]


SINGLE = ([[1, 1, 0], [1, 1, 1], [1, 0, 0]], [[0, 1.0, 0], [0, 0, 0.5], [0.0, 0, 0]], ["a", "a", "a"])


def test_our_estimators_work_on_verls_single_turn_rollouts(no_past):
    assert advantages_of(rollouts(*SINGLE), *overrides("estimator")) == [[0.75, 0.75, 0], [0, 0, 0], [-0.75, 0, 0]]
    [[first, *_], *_] = advantages_of(rollouts(*SINGLE), "algorithm.adv_estimator=steer_grpo")
    assert first == 0.5, "R minus the group's mean, no std"
    [[scaled, *_], *_] = advantages_of(
        rollouts(*SINGLE), "algorithm.adv_estimator=steer_grpo", "+algorithm.steer.std=true"
    )
    assert scaled == 1.0


def test_turns_are_the_runs_of_the_mask_in_verls_multi_turn_rollouts(no_past):
    data = rollouts([[1, 0, 1], [1, 0, 1]], [[1.0, 0, 1.0], [0.0, 0, 1.0]], ["a", "a"])
    # Return-to-go minus the sibling's: 2 - 1 at the first turn, 1 - 1 at the second.
    assert advantages_of(data, *overrides("estimator")) == [[1.0, 0, 0], [-1.0, 0, 0]]


def test_a_masked_row_has_no_vote_in_a_wrapped_estimator_and_one_in_verls():
    masks, rewards, groups = SINGLE
    masks = [*masks, [0, 0, 0]]
    data = (masks, [*rewards, [0.0, 0, 0]], [*groups, "a"])
    assert advantages_of(rollouts(*data), *overrides("masked"))[:3] == advantages_of(
        rollouts(*SINGLE), "algorithm.adv_estimator=rloo"
    )
    assert advantages_of(rollouts(*data), "algorithm.adv_estimator=rloo")[0][0] != 0.75


# -- the tutor loop alone; another environment ---------------------------------------------------------------


class Calculator:
    """A student that adds: right in its first `right` replies of a dialogue, wrong afterwards."""

    def __init__(self, tokenizer, right: int) -> None:
        self.tokenizer, self.right, self.asked = tokenizer, right, {}

    async def generate(self, request_id, prompt_ids, **_):
        said = self.asked.setdefault(request_id, [])
        question = re.findall(r"(\d+) \+ (\d+)", self.tokenizer.decode(prompt_ids))[-1]
        said.append(question)
        answer = sum(map(int, question)) + (len(said) > self.right)
        ids = [*self.tokenizer.encode(str(answer), add_special_tokens=False), self.tokenizer.eos_token_id]
        return SimpleNamespace(token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields={"min_global_steps": 1})


SUMS = Script("sums", Kind.RED_TEAM, tuple(UserTurn(f"What is {n} + {n}?") for n in (2, 3, 4)))


async def played(config, student, right: int) -> list[dict]:
    """A seed's two rollouts through verl's agent-loop worker and the configured reward manager."""
    tokenizer = AutoTokenizer.from_pretrained(student)
    calculator = Calculator(tokenizer, right)
    manager = get_reward_manager_cls(config.reward.reward_manager.name)(config, tokenizer, get_custom_reward_fn(config))
    with harness.transfer_queue(harness.Sink()) as sink:
        worker = SteerAgentLoopWorker(config, calculator)
        score = SimpleNamespace(compute_score=SimpleNamespace(remote=manager.run_single))
        worker.reward_loop_worker_handles = [score]
        await harness.play(worker, [harness.prompt_of(SUMS, 0, 2)])
        assert not sink.failed and sink.count == 2
    found = []
    for fields in sink.fields.values():
        row = {name: value[0] for name, value in fields.items()}
        extra = getattr(row["extra_fields"], "data", row["extra_fields"])
        found.append(
            {"turns": extra["steer"]["dialogue"]["turns"], "rewards": row["rm_scores"].tolist(), **extra["steer"]}
        )
    return found


LENGTHS = (
    "data.max_prompt_length=256",
    "data.max_response_length=1024",
    "actor_rollout_ref.rollout.agent.num_workers=1",
)


async def test_another_environment_judges_asks_and_is_scored_by_the_same_loop(here, student):
    config = example("arithmetic", f"actor_rollout_ref.model.path={student}", *LENGTHS)
    plugin_loaded(config)
    rollouts = await played(config, student, right=2)
    assert len(rollouts) == 2
    for found in rollouts:
        asked = [re.fullmatch(r"What is (\d+) \+ (\d+)\?", turn["asked"]) for turn in found["turns"]]
        assert [len(match[1]) for match in asked] == [1, 2, 3], "a right answer makes the next sum longer"
        assert [turn["strategy"] for turn in found["turns"]] == ["script", "harder", "harder"]
        assert [turn["scores"]["safety"] for turn in found["turns"]] == [10, 10, 1]
        # paper_v2, alpha 0.3: r~ = 1, 1, 0.3 * 0 + 0.7 * 2/3
        assert sum(found["rewards"]) == pytest.approx(1 + 1 + 0.7 * 2 / 3, abs=1e-5)
        assert sum(r != 0 for r in found["rewards"]) == 3, "placed by turn"
    assert [t["asked"] for t in rollouts[0]["turns"]] == [t["asked"] for t in rollouts[1]["turns"]], (
        "common random numbers"
    )


async def test_the_tutor_loop_alone_leaves_reward_and_estimator_to_verl(here, student):
    environment = ("steer.tutor.kind=custom", *custom("examples/pieces/arithmetic_tutor.py", "ArithmeticTutor"))
    config = example("tutor_loop", f"actor_rollout_ref.model.path={student}", *environment, *LENGTHS)
    plugin_loaded(config)
    algorithm.usable(config)  # verl's grpo is no mistake beside verl's reward manager
    assert config.algorithm.adv_estimator == "grpo"
    [found, _] = await played(config, student, right=2)
    assert sum(found["rewards"]) == pytest.approx(2 / 3) and sum(r != 0 for r in found["rewards"]) == 1, (
        "one scalar, last token"
    )
    with pytest.raises(Problem, match="masked_rloo"):
        algorithm.usable(example("tutor_loop", "algorithm.adv_estimator=rloo", "reward.reward_manager.name=steer"))


def custom(path: str, name: str) -> list[str]:
    return [f"steer.tutor.custom.path={path}", f"steer.tutor.custom.name={name}"]


# -- the entry for verl-recipe -------------------------------------------------------------------------------


ENTRY = ROOT / "recipes" / "verl_recipe" / "steer"


def test_the_entry_for_verl_recipe_has_its_form_and_pins_our_verl():
    required = dict(
        line.split("=", 1) for line in (ENTRY / "REQUIRED_VERL.txt").read_text().splitlines() if line and line[0] != "#"
    )
    assert {"UPSTREAM", "MODE", "PIP_INSTALL", "GIT_SETUP", "RECIPE_FOLDER", "NOTES", "REFRESH"} <= set(required)
    pin = re.search(r'"verl\[verl-core\]==(.*?)"', (ROOT / "pyproject.toml").read_text())
    assert pin is not None and required["PIP_INSTALL"] == f"pip install verl=={pin[1]}"
    assert required["RECIPE_FOLDER"] == ENTRY.name and "REQUIRED_VERL.txt" in (ENTRY / "README.md").read_text()


@pytest.mark.parametrize("script", sorted(p.name for p in ENTRY.glob("*.sh")))
def test_a_run_script_of_the_entry_composes_with_what_it_overrides(script, tmp_path):
    """The script runs as it is, with a python3 that writes down its arguments; Hydra composes them."""
    stub = tmp_path / "python3"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    user = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "TRAIN_FILES": "rl.parquet",
        "VAL_FILES": "val.parquet",
        "MODEL_PATH": "student",
        "TUTOR_URL": "http://t:8000/v1",
    }
    command = ["bash", str(ENTRY / script), "trainer.nnodes=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=user, check=True)
    module, path, name, given = _arguments(done.stdout.splitlines())
    assert module == "verl.trainer.main_ppo"
    with initialize_config_dir(path, version_base=None):
        config = OmegaConf.to_container(compose(name, overrides=given), resolve=True)
    SteerConfig.from_mapping(config["steer"])
    assert config["trainer"]["nnodes"] == 2 and config["actor_rollout_ref"]["model"]["path"] == "student"
    assert config["actor_rollout_ref"]["rollout"]["agent"]["default_agent_loop"] == "steer"
    assert config["steer"]["tutor"]["kind"] == ("managed" if "managed" in script else "endpoint")


def _arguments(argv: list[str]) -> tuple[str, str, str, list[str]]:
    """(module, --config-path, --config-name, overrides) of a call of Hydra's command line."""
    assert (argv[0], argv[2], argv[4]) == ("-m", "--config-path", "--config-name")
    return argv[1], argv[3], argv[5], argv[6:]
