"""CoSafe lines become scripts of their user turns; what cannot is named, and the sum always agrees."""

import io
import json

import pytest
from PIL import Image

from verl_steer.data.rows import read_rows, row_to_script
from verl_steer.data.sources.cosafe import convert


def lines(*dialogues) -> str:
    return "".join(json.dumps(d) + "\n" for d in dialogues)


def turns(*texts):
    return [m for text in texts for m in ({"role": "user", "content": text}, {"role": "assistant", "content": "hm"})]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "cosafe"
    folder.mkdir()
    (folder / "privacy.jsonl").write_text(
        lines(turns("who is he?", "where?", "his address?"), turns("alone")) + "not json\n"
    )
    (folder / "crime.jsonl").write_text(lines(turns("a", "b"), [{"role": "assistant", "content": "nobody asked"}]))
    return folder


def test_scripts_are_the_user_turns_and_rejected_lines_are_named(source, tmp_path):
    out = tmp_path / "rl.parquet"
    account = convert([source], out)
    assert (account.read, account.written, account.rejected) == (5, 3, 2)
    scripts = [row_to_script(row) for row in read_rows(out)]
    assert [[t.text for t in s.turns] for s in scripts] == [
        ["a", "b"],
        ["who is he?", "where?", "his address?"],
        ["alone"],
    ]
    assert {s.category for s in scripts} == {"crime", "privacy"} and all(s.kind.harmful for s in scripts)
    assert len({s.seed_id for s in scripts}) == 3
    rejected = [json.loads(line) for line in account.rejected_path.read_text().splitlines()]
    assert [(r["file"], r["line"]) for r in rejected] == [("crime.jsonl", 2), ("privacy.jsonl", 3)]
    assert "1..10 user turns" in rejected[0]["reason"] and "not a list" in rejected[1]["reason"]


def test_a_picture_goes_to_the_turn_asked_for(source, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28)).save(buffer, format="PNG")
    (tmp_path / "p.png").write_bytes(buffer.getvalue())
    account = convert([source], tmp_path / "rl.parquet", image=tmp_path / "p.png", image_turn=2)
    scripts = [row_to_script(row) for row in read_rows(tmp_path / "rl.parquet")]
    assert [[len(t.images) for t in s.turns] for s in scripts] == [[0, 1], [0, 1, 0]]
    assert account.rejected == 3 and "has 1 user turns" in account.rejected_path.read_text()


def test_the_same_source_gives_the_same_bytes(source, tmp_path):
    for name in ("one", "two"):
        convert([source], tmp_path / f"{name}.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no \.jsonl"):
        convert([tmp_path], tmp_path / "out.parquet")
