"""Small ONNX files for tests of precision."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

rng = np.random.default_rng(0)


def save(path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], out: list[object]) -> Path:
    """Write a model with the input `tiles`, uint8 [b, 3, 8, 8], and the output `out`."""
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
    """Write a model of two convolutions, followed by the addition of an offset that FP16 cannot represent."""
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
    """Return the outputs of ONNX Runtime."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"tiles": tiles})
