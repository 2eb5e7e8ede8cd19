import base64
import io

import numpy as np
import pytest
import rasterio
from fakes import drifting_engine as fake
from PIL import Image

from deploy.accuracy.evaluation import open_data
from deploy.accuracy.image_detection import ImageResult, PipelineHooks, TilingConfig, prepare_tiles
from deploy.parity.drift import HISTOGRAM_EDGES, distribution
from deploy.parity.drift_crops import ENGINE_RGB, REFERENCE_RGB, worst_crops
from deploy.parity.drift_source import TileDrift, tile_drift
from deploy.parity.matching import PairingCriteria, match
from deploy.parity.parity import ParityReference, compare_engines
from deploy.parity.parity_result import failed_cell, overall_verdict
from deploy.parity.tolerances import ToleranceTable, check_tolerances
from ifkd.core.detections import Detections
from ifkd.core.postprocess import PostprocessConfig
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.imagery.contrast import ImageryOptions

TILING = TilingConfig(scale=1.0, tile_px=(fake.TILE, fake.TILE), overlap_px=24, postprocess=PostprocessConfig())
PAIRING = PairingCriteria(tie_iou=0.99, tie_score=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = fake.write_dataset(tmp_path_factory.mktemp("data"), images=8)
    return open_data(path, images=None, recipe=None, classes=fake.CLASSES, command="parity")


@pytest.fixture(scope="module")
def reference(data):
    return ParityReference(fake.make_engine(), data, TILING)


def found(boxes, scores, labels):
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )


def result(boxes, scores, labels, extra=None):
    kept = found(boxes, scores, labels)
    more = Detections.empty() if extra is None else found(*extra)
    return ImageResult(kept, Detections.concatenate([kept, more]))


class Once:
    """A change of the first detection of the first image only."""

    def __init__(self, change):
        self.change, self.done = change, False

    def __call__(self, candidates):
        if not self.done and (candidates.scores[0] > 0.05).any():
            self.done = True
            self.change(candidates)
        return candidates


def flip_one(candidates):
    candidates.labels[0, 0] = (candidates.labels[0, 0] + 1) % 3


def move_one(candidates):
    candidates.boxes[0, 0] += 3


def lose_one(candidates):
    candidates.scores[0, 0] = 0


def invent_one(candidates):
    candidates.boxes[0, 60], candidates.scores[0, 60] = [70, 60, 90, 80], 0.6


def scale_scores(candidates):
    candidates.scores[:] *= 0.98
    return candidates


def shift(amount):
    def change(candidates):
        candidates.boxes[:] += amount
        return candidates

    return change


def grow(candidates):
    candidates.boxes[..., 2:] += 0.05 * (candidates.boxes[..., 2:] - candidates.boxes[..., :2])
    return candidates


def rounding(candidates):
    noise = np.random.default_rng(5)
    candidates.scores[:] += noise.normal(0, 1e-6, candidates.scores.shape).astype(np.float32) * (candidates.scores > 0)
    candidates.boxes[:] += noise.normal(0, 1e-4, candidates.boxes.shape).astype(np.float32)
    return candidates


def half_precision(candidates):
    candidates.scores[:] = candidates.scores.astype(np.float16)
    candidates.boxes[:] = candidates.boxes.astype(np.float16)
    return candidates


