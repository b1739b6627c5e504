"""Hostile and odd picture files, each with what must become of it: None (accepted) or words of the reason."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image, PngImagePlugin

Make = Callable[[Path, str], str]  # (image folder, name) -> the path that the row names


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def plain(mode: str = "RGB", size: tuple[int, int] = (48, 40)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2, body: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than its few bytes."""
    return png_header(width, height, body=chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))


def gif_header(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0"
        + struct.pack("<HH", width, height)
        + b"\0\x02\x02D\x01\0;"
    )


def bmp_header(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def jpeg_size(width: int, height: int) -> bytes:
    """A JPEG whose frame header was changed."""
    data = bytearray(encoded(plain(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def frames(form: str) -> bytes:
    pages = [Image.new("RGB", (20, 20), c) for c in ("red", "green", "blue")]
    return encoded(pages[0], form, save_all=True, append_images=pages[1:], duration=50)


def with_exif(orientation: int) -> bytes:
    image = plain(size=(60, 20))
    exif = image.getexif()
    exif[0x0112], exif[0x010F] = orientation, "a camera with a name"
    exif.get_ifd(0x8825)[1] = "N"
    return encoded(image, "JPEG", exif=exif)


def text_bomb() -> bytes:
    """A compressed text chunk that would unfold to 64 MB."""
    packed = zlib.compress(b"a" * (64 * 2**20))
    return png_header(
        4, 4, body=chunk(b"zTXt", b"k\0\0" + packed) + chunk(b"IDAT", zlib.compress(b"\0" * 52)) + chunk(b"IEND", b"")
    )


def icc_junk() -> bytes:
    return encoded(plain(), "PNG", icc_profile=b"not a profile" * 100)


def text_chunk() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "written by nobody")
    return encoded(plain(), "PNG", pnginfo=info)


def sixteen_bit_rgb() -> bytes:
    rows = b"".join(b"\0" + b"\x80\x00" * 3 * 4 for _ in range(4))
    return png_header(4, 4, 16, 2, chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def sixteen_bit_grey() -> bytes:
    image = Image.new("I;16", (30, 30), 0x8000)
    return encoded(image, "PNG")


PNG, JPG = encoded(plain(), "PNG"), encoded(plain(), "JPEG", quality=90)

#: Contents: name -> (bytes, None or words of the reason).
CONTENTS: dict[str, tuple[bytes, str | None]] = {
    "plain.png": (PNG, None),
    "plain.jpg": (JPG, None),
    "plain.webp": (encoded(plain(), "WEBP"), None),
    "plain.gif": (encoded(plain("P"), "GIF"), None),
    "plain.bmp": (encoded(plain(), "BMP"), None),
    "png_called.jpg": (PNG, None),
    "jpg_called.png": (JPG, None),
    "no_ending": (PNG, None),
    "one_pixel.png": (encoded(plain(size=(1, 1)), "PNG"), None),
    "grey.png": (encoded(plain("L"), "PNG"), None),
    "grey_alpha.png": (encoded(plain("L").convert("LA"), "PNG"), None),
    "one_bit.png": (encoded(plain("1"), "PNG"), None),
    "palette.png": (encoded(plain("P"), "PNG"), None),
    "palette_see_through.png": (encoded(plain("P"), "PNG", transparency=0), None),
    "rgba.png": (encoded(plain("RGBA"), "PNG"), None),
    "rgb_trns.png": (encoded(plain(), "PNG", transparency=(0, 0, 0)), None),
    "sixteen_bit_grey.png": (sixteen_bit_grey(), None),
    "sixteen_bit_rgb.png": (sixteen_bit_rgb(), None),
    "cmyk.jpg": (encoded(plain("CMYK"), "JPEG"), None),
    "progressive.jpg": (encoded(plain(), "JPEG", progressive=True), None),
    **{f"exif_{n}.jpg": (with_exif(n), None) for n in (1, 3, 6, 8)},
    "icc_junk.png": (icc_junk(), None),
    "text_chunk.png": (text_chunk(), None),
    "junk_behind.png": (PNG + b"<script>alert(1)</script>" * 100, None),
    "junk_behind.jpg": (JPG + b"PK\x03\x04 a zip" * 100, None),
    "mpo.jpg": (encoded(plain(), "MPO", save_all=True, append_images=[plain()]), None),
    "empty.png": (b"", "empty"),
    "one_byte.png": (b"\x89", "none of"),
    "zeros.png": (b"\0" * 4096, "none of"),
    "html.png": (b"<!doctype html><p>404", "none of"),
    "svg.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/hostname'/></svg>", "none of"),
    "svg_called.png": (b"<?xml version='1.0'?><svg/>", "none of"),
    "pdf.png": (b"%PDF-1.7\n", "none of"),
    "zip.png": (b"PK\x03\x04" + b"\0" * 100, "none of"),
    "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "none of"),
    "tiff.tif": (encoded(plain(), "TIFF"), "none of"),
    "ico.ico": (encoded(plain(size=(32, 32)), "ICO"), "none of"),
    "ppm.ppm": (encoded(plain(), "PPM"), "none of"),
    "psd_head.png": (b"8BPS\0\x01" + b"\0" * 30, "none of"),
    "bomb_1e9.png": (bomb(40000, 25000), "pixels"),
    "bomb_60m.png": (bomb(10000, 6000), "at most 50000000 are decoded"),
    "bomb_4e18.png": (bomb(2**31 - 1, 2**31 - 1), "pixels"),
    "bomb.gif": (gif_header(65535, 65535), "pixels"),
    "bomb.bmp": (bmp_header(60000, 60000), "pixels"),
    "bomb.jpg": (jpeg_size(65000, 65000), "pixels"),
    "long_strip.png": (encoded(Image.new("RGB", (4000, 2)), "PNG"), "longer than 200:1"),
    "no_width.png": (bomb(0, 10), ""),
    "text_bomb.png": (text_bomb(), ""),
    "cut_header.png": (PNG[:20], ""),
    "cut_half.png": (PNG[: len(PNG) // 2], "damaged"),
    "cut_half.jpg": (JPG[: len(JPG) // 2], "damaged"),
    "cut_half.webp": (encoded(plain(), "WEBP")[:60], ""),
    "bad_checksum.png": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "damaged"),
    "animated.gif": (frames("GIF"), "animation"),
    "animated.png": (frames("PNG"), "animation"),
    "animated.webp": (frames("WEBP"), "animation"),
    "too_large.png": (PNG + b"\0" * (2**20), "at most 1000000 are read"),
}


def _link(target: str) -> Make:
    def make(folder: Path, name: str) -> str:
        (folder / name).symlink_to(target if target.startswith("/") else folder / target)
        return name

    return make


def _linked_folder(folder: Path, name: str) -> str:
    outside = folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "a.png").write_bytes(PNG)
    (folder / "way").symlink_to(outside)
    return "way/a.png"


def _pipe(folder: Path, name: str) -> str:
    os.mkfifo(folder / name)
    return name


def _folder(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return name


def _escape(folder: Path, name: str) -> str:
    (folder.parent / "secret.png").write_bytes(PNG)
    return "../secret.png"


def _absolute(folder: Path, name: str) -> str:
    (folder.parent / "secret.png").write_bytes(PNG)
    return str(folder.parent / "secret.png")


def _says(path: str) -> Make:
    return lambda folder, name: path


#: Paths: name -> (what makes it and names it, words of the reason).
PATHS: dict[str, tuple[Make, str]] = {
    "link to a picture": (_link("plain.png"), "link"),
    "link out": (_link("/etc/hostname"), "link"),
    "broken link": (_link("/nowhere/at/all"), "link"),
    "link to a folder": (_linked_folder, "link"),
    "escape": (_escape, "'..'"),
    "escape inside": (_says("a/../../secret.png"), "'..'"),
    "absolute": (_absolute, "relative"),
    "home": (_says("~/a.png"), "not a file"),
    "http": (_says("http://localhost/a.png"), "scheme"),
    "https": (_says("https://localhost/a.png"), "scheme"),
    "HTTP": (_says("HTTP://localhost/a.png"), "scheme"),
    "file": (_says("file:///etc/hostname"), "scheme"),
    "file without slashes": (_says("file:plain.png"), "scheme"),
    "data": (_says("data:image/png;base64,iVBORw0KGgo="), "scheme"),
    "ftp": (_says("ftp://localhost/a.png"), "scheme"),
    "s3": (_says("s3://bucket/a.png"), "scheme"),
    "no scheme, two slashes": (_says("//localhost/a.png"), "scheme"),
    "drive": (_says("C:\\a.png"), "scheme"),
    "backslash": (_says("..\\a.png"), "forward slashes"),
    "nul": (_says("a\0.png"), "NUL"),
    "missing": (_says("nowhere.png"), "not a file"),
    "very long": (_says("a" * 5000), "not a file"),
    "pipe": (_pipe, "not a file"),
    "folder": (_folder, "not a file"),
}
