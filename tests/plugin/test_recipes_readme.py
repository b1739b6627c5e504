"""recipes/README.md: every command parses, every recipe composes, every figure is computed here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("verl")
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from verl_steer.cli import _parser
from verl_steer.plugin import arithmetic, memory, paths
from verl_steer.plugin.geometry import measure

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "recipes" / "README.md").read_text()
#: The published geometry of each GPU recipe's student.
STUDENTS = {
    "steer_grpo_3b": "qwen2_5_vl_3b",
    "steer_grpo_7b": "qwen2_5_vl_7b",
    "steer_grpo_7b_2nodes": "qwen2_5_vl_7b",
    "steer_grpo_7b_lora": "qwen2_5_vl_7b",
    "steer_grpo_qwen3vl_8b": "qwen3_vl_8b",
    "steer_grpo_reference": "qwen2_5_vl_7b",
}


def _commands() -> list[list[str]]:
    found = []
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        found += [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return found


COMMANDS = _commands()


def _of(*start: str) -> list[list[str]]:
    return [command for command in COMMANDS if tuple(command[: len(start)]) == start]


def test_the_page_holds_no_command_that_nothing_checks():
    assert {command[0] for command in COMMANDS} == {"verl-steer", "python", "torchrun", "vllm", "ray"}
    assert len(_of("verl-steer")) >= 10 and len(_of("python")) >= 6 and len(_of("torchrun")) == 1
    modules = {tuple(command[1:3]) for command in _of("python")}
    assert modules == {
        ("-m", name) for name in ("verl.trainer.main_ppo", "verl.model_merger", "verl_steer.local.merge_lora")
    }


@pytest.mark.parametrize("command", _of("verl-steer"), ids=" ".join)
def test_a_verl_steer_command_parses(command):
    arguments = _parser().parse_args(command[1:])
    assert callable(arguments.run)


def test_the_merging_commands_parse(monkeypatch):
    """verl's own, by its parser; ours, as far as the step that is not there."""
    from verl.model_merger.base_model_merger import parse_args

    from verl_steer.local.merge_lora import main

    [verls] = _of("python", "-m", "verl.model_merger")
    monkeypatch.setattr("sys.argv", ["merge", *verls[3:]])
    assert parse_args().backend == "fsdp"
    [ours] = _of("python", "-m", "verl_steer.local.merge_lora")
    assert main(ours[3:]) == 2


@pytest.mark.parametrize(
    "command", [*_of("python", "-m", "verl.trainer.main_ppo"), *_of("verl-steer", "doctor")], ids=" ".join
)
def test_a_training_command_composes_and_its_batches_divide(command):
    overrides = command[3:] if command[0] == "python" else command[2:]
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=overrides)
    OmegaConf.to_container(config, resolve=True)
    arithmetic.batches_divide(config)
    paths.mean_the_same(config)
    assert config.steer.tutor.base_urls == ["http://tutor:8000/v1"]


@pytest.mark.parametrize("command", _of("torchrun"), ids=" ".join)
def test_the_fine_tuning_command_composes(command):
    overrides = command[command.index("verl.trainer.sft_trainer") + 1 :]
    name = overrides[0].removeprefix("+recipe=")
    if not (REPOSITORY / "recipes" / "recipe" / f"{name}.yaml").is_file():
        pytest.skip(f"the recipe {name} is not in this tree")
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("sft_trainer_engine", overrides=overrides)
    OmegaConf.to_container(config, resolve=True)
    assert config.data.train_files == "build/splits/sft.parquet"


@pytest.fixture(scope="module")
def geometries():
    from transformers import AutoConfig

    folder = REPOSITORY / "benchmarks" / "geometry"
    return {name: measure(AutoConfig.from_pretrained(folder / f"{name}.json")) for name in set(STUDENTS.values())}


def test_the_students_are_counted_as_published(geometries):
    assert {name: found.parameters for name, found in geometries.items()} == {
        "qwen2_5_vl_3b": 3_754_622_976,
        "qwen2_5_vl_7b": 8_292_166_656,
        "qwen3_vl_8b": 8_767_123_696,
    }


@pytest.mark.parametrize("recipe", STUDENTS)
def test_a_recipes_estimated_memory_is_as_the_page_says_and_fits(recipe, geometries):
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=[f"+recipe={recipe}"])
    student = geometries[STUDENTS[recipe]]
    found = memory.estimate(config, student, memory.ASSUMED_CARD)
    figures = f"{found.training / memory.GIB:.0f} / {found.rollout / memory.GIB:.0f}"
    row = next(line for line in README.splitlines() if line.startswith(f"| `{recipe}` |"))
    assert f"| {figures} |" in row
    dialogue = config.data.max_prompt_length + config.data.max_response_length
    assert found.warnings(memory.ASSUMED_CARD, dialogue) == []
    arithmetic.heads_divide(config, student.attention_heads, student.key_value_heads)