DRIFTS = {
    "one flipped class": (
        lambda: {"change": Once(flip_one)},
        {"class_changes"},
        "1 box keeps its place but changes class",
    ),
    "one box moved 3 px": (
        lambda: {"change": Once(move_one)},
        {"iou_drift_max"},
        "1 of 32 boxes moved, by up to 3.00 px",
    ),
    "all boxes moved 3 px": (
        lambda: {"change": shift(3)},
        {"shift_px"},
        "shifted by +3.00 px to the right and +3.00 px down",
    ),
    "half a pixel": (lambda: {"change": shift(0.5)}, {"shift_px"}, "shifted by +0.50 px"),
    "scores x 0.98": (lambda: {"change": scale_scores}, {"score_factor"}, "scores are 0.980 times"),
    "boxes too large": (lambda: {"change": grow}, {"iou_drift_max"}, "boxes are 1.050 times as large"),
    "BGR": (lambda: {"change_tiles": lambda tiles: tiles[:, ::-1]}, {"matched_fraction"}, "BGR instead of RGB"),
    "one lost": (lambda: {"change": Once(lose_one)}, {"matched_fraction"}, None),
    "one invented": (lambda: {"change": Once(invent_one)}, {"matched_fraction"}, None),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_an_injected_drift_is_detected_and_described(reference, drift):
    make, expected, words = DRIFTS[drift]
    cell = reference.compare(fake.DriftingEngine(fake.make_engine(), **make()), ToleranceTable().fp32)
    assert not cell.passed
    failed = {check.name for check in cell.tolerances if not check.passed}
    assert expected <= failed
    assert all(name in cell.verdict for name in failed)
    if words is None:
        assert cell.unmatched_count == 1
    else:
        assert any(words in symptom for symptom in cell.symptoms), cell.symptoms
        assert words in cell.verdict


SOURCES = {
    "one flipped class": "raw head",
    "one box moved 3 px": "decode",
    "all boxes moved 3 px": "decode",
    "half a pixel": "decode",
    "scores x 0.98": "raw head",
    "boxes too large": "decode",
    "BGR": "preprocess",
    "one lost": "raw head",
    "one invented": "raw head",
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_the_source_of_a_drift_is_found(reference, drift):
    make, _, _ = DRIFTS[drift]
    cell = reference.compare(fake.DriftingEngine(fake.make_engine(), **make()), ToleranceTable().fp32)
    assert cell.drift_source.source == SOURCES[drift], cell.drift_source.reason
    assert f"the drift starts at {SOURCES[drift]}" in cell.verdict
    assert [step.name for step in cell.drift_source.steps] == [
        "preprocess",
        "raw head",
        "decode",
        "postprocess",
        "merge",
    ]


def half_a_pixel_off(pixels, tiling):
    """Prepare tiles half a pixel to the right and down, as a resize with another pixel center does."""
    moved = (pixels.astype(np.float32) + np.roll(pixels, (1, 1), (0, 1))) / 2
    return prepare_tiles(moved.round().astype(np.uint8), tiling)


def channels_reversed(pixels, tiling):
    return prepare_tiles(np.ascontiguousarray(pixels[..., ::-1]), tiling)


def no_suppression(candidates, config, *, size):
    """Select by score, without non-maximum suppression."""
    found = []
    for boxes, scores, labels in zip(candidates.boxes, candidates.scores, candidates.labels, strict=True):
        kept = np.flatnonzero(scores > config.score_threshold)
        found.append(Detections(boxes[kept], scores[kept], labels[kept]).in_canonical_order())
    return found


def no_merge(found, config):
    return found.detections.in_canonical_order()


def doubled(candidates):
    """Return every candidate twice, the second with a lower score, as neighboring anchors do."""
    boxes, scores, labels = candidates.boxes, candidates.scores, candidates.labels
    half = scores.shape[1] // 2
    boxes[:, half:], scores[:, half:], labels[:, half:] = boxes[:, :half], scores[:, :half] * 0.9, labels[:, :half]
    return candidates


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A reference on images of several tiles, with every object twice before suppression."""
    path = fake.write_dataset(tmp_path_factory.mktemp("wide"), images=3, size=(200, 220), objects=40)
    data = open_data(path, images=None, recipe=None, classes=fake.CLASSES, command="parity")
    return ParityReference(fake.DriftingEngine(fake.make_engine(), doubled), data, TILING)


@pytest.mark.parametrize(
    ("hooks", "stage"),
    [
        (PipelineHooks(prepare=half_a_pixel_off), "preprocess"),
        (PipelineHooks(prepare=channels_reversed), "preprocess"),
        (PipelineHooks(merge=no_merge), "merge"),
    ],
)
def test_a_drift_in_a_step_around_inference_is_found(wide, hooks, stage):
    engine = fake.DriftingEngine(fake.make_engine(), doubled)
    same = wide.compare(engine, ToleranceTable().fp32)
    assert same.passed
    assert (same.drift_source.steps[0].max, same.drift_source.steps[0].mean, same.drift_source.steps[0].cosine) == (
        0,
        0,
        1,
    )
    cell = wide.compare(engine, ToleranceTable().fp32, hooks=hooks)
    assert not cell.passed
    assert cell.drift_source.source == stage, cell.drift_source


def test_the_drift_of_tiles_equals_a_direct_computation(wide):
    engine = fake.DriftingEngine(fake.make_engine(), doubled)
    step = wide.compare(
        engine, ToleranceTable().fp32, hooks=PipelineHooks(prepare=half_a_pixel_off)
    ).drift_source.steps[0]
    ours, theirs = (
        np.concatenate(
            [prepare(np.asarray(Image.open(image.path)), TILING).tiles.ravel() for image in wide.dataset.images]
        ).astype(np.float64)
        for prepare in (prepare_tiles, half_a_pixel_off)
    )
    assert step.max == np.abs(ours - theirs).max() > 1
    assert step.mean == pytest.approx(np.abs(ours - theirs).mean(), rel=1e-12)
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert step.cosine == pytest.approx(cosine, rel=1e-12)
    assert 0.9 < step.cosine < 0.99999
    assert "3 of 3 images differ" in step.description


def test_only_the_images_that_differ_count_toward_the_drift_of_tiles():
    same, other = np.full((1, 3, 4, 4), 7, np.uint8), np.full((1, 3, 4, 4), 9, np.uint8)
    assert tile_drift([], images=4, differing=0) == TileDrift(4, 0, 0.0, 0.0, 1.0)
    drift = tile_drift([(same, other)], images=4, differing=1)
    assert (drift.max, drift.mean) == (2.0, 2.0)
    assert drift.cosine == pytest.approx(1)
    assert tile_drift([(same, other[:, :, :2])], images=1, differing=1).max == 255


def test_missing_suppression_is_not_excused_by_ties(data):
    engine = fake.DriftingEngine(fake.make_engine(), doubled)
    cell = ParityReference(engine, data, TILING).compare(
        engine, ToleranceTable().fp32, hooks=PipelineHooks(postprocess=no_suppression)
    )
    assert not cell.passed
    assert cell.drift_source.source == "postprocess"
    assert (cell.reference_detections, cell.engine_detections) == (32, 64)


def test_resampling_inside_the_engine_counts_as_preprocessing(reference):
    def shifted_with_its_scores(candidates):
        candidates.boxes[:] += 0.5
        wobble = np.random.default_rng(2).normal(0, 0.01, candidates.scores.shape).astype(np.float32)
        candidates.scores[:] += wobble * (candidates.scores > 0)
        return candidates

    cell = reference.compare(fake.DriftingEngine(fake.make_engine(), shifted_with_its_scores), ToleranceTable().fp32)
    assert cell.drift_source.source == "preprocess"


def test_the_source_of_rounding_is_the_precision(reference):
    def rough(candidates):
        noise = np.random.default_rng(3)
        candidates.scores[:] += noise.normal(0, 0.03, candidates.scores.shape).astype(np.float32) * (
            candidates.scores > 0
        )
        candidates.boxes[:] += noise.normal(0, 0.02, candidates.boxes.shape).astype(np.float32)
        return candidates

    half = reference.compare(fake.DriftingEngine(fake.make_engine(precision="fp16"), rough), ToleranceTable().fp16)
    assert not half.passed
    assert half.drift_source.source == "precision"
    full = reference.compare(fake.DriftingEngine(fake.make_engine(), rough), ToleranceTable().fp32)
    assert full.drift_source.source == "raw head"


def test_the_largest_drifts_have_crops(reference):
    cell = reference.compare(fake.DriftingEngine(fake.make_engine(), Once(flip_one)), ToleranceTable().fp32)
    (crop,) = cell.crops
    assert "class changed from" in crop.description
    with Image.open(io.BytesIO(base64.b64decode(crop.jpeg_base64))) as picture:
        assert picture.size == (crop.side_px, crop.side_px)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for color in (REFERENCE_RGB, ENGINE_RGB):
        assert (np.abs(pixels - color).max(axis=2) < 60).sum() > 100
    assert reference.compare(fake.make_engine(), ToleranceTable().fp32).crops == ()


def test_crops_use_the_imagery_options_of_the_bundle(tmp_path):
    """16-bit pixels are scaled by the limits the bundle states, not by percentiles of their own."""
    values = np.full((1, 80, 96), 300, np.uint16)
    values[0, 20:40, 30:50] = 900
    shape = {"width": 96, "height": 80, "count": 1, "dtype": "uint16"}
    place = {"crs": "EPSG:32631", "transform": rasterio.Affine(0.5, 0, 0, 0, -0.5, 0)}
    with rasterio.open(tmp_path / "0.tif", "w", driver="GTiff", **shape, **place) as file:
        file.write(values)
    box = np.array([30, 20, 50, 40], np.float32)
    image = LabeledImage(id=1, path=tmp_path / "0.tif", size=(80, 96), boxes=box[None], labels=np.zeros(1, np.int64),
                          scene="a", ignore=np.zeros(1, bool))  # fmt: skip
    dataset = CocoDataset(tmp_path / "a.json", fake.CLASSES, (1, 2, 3), (image,))
    matching = match({1: result([box], [0.9], [0])}, {1: result([box], [0.5], [0])}, PAIRING)
    (crop,) = worst_crops(matching, dataset, ImageryOptions(limits=(0.0, 1000.0)))
    with Image.open(io.BytesIO(base64.b64decode(crop.jpeg_base64))) as picture:
        middle = np.asarray(picture.convert("RGB"))[115:125, 115:125].astype(float)
    assert middle.mean() == pytest.approx(0.9 * 255, abs=3)
    (plain,) = worst_crops(matching, dataset)
    assert plain.jpeg_base64 != crop.jpeg_base64


def test_histograms_count_every_pair_once(reference):
    noise = np.random.default_rng(6)

    def wobble(candidates):
        size = candidates.scores.shape
        candidates.scores[:] += 10 ** noise.uniform(-7, -0.5, size).astype(np.float32) * (candidates.scores > 0)
        return candidates

    drift = reference.compare(fake.DriftingEngine(fake.make_engine(), wobble), ToleranceTable().fp32).drift
    histogram = drift.score.histogram
    assert histogram.edges == HISTOGRAM_EDGES
    assert sum(histogram.counts) == drift.pairs == 32
    assert sum(count > 0 for count in histogram.counts) > 5
    assert histogram.counts[-1] == 0 or drift.score.max >= 0.3
    assert drift.iou.histogram.counts == (32, *[0] * 10)  # boxes stayed


def test_bins_are_those_of_numpy():
    values = np.array([0, 1e-7, 1e-6, 2e-5, 3e-3, 0.0299, 0.03, 0.3, 1.0])
    inside = np.histogram(values, [-np.inf, *HISTOGRAM_EDGES, np.inf])[0]
    assert distribution(values).histogram.counts == tuple(inside)


def test_crops_of_unmatched_detections_leave_room_for_pairs(reference):
    def lose_tugs_and_move_the_rest(candidates):
        candidates.scores[candidates.labels == 2] = 0
        candidates.boxes[:] += 1
        return candidates

    cell = reference.compare(
        fake.DriftingEngine(fake.make_engine(), lose_tugs_and_move_the_rest), ToleranceTable().fp32
    )
    kinds = ["missing in the engine" in crop.description for crop in cell.crops]
    assert kinds == [True] * 6 + [False] * 6
    moved = [crop.drift for crop in cell.crops[6:]]
    assert moved == sorted(moved, reverse=True)


@pytest.mark.parametrize("drift", ["one flipped class", "all boxes moved 3 px", "half a pixel", "scores x 0.98", "BGR"])
def test_systematic_drifts_exceed_the_wider_tolerances_of_fp16(reference, drift):
    make, expected, words = DRIFTS[drift]
    cell = reference.compare(fake.DriftingEngine(fake.make_engine(precision="fp16"), **make()), ToleranceTable().fp16)
    assert not cell.passed
    assert expected <= {check.name for check in cell.tolerances if not check.passed}
    assert words in cell.verdict


@pytest.mark.parametrize(
    ("precision", "changed", "passes"), [("int8", 1, True), ("int8", 2, False), ("fp16", 1, False)]
)
def test_int8_may_change_the_class_of_one_detection_in_a_thousand(precision, changed, passes):
    boxes = [[50 * row, 0, 50 * row + 20, 20] for row in range(1000)]
    before, after = [0] * 1000, [1] * changed + [0] * (1000 - changed)
    sides = ({1: result(boxes, [0.6] * 1000, labels)} for labels in (before, after))
    matching = match(*sides, ToleranceTable().of(precision).pairing())
    checks = check_tolerances(matching, None, None, None, ToleranceTable().of(precision))
    assert {one.name: one.passed for one in checks}["class_changes"] is passes


@pytest.mark.parametrize(("change", "precision"), [(None, "fp32"), (rounding, "fp32"), (half_precision, "fp16")])
def test_rounding_passes(reference, change, precision):
    inner = fake.make_engine(precision=precision)
    cell = reference.compare(
        inner if change is None else fake.DriftingEngine(inner, change), ToleranceTable().of(precision)
    )
    assert cell.passed, cell.verdict
    assert cell.symptoms == ()
    assert cell.matched_fraction == 1.0
    assert cell.reference_detections == 32
    assert cell.verdict == "passed: within all 12 tolerances"


def test_only_the_bgr_engine_is_called_bgr(reference):
    for name, (make, _, _) in DRIFTS.items():
        cell = reference.compare(fake.DriftingEngine(fake.make_engine(), **make()), ToleranceTable().fp32)
        assert any("BGR" in symptom for symptom in cell.symptoms) is (name == "BGR"), name


def test_swapped_channels_are_named_only_when_they_explain_the_drift(reference):
    def lose_two_classes(candidates):
        candidates.scores[candidates.labels != 1] = 0
        return candidates

    broken = fake.DriftingEngine(fake.make_engine(), lose_two_classes, change_tiles=lambda tiles: tiles[:, ::-1])
    cell = reference.compare(broken, ToleranceTable().fp32)
    assert not cell.passed
    assert not any("BGR" in symptom for symptom in cell.symptoms)


def test_no_detections_do_not_pass(data):
    silent = ParityReference(fake.make_engine(lambda _: Detections.empty()), data, TILING)
    cell = silent.compare(fake.make_engine(lambda _: Detections.empty()), ToleranceTable().fp32)
    assert not cell.passed
    assert "nothing to compare" in cell.verdict
    assert cell.matched_fraction is None
    assert cell.drift is None


def test_ties_alone_do_not_pass():
    a, b = [[0, 0, 20, 20]], [[4, 0, 24, 20]]
    ours = ImageResult(found(a, [0.9], [0]), found(b, [0.8999], [0]))
    theirs = ImageResult(found(b, [0.8999], [0]), found(a, [0.9], [0]))
    tolerances = ToleranceTable().fp32
    matching = match({1: ours}, {1: theirs}, tolerances.pairing())
    assert (matching.tied_count, matching.matched_fraction()) == ({0: 2}, None)
    checks = check_tolerances(matching, None, None, None, tolerances)
    assert [one.name for one in checks if not one.passed] == ["matched_fraction"]


def test_one_engine_that_fails_does_not_stop_the_rest(reference):
    def open_engine(backend, precision):
        if precision == "fp16":
            raise RuntimeError("no such kernel")
        return fake.make_engine()

    engines = [("onnxruntime", "fp16"), ("onnxruntime", "fp32")]
    cells = list(compare_engines(engines, open_engine, reference.compare, ToleranceTable(), failed_cell))
    assert cells[0].failure == "no such kernel"
    assert cells[1].passed
    passed, verdict = overall_verdict(cells)
    assert not passed
    assert "onnxruntime fp16 failed to run (no such kernel)" in verdict


def test_no_engine_does_not_pass():
    assert overall_verdict(()) == (False, "failed: there is no engine to compare")


def test_the_change_of_a_class_is_given(reference):
    def lose_tugs(candidates):
        candidates.scores[candidates.labels == 2] = 0
        return candidates

    cell = reference.compare(fake.DriftingEngine(fake.make_engine(), lose_tugs), ToleranceTable().fp32)
    assert cell.per_class["tug"].engine == 0
    assert cell.per_class["tug"].matched_fraction == 0.0
    assert cell.per_class["tug"].mean_ap_change == pytest.approx(-reference.metrics.per_class["tug"].mean_ap)
    assert cell.per_class["cargo"].mean_ap_change == pytest.approx(0)
    assert {one.class_name for one in cell.unmatched} == {"tug"}
    assert {one.missing_in for one in cell.unmatched} == {"engine"}
