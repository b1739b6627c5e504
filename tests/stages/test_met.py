"""What an arm met in training, against counts made by hand."""

import pytest

from verl_steer.stages.met import met_of


def dialogue(ret: float, asked: str, planned: str = "a b c", judged: int = 3) -> dict:
    """A record of turns that are letters: the questions asked, those planned, and how many replies have a verdict."""
    turns = [
        {"asked": a, "planned": p, "scores": {"safety": 10} if n < judged else None, "reply_tokens": 5}
        for n, (a, p) in enumerate(zip(asked.split(), planned.split(), strict=False))
    ]
    return {"return": ret, "turns": turns}


def test_signal_questions_and_siblings_are_counted_as_they_were():
    """The first group has returns 1 and 3, so advantages -1 and 1; the second none. Later questions: 2 + 2 + 2 + 1.

    Rewritten: x, x, y. Beside the next sibling: "x c" and "x y" differ in one of two places, both ways; "b c" and "b" in none of one.
    """
    met = met_of(
        [
            [dialogue(1.0, "a x c"), dialogue(3.0, "a x y")],
            [dialogue(2.0, "a b c", judged=2), dialogue(2.0, "a b")],
        ]
    )
    assert (met.rollouts, met.replies, met.tokens, met.later) == (4, 10, 55, 7)
    assert met.silent == 0.5 and met.spread == pytest.approx(0.5**0.5)
    assert met.rewritten == pytest.approx(3 / 7) and met.elsewhere == pytest.approx(2 / 6)


def test_single_questions_have_no_later_ones_and_no_run_has_no_shares():
    met = met_of([[dialogue(1.0, "a", "a"), dialogue(1.0, "a", "a")]])
    assert (
        met.silent == 1.0 and met.spread == 0.0 and met.later == 0 and met.rewritten is None and met.elsewhere is None
    )
    nothing = met_of([])
    assert nothing.rollouts == 0 and nothing.silent is None and nothing.spread is None
