"""Every valid dialogue survives every way out and back; every corrupted row is rejected, with its reason."""

import dataclasses
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from verl_steer.data.formats import export, read_any
from verl_steer.data.formats.llamafactory import DROPS as LLAMAFACTORY_DROPS
from verl_steer.data.formats.reference import BENCH_DROPS, RL_DROPS
from verl_steer.data.rows import DataError, RowError
from verl_steer.data.schemas import BenchRow, RlRow, ScriptRow, SeedRow, SftRow, build
from verl_steer.data.splits import LAYOUTS, layout_of, read_split, table
from verl_steer.data.wording import CONTROL, clean
from verl_steer.dialogue import ImageRef, Kind


def picture(n: int) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (8 + n, 8), (n, n, n)).save(buffer, format="JPEG" if n % 2 else "PNG")
    return ImageRef(buffer.getvalue())


PICTURES = [picture(n) for n in range(4)]
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).map(clean).filter(bool)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(clean)
images = st.lists(st.sampled_from(PICTURES), max_size=2).map(tuple)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=2),
    max_leaves=4,
)
common = {
    "source": st.sampled_from(["cosafe", "mine"]),
    "licence": st.sampled_from(["", "mit"]),
    "category": words,
    "kind": st.sampled_from(list(Kind)),
    "meta": st.dictionaries(st.sampled_from(["a", "risk_trajectory", "split"]), json_values, max_size=3),
}
questions = st.fixed_dictionaries({"text": texts, "images": images})
plain_questions = st.fixed_dictionaries({"text": texts, "images": st.just(())})


def turns(one, first=None):
    return st.tuples(first if first is not None else one, st.lists(one, max_size=9)).map(lambda t: [t[0], *t[1]])


script = {**common, "system": words, "question": words, "answer": st.none() | texts}
ROWS = {
    "seed": st.fixed_dictionaries({**common, "question": texts, "images": images, "answer": st.none() | texts}),
    "script": st.fixed_dictionaries({**script, "turns": turns(questions)}),
    "rl": st.fixed_dictionaries({**script, "turns": turns(questions), "split": st.sampled_from(["rl", "val"])}),
    "bench": st.fixed_dictionaries({**script, "turns": turns(questions), "subset": st.sampled_from(["SPA", "VLS"])}),
    "sft": st.fixed_dictionaries(
        {
            **common,
            "system": words,
            "turns": turns(st.fixed_dictionaries({"text": texts, "images": images, "reply": texts})),
        }
    ),
}


def rows_of(name, values):
    """Rows with ids of their own."""
    model = LAYOUTS[name].model
    return [
        build(model, {**v, "id": f"id-{n}", **({"index": n} if name == "rl" else {})}) for n, v in enumerate(values)
    ]


def write(path, name, rows):
    pq.write_table(table(LAYOUTS[name], rows), path)
    return path


many = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.parametrize("name", ROWS)
@given(st.data())
@many
def test_every_valid_row_survives_its_split(tmp_path, name, data):
    rows = rows_of(name, data.draw(st.lists(ROWS[name], max_size=3)))
    path = write(tmp_path / "x.parquet", name, rows)
    assert layout_of(path).name == name and list(read_split(path)) == rows


def kept(row, drops):
    """What of a row a format holds."""
    return {field: getattr(row, field) for field in type(row).model_fields if field not in drops}


def through(tmp_path, name, rows, to, ending):
    account, dropped = export(write(tmp_path / "x.parquet", name, rows), to, tmp_path / f"x{ending}")
    assert account.read == len(rows) == account.written + account.rejected
    if account.written == 0:
        return account, dropped, []
    return account, dropped, list(read_any(tmp_path / f"x{ending}")[1])


@given(st.lists(ROWS["sft"], min_size=1, max_size=3))
@many
def test_every_dialogue_survives_llamafactory(tmp_path, values):
    rows = rows_of("sft", values)
    account, dropped, back = through(tmp_path, "sft", rows, "llamafactory", ".json")
    assert account.rejected == 0 and dropped == LLAMAFACTORY_DROPS
    assert [kept(row, dropped) for row in back] == [kept(row, dropped) for row in rows]


@given(st.lists(ROWS["bench"], min_size=1, max_size=3))
@many
def test_every_bench_row_survives_our_jsonl_whole(tmp_path, values):
    rows = rows_of("bench", values)
    account, dropped, back = through(tmp_path, "bench", rows, "bench_jsonl", ".jsonl")
    assert account.rejected == 0 and dropped == () and back == rows


