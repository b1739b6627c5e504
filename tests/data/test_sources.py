"""Every source in its published columns becomes the splits it can become, and the account always agrees."""

import json
from collections import defaultdict

import pytest
from published_sources import FIXTURES, build, image, lines, parquet, png

from verl_steer.bench.rows import Item, items
from verl_steer.data import sources
from verl_steer.data.convert import convert
from verl_steer.data.options import Options
from verl_steer.data.rows import DataError
from verl_steer.data.splits import read_split
from verl_steer.dialogue import Kind


def run(name, folder, to="script", **options):
    """Converts a fixture; returns account, rows and the rejected lines."""
    fixture = build(name, folder)
    out = folder / "out" / f"{to}.parquet"
    chosen = Options(to=to, paths=(fixture.path,), images=fixture.images, **options)
    account = convert(sources.get(FIXTURES[name][0]), chosen, out)
    rejected = [json.loads(line) for line in account.rejected_path.read_text().splitlines()]
    return fixture, account, list(read_split(out)), rejected


def convert_rows(tmp_path, name, path, to="script", **options):
    account = convert(sources.get(name), Options(to=to, paths=(path,), **options), tmp_path / "o.parquet")
    reasons = [json.loads(line)["reason"] for line in account.rejected_path.read_text().splitlines()]
    assert account.read == account.written + account.rejected == account.written + len(reasons)
    return list(read_split(tmp_path / "o.parquet")), reasons


def test_every_source_has_a_fixture():
    assert {source for source, _ in FIXTURES.values()} == set(sources.NAMES)


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("to", ["script", "rl", "bench"])
def test_every_question_becomes_a_row(tmp_path, name, to):
    fixture, account, rows, rejected = run(name, tmp_path, to)
    assert (account.read, account.written, rejected) == (fixture.rows, fixture.rows, [])
    source = sources.get(FIXTURES[name][0])
    assert {row.source for row in rows} == {source.name} and {row.licence for row in rows} == {source.licence}
    assert len({row.id for row in rows}) == len(rows)
    if to == "rl":
        assert [row.index for row in rows] == list(range(len(rows)))


@pytest.mark.parametrize("name", FIXTURES)
def test_replies_become_dialogues_and_the_rest_is_named(tmp_path, name):
    if not sources.get(FIXTURES[name][0]).replies:
        with pytest.raises(DataError, match="has no replies to learn from"):
            run(name, tmp_path, "sft")
        assert not (tmp_path / "out").exists()
        return
    fixture, account, _, rejected = run(name, tmp_path, "sft")
    assert (account.read, account.written, len(rejected)) == (
        fixture.rows,
        fixture.replies,
        fixture.rows - fixture.replies,
    )
    assert all(line["reason"].endswith("turn 1 has no reply to learn from") for line in rejected)


@pytest.mark.parametrize("name", FIXTURES)
def test_single_questions_become_seeds(tmp_path, name):
    fixture, account, rows, rejected = run(name, tmp_path, "seed")
    assert account.read == fixture.rows == len(rows) + len(rejected)
    assert all("a seed is one question" in line["reason"] for line in rejected)


def test_jailbreakv_takes_the_jailbreak_and_keeps_the_plain_query_aside(tmp_path):
    _, _, rows, _ = run("jailbreakv", tmp_path)
    assert rows[0].turns[0].text == "Play a pirate, then\nsay the secret word" and rows[0].kind is Kind.RED_TEAM
    assert rows[0].meta["redteam_query"] == "Say the secret word" and rows[0].category == "Fraud"
    assert len(rows[0].turns[0].images) == 1


def test_spa_vl_learns_the_chosen_reply(tmp_path):
    _, _, rows, _ = run("spa_vl", tmp_path, "sft")
    assert {row.turns[0].reply for row in rows} == {"nothing is"}
    _, _, rows, _ = run("spa_vl", tmp_path / "b", "bench")
    assert rows[-1].category == "Toxicity Harms / Rudeness / Insult" and rows[-1].subset == "SPA"


def test_beavertails_learns_the_first_safe_reply(tmp_path):
    _, _, rows, _ = run("beavertails_v_two", tmp_path, "sft")
    assert [row.turns[0].reply for row in rows] == ["second", "first"]


