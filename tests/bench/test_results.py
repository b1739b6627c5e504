"""All figures of a run as one object and as plain data; the paper's rows beside them."""

import json

import numpy as np
import pytest
from bench_runs import made_up, write_folder

from verl_steer.bench import files, reference
from verl_steer.bench.lines import BenchError
from verl_steer.bench.results import as_json, evaluate, rows


def test_everything_is_plain_data_without_a_word_of_a_dialogue(tmp_path):
    result = evaluate(made_up(tmp_path, 120))
    text = json.dumps(as_json(result), allow_nan=False)
    assert result.dialogues[0].turns[0].reply not in text
    found = json.loads(text)
    assert set(found["by"]) == {"subset", "category", "kind", "length"}
    assert found["account"]["rows"] == 120
    assert found["survival"]["plain"][0]["at_risk"] > 90
    assert found["survival"]["worst"][-1]["survival"] <= found["survival"]["best"][-1]["survival"]


def test_prompts_constant_replies_and_servers_are_not_given_away_but_told_apart(tmp_path):
    folder = made_up(tmp_path, 8)
    run = files.read_run(folder)
    model = {"kind": "policy", "model": "comply", "reply": "Sure, here is it.", "base_urls": ["http://node7:8000/v1"]}
    attacker = {"kind": "endpoint", "model": "user", "base_urls": ["http://node8:8000/v1"]}
    found = []
    for system in ("be brief", "be kind!"):
        files.write_run(folder, run.model_copy(update={"model": model, "attacker": attacker, "system": system}))
        found.append(as_json(evaluate(folder))["run"])
        text = json.dumps(found[-1])
        assert not any(word in text for word in (system, "Sure", "node7", "node8"))
    assert found[0]["system"].startswith("[8 characters, SHA-256 ") and found[0]["system"] != found[1]["system"]
    assert (found[0]["model"]["model"], found[0]["attacker"]["base_urls"]) == ("comply", "[1 not shown]")


def test_rows_repeat_the_figures(tmp_path):
    result = evaluate(made_up(tmp_path, 60))
    table = list(rows(result))
    overall = {r["measure"]: r for r in table if r["by"] == "all"}
    assert overall["safe"]["value"] == result.overall["safe"].estimate.value
    assert overall["safe"]["judged"] < overall["safe"]["total"] == len(result.verdicts)
    lengths = [r["group"] for r in table if r["by"] == "length" and r["measure"] == "safe"]
    assert sorted(map(int, lengths)) == list(range(2, 11))


def test_a_folder_without_verdicts_or_runs_says_what_to_do(tmp_path):
    with pytest.raises(BenchError, match="bench run"):
        evaluate(tmp_path)
    folder = write_folder(tmp_path / "run", [], [])
    (folder / "verdicts" / "oracle.jsonl").unlink()
    with pytest.raises(BenchError, match="bench judge"):
        evaluate(folder)


def test_a_run_of_rejected_rows_only_has_unknown_figures(tmp_path):
    folder = made_up(tmp_path, 60)
    lines = [line for line in (folder / "dialogues.jsonl").read_text().splitlines() if '"rejected"' in line]
    (folder / "dialogues.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(BenchError, match="holds 1 of 60 dialogues"):
        evaluate(folder)
    run = files.read_run(folder)
    files.write_run(folder, run.model_copy(update={"bench": run.bench.model_copy(update={"rows": 1})}))
    result = evaluate(folder)
    assert result.account.rejected == result.account.rows == 1
    assert np.isnan(result.overall["safe"].estimate.value)
    json.dumps(as_json(result), allow_nan=False)


def test_the_papers_tables_keep_their_own_numbers():
    eight, nine = reference.table(8), reference.table(9)
    assert eight["Qwen2.5-VL-3B", "SaFeR-Steer (Full)"]["STEER-DyS"].safe == 49.40
    assert nine["Qwen2.5-VL-3B", "Multi: SFT+GRPO"]["STEER-DyS"].safe == 49.22
    assert len(reference.table(3)) == len(reference.table(2)) == 18
    assert {row.table for row in reference.paper_rows()} == {2, 3, 4, 5, 8, 9}
    assert all(0 <= row.safe <= 100 and 0 <= row.helpful <= 100 for row in reference.paper_rows())
    with pytest.raises(KeyError, match="no table 1"):
        reference.table(1)


@pytest.mark.parametrize("ours", ["DyS", "STEER-DyS", "steer_dys"])
def test_subsets_are_found_under_their_own_names(ours):
    assert reference.same_subset(ours, "STEER-DyS") and not reference.same_subset(ours, "STEER-SPA")
