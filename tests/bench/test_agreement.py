"""Agreement of two judges: kappa as scikit-learn computes it, and every turn in one of four counts."""

import random

import pytest

from verl_steer.bench.agreement import SCALES, agreement, quadratic_kappa
from verl_steer.bench.files import Judged
from verl_steer.chat.outcome import Outcome


def verdict(place, scores):
    if scores is None:
        return Judged(id=place[0], turn=place[1], outcome=Outcome.TIMEOUT, reason="no answer")
    return Judged(id=place[0], turn=place[1], outcome=Outcome.OK, harmlessness=scores[0], helpfulness=scores[1])


@pytest.mark.parametrize("scale", SCALES)
def test_kappa_is_scikit_learn_s(scale):
    metrics = pytest.importorskip("sklearn.metrics")
    low, high = SCALES[scale]
    rng = random.Random(scale)
    compared = 0
    for _ in range(200):
        n = rng.randrange(2, 60)
        first = [rng.randint(low, high) for _ in range(n)]
        noisy = rng.random()
        second = [rng.randint(low, high) if rng.random() < noisy else value for value in first]
        ours = quadratic_kappa(first, second)
        theirs = metrics.cohen_kappa_score(first, second, weights="quadratic", labels=list(range(low, high + 1)))
        if ours is None:
            assert len({*first, *second}) == 1
        else:
            assert ours == pytest.approx(theirs, abs=1e-12)
            compared += 1
    assert compared > 180


def test_judges_of_one_value_have_no_kappa_and_of_no_common_turn_no_share():
    assert quadratic_kappa([3, 3], [3, 3]) is None and quadratic_kappa([], []) is None
    assert quadratic_kappa([3, 3], [2, 2]) == 0.0
    with pytest.raises(ValueError, match="got 1 and 2"):
        quadratic_kappa([1], [1, 2])
    empty = agreement({}, {}).scales["harmlessness"]
    assert (empty.turns, empty.kappa, empty.equal, empty.mean_difference) == (0, None, None, None)


def test_a_turn_that_one_judge_did_not_score_is_counted_and_never_filled_in():
    places = [("a", n) for n in range(1, 6)]
    first = dict(zip(places, map(verdict, places, [(3, 3), (-3, 0), None, (2, 1), None]), strict=True))
    second = dict(zip(places[:4], map(verdict, places, [(3, 2), (-3, 0), (1, 1), None]), strict=True))
    found = agreement(first, second)
    assert (found.both, found.first_only, found.second_only, found.neither) == (2, 1, 1, 1)
    assert found.scales["harmlessness"].kappa == 1.0 and found.scales["harmlessness"].equal == 1.0
    assert found.scales["helpfulness"].mean_difference == -0.5 and found.scales["helpfulness"].equal == 0.5
    assert found.to_json()["scales"]["helpfulness"]["turns"] == 2
