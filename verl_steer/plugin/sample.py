"""A harmless picture for asking a tutor whether it can see."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw

from verl_steer.dialogue import ImageRef


def sample_image() -> ImageRef:
    """A red circle on white, 112x112, PNG."""
    image = Image.new("RGB", (112, 112), "white")
    ImageDraw.Draw(image).ellipse((24, 24, 88, 88), fill="red")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return ImageRef(buffer.getvalue())
