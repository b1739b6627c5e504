"""The page says what the files say, and what is missing."""

import re
from pathlib import Path

import pytest
from stages_results import result

from verl_steer.cli import main
from verl_steer.stages import result as results
from verl_steer.stages.contrasts import Contrast, Runs, mean_interval
from verl_steer.stages.evidence import page, write_evidence
from verl_steer.stages.pictures import drawn
from verl_steer.stages.plan import ADDED_ARMS, ARMS, CONFIRMATORY_SEEDS, FIRST_ROUND_SEEDS, constants
from verl_steer.stages.tables import at_most, difference

ROOT = Path(__file__).parents[2]


def written(tmp_path, *found) -> str:
    for one in found:
        results.write(one, tmp_path / "runs")
    return write_evidence(tmp_path / "runs", tmp_path / "evidence.md", CONFIRMATORY_SEEDS)[0].read_text()


def test_without_a_run_the_page_says_so_and_holds_no_figure(tmp_path):
    text = written(tmp_path)
    assert "**0 of 150 runs are there**" in text and "No run has been made" in text
    assert "Nothing has been run." in text and not list(tmp_path.glob("*.png"))
    assert not re.search(r"\d\.\d{3}", text), "a figure without a run"


def test_figures_intervals_and_gates_stand_in_their_tables(tmp_path):
    found = []
    for seed in CONFIRMATORY_SEEDS:
        wobble = 0.01 * (seed % 2)
        found += [result(seed, "base", 0.1 + wobble), result(seed, "sft", 0.4), result(seed, "full", 0.6 + wobble)]
        found += [result(seed, "yoked", 0.55 + wobble)]
    found.append(result(None, "refuse", 0.2))
    text = written(tmp_path, *found)
    assert "**40 of 150 runs are there**" in text and "- plain_mean: seeds 10–19" in text
    # sft - base: 0.3 and 0.29 in turn, mean 29.5, s = 0.527, half-width t(.975, 9) 2.262157 * 0.527 / sqrt(10) = 0.377
    assert "| sft − base | joint pass, harmful | 10 | +29.5 | [29.1, 29.9] | 0.0020 | ≥ 10.0 | yes |" in text
    assert "| full − yoked | joint pass, harmful | 10 | +5.0 | [5.0, 5.0] | 0.0020 | 0.0078 |" in text
    assert "| full − plain_mean | joint pass, harmful | 0 | missing | – | – | – |" in text
    assert "Half-widths of the intervals in points, goal ≤ 6: yoked 0.0.\n" in text
    assert "- base student between 0 and 30 % joint pass: 10.5: yes" in text
    assert "above every constant policy, joint pass, harmful: 10 of 10 seeds (the best constant policy: 20.0)" in text
    assert "| harmful:4 | 0.600 (n = 100, 10 seeds) |" in text
    assert "The least p value there can be: 0.00195 with 10 seeds." in text
    assert (tmp_path / "evidence_survival.png").stat().st_size > 5000 and (tmp_path / "evidence_learning.png").is_file()
    assert "python -m train full" in text and "verl 0.9.1" in text


def whole_round(**changes):
    """Base, SFT and full of ten seeds, every goal reached, but for what `changes` says of `full`."""
    found = [result(None, name, 0.0) for name in constants()]
    for seed in CONFIRMATORY_SEEDS:
        flips = {"picture": (9, 8), "picture_irrelevant": (9, 0), "history": (5, 5), "history_irrelevant": (5, 0)}
        turned = {name: {"right": right, "flipped": flipped} for name, (right, flipped) in flips.items()}
        full = {"joint": 0.6 + 0.01 * (seed % 3), "flips": turned} | changes
        found += [result(seed, "base", 0.1), result(seed, "sft", 0.4), result(seed, "full", **full)]
    return found


def test_every_hypothesis_is_decided_by_its_rule(tmp_path):
    text = written(tmp_path, *whole_round())
    for name in ("1 (order)", "2 (benign dialogues)", "4 (picture and history)", "5 (survival)"):
        assert f"- Hypothesis {name}: **confirmed**.\n" in text
    assert "- Hypothesis 3 (ablations): open, 10 of 10 seeds lack a run.\n" in text
    assert "The first one did not confirm that stage III adds to stage II" in text


