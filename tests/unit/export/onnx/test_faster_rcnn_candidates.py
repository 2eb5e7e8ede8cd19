"""Faster R-CNN's deployed twin: suppression and pooling against torchvision's, and the whole against the detector."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from fakes.other_runtimes import by_openvino, shapeless
from torch import nn
from torchvision.ops import MultiScaleRoIAlign, batched_nms, nms

from export.int8.quantize import Quantizer
from export.int8.sensitivity import head_values, places_of, relative_error
from export.onnx.exportable import ExportableDetector
from export.onnx.faster_rcnn_candidates import ROUNDS, pool_regions, suppress
from export.onnx.onnx_export import OnnxMetadata, export_onnx
from export.onnx.tensor_parity import TOLERANCES, compare_candidates
from export.precision.fp16 import convert_to_fp16
from export.sample_tiles import structured_noise
from export.tensorrt.build import build_engine
from ifkd import recipe
from ifkd.core.detections import Candidates
from ifkd.core.errors import ConfigError
from ifkd.models import FasterRcnn, build_detector, normalize

TILES = np.stack([structured_noise((64, 64), seed=seed).transpose(2, 0, 1) for seed in range(2)])


def random_boxes(count: int, side: float, seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=source) * side
    extent = torch.rand(count, 2, generator=source) * side / 3 + 1
    return torch.cat([corner, corner + extent], dim=1)


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_suppression_is_torchvisions(iou: float, seed: int) -> None:
    boxes = random_boxes(300, 200.0, seed)
    expected = torch.zeros(300, dtype=torch.bool)
    expected[nms(boxes, torch.linspace(1, 0, 300), iou)] = True
    batch = torch.stack([boxes, boxes.flip(0)])
    kept = suppress(batch, iou=iou)
    assert kept[0].equal(expected)
    backwards = torch.zeros(300, dtype=torch.bool)
    backwards[nms(boxes.flip(0), torch.linspace(1, 0, 300), iou)] = True
    assert kept[1].equal(backwards)


def chain(length: int) -> torch.Tensor:
    """Boxes each of which overlaps its neighbors by IoU 0.8 / 1.2 and nothing that suppression at 0.6 would see."""
    left = torch.arange(length) * 20.0
    return torch.stack([left, torch.zeros(length), left + 100, torch.full((length,), 100.0)], dim=1)


def test_a_chain_is_exact_as_long_as_the_rounds_reach_and_not_beyond() -> None:
    def exact(length: int, rounds: int) -> bool:
        boxes = chain(length)
        expected = torch.zeros(length, dtype=torch.bool)
        expected[nms(boxes, torch.linspace(1, 0, length), 0.6)] = True
        assert expected.tolist() == [place % 2 == 0 for place in range(length)]
        return suppress(boxes[None], iou=0.6, rounds=rounds)[0].equal(expected)

    for length in (1, 2, 5, ROUNDS + 1):
        assert exact(length, length)
        assert exact(length, ROUNDS)
    # The last box of a chain hangs on all before it: with too few rounds it is decided wrongly.
    assert not exact(9, 4)
    assert not exact(ROUNDS + 4, ROUNDS)


def test_boxes_without_a_side_are_dropped_and_suppress_nothing() -> None:
    boxes = torch.tensor([[[5.0, 5.0, 5.0, 9.0], [4.0, 4.0, 8.0, 8.0], [4.0, 4.0, 8.0, 8.0]]])
    assert suppress(boxes, iou=0.5, smallest_side=1e-3)[0].tolist() == [False, True, False]


def test_pooling_is_torchvisions_on_every_level_and_at_every_border() -> None:
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


def outspoken(backbone: str, **options: object) -> FasterRcnn:
    """A detector whose untrained heads give scores and deltas of every size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = recipe.DetectorOptions.model_validate(
            {"family": "faster_rcnn", "backbone": backbone, "channels": 16, "box_head_width": 32, "proposals": 60}
            | options
        )
        detector = build_detector(settings, 3)
        assert isinstance(detector, FasterRcnn)
        for layer in (*detector.rpn.modules(), *detector.roi_heads.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        _spread(detector.eval())
    return detector


@torch.no_grad()
def _spread(detector: FasterRcnn) -> None:
    """Bring what the four last layers give to a deviation near 1, whatever the untrained backbone's signal is."""
    pyramid = detector.backbone(normalize(torch.from_numpy(TILES)))
    logits, deltas = detector.rpn.head(list(pyramid))
    rpn, last = detector.rpn.head, detector.roi_heads.box_predictor
    for layer, values in ((rpn.cls_logits, logits), (rpn.bbox_pred, deltas)):
        layer.weight /= torch.cat([value.flatten() for value in values]).std()
    boxes = [random_boxes(40, 40.0, seed) for seed in (3, 4)]
    scores, moves = detector.roi_heads(pyramid, boxes, (64, 64))
    last.cls_score.weight /= scores.std(dim=0).mean()
    last.bbox_pred.weight /= moves.std()


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2", "resnet50"])
@pytest.mark.parametrize("proposals", [60, 1200])
def test_the_twin_answers_as_the_detector_does(backbone: str, proposals: int) -> None:
    detector = outspoken(backbone, proposals=proposals)
    graph = ExportableDetector(detector, tile_px=(64, 64), per_level=100)
    tiles = torch.from_numpy(TILES)
    with torch.inference_mode():
        theirs = detector.candidates(detector(normalize(tiles)), size=(64, 64), per_level=100)
        ours = graph(tiles)
    reference, other = (Candidates(*(value.numpy() for value in answer)) for answer in (theirs, ours))
    parity = compare_candidates(reference, other, levels=[(100, True)], tolerance=TOLERANCES["fp32"])
    assert parity.passed, parity
    assert len(np.unique(reference.scores)) > 100


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportableDetector, Path]:
    """A graph and the FP32 file that was made of it."""
    graph = ExportableDetector(outspoken("resnet18"), tile_px=(64, 64), per_level=100)
    essentials = OnnxMetadata("tiny", "ifkd 0", ("a", "b", "c"), 1.0, "0" * 64)
    path = tmp_path_factory.mktemp("two_stage") / "a.onnx"
    export_onnx(graph, path, max_batch=4, essentials=essentials)
    return graph, path


