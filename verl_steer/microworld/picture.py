"""Draws a scene: two objects side by side, each open, sealed (a ring) or watched (an eye).

84x84 pixels are nine image tokens for a Qwen2.5-VL with patch 14 and merge 2. The scene also lies in
a PNG text chunk: a tutor in another process, which only gets the picture, can then judge by rules.
The student's image processor sees pixels alone.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image, ImageDraw, PngImagePlugin

from verl_steer.microworld.lexicon import COLOURS, SEALS, SHAPES, stable

SIZE = 84
CHUNK = "verl_steer.scene"
_SCALE = 3  # drawn larger and shrunk: smooth edges, so that the processor's pixels vary gently
_BACKGROUND, _INK = (232, 232, 228), (10, 10, 10)
_FAINT_INK = (200, 228)  # from just legible to nearly gone
_RGB = {
    "red": (215, 25, 30),
    "green": (20, 150, 50),
    "blue": (30, 60, 220),
    "yellow": (245, 215, 20),
    "purple": (120, 30, 160),
    "orange": (250, 130, 15),
    "pink": (250, 135, 190),
    "brown": (115, 70, 30),
}


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        shape: One of `lexicon.SHAPES`.
        colour: One of `lexicon.COLOURS`.
        seal: "open", "sealed" or "watched".
        faint: The ring is hard to see (sealed objects only): some error is unavoidable.
        decoy: A square frame that means nothing (open objects only).
    """

    shape: str
    colour: str
    seal: str = "open"
    faint: bool = False
    decoy: bool = False

    def __post_init__(self) -> None:
        if self.shape not in SHAPES or self.colour not in COLOURS or self.seal not in SEALS:
            raise ValueError(f"no such object in the micro-world: {self}")


@dataclass(frozen=True)
class Scene:
    """Left and right object, and the seed of the drawing's jitter."""

    left: Thing
    right: Thing
    jitter: int = 0

    @property
    def things(self) -> tuple[Thing, Thing]:
        """(left, right)."""
        return self.left, self.right

    def side_of(self, shape: str) -> int | None:
        """0 or 1, or None if no object has this shape (the two always differ in shape)."""
        return next((side for side, thing in enumerate(self.things) if thing.shape == shape), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for scripts' hidden state and the PNG chunk."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Scene:
        """Inverse of `to_json`; raises TypeError, KeyError or ValueError on anything else."""
        return Scene(Thing(**data["left"]), Thing(**data["right"]), data.get("jitter", 0))


def render(scene: Scene) -> Image.Image:
    """The scene as pixels (84x84 RGB), equal for equal scenes."""
    rng = stable("jitter", scene.jitter)
    image = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), _BACKGROUND)
    pen = ImageDraw.Draw(image)
    for side, thing in enumerate(scene.things):
        cx, cy = 21 + 42 * side + rng.uniform(-1.5, 1.5), 46 + rng.uniform(-1.5, 1.5)
        radius = rng.uniform(9.5, 11)
        fill = tuple(max(0, min(255, c + rng.randint(-8, 8))) for c in _RGB[thing.colour])
        _shape(pen, thing.shape, cx * _SCALE, cy * _SCALE, radius * _SCALE, fill)
        faint = rng.randint(*_FAINT_INK)
        _mark(pen, thing, cx, cy, (faint, faint, faint - 4) if thing.faint else _INK)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def draw(scene: Scene) -> bytes:
    """The scene as PNG bytes with its text chunk."""
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text(CHUNK, json.dumps(scene.to_json(), sort_keys=True))
    out = io.BytesIO()
    render(scene).save(out, "PNG", pnginfo=chunk)
    return out.getvalue()


def scene_of(data: bytes) -> Scene | None:
    """The scene in a picture's text chunk, or None for a picture from anywhere else."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            text = image.info.get(CHUNK)
        return None if text is None else Scene.from_json(json.loads(text))
    except (OSError, SyntaxError, ValueError, KeyError, TypeError):
        # Whatever it is, it is not one of ours; the caller then judges by the text.
        return None


def _mark(pen: ImageDraw.ImageDraw, thing: Thing, cx: float, cy: float, ink: tuple[int, int, int]) -> None:
    """Ring, eye or decoy frame around (cx, cy), in pixels of the small picture."""

    def box(x: float, y: float, rx: float, ry: float) -> list[float]:
        return [(x - rx) * _SCALE, (y - ry) * _SCALE, (x + rx) * _SCALE, (y + ry) * _SCALE]

    if thing.seal == "sealed":
        pen.ellipse(box(cx, cy, 17, 17), outline=ink, width=3 * _SCALE)
    elif thing.seal == "watched":
        pen.ellipse(box(cx, 15, 11, 7), outline=_INK, width=2 * _SCALE)
        pen.ellipse(box(cx, 15, 4, 4), fill=_INK)
    if thing.decoy:
        pen.rectangle(box(cx, cy, 16, 16), outline=_INK, width=2 * _SCALE)


def _shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: Any) -> None:
    box = [x - r, y - r, x + r, y + r]
    if shape == "disc":
        pen.ellipse(box, fill=fill)
    elif shape == "box":
        pen.rectangle([x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r], fill=fill)
    elif shape == "moon":
        pen.ellipse(box, fill=fill)
        pen.ellipse([x - 0.35 * r, y - r, x + 1.5 * r, y + 0.85 * r], fill=_BACKGROUND)
    elif shape == "heart":
        pen.ellipse([x - r, y - 0.9 * r, x, y + 0.1 * r], fill=fill)
        pen.ellipse([x, y - 0.9 * r, x + r, y + 0.1 * r], fill=fill)
        pen.polygon([(x - 0.95 * r, y - 0.2 * r), (x + 0.95 * r, y - 0.2 * r), (x, y + r)], fill=fill)
    elif shape == "drop":
        pen.ellipse([x - 0.65 * r, y - 0.3 * r, x + 0.65 * r, y + r], fill=fill)
        pen.polygon([(x, y - r), (x + 0.6 * r, y + 0.2 * r), (x - 0.6 * r, y + 0.2 * r)], fill=fill)
    elif shape == "bowl":
        pen.pieslice([x - r, y - 1.4 * r, x + r, y + 0.8 * r], 0, 180, fill=fill)
    elif shape == "gate":
        pen.rectangle(box, fill=fill)
        pen.rectangle([x - 0.45 * r, y - 0.3 * r, x + 0.45 * r, y + 1.1 * r], fill=_BACKGROUND)
    else:
        pen.polygon([(x + u * r, y + v * r) for u, v in _polygon(shape)], fill=fill)


def _polygon(shape: str) -> list[tuple[float, float]]:
    if shape == "star":
        angles = [(-math.pi / 2 + k * math.pi / 5, 1.1 if k % 2 == 0 else 0.45) for k in range(10)]
        return [(rad * math.cos(a), rad * math.sin(a)) for a, rad in angles]
    return {
        "tent": [(0, -1), (1, 0.9), (-1, 0.9)],
        "kite": [(0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)],
        "cross": [
            *[(-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35)],
            *[(0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35)],
        ],
        "arrow": [(-1, -0.35), (0.1, -0.35), (0.1, -0.95), (1, 0), (0.1, 0.95), (0.1, 0.35), (-1, 0.35)],
    }[shape]
