"""An estimate of a GPU's memory, before anything is loaded. Never a measurement.

Two phases of a step share a card: training (with vLLM asleep, `free_cache_engine`) and rollout (with the
trainer's shards still there unless they are offloaded). Per GPU, with P parameters, T of them trained, b
bytes each (`fsdp_config.model_dtype`), F ranks that share them and k tokens of a micro-batch:

    weights      P b / F                    gradients   T b / F        AdamW    2 T b / F
    gathered     2 (ends + 3 layer)         bf16 copies of the units that FSDP unshards: embedding and head,
                                            two decoder layers, one layer's gradient
    activations  2 k (layers hidden + 6 hidden + 2 (heads + key-value heads) head_dim + 4 intermediate)
                                            with gradient checkpointing; without, the second part times layers
    logits       8 k vocabulary             bf16 logits and their gradient, one fp32 copy for the softmax
    rollout      gpu_memory_utilization x card
    critic       4 P b / F (with_ppo: as large as the student, trained whole; gradients only in its own update)

k is a micro-batch of dialogues at full length: an upper bound. A reference model stays on the host: verl
offloads what is never trained (workers/engine/fsdp/transformer_impl.py:432). Activations are rough; the
rest is arithmetic. `RESERVE` stands for CUDA contexts and buffers of trainer and server.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from verl_steer.plugin import arithmetic
from verl_steer.plugin.geometry import Geometry

GIB = 1 << 30
#: Bytes of CUDA contexts, NCCL buffers and fragmentation: a round guess.
RESERVE = 3 * GIB
#: What a card sold as 80 GB offers, where none is seen (bytes).
ASSUMED_CARD = 79 * GIB

FORMULA = (
    "training = weights P b/F + gradients T b/F + AdamW 2 T b/F + gathered 2 (ends + 3 layer) + activations + "
    "logits 8 k vocabulary + reserve; rollout = what the trainer leaves on the card + gpu_memory_utilization x card + reserve"
)


@dataclass(frozen=True)
class Estimate:
    """Bytes a GPU. The parts of training, then the two phases.

    Attributes:
        weights: The trainer's shard.
        gradients: Of the trained part.
        optimizer: AdamW's two moments.
        gathered: Units that FSDP unshards for computing.
        activations: Kept for the backward pass.
        logits: Of one micro-batch.
        kept: What the trainer leaves on the card during rollout.
        rollout_share: What the rollout server may take.
        cache_tokens: Tokens that its cache holds beside the weights; negative: the weights do not fit.
        micro_tokens: Tokens of one micro-batch, at most.
        ranks: Ranks that share the weights.
        trained: Parameters that are trained.
        critic: A critic's weights, gradients and moments; 0 without one.
        critic_kept: What of them stays on the card while the actor trains or plays.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    kept: int
    rollout_share: int
    cache_tokens: int
    micro_tokens: int
    ranks: int
    trained: int
    critic: int = 0
    critic_kept: int = 0

    @property
    def training(self) -> int:
        """Peak of log-probabilities and update; a critic's own, if that is the higher one."""
        states = max(self.weights + self.gradients + self.optimizer + self.critic_kept, self.critic + self.kept)
        return states + self.gathered + self.activations + self.logits + RESERVE

    @property
    def rollout(self) -> int:
        """While dialogues are played."""
        return self.kept + self.critic_kept + self.rollout_share + RESERVE

    def warnings(self, card: int, dialogue: int) -> list[str]:
        """What does not fit a card of `card` bytes, and what to change; `dialogue` is its longest, in tokens."""
        found = []
        if self.training > card:
            found.append(
                f"training needs about {_gib(self.training)}, more than the card's {_gib(card)}: lower the micro-batch, raise "
                "ulysses_sequence_parallel_size, use more GPUs or LoRA"
            )
        if self.rollout > card:
            found.append(
                f"rollout needs about {_gib(self.rollout)}, more than the card's {_gib(card)}: lower gpu_memory_utilization, "
                "or set param_offload and optimizer_offload"
            )
        if self.rollout_share and self.cache_tokens < dialogue:
            found.append(
                f"the rollout server's share leaves room for {max(0, self.cache_tokens):,} tokens, fewer than one dialogue of "
                f"{dialogue:,}: raise gpu_memory_utilization or tensor_model_parallel_size"
            )
        return found

    def text(self, card: int, assumed: bool) -> str:
        """One line for people."""
        parts = ", ".join(
            f"{name} {_gib(getattr(self, name))}"
            for name in ("weights", "gradients", "optimizer", "gathered", "activations", "logits")
        )
        parts += f", critic {_gib(self.critic)}" if self.critic else ""
        return (
            f"ESTIMATE a GPU, not measured: training {_gib(self.training)} ({parts}, reserve {_gib(RESERVE)}); "
            f"rollout {_gib(self.rollout)} (trainer keeps {_gib(self.kept + self.critic_kept)}, server's share {_gib(self.rollout_share)}"
            f"{f', room for {self.cache_tokens:,} tokens' if self.rollout_share else ''}); card {_gib(card)}"
            f"{' assumed' if assumed else ''}. {FORMULA}; T = {self.trained:,}, F = {self.ranks}, k = {self.micro_tokens:,}"
        )


