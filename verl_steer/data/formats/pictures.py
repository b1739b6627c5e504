"""Pictures beside a text file: `images/SHA256.ENDING`, each content once."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from verl_steer.data.check import FORMATS
from verl_steer.data.rows import RowError
from verl_steer.dialogue import ImageRef
from verl_steer.whole import replacing

_ENDINGS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}


class PictureFolder:
    """`images/` in the folder of an exported file."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent

    def put(self, image: ImageRef) -> str:
        """Writes the picture if it is not there yet; returns its path relative to the exported file.

        Raises:
            RowError: The bytes are no picture.
        """
        try:
            with Image.open(io.BytesIO(image.data), formats=FORMATS) as opened:
                ending = _ENDINGS[str(opened.format)]
        except (OSError, ValueError) as error:
            raise RowError(f"picture {image.sha256[:12]} cannot be written: {error}") from error
        name = f"images/{image.sha256}.{ending}"
        path = self._parent / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(image.data)
        return name
