"""Visual perturbation of a share of the red team's pictures: noise, or a short text in a colour that stands out.

Paper, appendix F: 10 % of the images; Gaussian noise of sigma 0.03 on values in [0, 1], or a trigger text in a
high-contrast colour at a random place. The choice and every pixel of it are keyed, so a rerun draws the same.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from verl_steer.data.images import ImagePolicy, normalise
from verl_steer.dialogue import ImageRef
from verl_steer.synthesis.chance import chance
from verl_steer.synthesis.config import PerturbConfig


def perturb(image: ImageRef, config: PerturbConfig, seed: int, row: str) -> tuple[ImageRef, str]:
    """Perhaps another picture.

    Args:
        image: As it came.
        config: Share, sigma, texts.
        seed: Of the build.
        row: Id of the seed.

    Returns:
        The picture to use and what was done: "", "noise" or "trigger".

    Raises:
        RowError: The picture cannot be decoded.
    """
    luck = chance(seed, row, "perturb")
    if luck.random() >= config.share:
        return image, ""
    plain = Image.open(io.BytesIO(normalise(image.data, ImagePolicy()))).convert("RGB")
    if luck.random() < 0.5:
        return _encoded(_noisy(plain, config.sigma, luck.getrandbits(64))), "noise"
    text = luck.choice(config.triggers)
    return _encoded(_lettered(plain, text, luck.random(), luck.random())), "trigger"


def _noisy(image: Image.Image, sigma: float, seed: int) -> Image.Image:
    values = np.asarray(image, dtype=np.float64) / 255
    noisy = values + np.random.default_rng(seed).normal(0.0, sigma, values.shape)
    return Image.fromarray((noisy.clip(0, 1) * 255).round().astype(np.uint8))


def _lettered(image: Image.Image, text: str, across: float, down: float) -> Image.Image:
    """The text in black or white, whichever is farther from what lies under it."""
    font = ImageFont.load_default(size=max(8, min(image.size) // 10))
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = (round(edge) for edge in pen.textbbox((0, 0), text, font=font))
    x = round(max(0, image.width - (right - left)) * across)
    y = round(max(0, image.height - (bottom - top)) * down)
    under = image.crop((x, y, min(image.width, x + right - left), min(image.height, y + bottom - top)))
    dark = np.asarray(under.convert("L")).mean() < 128
    pen.text((x - left, y - top), text, font=font, fill="white" if dark else "black")
    return image


def _encoded(image: Image.Image) -> ImageRef:
    # PNG: a JPEG would smooth the noise away.
    out = io.BytesIO()
    image.save(out, "PNG")
    return ImageRef(out.getvalue())
