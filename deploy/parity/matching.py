"""Detections of two engines on the same images, paired one to one, and how far the pairs have drifted apart.

A detection without a partner is not always a fault of the engine: where two candidates overlap and score alike, the
last bit decides which of them suppression keeps. Such a *tie* is recognized, never assumed: the other engine must
have the same candidate, by class, box and score, among those it chose from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import PositiveFloat

from deploy.accuracy.image_detection import ImageResult
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections, pairwise_iou

FLIP_IOU = 0.9
FLIP_SCORE = 0.25
"""What two orphans of different classes must share, and may differ by, to be one object that changed its class."""


class Pairing(Schema):
    """When detections of two engines are one object."""

    pair_iou: PositiveFloat = 0.25
    """Least IoU of a pair. It is low, so that a box that moved is seen as moved and not as lost; how far pairs may
    lie apart is for the gates to say. Pairs are made class by class, best IoU first."""
    twin_iou: PositiveFloat
    """Least IoU of a candidate that proves a tie."""
    twin_score: PositiveFloat
    """Largest score difference of a candidate that proves a tie."""


@dataclass(frozen=True, slots=True, eq=False)
class UnmatchedDetection:
    """A detection without a partner and without a tie to explain it."""

    image_id: int
    in_reference: bool
    """It is the reference's and the subject lacks it, or the other way round."""
    label: int
    score: float
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2, pixels of the image."""
    became: int | None
    """The class the other engine gave the same box, when it did."""


@dataclass(slots=True, eq=False)
class Matching:
    """What pairing found over all images. Arrays of pairs run in parallel."""

    labels: list[int] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    reference_boxes: list[Array] = field(default_factory=list)
    subject_boxes: list[Array] = field(default_factory=list)
    reference_scores: list[float] = field(default_factory=list)
    subject_scores: list[float] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    orphans: list[UnmatchedDetection] = field(default_factory=list)
    reference_count: dict[int, int] = field(default_factory=dict)
    """Detections of the reference, by label."""
    subject_count: dict[int, int] = field(default_factory=dict)
    tied_count: dict[int, int] = field(default_factory=dict)
    """Detections of either engine that a tie explains, by label."""

    @property
    def flips(self) -> list[UnmatchedDetection]:
        """The reference's detections whose class changed."""
        return [orphan for orphan in self.orphans if orphan.in_reference and orphan.became is not None]

    def matched_share(self, label: int | None = None) -> float | None:
        """Return the share of both engines' detections that have a partner, ties left out; None without any."""

        def total(counts: Mapping[int, int]) -> int:
            return sum(counts.values()) if label is None else counts.get(label, 0)

        pairs = len(self.labels) if label is None else self.labels.count(label)
        counted = total(self.reference_count) + total(self.subject_count) - total(self.tied_count)
        return 2 * pairs / counted if counted else None


def match(reference: Mapping[int, ImageResult], subject: Mapping[int, ImageResult], pairing: Pairing) -> Matching:
    """Pair the detections of two engines, image by image.

    Args:
        reference: Answers by image id, with candidates.
        subject: Answers to the same images.
        pairing: When two detections are one object.
    """
    matching = Matching()
    for image_id, ours in reference.items():
        _match_image(image_id, ours, subject[image_id], pairing, matching)
    return matching


def greedy_pairs(
    boxes: Array, others: Array, scores: Array, other_scores: Array, *, least_iou: float
) -> list[tuple[int, int]]:
    """Return index pairs of boxes [n, 4] and [m, 4] with an IoU of at least `least_iou`, each box used once.

    The best IoU is taken first; among equal ones, the closest scores.
    """
    iou = pairwise_iou(boxes, others)
    rows, columns = np.nonzero(iou >= least_iou)
    differences = np.abs(scores[rows] - other_scores[columns])
    free_rows, free_columns = np.ones(len(boxes), bool), np.ones(len(others), bool)
    pairs = []
    for index in np.lexsort((columns, rows, differences, -iou[rows, columns])):
        row, column = int(rows[index]), int(columns[index])
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            pairs.append((row, column))
    return pairs


