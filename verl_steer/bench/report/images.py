"""Pictures of a page: small, once by hash, within a budget.

A picture of at most 24 KiB stands in the page as it is; a larger one as a thumbnail that leads to the file it was made of,
and one beyond the budget as that file alone. Everything is a data URI or a relative address: nothing is ever fetched from a network.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

Shown = tuple[str, str]  # what the page shows, and the address of the file

BUDGET = 20 * 2**20  # bytes of all pictures in a page, before base64
AS_IS = 24 * 1024
SIDE = 224  # pixels of a thumbnail's longer side; a JPEG of twice that is decoded at half its size, four times as fast
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp"}


def embed(used: Iterable[str], files: Mapping[str, Path], out: Path, budget: int = BUDGET) -> dict[str, Shown | None]:
    """What the page shows for each picture, in the order of their first use.

    Args:
        used: SHA-256 of the pictures.
        files: Where they lie; others are not shown.
        out: Folder of the page.
        budget: Bytes in the page itself.
    """
    shown: dict[str, Shown | None] = dict.fromkeys(used)
    known = [sha256 for sha256 in shown if sha256 in files]
    spent = 0
    with ThreadPoolExecutor(max_workers=2) as pool:
        for start in range(0, len(known), 64):  # in portions: no picture is made small in vain once the budget is spent
            part = known[start : start + 64]
            inside = spent < budget
            made = pool.map(_picture, [files[s] for s in part]) if inside else iter([None] * len(part))
            for sha256, picture in zip(part, made, strict=True):
                address = source = quote(os.path.relpath(files[sha256], out).replace(os.sep, "/"))
                if picture and spent + len(picture[1]) <= budget:
                    spent += len(picture[1])
                    source = f"data:{picture[0]};base64,{base64.b64encode(picture[1]).decode()}"
                shown[sha256] = source, address
    return shown


def _picture(path: Path) -> tuple[str, bytes] | None:
    """Type and bytes of what stands in the page; None for a file that is no picture, or a damaged one."""
    data = path.read_bytes()
    if len(data) <= AS_IS and path.suffix in TYPES:
        return TYPES[path.suffix], data
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (SIDE, SIDE))  # a JPEG is decoded at a fraction of its size
            small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        small.save(buffer := io.BytesIO(), "JPEG", quality=60)
    except MemoryError:
        raise
    # Pillow's decoders raise many kinds on damaged data: SyntaxError, struct.error, EOFError, ZeroDivisionError.
    except Exception:
        return None
    return "image/jpeg", buffer.getvalue()