def test_the_order_is_open_while_a_constant_policy_is_missing(tmp_path):
    text = written(tmp_path, *(r for r in whole_round() if r.arm != "empty"))
    assert "- Hypothesis 1 (order): open, without a result of empty.\n" in text
    assert "**Missing:** constant policies: empty." in text and "three_stages.sh --seeds 10" in text


def test_curves_over_other_seeds_are_not_laid_over_each_other():
    """The arm on one seed would seem to lose what that seed lacks."""
    found = [
        *(result(seed, "full") for seed in (10, 11)),
        result(10, "script"),
        *(result(s, "yoked") for s in (10, 11)),
    ]
    assert drawn(Runs(found, CONFIRMATORY_SEEDS)) == (["full", "yoked"], ["script"])
    assert drawn(Runs([result(10, "script")], CONFIRMATORY_SEEDS)) == (["script"], [])


def test_an_ablation_differs_or_is_alike_or_is_undecided(tmp_path):
    """`full` minus the four: always 20 points, always 1 but in one seed -1, 0 and 30 in turn, always 0.

    Holm: 4 * 2 / 1024, 3 * 22 / 1024 (the eleven signs as far out, twice), 2 * 32 / 1024 (five zeros leave 2 / 2^5) and 1.
    """
    found = whole_round()
    for one in [r for r in found if r.arm == "full"]:
        odd, joint = one.seed % 2, one.by_kind["harmful"]["joint"]
        ahead = {
            "yoked": 0.2,
            "no_bootstrap": -0.01 if one.seed == 10 else 0.01,
            "plain_mean": 0.3 * odd,
            "single_turn": 0.0,
        }
        found += [result(one.seed, arm, joint - points) for arm, points in ahead.items()]
    assert (
        "- Hypothesis 3 (ablations): `full` differs (Holm) from yoked (+20.0 [20.0, 20.0]); no difference is seen, by an interval of at "
        "most ±6 points, from no_bootstrap (+0.8 [0.3, 1.3]), single_turn (+0.0 [0.0, 0.0]); undecided, the interval is wider than ±6 points: "
        "plain_mean (+15.0 [3.7, 26.3]).\n"
    ) in written(tmp_path, *found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"joint": 0.5}, "1 (order): **not confirmed**: full − sft (joint pass, harmful)."),
        ({"joint": 0.4}, "5 (survival): **not confirmed**: full − sft (safe turns of the first 8)."),
        (
            {"by_kind": {"benign": {"joint": 0.8}, "harmful": {"joint": 0.6}}},
            "2 (benign dialogues): **not confirmed**: the bound is -10.0 points.",
        ),
        (
            {"flips": {"picture": {"right": 9, "flipped": 9}, "history_irrelevant": {"right": 5, "flipped": 1}}},
            "without an earlier turn that decides nothing: 20.0 %",
        ),
    ],
)
def test_a_hypothesis_that_misses_says_what_it_missed(tmp_path, changes, said):
    assert said in written(tmp_path, *whole_round(**changes))


def test_what_interventions_turn_is_a_mean_of_seeds_and_not_of_dialogues(tmp_path):
    """Seed 10: 9 of 90 turned, seed 11: 5 of 10. In sum 14 %, as a mean 30 %."""
    turned = {10: (90, 9), 11: (10, 5)}
    found = [
        result(seed, "full", flips={"history_irrelevant": {"right": right, "flipped": flipped}})
        for seed, (right, flipped) in turned.items()
    ]
    assert re.search(
        r"\| full \| without an earlier turn that decides nothing \| 100 \| 14 \| 30\.0 % \| \[.*\] \| ≤ 10 % \| no \| 1 of 2 \|",
        written(tmp_path, *found),
    )


def test_unequal_numbers_of_seeds_have_a_least_p_each(tmp_path):
    found = [result(seed, arm, v) for seed in (10, 11, 12) for arm, v in (("base", 0.1), ("sft", 0.4))]
    text = written(tmp_path, *found, result(10, "full", 0.6), result(11, "full", 0.6))
    assert "The least p value there can be: 0.5 with 2 seeds, 0.25 with 3 seeds." in text


