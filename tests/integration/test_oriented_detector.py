"""An oriented detector from its checkpoint to every engine: one fourth output, the same boxes everywhere."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fakes.fake_triton_server import serve_repository

from deploy.engines import open_engine
from deploy.engines.engine import Engine
from export.bundle.bundle import Bundle, open_bundle
from export.int8.quantize import Quantizer
from export.onnx.exportable import ExportableDetector
from export.onnx.tensor_parity import TOLERANCES, compare_candidates, onnx_candidates
from export.onnx.yolo_layout import yolo_candidates
from export.tiles import structured_noise
from export.triton.repository import write_repository
from ifkd.core.detections import Candidates
from ifkd.core.oriented_boxes import envelopes
from ifkd.models.checkpoint import build_from, load_checkpoint
from ifkd.recipe import CalibrationOptions

TILES = np.stack([structured_noise((64, 64), seed=seed).transpose(2, 0, 1) for seed in range(2)])
GROUPS = [(100, True), (100, True), (100, True), (27, False), (27, False)]


@pytest.fixture(scope="module")
def bundle(oriented_bundle: Path) -> Bundle:
    return open_bundle(oriented_bundle)


@pytest.fixture(params=["torch-fp32", "onnxruntime-fp16", "openvino-fp32", "triton-fp32"])
def engine(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> Iterator[Engine]:
    backend, precision = request.param.split("-")
    write_repository(bundle, tmp_path / "models")
    with serve_repository(tmp_path / "models") as server:
        url = server.url if backend == "triton" else None
        with open_engine(bundle, backend=backend, precision=precision, threads=1, server=url) as opened:
            yield opened


def test_every_engine_returns_the_oriented_boxes_of_onnx_runtime(engine: Engine, bundle: Bundle) -> None:
    found, expected = engine.infer(TILES), onnx_candidates(bundle.file("model.onnx"), TILES)
    assert found.oriented is not None
    assert (found.oriented.dtype, found.oriented.shape) == (np.float32, (2, 354, 5))
    parity = compare_candidates(expected, found, groups=GROUPS, tolerance=TOLERANCES["fp16"])
    assert parity.passed, parity


def test_the_file_has_boxes_of_all_angles_with_their_envelopes(bundle: Bundle) -> None:
    assert bundle.manifest.outputs.oriented
    found = onnx_candidates(bundle.file("model.onnx"), TILES)
    assert found.oriented is not None
    oriented = found.oriented.reshape(-1, 5)
    assert (oriented[:, 2] >= oriented[:, 3]).all()
    assert ((oriented[:, 4] >= 0) & (oriented[:, 4] < 180)).all()
    assert np.histogram(oriented[:, 4], bins=6, range=(0, 180))[0].min() > 10
    np.testing.assert_allclose(envelopes(oriented).clip(0, 64), found.boxes.reshape(-1, 4), atol=1e-2)


def test_the_file_needs_no_plug_in_and_computes_indices_in_integers(bundle: Bundle) -> None:
    model = onnx.load(str(bundle.file("model.onnx")))
    assert [value.name for value in model.graph.output] == ["boxes", "scores", "labels", "oriented"]
    assert {node.domain for node in model.graph.node} == {""}
    operators = {node.op_type for node in model.graph.node}
    assert {"Atan", "Cos", "Sin"} <= operators
    assert not operators & {"NonMaxSuppression", "NonZero", "If", "Loop", "Scan"}
    assert all(check.passed for check in bundle.manifest.checks.values())
    assert set(bundle.manifest.checks) == {"model.onnx", "model.fp16.onnx", "model.yolo.onnx"}


def test_parity_sees_a_box_that_is_turned_in_its_envelope(bundle: Bundle) -> None:
    found = onnx_candidates(bundle.file("model.onnx"), TILES)
    assert found.oriented is not None
    mirrored = found.oriented.copy()
    mirrored[..., 4] = -mirrored[..., 4] % 180  # the envelope is the same
    other = Candidates(found.boxes, found.scores, found.labels, mirrored)
    parity = compare_candidates(found, other, groups=GROUPS, tolerance=TOLERANCES["fp16"])
    assert not parity.passed
    assert parity.max_box_difference_px > 1


def test_the_layout_of_a_yolo_has_the_envelopes(bundle: Bundle) -> None:
    found, expected = (
        yolo_candidates(bundle.file("model.yolo.onnx"), TILES),
        onnx_candidates(bundle.file("model.onnx"), TILES),
    )
    best = np.argsort(-expected.scores[0], kind="stable")[:20]
    np.testing.assert_allclose(found.boxes[0, :20], expected.boxes[0, best], atol=1e-3)


@pytest.mark.parametrize("precision", ["int8", "int8-cpu"])
def test_int8_files_keep_the_output(bundle: Bundle, tmp_path: Path, precision: str) -> None:
    with Quantizer(
        bundle.file("model.onnx"), TILES, precision=precision, calibration=CalibrationOptions(reduce_range=True)
    ) as quantizer:
        quantizer.write(tmp_path / "a.onnx")
    found = onnx_candidates(tmp_path / "a.onnx", TILES)
    assert found.oriented is not None
    np.testing.assert_allclose(
        envelopes(found.oriented.reshape(-1, 5)).clip(0, 64), found.boxes.reshape(-1, 4), atol=0.1
    )


def test_tiles_of_several_sizes_have_the_boxes_of_the_trained_detector(bundle: Bundle) -> None:
    detector = build_from(load_checkpoint(bundle.file("model.safetensors")))
    free = ExportableDetector(detector, tile_px=(64, 64), candidates_per_level=100, tile_sides_px=(32, 128))
    fixed = ExportableDetector(detector, tile_px=(64, 64), candidates_per_level=100)
    with torch.inference_mode():
        padded, exact = (model(torch.from_numpy(TILES)) for model in (free, fixed))
    assert all(values.isfinite().all() for values in padded)
    for values, expected in zip(padded, exact, strict=True):
        assert values.shape[1] == free.count_candidates()
        torch.testing.assert_close(values[:, :300], expected[:, :300])
