"""FP16 copies of ONNX files, on small hand-made graphs and on a whole detector; ONNX Runtime is the oracle."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.precision.fp16 import between_layers, convert_to_fp16, count_precision, require_precision
from export.precision.fp16_overflow import fp16_overflow_nodes
from ifkd.core.errors import EngineError

rng = np.random.default_rng(0)


def save(path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], out: list[object]) -> Path:
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["b", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("out", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.helper.set_model_props(model, {"ifkd.precision": "fp32"})
    onnx.save(model, str(path))
    return path


def small_network(path: Path, *, largest_weight: float = 1.0) -> Path:
    """Cast, shift, conv, resize, add, conv, then a decode that adds an offset which FP16 cannot hold."""
    nodes = [
        onnx.helper.make_node("Cast", ["tiles"], ["float"], to=TensorProto.FLOAT, name="cast"),
        onnx.helper.make_node("Sub", ["float", "mean"], ["shifted"], name="shift"),
        onnx.helper.make_node("Conv", ["shifted", "w1"], ["first"], name="conv1", pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Resize", ["first", "", "scales"], ["resized"], name="resize", mode="nearest"),
        onnx.helper.make_node("Mul", ["resized", "shared"], ["scaled"], name="scale"),
        onnx.helper.make_node("Conv", ["scaled", "w2"], ["second"], name="conv2"),
        onnx.helper.make_node("Mul", ["second", "shared"], ["decoded"], name="decode"),
        onnx.helper.make_node("Add", ["decoded", "offset"], ["out"], name="offset_add"),
    ]
    weights = {
        "mean": np.float32(123.675),
        "w1": rng.normal(0, 0.02, (4, 3, 3, 3)).astype(np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "shared": np.float32(0.5),
        "w2": rng.normal(0, 0.1, (2, 4, 1, 1)).astype(np.float32),
        "offset": np.float32(4001.3),
    }
    weights["w1"][0, 0, 0, 0] = largest_weight
    return save(path, nodes, weights, ["b", 2, 16, 16])


def run(path: Path, tiles: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"tiles": tiles})


def test_fp16_is_what_lies_between_the_first_and_the_last_convolution(tmp_path: Path) -> None:
    graph = onnx.load(str(small_network(tmp_path / "a.onnx"))).graph
    assert between_layers(graph) == {"conv1", "resize", "scale", "conv2"}


def test_the_copy_answers_as_the_original_and_decodes_in_fp32(tmp_path: Path) -> None:
    source = small_network(tmp_path / "a.onnx")
    census = convert_to_fp16(source, tmp_path / "b.onnx")
    assert census.weight_types == {"FLOAT16": 2}
    assert census.precision == "fp16"
    tiles = rng.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    (reference,), (half,) = run(source, tiles), run(tmp_path / "b.onnx", tiles)
    difference = np.abs(half - reference).max()
    # Neighboring FP16 numbers near 4001 are 2 apart; a decode in FP16 would be off by up to 1.
    assert 0 < difference < 0.02


def test_input_and_output_types_and_metadata_stay_true(tmp_path: Path) -> None:
    convert_to_fp16(small_network(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    model = onnx.load(str(tmp_path / "b.onnx"))
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert {entry.key: entry.value for entry in model.metadata_props} == {"ifkd.precision": "fp16"}


def test_no_value_passes_through_fp16_on_its_way_between_fp32_nodes(tmp_path: Path) -> None:
    convert_to_fp16(small_network(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    casts = [node for node in onnx.load(str(tmp_path / "b.onnx")).graph.node if node.op_type == "Cast"]
    assert [(node.input[0], node.attribute[0].i) for node in casts] == [
        ("tiles", TensorProto.FLOAT),
        ("shifted", TensorProto.FLOAT16),
        ("second", TensorProto.FLOAT),
    ]


def test_conversion_is_deterministic(tmp_path: Path) -> None:
    source = small_network(tmp_path / "a.onnx")
    for name in ("b.onnx", "c.onnx"):
        convert_to_fp16(source, tmp_path / name)
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


def test_a_weight_beyond_fp16_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    source = small_network(tmp_path / "a.onnx", largest_weight=70000.0)
    with pytest.raises(EngineError, match="w1 does not fit FP16: got a value of 70000, expected at most 65504"):
        convert_to_fp16(source, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize(
    ("largest_weight", "kept"),
    [
        (1.0, set()),
        (100.0, {"conv1", "resize", "scale"}),  # 13,000, with room for other tiles, is too much for FP16
        (70000.0, {"conv1", "resize", "scale", "conv2"}),
    ],
)
def test_what_fp16_cannot_hold_is_found_on_tiles_and_stays_fp32(
    tmp_path: Path, largest_weight: float, kept: set[str]
) -> None:
    source = small_network(tmp_path / "a.onnx", largest_weight=largest_weight)
    tiles = np.full((2, 3, 8, 8), 255, np.uint8)
    tiles[0] = 120
    found = fp16_overflow_nodes(source, tiles)
    assert set(found) == kept
    if kept:
        model = onnx.load(str(source))
        names = ["first", "resized", "scaled", "second"]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        onnx.save(model, str(tmp_path / "all.onnx"))
        largest = {
            name: float(np.abs(value).max())
            for name, value in zip(names, run(tmp_path / "all.onnx", tiles)[1:], strict=True)
        }
        assert found["resize"] == pytest.approx(max(largest["first"], largest["resized"]))


def test_the_copy_of_a_network_too_large_for_fp16_answers_as_the_original_where_a_blind_cast_does_not(
    tmp_path: Path,
) -> None:
    nodes = [
        onnx.helper.make_node("Cast", ["tiles"], ["float"], to=TensorProto.FLOAT, name="cast"),
        onnx.helper.make_node("Conv", ["float", "grow"], ["large"], name="conv1"),
        onnx.helper.make_node("Mul", ["large", "less"], ["small"], name="shrink"),
        onnx.helper.make_node("Conv", ["small", "even"], ["mixed"], name="conv2"),
        onnx.helper.make_node("Relu", ["mixed"], ["positive"], name="relu"),
        onnx.helper.make_node("Conv", ["positive", "even"], ["last"], name="conv3"),
        onnx.helper.make_node("Mul", ["last", "less"], ["out"], name="decode"),
    ]
    weights = {
        "grow": np.full((2, 3, 1, 1), 500.0, np.float32),
        "less": np.float32(1e-5),
        "even": np.ones((2, 2, 1, 1), np.float32),
    }
    source = save(tmp_path / "a.onnx", nodes, weights, ["b", 2, 8, 8])
    tiles = np.full((1, 3, 8, 8), 200, np.uint8)
    found = fp16_overflow_nodes(source, tiles)
    assert set(found) == {"conv1", "shrink"}
    assert found["conv1"] == pytest.approx(3e5)
    convert_to_fp16(source, tmp_path / "blind.onnx")
    census = convert_to_fp16(source, tmp_path / "seen.onnx", float_nodes=found)
    assert (census.precision, census.float_layers, dict(census.weight_types)) == ("fp16", 1, {"FLOAT": 1, "FLOAT16": 2})
    # ONNX Runtime leaves the casts out where it has no FP16 kernels; onnx's own evaluator takes every one at its word.
    with np.errstate(over="ignore"):
        (expected,), (blind,), (seen,) = (
            ReferenceEvaluator(str(path)).run(None, {"tiles": tiles})
            for path in (source, tmp_path / "blind.onnx", tmp_path / "seen.onnx")
        )
    assert not np.isfinite(blind).any()
    np.testing.assert_allclose(seen, expected, rtol=2e-3)


def test_a_file_that_is_not_what_was_asked_for_is_refused(tmp_path: Path) -> None:
    source = small_network(tmp_path / "a.onnx")
    assert require_precision(source, "fp32").layers == 2
    with pytest.raises(EngineError, match="not fp16 throughout: got layer weights 2 FLOAT, expected all 2 in fp16"):
        require_precision(source, "fp16")


def test_a_mixed_file_has_no_precision(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Cast", ["tiles"], ["float"], to=TensorProto.FLOAT, name="a"),
        onnx.helper.make_node("Conv", ["float", "w1"], ["one"], name="b"),
        onnx.helper.make_node("Cast", ["one"], ["half"], to=TensorProto.FLOAT16, name="c"),
        onnx.helper.make_node("Conv", ["half", "w2"], ["two"], name="d"),
        onnx.helper.make_node("Cast", ["two"], ["out"], to=TensorProto.FLOAT, name="e"),
    ]
    weights = {"w1": np.ones((2, 3, 1, 1), np.float32), "w2": np.ones((2, 2, 1, 1), np.float16)}
    census = count_precision(save(tmp_path / "a.onnx", nodes, weights, ["b", 2, 8, 8]))
    assert census.precision is None
    assert census.weight_bytes == 6 * 4 + 4 * 2


def test_a_whole_detector_has_every_convolution_in_fp16_and_its_top_k_in_fp32(whole_bundle: Path) -> None:
    census = count_precision(whole_bundle / "model.fp16.onnx")
    assert census.weight_types == {"FLOAT16": count_precision(whole_bundle / "model.onnx").layers}
    model = onnx.shape_inference.infer_shapes(onnx.load(str(whole_bundle / "model.fp16.onnx")))
    type_of = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    post = [node for node in model.graph.node if node.op_type in {"TopK", "Sigmoid", "Exp"}]
    assert len(post) >= 11
    assert {type_of.get(node.input[0]) for node in post} == {TensorProto.FLOAT}
    smaller = (whole_bundle / "model.fp16.onnx").stat().st_size / (whole_bundle / "model.onnx").stat().st_size
    assert smaller < 0.52


def test_it_works_where_torch_is_not_installed(tmp_path: Path) -> None:
    source = small_network(tmp_path / "a.onnx")
    program = (
        "import sys; sys.modules.update(torch=None, torchvision=None)\n"
        "from pathlib import Path; from export.precision import convert_to_fp16; import export.tensorrt.build\n"
        f"print(convert_to_fp16(Path({str(source)!r}), Path({str(tmp_path / 'b.onnx')!r})).precision)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fp16"
