"""Batch arithmetic and estimated memory, against numbers worked out by hand and against verl's own validation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("verl")
from hydra import compose, initialize_config_module

from verl_steer.plugin import arithmetic, memory
from verl_steer.plugin.checks import Problem
from verl_steer.plugin.geometry import Geometry, Linear, hf_config, measure

GEOMETRIES = Path(__file__).parents[2] / "benchmarks" / "geometry"


def composed(recipe: str, *overrides: str):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[f"+recipe={recipe}", *overrides])


def refused(*overrides: str, recipe: str = "steer_grpo_7b") -> str:
    with pytest.raises(Problem) as caught:
        arithmetic.batches_divide(composed(recipe, *overrides))
    return str(caught.value)


# -- batches -----------------------------------------------------------------------------------------------


def test_the_7b_recipes_batch_is_shared_out_as_worked_out_by_hand() -> None:
    # 64 x 5 = 320 rows; 320 / 8 ranks = 40 a rank; 40 / micro 2 = 20 micro-batches; one update.
    found = arithmetic.batches_divide(composed("steer_grpo_7b"))
    assert found == "64 seeds x 5 rollouts = 320 rows a step, 40 a rank over 8, 1 update(s)"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ("data.train_batch_size=6", "actor_rollout_ref.actor.ppo_mini_batch_size=6"),
            "data.train_batch_size 6 x rollout.n 5 = 30 rollouts cannot be shared by 8 ranks; use 8 or 16",
        ),
        (
            ("data.train_batch_size=12", "actor_rollout_ref.actor.ppo_mini_batch_size=12", "trainer.nnodes=2"),
            "data.train_batch_size 12 x rollout.n 5 = 60 rollouts cannot be shared by 2 nodes x 8 = 16 ranks; use 16 or 32",
        ),
        (
            # 8 ranks and n = 6 share a factor of 2: every multiple of 4 seeds will do.
            ("data.train_batch_size=6", "actor_rollout_ref.rollout.n=6"),
            "data.train_batch_size 6 x rollout.n 6 = 36 rollouts cannot be shared by 8 ranks; use 4 or 8",
        ),
        (("actor_rollout_ref.actor.ppo_mini_batch_size=128",), "ppo_mini_batch_size=128 is more than"),
        (
            ("actor_rollout_ref.actor.ppo_mini_batch_size=12",),
            "ppo_mini_batch_size 12 x rollout.n 5 = 60 rows an update cannot be shared by 8 data-parallel ranks; use 8 or 16",
        ),
        (
            ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=6",),
            "ppo_micro_batch_size_per_gpu=6 does not divide the 40 rows that an update brings to a rank; use 5 or 8",
        ),
        (
            ("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=3",),
            "rollout.log_prob_micro_batch_size_per_gpu=3 does not divide the 40 rows that a step brings to a rank; use 2 or 4",
        ),
        (
            ("actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=80",),
            "ref.log_prob_micro_batch_size_per_gpu=80 does not divide the 40 rows that a step brings to a rank; use 40",
        ),
        (("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=null",), "is not set; use a divisor of the 40 rows"),
        (
            ("actor_rollout_ref.rollout.tensor_model_parallel_size=3",),
            "a rollout server of tensor 3 x data 1 x pipeline 1 = 3 GPUs does not divide 8 ranks",
        ),
        (
            ("actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=3",),
            "ulysses_sequence_parallel_size=3 does not divide 8 ranks; use one of 1, 2, 4, 8",
        ),
        (
            (
                "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2",
                "actor_rollout_ref.model.use_remove_padding=false",
            ),
            "needs actor_rollout_ref.model.use_remove_padding=true",
        ),
        (
            (
                "actor_rollout_ref.actor.use_dynamic_bsz=true",
                "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192",
                "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=16384",
            ),
            "= 8192 tokens cannot hold a dialogue of data.max_prompt_length + data.max_response_length = 10240; use 10240",
        ),
        (
            ("trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=6"),
            "data.train_batch_size=64 cannot be cut into parameter_sync_step=6 parts; use 60 or 66",
        ),
        (
            ("algorithm.adv_estimator=gae", "critic.ppo_mini_batch_size=12"),
            "critic.ppo_mini_batch_size 12 x rollout.n 5",
        ),
        (("trainer.n_gpus_per_node=0",), "trainer.n_gpus_per_node=0: give a whole number of at least 1"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_the_sum(overrides: tuple[str, ...], says: str) -> None:
    assert says in refused(*overrides)


def test_ulysses_ranks_count_as_one_and_both_its_keys_are_read() -> None:
    # 16 ranks / 4 = 4 data-parallel ranks; 320 / 4 = 80 rows each.
    config = composed("steer_grpo_7b_2nodes", "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=4")
    assert "80 a rank over 4" in arithmetic.batches_divide(config)


def test_an_update_that_does_not_fill_the_step_is_padded_and_said() -> None:
    # 64 seeds in updates of 48: verl fills 2 x 48 x 5 = 480 rows, 160 of them empty.
    found = arithmetic.batches_divide(composed("steer_grpo_7b", "actor_rollout_ref.actor.ppo_mini_batch_size=48"))
    assert "2 update(s); verl adds 160 rows of nothing" in found and "multiple of ppo_mini_batch_size=48" in found


@pytest.mark.parametrize("batch", [6, 12, 16, 60, 64, 100])
def test_what_verl_itself_refuses_is_refused_and_nothing_else(batch: int) -> None:
    from verl.utils.config import validate_config

    config = composed(
        "steer_grpo_7b", f"data.train_batch_size={batch}", "actor_rollout_ref.actor.ppo_mini_batch_size=4"
    )
    config.actor_rollout_ref.actor.ppo_mini_batch_size = batch

    def passes(check) -> bool:
        try:
            check()
        except (AssertionError, ValueError, Problem):
            return False
        return True

    theirs = passes(lambda: validate_config(config, use_reference_policy=True, use_critic=False))
    assert passes(lambda: arithmetic.batches_divide(config)) == theirs == (batch % 8 == 0)


def test_a_file_smaller_than_a_batch_is_refused() -> None:
    config = composed("steer_grpo_7b")
    arithmetic.enough_rows(config, 64)
    with pytest.raises(Problem, match=r"hold 63 usable rows, fewer than data.train_batch_size=64"):
        arithmetic.enough_rows(config, 63)


def test_heads_that_tensor_parallelism_cannot_share_are_named() -> None:
    config = composed("steer_grpo_7b", "actor_rollout_ref.rollout.tensor_model_parallel_size=8")
    with pytest.raises(
        Problem, match=r"tensor_model_parallel_size=8 does not divide .* 28 .* 4 .* use one of 1, 2, 4, 28"
    ):
        arithmetic.heads_divide(config, 28, 4)
    arithmetic.heads_divide(composed("steer_grpo_7b"), 28, 4)


# -- geometry ----------------------------------------------------------------------------------------------


def test_the_real_3b_is_counted_as_published_and_by_hand(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((GEOMETRIES / "qwen2_5_vl_3b.json").read_text())
    student = measure(hf_config(composed("steer_grpo_3b", f"actor_rollout_ref.model.path={tmp_path}")))
    # One layer: q 2048 x 2048 + bias, k and v 2048 x 256 + bias, o 2048 x 2048, three 2048 x 11008, two norms.
    by_hand = 2048 * 2048 + 2048 + 2 * (2048 * 256 + 256) + 2048 * 2048 + 3 * 2048 * 11008 + 2 * 2048
    assert student.layer == by_hand == 77_076_992
    assert student.ends == 151_936 * 2048, "tied: once"
    # Tower by hand: embedding 3 x 2 x 14 x 14 x 1280; a block of qkv, proj, gate, up, down and two norms; merger.
    block = 1280 * 3840 + 3840 + 1280 * 1280 + 1280 + 2 * (1280 * 3420 + 3420) + 3420 * 1280 + 1280 + 2 * 1280
    merger = 1280 + 5120 * 5120 + 5120 + 5120 * 2048 + 2048
    tower = 3 * 2 * 14 * 14 * 1280 + 32 * block + merger
    assert student.parameters == 36 * by_hand + 2048 + student.ends + tower == 3_754_622_976
    # Rank 8 on a layer of the text model: q, k, v, o, gate, up, down, each inputs + outputs.
    layer = 4096 + 2 * (2048 + 256) + 4096 + 3 * (2048 + 11008)
    assert student.lora_parameters(8, "all-linear", ".*visual.*") == 8 * 36 * layer
    assert student.lora_parameters(8, ["q_proj"], None) == 8 * 36 * 4096
    assert student.lora_parameters(8, "all-linear", None) > student.lora_parameters(8, "all-linear", ".*visual.*")


# -- memory ------------------------------------------------------------------------------------------------

#: Round numbers, so that every figure below can be checked in the head.
TOY = Geometry(
    parameters=8_000_000_000,
    layer=200_000_000,
    ends=1_000_000_000,
    layers=30,
    hidden=4000,
    intermediate=16_000,
    vocabulary=150_000,
    attention_heads=32,
    key_value_heads=8,
    head_dim=125,
    linears=(Linear("model.language_model.layers.0.q_proj", 4000, 4000), Linear("model.visual.q", 1000, 1000)),
)
CARD = 80_000_000_000


def test_full_weights_on_eight_gpus() -> None:
    found = memory.estimate(composed("steer_grpo_7b"), TOY, CARD)
    assert found.weights == found.gradients == 4_000_000_000, "8e9 x 4 bytes / 8"
    assert found.optimizer == 8_000_000_000
    assert found.gathered == 2 * (1_000_000_000 + 3 * 200_000_000)
    assert found.micro_tokens == 2 * 10_240
    assert found.logits == 8 * 20_480 * 150_000 == 24_576_000_000
    # 30 x 4000 kept at the checkpoints, and one layer: 6 x 4000 + 2 x 40 x 125 + 4 x 16000 = 98,000.
    assert found.activations == 2 * 20_480 * (120_000 + 98_000) == 8_929_280_000
    assert found.training == 52_705_280_000 + memory.RESERVE
    assert found.kept == 12_000_000_000 and found.rollout_share == 48_000_000_000
    # (48e9 - 16e9) / (2 x 2 bytes x 30 layers x 8 heads x 125) = 32e9 / 120,000
    assert found.cache_tokens == 266_666
    assert found.warnings(CARD, 10_240) == []


def test_an_adapter_trains_its_own_parameters_only_and_offloads_its_base() -> None:
    found = memory.estimate(composed("steer_grpo_7b_lora"), TOY, CARD)
    assert found.trained == 64 * 8000, "rank 64 on the one layer outside the vision tower"
    assert found.weights == (8_000_000_000 + 512_000) * 4 and found.ranks == 1
    assert found.gradients == 512_000 * 4 and found.optimizer == 2 * 512_000 * 4
    assert found.micro_tokens == 10_240
    assert found.kept == found.optimizer, "the base is on the host while dialogues are played"


def test_a_critic_is_a_second_model_that_trains_whole() -> None:
    plain, found = (
        memory.estimate(composed(recipe), TOY, CARD) for recipe in ("steer_grpo_7b", "[steer_grpo_7b,with_ppo]")
    )
    assert found.critic == 16_000_000_000, "weights, gradients and two moments: 4 x 8e9 x 4 bytes / 8"
    assert found.critic_kept == 12_000_000_000 and found.rollout == plain.rollout + 12_000_000_000
    assert found.training == plain.training + 12_000_000_000, "its gradients are gone while the actor trains"
    lora = memory.estimate(composed("[steer_grpo_7b_lora,with_ppo]"), TOY, CARD)
    assert lora.training > 128_000_000_000 and "training needs about" in lora.warnings(CARD, 10_240)[0]


def test_a_card_that_is_too_small_is_warned_about_with_what_to_change() -> None:
    found = memory.estimate(composed("steer_grpo_7b"), TOY, 24_000_000_000)
    warnings = " ".join(found.warnings(24_000_000_000, 10_240))
    assert (
        "training needs about" in warnings
        and "rollout needs about" in warnings
        and "fewer than one dialogue" in warnings
    )
    crowded = composed("steer_grpo_7b", "actor_rollout_ref.rollout.gpu_memory_utilization=0.9")
    assert "lower gpu_memory_utilization" in memory.estimate(crowded, TOY, CARD).warnings(CARD, 10_240)[0]


def test_the_text_says_that_it_is_an_estimate_and_how_it_was_made() -> None:
    text = memory.estimate(composed("steer_grpo_7b"), TOY, CARD).text(CARD, assumed=True)
    assert text.startswith("ESTIMATE a GPU, not measured: training ") and "assumed" in text
    assert memory.FORMULA in text and "k = 20,480" in text


@pytest.mark.parametrize("name", sorted(p.stem for p in GEOMETRIES.glob("*.json")))
def test_a_geometry_file_is_a_config_that_transformers_reads(name: str, tmp_path: Path) -> None:
    content = (GEOMETRIES / f"{name}.json").read_text()
    (tmp_path / "config.json").write_text(content)
    student = hf_config(composed("steer_grpo_3b", f"actor_rollout_ref.model.path={tmp_path}"))
    assert student.model_type == json.loads(content)["model_type"]
