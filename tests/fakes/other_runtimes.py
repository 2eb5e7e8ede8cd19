"""Programs other than ONNX Runtime that read our ONNX files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ifkd.core.detections import Candidates

NAMES = ["boxes", "scores", "labels"]


class GatherElements(OpRun):
    """The operator as the standard has it; the evaluator's own goes by `np.choose`, which takes 64 rows at most."""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        return (np.take_along_axis(data, indices, axis=axis),)


def by_onnx(path: Path, tiles: np.ndarray) -> Candidates:
    """Answer by onnx's own evaluator, which is slow and takes the standard at its word."""
    return Candidates(*ReferenceEvaluator(str(path), new_ops=[GatherElements]).run(NAMES, {"tiles": tiles}))


def by_openvino(path: Path, tiles: np.ndarray) -> Candidates:
    """Answer by OpenVINO on the CPU, in FP32 as the file says."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    answer = core.compile_model(core.read_model(str(path)), "CPU", hints)({"tiles": tiles})
    return Candidates(*(np.array(answer[name]) for name in NAMES))


FOREIGN: dict[str, Callable[[Path, np.ndarray], Candidates]] = {"onnx": by_onnx, "openvino": by_openvino}


def shapeless(path: Path) -> list[str]:
    """Return the values of a file whose type or number of dimensions full shape inference cannot tell."""
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), check_type=True, strict_mode=True, data_prop=True)
    known = {
        value.name
        for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]
        if value.type.tensor_type.elem_type and value.type.tensor_type.HasField("shape")
    }
    known |= {tensor.name for tensor in model.graph.initializer}
    return [name for node in model.graph.node for name in node.output if name and name not in known]
