"""Replies that follow a JSON schema: at each token, only what the schema still allows.

llguidance keeps the grammar (it is one of the two that vLLM and SGLang use); this module is its place in
transformers' `generate`. What is asked of a reply beyond its schema, such as the usefulness lock, no grammar
knows: replies are read as strictly as any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


class SchemaError(ValueError):
    """This schema, or this tokenizer, cannot be served; the message says why."""


class Grammars:
    """Schemas for one tokenizer.

    Args:
        tokenizer: A fast tokenizer of transformers.
        ends: Ids of the tokens that end a reply.
        vocabulary: Width of the model's logits; it may exceed the tokenizer's.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int], vocabulary: int) -> None:
        try:
            import llguidance
            import llguidance.hf
        except ImportError:
            # Not the extra that holds it: beside vLLM it would replace torch by another version.
            raise SchemaError('structured output needs llguidance; run pip install "llguidance>=1,<2"') from None
        self._library = llguidance
        try:
            self._tokens = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(ends))
        except ValueError as error:
            raise SchemaError(f"structured output is impossible with this tokenizer: {error}") from error

    def start(self, schema: dict[str, Any]) -> Any:
        """The grammar of one reply, at its beginning.

        Raises:
            SchemaError: The schema uses what the library does not support.
        """
        try:
            # No white space between the keys: a weak model spends its whole budget on it.
            grammar = self._library.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
            matcher = self._library.LLMatcher(self._tokens, grammar)
        except ValueError as error:
            raise SchemaError(f"the schema cannot be served: {error}") from error
        if matcher.is_error():
            raise SchemaError(f"the schema cannot be served: {matcher.get_error()}")
        return matcher


class Constrained:
    """A logits processor: row n may only say what `matchers[n]` allows; None allows everything.

    Args:
        matchers: From `Grammars.start`, one a row.
        ends: Ids of the tokens that end a reply.
    """

    def __init__(self, matchers: Sequence[Any | None], ends: Sequence[int]) -> None:
        self._matchers = list(matchers)
        self._ends = list(ends)
        self._begun = False

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Takes in the newest token of each row and forbids what may not follow it."""
        for row, matcher in enumerate(self._matchers):
            if matcher is None:
                continue
            if self._begun and not matcher.is_stopped():
                matcher.consume_token(int(ids[row, -1]))
            forbidden = torch.ones(scores.shape[1], dtype=torch.bool)
            if matcher.is_stopped():  # the object is closed: nothing but the end may follow
                forbidden[self._ends] = False
            else:
                bias = torch.from_numpy(np.frombuffer(matcher.compute_logit_bias(), dtype=np.uint8).copy())
                forbidden[: len(bias)] = bias[: scores.shape[1]] == 0
            scores[row, forbidden.to(scores.device)] = -torch.inf
        self._begun = True
        return scores
