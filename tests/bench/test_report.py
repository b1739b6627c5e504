"""The report without a browser: what stands in the page and beside it, and the commands that make it."""

import csv
import json
import re
import stat
from dataclasses import replace

import pytest
from bench_runs import dialogue, made_up, picture, verdict, write_folder
from PIL import Image
from rich.console import Console

from verl_steer import cli
from verl_steer.bench import files
from verl_steer.bench.files import PlayedTurn
from verl_steer.bench.lines import BenchError
from verl_steer.bench.metrics import MEASURES
from verl_steer.bench.pictures import put_image
from verl_steer.bench.report import images, tables, texts
from verl_steer.bench.report.bench_report import build_page, comparable, evaluate_all, write_report
from verl_steer.bench.report.model import PageDialogue, PageTurn
from verl_steer.bench.report.page import heat, write_page
from verl_steer.bench.report.terminal import print_table
from verl_steer.bench.results import evaluate
from verl_steer.dialogue import Kind


def block_of(html):
    """The JSON block, as a browser finds it: up to the first end of a script element."""
    start = html.index('id="data">') + len('id="data">')
    return json.loads(html[start : html.index("</script", start)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("runs") / "run", 90)


@pytest.fixture(scope="module")
def written(folder):
    return {path.name: path for path in write_report(evaluate_all([folder], None), folder / "report")}


def test_page_and_files_beside_it_agree(written, folder):
    html = written["index.html"].read_text()
    result = evaluate(folder)
    safe = tables.number(result.average["safe"].estimate.value, True)
    assert safe in html
    data = json.loads(written["results.json"].read_text())
    assert data[0]["average_over_subsets"]["safe"]["value"] == result.average["safe"].estimate.value
    with written["figures.csv"].open() as file:
        found = [r for r in csv.DictReader(file) if (r["by"], r["measure"]) == ("average", "safe")]
    assert float(found[0]["value"]) == result.average["safe"].estimate.value
    assert written["survival.svg"].read_text().startswith("<svg")


def test_a_name_that_is_a_formula_is_a_text_in_the_csv_file(tmp_path):
    dialogues = [dialogue("a", category="@SUM(A1)"), dialogue("b", category="-2+3")]
    verdicts = [verdict(d.id, t, 2) for d in dialogues for t in (1, 2)]
    write_folder(tmp_path, dialogues, verdicts, name='=HYPERLINK("http://x")')
    write_report(evaluate_all([tmp_path], None), tmp_path / "report")
    with (tmp_path / "report" / "figures.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["run"] for line in lines} == {'\'=HYPERLINK("http://x")'}
    assert {line["group"] for line in lines if line["by"] == "category"} == {"'@SUM(A1)", "'-2+3"}
    safe = next(line for line in lines if (line["by"], line["measure"]) == ("all", "harmlessness"))
    assert float(safe["value"]) == 2.0


def test_everything_in_the_page_comes_from_the_page(written):
    html = written["index.html"].read_text()
    outside = re.findall(r"""(?:src|href|action)=["']?(?!data:|#)[^"' >]+""", html[: html.index('id="data">')])
    assert outside == []
    assert not re.search(r"@import|url\((?!#)", html)
    assert "default-src 'none'" in html


def test_harmful_files_are_for_their_owner_only(written):
    assert {stat.S_IMODE(path.stat().st_mode) for path in written.values()} == {0o600}


def test_the_block_holds_every_dialogue_with_its_scores(written, folder):
    block = block_of(written["index.html"].read_text())
    result = evaluate(folder)
    assert len(block["dialogues"]) == len(result.dialogues) == 90
    shown = block["dialogues"][0]
    played = result.dialogues[0]
    assert shown[1] == played.id
    assert [block["texts"][turn[1]] for turn in shown[10]] == [turn.reply for turn in played.turns]
    first = result.lines[played.id, 1]
    assert shown[10][0][2] == [first.harmlessness, first.helpfulness]


def test_markup_in_any_text_ends_no_element(tmp_path):
    attack = "</script><script>alert(1)</script><!--<b>&amp;"
    hostile = dialogue("h", 1, replies=[attack], subset=attack, category=attack, system=attack)
    folder = write_folder(tmp_path / "run", [hostile], [verdict("h", 1, -3, 0, reason=attack)], name=attack)
    html = write_report(evaluate_all([folder], None), tmp_path / "out")[0].read_text()
    assert html.count("<script") == 2 and html.count("</script") == 2
    assert "<!--" not in html
    block = block_of(html)
    assert attack in block["texts"] and block["dialogues"][0][2] == attack


def test_a_lone_surrogate_does_not_stop_a_report(folder, tmp_path):
    page = build_page(evaluate_all([folder], None))
    turn = PageTurn("\ud800 half a sign", "reply", (3, 3))
    odd = PageDialogue(0, "odd", "DyS", "", "benign", 1, [turn])
    html = write_page(replace(page, dialogues=[odd]), tmp_path).read_text()
    assert "? half a sign" in block_of(html)["texts"]


def test_texts_beyond_the_budget_are_cut_longest_first(folder, tmp_path):
    page = build_page(evaluate_all([folder], None))
    block = block_of(write_page(page, tmp_path, text_budget=60_000).read_text())
    cut = [t for t in block["texts"] if "more characters]" in t]
    assert cut and len(cut) < len(block["texts"])
    assert sum(len(t) for t in block["texts"]) < 60_000 + 40 * len(cut)


@pytest.mark.parametrize(
    ("lengths", "budget", "cap"), [([5, 5, 90], 40, 30), ([1, 2, 3], 6, 3), ([4, 4], 5, 2), ([], 5, 0)]
)
def test_the_cap_is_the_largest_that_fits(lengths, budget, cap):
    assert texts.longest_that_fits(lengths, budget) == cap
    assert sum(min(n, cap) for n in lengths) <= budget


def test_redacted_pages_keep_figures_and_lose_words(folder, tmp_path):
    html = write_report(evaluate_all([folder], None), tmp_path, redact=True)[0].read_text()
    block = block_of(html)
    assert block["pictures"] == [] and "data:image/" not in html
    assert all(t == "" or t.startswith("[redacted: ") for t in block["texts"])
    assert block["dialogues"][0][10][0][2][0] in range(-3, 4)


def test_pictures_are_shared_small_and_within_the_budget(tmp_path):
    shas = [put_image(tmp_path, picture(n, 512, photo=True)) for n in range(3)]
    files = {path.stem: path for path in (tmp_path / "images").iterdir()}
    assert min(path.stat().st_size for path in files.values()) > images.AS_IS
    shown = images.embed([*shas, shas[0], "unknown"], files, tmp_path / "report")
    assert list(shown) == [*shas, "unknown"] and shown["unknown"] is None
    assert all(len(shown[s][0]) < files[s].stat().st_size for s in shas)
    assert all(shown[s] == (shown[s][0], f"../images/{s}.jpg") for s in shas)
    tight = images.embed(shas, files, tmp_path / "report", budget=len(shown[shas[0]][0]) * 3 // 4 + 10)
    assert tight[shas[0]][0].startswith("data:image/jpeg") and tight[shas[2]][0] == f"../images/{shas[2]}.jpg"


def test_a_file_that_is_no_picture_is_named_and_not_embedded(tmp_path):
    path = tmp_path / "images" / "broken.jpg"
    path.parent.mkdir()
    path.write_bytes(b"no picture" * 5000)
    assert images.embed(["broken"], {"broken": path}, tmp_path / "out")["broken"][0] == "../images/broken.jpg"


def test_a_damaged_picture_is_named_and_not_embedded_whatever_pillow_raises(tmp_path):
    data = bytearray(picture(0).data)
    at = data.index(b"IDAT")
    data[at - 4 : at] = b"\0\0\0\1"
    path = tmp_path / "images" / "broken.png"
    path.parent.mkdir()
    path.write_bytes(bytes(data) + b"\0" * images.AS_IS)
    with Image.open(path) as opened, pytest.raises(SyntaxError):
        opened.load()
    assert images.embed(["broken"], {"broken": path}, tmp_path / "out")["broken"][0] == "../images/broken.png"


def test_heat_is_readable_at_every_level():
    for step in range(101):
        r, g, b = map(int, re.search(r"rgb\((\d+),(\d+),(\d+)\)", heat(step / 100)).groups())
        bright = 0.299 * r + 0.587 * g + 0.114 * b
        assert ("#fff" in heat(step / 100)) == (bright <= 128)


def test_the_papers_rows_stand_in_their_columns(folder):
    table = tables.beside_paper(evaluate_all([folder], None))
    row = next(r for r in table.rows if r.label == "Qwen2.5-VL-7B SaFeR-Steer (Ours)")
    assert row.cells[list(table.columns).index("Average safe")].text == "64.89 %"
    assert row.small == "paper, table 3" and not any(cell.missing for cell in row.cells)


def test_a_single_turn_bench_stands_beside_table_two(tmp_path):
    made = [dialogue(f"d{n}", 1, subset="VLGuard") for n in range(4)]
    folder = write_folder(tmp_path, made, [verdict(d.id, 1, 3) for d in made])
    table = tables.beside_paper(evaluate_all([folder], None))
    assert table.rows[1].small == "paper, table 2"
    assert table.rows[1].cells[0].text == "66.20 %"


def test_constant_policies_are_marked_and_leave_their_dialogues_out(tmp_path, folder):
    refuse = made_up(tmp_path / "refuse", 90, name="bare refusal", kind="policy")
    page = build_page(evaluate_all([folder, refuse], None))
    assert [row.tone for row in page.tables[0].rows] == ["run", "policy"]
    assert page.runs == ["student"] and len(page.dialogues) == 90


def test_a_second_judge_is_set_against_the_one_that_counts(tmp_path):
    folder = made_up(tmp_path / "run", 40)
    lines = (folder / "verdicts" / "oracle.jsonl").read_text().replace('"harmlessness":3', '"harmlessness":2')
    (folder / "verdicts" / "second.jsonl").write_text(lines)
    page = build_page(evaluate_all([folder], "oracle"))
    table = next(t for t in page.tables if t.name.startswith("judges"))
    assert [row.label for row in table.rows] == ["second: harmlessness", "second: helpfulness"]
    assert table.rows[1].cells[0].text == "1.00" and table.rows[1].cells[1].text == "100.0 %"
    assert table.rows[0].cells[2].text.startswith("−")
    assert page.facts["Canaries of the judge"] == "not run"


def test_with_a_judge_that_fails_often_every_figure_shows_size_and_bounds(tmp_path):
    result = evaluate(made_up(tmp_path, 120, missing=0.3))
    account = result.account
    assert 0.2 < account.missing["failed"] / account.turns < 0.4
    for name, cell in zip(MEASURES, tables.headline([result]).rows[0].cells, strict=False):
        judged, size, bounds = cell.small.split("\n") if cell.small.count("\n") == 2 else ("", "", "")
        assert re.fullmatch(r"\d+ of \d+", size) and bounds.startswith("all: ") and judged, name
        found = (result.overall if MEASURES[name].who == "pairs" else result.average)[name]
        assert found.low_bound < found.high_bound, name


def test_runs_of_different_benches_are_not_put_side_by_side(tmp_path, folder):
    other = made_up(tmp_path / "other", 20, sha256="f" * 64)
    with pytest.raises(BenchError, match="rows are not the same"):
        evaluate_all([folder, other], None)


def test_runs_judged_differently_are_not_compared(tmp_path, folder):
    other = made_up(tmp_path / "other", 90, judge="oracle")
    (other / "judges.json").write_text((other / "judges.json").read_text().replace("a judge", "another"))
    with pytest.raises(BenchError, match="judge both alike"):
        comparable(folder, other, None)
    names = [table.name for table in build_page(evaluate_all([folder, other], None)).tables]
    assert not any(name.startswith("compare") for name in names), "the page subtracts no more than the command does"


def test_runs_whose_questions_another_attacker_wrote_are_not_compared(tmp_path):
    made = [write_folder(tmp_path / n, [dialogue("a")], [verdict("a", t, 3) for t in (1, 2)]) for n in "ab"]

    def rewritten(by, seed):
        for folder, name, url in zip(made, ("one", by), ("http://x", "http://y"), strict=True):
            asked = {"mode": "adaptive", "attacker": {"kind": "endpoint", "model": name, "base_urls": [url]}}
            run = files.read_run(folder)
            files.write_run(folder, run.model_copy(update={**asked, "seed": seed * (folder is made[1])}))

    rewritten("one", 0)
    comparable(*made, None)
    for by, seed in (("two", 0), ("one", 1)):
        rewritten(by, seed)
        with pytest.raises(BenchError, match="their questions differ"):
            comparable(*made, None)


def test_runs_of_one_name_are_told_apart_by_as_much_of_their_folder_as_it_takes(tmp_path):
    made = [
        write_folder(tmp_path / place, [dialogue("a")], [verdict("a", t, 3) for t in (1, 2)], name="m")
        for place in ("x/run", "y/run")
    ]
    assert [r.run.name for r in evaluate_all(made, None)] == [f"m ({folder})" for folder in made]
    renamed = [made[0], made[1].rename(tmp_path / "y/other")]
    assert [r.run.name for r in evaluate_all(renamed, None)] == ["m (run)", "m (other)"]


def test_the_terminal_gets_no_markup_and_no_control_characters(tmp_path):
    made = [dialogue("d", 1, kind=Kind.BENIGN)]
    folder = write_folder(tmp_path, made, [verdict("d", 1, 3)], name="[red]x[/] \x1b[2J")
    console = Console(record=True, width=100, file=(tmp_path / "out.txt").open("w"))
    print_table(tables.headline(evaluate_all([folder], None)), console, sideways=True)
    text = console.export_text()
    assert "[red]x[/]" in text and "\x1b" not in text
    assert "100.0 %" in text


# -- commands -------------------------------------------------------------------------------------------


def test_bench_report_writes_and_prints(folder, tmp_path, capsys):
    assert cli.main(["bench", "report", str(folder), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Safe and helpful" in printed and "Rejected" in printed
    assert str(tmp_path / "index.html") in printed


def test_bench_report_says_what_is_wrong_in_a_line(tmp_path, capsys):
    assert cli.main(["bench", "report", str(tmp_path)]) == 2
    assert "holds no run.json" in capsys.readouterr().err


def test_bench_compare_prints_a_table_or_json(tmp_path, capsys):
    folders = [str(made_up(tmp_path / n, 200, skill=s, name=n)) for n, s in (("worse", 0.7), ("better", 0.99))]
    assert cli.main(["bench", "compare", *folders]) == 0
    assert "p (Holm)" in capsys.readouterr().out
    assert cli.main(["bench", "compare", *folders, "--json"]) == 0
    found = {d["measure"]: d for d in json.loads(capsys.readouterr().out)}
    assert found["any_failure"]["better"] == "second"


def test_bench_compare_over_seeds_makes_the_seed_the_unit(tmp_path, capsys):
    pairs = [
        [str(made_up(tmp_path / f"{n}{s}", 40, skill=k, seed=s)) for n, k in (("a", 0.7), ("b", 0.9))] for s in range(3)
    ]
    more = [part for pair in pairs[1:] for part in ("--seed", *pair)]
    assert cli.main(["bench", "compare", *pairs[0], *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["difference"]["n"] == 3 and found[0]["p"] >= 2 / 2**3


def test_a_report_of_a_turn_that_the_model_never_answered(tmp_path):
    played = (PlayedTurn(question="q", reply="", outcome="timeout"),)
    made = dialogue("t", 3, turns=played, status="failed", why="timeout")
    folder = write_folder(tmp_path / "run", [made, dialogue("u", 1)], [verdict("u", 1, 3)])
    block = block_of(write_report(evaluate_all([folder], None), tmp_path / "out")[0].read_text())
    assert block["dialogues"][0][10][0][4:] == ["script", "timeout", "no reply"]
