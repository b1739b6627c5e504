"""Everything that goes wrong with a model behind HTTP, by plan and reproducibly.

    from verl_steer.testing.faults import CURABLE, FaultPlan, faulty
    from verl_steer.testing.server import serve

    plan = FaultPlan(seed=1, rate=0.3, faults=CURABLE, tries=1)   # the first try of 30 % of the requests
    with serve(faulty(handler, plan)) as server:
        ...

Which request is hit, and by what, depends on the plan's seed, the request's body and how often that body has
come: not on order or timing. So two runs under concurrency see the same faults, and a run whose faults are
all cured by retries must equal the run without any.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from verl_steer.testing.server import Answered, Body, Completion, Handler, Wire, error, to_wire


class Fault(StrEnum):
    """What can go wrong. Transport first, then completions that are none, then replies that break the schema."""

    TOO_MANY = "429"
    TOO_MANY_RETRY_AFTER = "429_retry_after"
    SERVER_ERROR = "500"
    BAD_GATEWAY = "502"
    UNAVAILABLE = "503"
    RESET = "reset"
    RESET_WITHIN = "reset_within_body"
    SLOW_HEADERS = "slow_headers"
    SLOW_BODY = "slow_body"
    HANG = "hang"
    WRONG_CONTENT = "wrong_content_type"
    HUGE_BODY = "huge_body"
    INVALID_UTF8 = "invalid_utf8"
    EMPTY_CHOICES = "empty_choices"
    TRUNCATED_BODY = "truncated_body"
    REFUSAL = "refusal"
    CONTENT_FILTER = "content_filter"
    TRUNCATED_JSON = "truncated_json"
    PROSE = "json_in_prose"
    DUPLICATE_KEYS = "duplicate_keys"
    NESTED = "nested"
    NAN = "nan"
    INFINITY = "infinity"
    STRINGS = "strings_for_numbers"
    FLOATS = "floats_for_integers"
    BOOLEANS = "booleans_for_integers"
    OUT_OF_RANGE = "out_of_range"
    LOCK = "lock_violation"
    EXTRA_KEY = "extra_key"
    MISSING_KEY = "missing_key"
    EMPTY = "empty_reply"
    ECHO = "echoed_request"


#: Faults of transport: another try of the same request may well succeed.
CURABLE = tuple(Fault)[: list(Fault).index(Fault.REFUSAL)]
#: The model declines; another try says the same.
DECLINED = (Fault.REFUSAL, Fault.CONTENT_FILTER)
#: A completion came, and it is not a valid reply.
MALFORMED = tuple(Fault)[list(Fault).index(Fault.CONTENT_FILTER) + 1 :]


@dataclass
class FaultPlan:
    """Which requests are hit, by what, and how often.

    Attributes:
        seed: Of all choices.
        rate: Share of the distinct request bodies that are hit, 0..1.
        faults: Drawn from with equal chances.
        tries: How many tries of a hit request fail; None: all of them (a permanent fault).
        hang_s: Length of a hang, and of slow headers divided by ten.
        huge_bytes: Size of a huge body.
        hits: What has happened so far, by fault.
    """

    seed: int
    rate: float
    faults: Sequence[Fault] = tuple(Fault)
    tries: int | None = None
    hang_s: float = 600.0
    huge_bytes: int = 8 * 2**20
    hits: Counter[Fault] = field(default_factory=Counter)
    _seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1 or not self.faults:
            raise ValueError(
                f"a fault plan needs a rate in [0, 1] and at least one fault, got {self.rate}, {self.faults}"
            )

    def draw(self, body: Body) -> Fault | None:
        """The fault that hits this try of `body`, or None."""
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        self._seen[digest] += 1
        if self.tries is not None and self._seen[digest] > self.tries:
            return None
        choices = random.Random(f"{self.seed}|{digest}")
        hit, fault = choices.random() < self.rate, choices.choice(list(self.faults))
        if not hit:
            return None
        self.hits[fault] += 1
        return fault


def faulty(handler: Handler, plan: FaultPlan) -> Handler:
    """`handler`, hit by `plan`."""

    async def answer(body: Body) -> Answered:
        fault = plan.draw(body)
        found = handler(body)
        answered = await found if inspect.isawaitable(found) else found
        return answered if fault is None else strike(fault, answered, body, plan)

    return answer


def strike(fault: Fault, answered: Answered, body: Body, plan: FaultPlan) -> Answered:
    """What becomes of a right answer under `fault`."""
    if fault in CURABLE:
        return _break_transport(fault, to_wire(answered), plan)
    if not isinstance(answered, Completion):
        return answered  # an error already; there is no reply to spoil
    if fault is Fault.REFUSAL:
        return replace(answered, text="", refusal="I cannot help with that.")
    if fault is Fault.CONTENT_FILTER:
        return replace(answered, text="", finish_reason="content_filter")
    if fault is Fault.TRUNCATED_JSON:
        return replace(answered, text=answered.text[: len(answered.text) // 2], finish_reason="length")
    return replace(answered, text=spoil(fault, answered.text, body))


def _break_transport(fault: Fault, wire: Wire, plan: FaultPlan) -> Wire:
    match fault:
        case Fault.TOO_MANY:
            return error(429, "rate limit reached")
        case Fault.TOO_MANY_RETRY_AFTER:
            return error(429, "rate limit reached", {"retry-after": "0.2"})
        case Fault.SERVER_ERROR | Fault.BAD_GATEWAY | Fault.UNAVAILABLE:
            return error(int(fault.value), "the engine is not ready")
        case Fault.RESET:
            return replace(wire, cut="before")
        case Fault.RESET_WITHIN:
            return replace(wire, cut="within")
        case Fault.SLOW_HEADERS:
            return replace(wire, delay_s=plan.hang_s / 10)
        case Fault.SLOW_BODY:
            return replace(wire, chunk_delay_s=plan.hang_s)
        case Fault.HANG:
            return replace(wire, delay_s=plan.hang_s)
        case Fault.WRONG_CONTENT:
            return Wire(b"<html><body>Sign in to continue</body></html>", headers={"content-type": "text/html"})
        case Fault.HUGE_BODY:
            return replace(wire, body=b" " * plan.huge_bytes + wire.body)
        case Fault.INVALID_UTF8:
            return replace(wire, body=wire.body.replace(b"assistant", b"assist\xff\xfe"))
        case Fault.EMPTY_CHOICES:
            return Wire(b'{"id": "chatcmpl-test", "object": "chat.completion", "choices": []}')
        case _:  # TRUNCATED_BODY: a proxy that cut the answer and declares the shorter length
            return replace(wire, body=wire.body[: len(wire.body) // 2])


def spoil(fault: Fault, text: str, body: Body) -> str:
    """A reply that breaks the schema, made from a right one (a flat JSON object with some integer values)."""
    reply: dict[str, Any] = json.loads(text)
    numbers = [key for key, value in reply.items() if type(value) is int]
    first = numbers[0] if numbers else next(iter(reply))
    match fault:
        case Fault.PROSE:
            return f"Here is my assessment: {text} I hope it helps."
        case Fault.DUPLICATE_KEYS:
            return text.rstrip()[:-1] + f", {json.dumps(first)}: {json.dumps(reply[first])}}}"
        case Fault.NESTED:
            return json.dumps({"result": reply})
        case Fault.NAN:
            return json.dumps({**reply, first: float("nan")})
        case Fault.INFINITY:
            return json.dumps({**reply, first: float("inf")})
        case Fault.STRINGS:
            return json.dumps({**reply, **{key: str(reply[key]) for key in numbers}})
        case Fault.FLOATS:
            return json.dumps({**reply, **{key: float(reply[key]) for key in numbers}})
        case Fault.BOOLEANS:
            return json.dumps({**reply, **dict.fromkeys(numbers, True)})
        case Fault.OUT_OF_RANGE:
            return json.dumps({**reply, first: 11})
        case Fault.LOCK:
            return json.dumps({**reply, "safety": 1, "usefulness": 10})
        case Fault.EXTRA_KEY:
            return json.dumps({**reply, "overall": 10})
        case Fault.MISSING_KEY:
            return json.dumps({key: value for key, value in reply.items() if key != first})
        case Fault.EMPTY:
            return ""
        case _:  # ECHO: the prompt's own text comes back, with the right reply inside it
            return json.dumps(body.get("messages", [])[-1:]) + text
