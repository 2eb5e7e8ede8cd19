"""Detections of overlapping tiles become those of the scene.

A tile sees only a part of an object that its edge cuts; a neighbour, by the overlap, sees it whole. So `border`
treats a box that touches an inner edge (one that is not the scene's border) as a *piece*:

1. Whole boxes are reconciled by class-wise non-maximum suppression, as within a tile.
2. A piece gives way to a whole box of its class when their overlap is above the threshold. It gives way to one
   of any class, as half an object is easily taken for another thing, when they come from different tiles, most
   of the piece lies in the whole box, and that box reaches the edge that cut the piece. A box that ends short of
   the edge was seen whole by the piece's own tile, so it is a neighbour.
3. Pieces that nobody saw whole belong to an object larger than the overlap. Two of them are joined when, in the
   part of the scene that both tiles see, they agree; their hull takes the best score. One object gives at most
   one piece per tile.
4. What is left of the pieces passes non-maximum suppression under the whole boxes. A piece that nothing covers
   stays: nothing is lost.

Last, of boxes of different classes that all but coincide, only the best stays where `one_class` asks for it.

The result does not depend on the order of the input, merging twice changes nothing, and with one tile it is
plain non-maximum suppression. The other methods are those SAHI users know: `nms`, `nmm` (every connected group
becomes its hull) and `greedy_nmm` (the best box becomes the hull of what it suppresses).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ifkd.config import Schema
from ifkd.detections import Array, Detections
from ifkd.tiling import Window

Share = Annotated[float, Field(ge=0.0, le=1.0)]

REACH_SHARE = 0.1
"""A whole box may end short of a piece's edge by this share of its side: detectors are that exact."""
PAIRS_AT_ONCE = 1 << 21
CELLS_PER_BOX = 12


class MergeSettings(Schema):
    """How detections of tiles are brought together."""

    method: Literal["border", "nms", "nmm", "greedy_nmm"] = "border"
    metric: Literal["iou", "ios"] = "iou"
    """Overlap of two boxes: intersection over union, or over the smaller one."""
    threshold: Share = 0.5
    """Two boxes of a class with an overlap above this are one object."""
    cover: Share = 0.6
    """Share of a piece that must lie in a whole box for the piece to give way."""
    touch_px: Annotated[float, Field(ge=0.0)] = 2.0
    """A box this close to an inner edge is a piece, scene pixels."""
    one_class: Share = 1.0
    """Of boxes of different classes with an IoU above this, the best stays: one object, one class. 1 keeps all."""


@dataclass(frozen=True, slots=True, eq=False)
class TileDetections:
    """Detections in scene pixels that know their tile."""

    detections: Detections
    tiles: Array
    """int64 [n]: the tile that saw each."""
    bounds: Array
    """float64 [n, 4]: that tile's x1, y1, x2, y2 in scene pixels; infinite where it ends with the scene."""

    def __post_init__(self) -> None:
        assert len(self.detections) == len(self.tiles) == len(self.bounds)

    def __len__(self) -> int:
        """Return the number of detections."""
        return len(self.detections)

    @classmethod
    def of_tile(cls, detections: Detections, tile: int, *, window: Window, size: tuple[int, int]) -> "TileDetections":
        """Return detections of one tile, given in scene pixels, of a scene of `size` (height, width)."""
        height, width = size
        bounds = np.array(
            [
                window.left if window.left > 0 else -np.inf,
                window.top if window.top > 0 else -np.inf,
                window.right if window.right < width else np.inf,
                window.bottom if window.bottom < height else np.inf,
            ],
            np.float64,
        )
        n = len(detections)
        return cls(detections, np.full(n, tile, np.int64), np.tile(bounds, (n, 1)))

    @classmethod
    def concatenate(cls, parts: Sequence["TileDetections"]) -> "TileDetections":
        """Return the detections of all parts, in order."""
        if not parts:
            return cls(Detections.empty(), np.zeros(0, np.int64), np.zeros((0, 4)))
        return cls(
            Detections.concatenate([part.detections for part in parts]),
            np.concatenate([part.tiles for part in parts]),
            np.concatenate([part.bounds for part in parts]),
        )

    def select(self, index: Array) -> "TileDetections":
        """Return the detections at `index` (integers or a mask)."""
        return TileDetections(self.detections.select(index), self.tiles[index], self.bounds[index])

    def in_canonical_order(self) -> "TileDetections":
        """Return the detections by falling score; ties by label, coordinates and tile."""
        found = self.detections
        x1, y1, x2, y2 = found.boxes.T
        return self.select(np.lexsort((*self.bounds.T, self.tiles, y2, x2, y1, x1, found.labels, -found.scores)))

    def pieces(self, touch_px: float) -> Array:
        """Return which boxes touch an inner edge of their tile, bool [n]."""
        touching: Array = (np.abs(self.detections.boxes - self.bounds) <= touch_px).any(axis=1)
        return touching


