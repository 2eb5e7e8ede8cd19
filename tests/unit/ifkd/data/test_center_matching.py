"""Matches by the distance of centers. Oracle: scipy's assignment, as in the metric of xView3."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from ifkd.data.center_matching import match_centers, neighbors_within

COSTLY = 1e6


def example(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(0, 15, 2)
    return rng.uniform(0, 10, (n, 2)), rng.uniform(0, 10, (m, 2)), float(rng.uniform(0.5, 6.0))


@pytest.mark.parametrize("seed", range(60))
def test_every_beginning_has_the_best_assignment(seed):
    points, objects, within = example(seed)
    stops = list(range(len(points) + 1))
    for stop, matched in zip(stops, match_centers(neighbors_within(points, objects, within), stops), strict=True):
        distances = np.linalg.norm(points[:stop, None] - objects, axis=2)
        costs = np.where(distances < within, distances, COSTLY)
        rows, columns = linear_sum_assignment(costs)
        paired = costs[rows, columns] < within
        own = np.flatnonzero(matched >= 0)
        assert len(own) == len(set(matched[own])) == paired.sum()
        assert distances[own, matched[own]].sum() == pytest.approx(costs[rows, columns][paired].sum())


@pytest.mark.parametrize("seed", range(5))
def test_neighbors_are_those_of_a_loop(seed):
    points, objects, within = example(seed)
    points = np.concatenate([points, [[np.nan, np.nan]]])
    found = [dict(row) for row in neighbors_within(points, objects, within)]
    assert found == [
        {
            index: pytest.approx(float(np.hypot(*(point - one))))
            for index, one in enumerate(objects)
            if np.hypot(*(point - one)) < within
        }
        for point in points
    ]


def test_stops_that_are_equal_or_absent():
    neighbors = neighbors_within(np.zeros((2, 2)), np.zeros((1, 2)), 1.0)
    assert [one.tolist() for one in match_centers(neighbors, [0, 1, 1, 2])] == [[], [0], [0], [0, -1]]
    assert match_centers(neighbors, []) == []
