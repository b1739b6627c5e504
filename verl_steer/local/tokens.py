"""Chat messages into tokens for a local checkpoint, without reading back what it wrote itself.

A reply that is decoded and encoded again need not give the tokens that were sampled. So the encoder remembers the
tokens of what it said: where the new messages continue a remembered conversation, only the new turn is encoded, with
its own pictures. Where they do not, or where the chat template rewrites an earlier turn (some take the thinking out),
everything is encoded from the text.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

_REMEMBERED = 512  # conversations; ids and pixels of one picture are some MB at most
Inputs = dict[str, torch.Tensor]


class PromptError(ValueError):
    """Messages that this model cannot be asked; the message says why."""


@dataclass(frozen=True)
class Encoded:
    """A prompt: what the model takes, and what its text is. Tensors of shape [1, length] are per token."""

    inputs: Inputs
    text: str
    messages: tuple[Mapping[str, Any], ...]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return int(self.inputs["input_ids"].shape[1])


class ConversationEncoder:
    """Renders, encodes and remembers.

    Args:
        processor: Of the model; a bare tokenizer takes no pictures.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self._sees = processor is not self.tokenizer
        self._said: OrderedDict[str, Encoded] = OrderedDict()
        self.continued = 0

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> Encoded:
        """The prompt of the next reply.

        Raises:
            PromptError: A picture is no base64 data URL or is damaged, or the template refuses the messages.
        """
        plain, _ = _plain(messages)
        try:
            text = str(self.processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # jinja's and the templates' own: whatever they raise, they refuse these messages
            raise PromptError(f"the chat template refuses these messages: {error}") from error
        before = self._said.get(_digest(messages[:-1]))
        if before is not None and text.startswith(before.text):
            self.continued += 1
            new = self._tokens(text[len(before.text) :], _plain(messages[-1:])[1])
            return Encoded(_joined(before.inputs, new), text, tuple(messages))
        return Encoded(self._tokens(text, _plain(messages)[1]), text, tuple(messages))

    def remember(self, prompt: Encoded, reply: str, sampled: Sequence[int]) -> None:
        """Keeps the tokens of a reply; the end token is the template's to write.

        Args:
            prompt: What was asked.
            reply: The reply's text, as the next prompt will hold it.
            sampled: Its tokens, without the end token.
        """
        ids = torch.tensor([list(sampled)], dtype=torch.long)
        said = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        key = _digest([*prompt.messages, {"role": "assistant", "content": reply}])
        self._said[key] = Encoded(_joined(prompt.inputs, said), prompt.text + reply, ())
        while len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)

    def _tokens(self, text: str, pictures: list[Image.Image]) -> Inputs:
        if not self._sees:
            if pictures:
                raise PromptError("this model takes no pictures: its processor is a bare tokenizer")
            return dict(self.tokenizer([text], add_special_tokens=False, return_tensors="pt"))
        # The template has written the special tokens; a second beginning would be wrong.
        found = self.processor(
            text=[text], images=pictures or None, text_kwargs={"add_special_tokens": False}, return_tensors="pt"
        )
        return dict(found)


def batch(prompts: Sequence[Encoded], pad: int) -> Inputs:
    """Prompts as one batch: per-token tensors padded on the left, pictures one after the other."""
    length = max(prompt.length for prompt in prompts)
    together: Inputs = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.inputs):
        values = [prompt.inputs[name] for prompt in prompts if name in prompt.inputs]
        if any(_per_token(prompt, name) for prompt in prompts):
            filler = pad if name == "input_ids" else 0
            values = [
                torch.nn.functional.pad(prompt.inputs[name], (length - prompt.length, 0), value=filler)
                for prompt in prompts
            ]
        together[name] = torch.cat(values)
    return together


def _per_token(prompt: Encoded, name: str) -> bool:
    return name in prompt.inputs and prompt.inputs[name].shape == prompt.inputs["input_ids"].shape


def _joined(before: Inputs, new: Inputs) -> Inputs:
    """Two pieces of one conversation: tokens one after the other, pictures too."""
    lengths = [piece["input_ids"].shape for piece in (before, new)]
    joined: Inputs = {}
    for name in dict.fromkeys([*before, *new]):
        pieces = [piece.get(name) for piece in (before, new)]
        per_token = any(p is not None and p.shape == shape for p, shape in zip(pieces, lengths, strict=True))
        if per_token:  # kinds of token: 0, text, where a piece says nothing
            kind = next(p.dtype for p in pieces if p is not None)
            filled = [p if p is not None else torch.zeros(s, dtype=kind) for p, s in zip(pieces, lengths, strict=True)]
            joined[name] = torch.cat(filled, dim=1)
        else:
            joined[name] = torch.cat([p for p in pieces if p is not None])
    return joined


def _plain(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """OpenAI's messages as chat templates take them, and their pictures in order."""
    plain: list[dict[str, Any]] = []
    pictures: list[Image.Image] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            parts = []
            for part in content:
                if not isinstance(part, Mapping):
                    raise PromptError(f"a part of a message must be an object, found {type(part).__name__}")
                if part.get("type") == "image_url":
                    pictures.append(_picture(part.get("image_url")))
                    parts.append({"type": "image"})
                else:
                    parts.append({"type": "text", "text": str(part.get("text", ""))})
            plain.append({"role": message["role"], "content": parts})
        else:
            plain.append({"role": message["role"], "content": str(content or "")})
    return plain, pictures


def _picture(given: Any) -> Image.Image:
    url = given.get("url") if isinstance(given, Mapping) else None
    if not isinstance(url, str):
        raise PromptError("a part of type image_url must hold image_url.url, a text")
    head, _, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise PromptError(f"a picture must be a base64 data URL, this one starts with {url[:20]!r}")
    try:
        return Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise PromptError(f"a picture is damaged: {error}") from error


def _digest(messages: Sequence[Mapping[str, Any]]) -> str:
    plain = [[m.get("role"), m.get("content")] for m in messages]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
