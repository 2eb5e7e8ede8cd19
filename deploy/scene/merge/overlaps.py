"""Pairs of boxes that share area, found through the cells of a grid.

Boxes are laid into cells, and only boxes that share a cell are compared, so time and memory follow the number of
overlaps and not the square of the number of boxes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array

PAIRS_AT_ONCE = 1 << 20
CELLS_PER_BOX = 12
CELL_SIDES = 2.0
"""Side of a cell, in sides of the median box."""


@dataclass(frozen=True, slots=True, eq=False)
class OverlappingPairs:
    """Boxes that share area, two by two."""

    first: Array
    """int64 [n]: index of one box."""
    second: Array
    """int64 [n]: index of the other."""
    shared: Array
    """float64 [n]: the area that they share, above 0."""

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.first)

    def where(self, mask: Array) -> "OverlappingPairs":
        """Return the pairs for which `mask`, bool [n], holds."""
        return OverlappingPairs(self.first[mask], self.second[mask], self.shared[mask])

    @classmethod
    def none(cls) -> "OverlappingPairs":
        """Return no pairs."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

    @classmethod
    def concatenate(cls, parts: "list[OverlappingPairs]") -> "OverlappingPairs":
        """Return the pairs of all parts, in order."""
        if not parts:
            return cls.none()
        return cls(
            np.concatenate([part.first for part in parts]),
            np.concatenate([part.second for part in parts]),
            np.concatenate([part.shared for part in parts]),
        )


def overlapping_pairs(boxes: Array) -> OverlappingPairs:
    """Return all pairs of boxes [n, 4] that share area; `first` is below `second`."""
    if len(boxes) < 2:
        return OverlappingPairs.none()
    entries = _Entries.of(boxes.astype(np.float64))
    key = entries.key
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    sizes = np.diff(np.append(starts, len(key)))
    ends = np.repeat(starts + sizes, sizes)
    places = np.flatnonzero(np.arange(1, len(key) + 1) < ends)
    return OverlappingPairs.concatenate(
        [entries.meet(one, other) for one, other in _ranges(places, places + 1, ends[places])]
    )


def pairs_between(boxes: Array, others: Array) -> OverlappingPairs:
    """Return all pairs of a box [n, 4] (`first`) and one of the others [m, 4] (`second`) that share area."""
    if not len(boxes) or not len(others):
        return OverlappingPairs.none()
    n = len(boxes)
    entries = _Entries.of(np.concatenate([boxes, others]).astype(np.float64))
    mine, theirs = np.flatnonzero(entries.owner < n), np.flatnonzero(entries.owner >= n)
    low = np.searchsorted(entries.key[mine], entries.key[theirs], side="left")
    high = np.searchsorted(entries.key[mine], entries.key[theirs], side="right")
    some = high > low
    parts = [entries.meet(mine[of_mine], their) for their, of_mine in _ranges(theirs[some], low[some], high[some])]
    found = OverlappingPairs.concatenate(parts)
    return OverlappingPairs(found.first, found.second - n, found.shared)