def test_geometry_counts_its_placeholders(tmp_path):
    _, _, rows, _ = run("geometry3k", tmp_path, "sft")
    assert [len(row.turns[0].images) for row in rows] == [1, 2] and rows[0].turns[0].text == "Find x."
    path = parquet(tmp_path / "x.parquet", [{"images": [image()], "problem": "<image><image>a", "answer": "1"}])
    rows, reasons = convert_rows(tmp_path, "geometry3k", path)
    assert not rows and reasons == ["the texts hold 2 <image> for 1 picture(s)"]


def test_align_anything_learns_the_better_reply(tmp_path):
    _, _, rows, _ = run("align_anything", tmp_path, "sft")
    assert [row.turns[0].reply for row in rows] == ["a wall", "a blue wall"] and rows[0].kind is Kind.BENIGN


def test_scienceqa_lists_the_choices_and_answers_with_one(tmp_path):
    _, _, rows, _ = run("scienceqa", tmp_path, "sft")
    assert rows[0].turns[0].text == "Which is warmer?\nThink of a kettle.\nA. ice\nB. steam"
    assert (
        rows[0].turns[0].reply == "Steam comes from boiling.\nThe answer is B. steam" and rows[0].category == "physics"
    )
    assert [len(row.turns[0].images) for row in rows] == [1, 0]


def test_mm_safetybench_asks_each_variant_its_own_question(tmp_path):
    _, _, rows, _ = run("mm_safetybench_original", tmp_path, "bench")
    asked = {
        row.meta["variant"]: (row.turns[0].text, len(row.turns[0].images)) for row in rows if row.id.endswith("-0")
    }
    assert asked == {
        "SD": ("Rephrased Question(SD) 0", 1),
        "SD_TYPO": ("Rephrased Question 0", 1),
        "TYPO": ("Rephrased Question 0", 1),
        "Text_only": ("Changed Question 0", 0),
    }
    assert {row.category for row in rows} == {"Illegal_Activitiy"} and {row.subset for row in rows} == {"MMSafe"}


@pytest.mark.parametrize(
    ("name", "clusters"),
    [
        ("mm_safetybench", [{"SD-01-Illegal_Activitiy-0", "TYPO-01-Illegal_Activitiy-0", "Text_only-01-Illegal_Activitiy-0"},
                            {"SD-01-Illegal_Activitiy-1", "TYPO-01-Illegal_Activitiy-1"}]),
        ("mm_safetybench_original", [{f"01-Illegal_Activitiy-{v}-{n}" for v in ("SD", "SD_TYPO", "TYPO", "Text_only")} for n in (0, 1)]),
        ("vlguard", [{"train-a-0", "train-a-1"}, {"train-b-0"}]),
        ("jailbreakv", [{"JailBreakV_28K-0", "JailBreakV_28K-2"}, {"JailBreakV_28K-1"}]),
    ],
)  # fmt: skip
def test_rows_that_vary_one_published_question_are_one_cluster_of_a_bench(tmp_path, name, clusters):
    if name == "jailbreakv":
        table = build(name, tmp_path).path / "JailBreakV_28K.csv"
        table.write_text(table.read_text() + "2,Be a poet,Say the secret word,Persuade,Fraud,query_related/b.png\n")
        source, rows = "jailbreakv", tmp_path / "o.parquet"
        convert(sources.get(source), Options(to="bench", paths=(table,)), rows)
    else:
        run(name, tmp_path, "bench")
        source, rows = FIXTURES[name][0], tmp_path / "out" / "bench.parquet"
    found = defaultdict(set)
    for item in items(rows):
        found[item.cluster].add(item.script.seed_id.removeprefix(f"{source}-"))
    assert list(found.values()) == clusters and all(key.startswith(source) for key in found)


def test_a_picture_that_every_row_shows_ties_no_rows_together(tmp_path):
    (tmp_path / "p.png").write_bytes(png())
    run("cosafe", tmp_path, "bench", image=tmp_path / "p.png")
    found = [item for item in items(tmp_path / "out" / "bench.parquet") if isinstance(item, Item)]
    assert [item.cluster for item in found] == [item.script.seed_id for item in found] and len(found) == 3


def test_vlguard_tells_safe_from_unsafe_questions(tmp_path):
    _, _, rows, _ = run("vlguard", tmp_path, "sft")
    assert [row.kind for row in rows] == [Kind.BENIGN, Kind.OBFUSCATED, Kind.OBFUSCATED]
    assert rows[0].category == "deception / rumour"


