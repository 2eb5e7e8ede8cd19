"""Files for tiles of several sizes answer at each size what the graph of that size does, and fill up with nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fakes.other_runtimes import by_onnx, shapeless
from test_faster_rcnn_candidates import outspoken

from export.bundle.bundle import open_bundle
from export.bundle.engine_metadata import BuildOptions
from export.int8.quantize import Quantizer
from export.int8.sensitivity import LARGEST_NOISE, head_values, relative_error
from export.onnx.exportable import ExportableDetector
from export.onnx.onnx_export import OnnxMetadata, export_onnx
from export.onnx.tensor_parity import TOLERANCES, compare_candidates
from export.onnx.topk import level_topk
from export.precision.fp16 import convert_to_fp16
from export.sample_tiles import structured_noise
from export.tensorrt.build import build_engine
from export.tensorrt.trtexec_commands import command_lines
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
    return outspoken("resnet18", proposals=500)


@pytest.fixture(scope="module", params=["retinanet", "faster_rcnn"])
def detector(request: pytest.FixtureRequest) -> Detector:
    found: Detector = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def graph(detector: Detector) -> ExportableDetector:
    return ExportableDetector(detector, tile_px=(64, 64), per_level=PER_LEVEL, sides_px=SIDES)


@pytest.fixture(scope="module")
def source(graph: ExportableDetector, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The FP32 file of the graph."""
    if isinstance(graph.detector, RetinaNet):
        bundle: Path = request.getfixturevalue("free_bundle")
        return bundle / "model.onnx"
    path = tmp_path_factory.mktemp("free_tiles") / "model.onnx"
    export_onnx(graph, path, max_batch=4, essentials=OnnxMetadata("tiny", "ifkd 0", ("a", "b", "c"), 1.0, "0" * 64))
    return path


def fixed(detector: Detector, tiles: Array) -> tuple[Candidates, tuple[tuple[int, bool], ...]]:
    """Return what the trained detector itself says of tiles, and how its candidates follow each other."""
    height, width = tiles.shape[2:]
    with torch.inference_mode():
        output = detector(normalize(torch.from_numpy(tiles)))
        answer = detector.candidates(output, size=(height, width), per_level=PER_LEVEL)
        groups = detector.candidate_groups(output, per_level=PER_LEVEL)
    return Candidates(*(value.numpy() for value in answer)), groups


def parted(
    found: Candidates, real: Sequence[tuple[int, bool]], rooms: Sequence[tuple[int, bool]]
) -> tuple[Candidates, Candidates]:
    """Return the candidates that levels have, and those that fill them up."""
    starts = np.cumsum([0, *(room for room, _ in rooms)])
    inside = np.zeros(starts[-1], bool)
    for start, (count, _) in zip(starts, real, strict=False):
        inside[start : start + count] = True
    parts = (
        Candidates(found.boxes[:, rows], found.scores[:, rows], found.labels[:, rows]) for rows in (inside, ~inside)
    )
    return next(parts), next(parts)


@pytest.mark.parametrize("size", SIZES)
def test_the_graph_and_its_file_answer_at_each_size_as_the_detector_does(
    detector: Detector, graph: ExportableDetector, source: Path, size: tuple[int, int]
) -> None:
    tiles = noise(size)
    reference, groups = fixed(detector, tiles)
    with torch.inference_mode():
        by_torch = Candidates(*(value.numpy() for value in graph(torch.from_numpy(tiles))))
    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    by_file = Candidates(*session.run(["boxes", "scores", "labels"], {"tiles": tiles}))
    for found in (by_torch, by_file):
        assert found.scores.shape == (2, graph.count_candidates())
        ours, filling = parted(found, groups, graph.level_sizes())
        parity = compare_candidates(reference, ours, levels=groups, tolerance=TOLERANCES["fp32"])
        assert parity.passed, parity
        assert not filling.scores.any()
        assert not filling.boxes.any()


