"""Faster R-CNN in its deployed form: NMS and pooling against torchvision, candidates against the trained detector."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fakes.float_division import with_float_division
from fakes.other_runtimes import run_openvino, values_without_shape
from fakes.untrained_detectors import TILES, random_boxes, untrained_faster_rcnn
from torchvision.ops import MultiScaleRoIAlign, batched_nms, nms

from export.int8.quantize import Quantizer
from export.int8.sensitivity import layer_outputs, relative_error, sampling_grids
from export.onnx.exportable import ExportableDetector
from export.onnx.faster_rcnn_candidates import NMS_ROUNDS, pool_regions, suppress
from export.onnx.onnx_export import OnnxMetadata, export_onnx
from export.onnx.tensor_parity import TOLERANCES, compare_candidates
from export.onnx.yolo_layout import check_yolo_layout, write_yolo_layout
from export.precision.fp16 import convert_to_fp16
from export.precision.integer_indices import require_integer_indices
from export.tensorrt.build import build_engine
from ifkd import recipe
from ifkd.core.detections import Candidates
from ifkd.core.errors import EngineError
from ifkd.models import normalize


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_suppression_equals_nms_of_torchvision(iou: float, seed: int) -> None:
    boxes = random_boxes(300, 200.0, seed)
    expected = torch.zeros(300, dtype=torch.bool)
    expected[nms(boxes, torch.linspace(1, 0, 300), iou)] = True
    batch = torch.stack([boxes, boxes.flip(0)])
    kept = suppress(batch, iou=iou)
    assert kept[0].equal(expected)
    reverse = torch.zeros(300, dtype=torch.bool)
    reverse[nms(boxes.flip(0), torch.linspace(1, 0, 300), iou)] = True
    assert kept[1].equal(reverse)


def chain(length: int) -> torch.Tensor:
    """Return boxes that overlap only their neighbors by an IoU above 0.6 (0.8 / 1.2)."""
    left = torch.arange(length) * 20.0
    return torch.stack([left, torch.zeros(length), left + 100, torch.full((length,), 100.0)], dim=1)


def test_suppression_is_exact_for_chains_up_to_the_number_of_rounds() -> None:
    def exact(length: int, rounds: int) -> bool:
        boxes = chain(length)
        expected = torch.zeros(length, dtype=torch.bool)
        expected[nms(boxes, torch.linspace(1, 0, length), 0.6)] = True
        assert expected.tolist() == [index % 2 == 0 for index in range(length)]
        return suppress(boxes[None], iou=0.6, rounds=rounds)[0].equal(expected)

    for length in (1, 2, 5, NMS_ROUNDS + 1):
        assert exact(length, length)
        assert exact(length, NMS_ROUNDS)
    # The last box of a chain depends on all boxes before it, so too few rounds give a wrong result.
    assert not exact(9, 4)
    assert not exact(NMS_ROUNDS + 4, NMS_ROUNDS)


def test_empty_boxes_are_dropped_and_suppress_nothing() -> None:
    boxes = torch.tensor([[[5.0, 5.0, 5.0, 9.0], [4.0, 4.0, 8.0, 8.0], [4.0, 4.0, 8.0, 8.0]]])
    assert suppress(boxes, iou=0.5, min_side_px=1e-3)[0].tolist() == [False, True, False]


def test_pooling_equals_torchvision_on_every_level_and_at_every_border() -> None:
    source = torch.Generator().manual_seed(0)
    size, strides = (256, 384), (4, 8, 16, 32)
    maps = [torch.randn(2, 5, size[0] // stride, size[1] // stride, generator=source) for stride in strides]
    boxes = torch.stack([random_boxes(300, 300.0, 1), random_boxes(300, 90.0, 2)])
    boxes[0, :8] = torch.tensor(
        [[0, 0, 384, 256], [0, 0, 112, 112], [0, 0, 111.9, 112], [383.5, 255.5, 384, 256], [0, 0, 0.01, 0.01],
         [383.99, 0, 384, 256], [0, 255.99, 384, 256], [16, 16, 240, 240]]
    )  # fmt: skip
    boxes = boxes.minimum(torch.tensor([384.0, 256.0, 384.0, 256.0]))
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    expected = pool(OrderedDict((str(i), level) for i, level in enumerate(maps)), list(boxes), [size, size])
    ours = pool_regions(maps, boxes, strides)
    assert ours.shape == expected.shape
    assert float((ours - expected).abs().max()) <= 1e-4
    assert float(expected.abs().max()) > 1


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2", "resnet50"])
@pytest.mark.parametrize("proposals", [60, 1200])
def test_the_exportable_model_gives_the_candidates_of_the_detector(backbone: str, proposals: int) -> None:
    detector = untrained_faster_rcnn(backbone, proposals=proposals)
    model = ExportableDetector(detector, tile_px=(64, 64), candidates_per_level=100)
    tiles = torch.from_numpy(TILES)
    with torch.inference_mode():
        expected = detector.candidates(detector(normalize(tiles)), size=(64, 64), per_level=100)
        ours = model(tiles)
    reference, other = (Candidates(*(value.numpy() for value in output)) for output in (expected, ours))
    parity = compare_candidates(reference, other, groups=[(100, True)], tolerance=TOLERANCES["fp32"])
    assert parity.passed, parity
    assert len(np.unique(reference.scores)) > 100


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportableDetector, Path]:
    """A model and its FP32 file."""
    model = ExportableDetector(untrained_faster_rcnn("resnet18"), tile_px=(64, 64), candidates_per_level=100)
    metadata = OnnxMetadata("tiny", "ifkd 0", ("a", "b", "c"), 1.0, "0" * 64)
    path = tmp_path_factory.mktemp("two_stage") / "a.onnx"
    export_onnx(model, path, max_batch=4, metadata=metadata)
    return model, path


def test_the_layout_of_a_yolo_has_the_same_candidates(
    exported: tuple[ExportableDetector, Path], tmp_path: Path
) -> None:
    _, source = exported
    path = tmp_path / "yolo.onnx"
    write_yolo_layout(source, path, side=64, metadata={"class_names": '{"0": "a", "1": "b", "2": "c"}'})
    assert "bilinear" in str(onnx.load(str(path)).graph.node), "the name of the mode in opset 17"
    parity = check_yolo_layout(path, source, TILES)
    assert parity.passed, parity


def test_int8_files_keep_the_last_layers_of_both_stages_in_float(
    exported: tuple[ExportableDetector, Path], tmp_path: Path
) -> None:
    _, source = exported
    for precision in ("int8", "int8-cpu"):
        path = tmp_path / f"{precision}.onnx"
        with Quantizer(source, TILES, precision=precision, calibration=recipe.CalibrationOptions()) as quantizer:
            summary, last = quantizer.write(path), quantizer.last_layers
        assert summary.precision == precision
        require_integer_indices(onnx.load(str(path)))
        assert len(last) == summary.float_layers == 2 * 5 + 2, (
            "objectness and deltas of five levels, and the two of the box head"
        )
        grids = sampling_grids(source, TILES)
        assert [len(one) for one in grids] == [1, 1], "one GridSample"
        values = layer_outputs(source, last, TILES)
        assert relative_error(values, layer_outputs(source, last, TILES, grids=grids)) == 0
        same_grids = relative_error(values, layer_outputs(path, last, TILES, grids=grids))
        own_grids = relative_error(values, layer_outputs(path, last, TILES))
        assert 0 < same_grids < 0.2
        assert same_grids < own_grids, "other proposals are not an error of the layers"


def test_the_exported_files_give_the_same_output_for_any_batch_and_build(
    exported: tuple[ExportableDetector, Path], tmp_path: Path
) -> None:
    model, source = exported
    (tmp_path / "a.onnx").write_bytes(source.read_bytes())
    convert_to_fp16(source, tmp_path / "b.onnx")
    with torch.inference_mode():
        expected = Candidates(*(value.numpy() for value in model(torch.from_numpy(TILES))))
    for name, precision in (("a.onnx", "fp32"), ("b.onnx", "fp16")):
        session = onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        batched = Candidates(*session.run(["boxes", "scores", "labels"], {"tiles": TILES}))
        if precision == "fp32":
            parity = compare_candidates(expected, batched, groups=[(100, True)], tolerance=TOLERANCES[precision])
            assert parity.passed, parity
        else:
            assert np.abs(np.sort(batched.scores) - np.sort(expected.scores)).max() < 0.05
        single = session.run(["scores"], {"tiles": TILES[1:]})[0]
        np.testing.assert_allclose(np.sort(single[0]), np.sort(batched.scores[1]), atol=1e-4)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    for name, precision in (("a.onnx", "fp32"), ("b.onnx", "fp16")):
        side = build_engine(
            tmp_path / name, builder="tensorrt_rtx", precision=precision, max_batch=4, out=tmp_path / f"{name}.engine"
        )
        assert side.engine_bytes > 0


def test_indices_are_computed_in_integers(exported: tuple[ExportableDetector, Path], tmp_path: Path) -> None:
    _, source = exported
    convert_to_fp16(source, tmp_path / "fp16.onnx")
    for path in (source, tmp_path / "fp16.onnx"):
        model = onnx.load(str(path))
        require_integer_indices(model)
        with pytest.raises(EngineError, match="computes indices in floating point"):
            require_integer_indices(with_float_division(model))


def test_shape_inference_determines_every_value(exported: tuple[ExportableDetector, Path]) -> None:
    assert values_without_shape(exported[1]) == []


def test_openvino_gives_the_same_output(exported: tuple[ExportableDetector, Path]) -> None:
    # The reference evaluator of onnx agrees, but its GridSample takes more than a minute.
    _, path = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = Candidates(*session.run(["boxes", "scores", "labels"], {"tiles": TILES}))
    found = run_openvino(path, TILES)
    parity = compare_candidates(expected, found, groups=[(100, True)], tolerance=TOLERANCES["fp32"])
    assert parity.passed, parity


def test_levels_do_not_suppress_each_other() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(2, 1)
    kept = batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), 0.7)
    assert len(kept) == 2
    assert [bool(suppress(boxes[None, level : level + 1], iou=0.7)[0]) for level in range(2)] == [True, True]
