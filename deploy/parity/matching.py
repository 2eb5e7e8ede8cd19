"""Match the detections of an engine with those of the reference, one to one.

A detection may stay unmatched although both sides agree: where two candidates overlap and have nearly equal scores, the
last bit decides which of them non-maximum suppression keeps. Such a *tie* must be proved: the other side must have a
candidate of the same class, box and score.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import PositiveFloat

from deploy.accuracy.image_detection import ImageResult
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections, pairwise_iou

Results = Mapping[int, ImageResult]
"""Results by image id."""
CLASS_CHANGE_IOU = 0.9
CLASS_CHANGE_SCORE = 0.25
"""Least IoU and largest score difference of two unmatched detections that are one object with a changed class."""


class PairingCriteria(Schema):
    """Criteria for detections of both sides to be the same object."""

    pair_iou: PositiveFloat = 0.25
    """Least IoU of a pair. It is low, so that a displaced box counts as displaced and not as lost; the tolerances limit
    the displacement."""
    tie_iou: PositiveFloat
    """Least IoU of a candidate that proves a tie."""
    tie_score: PositiveFloat
    """Largest score difference of a candidate that proves a tie."""


@dataclass(frozen=True, slots=True, eq=False)
class DetectionPair:
    """A detection of the reference and the matched detection of the engine."""

    image_id: int
    label: int
    iou: float
    reference_box: Array
    """float32 [4], pixels of the image."""
    engine_box: Array
    reference_score: float
    engine_score: float
    reference_oriented: Array | None = None
    """float32 [5], of an oriented detector; likewise of the engine."""
    engine_oriented: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class UnmatchedDetection:
    """A detection without a match and without a tie."""

    image_id: int
    in_reference: bool
    """Whether it is a detection of the reference, and not of the engine."""
    label: int
    score: float
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2, pixels of the image."""
    changed_to: int | None
    """Label of the same box on the other side, where there is one."""
    oriented: Array | None = None
    """float32 [5], of an oriented detector."""


@dataclass(slots=True, eq=False)
class Matching:
    """Matched and unmatched detections of all images."""

    pairs: list[DetectionPair] = field(default_factory=list)
    unmatched: list[UnmatchedDetection] = field(default_factory=list)
    reference_count: Counter[int] = field(default_factory=Counter)
    """Detections of the reference, by label."""
    engine_count: Counter[int] = field(default_factory=Counter)
    tied_count: Counter[int] = field(default_factory=Counter)
    """Detections of both sides that are ties, by label."""

    @property
    def class_changes(self) -> list[UnmatchedDetection]:
        """Detections of the reference whose class changed."""
        return [one for one in self.unmatched if one.in_reference and one.changed_to is not None]

    def matched_fraction(self, label: int | None = None) -> float | None:
        """Return the fraction of the detections of both sides that are matched, ties excluded; None without any."""
        counts = self.reference_count + self.engine_count
        counts.subtract(self.tied_count)
        counted = counts.total() if label is None else counts[label]
        pairs = sum(label is None or pair.label == label for pair in self.pairs)
        return 2 * pairs / counted if counted else None


def match(reference: Results, engine: Results, pairing: PairingCriteria) -> Matching:
    """Match the detections of both sides, image by image; both have candidates."""
    matching = Matching()
    for image_id, ours in reference.items():
        _match_image(image_id, ours, engine[image_id], pairing, matching)
    return matching


def greedy_pairs(
    boxes: Array, others: Array, scores: Array, other_scores: Array, *, min_iou: float
) -> list[tuple[int, int]]:
    """Return index pairs of boxes [n, 4] and [m, 4] with an IoU of at least `min_iou`, each box used once.

    Likewise of oriented boxes [n, 5] and [m, 5]. Pairs are taken by falling IoU, then by rising score difference.
    """
    iou = pairwise_iou(boxes, others)
    rows, columns = np.nonzero(iou >= min_iou)
    differences = np.abs(scores[rows] - other_scores[columns])
    order = np.lexsort((columns, rows, differences, -iou[rows, columns]))
    return one_to_one(rows[order], columns[order])


