"""Precision of ONNX files, by the types of their weights."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes.small_onnx import save, small_network
from onnx import TensorProto

from export.precision.precision_summary import require_precision, summarize_precision
from ifkd.core.errors import EngineError


def test_a_file_of_another_precision_is_refused(tmp_path: Path) -> None:
    source = small_network(tmp_path / "a.onnx")
    assert require_precision(source, "fp32").layers == 2
    with pytest.raises(
        EngineError, match=r"Not all layers of a\.onnx are fp16: got weights of type 2 FLOAT, expected all 2 in fp16"
    ):
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
    summary = summarize_precision(save(tmp_path / "a.onnx", nodes, weights, ["b", 2, 8, 8]))
    assert summary.precision is None
    assert summary.weight_bytes == 6 * 4 + 4 * 2


def test_a_detector_has_all_convolutions_in_fp16_and_top_k_in_fp32(whole_bundle: Path) -> None:
    summary = summarize_precision(whole_bundle / "model.fp16.onnx")
    assert summary.weight_types == {"FLOAT16": summarize_precision(whole_bundle / "model.onnx").layers}
    model = onnx.shape_inference.infer_shapes(onnx.load(str(whole_bundle / "model.fp16.onnx")))
    type_of = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    post = [node for node in model.graph.node if node.op_type in {"TopK", "Sigmoid", "Exp"}]
    assert len(post) >= 11
    # One top-k of each large level sorts the indices of anchors.
    assert {type_of.get(node.input[0]) for node in post} == {TensorProto.FLOAT, TensorProto.INT64}
    smaller = (whole_bundle / "model.fp16.onnx").stat().st_size / (whole_bundle / "model.onnx").stat().st_size
    assert smaller < 0.52
