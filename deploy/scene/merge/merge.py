"""Merge the detections of overlapping tiles into those of the scene.

A tile sees only a part of an object that crosses its edge; the adjacent tile, by the overlap, may see the object
completely. The method `border` therefore treats a box that touches an inner edge of its tile (an edge that is not the
scene's border) as a *piece*, and any other box as *complete*:

1. Complete boxes pass class-wise non-maximum suppression, as within a tile.
2. A piece is removed in favor of a complete box of its class if their overlap is above the threshold. It is also
   removed in favor of a complete box of any class, as a part of an object is often misclassified, if the boxes come
   from different tiles, most of the piece is inside the complete box, and that box reaches the edge that cuts the
   piece. (A box that ends before the edge is complete in the piece's tile too, and the two are different objects.)
3. The remaining pieces belong to objects larger than the overlap. Two pieces are joined if they agree in the part of
   the scene that both tiles see; the joined box is their hull with the best score. An object has at most one piece per
   tile.
4. The remaining pieces pass non-maximum suppression below the complete boxes. A piece that no box covers is kept, so
   no object is lost.

Last, of boxes of different classes with an IoU above `class_agnostic_iou`, only the best is kept.

The result does not depend on the order of the input; merging is idempotent; and with a single tile it equals
non-maximum suppression. The other methods are those of SAHI: `nms`, `nmm` (each connected group becomes its hull) and
`greedy_nmm` (each kept box becomes the hull of the boxes that it suppresses).
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

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

EDGE_SLACK = 0.1
"""Accuracy of a complete box at the edge that cuts a piece, as a fraction of its side."""


class MergeSettings(Schema):
    """Settings of the merge of tiles."""

    method: Literal["border", "nms", "nmm", "greedy_nmm"] = "border"
    metric: Literal["iou", "ios"] = "iou"
    """Overlap of two boxes: intersection over union, or over the smaller area."""
    threshold: Fraction = 0.5
    """Two boxes of a class with an overlap above this are one object."""
    min_coverage: Fraction = 0.6
    """Fraction of a piece inside a complete box above which the piece is removed."""
    edge_tolerance_px: Annotated[float, Field(ge=0.0)] = 2.0
    """A box this close to an inner edge is a piece, scene pixels."""
    class_agnostic_iou: Fraction = 1.0
    """Of boxes of different classes with an IoU above this, only the best is kept; 1 keeps all."""


@dataclass(frozen=True, slots=True, eq=False)
class TileDetections:
    """Detections in scene pixels, each with its tile."""

    detections: Detections
    tiles: Array
    """int64 [n]: tile index of each detection."""
    bounds: Array
    """float64 [n, 4]: x1, y1, x2, y2 of the tile, scene pixels; infinite at the border of the scene."""

    def __post_init__(self) -> None:
        assert len(self.detections) == len(self.tiles) == len(self.bounds)

    def __len__(self) -> int:
        """Return the number of detections."""
        return len(self.detections)

    @classmethod
    def of_tile(cls, detections: Detections, tile: int, *, window: Window, size: tuple[int, int]) -> "TileDetections":
        """Return the detections of one tile, in scene pixels, of a scene of `size` (height, width)."""
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
        """Return the detections in descending order of score; ties by label, coordinates and tile."""
        scores = -self.detections.scores
        order = np.argsort(scores, kind="stable")
        ranked = scores[order]
        equal = ranked[1:] == ranked[:-1]
        tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))  # only these need the other keys
        if len(tied):
            order[tied] = order[tied][_canonical(self.select(order[tied]))]
        return self.select(order)

    def pieces(self, edge_tolerance_px: float) -> Array:
        """Return which boxes touch an inner edge of their tile, bool [n]."""
        touching: Array = (np.abs(self.detections.boxes - self.bounds) <= edge_tolerance_px).any(axis=1)
        return touching


def _canonical(found: TileDetections) -> Array:
    """Return the descending order of score; ties by all other values, so that the order is unique."""
    x1, y1, x2, y2 = found.detections.boxes.T
    labels, scores = found.detections.labels, found.detections.scores
    order: Array = np.lexsort((*found.bounds.T, found.tiles, y2, x2, y1, x1, labels, -scores))
    return order


def merge(found: TileDetections, settings: MergeSettings) -> TileDetections:
    """Return the merged detections of a scene's tiles, in canonical order.

    A joined box has the tile of its best piece and counts as complete.
    """
    ordered = found.in_canonical_order()
    match settings.method:
        case "border":
            merged = _border(ordered, settings)
        case "nms":
            same = _same_object(ordered, overlapping_pairs(ordered.detections.boxes), settings)
            merged = ordered.select(survivors(len(ordered), same.first, same.second))
        case "nmm":
            same = _same_object(ordered, overlapping_pairs(ordered.detections.boxes), settings)
            merged = _hulls(ordered, connected(len(ordered), same.first, same.second))
        case "greedy_nmm":
            same = _same_object(ordered, overlapping_pairs(ordered.detections.boxes), settings)
            merged = _hulls(ordered, owners(len(ordered), same.first, same.second))
    return _class_agnostic_nms(merged, settings.class_agnostic_iou) if settings.class_agnostic_iou < 1.0 else merged


def _class_agnostic_nms(ordered: TileDetections, threshold: float) -> TileDetections:
    """Return the boxes that non-maximum suppression across classes keeps."""
    boxes = ordered.detections.boxes.astype(np.float64)
    pairs = overlapping_pairs(boxes)
    area = box_areas(boxes)
    above = pairs.intersection > threshold * (area[pairs.first] + area[pairs.second] - pairs.intersection)
    return ordered.select(survivors(len(ordered), pairs.first[above], pairs.second[above]))


def _border(ordered: TileDetections, settings: MergeSettings) -> TileDetections:
    cut = ordered.pieces(settings.edge_tolerance_px)
    n = len(ordered)
    pairs = overlapping_pairs(ordered.detections.boxes)
    same = _same_object(ordered, pairs, settings)
    among_complete = same.where(~cut[same.first] & ~cut[same.second])
    complete = survivors(n, among_complete.first, among_complete.second) & ~cut
    if not cut.any():
        return ordered.select(complete)
    left = cut & ~_covered(ordered, _complete_to_piece(pairs, complete, cut), settings)
    among_left = pairs.where(left[pairs.first] & left[pairs.second])
    group = _joined(ordered, among_left, settings)
    sizes = np.unique(group[left], return_counts=True)[1]
    if (sizes == 1).all():  # no object is larger than the overlap
        among_pieces = same.where(left[same.first] & left[same.second])
        return ordered.select(complete | (left & survivors(n, among_pieces.first, among_pieces.second)))
    members = np.flatnonzero(left)
    joined = _hulls(ordered.select(members), np.searchsorted(members, group[members]))
    rest = _suppress_pieces(joined, ordered.select(complete), settings)
    return TileDetections.concatenate([ordered.select(complete), rest]).in_canonical_order()


def _suppress_pieces(joined: TileDetections, complete: TileDetections, settings: MergeSettings) -> TileDetections:
    """Return the hulls and single pieces that remain beside the complete boxes, which are always kept."""
    hulls = joined.select(~joined.pieces(settings.edge_tolerance_px))
    # Single pieces that a complete box covers are already removed, so only complete boxes near a hull matter.
    near = np.unique(pairs_between(hulls.detections.boxes, complete.detections.boxes).second)
    ranked = TileDetections.concatenate([complete.select(near), joined])
    same = _same_object(ranked, overlapping_pairs(ranked.detections.boxes), settings)
    kept = survivors(len(ranked), same.first, same.second)
    rest = joined.select(kept[len(near) :])
    still_cut = rest.pieces(settings.edge_tolerance_px)
    hulls, single = rest.select(~still_cut), rest.select(still_cut)
    both = TileDetections.concatenate([hulls, single])
    found = pairs_between(hulls.detections.boxes, single.detections.boxes)
    covered = _covered(both, OverlappingPairs(found.first, found.second + len(hulls), found.intersection), settings)
    return both.select(~covered)


def _same_object(found: TileDetections, pairs: OverlappingPairs, settings: MergeSettings) -> OverlappingPairs:
    """Return the pairs of one class whose overlap is above the threshold."""
    labels = found.detections.labels
    of_class = pairs.where(labels[pairs.first] == labels[pairs.second])
    return of_class.where(_above(found, of_class, settings))


def _above(found: TileDetections, pairs: OverlappingPairs, settings: MergeSettings) -> Array:
    """Return whether the overlap of each pair is above the threshold, bool [pairs]."""
    area = box_areas(found.detections.boxes.astype(np.float64))
    one, other = area[pairs.first], area[pairs.second]
    reference = one + other - pairs.intersection if settings.metric == "iou" else np.minimum(one, other)
    above: Array = pairs.intersection > settings.threshold * reference
    return above


def _complete_to_piece(pairs: OverlappingPairs, complete: Array, cut: Array) -> OverlappingPairs:
    """Return the pairs of a complete box (first) and a piece (second)."""
    ordered = pairs.where(complete[pairs.first] & cut[pairs.second])
    swapped = pairs.where(cut[pairs.first] & complete[pairs.second])
    return OverlappingPairs.concatenate(
        [ordered, OverlappingPairs(swapped.second, swapped.first, swapped.intersection)]
    )


def _covered(found: TileDetections, pairs: OverlappingPairs, settings: MergeSettings) -> Array:
    """Return which boxes are pieces of a complete box, bool [n]; pairs are of a complete box and a piece."""
    boxes = found.detections.boxes.astype(np.float64)
    labels = found.detections.labels
    i, j = pairs.first, pairs.second
    above = (labels[i] == labels[j]) & _above(found, pairs, settings)
    covers = (pairs.intersection > settings.min_coverage * box_areas(boxes[j])) & (found.tiles[i] != found.tiles[j])
    covers[covers] = _reaches(boxes[i[covers]], boxes[j[covers]], found.bounds[j[covers]], settings.edge_tolerance_px)
    covered = np.zeros(len(found), bool)
    covered[j[above | covers]] = True
    return covered


def _reaches(complete: Array, piece: Array, bounds: Array, edge_tolerance_px: float) -> Array:
    """Return whether each complete box reaches the tile edges that cut its piece, bool [n]."""
    width, height = complete[:, 2] - complete[:, 0], complete[:, 3] - complete[:, 1]
    slack = edge_tolerance_px + EDGE_SLACK * np.stack([width, height, width, height], axis=1)
    outward = np.array([-1.0, -1.0, 1.0, 1.0])
    cut = np.abs(piece - bounds) <= edge_tolerance_px
    edge = np.where(cut, bounds, 0.0)
    ends_before: Array = (cut & (outward * (complete - edge) < -slack)).any(axis=1)
    return ~ends_before


def _joined(found: TileDetections, pairs: OverlappingPairs, settings: MergeSettings) -> Array:
    """Return the index of the first piece of each piece's object, int64 [n]; pairs are of overlapping pieces."""
    group = np.arange(len(found))
    labels = found.detections.labels
    of_class = pairs.where(labels[pairs.first] == labels[pairs.second])
    agreement = _agreement(found, of_class.first, of_class.second)
    agrees = agreement > settings.threshold
    i, j, agreement = of_class.first[agrees], of_class.second[agrees], agreement[agrees]
    paired = np.unique(np.concatenate([i, j])).tolist()
    members = {index: [index] for index in paired}
    tiles = {index: {int(found.tiles[index])} for index in paired}
    # The best agreement first, so that each piece in a crowd is joined with its own counterpart.
    for pair in np.lexsort((j, i, -agreement)):
        a, b = int(group[i[pair]]), int(group[j[pair]])
        if a != b and tiles[a].isdisjoint(tiles[b]):
            a, b = min(a, b), max(a, b)
            group[members[b]] = a
            members[a] += members.pop(b)
            tiles[a] |= tiles.pop(b)
    return group


