"""The Ray actor behind `rollout.name=hf`: verl's rollout server interface over the batching engine."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import torch
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.model import get_hf_auto_model_class
from verl.utils.tokenizer import normalize_token_ids
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import HFModelConfig
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.utils import get_max_position_embeddings

from verl_steer.plugin.cpu.batch_engine import BatchEngine
from verl_steer.plugin.cpu.batcher import Batcher
from verl_steer.plugin.cpu.options import EngineOptions
from verl_steer.plugin.cpu.request import PromptBuilder, Reply, Request
from verl_steer.plugin.cpu.sampling import parse_sampling
from verl_steer.plugin.cpu.weights import WeightSync


class HfServer:
    """One rollout server.

    Args:
        config: verl's `actor_rollout_ref.rollout` node.
        model_config: verl's `actor_rollout_ref.model` node.
        replica_rank: Number of this replica.
    """

    def __init__(self, config: Any, model_config: Any, replica_rank: int) -> None:
        self.config = omega_conf_to_dataclass(config)
        self.model_config: Any = omega_conf_to_dataclass(model_config, dataclass_type=HFModelConfig)
        self.replica_rank = replica_rank
        self.global_steps: int | None = None
        options = EngineOptions.read(self.config.engine_kwargs)
        torch.set_num_threads(options.threads)
        self._max_model_len = self._context_length()
        self._model = self._load_model()
        self._builder = PromptBuilder(self._model, self.model_config.processor)
        self._weights = WeightSync(self._model)
        self._end_ids = end_token_ids(self._model, self.model_config.tokenizer)
        never = forbidden_token_ids(self._model, self.model_config.tokenizer)
        self._batcher = Batcher(BatchEngine(self._model, never, slots=min(options.slots, self.config.max_num_seqs)))
        # Requests that bring no seed differ from each other, and from run to run only if the seed does.
        self._seeds = torch.Generator().manual_seed(int(self.config.seed) + replica_rank)

    def ready(self) -> int:
        """Process id; answers when the model is loaded."""
        return os.getpid()

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        image_data: list[Any] | None = None,
        video_data: list[Any] | None = None,
        audio_data: list[Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        priority: int = 0,
        **unused: Any,
    ) -> TokenOutput:
        """Tokens in, tokens out; verl/workers/rollout/vllm_rollout/vllm_async_server.py:558 is the model.

        Raises:
            ValueError: Video or audio was sent, the prompt leaves no room, or a sampling parameter is
                unknown or out of range.
        """
        if video_data or audio_data:
            raise ValueError("the hf rollout takes text and images; use another rollout for video or audio")
        prompt = normalize_token_ids(prompt_ids)
        room = self._max_model_len - len(prompt)
        if room < 1:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens leaves no room in max_model_len={self._max_model_len}; shorten it or "
                "raise actor_rollout_ref.rollout.max_model_len"
            )
        total = self.config.prompt_length + self.config.response_length
        params = {k: v for k, v in sampling_params.items() if v is not None}
        params.setdefault("ignore_eos", self.config.ignore_eos)
        default = max(1, min(self.config.response_length, total - len(prompt)))
        limit = min(int(params.pop("max_tokens", params.pop("max_new_tokens", default))), room)
        settings = parse_sampling(
            params | {"max_tokens": limit}, max_tokens=limit, seed=self._seed(), end_ids=self._end_ids
        )

        def prepare() -> Request:
            return Request.make(self._builder.build(prompt, image_data or []), settings)

        reply = await asyncio.wrap_future(self._batcher.submit(prepare))
        return self._output(reply)

    async def update_weights(self, weights: list[tuple[str, torch.Tensor]], last: bool) -> None:
        """One portion of the trainer's weights; with the last one every kept prefix is dropped."""

        def copy() -> None:
            self._weights.copy(weights)
            if last:
                self._weights.finish()
                self._engine_cache_drop()

        await asyncio.wrap_future(self._batcher.between_steps(copy))

    async def set_global_steps(self, global_steps: int) -> None:
        """The training step that the weights come from; each reply carries it."""
        self.global_steps = global_steps

    async def clear_kv_cache(self) -> None:
        """Drops kept prefixes."""
        await asyncio.wrap_future(self._batcher.between_steps(self._engine_cache_drop))

    async def abort_all_requests(self, reset_prefix_cache: bool = True, reject_request: bool = False) -> dict[str, Any]:
        """Ends what is being decoded and admits nothing until `resume_generation`."""
        ended = await asyncio.wrap_future(self._batcher.pause(reject_request))
        if reset_prefix_cache:
            await self.clear_kv_cache()
        return {"aborted_count": ended, "request_ids": []}

    async def resume_generation(self) -> None:
        """Admits requests again."""
        self._batcher.resume()

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Nothing was put to sleep: the host's memory is not shared with a trainer's device."""

    async def sleep(self) -> None:
        """Gives the cache back; weights stay, as there is no scarcer memory to free."""
        await self.clear_kv_cache()

    async def release_kv_cache(self) -> None:
        """Gives the cache back."""
        await self.clear_kv_cache()

    async def resume_kv_cache(self) -> None:
        """The cache grows again when it is needed."""

    async def start_profile(self, **kwargs: Any) -> None:
        """verl's profilers watch accelerators; there is none."""

    async def stop_profile(self) -> None:
        """See `start_profile`."""

    def _engine_cache_drop(self) -> None:
        self._batcher.engine.drop_cache()

    def _output(self, reply: Reply) -> TokenOutput:
        return TokenOutput(
            token_ids=reply.token_ids,
            log_probs=reply.log_probs,
            stop_reason="aborted" if reply.finish == "abort" else "completed",
            extra_fields={"global_steps": self.global_steps},
        )

    def _seed(self) -> int:
        return int(torch.randint(0, 2**62, (), generator=self._seeds))

    def _context_length(self) -> int:
        longest = get_max_position_embeddings(self.model_config.hf_config)
        asked = self.config.max_model_len
        if asked is not None and asked > longest:
            raise ValueError(
                f"actor_rollout_ref.rollout.max_model_len={asked} exceeds the model's max_position_embeddings={longest}"
            )
        return int(asked or longest)

    def _load_model(self) -> Any:
        auto_class = get_hf_auto_model_class(hf_config=self.model_config.hf_config)
        model = auto_class.from_pretrained(
            self.model_config.local_path,
            config=self.model_config.hf_config,
            dtype=PrecisionType.to_dtype(self.config.dtype),
            attn_implementation="sdpa",
            trust_remote_code=self.model_config.trust_remote_code,
        )
        return model.eval().requires_grad_(False)


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """The model's and the tokenizer's end-of-sequence tokens."""
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return sorted({int(i) for i in [*ends, tokenizer.eos_token_id] if i is not None})


def forbidden_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """What is never sampled: vision tokens, and rows of the head that no token has.

    A sampled placeholder has no picture behind it: every later consumer of the dialogue that pairs
    placeholders with pictures fails on it (verl/experimental/agent_loop/agent_loop.py:896).
    """
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")
    vision = {getattr(model.config, name, None) for name in names} - {None}
    rows = model.get_output_embeddings().weight.shape[0]
    return sorted({int(i) for i in vision} | set(range(len(tokenizer), rows)))
