"""RetinaNet files in other runtimes, which must read them and give the same output."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from fakes.other_runtimes import NAMES, OTHER_RUNTIMES, values_without_shape

from export.int8.quantize import Quantizer
from export.onnx.tensor_parity import TOLERANCES, compare_candidates
from export.tiles import structured_noise
from ifkd.core.detections import Candidates
from ifkd.recipe import CalibrationOptions

TILES = np.stack([structured_noise((64, 64), seed=seed).transpose(2, 0, 1) for seed in range(2)])
GROUPS = [(100, True), (100, True), (100, True), (27, False), (27, False)]


def by_onnxruntime(path: Path, tiles: np.ndarray) -> Candidates:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return Candidates(*session.run(NAMES, {"tiles": tiles}))


@pytest.mark.parametrize("runtime", OTHER_RUNTIMES)
@pytest.mark.parametrize(("name", "tolerance"), [("model.onnx", "fp32"), ("model.fp16.onnx", "fp16")])
def test_another_runtime_gives_the_same_output(whole_bundle: Path, runtime: str, name: str, tolerance: str) -> None:
    path = whole_bundle / name
    found = OTHER_RUNTIMES[runtime](path, TILES)
    assert [getattr(found, one).dtype for one in NAMES] == [np.float32, np.float32, np.int64]
    parity = compare_candidates(by_onnxruntime(path, TILES), found, groups=GROUPS, tolerance=TOLERANCES[tolerance])
    assert parity.passed, parity


@pytest.mark.parametrize("precision", ["int8", "int8-cpu"])
def test_int8_gives_similar_output_elsewhere(whole_bundle: Path, tmp_path: Path, precision: str) -> None:
    path = tmp_path / "a.onnx"
    settings = CalibrationOptions(reduce_range=True)
    with Quantizer(whole_bundle / "model.onnx", TILES, precision=precision, calibration=settings) as made:
        made.write(path)
    assert values_without_shape(path) == []
    found = OTHER_RUNTIMES["onnx"](path, TILES)
    # A value halfway between two steps may be rounded either way, and the difference propagates.
    parity = compare_candidates(by_onnxruntime(path, TILES), found, groups=GROUPS, tolerance=TOLERANCES["fp16"])
    assert parity.matched_fraction > 0.8, parity


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx"])
def test_shape_inference_determines_every_value(whole_bundle: Path, name: str) -> None:
    assert values_without_shape(whole_bundle / name) == []
