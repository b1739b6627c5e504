"""`verl-steer data …` end to end: what is printed, what is written, and what is said when something is wrong."""

import json
import re

import pytest
from PIL import Image
from published_sources import FIXTURES, build, lines, png

from verl_steer.cli import main
from verl_steer.data import commands, sources
from verl_steer.data import convert as convert_module
from verl_steer.data.formats import read_any
from verl_steer.data.rows import DataError, RowError


@pytest.fixture
def sft(tmp_path, capsys):
    fixture = build("sharegpt", tmp_path)
    out = tmp_path / "out" / "sft.parquet"
    assert main(["data", "convert", "sharegpt", str(fixture.path), "--to", "sft", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"2 rows in = 2 written + 0 rejected -> {out}\n"
    return out


@pytest.fixture
def bench(tmp_path, capsys):
    fixture = build("mm_safetybench_original", tmp_path)
    out = tmp_path / "out" / "bench.parquet"
    command = ["data", "convert", "mm_safetybench", str(fixture.path), "--images", str(fixture.images), "--to", "bench"]
    assert main([*command, "--out", str(out), "--size", "max512-pad386"]) == 0
    capsys.readouterr()
    return out


def test_sources_lists_every_adapter_with_its_columns(capsys):
    assert main(["data", "sources"]) == 0
    listed = capsys.readouterr().out
    for name in sources.NAMES:
        assert f"{name}: " in listed
    assert "columns: id, jailbreak_query, redteam_query, format, policy, image_path" in listed
    assert main(["data", "sources", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {fact["name"] for fact in facts} == set(sources.NAMES) and all(fact["layouts"] for fact in facts)


def test_every_adapter_is_described_at_its_top():
    for name in sources.NAMES:
        module = __import__(f"verl_steer.data.sources.{name}", fromlist=["SOURCE"])
        for word in ("Columns" if name != "mm_safetybench" else "publications", "Licence", "Kind"):
            assert word in module.__doc__, f"{name} does not say its {word}"
        assert module.SOURCE.name == name


def test_convert_says_why_rows_were_rejected(tmp_path, capsys):
    path = lines(tmp_path / "x.jsonl", [[{"role": "user", "content": "a"}], 3, 4])
    assert main(["data", "convert", "cosafe", str(path), "--to", "rl", "--out", str(tmp_path / "o.parquet")]) == 0
    said = capsys.readouterr().out
    assert "3 rows in = 1 written + 2 rejected" in said and "2 x not an object but int" in said
    assert str(tmp_path / "o.parquet.rejected.jsonl") in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["convert", "cosave", "x.jsonl"], "did you mean cosafe"),
        (
            ["convert", "cosafe", "x.jsonl", "--size", "huge"],
            "--size huge is not one of keep, max512-pad386, area338-512",
        ),
        (["convert", "cosafe", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_a_wrong_convert_is_one_line_and_status_2(tmp_path, capsys, arguments, says):
    assert main(["data", *arguments, "--to", "rl", "--out", str(tmp_path / "o.parquet")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("verl-steer: ") and says in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_clean(tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "convert", stopped)
    assert main(["data", "convert", "cosafe", "x", "--to", "rl", "--out", str(tmp_path / "o.parquet")]) == 130
    assert "the same command goes on where it was" in capsys.readouterr().err


def test_validate_counts_and_names_bad_rows(tmp_path, sft, capsys):
    assert main(["data", "validate", str(sft)]) == 0
    assert capsys.readouterr().out == f"{sft} (sft): 2 rows = 2 valid + 0 not\n"
    assert main(["data", "export", str(sft), "--to", "llamafactory", "--out", str(tmp_path / "lf" / "d.json")]) == 0
    path = tmp_path / "lf" / "d.json"
    data = json.loads(path.read_text())
    data[0]["images"] = data[0]["images"][:1]
    path.write_text(json.dumps([*data, 3, *[{"messages": 1}] * 30]))
    capsys.readouterr()
    assert main(["data", "validate", str(path)]) == 1
    said = capsys.readouterr().out
    assert "row 0: line 1: the texts hold 2 <image> for 1 picture(s)" in said and "row 2: line 3: not an object" in said
    assert "... and 12 more" in said and "33 rows = 1 valid + 32 not" in said


def test_validate_looks_at_pictures_and_at_ids(tmp_path, bench, capsys):
    assert main(["data", "export", str(bench), "--to", "bench_jsonl", "--out", str(tmp_path / "b" / "b.jsonl")]) == 0
    path = tmp_path / "b" / "b.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, first, *rest]) + "\n")
    broken = json.loads(rest[0])["turns"][0]["images"][0]["path"]
    (tmp_path / "b" / broken).write_bytes(png("pink"))
    capsys.readouterr()
    assert main(["data", "validate", str(path)]) == 1
    said = capsys.readouterr().out
    assert "is that of row 0 too" in said and "has other bytes than its sha256 says" in said


def test_show_prints_one_row_and_no_control_characters(tmp_path, bench, capsys):
    row = {"question": "a\x1b[31mb", "image": {"bytes": png(), "path": None}, "chosen": "x" * 2000, "rejected": "-"}
    from published_sources import parquet

    parquet(tmp_path / "train.parquet", [row])
    main(
        [
            "data",
            "convert",
            "spa_vl",
            str(tmp_path / "train.parquet"),
            "--to",
            "sft",
            "--out",
            str(tmp_path / "o.parquet"),
        ]
    )
    capsys.readouterr()
    assert main(["data", "show", str(tmp_path / "o.parquet"), "0"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "a\\x1b[31mb" in said and "(2000 characters)" in said and "[picture 56 x 56" in said
    assert main(["data", "show", str(bench), "0"]) == 0
    assert "user: Rephrased Question(SD) 0" in capsys.readouterr().out
    assert main(["data", "show", str(bench), "99"]) == 2
    assert "has no row 99" in capsys.readouterr().err


def test_show_names_the_fault_of_a_bad_row(tmp_path, capsys):
    path = lines(tmp_path / "x.jsonl", [{"messages": 3}])
    assert main(["data", "show", str(path), "0"]) == 2
    assert "line 1: messages must be a list" in capsys.readouterr().err


def test_seeds_are_shown_with_their_answer(tmp_path, capsys):
    fixture = build("geometry3k", tmp_path)
    main(["data", "convert", "geometry3k", str(fixture.path), "--to", "seed", "--out", str(tmp_path / "o.parquet")])
    capsys.readouterr()
    main(["data", "show", str(tmp_path / "o.parquet"), "0"])
    said = capsys.readouterr().out
    assert "1 user: Find x." in said and "answer: 3" in said


def test_export_to_llamafactory_writes_its_index_and_each_picture_once(tmp_path, sft, capsys):
    out = tmp_path / "lf" / "steer.json"
    for _ in range(2):
        assert main(["data", "export", str(sft), "--to", "llamafactory", "--out", str(out)]) == 0
    assert "llamafactory cannot hold: id, source, licence, category, kind, meta" in capsys.readouterr().out
    index = json.loads((out.parent / "dataset_info.json").read_text())
    assert index["steer"]["formatting"] == "sharegpt" and index["steer"]["file_name"] == "steer.json"
    (out.parent / "dataset_info.json").write_text(json.dumps({"other": {"file_name": "o.json"}}))
    main(["data", "export", str(sft), "--to", "llamafactory", "--out", str(out)])
    assert set(json.loads((out.parent / "dataset_info.json").read_text())) == {"other", "steer"}
    data = json.loads(out.read_text())
    assert all(sum(m["content"].count("<image>") for m in d["messages"]) == len(d["images"]) for d in data)
    assert all((out.parent / path).is_file() for d in data for path in d["images"])
    assert len(list((out.parent / "images").iterdir())) == 2
    (out.parent / "dataset_info.json").write_text("{")
    assert main(["data", "export", str(sft), "--to", "llamafactory", "--out", str(out)]) == 2
    assert "dataset_info.json is not JSON" in capsys.readouterr().err


def test_datasets_reads_the_exported_files(tmp_path, sft, bench):
    """LLaMA-Factory and the reference code load their files with `datasets`."""
    import datasets

    main(["data", "export", str(sft), "--to", "llamafactory", "--out", str(tmp_path / "a.json")])
    main(["data", "export", str(bench), "--to", "reference_bench", "--out", str(tmp_path / "b.jsonl")])
    for name, rows in (("a.json", 2), ("b.jsonl", 8)):
        found = datasets.load_dataset(
            "json", data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "c")
        )
        assert len(found) == rows


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("lamafactory", "is not one of llamafactory, reference_rl, reference_bench, bench_jsonl, rl, script"),
        ("reference_rl", "is written from script or rl or bench rows"),
        ("bench_jsonl", "is written from bench rows"),
        ("rl", "is written from script or rl or bench rows"),
    ],
)
def test_an_export_that_cannot_be_is_said_before_anything_is_written(tmp_path, sft, capsys, to, says):
    assert main(["data", "export", str(sft), "--to", to, "--out", str(tmp_path / "new" / "x.jsonl")]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_failed_export_leaves_the_old_file(tmp_path, sft, monkeypatch):
    out = tmp_path / "x.json"
    out.write_text("old")
    monkeypatch.setattr(json, "dumps", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["data", "export", str(sft), "--to", "llamafactory", "--out", str(out)]) == 130
    assert out.read_text() == "old" and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("content", "says"), [("", "holds no rows"), ("3\n", "holds no rows"), ('{"a": 1}\n', "needs the column")]
)
def test_a_file_that_is_neither_split_nor_export_is_named(tmp_path, content, says):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(DataError, match=says):
        read_any(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        read_any(tmp_path / "y.jsonl")


@pytest.mark.parametrize("name", ["sharegpt", "mm_safetybench", "reference_rl", "geometry3k"])
def test_a_card_counts_what_the_split_holds(tmp_path, capsys, name):
    from huggingface_hub import DatasetCard

    to = {"sharegpt": "sft", "mm_safetybench": "bench", "reference_rl": "rl", "geometry3k": "seed"}[name]
    fixture = build(name, tmp_path)
    out = tmp_path / f"{to}.parquet"
    main(["data", "convert", FIXTURES[name][0], str(fixture.path), "--to", to, "--out", str(out)])
    capsys.readouterr()
    assert main(["data", "card", str(out)]) == 0
    card = DatasetCard.load(capsys.readouterr().out.strip())
    assert card.data.size_categories == ["n<1K"] and f"{fixture.rows} {to} rows" in card.text
    assert ("in the paper" in card.text) == (to != "seed")
    if to == "sft":
        assert (
            "| STEER-SFT in the paper | 12934 | 2-10 | 6.35 |" in card.text
            and "| this file | 2 | 1-2 | 1.5 |" in card.text
        )
    with Image.open(tmp_path / f"{to}.parquet.card" / "turns.png") as picture:
        assert picture.format == "PNG" and picture.width > 300
    first = (tmp_path / f"{to}.parquet.card" / "README.md").read_text()
    main(["data", "card", str(out), "--out", str(tmp_path / "again")])
    assert (tmp_path / "again" / "README.md").read_text() == first
    assert re.search(r"`[0-9a-f]{64}`", first)


def test_the_content_hash_follows_content_and_not_the_file(tmp_path, sft):
    from verl_steer.data.card import count

    main(["data", "export", str(sft), "--to", "llamafactory", "--out", str(tmp_path / "a" / "x.json")])
    main(["data", "export", str(sft), "--to", "llamafactory", "--out", str(tmp_path / "b" / "x.json")])
    one, two = (count(tmp_path / n / "x.json")[1] for n in "ab")
    assert one.hash == two.hash and one.images == 2
    text = (tmp_path / "b" / "x.json").read_text()
    (tmp_path / "b" / "x.json").write_text(text.replace("green", "greener"))
    assert count(tmp_path / "b" / "x.json")[1].hash != one.hash


def test_a_card_of_a_broken_file_says_what_to_do(tmp_path, capsys):
    path = lines(tmp_path / "x.jsonl", [{"messages": 3}])
    assert main(["data", "card", str(path)]) == 2
    assert "run `verl-steer data validate` first" in capsys.readouterr().err


def test_text_of_a_data_set_cannot_break_the_card(tmp_path):
    row = {
        "question": "q",
        "image": {"bytes": png(), "path": None},
        "category": "a | b\n# <script>`x`",
        "response": "r",
        "is_response_safe": "yes",
    }
    from published_sources import parquet

    from verl_steer.data.card import write_card

    parquet(tmp_path / "train.parquet", [row])
    main(
        [
            "data",
            "convert",
            "beavertails_v",
            str(tmp_path / "train.parquet"),
            "--to",
            "rl",
            "--out",
            str(tmp_path / "o.parquet"),
        ]
    )
    card = write_card(tmp_path / "o.parquet").read_text()
    assert "| a \\| b # &lt;script>\\`x\\` | 1 |" in card


def test_a_card_shows_no_picture_and_no_link_of_a_data_set():
    from verl_steer.data.card import _cell

    assert _cell("![x](http://a/b.png) [y](z)") == "\\!\\[x\\](http://a/b.png) \\[y\\](z)"
    assert _cell("a\\[b") == "a\\\\\\[b"


@pytest.mark.parametrize(
    ("licences", "says"),
    [
        (["mit"], "license: mit"),
        (["mit", "mit"], "license: mit"),
        (["mit", ""], "license: other"),
        (["mit", "apache-2.0"], "license: other"),
        ([""], "license: other"),
    ],
)
def test_a_card_states_a_licence_only_if_every_row_has_it(licences, says):
    from collections import Counter
    from pathlib import Path

    from verl_steer.data.card import Figures, _card

    held = Figures(rows=2, turns=Counter({1: 2}), sources=Counter({(f"s{n}", x): 1 for n, x in enumerate(licences)}))
    card = _card(Path("x.parquet"), "rl", held)
    assert f"\n{says}\n" in card and ("license_name: as-its-sources" in card) == (says == "license: other")


def test_a_large_file_and_many_categories_are_summed_up():
    from collections import Counter

    from verl_steer.data.card import Figures, _card, _size

    assert [_size(n) for n in (999, 1000, 99_999, 999_999, 10**6)] == [
        "n<1K",
        "1K<n<10K",
        "10K<n<100K",
        "100K<n<1M",
        "1M<n<10M",
    ]
    many = Figures(
        rows=60,
        turns=Counter({2: 60}),
        categories=Counter({f"c{n:02d}": 1 for n in range(60)}),
        sources=Counter({("a", "mit"): 60}),
    )
    from pathlib import Path

    card = _card(Path("x.parquet"), "rl", many)
    assert "... and 10 more." in card and "license: mit" in card


def test_splits_of_the_command_are_those_of_the_layouts():
    from verl_steer.data.splits import LAYOUTS

    assert set(commands.SPLITS) == set(LAYOUTS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "has version 2, this verl_steer reads 1"),
        ({"turns": 3}, "turns must be a list of {text, images}"),
        ({"turns": [3]}, "turns must be a list of {text, images}"),
        ({"turns": [{"text": "x", "images": [{"path": "nowhere.png"}]}]}, "is not a file"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_damaged_bench_line_is_named(tmp_path, bench, change, says):
    main(["data", "export", str(bench), "--to", "bench_jsonl", "--out", str(tmp_path / "b" / "b.jsonl")])
    path = tmp_path / "b" / "b.jsonl"
    first, *rest = path.read_text().splitlines()
    damaged = {**json.loads(rest[0]), **change}
    path.write_text("\n".join([first, json.dumps(damaged), *rest[1:]]) + "\n")
    good, fault, *others = read_any(path)[1]
    assert good.subset == "MMSafe" and len(others) == 6
    assert isinstance(fault, RowError) and says in str(fault)


def test_a_missing_digest_is_named(tmp_path, bench):
    main(["data", "export", str(bench), "--to", "bench_jsonl", "--out", str(tmp_path / "b" / "b.jsonl")])
    path = tmp_path / "b" / "b.jsonl"
    path.write_text(path.read_text().replace('"sha256"', '"sha"'))
    faults = [row for row in read_any(path)[1] if isinstance(row, RowError)]
    assert len(faults) == 6 and all("'sha256' is missing" in str(fault) for fault in faults)


def test_many_scripts_become_rl_rows_in_order(tmp_path):
    path = lines(tmp_path / "x.jsonl", [[{"role": "user", "content": f"q{n}"}] for n in range(150)])
    for to in ("script", "rl"):
        main(["data", "convert", "cosafe", str(path), "--to", to, "--out", str(tmp_path / f"{to}.parquet")])
    main(["data", "export", str(tmp_path / "script.parquet"), "--to", "rl", "--out", str(tmp_path / "made.parquet")])
    assert list(read_any(tmp_path / "made.parquet")[1]) == list(read_any(tmp_path / "rl.parquet")[1])


def test_a_row_whose_picture_is_none_is_not_exported_and_not_valid(tmp_path, sft, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = pq.read_table(sft)
    rows = whole.to_pylist()
    rows[0]["images"][0] = {"bytes": b"not a picture", "sha256": None}
    pq.write_table(pa.Table.from_pylist(rows, schema=whole.schema), sft)
    assert main(["data", "validate", str(sft)]) == 1
    assert "picture is none of" in capsys.readouterr().out
    assert main(["data", "export", str(sft), "--to", "llamafactory", "--out", str(tmp_path / "x.json")]) == 0
    said = capsys.readouterr().out
    assert "2 rows in = 1 written + 1 rejected" in said and "cannot be written" in said


def test_a_system_prompt_is_shown(tmp_path, capsys):
    path = lines(tmp_path / "x.jsonl", [[{"role": "system", "content": "be kind"}, {"role": "user", "content": "q"}]])
    main(["data", "convert", "cosafe", str(path), "--to", "rl", "--out", str(tmp_path / "o.parquet")])
    capsys.readouterr()
    main(["data", "show", str(tmp_path / "o.parquet"), "0"])
    assert "system: be kind" in capsys.readouterr().out