Related = Callable[[Array, Array], Array]
"""(i, j) of pairs -> bool [pairs]; false where the two boxes share no area."""


def merge(found: TileDetections, settings: MergeSettings) -> TileDetections:
    """Return the objects of a scene, given what its tiles saw, in canonical order.

    Joined boxes carry the tile of their best piece and count as whole.
    """
    ordered = found.in_canonical_order()
    match settings.method:
        case "border":
            merged = _border(ordered, settings)
        case "nms":
            merged = _nms(ordered, settings)
        case "nmm":
            merged = _hulls(ordered, _connected(len(ordered), *_same(ordered, settings)))
        case "greedy_nmm":
            merged = _hulls(ordered, _absorbed(len(ordered), *_same(ordered, settings)))
    return _of_one_class(merged, settings.one_class) if settings.one_class < 1.0 else merged


def _of_one_class(ordered: TileDetections, threshold: float) -> TileDetections:
    """Return the best of the boxes that coincide, whatever their classes."""
    anonymous = replace(ordered.detections, labels=np.zeros_like(ordered.detections.labels))
    alike = MergeSettings(metric="iou", threshold=threshold)
    return ordered.select(_kept(len(ordered), *_same(replace(ordered, detections=anonymous), alike)))


def _border(ordered: TileDetections, settings: MergeSettings) -> TileDetections:
    cut = ordered.pieces(settings.touch_px)
    whole = _nms(ordered.select(~cut), settings)
    if not cut.any():
        return whole
    pieces = _uncovered(ordered.select(cut), whole, settings)
    joined = _join(pieces, settings)
    # Whole boxes come first: among themselves they already agree, and pieces go under them.
    contest = TileDetections.concatenate([whole, joined])
    kept = _kept(len(contest), *_same(contest, settings))
    rest = joined.select(kept[len(whole) :])
    still_cut = rest.pieces(settings.touch_px)
    hulls = rest.select(~still_cut)
    single = _uncovered(rest.select(still_cut), hulls, settings)
    return TileDetections.concatenate([whole, hulls, single]).in_canonical_order()


def _nms(ordered: TileDetections, settings: MergeSettings) -> TileDetections:
    return ordered.select(_kept(len(ordered), *_same(ordered, settings)))


def _same(found: TileDetections, settings: MergeSettings) -> tuple[Array, Array]:
    """Return the pairs, i before j, that are one object by overlap."""
    boxes = found.detections.boxes.astype(np.float64)
    area = _area(boxes)

    def related(i: Array, j: Array) -> Array:
        intersection = _intersection(boxes[i], boxes[j])
        whole = area[i] + area[j] - intersection if settings.metric == "iou" else np.minimum(area[i], area[j])
        above: Array = intersection > settings.threshold * whole
        return above

    return overlapping_pairs(found.detections, related)


def _uncovered(pieces: TileDetections, whole: TileDetections, settings: MergeSettings) -> TileDetections:
    """Return the pieces that no whole box explains."""
    if not len(pieces) or not len(whole):
        return pieces
    both = TileDetections.concatenate([whole, pieces])
    boxes = both.detections.boxes.astype(np.float64)
    area, labels = _area(boxes), both.detections.labels
    first_piece = len(whole)

    def explains(i: Array, j: Array) -> Array:
        intersection = _intersection(boxes[i], boxes[j])
        union = area[i] + area[j] - intersection
        smaller = np.minimum(area[i], area[j])
        above = (labels[i] == labels[j]) & (
            intersection > settings.threshold * (union if settings.metric == "iou" else smaller)
        )
        covers = (
            (intersection > settings.cover * area[j])
            & (both.tiles[i] != both.tiles[j])
            & _reaches(boxes[i], boxes[j], both.bounds[j], settings.touch_px)
        )
        explained: Array = (i < first_piece) & (j >= first_piece) & (above | covers)
        return explained

    anonymous = replace(both.detections, labels=np.zeros_like(labels))
    _, explained = overlapping_pairs(anonymous, explains)
    left = np.ones(len(pieces), bool)
    left[explained - first_piece] = False
    return pieces.select(left)