def test_a_goal_needs_size_interval_and_p_together(tmp_path):
    text = written(
        tmp_path, *(r for s in range(3) for r in (result(10 + s, "sft", 0.3), result(10 + s, "full", 0.6 + 0.01 * s)))
    )
    assert re.search(r"\| full − sft \| joint pass, harmful \| 3 \| \+31\.0 .* 0\.2500 \| ≥ 15\.0 \| no \|", text)


def test_what_an_arm_gains_stands_by_rule(tmp_path):
    """Seeds 10 and 11: `full` .5 and .7, `yoked` .4 and .4 on R2; differences 10 and 30: mean 20, half-width 12.706 * 10 = 127.1."""
    found = [
        result(seed, arm, by_rule={"R2": {"harmful": value, "benign": 0.9}})
        for seed, full in ((10, 0.5), (11, 0.7))
        for arm, value in (("full", full), ("yoked", 0.4))
    ]
    # Stage II had .3 in seed 10 alone, and .35 of the pairs: that is where both arms began.
    found.append(result(10, "sft", by_rule={"R2": {"harmful": 0.3, "benign": 0.9, "twin_accuracy": 0.35}}))
    text = written(tmp_path, *found)
    harmful, benign, twins = text.split("## By rule")[1].split("## Survival")[0].split("| arm | seeds | R2 |")[1:]
    assert "R2: accumulation. An expert without memory" in text
    # A rate ends at 0 and 100, its interval too.
    assert "| full | 2 | 60.0 [0.0, 100.0] |" in harmful and "| yoked | 2 | 40.0 [40.0, 40.0] |" in harmful
    assert "| yoked | +20.0 [-107.1, 147.1] | +10.0 [one seed] |" in harmful
    assert "| full | – | +20.0 [one seed] |" in harmful and "| sft | +20.0 [one seed] | – |" in harmful
    assert "| yoked | +0.0 [0.0, 0.0] | +0.0 [one seed] |" in benign
    assert "| sft | 1 | 35.0 [one seed] |" in twins and "| full | 2 |" not in twins
    assert "By rule: unknown" in written(tmp_path / "older", result(10, "full"))


def test_what_the_arms_met_stands_beside_them(tmp_path):
    """Two seeds with 100 and 300 dialogues, a fifth and two fifths of the later questions a sibling's: 200 and 70 % others."""
    shared = {"replies": 400, "tokens": 5000, "silent": 0.25, "spread": 0.5, "later": 300, "rewritten": 0.3}
    sizes = {"sft_epochs": 1, "sft_dialogues": 400, "sft_batch": 16, "rl_steps": 24}
    found = [
        result(seed, "full", sizes=sizes, met={**shared, "rollouts": rollouts, "elsewhere": elsewhere})
        for seed, rollouts, elsewhere in ((10, 100, 0.8), (11, 300, 0.6))
    ]
    alone = {**shared, "rollouts": 400, "later": 0, "rewritten": None, "elsewhere": None}
    found.append(result(10, "single_turn_base", sizes=sizes, met=alone))
    text = written(tmp_path, *found)
    assert "| full | 2 | 25 + 24 | 200 | 400 | 5,000 | 25.0 % | 0.500 | 30.0 % | 70.0 % |" in text
    assert "| single_turn_base | 1 | 0 + 24 | 400 | 400 | 5,000 | 25.0 % | 0.500 | – | – |" in text
    others = (result(10, arm, sizes=sizes, met={**alone, "later": 9}) for arm in ("steer_turn", "reference"))
    text = written(tmp_path / "other", *others)
    assert "| steer_turn | 1 | 25 + 24 | 400 | 400 | 5,000 | – | – |" in text, "its advantages are no returns'"
    assert "| reference | 1 | 25 + 24 | 400 | 400 | 5,000 | 25.0 % | – |" in text, "it divides by the spread"


