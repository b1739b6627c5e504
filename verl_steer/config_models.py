"""The part of the `steer:` node that says which models a run talks to, and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl_steer.checked import ConfigError, not_negative, one_of, positive, variable_name


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
        _http_urls("steer.tutor.fallback.base_urls", self.base_urls)

    def __bool__(self) -> bool:
        return bool(self.model)


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

    KINDS = ("endpoint", "microworld")
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
            _http_urls("steer.tutor.base_urls", self.base_urls)


def _http_urls(where: str, urls: tuple[str, ...]) -> None:
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{where}: {url!r} is no http(s) URL")


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
        _http_urls("steer.difficulty.base_urls", self.base_urls)
