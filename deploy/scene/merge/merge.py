"""Detections of overlapping tiles become those of the scene.

A tile sees only a part of an object that its edge cuts; a neighbor, by the overlap, sees it whole. So `border`
treats a box that touches an inner edge (one that is not the scene's border) as a *piece*:

1. Whole boxes are reconciled by class-wise non-maximum suppression, as within a tile.
2. A piece gives way to a whole box of its class when their overlap is above the threshold. It gives way to one
   of any class, as half an object is easily taken for another thing, when they come from different tiles, most
   of the piece lies in the whole box, and that box reaches the edge that cut the piece. A box that ends short of
   the edge was seen whole by the piece's own tile, so it is a neighbor.
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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from deploy.scene.merge.overlaps import (
    OverlappingPairs,
    connected,
    intersection,
    overlapping_pairs,
    owners,
    pairs_between,
    survivors,
)
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections, box_areas
from ifkd.core.tiling import Window

Share = Annotated[float, Field(ge=0.0, le=1.0)]

REACH_SHARE = 0.1
"""A whole box may end short of a piece's edge by this share of its side: detectors are that exact."""


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
        scores = -self.detections.scores
        order = np.argsort(scores, kind="stable")
        ranked = scores[order]
        level = ranked[1:] == ranked[:-1]
        tied = np.flatnonzero(np.append(level, False) | np.append(False, level))  # only these need the other keys
        if len(tied):
            order[tied] = order[tied][_canonical(self.select(order[tied]))]
        return self.select(order)

    def pieces(self, touch_px: float) -> Array:
        """Return which boxes touch an inner edge of their tile, bool [n]."""
        touching: Array = (np.abs(self.detections.boxes - self.bounds) <= touch_px).any(axis=1)
        return touching


def _canonical(found: TileDetections) -> Array:
    """Return the order by falling score, then by everything else, so that it is unique."""
    x1, y1, x2, y2 = found.detections.boxes.T
    labels, scores = found.detections.labels, found.detections.scores
    order: Array = np.lexsort((*found.bounds.T, found.tiles, y2, x2, y1, x1, labels, -scores))
    return order


def merge(found: TileDetections, settings: MergeSettings) -> TileDetections:
    """Return the objects of a scene, given what its tiles saw, in canonical order.

    Joined boxes carry the tile of their best piece and count as whole.
    """
    ordered = found.in_canonical_order()
    match settings.method:
        case "border":
            merged = _border(ordered, settings)
        case "nms":
            same = _same(ordered, overlapping_pairs(ordered.detections.boxes), settings)
            merged = ordered.select(survivors(len(ordered), same.first, same.second))
        case "nmm":
            same = _same(ordered, overlapping_pairs(ordered.detections.boxes), settings)
            merged = _hulls(ordered, connected(len(ordered), same.first, same.second))
        case "greedy_nmm":
            same = _same(ordered, overlapping_pairs(ordered.detections.boxes), settings)
            merged = _hulls(ordered, owners(len(ordered), same.first, same.second))
    return _of_one_class(merged, settings.one_class) if settings.one_class < 1.0 else merged


def _of_one_class(ordered: TileDetections, threshold: float) -> TileDetections:
    """Return the best of the boxes that coincide, whatever their classes."""
    boxes = ordered.detections.boxes.astype(np.float64)
    pairs = overlapping_pairs(boxes)
    area = box_areas(boxes)
    alike = pairs.shared > threshold * (area[pairs.first] + area[pairs.second] - pairs.shared)
    return ordered.select(survivors(len(ordered), pairs.first[alike], pairs.second[alike]))


def _border(ordered: TileDetections, settings: MergeSettings) -> TileDetections:
    cut = ordered.pieces(settings.touch_px)
    n = len(ordered)
    pairs = overlapping_pairs(ordered.detections.boxes)
    same = _same(ordered, pairs, settings)
    among_whole = same.where(~cut[same.first] & ~cut[same.second])
    whole = survivors(n, among_whole.first, among_whole.second) & ~cut
    if not cut.any():
        return ordered.select(whole)
    left = cut & ~_explained(ordered, _from_whole_to_piece(pairs, whole, cut), settings)
    among_left = pairs.where(left[pairs.first] & left[pairs.second])
    group = _joined(ordered, among_left, settings)
    sizes = np.unique(group[left], return_counts=True)[1]
    if (sizes == 1).all():  # no object is larger than the overlap
        rivals = same.where(left[same.first] & left[same.second])
        return ordered.select(whole | (left & survivors(n, rivals.first, rivals.second)))
    members = np.flatnonzero(left)
    joined = _hulls(ordered.select(members), np.searchsorted(members, group[members]))
    rest = _beside(joined, ordered.select(whole), settings)
    return TileDetections.concatenate([ordered.select(whole), rest]).in_canonical_order()


