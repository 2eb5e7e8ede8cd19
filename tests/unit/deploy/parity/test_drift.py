import base64
import io

import numpy as np
import pytest
import rasterio
from fakes import drifting_engine as world
from PIL import Image

from deploy.accuracy.evaluation import open_data
from deploy.accuracy.image_detection import ImageResult, PipelineHooks, TilingConfig, cut
from deploy.parity.drift import HISTOGRAM_EDGES, distribution
from deploy.parity.drift_crops import ENGINE_RGB, REFERENCE_RGB, worst_crops
from deploy.parity.drift_source import TileDrift, tile_drift
from deploy.parity.matching import Pairing, greedy_pairs, match
from deploy.parity.parity import Reference, run_parity, verdict_of
from deploy.parity.tolerances import PrecisionTolerances
from ifkd.core.detections import Detections
from ifkd.core.postprocess import PostprocessConfig
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.imagery.contrast import ImageryOptions

FRAMING = TilingConfig(scale=1.0, tile_px=(world.TILE, world.TILE), overlap_px=24, selection=PostprocessConfig())
PAIRING = Pairing(twin_iou=0.99, twin_score=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = world.write_world(tmp_path_factory.mktemp("world"), images=8)
    return open_data(path, images=None, recipe=None, classes=world.CLASSES, needed_by="parity")


@pytest.fixture(scope="module")
def reference(data):
    return Reference(world.engine(), data, FRAMING)


def found(boxes, scores, labels):
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )


def answer(boxes, scores, labels, extra=None):
    kept = found(boxes, scores, labels)
    more = Detections.empty() if extra is None else found(*extra)
    return ImageResult(kept, Detections.concatenate([kept, more]))


class Once:
    """A change that befalls the first detection of the first image only."""

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
        {"class_flips"},
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
    "BGR": (lambda: {"show": lambda tiles: tiles[:, ::-1]}, {"matched_share"}, "BGR instead of RGB"),
    "one lost": (lambda: {"change": Once(lose_one)}, {"matched_share"}, None),
    "one invented": (lambda: {"change": Once(invent_one)}, {"matched_share"}, None),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_an_injected_drift_is_caught_and_named(reference, drift):
    make, gates, words = DRIFTS[drift]
    cell = reference.compare(world.Drifting(world.engine(), **make()), PrecisionTolerances().fp32)
    assert not cell.passed
    failed = {gate.name for gate in cell.gates if not gate.passed}
    assert gates <= failed
    assert all(name in cell.verdict for name in failed)
    if words is None:
        assert cell.unmatched_count == 1
    else:
        assert any(words in symptom for symptom in cell.symptoms), cell.symptoms
        assert words in cell.verdict