@pytest.mark.parametrize("size", [(32, 96), (64, 64)])
def test_the_standards_own_evaluator_answers_alike(free_bundle: Path, size: tuple[int, int]) -> None:
    path, tiles = free_bundle / "model.onnx", noise(size, 1)
    assert shapeless(path) == []
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    by_file = Candidates(*session.run(["boxes", "scores", "labels"], {"tiles": tiles}))
    with np.errstate(over="ignore"):  # of a logit that only fills up, which is 0 as a score
        by_standard = by_onnx(path, tiles)
    k = by_file.scores.shape[1]
    parity = compare_candidates(by_file, by_standard, levels=[(k, True)], tolerance=TOLERANCES["fp32"])
    assert parity.passed, parity


def test_no_shape_of_the_answer_hangs_on_the_tiles(graph: ExportableDetector, source: Path) -> None:
    k = graph.count_candidates()
    model = onnx.load(str(source))
    shapes = {
        value.name: [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes["boxes"] == ["batch", k, 4]
    assert shapes["scores"] == shapes["labels"] == ["batch", k]
    assert all(isinstance(axis, str) for axis in shapes["tiles"][2:])
    assert {entry.key: entry.value for entry in model.metadata_props}["ifkd.tile_sides_px"] == "[32, 128]"


def test_rooms_hold_what_the_largest_tile_needs_and_the_smallest_lacks() -> None:
    sizes = InputShapes((64, 64), SIDES)
    for values in (1, 3, 7):
        for most in (1, 50, 1000, 100_000):
            rooms = level_topk((8, 16, 32, 64, 128), sizes, per_cell=9, values=values, most=most)
            for stride, room in zip((8, 16, 32, 64, 128), rooms, strict=True):
                large, small = ((-(-side // stride)) ** 2 * 9 for side in (128, 32))
                assert room.kept == min(most, large * values)
                assert (small + room.short) * values >= room.kept
                assert room.short == 0 or (small + room.short - 1) * values < room.kept


def test_lower_precisions_take_every_size_too(source: Path, tmp_path: Path) -> None:
    convert_to_fp16(source, tmp_path / "fp16.onnx")
    for precision in ("int8", "int8-cpu"):
        with Quantizer(source, noise((64, 64)), precision=precision, calibration=CalibrationOptions()) as quantizer:
            quantizer.write(tmp_path / f"{precision}.onnx")
            last = quantizer.last_layers[:2]  # those of the finest level, which hang on no choice of proposals
    for size in ((32, 64), (128, 96)):
        tiles = noise(size, 1)
        reference = head_values(source, last, tiles)
        for name, limit in (("fp16", 0.02), ("int8", LARGEST_NOISE), ("int8-cpu", LARGEST_NOISE)):
            assert 0 < relative_error(reference, head_values(tmp_path / f"{name}.onnx", last, tiles)) < limit, name


def test_an_engine_is_built_for_all_sizes(graph: ExportableDetector, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    wanted = {"builder": "tensorrt_rtx", "precision": "fp32", "max_batch": 4}
    side = build_engine(source, **wanted, out=tmp_path / "a.engine", sizes=graph.sizes)
    assert side.tiles is not None
    assert (side.tiles.min, side.tiles.opt, side.tiles.max) == ((32, 32), (64, 64), (128, 128))
    with pytest.raises(EngineError, match=r"takes other tiles than its bundle says: got -1 x -1 px"):
        build_engine(source, **wanted, out=tmp_path / "b.engine")
    assert not (tmp_path / "b.engine").exists()


def test_a_fixed_file_is_no_file_for_several_sizes(tmp_path: Path) -> None:
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


def test_the_trained_size_must_be_among_those_taken(retinanet: Detector) -> None:
    with pytest.raises(ConfigError, match=r"export\.tile_sides_px leaves out the tile .*got \(96, 160\)"):
        ExportableDetector(retinanet, tile_px=(64, 64), per_level=10, sides_px=(96, 160))


def test_the_builds_of_a_bundle_of_free_tiles_are_explained_with_their_sizes(free_bundle: Path) -> None:
    bundle = open_bundle(free_bundle)
    assert bundle.manifest.input.tile_sides_px == (32, 128)
    trtexec, polygraphy = command_lines(bundle, "fp32", BuildOptions())
    for part in ("--minShapes=tiles:1x3x32x32", "--optShapes=tiles:4x3x64x64", "--maxShapes=tiles:4x3x128x128"):
        assert part in trtexec.split()
    assert "'tiles:[4,3,128,128]'" in polygraphy
