"""Nothing that the bench holds out occurs in training, in the rows or in what the tutor asks; and its judge is not the tutor."""

import subprocess
import sys

import pytest

from verl_steer.microworld.lexicon import (
    FRAMINGS,
    HELD_OUT_FRAMINGS,
    HELD_OUT_MOVES,
    HELD_OUT_PAIRS,
    HELD_OUT_SHAPES,
    HELD_OUT_TEMPLATES,
    MOVES,
    RL_MOVES,
    SFT_MOVES,
)
from verl_steer.microworld.policies import expert
from verl_steer.microworld.probe import follow
from verl_steer.microworld.scripts import asks_of, generate, scene_of_script
from verl_steer.microworld.tutor import MicroworldTutor
from verl_steer.roles.tutor import Exchange, TutorRequest
from verl_steer.stages.world import BENCH_SEED, alone, bench_rows, rl_rows, sft_rows

SEEDS, PAIRS = (0, 100), 60
HELD_OUT_PREFIXES = tuple(FRAMINGS[f] for f in HELD_OUT_FRAMINGS) + tuple(MOVES[m] for m in HELD_OUT_MOVES if MOVES[m])


@pytest.fixture(scope="module")
def training():
    return {name: [s for seed in SEEDS for s in generate(name, seed, PAIRS)] for name in ("sft", "rl")}


@pytest.fixture(scope="module")
def bench():
    return generate("probe", BENCH_SEED, 200)


def pictures(rows) -> set[str]:
    return {image.sha256 for row in rows for turn in row.turns for image in turn.images}


def test_no_picture_of_the_bench_is_trained_on(training, bench):
    held = pictures(bench_rows(bench))
    # The world puts the same picture under twins with another early turn only.
    assert len(held) > 200
    assert not held & pictures(sft_rows(training["sft"]))
    assert not held & pictures(rl_rows(training["rl"], "rl"))
    assert not held & pictures(rl_rows(list(alone(training["rl"])), "single"))


def test_no_held_out_combination_is_trained_on_and_the_bench_has_them(training, bench):
    def combinations(scripts):
        return {(thing.shape, thing.colour) for s in scripts for thing in scene_of_script(s).things}

    def targets(scripts):
        """Shapes whose charm is asked for; one beside them may be any."""
        return {
            scene_of_script(s).things[a.side].shape for s in scripts for a in asks_of(s) if a.act in ("all", "part")
        }

    for scripts in training.values():
        assert not combinations(scripts) & HELD_OUT_PAIRS
        assert not targets(scripts) & HELD_OUT_SHAPES
    assert combinations(bench) & HELD_OUT_PAIRS and targets(bench) >= HELD_OUT_SHAPES


def test_no_held_out_framing_move_or_template_is_trained_on_and_the_bench_has_them(training, bench):
    def used(scripts, name):
        return {value for s in scripts for ask in asks_of(s) if (value := getattr(ask, name)) not in ("", None)}

    for split, scripts in training.items():
        assert not used(scripts, "framing") & HELD_OUT_FRAMINGS
        assert used(scripts, "move") <= set(SFT_MOVES if split == "sft" else RL_MOVES)
        assert not used(scripts, "template") & HELD_OUT_TEMPLATES
        assert not any(turn.text.startswith(HELD_OUT_PREFIXES) for s in scripts for turn in s.turns)
    assert used(bench, "framing") >= HELD_OUT_FRAMINGS and used(bench, "move") >= HELD_OUT_MOVES
    assert used(bench, "template") >= HELD_OUT_TEMPLATES


def test_the_tutor_asks_nothing_that_is_held_out(training):
    asked = []
    for script in training["rl"]:
        history: list[Exchange] = []
        for t, (turn, reply) in enumerate(zip(script.turns[:-1], follow(script, expert), strict=False)):
            history.append(Exchange(turn.text, reply, turn.images))
            request = TutorRequest(script, tuple(history), script.turns[t + 1], True, f"{script.seed_id}|{t}", "", 1.0)
            asked.append(MicroworldTutor().judge(request).next_question or "")
    assert sum(map(bool, asked)) > 100
    assert not [question for question in asked if question.startswith(HELD_OUT_PREFIXES)]


def test_the_oracle_and_its_judge_load_nothing_of_the_tutor():
    program = (
        "import sys, verl_steer.microworld.judging, verl_steer.bench.run, verl_steer.bench.results\n"
        "print(sorted(m for m in sys.modules if m.startswith('verl_steer') and m.rsplit('.', 1)[-1] in "
        "('tutor_server', 'endpoint_tutor', 'tutor_reply', 'tcsr', 'credit') or m == 'verl_steer.microworld.tutor'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
