"""Detections of a scene against its labels: so that tiling and merging themselves are measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from deploy.scenes.result import SceneResult
from ifkd.config import Schema
from ifkd.data.coco import CocoDataset, LabelledImage, read_coco
from ifkd.data.evaluation import evaluate
from ifkd.detections import Array, pairwise_iou
from ifkd.errors import DataError

MATCH_IOU = 0.5
DETECTIONS_AT_ONCE = 2048


class ClassScore(Schema):
    """How well objects of one class were found; None where the labels have none."""

    ap50: float | None
    precision: float | None
    """Share of the detections that are objects; None without detections."""
    recall: float | None
    objects: int
    detections: int


class SceneScore(Schema):
    """How well the objects of a scene were found, at the score threshold of the run and an IoU of 0.5."""

    truth: str
    """The file of labels."""
    image_id: int
    """The scene's id in it."""
    score_threshold: float
    """Detections below it are not in any figure, so that AP50 is that of the listed detections."""
    ap50: float | None
    """Mean over the classes that occur."""
    precision: float | None
    recall: float | None
    objects: int
    detections: int
    unknown_objects: int
    """Labelled objects of classes the detector does not know; they count neither for it nor against it."""
    per_class: dict[str, ClassScore]


class SceneTruth:
    """The labels of one scene.

    Args:
        path: COCO json that lists the scene among its images, by file name, or that lists one image only.
        scene: The scene's file name.
        size: The scene's (height, width).
        classes: The detector's class names by label.

    Raises:
        DataError: The file cannot be read, does not list the scene, or shares no class with the detector.
    """

    def __init__(self, path: Path, *, scene: str, size: tuple[int, int], classes: tuple[str, ...]) -> None:
        self._path = path
        dataset = read_coco(path)
        image = _image_of(dataset, scene)
        if image.size != size:
            raise DataError(
                f"The labels of {scene} in {path} are those of another raster",
                got=f"{image.size[1]}x{image.size[0]} (width x height)",
                expected=f"{size[1]}x{size[0]}",
            )
        if not set(classes) & set(dataset.classes):
            raise DataError(
                f"{path} has none of the detector's classes", got=list(dataset.classes), expected=list(classes)
            )
        label_of = np.array([classes.index(name) if name in classes else -1 for name in dataset.classes])
        labels = label_of[image.labels] if len(image.labels) else image.labels
        known = labels >= 0
        self.image_id = image.id
        self._unknown = int((~known & ~image.ignore).sum())
        # An object of an unknown class is no reproach to any known one: its place is ignored in all of them.
        repeated = [np.full(int((~known).sum()), label, np.int64) for label in range(len(classes))]
        self._image = replace(
            image,
            boxes=np.concatenate([image.boxes[known], *[image.boxes[~known]] * len(classes)]),
            labels=np.concatenate([labels[known], *repeated]),
            ignore=np.concatenate([image.ignore[known], np.ones(sum(map(len, repeated)), bool)]),
        )
        self._dataset = CocoDataset(path, classes, tuple(range(1, len(classes) + 1)), (self._image,))

    def score(self, result: SceneResult) -> SceneScore:
        """Return how well a result matches the labels."""
        found = result.detections
        counted = np.bincount(found.labels, minlength=len(result.classes))
        metrics = evaluate(self._dataset, {self._image.id: found}, max_detections=max(100, int(counted.max(initial=0))))
        per_class: dict[str, ClassScore] = {}
        hits = alarms = 0
        for label, name in enumerate(result.classes):
            right, wrong = self._matched(found.boxes[found.labels == label], label)
            objects = metrics.per_class[name].objects
            per_class[name] = ClassScore(
                ap50=metrics.per_class[name].ap50,
                precision=_share(right, right + wrong),
                recall=_share(right, objects),
                objects=objects,
                detections=int(counted[label]),
            )
            hits, alarms = hits + right, alarms + wrong
        return SceneScore(
            truth=str(self._path),
            image_id=self._image.id,
            score_threshold=result.settings.selection.score_threshold,
            ap50=metrics.ap50 if metrics.objects else None,
            precision=_share(hits, hits + alarms),
            recall=_share(hits, metrics.objects),
            objects=metrics.objects,
            detections=len(found),
            unknown_objects=self._unknown,
            per_class=per_class,
        )

    def _matched(self, boxes: Array, label: int) -> tuple[int, int]:
        """Return how many boxes [n, 4], best first, are an object of their own, and how many are nothing."""
        of_class = self._image.labels == label
        objects = self._image.boxes[of_class & ~self._image.ignore]
        ignored = self._image.boxes[of_class & self._image.ignore]
        free = np.ones(len(objects), bool)
        right = wrong = 0
        for start in range(0, len(boxes), DETECTIONS_AT_ONCE):
            some = boxes[start : start + DETECTIONS_AT_ONCE]
            overlap, excused = pairwise_iou(some, objects), _inside(some, ignored)
            for row in range(len(some)):
                best = np.where(free, overlap[row], -1.0)
                if len(objects) and best.max() >= MATCH_IOU:
                    free[best.argmax()] = False
                    right += 1
                elif not excused[row]:
                    wrong += 1
        return right, wrong


def _image_of(dataset: CocoDataset, scene: str) -> LabelledImage:
    named = [image for image in dataset.images if image.path.name == scene]
    if not named:
        named = [image for image in dataset.images if image.path.stem == Path(scene).stem]
    if not named and len(dataset) == 1:
        return dataset.images[0]
    if len(named) != 1:
        raise DataError(
            f"{dataset.path} lists {len(named) or 'no'} images of the name {scene}",
            expected="one",
            mend="Name the COCO file whose images include the scene.",
        )
    return named[0]


def _inside(boxes: Array, regions: Array) -> Array:
    """Return which boxes lie for at least half in one of the ignored regions, bool [n]."""
    if not len(boxes) or not len(regions):
        return np.zeros(len(boxes), bool)
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2).max(axis=1)
    half: Array = shared >= MATCH_IOU * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return half


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
