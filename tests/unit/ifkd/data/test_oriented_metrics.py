"""Metrics by oriented boxes, against shapely, pycocotools' masks and upright boxes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely

from ifkd.core.detections import Array, Detections
from ifkd.core.errors import DataError
from ifkd.core.oriented_boxes import canonical, corners, envelopes, from_upright
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.data.metrics import evaluate
from ifkd.data.object_matching import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, match_objects
from ifkd.data.oriented_metrics import ORIENTED, OrientedCocoEval, dota_ap50

SIZE = (400, 400)


def labeled(
    oriented: Array, labels: list[int] | Array, ignore: list[bool] | None = None, *, key: int = 1
) -> CocoDataset:
    oriented = np.array(oriented, np.float32).reshape(-1, 5)
    flags = np.zeros(len(oriented), bool) if ignore is None else np.array(ignore)
    boxes, of_class = envelopes(oriented), np.array(labels, np.int64)
    image = LabeledImage(key, Path("a.png"), SIZE, boxes, of_class, "a", flags, oriented)
    return CocoDataset(Path("a.json"), ("one", "two"), (4, 9), (image,))


def detected(oriented: Array, scores: list[float] | Array, labels: list[int] | Array) -> Detections:
    oriented = np.array(oriented, np.float32).reshape(-1, 5)
    return Detections(envelopes(oriented), np.array(scores, np.float32), np.array(labels, np.int64), oriented)


def harbor(seed: int) -> tuple[CocoDataset, Detections]:
    """Return ships, two of three beside another one, and detections that are a little off or wrong."""
    rng = np.random.default_rng(seed)
    true = np.column_stack([rng.uniform(60, 340, (12, 2)), rng.uniform(50, 90, 12), rng.uniform(12, 25, 12)])
    true = canonical(np.column_stack([true, rng.uniform(0, 180, 12)]))
    labels = rng.integers(0, 2, 12)
    found = canonical(np.concatenate([true, true[:6]]) + rng.normal(0, [2, 2, 4, 2, 4], (18, 5)))
    scores = rng.permutation(18) / 18
    wrong = np.where(
        rng.random(18) < 0.2, 1 - np.concatenate([labels, labels[:6]]), np.concatenate([labels, labels[:6]])
    )
    return labeled(true, labels, (rng.random(12) < 0.2).tolist()), detected(found, scores, wrong)


def turned_by(found: Array, degrees: float) -> Array:
    """Turn boxes around the center of the image."""
    turn = np.deg2rad(degrees)
    x, y = found[:, 0] - 200.0, found[:, 1] - 200.0
    place = np.column_stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)]) + 200
    return canonical(np.column_stack([place, found[:, 2:4], found[:, 4] + degrees]))


@pytest.mark.parametrize("seed", range(4))
def test_masks_of_large_boxes_give_nearly_the_same(seed: int) -> None:
    dataset, found = harbor(seed)
    metrics = evaluate(dataset, {1: found}, every_measure=True)
    assert metrics.boxes == "oriented"
    assert metrics.masks is not None
    assert metrics.mean_ap is not None
    assert 0.1 < metrics.mean_ap < 0.99
    assert metrics.mean_ap == pytest.approx(metrics.masks.mean_ap, abs=0.06)
    assert metrics.ap50 == pytest.approx(metrics.masks.ap50, abs=0.06)
    assert evaluate(dataset, {1: found}).masks is None


@pytest.mark.parametrize("seed", range(4))
def test_boxes_at_0_degrees_equal_upright_boxes(seed: int) -> None:
    dataset, found = harbor(seed)
    (image,) = dataset.images
    flat = replace(dataset, images=(replace(image, oriented=from_upright(image.boxes)),))
    oriented = evaluate(flat, {1: found}, boxes="upright")
    same = evaluate(flat, {1: replace(found, oriented=from_upright(found.boxes))})
    assert (oriented.boxes, same.boxes) == ("upright", "oriented")
    assert same.per_class == oriented.per_class
    assert evaluate(flat, {1: replace(found, oriented=None)}, boxes="oriented") == same


def test_objects_without_an_oriented_box_decide_the_default_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Perfect detections of slanted ships would hardly match the upright boxes of the objects that have no other."""
    dataset, _ = harbor(2)
    (image,) = dataset.images
    assert image.oriented is not None
    found = {1: detected(image.oriented, np.ones(12), image.labels)}
    lacking = image.oriented.copy()
    lacking[np.flatnonzero(~image.ignore)[1:]] = np.nan
    partial = replace(dataset, images=(replace(image, oriented=lacking),))
    metrics = evaluate(partial, found, every_measure=True)
    assert (metrics.boxes, metrics.mean_ap, metrics.masks) == ("upright", pytest.approx(1.0), None)
    count = int((~image.ignore).sum()) - 1
    assert f"{count} objects of a.json have no oriented box: upright boxes are compared" in caplog.text
    oriented = evaluate(partial, found, boxes="oriented", every_measure=True)
    assert f"{count} objects of a.json have no oriented box: their upright boxes are used" in caplog.text
    assert oriented.mean_ap is not None
    assert oriented.mean_ap < 0.9
    ignored = image.oriented.copy()
    ignored[image.ignore] = np.nan
    assert image.ignore.any()
    assert evaluate(replace(dataset, images=(replace(image, oriented=ignored),)), found).boxes == "oriented"