def test_an_ablation_may_differ_where_it_was_not_meant_to(tmp_path):
    """Over-refusal .5 and .7 of `full`, .4 of `yoked`: +10 and +30 points, half-width 12.706 * 10."""
    found = [
        result(seed, arm, measures={"over_refusal": value, "twin_accuracy": 0.5})
        for seed, full in ((10, 0.5), (11, 0.7))
        for arm, value in (("full", full), ("yoked", 0.4))
    ]
    row = "| full − yoked | 2 | +0.0 [0.0, 0.0] | +0.0 [0.0, 0.0] | +20.0 [-107.1, 147.1] |"
    assert row in written(tmp_path, *found)


def test_a_gauge_that_never_moves_is_said_to_find_nothing(tmp_path):
    """Rounding alone must not look like a measurement."""
    quiet = [result(10, arm, tutor={**result(10, arm).tutor, "gap": -1e-17}) for arm in ("sft", "full")]
    text = written(tmp_path / "quiet", *quiet)
    assert "differ by more than 1e-17; where they never part, this check has nothing to find" in text
    assert "-0.000" not in text
    bound = [result(10, arm, tutor={**result(10, arm).tutor, "gap": 1.4e-5}) for arm in ("sft", "full")]
    assert "differ by more than 2e-5;" in written(tmp_path / "bound", *bound), "a bound is rounded up"
    loud = [result(10, arm, tutor={**result(10, arm).tutor, "gap": 0.01}) for arm in ("sft", "full")]
    assert "nothing to find" not in written(tmp_path / "loud", *loud)


def test_an_ablation_s_interval_may_be_too_wide(tmp_path):
    """Differences 0 and 0.2: half-width t(.975, 1) 12.706 * 14.14 / sqrt(2) = 127.1 points."""
    text = written(
        tmp_path, *(r for s in (0, 1) for r in (result(10 + s, "full", 0.5), result(10 + s, "script", 0.5 - 0.2 * s)))
    )
    assert "goal ≤ 6: script 127.1 (too wide).\n" in text


def test_benign_dialogues_have_a_one_sided_bound(tmp_path):
    def pair(seed: int, after: float):
        return result(seed, "sft"), result(seed, "full", by_kind={"benign": {"joint": after}, "harmful": {}})

    text = written(tmp_path, *(r for seed in range(4) for r in pair(10 + seed, 0.9)))
    assert "full − sft, benign joint pass: +0.0 points over 4 seeds" in text and "not inferior: yes" in text
    text = written(tmp_path, *(r for seed in range(4) for r in pair(10 + seed, 0.8)))
    assert "lower bound -10.0 points" in text and "not inferior: no" in text


def test_seeds_of_development_confirm_nothing(tmp_path):
    results.write(result(100, "sft"), tmp_path / "runs")
    write_evidence(tmp_path / "runs", tmp_path / "e.md", (100,))
    assert (
        "not the confirmatory seeds (10–19) but 100: nothing below confirms anything" in (tmp_path / "e.md").read_text()
    )


def test_a_mistyped_folder_or_other_seeds_leave_the_page_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    results.write(result(100, "sft"), tmp_path / "development")
    page_ = tmp_path / "docs" / "evidence.md"
    page_.parent.mkdir()
    page_.write_text("figures")
    for arguments, said in (
        (("evidence", "--results", "evidence/run"), "--results evidence/run: there is no such folder"),
        (("evidence", "--results", "docs"), "--results docs: there is no result in it"),
        (("evidence", "--results", "development", "--seeds", "100"), "name another by --out"),
        (("refresh", "--results", "evidence/run"), "there is no such folder"),
    ):
        assert main(["stages", *arguments]) == 2
        assert said in capsys.readouterr().err and page_.read_text() == "figures"


