"""Calibration of a screen: what it loses, counted by hand on images whose objects differ in brightness."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.fake_screen import write_screen
from PIL import Image

from export.screen.calibration import calibrate, objectness_maps
from ifkd.core.config import parse
from ifkd.core.detections import Array, Detections
from ifkd.core.errors import DataError
from ifkd.core.tiling import TileGrid
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.imagery.objectness import box_objectness
from ifkd.recipe import Recipe, ScreenOptions

STRIDE = 8
BRIGHT = (250, 200, 150, 100)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("screen") / "screen.onnx"
    write_screen(path, stride=STRIDE)
    return path


@pytest.fixture
def recipe(recipe_values: dict[str, Any]) -> Recipe:
    return parse(recipe_values, Recipe, source="values")  # tiles of 64 px that overlap by 16


def make_dataset(
    folder: Path, count: int, *, size: tuple[int, int] = (64, 160), per_scene: int = 1
) -> tuple[CocoDataset, dict[int, Detections]]:
    """Return dark images, each with one bright object, and the detections of these objects."""
    images, detections = [], {}
    for index in range(count):
        pixels = np.full((*size, 3), 20, np.uint8)
        pixels[24:40, 100:120] = BRIGHT[index % len(BRIGHT)]
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        box = np.array([[100, 24, 120, 40]], np.float32)
        scene, labels = f"place {index // per_scene}", np.zeros(1, np.int64)
        images.append(LabeledImage(index, path, size, box, labels, scene, np.zeros(1, bool)))
        detections[index] = Detections(box, np.array([0.9], np.float32), labels)
    return CocoDataset(folder / "val.json", ("ship",), (1,), tuple(images)), detections


def run(
    screen: Path,
    data: tuple[CocoDataset, dict[int, Detections]],
    recipe: Recipe,
    margin_px: float = 16.0,
    **limits: Any,
) -> Any:
    options = ScreenOptions(**{"scale": 1.0, "confidence": 0.0, **limits})
    return calibrate(
        screen, *data, recipe=recipe, options=options, stride=STRIDE, margin_px=margin_px, score_threshold=0.5
    )


def test_the_threshold_and_the_curve_are_those_counted_by_hand(tmp_path: Path, screen: Path, recipe: Recipe) -> None:
    """A quarter of the objects has a brightness of 100, and may be lost: (8 · 0.25 + 1) / 9 = 1/3."""
    threshold, record = run(screen, make_dataset(tmp_path, 8), recipe, max_lost_fraction=0.34)
    assert threshold == np.floor(150 / 255 * 1e5) / 1e5
    assert record.bound == pytest.approx(1 / 3)
    assert (record.images, record.scenes, record.objects, record.scenes_needed) == (8, 8, 8, 2)
    losses = {point.threshold: point.lost_fraction for point in record.curve}
    assert (losses[0.0], losses[0.3], losses[0.4], losses[0.6], losses[0.9]) == (0, 0, 0.25, 0.5, 0.75)
    # Of three tiles of an image, from 0, 48 and 96, two show the object; the sea of all has a brightness of 20 / 255.
    passed = {point.threshold: point.passed_fraction for point in record.curve}
    assert (passed[0.05], passed[0.3]) == (1.0, pytest.approx(2 / 3))
    assert threshold in losses
    assert record.reason.startswith(
        "the largest threshold that loses at most 34.00% of a scene's detections on average"
    )


def test_too_few_scenes_are_a_result(tmp_path: Path, screen: Path, recipe: Recipe) -> None:
    threshold, record = run(screen, make_dataset(tmp_path, 12), recipe, confidence=0.9, max_lost_fraction=0.005)
    assert (threshold, record.bound) == (None, None)
    assert record.reason.endswith("at least 460 held-out scenes with detections, and there are 12")
    assert len(record.curve) > 10


def test_detections_that_overlap_are_lost_together(tmp_path: Path, screen: Path, recipe: Recipe) -> None:
    """A detection of dark sea beside each object: without it, the object might survive what would suppress it."""
    dataset, detections = make_dataset(tmp_path, 8)
    beside = np.array([[118, 48, 130, 60], [117, 38, 129, 50]], np.float32)  # the second overlaps with both
    for count, lost in ((0, 0.0), (1, 1 / 2), (2, 1.0)):
        added = {
            key: Detections(
                np.concatenate([one.boxes, beside[:count]]),
                np.full(1 + count, 0.9, np.float32),
                np.zeros(1 + count, np.int64),
            )
            for key, one in detections.items()
        }
        _, record = run(screen, (dataset, added), recipe)
        assert {point.threshold: point.lost_fraction for point in record.curve}[0.3] == lost


def test_a_smaller_margin_needs_more_of_an_object_and_searches_fewer_tiles(
    tmp_path: Path, screen: Path, recipe: Recipe
) -> None:
    """A box of 48 px with an object on its right: of parts as wide as 20 px, the first one has no bright cell."""
    dataset, detections = make_dataset(tmp_path, 8)
    wide = Detections(np.array([[72, 24, 120, 40]], np.float32), detections[0].scores, detections[0].labels)
    found = (dataset, dict.fromkeys(detections, wide))
    for margin_px, lost, passed in ((20.0, 1.0, 2 / 3), (48.0, 0.0, 1.0)):
        _, record = run(screen, found, recipe, margin_px=margin_px)
        (point,) = [one for one in record.curve if one.threshold == 0.3]
        assert (point.lost_fraction, point.passed_fraction) == (lost, pytest.approx(passed))


def test_an_object_that_several_tiles_show_counts_once(tmp_path: Path, screen: Path, recipe: Recipe) -> None:
    dataset, detections = make_dataset(tmp_path, 8)
    cut = np.array([[100, 24, 108, 40]], np.float32)  # as the edge of another tile shows it
    repeated = {
        key: Detections.concatenate([one, Detections(cut, one.scores, one.labels)]) for key, one in detections.items()
    }
    _, once = run(screen, (dataset, detections), recipe)
    _, twice = run(screen, (dataset, repeated), recipe)
    assert (twice.objects, twice.curve) == (once.objects, once.curve)


def test_images_of_a_place_are_one_scene(tmp_path: Path, screen: Path, recipe: Recipe) -> None:
    _, record = run(screen, make_dataset(tmp_path, 12, per_scene=4), recipe)
    assert (record.images, record.scenes, record.objects) == (12, 3, 12)


def test_weak_detections_and_images_without_any_do_not_count(tmp_path: Path, screen: Path, recipe: Recipe) -> None:
    dataset, detections = make_dataset(tmp_path, 8)
    weak = Detections(detections[0].boxes, np.array([0.4], np.float32), np.zeros(1, np.int64))
    changed = {**detections, 0: weak, 1: Detections.empty()}
    _, record = run(screen, (dataset, changed), recipe)
    assert (record.images, record.scenes, record.objects) == (8, 6, 6)


def test_a_screen_that_misses_objects_has_no_threshold(tmp_path: Path, screen: Path, recipe: Recipe) -> None:
    """Every image has a detection of the sea, which is as dark as any tile: a threshold that keeps it skips nothing."""
    dataset, detections = make_dataset(tmp_path, 8)
    threshold, _ = run(screen, (dataset, detections), recipe, max_lost_fraction=0.2)
    assert threshold == pytest.approx(100 / 255, abs=1e-4)
    black = {
        key: Detections(np.array([[-90, 0, -80, 9]], np.float32), one.scores, one.labels)
        for key, one in detections.items()
    }
    threshold, _ = run(screen, (dataset, black), recipe, max_lost_fraction=0.2)
    assert threshold is not None
    assert threshold <= 20 / 255


@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_the_screen_sees_smaller_images(tmp_path: Path, screen: Path, recipe: Recipe, scale: float) -> None:
    data = make_dataset(tmp_path, 8, size=(70, 150))
    threshold, record = run(screen, data, recipe, scale=scale, max_lost_fraction=0.2)
    assert threshold == pytest.approx(100 / 255, abs=0.02)
    assert [point.lost_fraction for point in record.curve if point.threshold in {0.2, 0.5}] == [0, 0.25]


def test_a_missing_image_is_an_error(tmp_path: Path, screen: Path, recipe: Recipe) -> None:
    dataset, detections = make_dataset(tmp_path, 2)
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match="There is no image"):
        run(screen, (dataset, detections), recipe)


def test_the_limit_holds_for_any_tiles(tmp_path: Path, screen: Path, recipe: Recipe) -> None:
    """A detection that is kept is in a tile that is searched, whatever the grid: its own cells are in the tile."""
    dataset, detections = make_dataset(tmp_path, 8, size=(200, 300))
    threshold, record = run(screen, (dataset, detections), recipe, max_lost_fraction=0.34)
    assert threshold is not None
    for tile_px, overlap_px in ((64, 24), (96, 40), (128, 32)):
        lost = 0
        for image, found in objectness_maps(screen, dataset, recipe=recipe, scale=1.0, stride=STRIDE):
            grid = TileGrid(image.size, (tile_px, tile_px), overlap_px)
            windows = np.array([(one.left, one.top, one.right, one.bottom) for one in grid], np.float32)
            searched = windows[box_objectness(found, windows, cell_px=float(STRIDE)) >= threshold]
            lost += not contains_any(searched, detections[image.id].boxes[0])
        assert lost / len(dataset) <= record.curve[-1].lost_fraction
        assert lost == 2


def contains_any(windows: Array, box: Array) -> bool:
    return bool(((windows[:, :2] <= box[:2]) & (windows[:, 2:] >= box[2:])).all(axis=1).any())