@given(st.lists(ROWS["rl"], min_size=1, max_size=3))
@many
def test_every_script_survives_the_reference_rl_file_or_is_named(tmp_path, values):
    rows = rows_of("rl", values)
    account, dropped, back = through(tmp_path, "rl", rows, "reference_rl", ".jsonl")
    holdable = [row for row in rows if not any(turn.images for turn in row.turns[1:])]
    assert account.written == len(holdable) and set(dropped) == set(RL_DROPS) & set(RlRow.model_fields)
    assert [kept(row, dropped) for row in back] == [kept(row, dropped) for row in holdable]
    if account.rejected:
        assert "pictures in the first turn only" in account.rejected_path.read_text()


@given(
    st.lists(
        st.fixed_dictionaries({**script, "turns": turns(plain_questions, questions), "subset": st.just("x")}),
        min_size=1,
        max_size=3,
    )
)
@many
def test_every_script_survives_the_reference_bench_file_or_is_named(tmp_path, values):
    rows = rows_of("bench", values)
    account, dropped, back = through(tmp_path, "bench", rows, "reference_bench", ".jsonl")
    holdable = [row for row in rows if len(row.turns[0].images) <= 1]
    assert account.written == len(holdable) and set(dropped) == set(BENCH_DROPS) & set(BenchRow.model_fields)
    assert [kept(row, dropped) for row in back] == [kept(row, dropped) for row in holdable]


@given(st.lists(ROWS["script"], min_size=1, max_size=3))
@many
def test_a_script_becomes_an_rl_row_and_a_script_again(tmp_path, values):
    rows = rows_of("script", values)
    export(write(tmp_path / "x.parquet", "script", rows), "rl", tmp_path / "rl.parquet")
    assert [row.index for row in read_split(tmp_path / "rl.parquet")] == list(range(len(rows)))
    _, dropped = export(tmp_path / "rl.parquet", "script", tmp_path / "back.parquet")
    assert set(dropped) == {"index", "split"} and list(read_split(tmp_path / "back.parquet")) == rows


# -- corrupted rows ---------------------------------------------------------------------------------------

CORRUPT = {
    "seed": [
        (lambda c: c.update(question=""), "question: is empty"),
        (lambda c: c.update(question=None), "question"),
        (lambda c: c.update(answer=" x"), "answer: begins or ends with white space"),
        (lambda c: c.update(images=[{"bytes": b"", "sha256": None}]), "picture 1"),
    ],
    "script": [
        (lambda c: c.update(turns=[]), "turns"),
        (lambda c: c.update(turns=[{"text": "x", "images": []}] * 11), "at most 10"),
        (lambda c: c["turns"][0].update(text="look <image>"), "turns[1].text: holds the control token <image>"),
        (lambda c: c["turns"][0].update(text="<|im_start|>system"), "control token <|im_start|>"),
    ],
    "bench": [(lambda c: c.update(subset=""), "subset"), (lambda c: c.update(subset=None), "subset")],
    "sft": [
        (lambda c: c["messages"].pop(), "turns[1].reply"),
        (lambda c: c["messages"].pop(0), "is a reply, but nobody asked"),
        (lambda c: c["messages"][-1].update(content=""), "reply: is empty"),
        (lambda c: c["messages"][-1].update(content="a <|im_end|> b"), "reply: holds the control token"),
        (lambda c: c["messages"][0].update(content="no picture"), "0 <image> for 2"),
        (lambda c: c["images"].pop(), "2 <image> for 1 picture"),
        (lambda c: c["messages"][0].update(role="tool"), "has the role 'tool'"),
        (lambda c: c.update(messages=None), "messages must be a list"),
    ],
    "rl": [
        (lambda c: c.update(steer="{"), "steer is not JSON"),
        (lambda c: c["extra_info"].update(index=-1), "index"),
        (lambda c: c["extra_info"].update(split=""), "split"),
        (lambda c: c["prompt"][0].update(content="something else"), "prompt"),
    ],
}  # fmt: skip
_EVERYWHERE = [
    (lambda c: c.update(id=""), "id"),
    (lambda c: c.update(id=None), "id"),
    (lambda c: c.update(source=""), "source"),
    (lambda c: c.update(kind="evil"), "kind"),
    (lambda c: c.update(meta="{"), "meta is not JSON"),
    (lambda c: c.update(meta="[]"), "meta"),
    (lambda c: c.update(meta='{"licence": 1}'), "may not use the names of fields"),
]
for _name in ("seed", "script", "bench", "sft"):
    CORRUPT[_name] += _EVERYWHERE


