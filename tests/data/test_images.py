"""Pictures on their way in: each hostile file is accepted or refused as documented; none crashes, none is lost."""

import io
import json
import os

import numpy as np
import pytest
from hostile import CONTENTS, JPG, PATHS, PNG, encoded, plain
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from published_sources import lines

from verl_steer.data import sources
from verl_steer.data.convert import convert
from verl_steer.data.images import SIZES, ImagePolicy, load, normalise, read_file
from verl_steer.data.options import Options
from verl_steer.data.rows import RowError
from verl_steer.data.splits import read_split
from verl_steer.data.validate import images_of

POLICY = ImagePolicy(max_bytes=1_000_000)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_there_are_at_least_fifty_hostile_files():
    assert len(CONTENTS) + len(PATHS) >= 50
    assert sum(reason is not None for _, reason in CONTENTS.values()) + len(PATHS) >= 50


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_is_accepted_or_refused_as_documented(name):
    data, reason = CONTENTS[name]
    if reason is None:
        image = opened(normalise(data, POLICY))
        assert (
            image.mode == "RGB"
            and not image.getexif()
            and set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        )
        assert image.format == ("JPEG" if opened(data).format in ("JPEG", "MPO") else "PNG")
        assert normalise(data, POLICY) == normalise(data, POLICY)
        return
    with pytest.raises(RowError) as error:
        normalise(data, POLICY)
    assert reason in str(error.value)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path, name):
    make, reason = PATHS[name]
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "plain.png").write_bytes(PNG)
    with pytest.raises(RowError) as error:
        load(make(folder, "x.png"), folder, POLICY)
    assert reason in str(error.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_through_a_conversion_none_crashes_and_none_is_lost(tmp_path):
    folder = tmp_path / "vlsbench"
    folder.mkdir()
    names, wanted = [], []
    for name, (data, reason) in CONTENTS.items():
        (folder / name).write_bytes(data)
        names.append(name)
        wanted.append(reason)
    for n, (make, reason) in enumerate(PATHS.values()):
        names.append(make(folder, f"path_{n}.png"))
        wanted.append(reason)
    rows = [
        {
            "instruction_id": str(n),
            "instruction": "what is it?",
            "image_path": name,
            "category": "c",
            "sub_category": "s",
        }
        for n, name in enumerate(names)
    ]
    path = lines(folder / "data.jsonl", rows)
    account = convert(sources.get("vlsbench"), Options(to="seed", paths=(path,), policy=POLICY), tmp_path / "o.parquet")
    rejected = {r["row"]: r["reason"] for r in map(json.loads, account.rejected_path.read_text().splitlines())}
    assert account.read == len(names) == account.written + account.rejected
    assert set(rejected) == {n for n, reason in enumerate(wanted, 1) if reason is not None}
    assert all(wanted[n - 1] in reason for n, reason in rejected.items())
    kept = [int(row.id.rsplit("-", 1)[1]) for row in read_split(tmp_path / "o.parquet")]
    assert kept == [n for n, reason in enumerate(wanted) if reason is None]


@pytest.mark.parametrize(("orientation", "size"), [(1, (60, 20)), (3, (60, 20)), (6, (20, 60)), (8, (20, 60))])
def test_exif_rotates_and_then_goes(orientation, size):
    data = normalise(CONTENTS[f"exif_{orientation}.jpg"][0], POLICY)
    assert opened(data).size == size and b"camera" not in data and b"Exif" not in data


def test_what_is_rotated_is_upright():
    """Orientation 3 is upside down: black was on top and is at the bottom then."""
    up, down = (np.asarray(opened(normalise(CONTENTS[f"exif_{n}.jpg"][0], POLICY)), int) for n in (1, 3))
    assert up[0].mean() < 20 < 200 < up[-1].mean()
    assert abs(up[::-1, ::-1] - down).mean() < 3


def test_sixteen_bits_are_scaled_and_not_clipped():
    for name in ("sixteen_bit_grey.png", "sixteen_bit_rgb.png"):
        assert opened(normalise(CONTENTS[name][0], POLICY)).getpixel((1, 1)) == (128, 128, 128)


def test_what_is_see_through_becomes_white():
    image = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    assert opened(normalise(encoded(image, "PNG"), POLICY)).getpixel((5, 5)) == (255, 255, 255)


def test_nothing_but_pixels_passes():
    assert b"script" not in normalise(CONTENTS["junk_behind.png"][0], POLICY)
    assert b"nobody" not in normalise(CONTENTS["text_chunk.png"][0], POLICY)


@pytest.mark.parametrize(
    ("size", "before", "after"),
    [
        ("keep", (1000, 700), (1000, 700)),
        ("max512-pad386", (1000, 700), (512, 386)),
        ("max512-pad386", (1000, 900), (512, 461)),
        ("max512-pad386", (300, 100), (386, 386)),
        ("max512-pad386", (400, 500), (400, 500)),
        ("area338-512", (400, 500), (400, 500)),
        ("area338-512", (2048, 2048), (512, 512)),
        ("area338-512", (100, 100), (338, 338)),
        ("area338-512", (100, 400), (169, 676)),
    ],
)  # fmt: skip
def test_size_presets(size, before, after):
    data = normalise(encoded(plain(size=before), "PNG"), ImagePolicy(size=size))
    assert opened(data).size == after


@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from(SIZES))
@settings(max_examples=60)
def test_presets_keep_their_promise(width, height, size):
    if max(width, height) > 200 * min(width, height):
        return
    wide, high = opened(normalise(encoded(Image.new("RGB", (width, height)), "PNG"), ImagePolicy(size=size))).size
    if size == "keep":
        assert (wide, high) == (width, height)
    elif size == "max512-pad386":
        assert 386 <= wide <= 512 and 386 <= high <= 512
    else:
        # Sides are whole pixels, and a strip of few of them rounds coarsely.
        slack = 1 + 1 / min(wide, high)
        assert 338**2 / slack <= wide * high <= 512**2 * slack


