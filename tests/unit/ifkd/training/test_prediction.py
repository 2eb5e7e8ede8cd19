"""Validation of a detector."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ifkd.core.config import parse
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.data.splits import read_split
from ifkd.models import Detector
from ifkd.recipe import Recipe
from ifkd.training.prediction import predict, predict_tiles, validate


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_validation_of_perfect_detections_has_an_ap_of_1(recipe_values: dict[str, Any], scale: float) -> None:
    recipe_values["data"] |= {"scale": scale, "tile_px": 128}
    recipe = parse(recipe_values, Recipe, source="values")
    dataset = read_split(recipe.data, "validation")
    detector = PerfectDetector(dataset, scale)
    metrics = validate(detector, dataset, recipe)
    assert metrics.mean_ap == pytest.approx(1.0)
    assert metrics.images == 4
    assert detector.training


def test_the_limits_of_a_tile_grow_with_the_image(recipe_values: dict[str, Any]) -> None:
    recipe_values["data"] |= {"scale": 2.0, "tile_px": 32}  # the images are 4 x 4 tiles
    recipe_values["postprocess"] = {"max_detections": 1, "score_threshold": 0.05}
    recipe = parse(recipe_values, Recipe, source="values")
    dataset = read_split(recipe.data, "validation")
    detector = PerfectDetector(dataset, 2.0)
    found = dict(predict(detector.eval(), dataset, recipe))
    assert sum(map(len, found.values())) == sum(len(image.boxes) for image in dataset.images) > 4
    assert detector.per_level == {16 * recipe.export.candidates_per_level}


def test_tiles_are_those_of_a_scene_and_their_detections_are_in_pixels_of_the_image(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    """A bright object in the overlap of tiles has a box for each, which ends with the tile; padding is no object."""
    pixels = np.zeros((250, 300, 3), np.uint8)
    pixels[160:180, 200:240] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = LabeledImage(
        7, tmp_path / "a.png", (250, 300), np.zeros((0, 4)), np.zeros(0, np.int64), "a", np.zeros(0, bool)
    )
    dataset = CocoDataset(tmp_path / "all.json", ("ship",), (1,), (image,))
    recipe_values["data"] |= {"scale": 0.5, "tile_px": 64}
    recipe_values["export"] = {"overlap_px": 16}  # tiles of the 125x150 px start at 0, 48 and 61, and at 0, 48 and 86
    recipe = parse(recipe_values, Recipe, source="values")
    ((key, found),) = predict_tiles(BrightDetector().eval(), dataset, recipe)
    assert key == 7
    np.testing.assert_allclose(
        sorted(found.boxes.tolist()), [[200, 160, 224, 180]] * 2 + [[200, 160, 240, 180]] * 2, atol=4
    )


class PerfectDetector(Detector):
    """Returns a data set's own boxes, image after image."""

    def __init__(self, dataset: Any, scale: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.remaining = [
            (torch.from_numpy(image.boxes) * scale, torch.from_numpy(image.labels)) for image in dataset.images
        ]
        self.side = 64 * scale
        self.per_level: set[int] = set()

    def forward(self, images: torch.Tensor) -> Any:
        assert images.shape[2:] == (self.side, self.side)
        assert not self.training
        return len(images)

    def anchors(self, output: Any) -> Any:
        raise NotImplementedError

    def assign_anchors(self, anchors: Any, target: Any) -> Any:
        raise NotImplementedError

    def task_losses(self, output: Any, targets: Any) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def candidate_groups(self, output: Any, **_: Any) -> Any:
        raise NotImplementedError

    def candidates(self, output: Any, *, per_level: int, **_: Any) -> Any:
        self.per_level.add(per_level)
        found, self.remaining = self.remaining[:output], self.remaining[output:]
        boxes, labels = (torch.stack(part) for part in zip(*found, strict=True))
        return boxes, torch.full(labels.shape, 0.9), labels


class BrightDetector(PerfectDetector):
    """Returns the bounding box of what is bright in each image of a batch."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.side = 64

    def forward(self, images: torch.Tensor) -> Any:
        return images.mean(dim=1) > 1.0

    def candidates(self, output: Any, **_: Any) -> Any:
        boxes = torch.zeros((len(output), 1, 4))
        for box, bright in zip(boxes, output, strict=True):
            y, x = torch.nonzero(bright, as_tuple=True)
            if len(x):
                box[0] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
        return boxes, torch.full((len(boxes), 1), 0.9), torch.zeros((len(boxes), 1), dtype=torch.int64)
