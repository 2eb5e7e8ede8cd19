"""Layers of an ONNX graph: its convolutions and fully connected layers, and the nodes between them."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

LAYER_OPERATORS = ("Conv", "Gemm", "MatMul")
"""Operators that are layers if their second input is a weight."""
FP32_OPERATORS = {"TopK", "Sigmoid", "Softmax", "Exp", "GridSample", "ArgMax", "ReduceMax"}
"""Operators that compute scores, boxes or sampling positions; lower precision ends before them."""


def layer_names(graph: Any) -> list[str]:
    """Return the names of the layers of an FP32 graph, in order."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type in LAYER_OPERATORS and node.input[1] in weights]


def nodes_between_layers(graph: Any) -> set[str]:
    """Return the names of the layers and of all nodes on a path from layer to layer without an FP32 operator."""
    nodes = graph.node
    assert len({node.name for node in nodes}) == len(nodes), "node names are unique"
    layers = set(layer_names(graph))
    after = _downstream(layers, ((node.name, node.op_type, node.input, node.output) for node in nodes))
    before = _downstream(layers, ((node.name, node.op_type, node.output, node.input) for node in reversed(nodes)))
    return after & before


def last_layers(graph: Any) -> tuple[str, ...]:
    """Return the names of the layers whose output becomes scores or boxes without another layer, in order.

    For a two-stage detector, these are the last layers of the region proposal network and of the box head.
    """
    layers = set(layer_names(graph))
    feeding_layers: set[str] = set()
    last = []
    for node in reversed(graph.node):
        feeds = any(name in feeding_layers for name in node.output) and node.op_type not in FP32_OPERATORS
        if node.name in layers and not feeds:
            last.append(node.name)
        if feeds or node.name in layers:
            feeding_layers.update(node.input)
    return tuple(reversed(last))


def depthwise_weights(graph: Any) -> tuple[str, ...]:
    """Return the names of the weights of depthwise convolutions."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        if node.op_type == "Conv" and groups > 1 and shapes.get(node.input[1], ())[:2] == (groups, 1):
            found.append(node.input[1])
    return tuple(dict.fromkeys(found))


def _downstream(layers: Collection[str], nodes: Iterable[tuple[str, str, Sequence[str], Sequence[str]]]) -> set[str]:
    """Return the names of the layers and of all nodes that their values reach, up to an FP32 operator.

    `nodes` are (name, operator, inputs, outputs) in topological order.
    """
    reached: set[str] = set()
    names = set()
    for name, operator, inputs, outputs in nodes:
        if operator not in FP32_OPERATORS and (name in layers or not reached.isdisjoint(inputs)):
            names.add(name)
            reached.update(value for value in outputs if value)
    return names
