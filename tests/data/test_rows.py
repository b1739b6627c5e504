"""A script survives its way through a file, and a row that lies about itself is named."""

import json

import pytest

from verl_steer.data.rows import SCHEMA, RowError, read_rows, row_to_script, script_to_row, write_rows
from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn

PNG = [ImageRef(b"\x89PNG one"), ImageRef(b"\x89PNG two"), ImageRef(b"\x89PNG three")]


def make(images=((0, 1), (), (2,)), system="be kind", **over):
    turns = tuple(UserTurn(f"question {t} é\u2028", tuple(PNG[i] for i in ids)) for t, ids in enumerate(images, 1))
    given = {
        "seed_id": "s-1",
        "kind": Kind.RED_TEAM,
        "turns": turns,
        "category": "c",
        "source": "src",
        "system": system,
        "meta": {"a": [1, {"b": None}]},
    }
    return Script(**{**given, **over})


@pytest.mark.parametrize("images", [((0, 1), (), (2,)), ((), (1,)), ((),), ((2,), ())])
@pytest.mark.parametrize("system", ["", "be kind"])
def test_a_script_survives_the_file(tmp_path, images, system):
    script = make(images, system)
    assert write_rows([script_to_row(script, 7, "rl")] * 2, tmp_path / "deep" / "x.parquet") == 2
    rows = read_rows(tmp_path / "deep" / "x.parquet")
    assert [row_to_script(row) for row in rows] == [script, script]
    assert rows[0]["extra_info"] == {"index": 7, "split": "rl"}
    assert rows[0]["prompt"][-1]["content"].count("<image>") == len(images[0]) == len(rows[0]["images"])
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.parquet"]


def test_rows_read_by_pandas_are_understood(tmp_path):
    import pandas

    write_rows([script_to_row(make(), 0, "rl")], tmp_path / "x.parquet")
    record = pandas.read_parquet(tmp_path / "x.parquet").to_dict("records")[0]
    assert row_to_script(record) == make()


def test_every_file_has_the_same_schema(tmp_path):
    write_rows([], tmp_path / "empty.parquet")
    import pyarrow.parquet as pq

    assert pq.read_schema(tmp_path / "empty.parquet").equals(SCHEMA)


def _edit_steer(row, **change):
    row["steer"] = json.dumps({**json.loads(row["steer"]), **change})


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda r: r.pop("steer"), "column steer must be a JSON string"),
        (lambda r: r.update(steer="{"), "not JSON"),
        (lambda r: _edit_steer(r, seed_id=""), "seed_id"),
        (lambda r: _edit_steer(r, kind="evil"), "must be one of"),
        (lambda r: _edit_steer(r, turns=[]), "1..10 user turns, found 0"),
        (lambda r: _edit_steer(r, turns=[{"text": "x"}] * 11), "1..10 user turns, found 11"),
        (lambda r: _edit_steer(r, turns=[{"text": 3}]), "string text"),
        (lambda r: _edit_steer(r, turns=[{"text": "x", "images": -1}]), "must be a count"),
        (lambda r: _edit_steer(r, turns=[{"text": "x <image>", "images": 0}]), "placeholder <image>"),
        (lambda r: _edit_steer(r, meta=[]), "steer.meta must be a dict"),
        (lambda r: r["images"].pop(), "images holds 1 picture(s), the script's turns ask for 2"),
        (lambda r: r.update(later_images=None), "later_images holds 0"),
        (lambda r: r.update(images=[{"bytes": b""}, {"bytes": b"x"}]), "picture 1"),
        (lambda r: r["prompt"][-1].update(content="<image>question 1 é\u2028"), "holds 1 <image> for 2 picture"),
        (lambda r: r["prompt"][-1].update(content="<image><image>other"), "not the first turn"),
        (lambda r: r["prompt"].pop(0), "asks for ['system', 'user']"),
        (lambda r: r["prompt"][0].update(content="be cruel"), "not steer.system"),
        (lambda r: r.update(prompt=None), "non-empty list"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(edit, says):
    row = script_to_row(make(), 41, "rl")
    edit(row)
    with pytest.raises(RowError) as error:
        row_to_script(row)
    assert says in str(error.value)
    assert "row 41" in str(error.value)


@pytest.mark.parametrize("text", ["look <image>", "<video>", "<audio>"])
def test_placeholders_as_text_are_refused_on_the_way_in(text):
    with pytest.raises(RowError, match="turn 2 holds the placeholder"):
        script_to_row(make(turns=(UserTurn("a"), UserTurn(text))), 0, "rl")


def test_meta_that_is_not_json_is_refused():
    with pytest.raises(RowError, match="seed 's-1': meta"):
        script_to_row(make(meta={"x": float("nan")}), 0, "rl")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.parquet"
    write_rows([script_to_row(make(), 0, "rl")], path)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"(?i)int|convert"):
        write_rows([{**script_to_row(make(), 0, "rl"), "extra_info": {"index": "x", "split": "rl"}}], path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