@dataclass(frozen=True, slots=True, eq=False)
class _Entries:
    """Boxes, each once for every cell of a grid that it touches, cell by cell."""

    owner: Array
    """int64 [n]: index of the box."""
    key: Array
    """int64 [n]: number of the cell."""
    boxes: Array
    """float64 [n, 4]: the box again; neighbors in space lie side by side, which is what makes this fast."""
    home: Array
    """int32 [n, 2]: the first column and row that the box touches."""
    columns: int
    """Of the grid."""

    @classmethod
    def of(cls, boxes: Array) -> "_Entries":
        """Lay a grid under boxes, so coarse that they touch few cells."""
        sides = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        cell = max(1.0, CELL_SIDES * float(np.median(sides)))
        origin = np.array([boxes[:, 0].min(), boxes[:, 1].min()])
        # Neighbors in space become neighbors in memory, or most of the time would go into fetching them.
        across, down = ((boxes[:, axis] - origin[axis]) // cell for axis in (0, 1))
        place = np.argsort(down * (across.max() + 1) + across)
        boxes = boxes[place]
        while True:
            low = ((boxes[:, :2] - origin) / cell).astype(np.int64)
            high = np.maximum(((boxes[:, 2:] - origin) / cell).astype(np.int64), low)
            spans = high - low + 1
            counts = spans[:, 0] * spans[:, 1]
            if counts.sum() <= CELLS_PER_BOX * len(boxes):
                break
            cell *= 2.0
        columns = int(high[:, 0].max()) + 1
        owner = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        down, right = np.divmod(within, spans[owner, 0])
        key = (low[owner, 1] + down) * columns + low[owner, 0] + right
        order = np.argsort(key, kind="stable")
        owner = owner[order]
        return cls(place[owner], key[order], boxes[owner], low[owner].astype(np.int32), columns)

    def meet(self, one: Array, other: Array) -> OverlappingPairs:
        """Return the pairs of entries of one cell that share area, each pair in the first cell that both touch.

        `first` is below `second`.
        """
        shared = intersection(self.boxes[one], self.boxes[other])
        some = shared > 0
        one, other, shared = one[some], other[some], shared[some]
        first = np.maximum(self.home[one], self.home[other]).astype(np.int64)
        here = first[:, 1] * self.columns + first[:, 0] == self.key[one]
        owner, other_owner = self.owner[one[here]], self.owner[other[here]]
        return OverlappingPairs(np.minimum(owner, other_owner), np.maximum(owner, other_owner), shared[here])


def intersection(boxes: Array, others: Array) -> Array:
    """Return the areas that boxes share, pair by pair, float64 [n]."""
    extent = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    np.maximum(extent, 0.0, out=extent)
    product: Array = extent[:, 0] * extent[:, 1]
    return product


def survivors(n: int, better: Array, worse: Array) -> Array:
    """Return bool [n]: what stays when, from the best on, each box that stays removes those it is paired with.

    `better` is below `worse` in every pair. Whoever has no better one left stays, round by round; a round settles
    the whole scene at once, so there are as many rounds as the longest chain of overlaps has links.
    """
    kept = np.ones(n, bool)
    while len(better):
        blocked = np.zeros(n, bool)
        blocked[worse] = True
        beaten = worse[~blocked[better]]
        kept[beaten] = False
        open_pairs = kept[better] & kept[worse] & blocked[better]
        better, worse = better[open_pairs], worse[open_pairs]
    return kept


def owners(n: int, better: Array, worse: Array) -> Array:
    """Return the index of the box that takes each box, int64 [n], when from the best on each free one takes others."""
    kept = survivors(n, better, worse)
    owner = np.arange(n)
    taken = kept[better] & ~kept[worse]
    owner[worse[taken]] = n
    np.minimum.at(owner, worse[taken], better[taken])
    return owner


def connected(n: int, i: Array, j: Array) -> Array:
    """Return the first member of each box's connected group, int64 [n]."""
    group = np.arange(n)
    while len(i):
        low = np.minimum(group[i], group[j])
        new = group.copy()
        np.minimum.at(new, group[i], low)
        np.minimum.at(new, group[j], low)
        np.minimum.at(new, i, low)
        np.minimum.at(new, j, low)
        new = new[new]
        if (new == group).all():
            break
        group = new
    return group


def _ranges(owners_: Array, starts: Array, stops: Array) -> Iterator[tuple[Array, Array]]:
    """Yield (owner, each number from its start up to its stop), some at a time."""
    counts = stops - starts
    total = np.cumsum(counts)
    begin = 0
    while begin < len(owners_):
        before = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, before + PAIRS_AT_ONCE, side="right")))
        some = counts[begin:end]
        one = np.repeat(owners_[begin:end], some)
        offset = np.arange(len(one)) - np.repeat(np.cumsum(some) - some, some)
        yield one, np.repeat(starts[begin:end], some) + offset
        begin = end
