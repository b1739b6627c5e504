"""How much of a tutor's prompt must be computed anew at each turn of a dialogue.

    python benchmarks/prefix.py                                   # counted with Qwen's vocabulary
    python benchmarks/prefix.py --vllm http://host:8000/v1 --model NAME    # and read off that server's counters

A server keeps the keys and values of prompt prefixes that it has seen. For each call of a 10-turn dialogue
with one picture this counts the tokens after the longest prefix shared with any earlier call, in our layout
(rubric, picture and turns in their order, task) and in the layout dialogue - rubric - picture - task, which
one gets by appending the instructions to the conversation. The last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from qwen_bpe import qwen_bpe

from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn
from verl_steer.roles.fence import fence_tag
from verl_steer.roles.layout import render, rubric
from verl_steer.roles.tutor import Exchange, TutorRequest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny_model import CHAT_TEMPLATE

GOAL_EXTRA, GOAL_SHARE = 150, 0.2
TURNS = 10
IMAGE_TOKENS = 999  # of a 1024 x 768 picture: patches of 28 x 28 pixels after Qwen2.5-VL's resize to 1036 x 756
BLOCK = 16  # vLLM's default: whole blocks are shared
_SPECIAL = re.compile(r"(<\|[a-z_]+\|>)")

Messages = list[dict[str, Any]]
Token = Any  # an id, a special token's name, or (picture, position)


@dataclass(frozen=True)
class Call:
    """One tutor call of the dialogue.

    Attributes:
        ours: Its prompt as `layout.render` makes it.
        other: The same parts as dialogue - rubric - picture - task.
        exchange: The newest question and reply, as plain text.
    """

    ours: Messages
    other: Messages
    exchange: tuple[str, str]


def dialogue(image: ImageRef, seed_id: str, turns: int = TURNS) -> list[Call]:
    """The calls of a dialogue: one picture in the first turn, replies of some 150 tokens."""
    questions = [_question(seed_id, t) for t in range(1, turns + 1)]
    planned = [UserTurn(text, (image,) if t == 0 else ()) for t, text in enumerate(questions)]
    script = Script(seed_id, Kind.RED_TEAM, tuple(planned))
    replies = [_reply(seed_id, t) for t in range(1, turns + 1)]
    calls = []
    for t in range(1, turns + 1):
        history = tuple(Exchange(u.text, r, u.images) for u, r in zip(planned[:t], replies[:t], strict=True))
        request = TutorRequest(
            script=script,
            history=history,
            planned_next=planned[t] if t < turns else None,
            adapt=t < turns,
            random_key=f"{seed_id}|{t}",
            fence=fence_tag(b"key of the run", seed_id),
            deadline_s=60.0,
        )
        ours = render(request)
        calls.append(Call(ours, dialogue_first(ours), (questions[t - 1], replies[t - 1])))
    return calls


def dialogue_first(ours: Messages) -> Messages:
    """The same parts in the order dialogue, rubric, picture, task."""
    parts = ours[1]["content"]
    pictures = [part for part in parts if part["type"] == "image_url"]
    turns = [part for part in parts[:-1] if part["type"] == "text"]
    return [{"role": "user", "content": [*turns, {"type": "text", "text": rubric()}, *pictures, parts[-1]]}]


def _question(seed_id: str, t: int) -> str:
    return f"For {seed_id}, step {t}: what should I look at next in this picture, and why does it matter here?"


def _reply(seed_id: str, t: int) -> str:
    subjects = ("the shelf", "the window", "the person at the table", "the label", "the door", "the lamp")
    said = [
        f"In step {t} I would look at {subjects[(t + n) % 6]} of {seed_id} first, because detail {t * 7 + n} is easy to miss "
        f"and the {'left' if n % 2 else 'right'} side is lit from behind."
        for n in range(4)
    ]
    return " ".join([*said, "Shall I describe it more closely?"])


# -- counted by tokens -----------------------------------------------------------------------------------


def tokens_of(messages: Messages, encode: Callable[[str], Sequence[int]], image_tokens: int) -> list[Token]:
    """The prompt's tokens under Qwen2.5-VL's chat template.

    Args:
        messages: OpenAI chat messages.
        encode: Text without special tokens -> ids.
        image_tokens: Placeholders of a picture; each carries the picture's identity, as a server's cache does.
    """
    from jinja2 import Template

    pictures = [p["image_url"]["url"] for m in messages if isinstance(m["content"], list) for p in m["content"] if p["type"] == "image_url"]  # fmt: skip
    for_template = [
        m
        if isinstance(m["content"], str)
        else m | {"content": [{"type": "image"} if p["type"] == "image_url" else p for p in m["content"]]}
        for m in messages
    ]
    text = Template(CHAT_TEMPLATE).render(messages=for_template, add_generation_prompt=True)
    shown = iter(pictures)
    found: list[Token] = []
    for piece in _SPECIAL.split(text):
        if piece == "<|image_pad|>":
            url = next(shown)
            found += [(url, n) for n in range(image_tokens)]
        elif _SPECIAL.fullmatch(piece):
            found.append(piece)
        else:
            found += encode(piece)
    return found


def shared_prefix(first: Sequence[Token], second: Sequence[Token]) -> int:
    """Length of the longest common prefix."""
    for n, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return n
    return min(len(first), len(second))


def uncovered(prompts: Sequence[Sequence[Token]], earlier: Sequence[Sequence[Token]] = (), block: int = 1) -> list[int]:
    """Tokens of each prompt that no earlier one covers.

    Args:
        prompts: In the order of the calls.
        earlier: Prompts before the first.
        block: Only whole blocks are shared, and a prompt's last token is always computed.
    """
    seen, found = list(earlier), []
    for prompt in prompts:
        covered = max((shared_prefix(old, prompt) for old in seen), default=0)
        found.append(len(prompt) - min(covered, len(prompt) - (block > 1)) // block * block)
        seen.append(prompt)
    return found


# -- read off a server -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """One call as the server's counters saw it.

    Attributes:
        prompt: Prompt tokens.
        computed: Of these, tokens that were not in the prefix cache.
    """

    prompt: int
    computed: int


def counters(base_url: str) -> tuple[int, int]:
    """(queried, hit) tokens of vLLM's prefix cache since the server's start."""
    text = httpx.get(f"{base_url.removesuffix('/v1')}/metrics", timeout=30).raise_for_status().text
    names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
    values = [[float(x.rsplit(" ", 1)[1]) for x in text.splitlines() if x.startswith(name + "{")] for name in names]
    if not all(values):
        raise LookupError(f"{base_url}: its /metrics has no counters of a prefix cache; is it vLLM?")
    queried, hit = (round(sum(v)) for v in values)
    return queried, hit


def measured(base_url: str, model: str, prompts: Sequence[Messages]) -> Iterator[Counted]:
    """Sends each prompt, for one token, and reads the counters; nobody else may use the server meanwhile."""
    for messages in prompts:
        queried, hit = counters(base_url)
        body = {"model": model, "messages": messages, "max_tokens": 1, "temperature": 0.0}
        httpx.post(f"{base_url}/chat/completions", json=body, timeout=300).raise_for_status()
        queried_now, hit_now = counters(base_url)
        yield Counted(queried_now - queried, queried_now - queried - (hit_now - hit))


# -- the report ------------------------------------------------------------------------------------------


def main() -> int:
    """Counts and prints; exit status 0 if the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.add_argument("--vllm", metavar="URL", help="base URL of an idle vLLM server; ends in /v1")
    parser.add_argument("--model", default="tutor", help="the name under which that server offers its model")
    given = parser.parse_args()
    from harness import picture
    from json_line import last_line

    tokenizer = qwen_bpe()

    @functools.cache
    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    image = picture(448)
    calls, warm = dialogue(image, "a kitchen"), dialogue(picture(448, seed=1), "a street", turns=1)
    left: dict[str, list[int]] = {}
    for name in ("ours", "other"):
        prompts = [tokens_of(getattr(call, name), encode, IMAGE_TOKENS) for call in calls]
        earlier = [tokens_of(getattr(call, name), encode, IMAGE_TOKENS) for call in warm]
        left[name] = uncovered(prompts, earlier)
        left[f"{name}_in_blocks"] = uncovered(prompts, earlier, BLOCK)
    exchange = [sum(len(encode(text)) for text in call.exchange) for call in calls]
    # The first call of a dialogue holds its picture, which nobody can have seen before.
    extra = [a - b for a, b in zip(left["ours"][1:], exchange[1:], strict=True)]
    share = sum(left["ours"][1:]) / sum(left["other"][1:])
    print("turn  newest exchange  uncovered  dialogue-rubric-picture-task")
    for t, row in enumerate(zip(exchange, left["ours"], left["other"], strict=True), start=1):
        print(f"{t:4}{row[0]:17}{row[1]:11}{row[2]:30}")
    details: dict[str, Any] = {
        "tokens": {
            "rubric": len(encode(rubric())),
            "picture": IMAGE_TOKENS,
            "exchange": exchange,
            "last_prompt": len(tokens_of(calls[-1].ours, encode, IMAGE_TOKENS)),
        },
        "uncovered": left,
        "beyond_exchange": {"median": statistics.median(extra), "max": max(extra)},
        "share_of_other_layout": round(share, 4),
    }
    if given.vllm:
        for name in ("ours", "other"):
            found = list(measured(given.vllm, given.model, [getattr(c, name) for c in [*warm, *calls]]))[len(warm) :]
            details[f"server_{name}"] = {"prompt": [f.prompt for f in found], "computed": [f.computed for f in found]}
    return last_line(
        "prefix",
        max(extra),
        "prompt tokens beyond the newest exchange that no earlier call covers, worst of turns 2 to 10",
        GOAL_EXTRA,
        f"<= {GOAL_EXTRA}, and all uncovered <= {GOAL_SHARE} x the layout dialogue-rubric-picture-task",
        max(extra) <= GOAL_EXTRA and share <= GOAL_SHARE,
        details,
    )


if __name__ == "__main__":
    raise SystemExit(main())