def sound(name):
    """A row with two pictures in its first turn (or its only one)."""
    base = {"id": "s", "source": "mine", "kind": Kind.BENIGN, "meta": {"a": 1}}
    first = {"text": "look", "images": tuple(PICTURES[:2])}
    if name == "seed":
        return SeedRow(**base, question="look", images=tuple(PICTURES[:2]))
    if name == "sft":
        return SftRow(**base, turns=[{**first, "reply": "I see"}])
    more = {"rl": {"index": 0}, "bench": {"subset": "SPA"}}.get(name, {})
    return LAYOUTS[name].model(**base, turns=[first, {"text": "and?"}], **more)


@pytest.mark.parametrize(("name", "n"), [(name, n) for name, all_ in CORRUPT.items() for n in range(len(all_))])
def test_a_corrupted_row_is_rejected_with_its_reason_and_the_others_are_read(tmp_path, name, n):
    corrupt, reason = CORRUPT[name][n]
    layout = LAYOUTS[name]
    good = layout.to_columns(sound(name))
    bad = json.loads(
        json.dumps(good, default=lambda b: {"hex": b.hex()}),
        object_hook=lambda d: bytes.fromhex(d["hex"]) if set(d) == {"hex"} else d,
    )
    corrupt(bad)
    pq.write_table(pa.Table.from_pylist([good, bad, good], schema=layout.schema), tmp_path / "x.parquet")
    first, fault, last = read_split(tmp_path / "x.parquet")
    assert first == last == sound(name)
    assert isinstance(fault, RowError) and reason in str(fault), fault


@pytest.mark.parametrize("name", ROWS)
@given(st.data())
@many
def test_a_changed_byte_of_a_picture_is_noticed(tmp_path, name, data):
    columns = LAYOUTS[name].to_columns(sound(name))
    holder = columns if name in ("seed", "sft", "rl") else columns["turns"][0]
    place = data.draw(st.integers(0, 1))
    stored = holder["images"][place]["bytes"]
    at = data.draw(st.integers(0, len(stored) - 1))
    holder["images"][place]["bytes"] = (
        stored[:at] + bytes([stored[at] ^ data.draw(st.integers(1, 255))]) + stored[at + 1 :]
    )
    pq.write_table(pa.Table.from_pylist([columns], schema=LAYOUTS[name].schema), tmp_path / "x.parquet")
    (fault,) = read_split(tmp_path / "x.parquet")
    assert isinstance(fault, RowError) and "has other bytes than its sha256 says" in str(fault)


# -- the rules themselves ---------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([*"<|>ab \n", "image", "<image>", "<|im_start|>", "<|"]), max_size=12).map("".join))
@settings(max_examples=300)
def test_clean_is_idempotent_and_leaves_no_control_token(text):
    cleaned = clean(text)
    assert clean(cleaned) == cleaned and not CONTROL.search(cleaned)


def test_clean_keeps_what_a_reply_may_say():
    text = "<think>a < b | c > d</think><answer>\n\tx</answer>"
    assert clean(f"  {text}\n") == text
    assert clean("a\ud800b") == "a\ufffdb"


def test_rows_are_closed_and_frozen():
    row = sound("seed")
    with pytest.raises(ValidationError):
        row.question = "other"
    with pytest.raises(RowError, match="extra"):
        build(SeedRow, {**dict(row), "extra": 1})


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    whole = table(LAYOUTS["seed"], [sound("seed")])
    pq.write_table(whole.replace_schema_metadata({b"verl_steer.version": b"2"}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="version 2 of the schemas, this verl_steer reads 1"):
        layout_of(tmp_path / "x.parquet")


def test_a_table_that_is_no_split_is_named(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="is no split: its columns are a"):
        layout_of(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        layout_of(tmp_path / "y.parquet")


def test_a_column_that_is_missing_is_named(tmp_path):
    whole = table(LAYOUTS["seed"], [sound("seed")])
    pq.write_table(whole.drop_columns(["licence"]), tmp_path / "x.parquet")
    (fault,) = read_split(tmp_path / "x.parquet")
    assert "column licence is missing" in str(fault)


def test_scripts_of_the_micro_world_are_rl_rows(tmp_path):
    """Older RL files have neither version nor digest; training and these tools read both."""
    from verl_steer.data.rows import script_to_row, write_rows
    from verl_steer.data.schemas import to_script
    from verl_steer.dialogue import Script, UserTurn

    one = Script("s", Kind.RED_TEAM, (UserTurn("a", (PICTURES[0],)), UserTurn("b")), "c", "microworld", "", {"x": 1})
    row = script_to_row(one, 3, "rl")
    row["images"] = [{"bytes": image["bytes"]} for image in row["images"]]
    write_rows([row], tmp_path / "x.parquet")
    (found,) = read_split(tmp_path / "x.parquet")
    assert to_script(found) == one and found.index == 3
    assert dataclasses.asdict(one)["meta"] == {"x": 1} and isinstance(found, ScriptRow)
