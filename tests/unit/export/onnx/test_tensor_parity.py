"""Matching of the candidates of two models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.onnx.exportable import ExportableDetector
from export.onnx.tensor_parity import TOLERANCES, check_tensor_parity, compare_candidates
from export.tiles import structured_noise
from ifkd.core.detections import Candidates
from ifkd.models.checkpoint import build_from, load_checkpoint

FP32, FP16 = TOLERANCES["fp32"], TOLERANCES["fp16"]
COMPLETE = [(60, False)]


def random_candidates(count: int = 60, *, seed: int = 0) -> Candidates:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 400, (1, count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 60, (1, count, 2))], axis=2).astype(np.float32)
    scores = rng.uniform(0.05, 0.9, (1, count)).astype(np.float32)
    return Candidates(boxes, scores, rng.integers(0, 3, (1, count)))


def changed(candidates: Candidates, row: int, **values: object) -> Candidates:
    arrays = {name: getattr(candidates, name).copy() for name in ("boxes", "scores", "labels")}
    for name, value in values.items():
        arrays[name][0, row] = value
    return Candidates(**arrays)


def test_order_does_not_matter() -> None:
    reference = random_candidates()
    order = np.random.default_rng(1).permutation(60)
    other = Candidates(reference.boxes[:, order], reference.scores[:, order], reference.labels[:, order])
    parity = compare_candidates(reference, other, groups=COMPLETE, tolerance=FP32)
    assert parity.passed
    assert (parity.matched_fraction, parity.max_score_difference, parity.max_box_difference_px) == (1.0, 0.0, 0.0)
    assert parity.candidates == 120


def test_the_largest_differences_are_reported() -> None:
    reference = random_candidates()
    other = changed(reference, 7, scores=reference.scores[0, 7] + 5e-4, boxes=reference.boxes[0, 7] + 0.03)
    parity = compare_candidates(reference, other, groups=COMPLETE, tolerance=FP32)
    assert parity.passed
    assert parity.max_score_difference == pytest.approx(5e-4, abs=1e-6)
    assert parity.max_box_difference_px == pytest.approx(0.03, abs=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        {"labels": 3},
        {"boxes": [0, 0, 500, 500]},
        {"scores": 0.99},
        {"scores": np.nan},
        {"boxes": np.inf},
    ],
)
def test_one_wrong_candidate_fails_fp32(values: dict[str, object]) -> None:
    reference = random_candidates()
    assert not compare_candidates(reference, changed(reference, 3, **values), groups=COMPLETE, tolerance=FP32).passed


def test_nan_fails_even_if_some_candidates_may_be_missing() -> None:
    reference = random_candidates()
    loose = replace(FP16, matched_fraction=0.5)
    assert compare_candidates(reference, changed(reference, 3, labels=4), groups=COMPLETE, tolerance=loose).passed
    assert not compare_candidates(
        reference, changed(reference, 3, boxes=np.nan), groups=COMPLETE, tolerance=loose
    ).passed


def test_an_additional_candidate_of_the_other_side_counts() -> None:
    reference = changed(random_candidates(), 5, scores=0.001)
    additional = changed(reference, 5, scores=0.95, boxes=[1, 2, 300, 400])
    parity = compare_candidates(reference, additional, groups=COMPLETE, tolerance=FP32)
    assert not parity.passed
    # The box with the low score has no counterpart either: one of 60 is missing on both sides.
    assert parity.matched_fraction == pytest.approx(59 / 60)


def test_candidates_at_the_cut_of_a_top_k_are_not_compared() -> None:
    reference = random_candidates()
    scores = reference.scores.copy()
    scores[0, 20:] = 0.02
    other_boxes = reference.boxes.copy()
    other_boxes[0, 20:] += 77  # of many equal scores, the other side has kept other candidates
    reference = Candidates(reference.boxes, scores, reference.labels)
    other = Candidates(other_boxes, scores, reference.labels)
    cut = compare_candidates(reference, other, groups=[(60, True)], tolerance=FP32)
    assert cut.passed
    assert cut.candidates == 40
    assert not compare_candidates(reference, other, groups=COMPLETE, tolerance=FP32).passed


def test_each_group_has_its_own_cut() -> None:
    reference = random_candidates()
    scores = np.where(np.arange(60) < 30, 0.5, 0.1)[None].astype(np.float32)
    reference = Candidates(reference.boxes, scores, reference.labels)
    parity = compare_candidates(reference, reference, groups=[(30, True), (30, False)], tolerance=FP32)
    assert parity.candidates == 60


def test_an_empty_comparison_fails() -> None:
    reference = random_candidates()
    equal = Candidates(reference.boxes, np.full_like(reference.scores, 0.01), reference.labels)
    parity = compare_candidates(equal, equal, groups=[(60, True)], tolerance=FP32)
    assert (parity.passed, parity.candidates, parity.matched_fraction) == (False, 0, 0.0)


def test_a_box_clipped_to_a_line_matches_itself() -> None:
    reference = changed(random_candidates(), 0, boxes=[10, 0, 40, 0], scores=0.9)
    assert compare_candidates(reference, reference, groups=COMPLETE, tolerance=FP32).matched_fraction == 1.0


@pytest.mark.parametrize(("name", "precision"), [("model.onnx", "fp32"), ("model.fp16.onnx", "fp16")])
def test_the_exported_files_pass_and_fp16_differs(
    checkpoint_path: Path, whole_bundle: Path, name: str, precision: str
) -> None:
    model = ExportableDetector(build_from(load_checkpoint(checkpoint_path)), tile_px=(64, 64), candidates_per_level=100)
    tiles = np.stack([structured_noise((64, 64), seed=seed).transpose(2, 0, 1) for seed in (20, 21)])
    parity = check_tensor_parity(model, whole_bundle / name, np.ascontiguousarray(tiles), precision=precision)
    assert parity.passed, parity
    assert parity.candidates >= 200
    if precision == "fp16":
        assert parity.max_score_difference > TOLERANCES["fp32"].score / 100


def test_other_weights_fail(checkpoint_path: Path, whole_bundle: Path) -> None:
    import torch

    detector = build_from(load_checkpoint(checkpoint_path))
    with torch.no_grad():
        detector.get_parameter("head.classification_head.cls_logits.bias")[0] += 0.1
    model = ExportableDetector(detector, tile_px=(64, 64), candidates_per_level=100)
    tiles = structured_noise((64, 64), seed=20).transpose(2, 0, 1)[None]
    parity = check_tensor_parity(model, whole_bundle / "model.onnx", np.ascontiguousarray(tiles), precision="fp32")
    assert not parity.passed