def _agreement(pieces: TileDetections, i: Array, j: Array) -> Array:
    """Return the IoU of boxes i and j inside the overlap of their tiles, float64; 0 for boxes of one tile."""
    low = np.maximum(pieces.bounds[i, :2], pieces.bounds[j, :2])
    high = np.minimum(pieces.bounds[i, 2:], pieces.bounds[j, 2:])
    visible = [
        np.concatenate([np.maximum(box[:, :2], low), np.minimum(box[:, 2:], high)], axis=1)
        for box in (pieces.detections.boxes[i].astype(np.float64), pieces.detections.boxes[j].astype(np.float64))
    ]
    shared = intersection(*visible)
    union = box_areas(visible[0]) + box_areas(visible[1]) - shared
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return np.where(pieces.tiles[i] == pieces.tiles[j], 0.0, iou)


def _hulls(ordered: TileDetections, group: Array) -> TileDetections:
    """Return the hull of each group, with score, label and tile of its first (best) member."""
    heads, member_of, sizes = np.unique(group, return_inverse=True, return_counts=True)
    boxes = ordered.detections.boxes[heads].copy()
    np.minimum.at(boxes[:, :2], member_of, ordered.detections.boxes[:, :2])
    np.maximum.at(boxes[:, 2:], member_of, ordered.detections.boxes[:, 2:])
    bounds = ordered.bounds[heads].copy()
    bounds[sizes > 1] = [-np.inf, -np.inf, np.inf, np.inf]  # a joined box is complete
    first = ordered.detections.select(heads)
    detections = Detections(boxes, first.scores, first.labels)
    return TileDetections(detections, ordered.tiles[heads], bounds).in_canonical_order()