def _reaches(whole: Array, piece: Array, bounds: Array, touch_px: float) -> Array:
    """Return whether whole boxes reach the tile edges that cut the pieces beside them, bool [n]."""
    width, height = whole[:, 2] - whole[:, 0], whole[:, 3] - whole[:, 1]
    slack = touch_px + REACH_SHARE * np.stack([width, height, width, height], axis=1)
    outward = np.array([-1.0, -1.0, 1.0, 1.0])
    cut = np.abs(piece - bounds) <= touch_px
    edge = np.where(cut, bounds, 0.0)
    short: Array = (cut & (outward * (whole - edge) < -slack)).any(axis=1)
    return ~short


def _join(pieces: TileDetections, settings: MergeSettings) -> TileDetections:
    """Return pieces of one object as their hull, other pieces as they are, in canonical order."""
    n = len(pieces)
    i, j = overlapping_pairs(pieces.detections, lambda i, j: _agreement(pieces, i, j) > settings.threshold)
    agreement = _agreement(pieces, i, j)
    group = np.arange(n)
    members = {index: [index] for index in range(n)}
    tiles = {index: {int(pieces.tiles[index])} for index in range(n)}
    # The best agreement first: in a crowd, each piece finds its own counterpart.
    for pair in np.lexsort((j, i, -agreement)):
        a, b = int(group[i[pair]]), int(group[j[pair]])
        if a != b and tiles[a].isdisjoint(tiles[b]):
            a, b = min(a, b), max(a, b)
            group[members[b]] = a
            members[a] += members.pop(b)
            tiles[a] |= tiles.pop(b)
    return _hulls(pieces, group)


def _agreement(pieces: TileDetections, i: Array, j: Array) -> Array:
    """Return the IoU of two tiles' boxes within what both tiles see, float64; 0 for one tile's own boxes."""
    low = np.maximum(pieces.bounds[i, :2], pieces.bounds[j, :2])
    high = np.minimum(pieces.bounds[i, 2:], pieces.bounds[j, 2:])
    seen = [
        np.concatenate([np.maximum(box[:, :2], low), np.minimum(box[:, 2:], high)], axis=1)
        for box in (pieces.detections.boxes[i].astype(np.float64), pieces.detections.boxes[j].astype(np.float64))
    ]
    intersection = _intersection(*seen)
    union = _area(seen[0]) + _area(seen[1]) - intersection
    iou = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return np.where(pieces.tiles[i] == pieces.tiles[j], 0.0, iou)


def _hulls(ordered: TileDetections, group: Array) -> TileDetections:
    """Return one box per group: the hull, with score, label and tile of its first (best) member."""
    heads, member_of, sizes = np.unique(group, return_inverse=True, return_counts=True)
    boxes = ordered.detections.boxes[heads].copy()
    np.minimum.at(boxes[:, :2], member_of, ordered.detections.boxes[:, :2])
    np.maximum.at(boxes[:, 2:], member_of, ordered.detections.boxes[:, 2:])
    bounds = ordered.bounds[heads].copy()
    bounds[sizes > 1] = [-np.inf, -np.inf, np.inf, np.inf]  # put together, it is whole
    first = ordered.detections.select(heads)
    detections = Detections(boxes, first.scores, first.labels)
    return TileDetections(detections, ordered.tiles[heads], bounds).in_canonical_order()


def _kept(n: int, better: Array, worse: Array) -> Array:
    """Return bool [n]: what stays when, from the best on, each box that stays removes those it is paired with."""
    kept = np.ones(n, bool)
    for box, losers in _by_first(better, worse):
        if kept[box]:
            kept[losers] = False
    return kept