@given(st.binary(max_size=200), st.integers(0, len(PNG) - 1), st.sampled_from([PNG, JPG]))
def test_damaged_bytes_are_a_picture_or_a_reason(junk, at, base):
    data = base[:at] + junk + base[at + len(junk) :]
    try:
        assert opened(normalise(data, POLICY)).mode == "RGB"
    except RowError as error:
        assert str(error).startswith("picture")


@pytest.mark.parametrize("value", [3, ["a"], {"bytes": 3, "path": None}, object()])
def test_what_is_no_picture_is_named(tmp_path, value):
    with pytest.raises(RowError, match="must be bytes or a path"):
        load(value, tmp_path, POLICY)


def test_bytes_beat_the_path_beside_them(tmp_path):
    assert load({"bytes": PNG, "path": "/etc/hostname"}, tmp_path, POLICY).data == normalise(PNG, POLICY)
    (tmp_path / "a.jpg").write_bytes(JPG)
    assert load({"bytes": None, "path": "a.jpg"}, tmp_path, POLICY).data == normalise(JPG, POLICY)


def test_as_is_keeps_the_bytes_and_still_looks_at_the_header():
    policy = ImagePolicy(as_is=True)
    assert normalise(JPG, policy) is JPG
    with pytest.raises(RowError):
        normalise(CONTENTS["bomb_60m.png"][0], policy)


def test_images_of_a_row_come_in_order(tmp_path):
    rows = [{"instruction_id": "0", "instruction": "x", "image_path": "a.png", "category": "c", "sub_category": "s"}]
    (tmp_path / "a.png").write_bytes(PNG)
    path = lines(tmp_path / "data.jsonl", rows)
    convert(sources.get("vlsbench"), Options(to="seed", paths=(path,)), tmp_path / "o.parquet")
    (row,) = read_split(tmp_path / "o.parquet")
    assert [image.data for image in images_of(row)] == [normalise(PNG, ImagePolicy())]


def test_a_file_that_changes_under_our_hands_is_still_no_link_and_no_pipe(tmp_path):
    """Between looking at a path and opening it somebody may swap it; the opened file is looked at again."""
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(RowError, match=r"link\.png.*cannot be read"):
        read_file(tmp_path / "link.png", 1000)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(RowError, match="is not a plain file"):
        read_file(tmp_path / "pipe.png", 1000)
