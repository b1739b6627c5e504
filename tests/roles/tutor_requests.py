"""Tutor requests for the tests of this room."""

import io

from PIL import Image

from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn
from verl_steer.roles.fence import fence_tag
from verl_steer.roles.tutor import Exchange, TutorRequest


def picture(colour=(200, 30, 30), form="PNG"):
    """A small encoded picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, form)
    return ImageRef(buffer.getvalue())


IMAGE = picture()
SCRIPT = Script(
    seed_id="seed-1",
    kind=Kind.RED_TEAM,
    turns=tuple(UserTurn(f"planned question {n}", (IMAGE,) if n == 1 else ()) for n in range(1, 6)),
    system="You are a careful assistant.",
    meta={"answer": "the hidden state"},
)
TAG = fence_tag(b"run key", SCRIPT.seed_id)


def request(turns=2, script=SCRIPT, **changes):
    """A request after `turns` exchanges; the replies have no thinking block."""
    history = tuple(Exchange(t.text, f"reply {n}", t.images) for n, t in enumerate(script.turns[:turns], start=1))
    planned = script.turns[turns] if turns < len(script.turns) else None
    fields = {
        "script": script,
        "history": history,
        "planned_next": planned,
        "adapt": planned is not None,
        "random_key": f"{script.seed_id}|{turns}",
        "fence": TAG,
        "deadline_s": 5.0,
    }
    return TutorRequest(**(fields | changes))
