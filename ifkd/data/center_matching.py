"""Match detections with objects by the distance of their centers, as in xView3.

As in the metric of xView3 (Paolo et al. 2022), pairs are one to one and closer than a distance. As many as possible are
made, and of all such choices, that with the least sum of distances is used.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from ifkd.core.detections import Array

EPSILON = 1e-9
"""A smaller reduction of a sum of distances is rounding."""

Neighbors = list[tuple[int, float]]
"""Objects closer than the distance, each with its distance."""


def neighbors_within(points: Array, objects: Array, distance: float) -> list[Neighbors]:
    """Return the objects [m, d] closer to each of some points [n, d] than `distance`; none for a point with NaN."""
    order = np.argsort(objects[:, 0], kind="stable")
    first, stop = (np.searchsorted(objects[order, 0], points[:, 0] + side) for side in (-distance, distance))
    found: list[Neighbors] = []
    for row, point in enumerate(points):
        close = order[first[row] : stop[row]]
        lengths = np.linalg.norm(objects[close] - point, axis=1)
        near = np.flatnonzero(lengths < distance)
        found.append(list(zip(close[near].tolist(), lengths[near].tolist(), strict=True)))
    return found


def match_centers(neighbors: Sequence[Neighbors], stops: Sequence[int]) -> list[Array]:
    """Return, for each n of the ascending `stops`, the objects of the first n detections, int64 [n]; -1 for none."""
    matching = _Matching(neighbors)
    snapshots = []
    for start, stop in zip([0, *stops], stops, strict=False):
        for detection in range(start, stop):
            matching.add(detection)
        snapshots.append(np.array(matching.object_of[:stop], np.int64))
    return snapshots


class _Matching:
    """A best matching of the detections that were added, by the successive shortest path algorithm."""

    def __init__(self, neighbors: Sequence[Neighbors]) -> None:
        self._neighbors = neighbors
        self._owner: dict[int, tuple[int, float]] = {}
        """Object -> its detection, and their distance."""
        self.object_of = [-1] * len(neighbors)

    def add(self, detection: int) -> None:
        """Match a detection, which may move others to other objects, or replace one."""
        costs, origin = {detection: 0.0}, {}
        free: tuple[float, int, tuple[int, float]] | None = None
        waiting = deque([detection])
        while waiting:
            one = waiting.popleft()
            for target, length in self._neighbors[one]:
                cost = costs[one] + length
                if target not in self._owner:
                    if free is None or cost < free[0]:
                        free = cost, one, (target, length)
                    continue
                other, own_length = self._owner[target]
                if cost - own_length < costs.get(other, np.inf) - EPSILON:
                    costs[other], origin[other] = cost - own_length, (one, (target, length))
                    waiting.append(other)
        if free is not None:
            self._move(free[1], free[2], origin)
        elif (dropped := min(costs, key=costs.__getitem__)) != detection:
            self.object_of[dropped] = -1
            one, edge = origin[dropped]
            self._move(one, edge, origin)

    def _move(self, one: int, edge: tuple[int, float], origin: dict[int, tuple[int, tuple[int, float]]]) -> None:
        """Give a detection the object of an edge, and its own object to the detection that it was reached from."""
        while True:
            target, length = edge
            self._owner[target] = (one, length)
            self.object_of[one] = target
            if one not in origin:
                return
            one, edge = origin[one]
