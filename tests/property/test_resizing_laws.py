"""An object in an image that is resized to whole pixels comes back to its place, on each way to a detection."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes.fake_scene import CountingEngine
from fakes.painted_box import measure_box, paint_box
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deploy.accuracy.image_detection import TilingConfig, detect_images
from deploy.parity.scene_parity import SceneReference
from deploy.scene.merge.merge import MergeSettings
from deploy.scene.read.scene import Scene
from deploy.scene.run.pipeline import detect_scene
from deploy.scene.settings import DetectionSettings
from export.tiles import read_tiles
from ifkd.core.config import parse
from ifkd.core.detections import Array, Detections
from ifkd.core.postprocess import PostprocessConfig
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.imagery.image_tiles import scaled_size
from ifkd.models import Detector
from ifkd.models.detector import MEAN_RGB, STD_RGB
from ifkd.recipe import Recipe
from ifkd.training.dataset import load_scaled
from ifkd.training.prediction import predict

TOLERANCE_PX = 0.01
CASES = [((1021, 333), 0.4), ((337, 905), 0.8602), ((435, 299), 0.625), ((401, 577), 1.6)]
"""Odd sizes, and scales at which most of them are rounded."""
FIELDS = ("boxes", "scores", "labels")
POSTPROCESS = PostprocessConfig(score_threshold=0.3)


def find_box(tile: Array) -> Detections:
    """Return the painted box of a tile, uint8 [3, height, width]."""
    box = measure_box(tile.transpose(1, 2, 0)).astype(np.float32)
    return Detections(box[None], np.full(1, 0.9, np.float32), np.zeros(1, np.int64))


class BoxDetector(Detector):
    """Detects the painted box."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> Any:
        return images

    def candidates(self, output: Any, **_: Any) -> Any:
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN_RGB, STD_RGB))
        found = [find_box(tile) for tile in (output * deviation + mean).round().to(torch.uint8).numpy()]
        return tuple(torch.from_numpy(np.stack([getattr(one, name) for one in found])) for name in FIELDS)

    def anchors(self, output: Any) -> Any:
        raise NotImplementedError

    def assign_anchors(self, anchors: Any, target: Any) -> Any:
        raise NotImplementedError

    def task_losses(self, output: Any, targets: Any) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def candidate_groups(self, output: Any, **_: Any) -> Any:
        raise NotImplementedError


def painted_image(folder: Path, size: tuple[int, int]) -> LabeledImage:
    """Write an image with a painted box as its label."""
    box = (31.25, 43.5, size[1] - 39.5, size[0] - 27.0)
    Image.fromarray(paint_box(size, box)).save(folder / "image.png")
    boxes, labels = np.array([box], np.float32), np.zeros(1, np.int64)
    return LabeledImage(7, folder / "image.png", size, boxes, labels, "image", np.zeros(1, bool))


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LabeledImage, float]:
    """An image and a scale."""
    size, scale = request.param
    return painted_image(tmp_path, size), scale


def assert_back(found: Detections, image: LabeledImage) -> None:
    np.testing.assert_allclose(found.boxes, image.boxes, atol=TOLERANCE_PX)


def test_labels_of_training_are_where_the_object_is(case: tuple[LabeledImage, float]) -> None:
    image, scale = case
    pixels, boxes = load_scaled(image, scale)
    np.testing.assert_allclose(boxes[0], measure_box(pixels), atol=TOLERANCE_PX)


def test_labels_of_calibration_tiles_are_where_the_object_is(
    case: tuple[LabeledImage, float], recipe_of: Callable[[float], Recipe]
) -> None:
    image, scale = case
    tiles = read_tiles([image], recipe_of(scale).data)
    np.testing.assert_allclose(
        tiles.images[0].boxes[0], measure_box(tiles.pixels[0].transpose(1, 2, 0)), atol=TOLERANCE_PX
    )


@pytest.fixture
def recipe_of(recipe_values: dict[str, Any]) -> Callable[[float], Recipe]:
    def make(scale: float) -> Recipe:
        recipe = parse(recipe_values, Recipe, source="values")
        data = recipe.data.model_copy(update={"scale": scale, "tile_px": 1024})
        return recipe.model_copy(update={"data": data, "postprocess": POSTPROCESS})

    return make


def test_an_evaluated_checkpoint_finds_the_object(
    case: tuple[LabeledImage, float], recipe_of: Callable[[float], Recipe]
) -> None:
    image, scale = case
    dataset = CocoDataset(image.path, ("ship",), (1,), (image,))
    ((_, found),) = predict(BoxDetector().eval(), dataset, recipe_of(scale))
    assert_back(found, image)


def test_an_evaluated_bundle_finds_the_object(case: tuple[LabeledImage, float]) -> None:
    image, scale = case
    tiling = TilingConfig(scale, (1024, 1024), 64, POSTPROCESS)
    ((_, result),) = detect_images(CountingEngine(find=find_box, tile=1024), [image], tiling, batch=1)
    assert_back(result.detections, image)


@pytest.mark.parametrize("scale", [0.8602, 1.17])
def test_the_object_is_found_in_a_scene_with_windows_of_rounded_size(tmp_path: Path, scale: float) -> None:
    image = painted_image(tmp_path, (299, 403))
    settings = DetectionSettings(
        scale=scale, overlap_px=64, postprocess=POSTPROCESS, merge=MergeSettings(threshold=0.5), strict=True
    )
    engine = CountingEngine(find=find_box, tile=512)
    with Scene(image.path) as scene:
        assert_back(detect_scene(engine, scene, settings).detections, image)
        assert_back(SceneReference(engine, scene, settings).result.candidates, image)


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.floats(0.05, 20), st.data())
def test_boxes_return_from_the_scaled_image(size: tuple[int, int], scale: float, data: st.DataObject) -> None:
    to = scaled_size(size, scale)
    corners = [sorted(data.draw(st.lists(st.floats(0, side), min_size=2, max_size=2))) for side in (size[1], size[0])]
    boxes = np.array([[corners[0][0], corners[1][0], corners[0][1], corners[1][1]]], np.float32)
    found = Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int64)).resized(size, to)
    assert (found.boxes <= np.array([to[1], to[0]] * 2) + 0.01).all()
    np.testing.assert_allclose(found.resized(to, size).boxes, boxes, atol=0.01)