def test_a_damaged_or_misnamed_result_is_named(tmp_path):
    path = results.write(result(0, "sft"), tmp_path)
    path.rename(tmp_path / "seed1-sft.json")
    with pytest.raises(results.ResultError, match="holds seed0-sft"):
        results.read_all(tmp_path)
    (tmp_path / "seed1-sft.json").write_text("{")
    with pytest.raises(results.ResultError, match=r"seed1-sft\.json is no result of this version"):
        results.read_all(tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "seeds"),
    [("evidence", "runs", CONFIRMATORY_SEEDS), ("evidence_first_round", "first_round", FIRST_ROUND_SEEDS)],
)
def test_the_pages_of_the_project_are_what_their_results_say(name, folder, seeds):
    pictures = [ROOT / "docs" / f"{name}_{what}.png" for what in ("survival", "learning")]
    shown = [path.name for path in pictures if path.is_file()]
    written_down = (ROOT / "docs" / f"{name}.md").read_text()
    assert written_down == page(Runs(results.read_all(ROOT / "evidence" / folder), seeds), shown)


def test_the_readme_quotes_the_page():
    runs = Runs(results.read_all(ROOT / "evidence" / "runs"), CONFIRMATORY_SEEDS)

    def rate(arm: str, outcome: str) -> str:
        return f"{100 * mean_interval(runs.values(arm, outcome))[0]:.0f}"

    harmful = {arm: rate(arm, "joint") for arm in ("base", "sft", "full", "sft_twice")}
    benign = {arm: rate(arm, "benign_joint") for arm in harmful}
    amiss = {arm: rate(arm, "over_refusal") for arm in harmful}
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"{harmful['base']} % of the harmful dialogues passed whole (safe and helpful) with the base student, "
        f"{harmful['sft']} % after Stage II and {harmful['full']} % after Stage III; of the benign ones {benign['base']}, "
        f"{benign['sft']} and {benign['full']} %, while some safe question was refused or answered amiss in "
        f"{amiss['base']}, {amiss['sft']} and {amiss['full']} % of them."
    ) in readme
    lost = 100 * runs.contrast(Contrast("no_bootstrap", "full", "joint")).value
    assert f"starting Stage III without Stage II costs {lost:.0f} points" in readme
    scripted = 100 * runs.contrast(Contrast("script", "full", "joint")).value
    ahead = -100 * runs.contrast(Contrast("plain_mean_kl", "full", "joint")).value
    last = 100 * runs.contrast(Contrast("final_credit", "full", "joint")).value
    turns = -100 * runs.contrast(Contrast("steer_turn", "full", "joint")).value
    assert f"scripted questions cost {scripted:.0f} points and credit to the last turn alone {last:.0f};" in readme
    assert (
        f"smaller advantages is {ahead:.0f} points ahead of TCSR, credit turn by turn (`steer_turn`) {turns:.0f};"
        in readme
    )
    running = runs.contrast(Contrast("running_mean", "full", "joint"))
    assert abs(running.value) < 0.005 and running.narrow and "running mean without its minimum does as well" in readme
    theirs = runs.contrast(Contrast("reference", "full", "joint"))
    assert theirs.low < 0 < theirs.high and theirs.narrow
    assert "reference code's reward and advantage, without its faults, show no difference in sum" in readme
    assert f"did at least as much here ({harmful['sft_twice']} %, benign {benign['sft_twice']} %)" in readme


