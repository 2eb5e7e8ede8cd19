"""Find overlapping pairs of boxes with a grid: time and memory grow with the number of overlaps, not of all pairs."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.core.oriented_boxes import paired_intersection

PAIRS_AT_ONCE = 1 << 20
CELLS_PER_BOX = 12
CELL_TO_BOX = 2.0
"""Side of a cell, relative to the side of the median box."""


@dataclass(frozen=True, slots=True, eq=False)
class OverlappingPairs:
    """Pairs of overlapping boxes."""

    first: Array
    """int64 [n]: index of the first box."""
    second: Array
    """int64 [n]: index of the second box."""
    intersection: Array
    """float64 [n]: area of the intersection, above 0."""

    def __len__(self) -> int:
        return len(self.first)

    def where(self, mask: Array) -> "OverlappingPairs":
        """Return the pairs selected by `mask`, bool [n]."""
        return OverlappingPairs(self.first[mask], self.second[mask], self.intersection[mask])

    def of_outlines(self, outlines: Array, others: Array) -> "OverlappingPairs":
        """Return the pairs with the intersection of the outlines [n, 5] and [m, 5], not of the boxes around them.

        Upright outlines [n, 4] are those boxes.
        """
        if outlines.shape[1] == 4:
            return self
        shared = paired_intersection(outlines[self.first], others[self.second])
        return OverlappingPairs(self.first, self.second, shared).where(shared > 0)

    @classmethod
    def concatenate(cls, parts: "list[OverlappingPairs]") -> "OverlappingPairs":
        """Return the pairs of all parts, in order."""
        none = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        columns = zip(none, *((part.first, part.second, part.intersection) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))


def overlapping_pairs(boxes: Array) -> OverlappingPairs:
    """Return all overlapping pairs of boxes [n, 4]; the index `first` is less than `second`."""
    if len(boxes) < 2:
        return OverlappingPairs.concatenate([])
    entries = _Entries.of(boxes.astype(np.float64))
    key = entries.key
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    sizes = np.diff(np.append(starts, len(key)))
    ends = np.repeat(starts + sizes, sizes)
    index = np.flatnonzero(np.arange(1, len(key) + 1) < ends)
    ranges = _ranges(index, index + 1, ends[index])
    return OverlappingPairs.concatenate([entries.overlapping(one, other) for one, other in ranges])


def pairs_between(boxes: Array, others: Array) -> OverlappingPairs:
    """Return all overlapping pairs of a box [n, 4] (`first`) and one of the others [m, 4] (`second`)."""
    if not len(boxes) or not len(others):
        return OverlappingPairs.concatenate([])
    n = len(boxes)
    entries = _Entries.of(np.concatenate([boxes, others]).astype(np.float64))
    first, second = np.flatnonzero(entries.owner < n), np.flatnonzero(entries.owner >= n)
    low = np.searchsorted(entries.key[first], entries.key[second], side="left")
    high = np.searchsorted(entries.key[first], entries.key[second], side="right")
    some = high > low
    parts = [entries.overlapping(first[i], j) for j, i in _ranges(second[some], low[some], high[some])]
    found = OverlappingPairs.concatenate(parts)
    return OverlappingPairs(found.first, found.second - n, found.intersection)


@dataclass(frozen=True, slots=True, eq=False)
class _Entries:
    """Entries of a grid: each box once for each cell that it touches, sorted by cell."""

    owner: Array
    """int64 [n]: index of the box."""
    key: Array
    """int64 [n]: number of the cell."""
    boxes: Array
    """float64 [n, 4]: copy of the box, so that boxes of a cell are adjacent in memory."""
    home: Array
    """int32 [n, 2]: the first column and row that the box touches."""
    columns: int
    """Of the grid."""

    @classmethod
    def of(cls, boxes: Array) -> "_Entries":
        """Return the entries of boxes in a grid with few cells per box."""
        sides = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        cell = max(1.0, CELL_TO_BOX * float(np.median(sides)))
        origin = np.array([boxes[:, 0].min(), boxes[:, 1].min()])
        # Boxes are sorted by cell first: random access to memory would take most of the time.
        across, down = ((boxes[:, axis] - origin[axis]) // cell for axis in (0, 1))
        by_cell = np.argsort(down * (across.max() + 1) + across)
        boxes = boxes[by_cell]
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
        return cls(by_cell[owner], key[order], boxes[owner], low[owner].astype(np.int32), columns)

    def overlapping(self, one: Array, other: Array) -> OverlappingPairs:
        """Return the overlapping pairs of entries of one cell.

        A pair is returned only for the first cell that both boxes touch; the index `first` is less than `second`.
        """
        boxes, others = self.boxes[one], self.boxes[other]
        extent = (np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])).clip(min=0)
        shared = extent[:, 0] * extent[:, 1]
        some = shared > 0
        one, other, shared = one[some], other[some], shared[some]
        first = np.maximum(self.home[one], self.home[other]).astype(np.int64)
        here = first[:, 1] * self.columns + first[:, 0] == self.key[one]
        owner, other_owner = self.owner[one[here]], self.owner[other[here]]
        return OverlappingPairs(np.minimum(owner, other_owner), np.maximum(owner, other_owner), shared[here])


def survivors(n: int, pairs: OverlappingPairs) -> Array:
    """Return which of `n` boxes in descending order of score non-maximum suppression keeps, bool [n].

    From the first on, each kept box removes those it is paired with; in each pair, `first` is the better box. Each
    iteration keeps all boxes without a better one left, so their number is the length of the longest chain of overlaps.
    """
    kept, better, worse = np.ones(n, bool), pairs.first, pairs.second
    while len(better):
        blocked = np.zeros(n, bool)
        blocked[worse] = True
        kept[worse[~blocked[better]]] = False
        open_pairs = kept[better] & kept[worse] & blocked[better]
        better, worse = better[open_pairs], worse[open_pairs]
    return kept


def owners(n: int, pairs: OverlappingPairs) -> Array:
    """Return the index of the kept box that suppresses each box, int64 [n]; kept boxes have their own index."""
    kept = survivors(n, pairs)
    owner = np.arange(n)
    taken = pairs.where(kept[pairs.first] & ~kept[pairs.second])
    owner[taken.second] = n
    np.minimum.at(owner, taken.second, taken.first)
    return owner


def connected(n: int, pairs: OverlappingPairs) -> Array:
    """Return the index of the first box of each box's connected component, int64 [n]."""
    group, i, j = np.arange(n), pairs.first, pairs.second
    while len(pairs):
        low = np.minimum(group[i], group[j])
        new = group.copy()
        for index in (group[i], group[j], i, j):
            np.minimum.at(new, index, low)
        new = new[new]
        if (new == group).all():
            break
        group = new
    return group


def _ranges(items: Array, starts: Array, stops: Array) -> Iterator[tuple[Array, Array]]:
    """Yield each item with each number from its start up to its stop, at most about `PAIRS_AT_ONCE` at a time."""
    counts = stops - starts
    total = np.cumsum(counts)
    begin = 0
    while begin < len(items):
        before = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, before + PAIRS_AT_ONCE, side="right")))
        some = counts[begin:end]
        repeated = np.repeat(items[begin:end], some)
        offset = np.arange(len(repeated)) - np.repeat(np.cumsum(some) - some, some)
        yield repeated, np.repeat(starts[begin:end], some) + offset
        begin = end
