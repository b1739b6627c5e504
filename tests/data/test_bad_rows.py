"""One bad row is rejected with its reason, one bad file is named: a conversion or a check never ends in a traceback."""

import json

import pytest
from published_sources import image, lines, parquet

from verl_steer.cli import main
from verl_steer.data.rows import RowError
from verl_steer.data.schemas import BenchRow, build


def convert(tmp_path, source, path, to="script"):
    """Status of the command, and the reasons of the rejected rows."""
    out = tmp_path / "o.parquet"
    status = main(["data", "convert", source, str(path), "--to", to, "--out", str(out)])
    faults = tmp_path / "o.parquet.rejected.jsonl"
    return status, [json.loads(line) for line in faults.read_text().splitlines()] if faults.is_file() else []


BENCH = {"question_id": "q", "messages_fixed": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("meta", "why"),
    [
        ('"risk_trajectory": [0.1, NaN]', "Out of range float values are not JSON compliant"),
        ('"risk_trajectory": -Infinity', "Out of range float values are not JSON compliant"),
        ('"source_category": "half \\ud83d"', "surrogates not allowed"),
    ],
)
@pytest.mark.parametrize("to", ["bench", "rl"])
def test_what_no_column_can_hold_is_rejected_and_the_next_row_is_written(tmp_path, meta, why, to):
    path = tmp_path / "b.jsonl"
    first, second = json.dumps({**BENCH, "question_id": "bad"}), json.dumps(BENCH)
    path.write_text(f"{first[:-1]}, {meta}}}\n{second}\n")
    status, rejected = convert(tmp_path, "reference_bench", path, to)
    assert status == 0 and [(line["file"], line["row"]) for line in rejected] == [("b.jsonl", 1)]
    assert "row 'bad': row: meta cannot be written as JSON: " in rejected[0]["reason"] and why in rejected[0]["reason"]


@pytest.mark.parametrize("field", ["id", "source", "licence", "category", "system", "question", "subset", "text"])
def test_half_a_character_is_no_text_of_a_row(field):
    values = {"id": "a", "source": "s", "kind": "benign", "subset": "b", "turns": [{"text": "x"}]}
    changed = {"turns": [{"text": "x\ud800"}]} if field == "text" else {field: "x\ud800"}
    assert build(BenchRow, values)
    with pytest.raises(RowError, match=rf"{field}: "):
        build(BenchRow, values | changed)


def test_a_line_in_another_encoding_is_rejected_and_the_others_are_read(tmp_path):
    good = json.dumps([{"role": "user", "content": "a"}]).encode()
    (tmp_path / "x.jsonl").write_bytes(good + b'\n[{"role": "user", "content": "caf\xe9"}]\n' + good + b"\n")
    status, rejected = convert(tmp_path, "cosafe", tmp_path / "x.jsonl")
    assert status == 0 and [line["row"] for line in rejected] == [2] and "not JSON" in rejected[0]["reason"]


@pytest.mark.parametrize("text", ['[{"messages": [{"role": "user", "content": "café"}]}]', '{"a": "é"}'])
@pytest.mark.parametrize("padding", [0, 3000])
def test_a_json_file_in_another_encoding_is_named(tmp_path, capsys, text, padding):
    path = tmp_path / "x.json"
    path.write_bytes((text[0] + " " * padding + text[1:]).encode("latin-1"))
    assert convert(tmp_path, "sharegpt", path) == (2, [])
    assert f"{path} is not UTF-8, as JSON must be" in capsys.readouterr().err
    assert main(["data", "validate", str(path)]) == 2
    assert f"{path} is not UTF-8, as JSON must be" in capsys.readouterr().err


@pytest.mark.parametrize("images", [["a.png"], "a.png", 3, {"path": "a.png"}])
def test_pictures_of_a_bench_line_that_are_no_pictures_are_a_bad_row(tmp_path, capsys, images):
    row = {"id": "r", "source": "s", "kind": "benign", "subset": "b", "turns": [{"text": "x", "images": images}]}
    path = lines(tmp_path / "b.jsonl", [row])
    assert main(["data", "validate", str(path)]) == 1
    assert "row 0: line 1: images of a turn must be a list of {path, sha256}" in capsys.readouterr().out


def damage(path):
    """Keeps head and footer, so that the file opens and its pages do not."""
    data = bytearray(path.read_bytes())
    data[8 : len(data) // 3] = b"\xff" * (len(data) // 3 - 8)
    path.write_bytes(data)
    return path


def test_a_damaged_parquet_file_is_named_by_every_command(tmp_path, capsys):
    rows = [{"image": image(), "question": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(300)]
    source = parquet(tmp_path / "train.parquet", rows)
    split = tmp_path / "sft.parquet"
    assert main(["data", "convert", "spa_vl", str(source), "--to", "sft", "--out", str(split)]) == 0
    damage(source)
    damage(split)
    capsys.readouterr()
    for command, path in (
        (["validate", str(split)], split),
        (["show", str(split), "299"], split),
        (["card", str(split)], split),
        (["export", str(split), "--to", "llamafactory", "--out", str(tmp_path / "x.json")], split),
        (["convert", "spa_vl", str(source), "--to", "sft", "--out", str(tmp_path / "y.parquet")], source),
    ):
        assert main(["data", *command]) == 2, command
        assert capsys.readouterr().err.startswith(f"verl-steer: {path} cannot be read as parquet: ")


def test_what_a_data_set_wrote_into_its_labels_is_shown_escaped(tmp_path, capsys):
    row = {"id": "a\x1b[2J", "source": "s\x9b8m", "licence": "l\x07", "category": "c\x1b]0;t\x07", "kind": "benign",
           "subset": "b", "turns": [{"text": "x"}]}  # fmt: skip
    path = lines(tmp_path / "b.jsonl", [row])
    assert main(["data", "show", str(path), "0"]) == 0
    said = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in said)
    assert said.startswith("bench row a\\x1b[2J\n  benign | s\\x9b8m | c\\x1b]0;t\\x07 | l\\x07\n")
