"""Runtimes other than ONNX Runtime, and a check of shape inference."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ifkd.core.detections import Candidates

NAMES = ["boxes", "scores", "labels"]


class GatherElements(OpRun):
    """The operator GatherElements; the evaluator's own uses `np.choose`, which is limited to 64 rows."""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        return (np.take_along_axis(data, indices, axis=axis),)


def run_reference_evaluator(path: Path, tiles: np.ndarray) -> Candidates:
    """Return the output of onnx's reference evaluator, which is slow and follows the standard exactly."""
    return Candidates(*ReferenceEvaluator(str(path), new_ops=[GatherElements]).run(NAMES, {"tiles": tiles}))


def run_openvino(path: Path, tiles: np.ndarray) -> Candidates:
    """Return the output of OpenVINO on the CPU in FP32."""
    return Candidates(*run_model_in_openvino(str(path), {"tiles": tiles}, NAMES))


def run_model_in_openvino(
    model: str | bytes, inputs: dict[str, np.ndarray], outputs: Sequence[str]
) -> list[np.ndarray]:
    """Return the named outputs of an ONNX model, a path or its content, by OpenVINO on the CPU in FP32."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    output = core.compile_model(core.read_model(model), "CPU", hints)(inputs)
    return [np.array(output[name]) for name in outputs]


OTHER_RUNTIMES: dict[str, Callable[[Path, np.ndarray], Candidates]] = {
    "onnx": run_reference_evaluator,
    "openvino": run_openvino,
}


def values_without_shape(path: Path) -> list[str]:
    """Return the values of a file whose type or rank shape inference does not determine."""
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), check_type=True, strict_mode=True, data_prop=True)
    known = {
        value.name
        for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]
        if value.type.tensor_type.elem_type and value.type.tensor_type.HasField("shape")
    }
    known |= {tensor.name for tensor in model.graph.initializer}
    return [name for node in model.graph.node for name in node.output if name and name not in known]
