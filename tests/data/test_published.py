"""Files as they were downloaded: every form is read row by row, and a bad row or file is named."""

import json
import tracemalloc

import datasets
import huggingface_hub
import pytest
from published_sources import build, image

from verl_steer.data import published, sources
from verl_steer.data.convert import convert
from verl_steer.data.options import Options
from verl_steer.data.published import read
from verl_steer.data.rows import DataError
from verl_steer.data.splits import read_split


def rows(path, **options):
    return [p.record for p in read(path, **options)]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 2**20])
@pytest.mark.parametrize(
    "value",
    [
        [],
        [{"a": 1}],
        [{"a": "é\u2028", "b": [1, {"c": "]"}]}, {"a": '"},{'}],
        [{"n": n, "text": "x" * n} for n in range(60)],
    ],
)
def test_a_json_array_is_read_in_pieces_of_any_size(tmp_path, chunk, value):
    path = tmp_path / "x.json"
    for text in (json.dumps(value), json.dumps(value, indent=2, ensure_ascii=False) + "\n\n"):
        path.write_text(text, encoding="utf-8")
        assert list(published._array(path, chunk)) == value


@pytest.mark.parametrize("text", ['[{"a": 1}', '[{"a": 1} {"b": 2}]', '[{"a": ]', "[", '[{"a": 1},'])
def test_a_broken_array_is_an_error_that_says_where(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"is not a JSON array: .*near"):
        rows(tmp_path / "x.json")


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
@pytest.mark.parametrize("between", ["", "\n\n", " " * 100, "\ufeff"])
def test_what_follows_an_array_is_never_dropped(tmp_path, chunk, between):
    path = tmp_path / "all.json"
    path.write_text('[{"a": 1}, {"a": 2}]' + between + '[{"b": 3}]', encoding="utf-8")
    with pytest.raises(DataError, match=r"all\.json: the JSON array ends after 2 rows, and '.*\[.* follows; if files"):
        list(published._array(path, chunk))


def test_an_array_is_never_held_whole(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"n": n, "text": "x" * 1000} for n in range(5000)]))  # 5 MB
    tracemalloc.start()
    assert sum(1 for _ in published._array(path, 2**16)) == 5000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(("text", "says"), [("{", "is not JSON"), ("3", "neither an array nor an object")])
def test_a_json_file_that_is_neither_is_an_error(tmp_path, text, says):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=says):
        rows(tmp_path / "x.json")


def test_an_object_of_objects_keeps_its_keys(tmp_path):
    (tmp_path / "x.json").write_text('{"7": {"a": 1}, "8": 3}')
    first, second = read(tmp_path / "x.json")
    assert first.record == {"_key": "7", "a": 1} and second.record is None and "not an object" in second.fault


def test_csv_lines_may_be_long_quoted_and_broken(tmp_path):
    path = tmp_path / "x.csv"
    long = "y" * 300_000
    path.write_text(f'\ufeffid,text\n1,"two\nlines, and ""quotes"""\n2\n3,a,b\n4,{long}\n', encoding="utf-8")
    found = list(read(path))
    assert [p.record and p.record["text"] for p in found] == ['two\nlines, and "quotes"', None, None, long]
    assert "another number of fields than the header's 2" in found[1].fault and found[2].fault


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ('id,text\n1,a\n2,"never closed\n3,c\n4,d\n', 3),
        ('id,text\n1,a\n2,"closed too late\n3,"c"\n4,d\n', 3),
        ('id,"text\n1,a\n', 1),
    ],
)
def test_a_quote_that_is_left_open_takes_no_rows_with_it(tmp_path, text, begins):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"x\.csv: the row that begins in line {begins} cannot be read as CSV: "):
        rows(path)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"x\.parquet cannot be read as parquet"):
        rows(tmp_path / "x.parquet")


def as_dataset(**more):
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "chosen": datasets.Value("string"),
         "rejected": datasets.Value("string")}
    )  # fmt: skip
    rows = [{"image": image(c), "question": f"why {c}?", "chosen": "so", "rejected": "no"} for c in ("red", "blue")]
    return datasets.Dataset.from_list(rows, features=features, **more)


def spa(tmp_path, **options):
    account = convert(sources.get("spa_vl"), Options(to="sft", **options), tmp_path / "o.parquet")
    assert account.rejected == 0
    return list(read_split(tmp_path / "o.parquet"))


def test_a_saved_data_set_is_read_without_decoding(tmp_path):
    as_dataset().save_to_disk(str(tmp_path / "saved"))
    found = spa(tmp_path, paths=(tmp_path / "saved",))
    assert [row.turns[0].text for row in found] == ["why red?", "why blue?"]
    assert all(len(row.turns[0].images) == 1 for row in found)


def test_a_saved_dict_asks_for_the_split(tmp_path):
    datasets.DatasetDict(train=as_dataset(), test=as_dataset()).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"holds the splits \['test', 'train'\]; choose one with --split"):
        spa(tmp_path, paths=(tmp_path / "saved",))
    assert len(spa(tmp_path, paths=(tmp_path / "saved",), split="test")) == 2


def test_lists_of_pictures_survive_save_to_disk(tmp_path):
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    rows = [{"images": [image("red"), image("blue")], "problem": "<image><image>which?", "answer": "both"}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    convert(sources.get("geometry3k"), Options(to="sft", paths=(tmp_path / "saved",)), tmp_path / "o.parquet")
    (row,) = read_split(tmp_path / "o.parquet")
    assert len(row.turns[0].images) == 2


@pytest.fixture
def offline(monkeypatch):
    """No test waits for a network; `datasets` says so at once then."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_the_hub_is_streamed_by_the_same_library_call(tmp_path, monkeypatch, offline):
    """`load_dataset` takes a folder laid out as a hub repository; the call is the one that a hub id takes."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = build("spa_vl", tmp_path).path / "data"
    as_dataset().to_parquet(str(folder / "train-00001-of-00002.parquet"))
    (folder / "train-00000-of-00002.parquet").unlink()
    found = spa(tmp_path, hub=str(folder), split="train")
    assert [row.id for row in found] == ["spa_vl-train-1", "spa_vl-train-2"] and found[0].turns[0].images


def test_a_hub_that_does_not_answer_is_named(tmp_path, offline):
    with pytest.raises(DataError, match=r"hub data set nobody/nowhere \(default, train\)"):
        spa(tmp_path, hub="nobody/nowhere")