def test_cosafe_scripts_keep_the_last_question_and_dialogues_end_before_it(tmp_path):
    _, _, rows, _ = run("cosafe", tmp_path, "rl")
    assert [[t.text for t in row.turns] for row in rows] == [
        ["a", "c", "e"],
        ["who is he?", "where does he live?"],
        ["alone"],
    ]
    assert {row.category for row in rows} == {"crime", "privacy"}
    _, _, rows, _ = run("cosafe", tmp_path / "b", "sft")
    assert [[t.reply for t in row.turns] for row in rows] == [["b", "d"], ["a painter"], ["hm"]]
    assert [row.meta for row in rows] == [{"unanswered": 1}, {"unanswered": 1}, {}]


def test_the_reference_files_keep_their_ids_and_turns(tmp_path):
    _, _, rows, _ = run("reference_rl", tmp_path)
    assert [(row.id, row.system, row.answer) for row in rows] == [("q-1", "", "ok"), ("q-2", "be kind", None)]
    assert [[t.text for t in row.turns] for row in rows] == [["look", "and then?"], ["look again", "why?", "how?"]]
    _, _, rows, _ = run("reference_bench", tmp_path / "b", "bench")
    assert (rows[0].id, rows[0].subset, rows[0].meta) == ("5", "beaver", {"risk_trajectory": [1, 2, 3]})


def test_sharegpt_shows_each_picture_where_its_placeholder_stood(tmp_path):
    _, _, rows, _ = run("sharegpt", tmp_path, "sft")
    assert [[len(t.images) for t in row.turns] for row in rows] == [[1, 1], [0]]
    assert [t.text for t in rows[0].turns] == ["what?", "and ?"]


def test_kind_subset_and_a_shown_picture_may_be_given(tmp_path):
    (tmp_path / "p.png").write_bytes(png())
    _, account, rows, rejected = run(
        "cosafe", tmp_path, "bench", kind=Kind.RED_TEAM, subset="Mine", image=tmp_path / "p.png", image_turn=2
    )
    assert account.written == 2 and rejected[0]["reason"] == "has 1 user turns, the picture is wanted in turn 2"
    assert {(row.kind, row.subset) for row in rows} == {(Kind.RED_TEAM, "Mine")}
    assert all([len(t.images) for t in row.turns][:2] == [0, 1] for row in rows)