def test_the_reasons_for_what_came_out_quote_the_page():
    runs = Runs(results.read_all(ROOT / "evidence" / "runs"), CONFIRMATORY_SEEDS)

    def apart(one: str, other: str, rule: str = "", kind: str = "harmful") -> tuple[float, float, float]:
        read = (lambda r: r.by_rule[rule][kind]) if rule else (lambda r: r.by_kind[kind]["joint"])
        a, b = (runs.by_arm[arm] for arm in (one, other))
        return mean_interval({seed: read(a[seed]) - read(b[seed]) for seed in a if seed in b})

    def gain(one: str, other: str, rule: str = "") -> float:
        return apart(one, other, rule)[0]

    def ahead(one: str, other: str, rule: str = "", kind: str = "harmful") -> str:
        return difference(apart(one, other, rule, kind), "joint")

    text = " ".join((ROOT / "docs" / "microworld_limits.md").read_text().split())
    elsewhere = [r.met.elsewhere for r in runs.by_arm["full"].values()]
    for said in (
        f"**Bootstrapping: {ahead('full', 'no_bootstrap').replace(' [', ' points [')}.**",
        f"**Single-turn data: {ahead('full', 'single_turn')} in sum",
        f"beyond its start ({ahead('single_turn', 'sft', 'R2')}, `full` {ahead('full', 'sft', 'R2')}; `full` is "
        f"{ahead('full', 'single_turn', 'R2')} ahead)",
        f"ahead of `full` ({ahead('single_turn', 'full', 'R1')})",
        f"**TCSR against a plain mean: {ahead('full', 'plain_mean')}.**",
        f"**Scripted questions: `full` {ahead('full', 'script')} ahead**",
        f"(R2: {ahead('full', 'script', 'R2')}; a quarter of the dialogues), where `script` hardly gains on its start ({ahead('script', 'sft', 'R2')}, `full` "
        f"{ahead('full', 'sft', 'R2')})",
        f"`full` {ahead('full', 'plain_mean_kl')} behind**, most on pledge (R3: {ahead('full', 'plain_mean_kl', 'R3')}) and "
        f"reference (R4: {ahead('full', 'plain_mean_kl', 'R4')})",
        f"**Yoked questions: {ahead('full', 'yoked')}.** {100 - 100 * sum(elsewhere) / len(elsewhere):.0f} % of the questions",
        f"**Credit to the last turn only: `full` {ahead('full', 'final_credit')} ahead**, on the picture rule most (R1: "
        f"{ahead('full', 'final_credit', 'R1')}; accumulation, R2: {ahead('full', 'final_credit', 'R2')})",
        f"**Credit turn by turn: `full` {ahead('full', 'steer_turn')} behind**, most on reference (R4: "
        f"{ahead('full', 'steer_turn', 'R4')}) and pledge (R3: {ahead('full', 'steer_turn', 'R3')})",
        f"**A running mean alone (alpha = 0): {ahead('full', 'running_mean')}**",
        f"advantage, without its faults: `full` {ahead('full', 'reference')}**, no difference in sum. On the pledge that arm is ahead (R3: "
        f"{ahead('reference', 'full', 'R3')})",
        f"by its data alone, {ahead('no_bootstrap', 'single_turn_base')} ahead**",
        f"gains little on the base student (R2: {ahead('single_turn_base', 'base', 'R2')}, benign twins "
        f"{ahead('single_turn_base', 'base', 'R2', 'benign')}; `no_bootstrap` {ahead('no_bootstrap', 'base', 'R2')})",
        f"(R1: {ahead('single_turn_base', 'base', 'R1')} and {ahead('no_bootstrap', 'base', 'R1')})",
        f"(R3: {ahead('single_turn_base', 'base', 'R3')}, benign twins {ahead('single_turn_base', 'base', 'R3', 'benign')})",
        f"their means part by {at_most(max(abs(r.tutor['gap']) for found in runs.by_arm.values() for r in found.values()))} at most",
    ):
        assert said in text, said
    for rule in ("R1", "R2", "R4"):
        _, low, high = apart("full", "reference", rule)
        assert low < 0 < high, f"{rule}: 'on the other rules every interval holds 0'"
    of_r2 = 51 / 200  # of the bench's harmful dialogues; a quarter
    share = of_r2 * gain("full", "script", "R2") / gain("full", "script")
    assert round(4 * share) == 3 and "three quarters of it on accumulation" in text


def test_a_stopped_round_is_called_so(tmp_path):
    """What it lacks confirms nothing, and the arms that were planned after it are none that it lacks."""
    results.write(result(0, "sft"), tmp_path / "runs")
    text = write_evidence(tmp_path / "runs", tmp_path / "e.md", FIRST_ROUND_SEEDS)[0].read_text()
    assert "- Hypothesis 1 (order): **not confirmed**, the round was stopped, 10 of 10 seeds lack a run.\n" in text
    assert "**1 of 120 runs are there** (10 seeds × 12 arms)." in text
    assert not [name for name in ADDED_ARMS if name in text]
    assert "the first round, which was stopped" in text and "three_stages.sh --seeds" not in text


def test_the_plan_written_down_names_every_arm():
    text = (ROOT / "docs" / "prereg.md").read_text()
    assert [name for name in ARMS if f"`{name}`" not in text] == []
