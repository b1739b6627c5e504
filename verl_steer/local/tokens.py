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
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

_REMEMBERED = 2 * 2**30  # bytes of tensors; a picture of a megapixel has some 24 MB
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


class Remembered:
    """Conversations by digest, the least recently used dropped first.

    The turns of a dialogue share the tensors of its pictures, so each tensor counts once, however many turns hold it.
    Earlier turns stay beside later ones: a conversation may go on in more than one way.

    Args:
        max_bytes: Of all tensors together; the newest conversation is kept even if it is larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._said: OrderedDict[str, Encoded] = OrderedDict()
        self._holders: Counter[int] = Counter()  # by id of a tensor that some conversation holds

    def __len__(self) -> int:
        return len(self._said)

    def get(self, key: str) -> Encoded | None:
        """The conversation, or None."""
        if key in self._said:
            self._said.move_to_end(key)
        return self._said.get(key)

    def add(self, key: str, said: Encoded) -> None:
        """Keeps a conversation, and drops others where there is no room."""
        if (before := self._said.pop(key, None)) is not None:
            self._release(before)
        self._said[key] = said
        for tensor in said.inputs.values():
            self.bytes += tensor.nbytes if not self._holders[id(tensor)] else 0
            self._holders[id(tensor)] += 1
        while self.bytes > self._max_bytes and len(self._said) > 1:
            self._release(self._said.popitem(last=False)[1])

    def _release(self, said: Encoded) -> None:
        for tensor in said.inputs.values():
            self._holders[id(tensor)] -= 1
            if not self._holders[id(tensor)]:
                del self._holders[id(tensor)]
                self.bytes -= tensor.nbytes


class ConversationEncoder:
    """Renders, encodes and remembers.

    Args:
        processor: Of the model; a bare tokenizer takes no pictures.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self._sees = processor is not self.tokenizer
        self.said = Remembered(_REMEMBERED)
        self.continued = 0

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> Encoded:
        """The prompt of the next reply.

        Raises:
            PromptError: A picture is no base64 data URL or is damaged, or template or processor refuse the messages.
        """
        plain, _ = _plain(messages)
        try:
            text = str(self.processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # jinja's and the templates' own: whatever they raise, they refuse these messages
            raise PromptError(f"the chat template refuses these messages: {error}") from error
        before = self.said.get(_digest(messages[:-1]))
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
        self.said.add(key, Encoded(_joined(prompt.inputs, said), prompt.text + reply, ()))

    def _tokens(self, text: str, pictures: list[Image.Image]) -> Inputs:
        if not self._sees:
            if pictures:
                raise PromptError("this model takes no pictures: its processor is a bare tokenizer")
            return dict(self.tokenizer([text], add_special_tokens=False, return_tensors="pt"))
        # The template has written the special tokens; a second beginning would be wrong.
        try:
            found = self.processor(
                text=[text], images=pictures or None, text_kwargs={"add_special_tokens": False}, return_tensors="pt"
            )
        except MemoryError:
            raise
        except Exception as error:  # each family's own: a strip of 2 x 900, say, is a ValueError of Qwen's
            raise PromptError(f"the processor refuses these messages: {type(error).__name__}: {error}") from error
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
    """Two pieces of one conversation: tokens one after the other, pictures too.

    What only one piece has is taken as it is, not copied: the turns of a dialogue share its pictures.
    """
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
            held = [p for p in pieces if p is not None]
            joined[name] = held[0] if len(held) == 1 else torch.cat(held)
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
    except MemoryError:
        raise
    # Pillow's decoders raise many kinds on damaged data: SyntaxError, struct.error, EOFError, ZeroDivisionError.
    except Exception as error:
        raise PromptError(f"a picture is damaged: {type(error).__name__}: {error}") from error


def _digest(messages: Sequence[Mapping[str, Any]]) -> str:
    plain = [[m.get("role"), m.get("content")] for m in messages]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
