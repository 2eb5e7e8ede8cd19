"""Parity of oriented boxes: their own IoU and directions are compared."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from fakes import drifting_engine as fake
from PIL import Image

from deploy.accuracy.evaluation import open_data
from deploy.accuracy.image_detection import TilingConfig
from deploy.parity.drift import angle_differences, measure_drift
from deploy.parity.matching import DetectionPair, Matching
from deploy.parity.parity import ParityReference
from deploy.parity.tolerances import ToleranceTable
from deploy.report.parity_tables import drift_table
from ifkd.core.detections import Candidates
from ifkd.core.oriented_boxes import canonical, envelopes
from ifkd.core.postprocess import PostprocessConfig

TILING = TilingConfig(scale=1.0, tile_px=(fake.TILE, fake.TILE), overlap_px=24, postprocess=PostprocessConfig())
LIMITS = ToleranceTable().fp32


def find_ships(tile):
    """Return the squares of a tile as slender boxes whose direction depends on their place."""
    found = fake.find_squares(tile)
    center, side = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2, found.boxes[:, 2] - found.boxes[:, 0]
    oriented = canonical(np.column_stack([center, side, side * 0.4, center.sum(axis=1) * 7 % 180]))
    return replace(found, boxes=envelopes(oriented), oriented=oriented)


def turned(degrees):
    def change(candidates):
        oriented = candidates.oriented.copy()
        oriented[..., 4] += degrees
        return with_oriented(candidates, oriented)

    return change


def with_oriented(candidates, oriented):
    flat = canonical(oriented.reshape(-1, 5))
    boxes = envelopes(flat).reshape(candidates.boxes.shape)
    return Candidates(boxes, candidates.scores, candidates.labels, flat.reshape(oriented.shape))


def rounding(candidates):
    noise = np.random.default_rng(1).normal(0, 1e-4, candidates.oriented.shape).astype(np.float32)
    return with_oriented(candidates, candidates.oriented + noise)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = fake.write_dataset(tmp_path_factory.mktemp("data"), images=4)
    data = open_data(path, images=None, recipe=None, classes=fake.CLASSES, command="parity")
    return ParityReference(fake.make_engine(find_ships, oriented=True), data, TILING)


def compare(reference, change):
    engine = fake.DriftingEngine(fake.make_engine(find_ships, oriented=True), change)
    return reference.compare(engine, LIMITS)


def failed(cell):
    return {check.name for check in cell.tolerances if not check.passed}


def test_rounding_passes(reference):
    cell = compare(reference, rounding)
    assert cell.passed, cell.verdict
    assert cell.drift.angle_deg.max < 0.01
    names = {check.name for check in cell.tolerances}
    assert {"angle_p99_deg", "angle_max_deg"} <= names
    assert "direction, degrees" in drift_table([cell]).plain()
    assert "corner, px" in drift_table([cell]).plain()


@pytest.mark.parametrize(("degrees", "exceeded"), [(0.3, {"angle_p99_deg"}), (0.6, {"angle_p99_deg", "angle_max_deg"})])
def test_directions_that_differ_fail(reference, degrees, exceeded):
    cell = compare(reference, turned(degrees))
    assert {name for name in failed(cell) if name.startswith("angle")} == exceeded
    assert cell.drift.angle_deg.p50 == pytest.approx(degrees, abs=1e-3)
    assert cell.drift_source.source == "decode"


def test_a_quarter_turn_is_seen_although_the_upright_boxes_of_diagonal_ships_stay(reference):
    cell = compare(reference, turned(90.0))
    assert "iou_drift_max" in failed(cell) or "matched_fraction" in failed(cell)
    assert not cell.passed


def test_displacement_and_size_are_those_of_the_oriented_box():
    """A diagonal box that becomes wider and longer by a tenth, about its center; its envelope is clipped at an edge."""
    before, after = np.array([[5, 20, 40, 6, 45], [5, 20, 44, 6.6, 45]], np.float32)
    boxes = [np.clip(envelopes(one[None])[0], 0, 100) for one in (before, after)]
    pair = DetectionPair(1, 0, 0.8, boxes[0], boxes[1], 0.9, 0.9, before, after)
    drift = measure_drift(Matching(pairs=[pair]))
    assert drift.size_ratio == pytest.approx(1.1)
    assert (drift.shift_x_px, drift.shift_y_px) == (0.0, 0.0)
    assert drift.corner_px.max == pytest.approx(np.hypot(2.0, 0.3), abs=1e-4)


def test_symptoms_and_crops_show_the_directions(reference):
    cell = compare(reference, turned(5.0))
    assert any("directions of boxes differ by up to 5.0 degrees" in one for one in cell.symptoms)
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(cell.crops[0].jpeg_base64)))).astype(int)
    blue = (picture[..., 2] - picture[..., 0] > 90) & (picture[..., 1] > 100)  # the color of the reference
    rows, columns = np.nonzero(blue)
    around = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert 50 < blue.sum() < 0.3 * around  # the outline of a turned box


def test_directions_are_axes_of_slender_boxes():
    ours = np.array([[0, 0, 10, 2, 1], [0, 0, 10, 2, 10], [0, 0, 10, 9, 10]], np.float32)
    theirs = np.array([[0, 0, 10, 2, 179], [0, 0, 10, 2, 40], [0, 0, 10, 9, 80]], np.float32)
    assert angle_differences(ours, theirs).tolist() == [2.0, 30.0]
