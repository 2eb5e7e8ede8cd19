"""Validation of a detector."""

from typing import Any

import pytest
import torch

from ifkd.core.config import parse
from ifkd.data.splits import read_split
from ifkd.models import Detector
from ifkd.recipe import Recipe
from ifkd.training.prediction import predict, validate


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
