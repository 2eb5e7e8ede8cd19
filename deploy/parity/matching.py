"""Match the detections of an engine with those of the reference, one to one.

A detection may stay unmatched although both sides agree: where two candidates overlap and have nearly equal scores, the
last bit decides which of them non-maximum suppression keeps. Such a *tie* must be proved: the other side must have a
candidate of the same class, box and score.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import PositiveFloat

from deploy.accuracy.image_detection import ImageResult
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections, pairwise_iou

CLASS_CHANGE_IOU = 0.9
CLASS_CHANGE_SCORE = 0.25
"""Least IoU and largest score difference of two unmatched detections that are one object with a changed class."""


class Pairing(Schema):
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


@dataclass(slots=True, eq=False)
class Matching:
    """Matched and unmatched detections of all images."""

    pairs: list[DetectionPair] = field(default_factory=list)
    unmatched: list[UnmatchedDetection] = field(default_factory=list)
    reference_count: dict[int, int] = field(default_factory=dict)
    """Detections of the reference, by label."""
    engine_count: dict[int, int] = field(default_factory=dict)
    tied_count: dict[int, int] = field(default_factory=dict)
    """Detections of both sides that are ties, by label."""

    @property
    def class_changes(self) -> list[UnmatchedDetection]:
        """Detections of the reference whose class changed."""
        return [one for one in self.unmatched if one.in_reference and one.changed_to is not None]

    def matched_fraction(self, label: int | None = None) -> float | None:
        """Return the fraction of the detections of both sides that are matched, ties excluded; None without any."""

        def total(counts: Mapping[int, int]) -> int:
            return sum(counts.values()) if label is None else counts.get(label, 0)

        pairs = sum(label is None or pair.label == label for pair in self.pairs)
        counted = total(self.reference_count) + total(self.engine_count) - total(self.tied_count)
        return 2 * pairs / counted if counted else None


def match(reference: Mapping[int, ImageResult], engine: Mapping[int, ImageResult], pairing: Pairing) -> Matching:
    """Match the detections of both sides, image by image.

    Args:
        reference: Results by image id, with candidates.
        engine: Results for the same images.
        pairing: Criteria for two detections to be the same object.
    """
    matching = Matching()
    for image_id, ours in reference.items():
        _match_image(image_id, ours, engine[image_id], pairing, matching)
    return matching


def greedy_pairs(
    boxes: Array, others: Array, scores: Array, other_scores: Array, *, min_iou: float
) -> list[tuple[int, int]]:
    """Return index pairs of boxes [n, 4] and [m, 4] with an IoU of at least `min_iou`, each box used once.

    Pairs are taken by falling IoU, then by rising score difference.
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


def _match_image(
    image_id: int, reference: ImageResult, engine: ImageResult, pairing: Pairing, matching: Matching
) -> None:
    ours, theirs = reference.detections, engine.detections
    _count(ours.labels, matching.reference_count)
    _count(theirs.labels, matching.engine_count)
    our_ties, their_ties = _is_tie(ours, engine.candidates, pairing), _is_tie(theirs, reference.candidates, pairing)
    our_free, their_free = np.ones(len(ours), bool), np.ones(len(theirs), bool)
    for label in np.union1d(ours.labels, theirs.labels):
        rows, columns = np.flatnonzero(ours.labels == label), np.flatnonzero(theirs.labels == label)
        found = greedy_pairs(
            ours.boxes[rows], theirs.boxes[columns], ours.scores[rows], theirs.scores[columns],
            min_iou=pairing.pair_iou
        )  # fmt: skip
        for row, column in ((rows[i], columns[j]) for i, j in found):
            iou = float(pairwise_iou(ours.boxes[row : row + 1], theirs.boxes[column : column + 1])[0, 0])
            if iou < pairing.tie_iou and (our_ties[row] or their_ties[column]):
                continue  # two neighboring objects: the other side suppressed one of them
            our_free[row] = their_free[column] = False
            matching.pairs.append(
                DetectionPair(
                    image_id=image_id,
                    label=int(label),
                    iou=iou,
                    reference_box=ours.boxes[row],
                    engine_box=theirs.boxes[column],
                    reference_score=float(ours.scores[row]),
                    engine_score=float(theirs.scores[column]),
                )
            )
    _count(ours.labels[our_free & our_ties], matching.tied_count)
    _count(theirs.labels[their_free & their_ties], matching.tied_count)
    lost, extra = ours.select(our_free & ~our_ties), theirs.select(their_free & ~their_ties)
    matching.unmatched += _unmatched(image_id, lost, extra, in_reference=True)
    matching.unmatched += _unmatched(image_id, extra, lost, in_reference=False)


def _is_tie(detections: Detections, candidates: Detections, pairing: Pairing) -> Array:
    """Return, for each detection, whether the other side has it among its candidates. bool [n]."""
    found = np.zeros(len(detections), bool)
    for label in np.unique(detections.labels):
        rows, columns = np.flatnonzero(detections.labels == label), np.flatnonzero(candidates.labels == label)
        iou = pairwise_iou(detections.boxes[rows], candidates.boxes[columns])
        difference = np.abs(detections.scores[rows][:, None] - candidates.scores[columns][None, :])
        found[rows] = ((iou >= pairing.tie_iou) & (difference <= pairing.tie_score)).any(axis=1)
    return found


def _unmatched(
    image_id: int, detections: Detections, others: Detections, *, in_reference: bool
) -> list[UnmatchedDetection]:
    iou = pairwise_iou(detections.boxes, others.boxes)
    unmatched = []
    for row, score in enumerate(detections.scores):
        close = np.flatnonzero((iou[row] >= CLASS_CHANGE_IOU) & (np.abs(others.scores - score) <= CLASS_CHANGE_SCORE))
        best = close[np.argmax(iou[row][close])] if len(close) else None
        x1, y1, x2, y2 = (float(value) for value in detections.boxes[row])
        unmatched.append(
            UnmatchedDetection(
                image_id=image_id,
                in_reference=in_reference,
                label=int(detections.labels[row]),
                score=float(score),
                box=(x1, y1, x2, y2),
                changed_to=None if best is None else int(others.labels[best]),
            )
        )
    return unmatched


def _count(labels: Array, counts: dict[int, int]) -> None:
    for label in labels:
        counts[int(label)] = counts.get(int(label), 0) + 1
