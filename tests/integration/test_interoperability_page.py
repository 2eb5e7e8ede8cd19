"""Run the Python code of docs/interoperability.md on stand-ins for supervision and SAHI, which need OpenCV."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy import detect
from ifkd.core.detections import Array, Detections, box_areas

PAGE = (Path(__file__).parents[2] / "docs" / "interoperability.md").read_text("utf-8")
TILE, OVERLAP = 64, 16


@dataclass
class SupervisionDetections:
    """`supervision.Detections`."""

    xyxy: Array
    confidence: Array
    class_id: Array


class InferenceSlicer:
    """`supervision.InferenceSlicer` without a merge: returns what the callback found in each window."""

    def __init__(
        self,
        callback: Callable[[Array], SupervisionDetections],
        slice_wh: tuple[int, int],
        overlap_wh: tuple[int, int],
    ) -> None:
        assert (slice_wh, overlap_wh) == ((TILE, TILE), (OVERLAP, OVERLAP))
        self._callback = callback

    def __call__(self, image: Array) -> list[SupervisionDetections]:
        return [self._callback(window) for window in windows(image)]


class DetectionModel:
    """`sahi.models.base.DetectionModel`, as far as it sets a model and a device."""

    def __init__(self, model: Any) -> None:
        self.set_device(None)
        self.set_model(model)


@dataclass
class ObjectPrediction:
    """`sahi.prediction.ObjectPrediction`, with its arguments in their order."""

    bbox: list[float]
    category_id: int
    category_name: str
    segmentation: None
    score: float
    shift_amount: list[int]
    full_shape: list[int]


def get_sliced_prediction(image: Array, model: Any, **options: object) -> list[list[ObjectPrediction]]:
    """`sahi.predict.get_sliced_prediction` without a merge."""
    assert options == {
        "slice_height": TILE,
        "slice_width": TILE,
        "overlap_height_ratio": OVERLAP / TILE,
        "overlap_width_ratio": OVERLAP / TILE,
        "perform_standard_pred": False,
    }
    found = []
    for left, window in zip((0, TILE - OVERLAP), windows(image), strict=True):
        model.perform_inference(window)
        model._create_object_prediction_list_from_original_predictions([[left, 0]], [list(image.shape[:2])])
        (predictions,) = model._object_prediction_list_per_image
        assert all(one.shift_amount == [left, 0] and one.full_shape == [60, 112] for one in predictions)
        found.append(predictions)
    return found


def windows(image: Array) -> list[Array]:
    return [image[:, :TILE], image[:, TILE - OVERLAP :]]


def stand_in(name: str, **members: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


def test_supervision_and_sahi_find_the_objects_of_each_window(
    whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (
        stand_in("supervision", Detections=SupervisionDetections, InferenceSlicer=InferenceSlicer),
        stand_in("sahi"),
        stand_in("sahi.models"),
        stand_in("sahi.models.base", DetectionModel=DetectionModel),
        stand_in("sahi.predict", get_sliced_prediction=get_sliced_prediction),
        stand_in("sahi.prediction", ObjectPrediction=ObjectPrediction),
    ):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/bundle").symlink_to(whole_bundle)
    image = np.random.default_rng(2).integers(0, 256, (60, 112, 3), np.uint8)
    Image.fromarray(image).save("harbor.png")

    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)  # noqa: S102 - it is the documentation's

    expected = [detect(whole_bundle, window, class_agnostic_iou=1.0).detections for window in windows(image)]
    assert all(len(one) > 5 for one in expected)
    by_supervision = [Detections(one.xyxy, one.confidence, one.class_id) for one in names["detections"]]
    by_sahi = [
        Detections(
            np.array([one.bbox for one in found]),
            np.array([one.score for one in found]),
            np.array([one.category_id for one in found]),
        )
        for found in names["result"]
    ]
    assert {one.category_name for found in names["result"] for one in found} <= {"ship", "tug", "ferry"}
    for results in (by_supervision, by_sahi):
        for every, truth in zip(results, expected, strict=True):
            found = every.select(box_areas(every.boxes) > 0)  # as in a scene
            np.testing.assert_array_equal(found.labels, truth.labels)
            np.testing.assert_allclose(found.boxes, truth.boxes, atol=1e-3)
            np.testing.assert_allclose(found.scores, truth.scores, atol=1e-6)