def _beside(joined: TileDetections, whole: TileDetections, settings: MergeSettings) -> TileDetections:
    """Return what stays of hulls and single pieces, given the whole boxes, which stay in any case."""
    hulls = joined.select(~joined.pieces(settings.touch_px))
    # Single pieces that a whole box stands for are gone already, so only boxes near a hull matter.
    near = np.unique(pairs_between(hulls.detections.boxes, whole.detections.boxes).second)
    contest = TileDetections.concatenate([whole.select(near), joined])
    same = _same(contest, overlapping_pairs(contest.detections.boxes), settings)
    kept = survivors(len(contest), same.first, same.second)
    rest = joined.select(kept[len(near) :])
    still_cut = rest.pieces(settings.touch_px)
    hulls, single = rest.select(~still_cut), rest.select(still_cut)
    both = TileDetections.concatenate([hulls, single])
    found = pairs_between(hulls.detections.boxes, single.detections.boxes)
    explained = _explained(both, OverlappingPairs(found.first, found.second + len(hulls), found.shared), settings)
    return both.select(~explained)


def _same(found: TileDetections, pairs: OverlappingPairs, settings: MergeSettings) -> OverlappingPairs:
    """Return the pairs that are one object of one class by overlap."""
    labels = found.detections.labels
    alike = pairs.where(labels[pairs.first] == labels[pairs.second])
    return alike.where(_above(found, alike, settings))


def _above(found: TileDetections, pairs: OverlappingPairs, settings: MergeSettings) -> Array:
    """Return for which pairs the overlap is above the threshold, bool [pairs]."""
    area = box_areas(found.detections.boxes.astype(np.float64))
    one, other = area[pairs.first], area[pairs.second]
    whole = one + other - pairs.shared if settings.metric == "iou" else np.minimum(one, other)
    above: Array = pairs.shared > settings.threshold * whole
    return above


def _from_whole_to_piece(pairs: OverlappingPairs, whole: Array, cut: Array) -> OverlappingPairs:
    """Return the pairs of a whole box (first) and a piece (second)."""
    forth = pairs.where(whole[pairs.first] & cut[pairs.second])
    back = pairs.where(cut[pairs.first] & whole[pairs.second])
    return OverlappingPairs.concatenate([forth, OverlappingPairs(back.second, back.first, back.shared)])


def _explained(found: TileDetections, pairs: OverlappingPairs, settings: MergeSettings) -> Array:
    """Return which boxes are pieces that a whole box explains, bool [n]; pairs lead from whole boxes to pieces."""
    boxes = found.detections.boxes.astype(np.float64)
    labels = found.detections.labels
    i, j = pairs.first, pairs.second
    above = (labels[i] == labels[j]) & _above(found, pairs, settings)
    covers = (pairs.shared > settings.cover * box_areas(boxes[j])) & (found.tiles[i] != found.tiles[j])
    covers[covers] = _reaches(boxes[i[covers]], boxes[j[covers]], found.bounds[j[covers]], settings.touch_px)
    explained = np.zeros(len(found), bool)
    explained[j[above | covers]] = True
    return explained


def _reaches(whole: Array, piece: Array, bounds: Array, touch_px: float) -> Array:
    """Return whether whole boxes reach the tile edges that cut the pieces beside them, bool [n]."""
    width, height = whole[:, 2] - whole[:, 0], whole[:, 3] - whole[:, 1]
    slack = touch_px + REACH_SHARE * np.stack([width, height, width, height], axis=1)
    outward = np.array([-1.0, -1.0, 1.0, 1.0])
    cut = np.abs(piece - bounds) <= touch_px
    edge = np.where(cut, bounds, 0.0)
    short: Array = (cut & (outward * (whole - edge) < -slack)).any(axis=1)
    return ~short


def _joined(found: TileDetections, pairs: OverlappingPairs, settings: MergeSettings) -> Array:
    """Return the first member of each piece's object, int64 [n]; pairs are of pieces that share area."""
    group = np.arange(len(found))
    labels = found.detections.labels
    alike = pairs.where(labels[pairs.first] == labels[pairs.second])
    agreement = _agreement(found, alike.first, alike.second)
    agrees = agreement > settings.threshold
    i, j, agreement = alike.first[agrees], alike.second[agrees], agreement[agrees]
    touched = np.unique(np.concatenate([i, j])).tolist()
    members = {index: [index] for index in touched}
    tiles = {index: {int(found.tiles[index])} for index in touched}
    # The best agreement first: in a crowd, each piece finds its own counterpart.
    for pair in np.lexsort((j, i, -agreement)):
        a, b = int(group[i[pair]]), int(group[j[pair]])
        if a != b and tiles[a].isdisjoint(tiles[b]):
            a, b = min(a, b), max(a, b)
            group[members[b]] = a
            members[a] += members.pop(b)
            tiles[a] |= tiles.pop(b)
    return group


def _agreement(pieces: TileDetections, i: Array, j: Array) -> Array:
    """Return the IoU of two tiles' boxes within what both tiles see, float64; 0 for one tile's own boxes."""
    low = np.maximum(pieces.bounds[i, :2], pieces.bounds[j, :2])
    high = np.minimum(pieces.bounds[i, 2:], pieces.bounds[j, 2:])
    seen = [
        np.concatenate([np.maximum(box[:, :2], low), np.minimum(box[:, 2:], high)], axis=1)
        for box in (pieces.detections.boxes[i].astype(np.float64), pieces.detections.boxes[j].astype(np.float64))
    ]
    shared = intersection(*seen)
    union = box_areas(seen[0]) + box_areas(seen[1]) - shared
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
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
