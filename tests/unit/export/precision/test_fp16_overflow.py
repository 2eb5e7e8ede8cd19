"""Nodes that overflow in FP16; the references are ONNX Runtime and the reference evaluator of onnx."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes.small_onnx import run, save, small_network
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from export.precision.fp16 import convert_to_fp16
from export.precision.fp16_overflow import fp16_overflow_nodes


@pytest.mark.parametrize(
    ("largest_weight", "expected"),
    [
        (1.0, set()),
        (100.0, {"conv1", "resize", "scale"}),  # 13,000 with the margin exceeds FP16
        (70000.0, {"conv1", "resize", "scale", "conv2"}),
    ],
)
def test_nodes_that_overflow_are_found_on_tiles(tmp_path: Path, largest_weight: float, expected: set[str]) -> None:
    source = small_network(tmp_path / "a.onnx", largest_weight=largest_weight)
    tiles = np.full((2, 3, 8, 8), 255, np.uint8)
    tiles[0] = 120
    found = fp16_overflow_nodes(source, tiles)
    assert set(found) == expected
    if expected:
        model = onnx.load(str(source))
        names = ["first", "resized", "scaled", "second"]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        onnx.save(model, str(tmp_path / "all.onnx"))
        largest = {
            name: float(np.abs(value).max())
            for name, value in zip(names, run(tmp_path / "all.onnx", tiles)[1:], strict=True)
        }
        assert found["resize"] == pytest.approx(max(largest["first"], largest["resized"]))


def test_a_file_with_overflowing_nodes_in_fp32_has_the_outputs_of_the_original(
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
    convert_to_fp16(source, tmp_path / "all_fp16.onnx")
    summary = convert_to_fp16(source, tmp_path / "mixed.onnx", float_nodes=found)
    assert (summary.precision, summary.float_layers, dict(summary.weight_types)) == (
        "fp16",
        1,
        {"FLOAT": 1, "FLOAT16": 2},
    )
    # ONNX Runtime drops casts where it has no FP16 kernels; the reference evaluator executes all of them.
    with np.errstate(over="ignore"):
        (expected,), (all_fp16,), (mixed,) = (
            ReferenceEvaluator(str(path)).run(None, {"tiles": tiles})
            for path in (source, tmp_path / "all_fp16.onnx", tmp_path / "mixed.onnx")
        )
    assert not np.isfinite(all_fp16).any()
    np.testing.assert_allclose(mixed, expected, rtol=2e-3)
