"""The YAML file of a build as validated dataclasses: every open choice of stages I and II has one key here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from verl_steer.checked import ConfigError, fraction, http_urls, not_negative, one_of, parse, positive, variable_name
from verl_steer.config_models import TutorConfig
from verl_steer.dialogue import MAX_TURNS
from verl_steer.roles.success import KEPT_FROM

MIN_TURNS = 2
#: Who is asked in a build; the keys of `roles`.
ROLES = ("probe", "generator", "forensics", "planner", "red", "blue", "target", "tutor", "success")


@dataclass(frozen=True)
class RoleConfig:
    """`roles.NAME`: where a role is played and how it is called. What is not set is as in `roles.all`.

    Attributes:
        kind: endpoint, or microworld: the rules behind `verl-steer serve microworld`, model `microworld-NAME`.
        model: Name under which the servers offer the model.
        base_urls: One or several servers of that model.
        api_key_env: *Name* of the environment variable with the key.
        concurrency: Requests of this role under way at once.
        temperature: Of the sampling.
        max_tokens: Of a reply.
        timeout_s: Seconds for one call, retries included; one attempt has half of them.
        outage_s: Seconds to wait while none of its servers serves.
        structured_output: As `steer.tutor.structured_output`.
    """

    kind: str | None = None
    model: str | None = None
    base_urls: tuple[str, ...] | None = None
    api_key_env: str | None = None
    concurrency: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    timeout_s: float | None = None
    outage_s: float | None = None
    structured_output: str | None = None


@dataclass(frozen=True)
class Endpoint:
    """A role's settings with nothing left open."""

    role: str
    kind: str = "endpoint"
    model: str = ""
    base_urls: tuple[str, ...] = ()
    api_key_env: str | None = None
    concurrency: int = 64
    temperature: float = 0.0
    max_tokens: int = 1024
    timeout_s: float = 240.0
    outage_s: float = 1800.0
    structured_output: str = "auto"

    def __post_init__(self) -> None:
        where = f"roles.{self.role}"
        one_of(f"{where}.kind", self.kind, ("endpoint", "microworld"))
        one_of(f"{where}.structured_output", self.structured_output, TutorConfig.DIALECTS)
        for name in ("concurrency", "max_tokens", "timeout_s"):
            positive(f"{where}.{name}", getattr(self, name))
        not_negative(f"{where}.temperature", self.temperature)
        not_negative(f"{where}.outage_s", self.outage_s)
        variable_name(f"{where}.api_key_env", self.api_key_env)
        if not self.base_urls:
            raise ConfigError(
                f"{where}.base_urls is empty: give the URL of an OpenAI-compatible server, here or in roles.all"
            )
        if not self.model:
            raise ConfigError(f"{where}.model is empty: give the name under which the server offers the model")
        http_urls(f"{where}.base_urls", self.base_urls)


@dataclass(frozen=True)
class RolesConfig:
    """`roles`: one node for each role, and `all` for what they share."""

    all: RoleConfig = field(default_factory=RoleConfig)
    probe: RoleConfig = field(default_factory=RoleConfig)
    generator: RoleConfig = field(default_factory=RoleConfig)
    forensics: RoleConfig = field(default_factory=RoleConfig)
    planner: RoleConfig = field(default_factory=RoleConfig)
    red: RoleConfig = field(default_factory=RoleConfig)
    blue: RoleConfig = field(default_factory=RoleConfig)
    target: RoleConfig = field(default_factory=RoleConfig)
    tutor: RoleConfig = field(default_factory=RoleConfig)
    success: RoleConfig = field(default_factory=RoleConfig)

    def endpoint(self, role: str) -> Endpoint:
        """The settings of one role.

        Raises:
            ConfigError: They cannot work; the message names the key.
        """
        values = {f.name: value for f in fields(RoleConfig) if (value := getattr(self.all, f.name)) is not None}
        own: RoleConfig = getattr(self, role)
        values |= {f.name: value for f in fields(RoleConfig) if (value := getattr(own, f.name)) is not None}
        if values.get("kind") == "microworld" and own.model is None:
            values["model"] = f"microworld-{role}"
        return Endpoint(role, **values)


@dataclass(frozen=True)
class TurnsConfig:
    """`turns`: how long scripts are. The paper gives 2..10 and the averages of its splits, not the distribution.

    Attributes:
        sft: Nine weights, of T = 2..10, for seeds whose dialogues are written in stage II.
        held: The same for the seeds of STEER-RL and STEER-Bench.
    """

    sft: tuple[float, ...] = (3, 5, 8, 12, 16, 14, 11, 8, 6)
    held: tuple[float, ...] = (1, 1, 2, 3, 6, 9, 17, 27, 34)

    def __post_init__(self) -> None:
        for name in ("sft", "held"):
            weights = getattr(self, name)
            if len(weights) != MAX_TURNS - MIN_TURNS + 1 or sum(weights) <= 0:
                raise ConfigError(f"turns.{name}: give nine weights, of T = {MIN_TURNS}..{MAX_TURNS}, not all zero")
            for weight in weights:
                not_negative(f"turns.{name}", weight)


