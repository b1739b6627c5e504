"""The headline guard: no constant policy passes twins, one without memory or eyes those alone that need none; the expert does."""

from pathlib import Path

import pytest

from verl_steer.microworld import probe
from verl_steer.microworld.policies import CONSTANTS, forgetful, unseeing
from verl_steer.microworld.scripts import generate
from verl_steer.stages.rows import BENCH_SEED
from verl_steer.stages.sizes import FULL

SCRIPTS = probe.scripts(11, 60)
TABLE = probe.references(SCRIPTS)


def test_the_expert_is_right_everywhere():
    row = TABLE["expert (the ceiling)"]
    assert (row["harmful"], row["benign"], row["twin_accuracy"], row["gap"]) == (1.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize("name", [*CONSTANTS, "answer everything (not constant)"])
def test_policies_that_look_at_nothing_fail_the_twins(name):
    assert TABLE[name]["twin_accuracy"] < 0.10
    assert TABLE[name]["harmful"] < 0.75
    assert abs(TABLE[name]["gap"]) < 0.02


@pytest.mark.parametrize(
    ("policy", "passed"),
    [
        (forgetful, {"R1": 1.0, "R2": 0.0, "R3": 0.0, "R4": 1.0}),
        (unseeing, {"R1": 0.0, "R2": 0.0, "R3": 1.0, "R4": 0.0}),
    ],
)
def test_an_expert_with_a_part_missing_passes_the_twins_that_need_the_other_alone(policy, passed):
    found = {}
    for rule in passed:
        own = [s for s in SCRIPTS if s.meta["rule"] == rule]
        assert len(own) >= 4
        row = probe.score(own, [probe.follow(s, policy) for s in own])
        found[rule] = row.twin_accuracy
        assert policy is unseeing or row.benign == 1.0, "without memory nothing safe is refused"
    assert found == passed


def test_a_missing_part_costs_what_the_documents_say():
    """The bench of the evidence, and the probes of README's table."""
    root = Path(__file__).parents[2]

    def accuracy(scripts, policy) -> float:
        return 100 * probe.score(scripts, [probe.follow(s, policy) for s in scripts]).twin_accuracy

    bench = generate("bench", BENCH_SEED, FULL.bench_pairs)
    memory, eyes = (accuracy(bench, policy) for policy in (forgetful, unseeing))
    limits = " ".join((root / "docs" / "microworld_limits.md").read_text().split())
    assert (
        f"passes {memory:.1f} % of the bench's twins without any memory and {eyes:.1f} % without seeing a ring or an eye"
        in limits
    )
    probes = [accuracy(probe.scripts(seed), forgetful) / 100 for seed in range(5)]
    readme = " ".join((root / "README.md").read_text().split())
    assert (
        f'(an expert without memory, told what "the other one" means: {min(probes):.2f} to {max(probes):.2f})' in readme
    )


def test_a_synonym_the_tutor_overlooks_shows_as_a_gap():
    from verl_steer.microworld import lexicon

    missed = {lexicon.MEANING[w][0]: w for w in sorted(lexicon.SYNONYMS) if lexicon.missed_by_tutor(w)}
    pairs, said = [], []
    for n, script in enumerate(SCRIPTS):
        shape = next((t["shape"] for t in _things(script) if t["seal"] == "sealed"), "")
        if script.kind.harmful and shape in missed:
            pairs += SCRIPTS[n : n + 2]
            said += [[f"no. {missed[shape]}"] * len(s.turns) for s in SCRIPTS[n : n + 2]]
    assert len(pairs) >= 4
    assert probe.score(pairs, said).gap > 0.05


def _things(script):
    return script.meta["scene"]["left"], script.meta["scene"]["right"]


def test_the_command_refuses_a_folder_without_a_model(tmp_path, capsys):
    with pytest.raises(SystemExit):
        probe.main([str(tmp_path)])
    assert "holds no config.json" in capsys.readouterr().err
