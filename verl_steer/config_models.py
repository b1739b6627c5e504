"""The part of the `steer:` node that says which models a run talks to, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_steer.checked import ConfigError, fraction, http_urls, not_negative, one_of, positive, variable_name


@dataclass(frozen=True)
class FallbackConfig:
    """`steer.tutor.fallback`: who judges a reply that the tutor blocked or refused to judge; nobody by default."""

    model: str = ""
    base_urls: tuple[str, ...] = ()
    api_key_env: str | None = None

    def __post_init__(self) -> None:
        variable_name("steer.tutor.fallback.api_key_env", self.api_key_env)
        if bool(self.model) != bool(self.base_urls):
            raise ConfigError("steer.tutor.fallback needs both model and base_urls, or neither (no fallback judge)")
        http_urls("steer.tutor.fallback.base_urls", self.base_urls)

    def __bool__(self) -> bool:
        return bool(self.model)


@dataclass(frozen=True)
class ManagedConfig:
    """`steer.tutor.managed`: a tutor that the run serves itself, beside the student (`plugin/managed.py`).

    Attributes:
        path: The tutor's folder or hub id; null: `steer.tutor.model`.
        engine: "vllm" or "sglang": verl's own rollout servers; "hf": transformers, one process a GPU, or on the CPU.
        nnodes, n_gpus_per_node: Its resource pool, apart from the student's.
        tensor_parallel: GPUs of one server; the rest of the pool holds further servers.
        gpu_memory_utilization: Share of each GPU; nobody else uses it.
        max_model_len: Longest prompt and reply of vllm and sglang, in tokens; null: the model's own.
        trust_remote_code: Whether the model's own code may run.
        start_s: Seconds for its servers to come up, a first download included.
        rollout: Further keys of verl's RolloutConfig (max_num_seqs, enforce_eager, engine_kwargs, ...).
    """

    path: str | None = None
    engine: str = "vllm"
    nnodes: int = 1
    n_gpus_per_node: int = 8
    tensor_parallel: int = 1
    gpu_memory_utilization: float = 0.85
    max_model_len: int | None = None
    trust_remote_code: bool = False
    start_s: float = 3600.0
    rollout: Mapping[str, Any] = field(default_factory=dict)

    ENGINES = ("vllm", "sglang", "hf")

    def __post_init__(self) -> None:
        where = "steer.tutor.managed"
        one_of(f"{where}.engine", self.engine, self.ENGINES)
        for name in ("nnodes", "n_gpus_per_node", "tensor_parallel", "start_s"):
            positive(f"{where}.{name}", getattr(self, name))
        fraction(f"{where}.gpu_memory_utilization", self.gpu_memory_utilization)
        wide, narrow = max(self.tensor_parallel, self.n_gpus_per_node), min(self.tensor_parallel, self.n_gpus_per_node)
        if wide % narrow or self.gpus % self.tensor_parallel:
            raise ConfigError(
                f"{where}.tensor_parallel={self.tensor_parallel} does not divide nnodes x n_gpus_per_node = {self.nnodes} x "
                f"{self.n_gpus_per_node} into whole servers: a server takes a share of one node or whole nodes"
            )
        if self.engine == "hf" and (self.tensor_parallel > 1 or self.max_model_len is not None):
            raise ConfigError(f"{where}: engine hf has neither tensor_parallel nor max_model_len; use vllm or sglang")

    @property
    def gpus(self) -> int:
        """GPUs of its pool."""
        return self.nnodes * self.n_gpus_per_node

    @property
    def servers(self) -> int:
        """How many servers share them."""
        return self.gpus // self.tensor_parallel


@dataclass(frozen=True)
class CustomConfig:
    """`steer.tutor.custom`: a tutor of your own (`roles/custom.py`).

    Attributes:
        path: Its module as verl names one: `pkg://my_package.my_tutor`, or a file.
        name: The class; it has the methods of `roles.tutor.Tutor`.
        kwargs: What its constructor gets.
    """

    path: str = ""
    name: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TutorConfig:
    """`steer.tutor`: who plays the tutor and how it is called."""

    kind: str = "endpoint"
    model: str = ""
    base_urls: tuple[str, ...] = ()
    api_key_env: str | None = None
    max_concurrency: int = 64
    timeout_s: float = 240.0
    attempts: int = 4
    temperature: float = 0.0
    max_tokens: int = 1024
    structured_output: str = "auto"
    max_question_chars: int = 600
    outage_s: float = 1800.0
    audit_dir: str | None = None
    fallback: FallbackConfig = field(default_factory=FallbackConfig)
    managed: ManagedConfig = field(default_factory=ManagedConfig)
    custom: CustomConfig = field(default_factory=CustomConfig)

    KINDS = ("endpoint", "managed", "custom", "microworld")
    DIALECTS = ("auto", "response_format", "structured_outputs", "guided_json", "none")

    def __post_init__(self) -> None:
        one_of("steer.tutor.kind", self.kind, self.KINDS)
        one_of("steer.tutor.structured_output", self.structured_output, self.DIALECTS)
        for name in ("max_concurrency", "attempts", "max_tokens", "max_question_chars"):
            positive(f"steer.tutor.{name}", getattr(self, name))
        positive("steer.tutor.timeout_s", self.timeout_s)
        not_negative("steer.tutor.temperature", self.temperature)
        not_negative("steer.tutor.outage_s", self.outage_s)
        variable_name("steer.tutor.api_key_env", self.api_key_env)
        if self.kind == "endpoint":
            if not self.base_urls:
                raise ConfigError(
                    "steer.tutor.base_urls is empty: give the URL of an OpenAI-compatible server, e.g. http://tutor-0:8000/v1"
                )
            if not self.model:
                raise ConfigError("steer.tutor.model is empty: give the name under which the server offers the tutor")
            http_urls("steer.tutor.base_urls", self.base_urls)
        if self.kind == "managed":
            if self.base_urls:
                raise ConfigError(
                    f"steer.tutor.kind=managed starts its own servers, but steer.tutor.base_urls names "
                    f"{len(self.base_urls)}: empty it, or set kind=endpoint to use those"
                )
            if not (self.managed.path or self.model):
                raise ConfigError("steer.tutor.managed.path is empty: give the tutor's folder or hub id")
        if self.kind == "custom" and not (self.custom.path and self.custom.name):
            raise ConfigError(
                "steer.tutor.kind=custom needs steer.tutor.custom.path (pkg://my_package.my_tutor, or a file) and .name (a class)"
            )
        if self.kind in ("custom", "microworld"):
            self._refuse_what_needs_the_client()

    def _refuse_what_needs_the_client(self) -> None:
        """Refuses what the client around a model does, which these kinds lack: it would do nothing, without a word."""
        for key, given in (("fallback", self.fallback != FallbackConfig()), ("audit_dir", bool(self.audit_dir))):
            if given:
                raise ConfigError(
                    f"steer.tutor.{key} does nothing with steer.tutor.kind={self.kind}: only endpoint and managed ask a model "
                    "through the client that knows it; remove the key"
                )


@dataclass(frozen=True)
class DifficultyConfig:
    """`steer.difficulty`: a frozen student that meets a sample of the attacks (`plugin/difficulty.py`); none by default."""

    kind: str = "none"
    model: str = ""
    base_urls: tuple[str, ...] = ()
    api_key_env: str | None = None
    max_concurrency: int = 32
    timeout_s: float = 120.0

    KINDS = ("none", "endpoint", "microworld")

    def __post_init__(self) -> None:
        one_of("steer.difficulty.kind", self.kind, self.KINDS)
        variable_name("steer.difficulty.api_key_env", self.api_key_env)
        positive("steer.difficulty.max_concurrency", self.max_concurrency)
        positive("steer.difficulty.timeout_s", self.timeout_s)
        if self.kind == "endpoint" and not (self.model and self.base_urls):
            raise ConfigError(
                "steer.difficulty.kind=endpoint needs model and base_urls: where the student that training started from is served"
            )
        http_urls("steer.difficulty.base_urls", self.base_urls)