def _match_image(image_id: int, ours: ImageResult, theirs: ImageResult, pairing: Pairing, matching: Matching) -> None:
    mine, other = ours.detections, theirs.detections
    _count(mine.labels, matching.reference_count)
    _count(other.labels, matching.subject_count)
    mine_twin = _has_twin(mine, theirs.candidates, pairing)
    other_twin = _has_twin(other, ours.candidates, pairing)
    mine_free, other_free = np.ones(len(mine), bool), np.ones(len(other), bool)
    for label in np.union1d(mine.labels, other.labels):
        rows, columns = np.flatnonzero(mine.labels == label), np.flatnonzero(other.labels == label)
        found = greedy_pairs(
            mine.boxes[rows], other.boxes[columns], mine.scores[rows], other.scores[columns],
            least_iou=pairing.pair_iou,
        )  # fmt: skip
        for row, column in ((rows[i], columns[j]) for i, j in found):
            iou = float(pairwise_iou(mine.boxes[row : row + 1], other.boxes[column : column + 1])[0, 0])
            if iou < pairing.twin_iou and (mine_twin[row] or other_twin[column]):
                continue  # neighbors, not one object: one of them is there on the other side, where it was suppressed
            mine_free[row] = other_free[column] = False
            matching.labels.append(int(label))
            matching.image_ids.append(image_id)
            matching.reference_boxes.append(mine.boxes[row])
            matching.subject_boxes.append(other.boxes[column])
            matching.reference_scores.append(float(mine.scores[row]))
            matching.subject_scores.append(float(other.scores[column]))
            matching.ious.append(iou)
    _count(mine.labels[mine_free & mine_twin], matching.tied_count)
    _count(other.labels[other_free & other_twin], matching.tied_count)
    lost, extra = mine.select(mine_free & ~mine_twin), other.select(other_free & ~other_twin)
    matching.orphans += _orphans(image_id, lost, extra, in_reference=True)
    matching.orphans += _orphans(image_id, extra, lost, in_reference=False)


def _has_twin(detections: Detections, candidates: Detections, pairing: Pairing) -> Array:
    """Return, for each detection, whether it is among the candidates: same class, box and score. bool [n]."""
    found = np.zeros(len(detections), bool)
    for label in np.unique(detections.labels):
        rows, columns = np.flatnonzero(detections.labels == label), np.flatnonzero(candidates.labels == label)
        iou = pairwise_iou(detections.boxes[rows], candidates.boxes[columns])
        apart = np.abs(detections.scores[rows][:, None] - candidates.scores[columns][None, :])
        found[rows] = ((iou >= pairing.twin_iou) & (apart <= pairing.twin_score)).any(axis=1)
    return found


def _orphans(image_id: int, alone: Detections, others: Detections, *, in_reference: bool) -> list[UnmatchedDetection]:
    iou = pairwise_iou(alone.boxes, others.boxes)
    orphans = []
    for row in range(len(alone)):
        near = np.flatnonzero((iou[row] >= FLIP_IOU) & (np.abs(others.scores - alone.scores[row]) <= FLIP_SCORE))
        best = near[np.argmax(iou[row][near])] if len(near) else None
        x1, y1, x2, y2 = (float(value) for value in alone.boxes[row])
        orphans.append(
            UnmatchedDetection(
                image_id=image_id,
                in_reference=in_reference,
                label=int(alone.labels[row]),
                score=float(alone.scores[row]),
                box=(x1, y1, x2, y2),
                became=None if best is None else int(others.labels[best]),
            )
        )
    return orphans


def _count(labels: Sequence[int] | Array, into: dict[int, int]) -> None:
    for label in labels:
        into[int(label)] = into.get(int(label), 0) + 1
