"""RetinaNet files and the selection of pairs in other runtimes, which must read them and give the same output."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from fakes.other_runtimes import NAMES, OTHER_RUNTIMES, run_model_in_openvino, values_without_shape
from torch import Tensor, nn

from export.int8.quantize import Quantizer
from export.onnx.onnx_export import export_graph
from export.onnx.tensor_parity import TOLERANCES, compare_candidates
from export.tiles import structured_noise
from ifkd.core.detections import Candidates
from ifkd.models.box_decoding import best_pairs
from ifkd.models.retinanet import ANCHORS_PER_CELL
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


class BestPairsModule(nn.Module):
    """The selection of RetinaNet's best level: scores, anchors and labels."""

    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best = best_pairs(scores, 1000)
        return best.scores, best.anchors, best.labels


@pytest.mark.parametrize(("tile_px", "classes"), [(256, 41), (256, 47), (2048, 47), (2048, 50), (2048, 80)])
def test_anchors_and_labels_are_right_for_any_number_of_classes(tile_px: int, classes: int) -> None:
    anchors = (tile_px // 8) ** 2 * ANCHORS_PER_CELL
    # One anchor in 700 has a best class, up to the last pair of all.
    pairs = np.unique(np.linspace(0, anchors * classes - 1, 1000).astype(np.int64))
    scores = np.full((1, anchors * classes), -9, np.float32)
    scores[0, pairs] = np.linspace(8, 1, len(pairs))
    scores = scores.reshape(1, anchors, classes)
    outputs = ["best", "anchors", "labels"]
    model = export_graph(BestPairsModule().eval(), torch.from_numpy(scores), inputs=["scores"], outputs=outputs)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    by_openvino = run_model_in_openvino(content, {"scores": scores}, outputs)
    for found in (session.run(outputs, {"scores": scores}), by_openvino):
        np.testing.assert_array_equal(found[0][0], scores.reshape(-1)[pairs])
        np.testing.assert_array_equal(found[1][0], pairs // classes)
        np.testing.assert_array_equal(found[2][0], pairs % classes)