def estimate(config: DictConfig, student: Geometry, card: int) -> Estimate:
    """The arithmetic of the module's docstring for one composed configuration.

    Args:
        config: Of a run; its sizes must divide (`arithmetic.batches_divide`).
        student: Its geometry.
        card: Bytes of one GPU.
    """
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    fsdp, rollout = actor.fsdp_config, config.actor_rollout_ref.rollout
    sizes = arithmetic.Sizes.of(config)
    ranks, width = _sharing(fsdp, sizes), _width(fsdp)
    critic, critic_kept = _critic(config, student, sizes)
    rank = _lora_rank(config)
    trained = (
        student.lora_parameters(rank, _plain(model.target_modules), _plain(model.exclude_modules))
        if rank
        else student.parameters
    )
    total = student.parameters + (trained if rank else 0)
    weights, gradients = total * width // ranks, trained * width // ranks
    tokens = _micro_tokens(config, sizes)
    server = str(rollout.name) in ("vllm", "sglang", "trtllm")
    share = int(float(rollout.gpu_memory_utilization) * card) if server else 0
    tensor = int(rollout.tensor_model_parallel_size)
    cache = share - 2 * student.parameters // tensor
    return Estimate(
        weights=weights,
        gradients=gradients,
        optimizer=2 * gradients,
        gathered=2 * (student.ends + 3 * student.layer),
        activations=_activations(student, tokens, bool(model.enable_gradient_checkpointing)),
        logits=0 if model.use_fused_kernels else 8 * tokens * student.vocabulary,
        kept=(0 if fsdp.param_offload else weights) + (0 if fsdp.optimizer_offload else 2 * gradients),
        rollout_share=share,
        cache_tokens=cache // (4 * student.layers * student.key_value_heads * student.head_dim) * tensor
        if server
        else 0,
        micro_tokens=tokens,
        ranks=ranks,
        trained=trained,
        critic=critic,
        critic_kept=critic_kept,
    )


def card_bytes() -> tuple[int, bool]:
    """(bytes of the smallest GPU that torch sees, False), or (`ASSUMED_CARD`, True) where it sees none."""
    import torch

    if not torch.cuda.is_available():
        return ASSUMED_CARD, True
    return min(torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())), False


def _sharing(fsdp: DictConfig, sizes: arithmetic.Sizes) -> int:
    return sizes.ranks if int(fsdp.fsdp_size) < 1 else int(fsdp.fsdp_size)


def _width(fsdp: DictConfig) -> int:
    return 2 if str(fsdp.model_dtype) in ("bf16", "bfloat16", "fp16", "float16") else 4


def _critic(config: DictConfig, student: Geometry, sizes: arithmetic.Sizes) -> tuple[int, int]:
    """(bytes of a critic as large as the student and trained whole, what of them stays on the card); (0, 0) without one."""
    if not arithmetic.uses_critic(config):
        return 0, 0
    fsdp = config.critic.fsdp
    weights = student.parameters * _width(fsdp) // _sharing(fsdp, sizes)
    return 4 * weights, (0 if fsdp.param_offload else weights) + (0 if fsdp.optimizer_offload else 2 * weights)


def _activations(student: Geometry, tokens: int, checkpointing: bool) -> int:
    attention = 2 * (student.attention_heads + student.key_value_heads) * student.head_dim
    layer = 6 * student.hidden + attention + 4 * student.intermediate
    kept = student.layers * student.hidden + layer if checkpointing else student.layers * layer
    return 2 * tokens * kept


def _micro_tokens(config: DictConfig, sizes: arithmetic.Sizes) -> int:
    """Tokens a rank computes at once, in training: dynamic batches hold a number of tokens, others of dialogues."""
    actor = config.actor_rollout_ref.actor
    if actor.use_dynamic_bsz:
        return int(actor.ppo_max_token_len_per_gpu)
    dialogue = int(config.data.max_prompt_length) + int(config.data.max_response_length)
    return int(actor.ppo_micro_batch_size_per_gpu) * dialogue // sizes.ulysses


def _lora_rank(config: DictConfig) -> int:
    return int(OmegaConf.select(config, "actor_rollout_ref.model.lora_rank", default=0) or 0)


def _plain(value: object) -> str | list[str] | None:
    if value is None or isinstance(value, str):
        return value
    return [str(item) for item in value]  # type: ignore[attr-defined]


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
