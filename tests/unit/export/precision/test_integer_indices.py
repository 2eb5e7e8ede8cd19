"""The check that a file computes indices in integers, on small graphs and on exported files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes.float_division import with_float_division
from onnx import TensorProto
from onnx.helper import make_node, make_tensor_value_info
from onnx.numpy_helper import from_array

from export.int8.quantize import Quantizer
from export.precision.fp16 import convert_to_fp16
from export.precision.integer_indices import require_integer_indices
from export.precision.onnx_files import save_checked
from export.tiles import structured_noise
from ifkd.core.errors import EngineError
from ifkd.recipe import CalibrationOptions

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
TOP = make_node("TopK", ["x", "k"], ["best", "index"])


def model_of(nodes: list[onnx.NodeProto], output: int = INT64) -> onnx.ModelProto:
    """Return a model from `x`, FP32 [n, 100], to `y`."""
    for number, node in enumerate(nodes):
        node.name = f"node {number}"
    values = {"k": np.array([5], np.int64), "seven": np.array(7, np.int64), "half": np.array(0.5, np.float32)}
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [make_tensor_value_info("x", FLOAT, ["n", 100])],
        [make_tensor_value_info("y", output, [None, None])],
        [from_array(value, name) for name, value in values.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return make_node("Cast", [source], [target], to=kind)


ARG_MAX, SHAPE = make_node("ArgMax", ["x"], ["index"], axis=1), make_node("Shape", ["x"], ["index"])
TO_FLOAT, TO_INTEGER = cast("index", "a", FLOAT), cast("b", "y", INT64)
HALVE, ADD = make_node("Mul", ["a", "half"], ["b"]), make_node("Add", ["a", "best"], ["b"])
ALLOWED = {
    "an integer quotient": [TOP, make_node("Div", ["index", "seven"], ["y"])],
    "a remainder": [TOP, make_node("Mod", ["index", "seven"], ["y"])],
    "a level found from the size of a box": [make_node("Floor", ["x"], ["b"]), TO_INTEGER],
    "an index that selects": [TOP, make_node("GatherElements", ["x", "index"], ["b"], axis=1), TO_INTEGER],
    "a length with other values": [TOP, make_node("Size", ["index"], ["s"]), cast("s", "a", FLOAT), ADD, TO_INTEGER],
}
REFUSED = {
    "a quotient": [TOP, TO_FLOAT, HALVE, TO_INTEGER],
    "a quotient in half precision": [TOP, cast("index", "b", TensorProto.FLOAT16), TO_INTEGER],
    "the best class": [ARG_MAX, TO_FLOAT, HALVE, TO_INTEGER],
    "an index of an index": [TOP, make_node("Gather", ["k", "index"], ["j"]), cast("j", "b", FLOAT), TO_INTEGER],
    "indices with other values": [TOP, TO_FLOAT, ADD, TO_INTEGER],
    "a length": [SHAPE, TO_FLOAT, HALVE, TO_INTEGER],
}


@pytest.mark.parametrize("name", ALLOWED)
def test_integer_arithmetic_and_other_floats_are_accepted(name: str) -> None:
    require_integer_indices(model_of(ALLOWED[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_indices_in_floats_are_refused(name: str) -> None:
    with pytest.raises(EngineError, match=r"computes indices in floating point.*got the nodes node \d"):
        require_integer_indices(model_of(REFUSED[name]))


def test_indices_must_not_become_an_output_in_floats() -> None:
    with pytest.raises(EngineError, match="got the nodes node 1, expected integers"):
        require_integer_indices(model_of([TOP, cast("index", "y", FLOAT)], FLOAT))


def test_no_file_is_written(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="indices in floating point"):
        save_checked(model_of(REFUSED["a quotient"]), tmp_path / "a.onnx", precision="fp16", float_layers=())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bundle", ["whole_bundle", pytest.param("free_bundle", marks=pytest.mark.slow)])
def test_files_of_every_precision_compute_indices_in_integers(
    bundle: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(bundle) / "model.onnx"
    tiles = np.stack([structured_noise((64, 64), seed=0).transpose(2, 0, 1)])
    convert_to_fp16(source, tmp_path / "fp16.onnx")
    for precision in ("int8", "int8-cpu"):
        with Quantizer(source, tiles, precision=precision, calibration=CalibrationOptions()) as quantizer:
            quantizer.write(tmp_path / f"{precision}.onnx")
    for path in (source, *tmp_path.iterdir()):
        model = onnx.load(str(path))
        require_integer_indices(model)
        with pytest.raises(EngineError, match="indices in floating point"):
            require_integer_indices(with_float_division(model))
