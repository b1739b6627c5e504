"""Nothing that the bench holds out occurs in training, in the rows or in what the tutor asks; and its judge is not the tutor."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("datasketch")
pytest.importorskip("uvicorn")
from verl_steer.data.rows import read_rows, row_to_script
from verl_steer.data.splits import read_split
from verl_steer.microworld.lexicon import (
    COLOURS,
    FRAMINGS,
    HELD_OUT_FRAMINGS,
    HELD_OUT_MOVES,
    HELD_OUT_PAIRS,
    HELD_OUT_SHAPES,
    HELD_OUT_TEMPLATES,
    MOVES,
    RL_MOVES,
    SHAPES,
    TEMPLATES,
)
from verl_steer.microworld.picture import scene_of
from verl_steer.microworld.reply import Surface
from verl_steer.microworld.scripts import asks_of, generate, scene_of_script
from verl_steer.microworld.tutor import MicroworldTutor
from verl_steer.roles.tutor import Exchange, TutorRequest
from verl_steer.stages import rows
from verl_steer.stages.plan import Place
from verl_steer.stages.sizes import FULL

PREFIXES = {**FRAMINGS, **{name: text for name, text in MOVES.items() if text}}
ALLOWED = set(FRAMINGS) - HELD_OUT_FRAMINGS | set(RL_MOVES)
_OBJECT = rf"(?:(?:(?:{'|'.join(COLOURS)}) )?(?:{'|'.join(SHAPES)})|other one)"
_ANY = {"obj": _OBJECT, "nth": "[a-z]+", "purpose": "[a-z]+"}
HELD_OUT_QUESTIONS = re.compile(
    "|".join(
        re.escape(text).replace(r"\{", "{").replace(r"\}", "}").format(**_ANY)
        for intent in TEMPLATES.values()
        for n, text in enumerate(intent)
        if n in HELD_OUT_TEMPLATES
    )
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Rows of two seeds, by the pipeline itself."""
    root = tmp_path_factory.mktemp("stages")
    sizes = replace(FULL, seeds=80, sft_dialogues=48, rl_scripts=32, curve_pairs=4, bench_pairs=200)
    for seed in (0, 100):
        rows.prepare(Place(root, seed), sizes)
    return root


@pytest.fixture(scope="module")
def training(place):
    """Split -> (user turns' texts, picture of the first) of every row."""
    found = {"sft": [], "rl": [], "single": []}
    for seed in (0, 100):
        own = Place(place, seed)
        for row in read_split(own.rows("sft")):
            found["sft"].append(([turn.text for turn in row.turns], row.turns[0].images[0]))
        for name in ("rl", "single"):
            for row in map(row_to_script, read_rows(own.rows(name))):
                found[name].append(([turn.text for turn in row.turns], row.turns[0].images[0]))
    return found


@pytest.fixture(scope="module")
def bench():
    return generate("bench", rows.BENCH_SEED, 200)


def split_off(question: str) -> tuple[str, str]:
    """The name of a framing or move, "" for none, and the rest."""
    for name, text in PREFIXES.items():
        if question.startswith(text):
            return name, question.removeprefix(text).strip()
    return "", question


def test_the_pipeline_gives_both_splits_their_size_and_the_third_arm_every_question_alone(training):
    assert len(training["sft"]) == 96 and len(training["rl"]) == 64
    assert len(training["single"]) == sum(len(texts) for texts, _ in training["rl"])
    assert {len(texts) for texts, _ in training["single"]} == {1}
    assert {3, 4, 5} <= {len(texts) for texts, _ in training["rl"]}


def test_no_picture_of_the_bench_is_trained_on(training, bench):
    held = {turn.images[0].sha256 for script in bench for turn in script.turns[:1]}
    assert len(held) > 200
    for split in training.values():
        assert not held & {picture.sha256 for _, picture in split}


def test_no_held_out_combination_is_trained_on_and_the_bench_has_them(training, bench):
    def targets(split):
        """Shapes whose charm is asked for; one beside them may be any."""
        for texts, picture in split:
            scene = scene_of(picture.data)
            for text in texts:
                request = Surface.question(text, scene, None)
                if request.act in ("all", "part") and request.side is not None:
                    yield scene.things[request.side].shape

    for split in training.values():
        scenes = [scene_of(picture.data) for _, picture in split]
        assert not {(thing.shape, thing.colour) for scene in scenes for thing in scene.things} & HELD_OUT_PAIRS
        assert set(targets(split)) and not set(targets(split)) & HELD_OUT_SHAPES
    shown = {(thing.shape, thing.colour) for script in bench for thing in scene_of_script(script).things}
    asked = {scene_of_script(s).things[a.side].shape for s in bench for a in asks_of(s) if a.act in ("all", "part")}
    assert shown & HELD_OUT_PAIRS and asked >= HELD_OUT_SHAPES


def test_no_held_out_framing_move_or_template_is_trained_on_and_the_bench_has_them(training, bench):
    for split in training.values():
        parts = [split_off(text) for texts, _ in split for text in texts]
        assert {name for name, _ in parts} - {""} <= ALLOWED
        assert not [rest for _, rest in parts if "other one" in rest or HELD_OUT_QUESTIONS.fullmatch(rest)]
        assert len({name for name, _ in parts}) > 4
    asks = [ask for script in bench for ask in asks_of(script)]
    assert {a.framing for a in asks} >= HELD_OUT_FRAMINGS and {a.move for a in asks} >= HELD_OUT_MOVES
    assert {a.template for a in asks} >= HELD_OUT_TEMPLATES
    texts = [split_off(turn.text)[1] for script in bench for turn in script.turns]
    assert any(map(HELD_OUT_QUESTIONS.fullmatch, texts)), "the pattern can match"


def test_the_tutor_asks_nothing_that_is_held_out(place):
    asked = []
    for row in read_rows(Place(place, 0).rows("rl")):
        script = row_to_script(row)
        history: list[Exchange] = []
        for t, turn in enumerate(script.turns[:-1]):
            history.append(Exchange(turn.text, "the star open, star no. shall we look elsewhere?", turn.images))
            request = TutorRequest(script, tuple(history), script.turns[t + 1], True, f"{script.seed_id}|{t}", "", 1.0)
            asked.append(MicroworldTutor().judge(request).next_question or "")
    assert sum(map(bool, asked)) > 50
    parts = [split_off(question) for question in asked]
    assert {name for name, _ in parts} - {""} <= ALLOWED
    assert not [rest for _, rest in parts if "other one" in rest]


def test_the_oracle_and_its_judge_load_nothing_of_the_tutor():
    program = (
        "import sys, verl_steer.microworld.judging, verl_steer.bench.run, verl_steer.bench.results\n"
        "print(sorted(m for m in sys.modules if m.startswith('verl_steer') and m.rsplit('.', 1)[-1] in "
        "('tutor_server', 'endpoint_tutor', 'tutor_reply', 'tcsr', 'credit') or m == 'verl_steer.microworld.tutor'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