ENTERS_AT = {
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
def test_the_stage_at_which_a_drift_enters_is_named(reference, drift):
    make, _, _ = DRIFTS[drift]
    cell = reference.compare(world.Drifting(world.engine(), **make()), PrecisionTolerances().fp32)
    assert cell.location.enters_at == ENTERS_AT[drift], cell.location.because
    assert f"the drift enters at {ENTERS_AT[drift]}" in cell.verdict
    assert [stage.name for stage in cell.location.stages] == ["preprocess", "raw head", "decode", "select", "merge"]


def half_a_pixel_off(pixels, framing):
    """Prepare tiles as a resize does that takes pixels for points: half a pixel to the right and down."""
    moved = (pixels.astype(np.float32) + np.roll(pixels, (1, 1), (0, 1))) / 2
    return cut(moved.round().astype(np.uint8), framing)


def channels_reversed(pixels, framing):
    return cut(np.ascontiguousarray(pixels[..., ::-1]), framing)


def no_suppression(candidates, selection, *, size):
    """Choose by score alone."""
    found = []
    for boxes, scores, labels in zip(candidates.boxes, candidates.scores, candidates.labels, strict=True):
        kept = np.flatnonzero(scores > selection.score_threshold)
        found.append(Detections(boxes[kept], scores[kept], labels[kept]).in_canonical_order())
    return found


def no_merge(found, selection):
    return found.detections.in_canonical_order()


def doubled(candidates):
    """Answer every candidate twice, a little less sure the second time, as anchors of a place do."""
    boxes, scores, labels = candidates.boxes, candidates.scores, candidates.labels
    half = scores.shape[1] // 2
    boxes[:, half:], scores[:, half:], labels[:, half:] = boxes[:, :half], scores[:, :half] * 0.9, labels[:, :half]
    return candidates


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Images that take several tiles, and a reference that answers every object twice before suppression."""
    path = world.write_world(tmp_path_factory.mktemp("wide"), images=3, size=(200, 220), objects=40)
    data = open_data(path, images=None, recipe=None, classes=world.CLASSES, needed_by="parity")
    return Reference(world.Drifting(world.engine(), doubled), data, FRAMING)


@pytest.mark.parametrize(
    ("steps", "stage"),
    [
        (PipelineHooks(prepare=half_a_pixel_off), "preprocess"),
        (PipelineHooks(prepare=channels_reversed), "preprocess"),
        (PipelineHooks(merge=no_merge), "merge"),
    ],
)
def test_a_step_of_another_kind_is_caught_and_named(wide, steps, stage):
    engine = world.Drifting(world.engine(), doubled)
    same = wide.compare(engine, PrecisionTolerances().fp32)
    assert same.passed
    assert (same.location.stages[0].max, same.location.stages[0].mean, same.location.stages[0].cosine) == (0, 0, 1)
    cell = wide.compare(engine, PrecisionTolerances().fp32, steps=steps)
    assert not cell.passed
    assert cell.location.enters_at == stage, cell.location


def test_the_drift_of_tiles_is_that_of_a_plain_count(wide):
    engine = world.Drifting(world.engine(), doubled)
    stage = wide.compare(
        engine, PrecisionTolerances().fp32, steps=PipelineHooks(prepare=half_a_pixel_off)
    ).location.stages[0]
    ours, theirs = (
        np.concatenate(
            [prepare(np.asarray(Image.open(image.path)), FRAMING).tiles.ravel() for image in wide.dataset.images]
        ).astype(np.float64)
        for prepare in (cut, half_a_pixel_off)
    )
    assert stage.max == np.abs(ours - theirs).max() > 1
    assert stage.mean == pytest.approx(np.abs(ours - theirs).mean(), rel=1e-12)
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert stage.cosine == pytest.approx(cosine, rel=1e-12)
    assert 0.9 < stage.cosine < 0.99999
    assert "3 of 3 images differ" in stage.finding


def test_only_the_images_that_differ_count_toward_the_drift_of_tiles():
    same, other = np.full((1, 3, 4, 4), 7, np.uint8), np.full((1, 3, 4, 4), 9, np.uint8)
    assert tile_drift([], images=4, other=0) == TileDrift(4, 0, 0.0, 0.0, 1.0)
    drift = tile_drift([(same, other)], images=4, other=1)
    assert (drift.max, drift.mean) == (2.0, 2.0)
    assert drift.cosine == pytest.approx(1)
    assert tile_drift([(same, other[:, :, :2])], images=1, other=1).max == 255


def test_detections_that_are_not_suppressed_are_no_ties(data):
    engine = world.Drifting(world.engine(), doubled)
    cell = Reference(engine, data, FRAMING).compare(
        engine, PrecisionTolerances().fp32, steps=PipelineHooks(select=no_suppression)
    )
    assert not cell.passed
    assert cell.location.enters_at == "select"
    assert (cell.reference_detections, cell.engine_detections) == (32, 64)


def test_an_image_resampled_inside_the_engine_is_preprocessing(reference):
    def shifted_with_its_scores(candidates):
        candidates.boxes[:] += 0.5
        wobble = np.random.default_rng(2).normal(0, 0.01, candidates.scores.shape).astype(np.float32)
        candidates.scores[:] += wobble * (candidates.scores > 0)
        return candidates

    cell = reference.compare(world.Drifting(world.engine(), shifted_with_its_scores), PrecisionTolerances().fp32)
    assert cell.location.enters_at == "preprocess"


def test_rounding_of_a_file_that_is_not_fp32_is_its_precision(reference):
    def rough(candidates):
        noise = np.random.default_rng(3)
        candidates.scores[:] += noise.normal(0, 0.03, candidates.scores.shape).astype(np.float32) * (
            candidates.scores > 0
        )
        candidates.boxes[:] += noise.normal(0, 0.02, candidates.boxes.shape).astype(np.float32)
        return candidates

    half = reference.compare(world.Drifting(world.engine(precision="fp16"), rough), PrecisionTolerances().fp16)
    assert not half.passed
    assert half.location.enters_at == "precision"
    full = reference.compare(world.Drifting(world.engine(), rough), PrecisionTolerances().fp32)
    assert full.location.enters_at == "raw head"


def test_the_worst_drifts_are_pictured(reference):
    cell = reference.compare(world.Drifting(world.engine(), Once(flip_one)), PrecisionTolerances().fp32)
    (crop,) = cell.crops
    assert "class changed from" in crop.what
    with Image.open(io.BytesIO(base64.b64decode(crop.jpeg_base64))) as picture:
        assert picture.size == (crop.side_px, crop.side_px)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for color in (REFERENCE_RGB, ENGINE_RGB):
        assert (np.abs(pixels - color).max(axis=2) < 60).sum() > 100
    assert reference.compare(world.engine(), PrecisionTolerances().fp32).crops == ()


def test_crops_show_an_image_as_the_detector_saw_it(tmp_path):
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
    dataset = CocoDataset(tmp_path / "a.json", world.CLASSES, (1, 2, 3), (image,))
    matching = match({1: answer([box], [0.9], [0])}, {1: answer([box], [0.5], [0])}, PAIRING)
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

    drift = reference.compare(world.Drifting(world.engine(), wobble), PrecisionTolerances().fp32).drift
    told = drift.score.histogram
    assert told.edges == HISTOGRAM_EDGES
    assert sum(told.counts) == drift.pairs == 32
    assert sum(count > 0 for count in told.counts) > 5
    assert told.counts[-1] == 0 or drift.score.max >= 0.3
    assert drift.iou.histogram.counts == (32, *[0] * 10)  # boxes stayed


def test_bins_are_those_of_numpy():
    values = np.array([0, 1e-7, 1e-6, 2e-5, 3e-3, 0.0299, 0.03, 0.3, 1.0])
    inside = np.histogram(values, [-np.inf, *HISTOGRAM_EDGES, np.inf])[0]
    assert distribution(values).histogram.counts == tuple(inside)


def test_detections_without_a_partner_do_not_crowd_out_the_pairs_that_drifted(reference):
    def lose_tugs_and_move_the_rest(candidates):
        candidates.scores[candidates.labels == 2] = 0
        candidates.boxes[:] += 1
        return candidates

    cell = reference.compare(world.Drifting(world.engine(), lose_tugs_and_move_the_rest), PrecisionTolerances().fp32)
    kinds = ["missing in the engine" in crop.what for crop in cell.crops]
    assert kinds == [True] * 6 + [False] * 6
    moved = [crop.drift for crop in cell.crops[6:]]
    assert moved == sorted(moved, reverse=True)


@pytest.mark.parametrize("drift", ["one flipped class", "all boxes moved 3 px", "half a pixel", "scores x 0.98", "BGR"])
def test_systematic_drifts_do_not_hide_behind_the_wider_gates_of_fp16(reference, drift):
    make, gates, words = DRIFTS[drift]
    cell = reference.compare(world.Drifting(world.engine(precision="fp16"), **make()), PrecisionTolerances().fp16)
    assert not cell.passed
    assert gates <= {gate.name for gate in cell.gates if not gate.passed}
    assert words in cell.verdict


@pytest.mark.parametrize(("change", "precision"), [(None, "fp32"), (rounding, "fp32"), (half_precision, "fp16")])
def test_rounding_passes(reference, change, precision):
    inner = world.engine(precision=precision)
    cell = reference.compare(
        inner if change is None else world.Drifting(inner, change), PrecisionTolerances().of(precision)
    )
    assert cell.passed, cell.verdict
    assert cell.symptoms == ()
    assert cell.matched_share == 1.0
    assert cell.reference_detections == 32
    assert cell.verdict == "passed: all 12 gates hold"


def test_only_the_bgr_engine_is_called_bgr(reference):
    for name, (make, _, _) in DRIFTS.items():
        cell = reference.compare(world.Drifting(world.engine(), **make()), PrecisionTolerances().fp32)
        assert any("BGR" in symptom for symptom in cell.symptoms) is (name == "BGR"), name


def test_swapped_channels_are_named_only_when_they_explain_the_drift(reference):
    def lose_two_classes(candidates):
        candidates.scores[candidates.labels != 1] = 0
        return candidates

    broken = world.Drifting(world.engine(), lose_two_classes, show=lambda tiles: tiles[:, ::-1])
    cell = reference.compare(broken, PrecisionTolerances().fp32)
    assert not cell.passed
    assert not any("BGR" in symptom for symptom in cell.symptoms)


def test_a_detection_lost_to_a_tie_is_recognized():
    a, b = [0, 0, 20, 20], [4, 0, 24, 20]
    ours = answer([a], [0.9], [0], ([b], [0.8999], [0]))
    theirs = answer([b], [0.8999], [0], ([a], [0.8995], [0]))
    matching = match({1: ours}, {1: theirs}, PAIRING)
    assert matching.tied_count == {0: 2}
    assert matching.orphans == []
    assert matching.labels == []
    assert matching.matched_share() is None


def test_what_only_looks_like_a_tie_is_none():
    a, b = [0, 0, 20, 20], [4, 0, 24, 20]
    ours = answer([a], [0.9], [0], ([b], [0.89], [0]))
    theirs = answer([b], [0.9], [0], ([a], [0.7], [0]))  # the candidate is there, with another score
    matching = match({1: ours}, {1: theirs}, PAIRING)
    assert matching.tied_count == {}
    assert len(matching.labels) == 1
    assert matching.ious[0] == pytest.approx(320 / 480)


def test_a_detection_at_the_threshold_is_a_tie():
    ours = answer([[0, 0, 9, 9]], [0.0501], [2])
    theirs = ImageResult(Detections.empty(), found([[0, 0, 9, 9]], [0.0499], [2]))
    matching = match({1: ours}, {1: theirs}, PAIRING)
    assert matching.tied_count == {2: 1}
    assert matching.orphans == []


def test_pairs_are_one_to_one_and_best_first():
    boxes = np.array([[0, 0, 10, 10], [2, 0, 12, 10]], np.float32)
    others = np.array([[1, 0, 11, 10], [2, 0, 12, 10], [50, 50, 60, 60]], np.float32)
    ones = np.ones(3, np.float32)
    assert sorted(greedy_pairs(boxes, others, ones[:2], ones, least_iou=0.5)) == [(0, 0), (1, 1)]


def test_equal_boxes_pair_by_score():
    boxes = np.array([[0, 0, 9, 9]] * 2, np.float32)
    pairs = greedy_pairs(boxes, boxes, np.array([0.9, 0.3]), np.array([0.31, 0.88]), least_iou=0.5)
    assert sorted(pairs) == [(0, 1), (1, 0)]


def test_classes_never_pair_with_each_other():
    matching = match({1: answer([[0, 0, 9, 9]], [0.9], [0])}, {1: answer([[0, 0, 9, 9]], [0.9], [1])}, PAIRING)
    assert matching.labels == []
    assert matching.matched_share() == 0.0
    assert [(orphan.label, orphan.became) for orphan in matching.orphans] == [(0, 1), (1, 0)]
    assert len(matching.flips) == 1


def test_nothing_found_is_no_pass(data):
    silent = Reference(world.engine(lambda _: Detections.empty()), data, FRAMING)
    cell = silent.compare(world.engine(lambda _: Detections.empty()), PrecisionTolerances().fp32)
    assert not cell.passed
    assert "nothing to compare" in cell.verdict
    assert cell.matched_share is None
    assert cell.drift is None


def test_one_engine_that_fails_does_not_stop_the_rest(reference):
    def open_one(backend, precision):
        if precision == "fp16":
            raise RuntimeError("no such kernel")
        return world.engine()

    pairs = [("onnxruntime", "fp16"), ("onnxruntime", "fp32")]
    cells = list(run_parity(reference, pairs, open_one, PrecisionTolerances()))
    assert cells[0].failure == "no such kernel"
    assert cells[1].passed
    passed, words = verdict_of(cells)
    assert not passed
    assert "onnxruntime fp16" in words
    assert "no such kernel" in words


def test_no_engine_is_no_pass():
    assert verdict_of(()) == (False, "failed: there was no engine to compare")


def test_the_change_of_a_class_is_given(reference):
    def lose_tugs(candidates):
        candidates.scores[candidates.labels == 2] = 0
        return candidates

    cell = reference.compare(world.Drifting(world.engine(), lose_tugs), PrecisionTolerances().fp32)
    assert cell.per_class["tug"].engine == 0
    assert cell.per_class["tug"].matched_share == 0.0
    assert cell.per_class["tug"].mean_ap_change == pytest.approx(-reference.metrics.per_class["tug"].mean_ap)
    assert cell.per_class["cargo"].mean_ap_change == pytest.approx(0)
    assert {one.class_name for one in cell.unmatched} == {"tug"}
    assert {one.missing_in for one in cell.unmatched} == {"engine"}
