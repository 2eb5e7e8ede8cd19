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

Oriented boxes overlap by their own areas. The upright boxes around them state whether a box is a piece, whether most of
it is inside a complete box (and of the oriented boxes, half as much) and whether that box reaches the edge. The hull of
oriented boxes is the longest of them, extended to the corners of all (see `_joined_boxes`).

Last, of boxes of different classes with an IoU above `class_agnostic_iou`, only the best is kept.

The result does not depend on the order of the input, and merging is idempotent. The other methods are those of SAHI:
`nms`, `nmm` (each connected group becomes its hull) and `greedy_nmm` (each kept box and those it suppresses do).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import shapely
from pydantic import Field

from deploy.scene.merge.overlaps import OverlappingPairs, connected, overlapping_pairs, owners, pairs_between, survivors
from ifkd.core import oriented_boxes
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections, box_areas
from ifkd.core.tiling import Window

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

EDGE_SLACK = 0.1
"""Accuracy of a complete box at the edge that cuts a piece, as a fraction of its side."""
CORNER_COVERAGE = 0.5
"""Part of `min_coverage` that oriented boxes need: the smallest box around a corner of an object is half empty."""
SLENDER = 2.0
"""Length over width from which the direction of a piece, and so its width, is that of the object."""
UNBOUNDED = np.array([-np.inf, -np.inf, np.inf, np.inf])
"""Bounds of a box that no tile edge cuts."""


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
        return len(self.detections)

    @classmethod
    def of_tile(cls, detections: Detections, tile: int, *, window: Window, size: tuple[int, int]) -> "TileDetections":
        """Return the detections of one tile, in scene pixels, of a scene of `size` (height, width)."""
        edges = np.array([window.left, window.top, window.right, window.bottom], np.float64)
        inner = [window.left > 0, window.top > 0, window.right < size[1], window.bottom < size[0]]
        n = len(detections)
        return cls(detections, np.full(n, tile, np.int64), np.tile(np.where(inner, edges, UNBOUNDED), (n, 1)))

    @classmethod
    def concatenate(cls, parts: Sequence["TileDetections"]) -> "TileDetections":
        """Return the detections of all parts, in order."""
        detections = Detections.concatenate([part.detections for part in parts])
        tiles = np.concatenate([np.zeros(0, np.int64), *(part.tiles for part in parts)])
        return cls(detections, tiles, np.concatenate([np.zeros((0, 4)), *(part.bounds for part in parts)]))

    def select(self, index: Array) -> "TileDetections":
        """Return the detections at `index` (integers or a mask)."""
        return TileDetections(self.detections.select(index), self.tiles[index], self.bounds[index])

    def in_canonical_order(self) -> "TileDetections":
        """Return the detections in descending order of score; ties by label, coordinates and tile."""
        scores = -self.detections.scores
        order = np.argsort(scores, kind="stable")
        equal = np.diff(scores[order]) == 0
        tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))  # only these need the other keys
        some = order[tied]
        x1, y1, x2, y2 = self.detections.boxes[some].T
        turned = () if self.detections.oriented is None else (*self.detections.oriented[some].T,)
        keys = (
            *self.bounds[some].T,
            self.tiles[some],
            *turned,
            y2,
            x2,
            y1,
            x1,
            self.detections.labels[some],
            scores[some],
        )
        order[tied] = some[np.lexsort(keys)]
        return self.select(order)

    def pieces(self, edge_tolerance_px: float) -> Array:
        """Return which boxes touch an inner edge of their tile, bool [n]."""
        return (np.abs(self.detections.boxes - self.bounds) <= edge_tolerance_px).any(axis=1)


def merge(found: TileDetections, settings: MergeSettings) -> TileDetections:
    """Return the merged detections of a scene's tiles, in canonical order.

    A joined box has the tile of its best piece and counts as complete.
    """
    ordered = found.in_canonical_order()
    pairs = _overlapping(ordered.detections)
    match settings.method:
        case "border":
            merged = _border(ordered, pairs, settings)
        case "nms":
            merged = ordered.select(survivors(len(ordered), _same_object(ordered, pairs, settings)))
        case "nmm":
            merged = _hulls(ordered, connected(len(ordered), _same_object(ordered, pairs, settings)))
        case "greedy_nmm":
            merged = _hulls(ordered, owners(len(ordered), _same_object(ordered, pairs, settings)))
    if settings.class_agnostic_iou == 1.0:
        return merged
    pairs = _overlapping(merged.detections)
    above = _above(merged, pairs, "iou", settings.class_agnostic_iou)
    return merged.select(survivors(len(merged), pairs.where(above)))


