"""Pictures on their way in: limits first, decoding second, one plain form out.

The order matters: a file's size is known before it is read, its header before its pixels. Whatever comes
out is RGB, upright, free of metadata (EXIF may hold a place or a name) and encoded anew, so that the same
input gives the same bytes and nothing but pixels passes. The content decides, never the file's name.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from verl_steer.data.check import FORMATS
from verl_steer.data.rows import MissingPicture, RowError
from verl_steer.dialogue import ImageRef

SIZES = ("keep", "max512-pad386", "area338-512")
MAX_RATIO = 200  # qwen_vl_utils refuses longer strips
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True)
class ImagePolicy:
    """What a picture may be, and what becomes of it.

    Attributes:
        max_bytes: Of the encoded file.
        max_pixels: Width times height, read from the header.
        size: "keep"; "max512-pad386": longest side at most 512, then black borders up to 386 on a shorter
            side; "area338-512": area scaled into 338²..512² pixels.
        as_is: Checks the header only and keeps the bytes (files that this package wrote).
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    size: str = "keep"
    as_is: bool = False


def find_file(name: str, root: Path) -> Path:
    """The picture file that a row names, inside `root` and nowhere else.

    Raises:
        MissingPicture: No plain file.
        RowError: A URL or any other scheme, an absolute path, `..`, a link on the way.
    """
    shown = name if len(name) <= 120 else f"{name[:120]}..."
    if not name or "\0" in name:
        raise RowError(f"picture path {shown!r} is empty or holds a NUL")
    if _SCHEME.match(name) or name.startswith("//"):
        raise RowError(f"picture path {shown!r} has a scheme; only files under the image folder are read")
    if name.startswith("/") or "\\" in name:
        raise RowError(f"picture path {shown!r} must be relative, with forward slashes")
    parts = Path(name).parts
    if ".." in parts:
        raise RowError(f"picture path {shown!r} leaves its folder with '..'")
    path = root
    try:
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise RowError(
                    f"picture path {shown!r} goes through a link ({part}); links are not followed; "
                    "the hub's cache is made of them, `hf download … --local-dir DIR` gives plain files"
                )
        plain = path.is_file()
    except OSError:  # a name that no file system takes
        plain = False
    if not plain:
        raise MissingPicture(f"picture {shown!r} is not a file under {root.name or root}; see --images")
    return path


def read_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a picture file; its size is asked first.

    Raises:
        RowError: Too large, a link, or not readable.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise RowError(f"picture {path.name!r} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RowError(f"picture {path.name!r} is not a plain file")
        if status.st_size > max_bytes:
            raise RowError(f"picture {path.name!r} has {status.st_size} bytes, at most {max_bytes} are read")
        return file.read(max_bytes + 1)


def load(value: Any, root: Path, policy: ImagePolicy) -> ImageRef:
    """A picture as a source holds it: bytes, {bytes, path} of `datasets`, or a path under `root`.

    Raises:
        RowError: It is none of these, or breaks a rule.
    """
    data = value
    if isinstance(value, Mapping):
        data = value.get("bytes") or value.get("path")
    if isinstance(data, str):
        data = read_file(find_file(data, root), policy.max_bytes)
    if not isinstance(data, bytes):
        raise RowError(f"a picture must be bytes or a path, found {type(value).__name__}")
    return ImageRef(normalise(data, policy))


def normalise(data: bytes, policy: ImagePolicy) -> bytes:
    """One picture in its plain form: JPEG for JPEG, PNG for everything else.

    Raises:
        RowError: Not a still picture of an allowed format, over a limit, or damaged.
    """
    if not data:
        raise RowError("picture is empty")
    if len(data) > policy.max_bytes:
        raise RowError(f"picture has {len(data)} bytes, at most {policy.max_bytes} are read")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, policy)
            if policy.as_is:
                return data
            return _encode(_resize(_upright_rgb(image), policy.size), "JPEG" if image.format in _JPEG else "PNG")
    except UnidentifiedImageError as error:
        raise RowError(f"picture is none of {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RowError(f"picture has more than {policy.max_pixels} pixels by its header") from error
    # Pillow's decoders raise many kinds on damaged data: SyntaxError, struct.error, EOFError, ZeroDivisionError.
    except Exception as error:
        if isinstance(error, (RowError, MemoryError)):
            raise
        raise RowError(f"picture is damaged: {type(error).__name__}: {error}") from error


_JPEG = ("JPEG", "MPO")  # MPO: a JPEG of a phone or camera with a preview behind it; the first picture counts


def _check_header(image: Image.Image, policy: ImagePolicy) -> None:
    width, height = image.size
    if width * height > policy.max_pixels:
        raise RowError(f"picture has {width} x {height} pixels by its header, at most {policy.max_pixels} are decoded")
    if width < 1 or height < 1:
        raise RowError(f"picture has {width} x {height} pixels")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise RowError(f"picture of {width} x {height} is longer than {MAX_RATIO}:1")
    if getattr(image, "is_animated", False) and image.format not in _JPEG:
        raise RowError("picture is an animation; export the frame that is meant")


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16 bits a sample: Pillow would clip at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    return image.convert("RGB")


def _resize(image: Image.Image, size: str) -> Image.Image:
    width, height = image.size
    if size == "max512-pad386":
        scale = min(1.0, 512 / max(width, height))
        image = _scaled(image, scale)
        padded = Image.new("RGB", (max(386, image.width), max(386, image.height)))
        padded.paste(image, ((padded.width - image.width) // 2, (padded.height - image.height) // 2))
        return padded
    if size == "area338-512":
        area = width * height
        return _scaled(image, math.sqrt(min(max(area, 338**2), 512**2) / area))
    return image


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    if scale == 1.0:
        return image
    wide, high = (max(1, round(side * scale)) for side in image.size)
    return image.resize((wide, high), Image.Resampling.BICUBIC)


def _encode(image: Image.Image, form: str) -> bytes:
    # A fresh image: `info` (EXIF, ICC, text chunks) stays behind.
    plain = Image.frombytes("RGB", image.size, image.tobytes())
    buffer = io.BytesIO()
    if form == "JPEG":
        plain.save(buffer, format="JPEG", quality=95, subsampling=0)
    else:
        plain.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