def _absorbed(n: int, better: Array, worse: Array) -> Array:
    """Return each box's owner when, from the best on, each free box takes the free ones it is paired with."""
    owner = np.arange(n)
    for box, others in _by_first(better, worse):
        if owner[box] == box:
            owner[others[owner[others] == others]] = box
    return owner


def _connected(n: int, i: Array, j: Array) -> Array:
    """Return the first member of each box's connected group, int64 [n]."""
    group = np.arange(n)
    while True:
        low = np.minimum(group[i], group[j])
        new = group.copy()
        np.minimum.at(new, i, low)
        np.minimum.at(new, j, low)
        new = new[new]
        if (new == group).all():
            return group
        group = new


def _by_first(i: Array, j: Array) -> Iterator[tuple[int, Array]]:
    order = np.argsort(i, kind="stable")
    i, j = i[order], j[order]
    heads, starts, sizes = np.unique(i, return_index=True, return_counts=True)
    for head, start, size in zip(heads.tolist(), starts.tolist(), sizes.tolist(), strict=True):
        yield head, j[start : start + size]


def overlapping_pairs(detections: Detections, related: Related) -> tuple[Array, Array]:
    """Return the pairs i < j of overlapping boxes of one label for which `related` holds, int64 [pairs] each.

    Boxes are laid into the cells of a grid; only boxes that share a cell are compared, so time and memory
    follow the number of overlaps and not the square of the number of boxes.
    """
    boxes = detections.boxes.astype(np.float64)
    if len(boxes) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    low, high = _cells(boxes)
    columns, rows = (high.max(axis=0) - low.min(axis=0)) + 1
    origin = low.min(axis=0)
    spans = high - low + 1
    counts = spans.prod(axis=1)
    owner = np.repeat(np.arange(len(boxes)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    x = low[owner, 0] - origin[0] + within % spans[owner, 0]
    y = low[owner, 1] - origin[1] + within // spans[owner, 0]
    key = (detections.labels[owner] * rows + y) * columns + x
    order = np.argsort(key, kind="stable")  # within a cell, boxes stay in their order
    owner, key, x, y = owner[order], key[order], x[order] + origin[0], y[order] + origin[1]
    ends = np.searchsorted(key, key, side="right")
    first_x, first_y = low.T.copy()
    firsts, seconds = [], []
    for one, other in _pairs_within(ends):
        i, j = owner[one], owner[other]
        # A pair meets in every cell that both boxes touch; it counts in the first cell of their intersection.
        home = (np.maximum(first_x[i], first_x[j]) == x[one]) & (np.maximum(first_y[i], first_y[j]) == y[one])
        i, j = i[home], j[home]
        chosen = related(i, j)
        firsts.append(i[chosen])
        seconds.append(j[chosen])
    return np.concatenate(firsts), np.concatenate(seconds)


def _cells(boxes: Array) -> tuple[Array, Array]:
    """Return the first and last cell (column, row) of each box, int64 [n, 2]."""
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    cell = max(1.0, 1.5 * float(np.median(sides)))
    while True:
        low = np.floor(boxes[:, :2] / cell).astype(np.int64)
        high = np.maximum(np.floor(boxes[:, 2:] / cell).astype(np.int64), low)
        if (high - low + 1).prod(axis=1).sum() <= CELLS_PER_BOX * len(boxes):
            return low, high
        cell *= 2.0


def _pairs_within(ends: Array) -> Iterator[tuple[Array, Array]]:
    """Yield pairs (place, later place in its cell), some at a time; `ends` is each place's end of cell."""
    places = np.arange(len(ends))
    counts = ends - places - 1
    total = np.cumsum(counts)
    start = 0
    while start < len(ends):
        before = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, before + PAIRS_AT_ONCE, side="right")))
        some = counts[start:stop]
        one = np.repeat(places[start:stop], some)
        offset = np.arange(len(one)) - np.repeat(np.cumsum(some) - some, some)
        yield one, one + 1 + offset
        start = stop


def _intersection(boxes: Array, others: Array) -> Array:
    """Return the areas that boxes share, pair by pair, float64 [n]."""
    extent = (np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])).clip(min=0)
    product: Array = extent[:, 0] * extent[:, 1]
    return product


def _area(boxes: Array) -> Array:
    extent = (boxes[:, 2:] - boxes[:, :2]).clip(min=0)
    product: Array = extent[:, 0] * extent[:, 1]
    return product
