"""Choosing the next token: one request, one random stream, whatever else is in the batch.

Two distributions are kept apart. A token is *drawn* from the temperature-scaled, truncated (top-k,
top-p) distribution without the tokens that must never be sampled; its log-probability is *reported*
under the temperature-scaled softmax over the whole vocabulary, because that is what verl's trainer
computes for the same token (verl/workers/engine/fsdp/transformer_impl.py:85, logits / temperature).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

#: Sampling parameters that verl or an agent loop may send and that need no action while they hold this value.
NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_p": 0.0,
    "n": 1,
    "stop": None,
}
KNOWN = ("temperature", "top_p", "top_k", "max_tokens", "max_new_tokens", "seed", "stop_token_ids", "ignore_eos")


@dataclass(frozen=True)
class SamplingSettings:
    """How the tokens of one request are chosen.

    Attributes:
        max_tokens: At most so many; at least 1.
        temperature: 0 means the most probable token, with no randomness.
        top_p: Keep the smallest set of tokens whose probabilities reach this; 1 keeps all.
        top_k: Keep so many of the most probable tokens; 0 or less keeps all.
        seed: Seeds the request's own random stream.
        stop_ids: Tokens that end the reply; the ending token is part of it.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int = 0
    stop_ids: frozenset[int] = field(default_factory=frozenset)


def parse_sampling(
    params: Mapping[str, Any], *, max_tokens: int, seed: int, end_ids: Sequence[int]
) -> SamplingSettings:
    """Reads verl's `sampling_params`.

    Args:
        params: As an agent loop sends them.
        max_tokens: Used when the request names no limit.
        seed: Used when the request names none.
        end_ids: The model's end-of-sequence tokens.

    Raises:
        ValueError: A parameter is unknown, not supported by this rollout, or out of range.
    """
    for name, value in params.items():
        if name == "logprobs" or name in KNOWN:
            continue
        if name not in NEUTRAL:
            close = difflib.get_close_matches(name, [*KNOWN, *NEUTRAL], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"sampling_params: the hf rollout does not know {name}={value!r}{hint}")
        if value != NEUTRAL[name] and value not in (None, [], ()):
            raise ValueError(f"sampling_params: the hf rollout supports {name}={NEUTRAL[name]!r} only, got {value!r}")
    limit = params.get("max_tokens", params.get("max_new_tokens"))
    stops = set(params.get("stop_token_ids") or ())
    if not params.get("ignore_eos", False):
        stops.update(end_ids)
    settings = SamplingSettings(
        max_tokens=max_tokens if limit is None else int(limit),
        temperature=float(params.get("temperature", 1.0)),
        top_p=float(params.get("top_p", 1.0)),
        top_k=int(params.get("top_k", -1)),
        seed=seed if params.get("seed") is None else int(params["seed"]),
        stop_ids=frozenset(int(s) for s in stops),
    )
    if settings.max_tokens < 1:
        raise ValueError(f"sampling_params: max_tokens={settings.max_tokens}: must be at least 1")
    if settings.temperature < 0:
        raise ValueError(f"sampling_params: temperature={settings.temperature}: must not be negative")
    if not 0 < settings.top_p <= 1:
        raise ValueError(f"sampling_params: top_p={settings.top_p}: must be in (0, 1]")
    return settings


def choose_tokens(
    logits: torch.Tensor,
    settings: Sequence[SamplingSettings],
    generators: Sequence[torch.Generator],
    never: torch.Tensor,
) -> tuple[list[int], list[float]]:
    """The next token of every row and its log-probability.

    Args:
        logits: (rows, vocabulary) float.
        settings: Of each row.
        generators: Of each row; a row that samples draws exactly one number from its own.
        never: (vocabulary,) bool, true for tokens that must not be chosen.

    Returns:
        Token ids and their log-probabilities under softmax(logits / temperature) over the whole
        vocabulary (temperature 1 where the setting is 0).
    """
    temperature = torch.tensor([s.temperature if s.temperature > 0 else 1.0 for s in settings]).unsqueeze(-1)
    scaled = logits.float() / temperature
    allowed = scaled.masked_fill(never, float("-inf"))
    chosen = allowed.argmax(dim=-1)
    drawn = [row for row, s in enumerate(settings) if s.temperature > 0]
    if drawn:
        probabilities = _truncate(allowed[drawn], [settings[row] for row in drawn])
        uniform = torch.stack([torch.rand((), generator=generators[row], dtype=torch.float64) for row in drawn])
        chosen[drawn] = _inverse_cdf(probabilities, uniform)
    log_probs = torch.log_softmax(scaled, dim=-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    return chosen.tolist(), log_probs.tolist()


def _truncate(logits: torch.Tensor, settings: Sequence[SamplingSettings]) -> torch.Tensor:
    """(rows, vocabulary) float64 weights after top-k and top-p; they need not sum to one."""
    probabilities = torch.softmax(logits.double(), dim=-1)
    if all(s.top_p >= 1 and s.top_k <= 0 for s in settings):
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    vocabulary = ordered.shape[-1]
    top_k = torch.tensor([s.top_k if s.top_k > 0 else vocabulary for s in settings]).unsqueeze(-1)
    ordered = ordered.masked_fill(torch.arange(vocabulary) >= top_k, 0.0)
    # Top-p is taken of what top-k left, as vLLM does; the token that crosses the border stays.
    before = ordered.cumsum(dim=-1) - ordered
    top_p = torch.tensor([s.top_p for s in settings], dtype=torch.float64).unsqueeze(-1)
    ordered = ordered.masked_fill((before >= top_p * ordered.sum(dim=-1, keepdim=True)) & (top_p < 1), 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)


def _inverse_cdf(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first token whose cumulative weight exceeds uniform · total; one of positive weight.

    Args:
        weights: (rows, vocabulary) float64.
        uniform: (rows,) float64 in [0, 1).
    """
    cumulative = weights.cumsum(dim=-1)
    target = (uniform * cumulative[:, -1]).unsqueeze(-1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=weights.shape[-1] - 1)
