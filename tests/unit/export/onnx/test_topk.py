"""Models for tiles of several sizes: candidates of each size, and padding."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fakes.float_division import with_float_division
from fakes.other_runtimes import run_reference_evaluator, values_without_shape
from fakes.untrained_detectors import untrained_faster_rcnn

from export.bundle.bundle import open_bundle
from export.bundle.engine_metadata import BuildOptions
from export.int8.quantize import Quantizer
from export.int8.sensitivity import MAX_HEAD_ERROR, layer_outputs, relative_error
from export.onnx.exportable import ExportableDetector
from export.onnx.onnx_export import OnnxMetadata, export_onnx
from export.onnx.tensor_parity import TOLERANCES, compare_candidates
from export.onnx.topk import level_topk
from export.precision.fp16 import convert_to_fp16
from export.precision.integer_indices import require_integer_indices
from export.tensorrt.build import build_engine
from export.tensorrt.trtexec_commands import command_lines
from export.tiles import structured_noise
from ifkd.core.detections import Array, Candidates
from ifkd.core.errors import ConfigError, EngineError
from ifkd.core.input_shapes import InputShapes
from ifkd.models import Detector, normalize
from ifkd.models.checkpoint import build_from, load_checkpoint
from ifkd.models.retinanet import RetinaNet
from ifkd.recipe import CalibrationOptions

SIDES = (32, 128)
SIZES = [(32, 32), (64, 64), (32, 128), (128, 96), (128, 128)]
PER_LEVEL = 100


def noise(size: tuple[int, int], count: int = 2) -> Array:
    return np.ascontiguousarray(
        np.stack([structured_noise(size, seed=seed).transpose(2, 0, 1) for seed in range(count)])
    )


@pytest.fixture(scope="module")
def retinanet(checkpoint_path: Path) -> Detector:
    return build_from(load_checkpoint(checkpoint_path))


@pytest.fixture(scope="module")
def faster_rcnn() -> Detector:
    return untrained_faster_rcnn("resnet18", proposals=500)


@pytest.fixture(scope="module", params=["retinanet", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def detector(request: pytest.FixtureRequest) -> Detector:
    found: Detector = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def model(detector: Detector) -> ExportableDetector:
    return ExportableDetector(detector, tile_px=(64, 64), candidates_per_level=PER_LEVEL, tile_sides_px=SIDES)


@pytest.fixture(scope="module")
def source(model: ExportableDetector, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The FP32 file of the model."""
    if isinstance(model.detector, RetinaNet):
        bundle: Path = request.getfixturevalue("free_bundle")
        return bundle / "model.onnx"
    path = tmp_path_factory.mktemp("free_tiles") / "model.onnx"
    export_onnx(model, path, max_batch=4, metadata=OnnxMetadata("tiny", "ifkd 0", ("a", "b", "c"), 1.0, "0" * 64))
    return path


def run_detector(detector: Detector, tiles: Array) -> tuple[Candidates, tuple[tuple[int, bool], ...]]:
    """Return the candidates of the trained detector and their groups."""
    height, width = tiles.shape[2:]
    with torch.inference_mode():
        output = detector(normalize(torch.from_numpy(tiles)))
        output_candidates = detector.candidates(output, size=(height, width), per_level=PER_LEVEL)
        groups = detector.candidate_groups(output, per_level=PER_LEVEL)
    return Candidates(*(value.numpy() for value in output_candidates)), groups


def split_padding(
    found: Candidates, detector_groups: Sequence[tuple[int, bool]], model_groups: Sequence[tuple[int, bool]]
) -> tuple[Candidates, Candidates]:
    """Return the candidates of the levels, and the padding."""
    starts = np.cumsum([0, *(k for k, _ in model_groups)])
    inside = np.zeros(starts[-1], bool)
    for start, (count, _) in zip(starts, detector_groups, strict=False):
        inside[start : start + count] = True
    parts = (
        Candidates(found.boxes[:, rows], found.scores[:, rows], found.labels[:, rows]) for rows in (inside, ~inside)
    )
    return next(parts), next(parts)


@pytest.mark.parametrize("size", SIZES)
def test_model_and_file_give_the_candidates_of_the_detector_at_each_size(
    detector: Detector, model: ExportableDetector, source: Path, size: tuple[int, int]
) -> None:
    tiles = noise(size)
    reference, groups = run_detector(detector, tiles)
    with torch.inference_mode():
        by_torch = Candidates(*(value.numpy() for value in model(torch.from_numpy(tiles))))
    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    by_file = Candidates(*session.run(["boxes", "scores", "labels"], {"tiles": tiles}))
    for found in (by_torch, by_file):
        assert found.scores.shape == (2, model.count_candidates())
        ours, padding = split_padding(found, groups, model.candidate_groups())
        parity = compare_candidates(reference, ours, groups=groups, tolerance=TOLERANCES["fp32"])
        assert parity.passed, parity
        assert not padding.scores.any()
        assert not padding.boxes.any()


@pytest.mark.parametrize("size", [(32, 96), (64, 64)])
def test_the_reference_evaluator_gives_the_same_output(free_bundle: Path, size: tuple[int, int]) -> None:
    path, tiles = free_bundle / "model.onnx", noise(size, 1)
    assert values_without_shape(path) == []
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    by_file = Candidates(*session.run(["boxes", "scores", "labels"], {"tiles": tiles}))
    with np.errstate(over="ignore"):  # of the padding logit, whose score is 0
        by_standard = run_reference_evaluator(path, tiles)
    k = by_file.scores.shape[1]
    parity = compare_candidates(by_file, by_standard, groups=[(k, True)], tolerance=TOLERANCES["fp32"])
    assert parity.passed, parity


