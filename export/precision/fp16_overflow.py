"""Nodes of an ONNX file that overflow in FP16, found by running the FP32 file on sample tiles.

The largest FP16 value is 65504. Larger values overflow to infinity, and the output is silently wrong. The largest
magnitude of each value that would become FP16 is therefore measured, with a margin for other tiles.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.precision.fp16 import MAX_FP16, max_magnitude
from export.precision.layers import nodes_between_layers
from export.precision.onnx_files import load_with_shapes, run_model
from ifkd.core.detections import Array

MARGIN = 8.0
"""Factor by which a value of another tile may exceed the measured one."""


def fp16_overflow_nodes(path: Path, tiles: Array) -> dict[str, float]:
    """Return the nodes of an FP32 file that must stay FP32, with the largest magnitude of their values and weights.

    `tiles` are uint8 [tiles, 3, height, width].
    """
    model = load_with_shapes(path)
    graph, float32 = model.graph, onnx.TensorProto.FLOAT
    initializers = [tensor for tensor in graph.initializer if tensor.data_type == float32]
    weights = {tensor.name: max_magnitude(onnx.numpy_helper.to_array(tensor)) for tensor in initializers}
    fp32_values = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == float32}
    fp16_nodes = nodes_between_layers(graph)
    values_of = {node.name: [*node.input, *node.output] for node in graph.node if node.name in fp16_nodes}
    activations = sorted({name for names in values_of.values() for name in names if name in fp32_values})
    measured = _measure(model, activations, tiles)
    overflowing = {}
    for node, names in values_of.items():
        value = max((measured[name] for name in names if name in measured), default=0.0)
        weight = max((weights[name] for name in names if name in weights), default=0.0)
        # The negation also catches NaN. A weight does not depend on the tile and needs no margin.
        if not (value * MARGIN <= MAX_FP16 and weight <= MAX_FP16):
            overflowing[node] = max(value, weight)
    return overflowing


def _measure(model: Any, names: Sequence[str], tiles: Array) -> dict[str, float]:
    """Return the largest magnitude of some values over all tiles, computed inside the model to return scalars only."""
    for name in names:
        magnitude = f"magnitude of {name}"
        model.graph.node.append(onnx.helper.make_node("Abs", [name], [magnitude]))
        model.graph.node.append(onnx.helper.make_node("ReduceMax", [magnitude], [f"peak of {name}"], keepdims=0))
    peaks = run_model(model, [f"peak of {name}" for name in names], [{"tiles": tile[None]} for tile in tiles])
    return dict(zip(names, np.array(peaks, np.float64).max(axis=0).tolist(), strict=True))