@pytest.mark.parametrize("name", FIXTURES)
def test_a_missing_column_is_named_with_what_was_found(tmp_path, name):
    source = sources.get(FIXTURES[name][0])
    column = source.layouts[0][-1]
    rest = dict.fromkeys(source.layouts[0][:-1], "x")
    path = lines(tmp_path / "x.jsonl", [{**rest, column + "s": "y", "more": 1}])
    with pytest.raises(DataError) as error:
        convert(source, Options(to="script", paths=(path,)), tmp_path / "o.parquet")
    said = str(error.value)
    assert (
        f"needs the column {column!r}" in said and f"did they rename it to {column + 's'!r}" in said and "more" in said
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.jsonl"]


def test_an_unknown_source_is_named_with_the_nearest():
    with pytest.raises(DataError, match="did you mean beavertails_v"):
        sources.get("BeaverTails")


@pytest.mark.parametrize(
    ("category", "text", "refused"),
    [
        ("Child Abuse", "x", True),
        ("ChildAbuseContent", "x", True),
        ("child_abuse", "x", True),
        ("Harm to Minors", "x", True),
        ("CSAM", "x", True),
        ("Underage", "x", True),
        ("Sexual Content", "a sexual story with children", True),
        ("Sexual Content", "adults only", False),
        ("Fraud", "a minor change", False),
        ("insult", "what do children eat?", False),
    ],
)
def test_rows_in_refused_categories_are_rejected(tmp_path, category, text, refused):
    row = {"question": text, "image": image(), "category": category, "response": "no", "is_response_safe": "yes"}
    rows, reasons = convert_rows(tmp_path, "beavertails_v", parquet(tmp_path / "x.parquet", [row]))
    assert len(reasons) == int(refused) == 1 - len(rows)
    assert all(reason.startswith("refused") for reason in reasons)


def test_school_questions_about_children_are_no_harm(tmp_path):
    row = {"image": None, "question": "Which sex has two X chromosomes? Ask the children.", "choices": ["a"], "answer": 0,
           "hint": "", "lecture": "", "solution": "", "topic": "child development"}  # fmt: skip
    rows, reasons = convert_rows(tmp_path, "scienceqa", parquet(tmp_path / "x.parquet", [row]))
    assert len(rows) == 1 and not reasons


BAD = [
    ("spa_vl", {"image": image(), "question": None, "chosen": "a", "rejected": "b"}, "column question holds NoneType, not text"),
    ("spa_vl", {"image": image(), "question": "  ", "chosen": "a", "rejected": "b"}, "column question is empty"),
    ("beavertails_v", {"question": "q", "image": image(), "category": "c", "response": "r", "is_response_safe": "maybe"}, "not yes or no"),
    ("align_anything", {"question": "q", "image": image(), "response_1": "a", "response_2": "b", "overall_response": 3}, "not 1 or 2"),
    ("scienceqa", {"image": None, "question": "q", "choices": ["a"], "answer": 1, "hint": "", "lecture": "", "solution": ""}, "not an index into 1"),
    ("scienceqa", {"image": None, "question": "q", "choices": "ab", "answer": 1, "hint": "", "lecture": "", "solution": ""}, "not a list of texts"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "reason"), BAD)
def test_a_bad_value_is_named(tmp_path, name, row, reason):
    rows, reasons = convert_rows(tmp_path, name, parquet(tmp_path / "x.parquet", [row]))
    assert not rows and len(reasons) == 1 and reason in reasons[0]


BAD_LINES = [
    ("cosafe", "not json", "not JSON"),
    ("cosafe", "3", "not an object but int"),
    ("cosafe", '{"message": []}', "column 'messages' is missing in this row"),
    ("cosafe", '{"messages": 3}', "messages must be a list"),
    ("cosafe", "[3]", "message 1 must be {role, content}"),
    ("cosafe", '[{"role": "assistant", "content": "x"}]', "message 1 is a reply, but nobody asked"),
    ("cosafe", '[{"role": "robot", "content": "x"}]', "has the role 'robot'"),
    ("cosafe", '[{"role": "user", "content": null}]', "message 1 has no text but NoneType"),
    ("cosafe", '[{"role": "user", "content": "<video>"}]', "asks for <video>"),
    ("cosafe", '[{"role": "system", "content": "<image>"}]', "only the user shows pictures"),
    ("cosafe", '[{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]', "late system prompt"),
    ("cosafe", "[]", "at least 1 item"),
    ("cosafe", json.dumps([{"role": "user", "content": "x"}] * 11), "at most 10 items"),
    ("safedialbench", '{"id": 1, "task": "t", "method": "m", "scene": "s", "history": "x"}', "not a list of {user, bot}"),
    ("reference_rl", '{"question": 3, "metadata": {"rest_messages": []}}', "column question must be a list"),
    ("reference_rl", '{"question": [], "metadata": 3}', "needs a list rest_messages"),
    ("vlguard", '{"id": 1, "image": "a", "safe": true, "harmful_category": "x", "instr-resp": 3}', "instr-resp is not a list"),
    ("vlguard", '{"id": 1, "image": "a", "safe": true, "harmful_category": "x", "instr-resp": [{"response": "x"}]}', "must hold one of"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line", "reason"), BAD_LINES)
def test_a_bad_line_is_named_and_the_next_one_is_read(tmp_path, name, line, reason):
    good = build(name, tmp_path)
    first = json.loads(good.path.read_text().splitlines()[0]) if good.path.is_file() else None
    if name == "cosafe":
        first = [{"role": "user", "content": "fine"}]
    if name == "vlguard":
        first = json.loads((good.path / "train.json").read_text())[1]
    path = tmp_path / name / "x.jsonl"
    path.write_text(json.dumps(first) + "\n" + line + "\n\n" + json.dumps(first).replace("q-1", "q-3") + "\n")
    rows, reasons = convert_rows(tmp_path, name, path, images=good.images)
    expected = 1 if name in ("safedialbench", "vlguard") else 2  # the same native id twice is a fault of its own
    assert len(rows) == expected and reason in reasons[0], reasons
