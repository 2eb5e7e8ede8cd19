"""Metrics by the overlap of oriented boxes: COCO's with their exact IoU, and the AP50 of DOTA."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from ifkd.core.detections import Array, Detections, box_areas, pairwise_intersection, pairwise_iou
from ifkd.core.oriented_boxes import from_upright
from ifkd.data.coco import CocoDataset, LabeledImage

ORIENTED = "oriented"
"""Key of a COCO entry with an oriented box, five numbers."""
RECALL_LEVELS = np.arange(11) / 10


def object_outlines(image: LabeledImage) -> Array:
    """Return the oriented boxes [n, 5] of an image's objects; an object that has none has its upright box."""
    upright = from_upright(image.boxes)
    return upright if image.oriented is None else np.where(np.isnan(image.oriented), upright, image.oriented)


def comparable_outlines(detections: Detections, image: LabeledImage) -> tuple[Array, Array]:
    """Return the outlines of detections and of an image's objects, both oriented if both are, else both upright."""
    if detections.oriented is None or image.oriented is None:
        return detections.boxes, image.boxes
    return detections.oriented, object_outlines(image)


class OrientedCocoEval(COCOeval):  # type: ignore[misc]
    """COCOeval with the IoU of oriented boxes, which its entries have under the key `oriented`."""

    def computeIoU(self, imgId: Any, catId: Any) -> Any:  # noqa: N802, N803 - pycocotools' names
        """Return the IoU of the best detections with the objects of a class in an image, float64 [n, m].

        As in pycocotools, it is the covered fraction of the detection where the object is an ignored region.
        """
        objects, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not objects and not found:
            return []
        order = np.argsort([-one["score"] for one in found], kind="mergesort")[: self.params.maxDets[-1]]
        boxes = np.array([found[index][ORIENTED] for index in order], np.float32).reshape(-1, 5)
        others = np.array([one[ORIENTED] for one in objects], np.float32).reshape(-1, 5)
        shared, areas = pairwise_intersection(boxes, others), box_areas(boxes)[:, None]
        ignored = np.array([one["iscrowd"] for one in objects], bool)
        union = np.where(ignored, areas, areas + box_areas(others) - shared)
        return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def dota_ap50(dataset: CocoDataset, detections: Mapping[int, Detections]) -> float | None:
    """Return AP50 as DOTA's own evaluation has it, the mean over the classes with objects; None without any.

    Each detection is compared with the object that it overlaps most: a second detection of an object is a false
    positive, one of an ignored object counts neither way. Precision is read at 11 levels of recall, as in VOC 2007.
    """
    averages = []
    for label, count in enumerate(dataset.objects_per_class().values()):
        if not count:
            continue
        parts = [_outcomes(image, detections[image.id], label) for image in dataset.images if image.id in detections]
        scores, correct = (
            (np.concatenate([np.zeros(0), *one]) for one in zip(*parts, strict=True)) if parts else ((), ())
        )
        correct = np.asarray(correct)[np.argsort(-np.asarray(scores), kind="stable")]
        true = np.cumsum(correct)
        recall, precision = true / count, true / np.arange(1, len(true) + 1)
        averages.append(np.mean([precision[recall >= level].max(initial=0.0) for level in RECALL_LEVELS]))
    return float(np.mean(averages)) if averages else None


def _outcomes(image: LabeledImage, detections: Detections, label: int) -> tuple[Array, Array]:
    """Return score and outcome (1 or 0) of the detections of a class in an image, without those of ignored objects."""
    found = detections.select(detections.labels == label).in_canonical_order()
    of_class = image.labels == label
    iou = pairwise_iou(found.outlines, object_outlines(image)[of_class])
    ignored, scores, outcomes = image.ignore[of_class], [], []
    taken = np.zeros(len(ignored), bool)
    for score, row in zip(found.scores.tolist(), iou, strict=True):
        best = int(row.argmax()) if len(row) else -1
        overlaps = best >= 0 and row[best] > 0.5
        if overlaps and ignored[best]:
            continue
        scores.append(score)
        outcomes.append(float(overlaps and not taken[best]))
        taken[best : best + 1] |= overlaps
    return np.array(scores), np.array(outcomes)