def one_to_one(rows: Array, columns: Array) -> list[tuple[int, int]]:
    """Return the index pairs (rows[i], columns[i]) in order, without those whose row or column was taken before."""
    taken_rows: set[int] = set()
    taken_columns: set[int] = set()
    pairs = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if row not in taken_rows and column not in taken_columns:
            taken_rows.add(row)
            taken_columns.add(column)
            pairs.append((row, column))
    return pairs


def rows_by_label(ours: Detections, theirs: Detections) -> Iterator[tuple[Array, Array]]:
    """Yield, for each label, the rows of both sides that have it."""
    for label in np.union1d(ours.labels, theirs.labels):
        yield np.flatnonzero(ours.labels == label), np.flatnonzero(theirs.labels == label)


def _match_image(
    image_id: int, reference: ImageResult, engine: ImageResult, pairing: PairingCriteria, matching: Matching
) -> None:
    ours, theirs = reference.detections, engine.detections
    matching.reference_count.update(ours.labels.tolist())
    matching.engine_count.update(theirs.labels.tolist())
    our_ties, their_ties = _is_tie(ours, engine.candidates, pairing), _is_tie(theirs, reference.candidates, pairing)
    our_free, their_free = np.ones(len(ours), bool), np.ones(len(theirs), bool)
    for rows, columns in rows_by_label(ours, theirs):
        mine, other = ours.select(rows), theirs.select(columns)
        found = greedy_pairs(mine.outlines, other.outlines, mine.scores, other.scores, min_iou=pairing.pair_iou)
        for row, column in ((rows[i], columns[j]) for i, j in found):
            iou = float(pairwise_iou(ours.outlines[[row]], theirs.outlines[[column]])[0, 0])
            if iou < pairing.tie_iou and (our_ties[row] or their_ties[column]):
                continue  # two neighboring objects: the other side suppressed one of them
            our_free[row] = their_free[column] = False
            label, scores = int(ours.labels[row]), (float(ours.scores[row]), float(theirs.scores[column]))
            oriented = [None if one.oriented is None else one.oriented[i] for one, i in ((ours, row), (theirs, column))]
            boxes = ours.boxes[row], theirs.boxes[column]
            matching.pairs.append(DetectionPair(image_id, label, iou, *boxes, *scores, *oriented))
    matching.tied_count.update(ours.labels[our_free & our_ties].tolist())
    matching.tied_count.update(theirs.labels[their_free & their_ties].tolist())
    lost, extra = ours.select(our_free & ~our_ties), theirs.select(their_free & ~their_ties)
    matching.unmatched += _unmatched(image_id, lost, extra, in_reference=True)
    matching.unmatched += _unmatched(image_id, extra, lost, in_reference=False)


def _is_tie(detections: Detections, candidates: Detections, pairing: PairingCriteria) -> Array:
    """Return, for each detection, whether the other side has it among its candidates. bool [n]."""
    found = np.zeros(len(detections), bool)
    for rows, columns in rows_by_label(detections, candidates):
        iou = pairwise_iou(detections.outlines[rows], candidates.outlines[columns])
        difference = np.abs(detections.scores[rows][:, None] - candidates.scores[columns][None, :])
        found[rows] = ((iou >= pairing.tie_iou) & (difference <= pairing.tie_score)).any(axis=1)
    return found


def _unmatched(
    image_id: int, detections: Detections, others: Detections, *, in_reference: bool
) -> list[UnmatchedDetection]:
    iou = pairwise_iou(detections.outlines, others.outlines)
    unmatched = []
    for row, score in enumerate(detections.scores):
        close = np.flatnonzero((iou[row] >= CLASS_CHANGE_IOU) & (np.abs(others.scores - score) <= CLASS_CHANGE_SCORE))
        changed_to = int(others.labels[close[np.argmax(iou[row][close])]]) if len(close) else None
        label, (x1, y1, x2, y2) = int(detections.labels[row]), detections.boxes[row].tolist()
        oriented = None if detections.oriented is None else detections.oriented[row]
        facts = (image_id, in_reference, label, float(score), (x1, y1, x2, y2), changed_to, oriented)
        unmatched.append(UnmatchedDetection(*facts))
    return unmatched
