"""The `steer:` node of an SFT run: verl's SFT trainer has no tutor, no dialogue and no reward to configure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_steer.checked import parse
from verl_steer.config import WorldConfig


@dataclass(frozen=True)
class SftConfig:
    """`steer.sft`.

    Attributes:
        freeze_vision: Train neither the vision tower nor its projector.
    """

    freeze_vision: bool = True


@dataclass(frozen=True)
class SftRunConfig:
    """The whole `steer:` node of an SFT run."""

    sft: SftConfig = field(default_factory=SftConfig)
    world: WorldConfig = field(default_factory=WorldConfig)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | None) -> SftRunConfig:
        """Parses and validates a plain mapping.

        Raises:
            ConfigError: A key is unknown or a value is wrong.
        """
        return parse(cls, {} if mapping is None else mapping, "steer")
