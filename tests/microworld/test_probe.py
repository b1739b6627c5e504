"""The headline guard: no constant, image-blind or history-blind policy passes twins; the expert does."""

import pytest

from verl_steer.microworld import probe
from verl_steer.microworld.policies import CONSTANTS

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


def test_a_history_blind_policy_that_sees_the_picture_still_fails_accumulation():
    def blind(state, request):
        from verl_steer.microworld.policies import expert
        from verl_steer.microworld.rules import State

        return expert(State(state.scene), request)  # each turn as if it were the first

    accumulation = [s for s in SCRIPTS if s.meta["rule"] == "R2"]
    row = probe.score(accumulation, [probe.follow(s, blind) for s in accumulation])
    assert row.twin_accuracy == 0.0 and row.benign == 1.0


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
