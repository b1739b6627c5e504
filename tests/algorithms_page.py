"""Writes docs/algorithms.md from the table and from the figures of its last run.

    bash tests/run.sh --algorithms                      # runs everything, then calls
    python tests/algorithms_page.py outputs/algorithms  # takes over new figures and writes the page

Figures are kept in tests/plugin/algorithms_seen.json, so the page can be written again without a run; a row that
never ran is shown as such.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from algorithm_runs import TABLE, Row, rows, runs, stages

PAGE = Path(__file__).parents[1] / "docs" / "algorithms.md"
SEEN = TABLE.with_name("algorithms_seen.json")
LABELS = {
    "actor/grad_norm": "gradient",
    "actor/pg_clipfrac": "clipped",
    "actor/ppo_kl": "KL to the old policy",
    "actor/kl_loss": "KL to the reference",
    "actor/reward_kl_penalty": "KL paid",
    "critic/vf_loss": "value loss",
    "critic/values/mean": "mean value",
    "steer/greedy/return": "greedy return",
    "training/filter_groups/evicted_samples": "groups replaced",
    "training/rollout_probs_diff_max": "largest probability difference",
}
HEAD = """\
# Algorithms

Every advantage estimator and policy loss of verl 0.9.1 on our multi-turn rollouts, and what it takes. Paste the
overrides behind any recipe; a fragment goes into the list of recipes: `+recipe=[steer_grpo_7b,with_dapo]`, or into
your own recipe's `defaults`.

`bash tests/run.sh --algorithms` trains every row for two steps of `main_ppo` (a random student of two layers, three
rollouts a seed, a tutor that now and then gives no verdict) and asserts: both steps done, loss and gradient finite,
advantages not all zero, rollout and trainer agree to 1e-6 where they must, and masked rollouts had no influence, which
is checked by computing the advantages again from the dialogue records without them. Losses are met four times a step,
so that the ratio leaves 1 and clipping acts. An estimator and a loss without a row of its own run are shown together, two
steps each in one run. The last column is what the last run showed (two steps); a row that says *not run yet* has been
composed in a test, and its loss or estimator tried on tensors, but its run is still to be made.

This page is written by `tests/algorithms_page.py` from `tests/plugin/algorithms.yaml`.
"""
TAIL = """\
## What the words mean

*works*: the override is all. *needs*: works by a piece of ours, or under the condition named. *why not*: refused before
Ray starts, with the reason; the file and line are verl's.

`masked_*` are verl's estimators without the rollouts that have too few verdicts; their plain names are refused.
`reference`: `norm_adv_by_std_in_grpo` is read by `masked_grpo`, too.

A fragment keeps the recipe's `experiment_name`, and so its folder: give the variant one of its own. Preflight refuses a folder that holds a
run with another estimator, loss, clip range, KL term, group filter, temperature, trainer mode or rate (`verl_steer/plugin/fingerprint.py`).
A folder begun by an older version is judged by what that version wrote down.

## Several ranks

Rollouts are seeded by (seed, dialogue, step, session, turn), so the number of ranks and replicas changes no word of
them. verl divides token losses by the tokens of the whole mini-batch of all ranks (`verl/trainer/ppo/core_algos.py:1175`),
so two ranks should take the first step of one. A test of the same tier plays both and asserts the same words, and loss
and gradient equal to 1e-5. It showed:

RANKS
Two losses are no such sums: `geo_mean` averages within a micro-batch, whatever is configured (`:2000`), and
`seq-mean-token-sum-norm` without `loss_scale_factor` divides by the longest reply of each micro-batch (`:1191`), which
is why `with_dr_grpo` sets one.
"""
AGG_MODES = ("token-mean", "seq-mean-token-sum")


def figures_of(names: list[str], found: dict[str, list[float]]) -> str:
    """One cell: what two steps showed."""
    shown = []
    for name in names:
        values = [v for v in found.get(name, []) if not math.isnan(v)]
        if values:
            shown.append(f"{LABELS[name]} " + ", ".join(f"{v:.2g}" for v in values))
    return "; ".join(shown)


def line(row: Row, seen: dict[str, dict[str, list[float]]]) -> str:
    """One row of the page."""
    add = " ".join(row.overrides) or "nothing"
    note = f"{row.note} ({row.cause})" if row.cause else row.note
    names = ["actor/grad_norm", "actor/pg_clipfrac", *row.positive, *row.nonzero, "training/rollout_probs_diff_max"]
    ordered = [name for name in dict.fromkeys(names) if name in LABELS]
    found = seen.get(row.name)
    if row.fails:
        cell = "refused" if found is not None else "not run yet"
    else:
        cell = figures_of(ordered, found) if found else "not run yet"
    return "| " + " | ".join(c.replace("|", "\\|") for c in (row.name, row.status, f"`{add}`", note, cell)) + " |"


def page(seen: dict[str, dict[str, list[float]]]) -> str:
    """The whole page.

    Args:
        seen: Row's name -> its run's figures.
    """
    parts = dict.fromkeys(row.part for row in rows())
    tables = []
    for part in parts:
        lines = [line(row, seen) for row in rows() if row.part == part]
        heads = "| | | add | what it is | seen |\n|---|---|---|---|---|\n"
        tables.append(f"## {part}\n\n{heads}" + "\n".join(lines) + "\n")
    return "\n".join([HEAD, *tables, TAIL.replace("RANKS", "\n".join(ranks_line(m, seen) for m in AGG_MODES) + "\n")])


def ranks_line(mode: str, seen: dict[str, dict[str, list[float]]]) -> str:
    """What one rank and two showed with one aggregation of the loss."""
    one, two = (seen.get(f"{ranks} ranks {mode}") for ranks in (1, 2))
    if not one or not two:
        return f"- `{mode}`: not run yet"
    pairs = (
        f"{word} {one[name][0]:.9g} on one rank, {two[name][0]:.9g} on two"
        for word, name in (("loss", "actor/pg_loss"), ("gradient norm", "actor/grad_norm"))
    )
    return f"- `{mode}`: " + "; ".join(pairs)


def read_seen() -> dict[str, dict[str, list[float]]]:
    """The figures kept from earlier runs."""
    return json.loads(SEEN.read_text(encoding="utf-8")) if SEEN.exists() else {}


def take_over(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Adds the figures of the runs in `folder` to those that are kept."""
    seen = read_seen()
    known = {row.name for row in (*stages(), *runs())}
    for file in sorted(folder.glob("*.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        if run["run"] in known or run["run"] in {f"{n} ranks {mode}" for n in (1, 2) for mode in AGG_MODES}:
            seen |= dict.fromkeys(run["run"].split(" + "), run["figures"])
    SEEN.write_text(json.dumps(dict(sorted(seen.items())), indent=1) + "\n", encoding="utf-8")
    return seen


if __name__ == "__main__":
    figures = take_over(Path(sys.argv[1])) if len(sys.argv) > 1 else read_seen()
    PAGE.write_text(page(figures), encoding="utf-8")
    print(f"{PAGE}: {sum(row.name in figures for row in rows())} of {len(rows())} rows with figures")
