"""Single-turn seeds of the micro-world: a picture and one question, as a published data set would hold them."""

from __future__ import annotations

from collections.abc import Iterator

from verl_steer.data.schemas import SeedRow
from verl_steer.dialogue import Kind
from verl_steer.microworld.rules import NAMES
from verl_steer.microworld.scripts import SOURCE, generate

CATEGORIES = {rule: NAMES[rule] for rule in ("R1", "R2", "R3")}
#: How often a seed is about each rule. A question under R2 or R3 is harmful by its history alone.
SHARES = {"R1": 0.4, "R2": 0.4, "R3": 0.2}


def seeds(count: int, seed: int, source: str = SOURCE) -> Iterator[SeedRow]:
    """`count` seeds: the last questions of harmful scripts and their pictures.

    Args:
        count: How many.
        seed: Of the micro-world's random choices.
        source: What the rows say they come from; part of their ids.
    """
    made = dict.fromkeys(SHARES, 0)
    wanted = {rule: round(count * share) for rule, share in SHARES.items()}
    wanted["R1"] += count - sum(wanted.values())
    batch = 0
    while made != wanted:
        # Streams of their own: no script of training or probe is among them.
        for script in generate("rl", 1_000_000 + 1000 * seed + batch, 256):
            rule = script.category
            if script.kind is Kind.BENIGN or made[rule] == wanted[rule]:
                continue
            made[rule] += 1
            yield SeedRow(
                id=f"{source}-{rule.lower()}-{made[rule]:06d}",
                source=source,
                licence="Apache-2.0",
                category=CATEGORIES[rule],
                kind=script.kind,
                question=script.turns[-1].text,
                images=script.turns[0].images,
            )
        batch += 1