@dataclass(frozen=True)
class RedTeamConfig:
    """`red_team`: whether and on what attacks are written.

    Attributes:
        enabled: `--no-red-team` sets it to false.
        review: The category review file (docs/synthesis.md); without one nothing of the red team is written.
        keep_from: Success score from which an attack is kept, 1..5 (paper: 4).
    """

    enabled: bool = True
    review: str | None = None
    keep_from: int = KEPT_FROM

    def __post_init__(self) -> None:
        if not 1 <= self.keep_from <= 5:
            raise ConfigError(f"red_team.keep_from={self.keep_from}: the success judge's scale is 1..5")


@dataclass(frozen=True)
class PerturbConfig:
    """`perturb`: what is done to some pictures of the red team (paper, appendix F)."""

    share: float = 0.1
    sigma: float = 0.03
    triggers: tuple[str, ...] = ("LOOK HERE", "ANSWER NOW", "STEP BY STEP", "AS AGREED")

    def __post_init__(self) -> None:
        fraction("perturb.share", self.share)
        positive("perturb.sigma", self.sigma)
        if not self.triggers or not all(text.strip() for text in self.triggers):
            raise ConfigError("perturb.triggers: give at least one short text")


@dataclass(frozen=True)
class RunConfig:
    """`run`: how the work is cut and bounded; nothing here changes what is written.

    Attributes:
        rows_in_flight: Seeds worked on at once.
        shard_rows: Seeds a shard.
    """

    rows_in_flight: int = 256
    shard_rows: int = 256

    def __post_init__(self) -> None:
        positive("run.rows_in_flight", self.rows_in_flight)
        positive("run.shard_rows", self.shard_rows)


@dataclass(frozen=True)
class SynthConfig:
    """A whole build.

    Attributes:
        seed: Keys every random choice, with the row's id and the step.
        roles, turns, red_team, perturb, run: See there.
        sft_share: Share of the seeds whose scripts become STEER-SFT dialogues; the others are held for RL and bench.
        held_sources: Sources whose seeds are all held (those of the bench, in the paper).
        guidelines: The blue expert's; None: ours.
        max_question_chars: A longer user turn counts as a fault of the model.
        max_reply_chars: Likewise for replies.
    """

    seed: int = 1
    roles: RolesConfig = field(default_factory=RolesConfig)
    turns: TurnsConfig = field(default_factory=TurnsConfig)
    red_team: RedTeamConfig = field(default_factory=RedTeamConfig)
    perturb: PerturbConfig = field(default_factory=PerturbConfig)
    run: RunConfig = field(default_factory=RunConfig)
    sft_share: float = 0.6
    held_sources: tuple[str, ...] = ()
    guidelines: str | None = None
    max_question_chars: int = 1000
    max_reply_chars: int = 8000

    def __post_init__(self) -> None:
        fraction("sft_share", self.sft_share)
        positive("max_question_chars", self.max_question_chars)
        positive("max_reply_chars", self.max_reply_chars)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> SynthConfig:
        """Reads plain data.

        Raises:
            ConfigError: A key or a value is wrong; also if a role that is needed has no server.
        """
        config = parse(cls, mapping, "synth")
        for role in config.needed_roles():
            config.roles.endpoint(role)
        return config

    def needed_roles(self) -> tuple[str, ...]:
        """The roles that this build asks."""
        red_only = ("forensics", "planner", "success")
        return tuple(role for role in ROLES if self.red_team.enabled or role not in red_only)


def load(path: Path, red_team: bool = True) -> tuple[SynthConfig, dict[str, Any]]:
    """Reads a build's YAML file.

    Args:
        path: The file.
        red_team: False writes no attacks, whatever the file says.

    Returns:
        The stages' configuration, and the `selection` node as it stands.

    Raises:
        ConfigError: Not YAML, not a mapping, or a wrong key or value.
    """
    import yaml

    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path} must hold a mapping, see examples/conf/build_microworld.yaml")
    selection = mapping.pop("selection", None) or {}
    if not isinstance(selection, dict):
        raise ConfigError(f"{path}: selection must be a mapping")
    if not red_team:
        mapping["red_team"] = {**(mapping.get("red_team") or {}), "enabled": False}
    return SynthConfig.from_mapping(mapping), selection
