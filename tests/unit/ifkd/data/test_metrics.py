"""COCO metrics: simple cases with known results, and a comparison with direct use of pycocotools."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ifkd.core.detections import Detections
from ifkd.data.coco import CocoDataset, LabeledImage, coco_results
from ifkd.data.metrics import evaluate


def dataset(objects: list[list[tuple[float, float, float, float, int, bool]]], classes: int = 3) -> CocoDataset:
    """Return images of 100x100 with objects given as x1, y1, x2, y2, label, ignore."""
    images = []
    for index, found in enumerate(objects):
        values = np.array([entry[:4] for entry in found], np.float32).reshape(-1, 4)
        images.append(
            LabeledImage(
                id=index + 11,
                path=Path(f"images/{index}.png"),
                size=(100, 100),
                boxes=values,
                labels=np.array([entry[4] for entry in found], np.int64),
                scene=str(index),
                ignore=np.array([entry[5] for entry in found], bool),
            )
        )
    names = tuple(f"class {label}" for label in range(classes))
    return CocoDataset(Path("set.json"), names, tuple(range(5, 5 + 10 * classes, 10)), tuple(images))


def detections(*entries: tuple[float, float, float, float, float, int]) -> Detections:
    values = np.array(entries, np.float32).reshape(-1, 6)
    return Detections(values[:, :4], values[:, 4], values[:, 5].astype(np.int64))


GROUND_TRUTH = [[(10, 10, 30, 40, 0, False), (50, 50, 90, 70, 1, False)], [(5, 5, 25, 25, 0, False)], []]


def test_detections_equal_to_the_ground_truth_are_perfect() -> None:
    found = {
        11: detections((10, 10, 30, 40, 0.9, 0), (50, 50, 90, 70, 0.8, 1)),
        12: detections((5, 5, 25, 25, 0.7, 0)),
    }
    metrics = evaluate(dataset(GROUND_TRUTH), found)
    assert [metrics.mean_ap, metrics.ap50, metrics.ap75] == pytest.approx([1.0, 1.0, 1.0])
    assert (metrics.images, metrics.objects) == (3, 3)
    assert metrics.per_class["class 0"].objects == 2
    assert metrics.per_class["class 1"].mean_ap == pytest.approx(1.0)
    assert metrics.per_class["class 2"].mean_ap is None


def test_no_detections_give_zero() -> None:
    metrics = evaluate(dataset(GROUND_TRUTH), {})
    assert (metrics.mean_ap, metrics.ap50) == (0.0, 0.0)
    assert evaluate(dataset(GROUND_TRUTH), {11: Detections.empty()}).mean_ap == 0.0


def test_a_data_set_without_objects_has_no_metrics() -> None:
    metrics = evaluate(dataset([[], []]), {11: detections((1, 1, 9, 9, 0.9, 0))})
    assert (metrics.mean_ap, metrics.ap50, metrics.ap75, metrics.objects) == (None, None, None, 0)
    assert metrics.per_class["class 0"].ap50 is None


def test_all_detections_of_a_large_image_count() -> None:
    boxes = [(4.0 * (k % 20), 4.0 * (k // 20), 4.0 * (k % 20) + 3, 4.0 * (k // 20) + 3) for k in range(300)]
    found = detections(*((*box, 0.9 - k / 1000, 0) for k, box in enumerate(boxes)))
    assert evaluate(dataset([[(*box, 0, False) for box in boxes]]), {11: found}).mean_ap == pytest.approx(1.0)


def test_a_shifted_box_matches_at_the_thresholds_below_its_iou() -> None:
    # 40x40 against 40x40 moved by 8: IoU 32/48 = 0.667, so it matches at 0.50 to 0.65, 4 of 10 thresholds.
    metrics = evaluate(dataset([[(0, 0, 40, 40, 0, False)]]), {11: detections((8, 0, 48, 40, 0.9, 0))})
    assert metrics.ap50 == pytest.approx(1.0)
    assert metrics.ap75 == 0.0
    assert metrics.mean_ap == pytest.approx(0.4)


def test_another_class_is_no_match() -> None:
    metrics = evaluate(dataset([[(0, 0, 40, 40, 0, False)]]), {11: detections((0, 0, 40, 40, 0.9, 1))})
    assert metrics.mean_ap == 0.0


def test_a_detection_in_an_ignored_region_does_not_count() -> None:
    ground_truth = [[(0, 0, 20, 20, 0, False), (40, 40, 90, 90, 0, True)]]
    right = (0, 0, 20, 20, 0.5, 0)
    inside, outside = (45, 45, 60, 60, 0.9, 0), (70, 5, 85, 20, 0.9, 0)
    assert evaluate(dataset(ground_truth), {11: detections(right, inside)}).mean_ap == pytest.approx(1.0)
    assert evaluate(dataset(ground_truth), {11: detections(right, outside)}).mean_ap == pytest.approx(0.5)
    assert evaluate(dataset(ground_truth), {}).objects == 1


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_those_of_pycocotools(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    objects, found = [], {}
    for index in range(8):
        corners = random.uniform(0, 60, (5, 2))
        boxes = np.hstack([corners, corners + random.uniform(8, 40, (5, 2))]).astype(np.float32)
        labels = random.integers(0, 3, 5)
        crowd = random.random(5) < 0.15
        objects.append(
            [(*box, int(label), bool(c)) for box, label, c in zip(boxes.tolist(), labels, crowd, strict=True)]
        )
        noisy = np.vstack([boxes + random.normal(0, 2.5, boxes.shape), boxes[:2] + 30]).astype(np.float32)
        chosen = np.where(random.random(7) < 0.85, np.concatenate([labels, labels[:2]]), random.integers(0, 3, 7))
        found[index + 11] = Detections(noisy, random.uniform(0.05, 1, 7).astype(np.float32), chosen)
    ground_truth = dataset(objects)
    ours = evaluate(ground_truth, found)
    (tmp_path / "ground_truth.json").write_text(json.dumps(ground_truth.to_coco()))
    (tmp_path / "found.json").write_text(json.dumps(coco_results(found.items(), ground_truth.category_ids)))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "ground_truth.json"))
        theirs = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "bbox")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    assert 0.05 < ours.mean_ap < 0.95
    assert [ours.mean_ap, ours.ap50, ours.ap75] == pytest.approx(theirs.stats[:3].tolist(), abs=1e-12)
    per_class = [ours.per_class[name].ap50 for name in ground_truth.classes]
    assert np.mean([value for value in per_class if value is not None]) == pytest.approx(ours.ap50)