def test_all_measures_use_the_same_boxes_of_images_without_any_oriented_one() -> None:
    """A slanted ship in each of two images; the labels of the second have no polygon."""
    slanted = np.array([[200, 200, 100, 12, 45]], np.float32)
    first, second = labeled(slanted, [0], key=1), labeled(slanted, [0], key=2)
    plain = replace(second.images[0], oriented=None)
    dataset = replace(first, images=(first.images[0], plain))
    found = {key: detected(slanted, [0.9], [0]) for key in (1, 2)}
    metrics = evaluate(dataset, found, boxes="oriented", every_measure=True)
    assert metrics.masks is not None
    assert metrics.ap50 == metrics.masks.ap50 == pytest.approx(0.505, abs=0.01)
    assert metrics.dota_ap50 == pytest.approx(6 / 11)


@pytest.mark.parametrize("degrees", [17.0, 90.0, 131.0])
def test_turning_everything_changes_nothing(degrees: float) -> None:
    dataset, found = harbor(5)
    (image,) = dataset.images
    assert image.oriented is not None
    assert found.oriented is not None
    turned = labeled(turned_by(image.oriented, degrees), image.labels, image.ignore.tolist())
    moved = detected(turned_by(found.oriented, degrees), found.scores, found.labels)
    assert evaluate(turned, {1: moved}).per_class == evaluate(dataset, {1: found}).per_class


def test_iou_is_shapelys_and_of_ignored_regions_the_covered_fraction() -> None:
    dataset, found = harbor(6)
    (image,) = dataset.images
    assert image.oriented is not None
    assert found.oriented is not None
    evaluator = OrientedCocoEval.__new__(OrientedCocoEval)
    evaluator.params = type("Params", (), {"maxDets": [100]})
    objects = zip(image.oriented, image.ignore.tolist(), strict=True)
    evaluator._gts = {(1, 1): [{ORIENTED: box, "iscrowd": int(ignore)} for box, ignore in objects]}
    evaluator._dts = {
        (1, 1): [{ORIENTED: box, "score": score} for box, score in zip(found.oriented, found.scores, strict=True)]
    }
    iou = evaluator.computeIoU(1, 1)
    order = np.argsort(-found.scores)
    ours = shapely.polygons(corners(found.oriented[order]).astype(float))[:, None]
    theirs = shapely.polygons(corners(image.oriented).astype(float))[None]
    shared, union = (shapely.area(of(ours, theirs)) for of in (shapely.intersection, shapely.union))
    expected = np.where(image.ignore, shared / shapely.area(ours), shared / union)
    np.testing.assert_allclose(iou, expected, atol=1e-4)
    assert image.ignore.any()


def test_moored_ships_are_one_object_each_by_oriented_boxes_only() -> None:
    ships = canonical(np.array([[100 + 12 * i, 100 - 12 * i, 80, 14, 45] for i in range(3)]))
    dataset, found = labeled(ships, [0] * 3), detected(ships[[0, 2, 1]], [0.9, 0.8, 0.7], [0] * 3)
    assert evaluate(dataset, {1: found}).ap75 == pytest.approx(1.0)
    missed = found.select(np.array([0, 1]))
    assert match_objects(missed, dataset.images[0]).tolist() == [TRUE_POSITIVE] * 2
    shifted = detected(ships[:1] + np.array([6, -6, 0, 0, 0]), [0.9], [0])  # between two ships
    assert match_objects(shifted, dataset.images[0]).tolist() == [FALSE_POSITIVE]
    assert match_objects(replace(shifted, oriented=None), dataset.images[0]).tolist() == [TRUE_POSITIVE]
    ignored = labeled(ships, [0] * 3, [True, False, False])
    inside = detected(ships[:1] * np.array([1, 1, 0.3, 0.9, 1], np.float32), [0.9], [0])
    assert match_objects(inside, ignored.images[0]).tolist() == [IGNORED]


def test_labels_without_oriented_boxes() -> None:
    dataset, found = harbor(0)
    upright = replace(dataset, images=(replace(dataset.images[0], oriented=None),))
    assert evaluate(upright, {1: found}).boxes == "upright"
    with pytest.raises(DataError, match="no oriented boxes"):
        evaluate(upright, {1: found}, boxes="oriented")
    assert evaluate(dataset, {}, boxes="oriented").mean_ap == 0.0


def test_dotas_ap50() -> None:
    ships = np.array([[100, 100, 60, 12, 30], [200, 200, 60, 12, 30], [300, 100, 60, 12, 30]], np.float32)
    dataset = labeled(ships, [0, 0, 1], [False, False, True])
    away = ships[:1] + np.array([0, 100, 0, 0, 0], np.float32)
    boxes = np.concatenate([ships[:1], ships[:1], away, ships[1:2], ships[2:]])
    found = detected(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], [0, 0, 0, 0, 1])
    # Right, again, nowhere, right: precision 1 up to recall 0.5, then 2 of 4.
    assert dota_ap50(dataset, {1: found}) == pytest.approx((6 * 1.0 + 5 * 0.5) / 11)
    assert dota_ap50(labeled(ships[:0], []), {1: found}) is None
    assert dota_ap50(dataset, {}) == 0.0
    between = detected(ships[:1] + np.array([0, 5, 0, 0, 0], np.float32), [0.95], [0])  # IoU below 0.5
    both = Detections.concatenate([between, found])
    assert dota_ap50(dataset, {1: both}) == pytest.approx((6 * 0.5 + 5 * 0.4) / 11)
