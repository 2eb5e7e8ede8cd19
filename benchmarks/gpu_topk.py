"""The two ways to choose the best anchor-class pairs of a level, as ONNX graphs, for benchmarks/gpu.py.

A detector takes the best class of each anchor first, then the best pairs of those anchors. One top-k over all pairs
gives the same scores, but some runtimes evaluate a long axis serially.
"""

import numpy as np
import onnx
from onnx import TensorProto

from ifkd.core.detections import Array


def one_axis(anchors: int, classes: int, k: int) -> bytes:
    """Return the graph: scores float32 [1, anchors, classes] -> top-k of all pairs, float32 [1, k]."""
    nodes = [
        onnx.helper.make_node("Reshape", ["scores", "all"], ["pairs"]),
        onnx.helper.make_node("TopK", ["pairs", "k"], ["best", "index"], axis=1),
    ]
    return _graph(nodes, {"all": [1, anchors * classes], "k": [k]}, anchors, classes, k)


def best_class_first(anchors: int, classes: int, k: int) -> bytes:
    """Return the graph: scores float32 [1, anchors, classes] -> top-k of the pairs of the k best anchors, [1, k]."""
    nodes = [
        onnx.helper.make_node("ReduceMax", ["scores", "last"], ["highest"], keepdims=0),
        onnx.helper.make_node("TopK", ["highest", "k"], ["unused", "rows"], axis=1),
        onnx.helper.make_node("Squeeze", ["rows", "first"], ["row"]),
        onnx.helper.make_node("Gather", ["scores", "row"], ["chosen"], axis=1),
        onnx.helper.make_node("Reshape", ["chosen", "all"], ["pairs"]),
        onnx.helper.make_node("TopK", ["pairs", "k"], ["best", "index"], axis=1),
    ]
    constants = {"last": [2], "first": [0], "all": [1, k * classes], "k": [k]}
    return _graph(nodes, constants, anchors, classes, k)


def random_scores(anchors: int, classes: int) -> Array:
    """Return scores as of a trained detector: most of them are small."""
    return np.random.default_rng(0).random((1, anchors, classes), np.float32) ** 8


def _graph(nodes: list[onnx.NodeProto], constants: dict[str, list[int]], anchors: int, classes: int, k: int) -> bytes:
    scores = onnx.helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, anchors, classes])
    best = onnx.helper.make_tensor_value_info("best", TensorProto.FLOAT, [1, k])
    initializers = [onnx.numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "topk", [scores], [best], initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())
