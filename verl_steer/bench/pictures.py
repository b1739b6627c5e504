"""The pictures of a run folder: the bytes that were shown, each once, named by their SHA-256."""

from __future__ import annotations

from pathlib import Path

from verl_steer.bench.files import Played
from verl_steer.bench.lines import BenchError, whole
from verl_steer.dialogue import ImageRef
from verl_steer.roles.layout import media_type

IMAGES = "images"
_EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp"}


def put_image(folder: Path, image: ImageRef) -> str:
    """Stores a picture once; returns its SHA-256.

    Raises:
        ValueError: It is not PNG, JPEG, WebP or GIF.
    """
    path = folder / IMAGES / f"{image.sha256}.{_EXTENSIONS[media_type(image.data)]}"
    if not path.is_file():
        whole(path, image.data)
    return image.sha256


def image_path(folder: Path, sha256: str) -> Path:
    """Where a picture lies.

    Raises:
        BenchError: It is not there.
    """
    for extension in _EXTENSIONS.values():
        if (path := folder / IMAGES / f"{sha256}.{extension}").is_file():
            return path
    raise BenchError(f"{folder / IMAGES} lacks the picture {sha256}; run `bench run` again, it writes what is missing")


def images_of(folder: Path, played: Played) -> list[tuple[ImageRef, ...]]:
    """The pictures of every planned turn.

    Raises:
        BenchError: One is missing, or holds other bytes than its name says.
    """
    return [tuple(_image(folder, sha256) for sha256 in shown) for shown in played.images]


def _image(folder: Path, sha256: str) -> ImageRef:
    image = ImageRef(image_path(folder, sha256).read_bytes())
    if image.sha256 != sha256:
        raise BenchError(f"{image_path(folder, sha256)} has other bytes than its name says; remove it and run again")
    return image