def _border(ordered: TileDetections, pairs: OverlappingPairs, settings: MergeSettings) -> TileDetections:
    cut = ordered.pieces(settings.edge_tolerance_px)
    n, same = len(ordered), _same_object(ordered, pairs, settings)
    complete = survivors(n, same.where(~cut[same.first] & ~cut[same.second])) & ~cut
    if not cut.any():
        return ordered.select(complete)
    left = cut & ~_covered(ordered, _complete_to_piece(pairs, complete, cut), settings)
    among_left = pairs.where(left[pairs.first] & left[pairs.second])
    group = _joined(ordered, among_left, settings)
    sizes = np.unique(group[left], return_counts=True)[1]
    if (sizes == 1).all():  # no object is larger than the overlap
        return ordered.select(complete | (left & survivors(n, same.where(left[same.first] & left[same.second]))))
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
    same = _same_object(ranked, _overlapping(ranked.detections), settings)
    rest = joined.select(survivors(len(ranked), same)[len(near) :])
    still_cut = rest.pieces(settings.edge_tolerance_px)
    hulls, single = rest.select(~still_cut), rest.select(still_cut)
    both = TileDetections.concatenate([hulls, single])
    found = pairs_between(hulls.detections.boxes, single.detections.boxes)
    found = found.of_outlines(hulls.detections.outlines, single.detections.outlines)
    covered = _covered(both, OverlappingPairs(found.first, found.second + len(hulls), found.intersection), settings)
    return both.select(~covered)


def _overlapping(found: Detections) -> OverlappingPairs:
    """Return all overlapping pairs, by the index of the boxes around them."""
    return overlapping_pairs(found.boxes).of_outlines(found.outlines, found.outlines)


def _same_object(found: TileDetections, pairs: OverlappingPairs, settings: MergeSettings) -> OverlappingPairs:
    """Return the pairs of one class whose overlap is above the threshold."""
    of_class = _of_class(found, pairs)
    return of_class.where(_above(found, of_class, settings.metric, settings.threshold))


def _of_class(found: TileDetections, pairs: OverlappingPairs) -> OverlappingPairs:
    """Return the pairs of one class."""
    labels = found.detections.labels
    return pairs.where(labels[pairs.first] == labels[pairs.second])


def _above(found: TileDetections, pairs: OverlappingPairs, metric: str, threshold: float) -> Array:
    """Return whether the overlap of each pair is above the threshold, bool [pairs]."""
    area = box_areas(found.detections.outlines.astype(np.float64))
    one, other = area[pairs.first], area[pairs.second]
    reference = one + other - pairs.intersection if metric == "iou" else np.minimum(one, other)
    return pairs.intersection > threshold * reference


def _complete_to_piece(pairs: OverlappingPairs, complete: Array, cut: Array) -> OverlappingPairs:
    """Return the pairs of a complete box (first) and a piece (second)."""
    ordered = pairs.where(complete[pairs.first] & cut[pairs.second])
    swapped = pairs.where(cut[pairs.first] & complete[pairs.second])
    swapped = OverlappingPairs(swapped.second, swapped.first, swapped.intersection)
    return OverlappingPairs.concatenate([ordered, swapped])


def _covered(found: TileDetections, pairs: OverlappingPairs, settings: MergeSettings) -> Array:
    """Return which boxes are pieces of a complete box, bool [n]; pairs are of a complete box and a piece."""
    boxes = found.detections.boxes.astype(np.float64)
    labels = found.detections.labels
    i, j = pairs.first, pairs.second
    above = (labels[i] == labels[j]) & _above(found, pairs, settings.metric, settings.threshold)
    covers = found.tiles[i] != found.tiles[j]
    if found.detections.oriented is None:
        covers &= pairs.intersection > settings.min_coverage * box_areas(boxes[j])
    else:
        around = box_areas(_intersection(boxes[i], boxes[j]))
        covers &= around > settings.min_coverage * box_areas(boxes[j])
        own = box_areas(found.detections.oriented[j])
        covers &= pairs.intersection > CORNER_COVERAGE * settings.min_coverage * own
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
    ends_before = cut & (outward * (complete - np.where(cut, bounds, 0.0)) < -slack)
    return ~ends_before.any(axis=1)