def test_both_int8_files_leave_scores_and_boxes_of_both_stages_in_float_and_stay_near(
    exported: tuple[ExportableDetector, Path], tmp_path: Path
) -> None:
    _, source = exported
    for precision in ("int8", "int8-cpu"):
        path = tmp_path / f"{precision}.onnx"
        with Quantizer(source, TILES, precision=precision, calibration=recipe.CalibrationOptions()) as quantizer:
            census, last = quantizer.write(path), quantizer.last_layers
        assert census.precision == precision
        assert len(last) == census.float_layers == 2 * 5 + 2, "objectness and deltas of five levels, the box head's two"
        places = places_of(source, TILES)
        assert [len(one) for one in places] == [1, 1], "one look at the pyramid, tile by tile"
        values = head_values(source, last, TILES)
        assert relative_error(values, head_values(source, last, TILES, places=places)) == 0
        near = relative_error(values, head_values(path, last, TILES, places=places))
        own = relative_error(values, head_values(path, last, TILES))
        assert 0 < near < 0.2
        assert near < own, "proposals that lie elsewhere are no error of the layers"


def test_the_exported_graph_answers_alike_takes_any_batch_and_builds(
    exported: tuple[ExportableDetector, Path], tmp_path: Path
) -> None:
    graph, source = exported
    (tmp_path / "a.onnx").write_bytes(source.read_bytes())
    convert_to_fp16(source, tmp_path / "b.onnx")
    with torch.inference_mode():
        expected = Candidates(*(value.numpy() for value in graph(torch.from_numpy(TILES))))
    for name, precision in (("a.onnx", "fp32"), ("b.onnx", "fp16")):
        session = onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        together = Candidates(*session.run(["boxes", "scores", "labels"], {"tiles": TILES}))
        if precision == "fp32":
            parity = compare_candidates(expected, together, levels=[(100, True)], tolerance=TOLERANCES[precision])
            assert parity.passed, parity
        else:
            assert np.abs(np.sort(together.scores) - np.sort(expected.scores)).max() < 0.05
        alone = session.run(["scores"], {"tiles": TILES[1:]})[0]
        np.testing.assert_allclose(np.sort(alone[0]), np.sort(together.scores[1]), atol=1e-4)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    for name, precision in (("a.onnx", "fp32"), ("b.onnx", "fp16")):
        side = build_engine(
            tmp_path / name, builder="tensorrt_rtx", precision=precision, max_batch=4, out=tmp_path / f"{name}.engine"
        )
        assert side.engine_bytes > 0


def test_full_shape_inference_tells_every_value(exported: tuple[ExportableDetector, Path]) -> None:
    assert shapeless(exported[1]) == []


def test_another_runtime_answers_alike(exported: tuple[ExportableDetector, Path]) -> None:
    # onnx's own evaluator agrees as well, but samples the pyramid point by point for more than a minute.
    _, path = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = Candidates(*session.run(["boxes", "scores", "labels"], {"tiles": TILES}))
    found = by_openvino(path, TILES)
    parity = compare_candidates(expected, found, levels=[(100, True)], tolerance=TOLERANCES["fp32"])
    assert parity.passed, parity


def test_more_proposals_than_a_builder_takes_are_refused_with_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"detector\.proposals .*got 3841, expected 1 to 3840"):
        ExportableDetector(outspoken("resnet18", proposals=3841), tile_px=(64, 64), per_level=100)


def test_torchvisions_levels_do_not_suppress_each_other_and_ours_neither() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(2, 1)
    kept = batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), 0.7)
    assert len(kept) == 2
    assert [bool(suppress(boxes[None, place : place + 1], iou=0.7)[0]) for place in range(2)] == [True, True]
