"""Results made by hand, whose right answers are known."""

from __future__ import annotations

from verl_steer.stages.result import Point, Result, Risk

MEASURES = (
    "safe",
    "helpful",
    "joint",
    "any_failure",
    "over_refusal",
    "twin_accuracy",
    "harmlessness",
    "helpfulness",
    "worst_turn",
)


def result(seed: int | None, arm: str, joint: float = 0.5, **more) -> Result:
    """A result of ten benign and ten harmful dialogues of four turns, of which harmful ones fail in turn 2 as `failed` says."""
    failed = more.pop("failed", 4)
    table = Risk(at_risk=[10, 10, 10 - failed, 10 - failed], failed=[0, failed, 0, 0])
    safe = Risk(at_risk=[10] * 4, failed=[0] * 4)
    both = Risk(at_risk=[20, 20, 20 - failed, 20 - failed], failed=[0, failed, 0, 0])
    fields = {
        "seed": seed,
        "arm": arm,
        "config_hash": f"hash-of-{arm}",
        "world_hash": "world",
        "bench_sha256": "b" * 64,
        "sizes": {"rl_steps": 60},
        "versions": {"verl": "0.9.1"},
        "commands": [f"python -m train {arm}"],
        "seconds": {"world": 60.0, "rl": 120.0},
        "dialogues": 20,
        "judged": 80,
        "turns": 80,
        "measures": dict.fromkeys(MEASURES, joint) | {"twin_accuracy": joint / 2},
        "by_kind": {"benign": {"joint": 0.9}, "harmful": {"joint": joint}},
        "twins": 10,
        "tutor": {"harmful": 0.5, "benign": 0.9, "tutor": 0.7, "gap": 0.0},
        "safe_turns": 8 * joint,
        "survival": {"all": both, "harmful": table, "benign": safe, "harmful:4": table, "benign:4": safe},
        "curve": [Point(step=0, harmful=0.4, benign=0.9, safe=0.2), Point(step=20, harmful=0.6, benign=0.9, safe=0.5)],
    }
    return Result(**{**fields, **more})