def _joined(found: TileDetections, pairs: OverlappingPairs, settings: MergeSettings) -> Array:
    """Return the index of the first piece of each piece's object, int64 [n]; pairs are of overlapping pieces."""
    group = np.arange(len(found))
    of_class = _of_class(found, pairs)
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
    boxes = pieces.detections.boxes.astype(np.float64)
    seen_by_both = _intersection(pieces.bounds[i], pieces.bounds[j])
    one, other = _intersection(boxes[i], seen_by_both), _intersection(boxes[j], seen_by_both)
    if (oriented := pieces.detections.oriented) is None:
        shared = box_areas(_intersection(one, other))
        union = box_areas(one) + box_areas(other) - shared
    else:
        polygons = shapely.polygons(oriented_boxes.corners(oriented).astype(np.float64))
        one, other = (shapely.intersection(polygons[k], _rectangles(part)) for k, part in ((i, one), (j, other)))
        shared = shapely.area(shapely.intersection(one, other))
        union = shapely.area(one) + shapely.area(other) - shared
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return np.where(pieces.tiles[i] == pieces.tiles[j], 0.0, iou)


def _intersection(boxes: Array, others: Array) -> Array:
    return np.concatenate([np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])], axis=1)


def _hulls(ordered: TileDetections, group: Array) -> TileDetections:
    """Return the hull of each group, with score, label and tile of its first (best) member."""
    heads, member_of, sizes = np.unique(group, return_inverse=True, return_counts=True)
    hulls = ordered.select(heads)  # a copy
    np.minimum.at(hulls.detections.boxes[:, :2], member_of, ordered.detections.boxes[:, :2])
    np.maximum.at(hulls.detections.boxes[:, 2:], member_of, ordered.detections.boxes[:, 2:])
    hulls.bounds[sizes > 1] = UNBOUNDED  # a joined box is complete
    if ordered.detections.oriented is not None and hulls.detections.oriented is not None:
        joined = (sizes > 1)[member_of]
        boxes = _joined_boxes(ordered.detections.oriented[joined], member_of[joined])
        hulls.detections.oriented[sizes > 1] = boxes
    return hulls.in_canonical_order()


def _rectangles(boxes: Array) -> Array:
    """Return boxes [n, 4] as shapely polygons; those with a negative side are empty."""
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    rectangles = shapely.box(*boxes.T)
    rectangles[empty] = shapely.Polygon()
    return np.asarray(rectangles)


def _joined_boxes(oriented: Array, group: Array) -> Array:
    """Return an oriented box [groups, 5] for the boxes [n, 5] of each group: the longest one, extended to all corners.

    A slender box is extended along its direction only. A short piece has a less certain direction, and the smallest box
    around a slanted cut is half empty, so that the smallest box around all pieces of an object would be much too wide.
    """
    order = np.lexsort((-oriented[:, 3], -oriented[:, 2], group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    longest = oriented[order[starts]].astype(np.float64)
    compact = longest[:, 2] < SLENDER * longest[:, 3]
    of_group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(group)))
    steps = oriented_boxes.corners(oriented[order]) - longest[of_group, None, :2]
    turn = np.deg2rad(longest[:, 4])
    along = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    for side, direction, extended in ((2, along, True), (3, across, compact)):
        positions = (steps * direction[of_group, None]).sum(axis=2)
        low = np.minimum.reduceat(positions.min(axis=1), starts)
        high = np.maximum.reduceat(positions.max(axis=1), starts)
        longest[:, :2] += direction * np.where(extended, (low + high) / 2, 0.0)[:, None]
        longest[:, side] = np.where(extended, high - low, longest[:, side])
    return oriented_boxes.canonical(longest)