def test_no_output_shape_depends_on_the_tiles(model: ExportableDetector, source: Path) -> None:
    k = model.count_candidates()
    model = onnx.load(str(source))
    shapes = {
        value.name: [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes["boxes"] == ["batch", k, 4]
    assert shapes["scores"] == shapes["labels"] == ["batch", k]
    assert all(isinstance(axis, str) for axis in shapes["tiles"][2:])
    assert {entry.key: entry.value for entry in model.metadata_props}["ifkd.tile_sides_px"] == "[32, 128]"


def test_indices_are_computed_in_integers(source: Path) -> None:
    model = onnx.load(str(source))
    require_integer_indices(model)
    with pytest.raises(EngineError, match="computes indices in floating point"):
        require_integer_indices(with_float_division(model))


def test_k_is_that_of_the_largest_tile_and_padding_fills_the_smallest() -> None:
    sizes = InputShapes((64, 64), SIDES)
    for values in (1, 3, 7):
        for max_k in (1, 50, 1000, 100_000):
            levels = level_topk((8, 16, 32, 64, 128), sizes, anchors_per_cell=9, values_per_anchor=values, max_k=max_k)
            for stride, level in zip((8, 16, 32, 64, 128), levels, strict=True):
                large, small = ((-(-side // stride)) ** 2 * 9 for side in (128, 32))
                assert level.k == min(max_k, large * values)
                # One anchor for each candidate where anchors are selected first, else one pair.
                each = 1 if large > level.k else values
                assert (small + level.padding) * each >= level.k
                assert level.padding == 0 or (small + level.padding - 1) * each < level.k


def test_lower_precisions_accept_every_size(source: Path, tmp_path: Path) -> None:
    convert_to_fp16(source, tmp_path / "fp16.onnx")
    for precision in ("int8", "int8-cpu"):
        with Quantizer(source, noise((64, 64)), precision=precision, calibration=CalibrationOptions()) as quantizer:
            quantizer.write(tmp_path / f"{precision}.onnx")
            last = quantizer.last_layers[:2]  # the finest level, which does not depend on proposals
    for name in ("fp16", "int8", "int8-cpu"):
        require_integer_indices(onnx.load(str(tmp_path / f"{name}.onnx")))
    for size in ((32, 64), (128, 96)):
        tiles = noise(size, 1)
        reference = layer_outputs(source, last, tiles)
        for name, limit in (("fp16", 0.02), ("int8", MAX_HEAD_ERROR), ("int8-cpu", MAX_HEAD_ERROR)):
            assert 0 < relative_error(reference, layer_outputs(tmp_path / f"{name}.onnx", last, tiles)) < limit, name


def test_an_engine_is_built_for_all_sizes(model: ExportableDetector, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    options = {"builder": "tensorrt_rtx", "precision": "fp32", "max_batch": 4}
    metadata = build_engine(source, **options, out=tmp_path / "a.engine", sizes=model.sizes)
    assert metadata.tile_profile is not None
    assert (metadata.tile_profile.min, metadata.tile_profile.opt, metadata.tile_profile.max) == (
        (32, 32),
        (64, 64),
        (128, 128),
    )
    with pytest.raises(
        EngineError, match=r"tile sizes of the ONNX file differ from those of its bundle: got -1 x -1 px"
    ):
        build_engine(source, **options, out=tmp_path / "b.engine")
    assert not (tmp_path / "b.engine").exists()


def test_a_file_of_one_size_is_refused_for_several_sizes(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    layer = onnx.helper.make_node("Conv", ["tiles", "w"], ["y"], name="conv")
    graph = onnx.helper.make_graph(
        [layer],
        "g",
        [onnx.helper.make_tensor_value_info("tiles", onnx.TensorProto.FLOAT, ["batch", 3, 64, 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4, 64, 64])],
        [onnx.numpy_helper.from_array(np.zeros((4, 3, 1, 1), np.float32), "w")],
    )
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(EngineError, match=r"got 64 x 64 px.*expected sides of 32 to 128 px, multiples of 32"):
        build_engine(
            tmp_path / "model.onnx",
            builder="tensorrt_rtx",
            precision="fp32",
            max_batch=4,
            out=tmp_path / "a.engine",
            sizes=InputShapes((64, 64), SIDES),
        )


def test_the_training_size_must_be_accepted(retinanet: Detector) -> None:
    with pytest.raises(ConfigError, match=r"export\.tile_sides_px does not include data\.tile_px: got \(96, 160\)"):
        ExportableDetector(retinanet, tile_px=(64, 64), candidates_per_level=10, tile_sides_px=(96, 160))


def test_commands_of_a_bundle_for_several_sizes_have_shape_ranges(free_bundle: Path) -> None:
    bundle = open_bundle(free_bundle)
    assert bundle.manifest.input.tile_sides_px == (32, 128)
    trtexec, polygraphy = command_lines(bundle, "fp32", BuildOptions())
    for part in ("--minShapes=tiles:1x3x32x32", "--optShapes=tiles:4x3x64x64", "--maxShapes=tiles:4x3x128x128"):
        assert part in trtexec.split()
    assert "'tiles:[4,3,128,128]'" in polygraphy
