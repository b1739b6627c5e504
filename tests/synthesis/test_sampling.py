"""How many rows of each cell: bounds always, sizes where possible, lengths kept, means as near as can be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_steer.synthesis.sampling import plan, quotas

TURNS = np.arange(1, 11)
cells = st.lists(st.lists(st.integers(0, 40), min_size=10, max_size=10), min_size=1, max_size=2)


def mean_of(counts):
    return (counts.sum(axis=0) @ TURNS) / counts.sum()


@settings(max_examples=60, deadline=None)
@given(cells, st.integers(0, 400), st.none() | st.floats(1, 10), st.data())
def test_a_plan_keeps_what_is_held_stays_within_what_is_there_and_reaches_its_size(left, size, mean, data):
    left = np.array(left)
    held = np.array([[data.draw(st.integers(0, 3)) for _ in TURNS] for _ in left])
    wanted = [max(int(h.sum()), size) for h in held]
    counts = plan(left, held, wanted, mean)
    assert (counts >= held).all() and (counts <= held + left).all()
    assert counts.sum(axis=1).tolist() == [
        min(n, int(u)) for n, u in zip(wanted, (held + left).sum(axis=1), strict=True)
    ]
    if size >= 20:
        there = (held + left).sum(axis=0) > 0
        assert ((counts.sum(axis=0) > 0) == there).all()


@pytest.mark.parametrize("mean", [3.0, 4.5, 6.0, 6.35, 7.5, 8.33, 8.55])
def test_a_mean_that_can_be_had_is_had(mean):
    left = np.array([[0, *[300] * 9], [0, *range(300, 30, -30)]])
    counts = plan(left, np.zeros_like(left), [100, 300], mean)
    assert mean_of(counts) == pytest.approx(mean, abs=0.05)
    assert counts.sum(axis=1).tolist() == [100, 300]


def test_without_a_mean_lengths_come_as_they_are():
    left = np.array([[0, 10, 20, 30, 40, 0, 0, 0, 0, 100]])
    assert plan(left, np.zeros_like(left), [100], None).tolist() == [[0, 5, 10, 15, 20, 0, 0, 0, 0, 50]]


def test_a_mean_out_of_reach_gives_the_nearest():
    left = np.array([[0, *[5] * 9]])
    counts = plan(left, np.zeros_like(left), [12], 10.0)
    assert counts.tolist() == [[0, 1, 1, 1, 1, 1, 1, 1, 1, 4]]


@pytest.mark.parametrize(
    ("size", "ratio", "result"), [(2000, (1, 3), [500, 1500]), (7, (1, 1, 1), [3, 2, 2]), (5, (0, 2), [0, 5])]
)
def test_quotas_add_up(size, ratio, result):
    assert quotas(size, ratio) == result
