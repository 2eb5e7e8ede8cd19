"""RetinaNet's files in runtimes that we do not ship with: they read them, and they answer alike."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from fakes.other_runtimes import FOREIGN, NAMES, shapeless

from export.int8.quantize import Quantizer
from export.onnx.tensor_parity import TOLERANCES, compare_candidates
from export.sample_tiles import structured_noise
from ifkd.core.detections import Candidates
from ifkd.recipe import CalibrationOptions

TILES = np.stack([structured_noise((64, 64), seed=seed).transpose(2, 0, 1) for seed in range(2)])
LEVELS = [(100, True), (100, True), (100, True), (27, False), (27, False)]


def by_onnxruntime(path: Path, tiles: np.ndarray) -> Candidates:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return Candidates(*session.run(NAMES, {"tiles": tiles}))


@pytest.mark.parametrize("runtime", FOREIGN)
@pytest.mark.parametrize(("name", "tolerance"), [("model.onnx", "fp32"), ("model.fp16.onnx", "fp16")])
def test_another_runtime_answers_alike(whole_bundle: Path, runtime: str, name: str, tolerance: str) -> None:
    path = whole_bundle / name
    found = FOREIGN[runtime](path, TILES)
    assert [getattr(found, one).dtype for one in NAMES] == [np.float32, np.float32, np.int64]
    parity = compare_candidates(by_onnxruntime(path, TILES), found, levels=LEVELS, tolerance=TOLERANCES[tolerance])
    assert parity.passed, parity


@pytest.mark.parametrize("precision", ["int8", "int8-cpu"])
def test_integers_mean_the_same_elsewhere(whole_bundle: Path, tmp_path: Path, precision: str) -> None:
    path = tmp_path / "a.onnx"
    settings = CalibrationOptions(reduce_range=True)
    with Quantizer(whole_bundle / "model.onnx", TILES, precision=precision, calibration=settings) as made:
        made.write(path)
    assert shapeless(path) == []
    found = FOREIGN["onnx"](path, TILES)
    # A value that lies between two steps may be rounded either way, and goes on from there.
    parity = compare_candidates(by_onnxruntime(path, TILES), found, levels=LEVELS, tolerance=TOLERANCES["fp16"])
    assert parity.matched > 0.8, parity


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx"])
def test_full_shape_inference_tells_every_value(whole_bundle: Path, name: str) -> None:
    assert shapeless(whole_bundle / name) == []
