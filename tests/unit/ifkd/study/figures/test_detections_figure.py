"""Figure 6."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifkd.core.detections import Detections
from ifkd.core.oriented_boxes import envelopes
from ifkd.data.coco import read_coco
from ifkd.study.figures.detections import detect_examples, detection_data, draw_detections
from ifkd.study.figures.examples import Example, select_examples
from ifkd.study.figures.trained_runs import find_runs
from ifkd.training.prediction import predict


def test_boxes_enclose_their_pixels(tmp_path: Path) -> None:
    """A green block with its ground-truth box, found by their colors in the PNG."""
    pixels = np.full((20, 24, 3), 255, np.uint8)
    pixels[5:15, 4:12] = (0, 255, 0)
    example = Example("a", pixels, np.array([[4, 5, 12, 15]], np.float32), np.array([0]))
    draw_detections({"teacher": [Detections.empty()]}, [example], ("ferry",), tmp_path)
    drawn = np.asarray(Image.open(tmp_path / "figure6-detections.png").convert("RGB")).astype(int)
    drawn = drawn[: int(0.85 * len(drawn))]  # without the legend
    green = np.argwhere((np.abs(drawn - (0, 255, 0)) < 9).all(2))
    blue = np.argwhere((np.abs(drawn - (0, 0x72, 0xB2)) < 9).all(2))
    scale = (green.max(0) - green.min(0)) / (10, 8)
    assert np.abs(blue.min(0) - green.min(0)).max() < 0.2 * scale.min()
    assert np.abs(blue.max(0) - green.max(0)).max() < 0.2 * scale.min()


def test_the_data_are_the_boxes_drawn() -> None:
    example = Example("a", np.zeros((8, 8, 3), np.uint8), np.array([[1, 2, 3, 4]], np.float32), np.array([1]))
    found = Detections(np.array([[0, 0, 5, 6.5]], np.float32), np.array([0.75], np.float32), np.array([0]))
    assert detection_data({"teacher": [found]}, [example], ("ferry", "tug")).rows == [
        ("a", "ground truth", "tug", "", 1.0, 2.0, 3.0, 4.0),
        ("a", "teacher", "ferry", 0.75, 0.0, 0.0, 5.0, 6.5),
    ]


def test_oriented_boxes_are_drawn_and_listed_as_such(tmp_path: Path) -> None:
    """A slender box at 45 degrees: its outline crosses the middle of the picture, that of its envelope does not."""
    pixels, box = np.full((20, 20, 3), 255, np.uint8), np.array([[10, 10, 20, 2, 45]], np.float32)
    example = Example("a", pixels, envelopes(box), np.array([0]), box)
    found = Detections(envelopes(box), np.array([0.5], np.float32), np.array([0]), box)
    data = detection_data({"teacher": [found]}, [example], ("ferry",))
    assert data.headings[4:] == ("center_x", "center_y", "length", "width", "angle_deg")
    assert [row[4:] for row in data.rows] == [(10.0, 10.0, 20.0, 2.0, 45.0)] * 2
    draw_detections({"teacher": [found.select(np.zeros(0, int))]}, [example], ("ferry",), tmp_path)
    drawn = np.asarray(Image.open(tmp_path / "figure6-detections.png").convert("RGB")).astype(int)
    blue = np.argwhere((np.abs(drawn[: int(0.85 * len(drawn))] - (0, 0x72, 0xB2)) < 9).all(2))
    down, right = (blue - (blue.min(0) + blue.max(0)) / 2).T
    assert np.abs(down - right).max() < 0.3 * np.ptp(right)  # all near the diagonal


def test_detections_equal_those_of_prediction(study_folder: Path) -> None:
    """Alone, as other images of a batch can change the last bit of a score, and with it what is above a threshold."""
    teacher = find_runs(study_folder).teacher
    recipe = teacher.recipe
    dataset = read_coco(study_folder.parent / "data" / "val.json")
    dataset = replace(dataset, images=tuple(image for image in dataset.images if image.id == 100))
    examples = select_examples(dataset, recipe.data, names=["100"])
    found = detect_examples(teacher, examples, recipe, score_threshold=0.01)[0]
    config = recipe.postprocess.model_copy(update={"score_threshold": 0.01})
    predicted = dict(predict(teacher.detector, dataset, recipe.model_copy(update={"postprocess": config})))[100]
    assert len(found) > 0
    assert found.boxes == pytest.approx(predicted.boxes, abs=1e-3)
    assert found.scores == pytest.approx(predicted.scores, abs=1e-5)
