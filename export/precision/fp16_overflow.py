"""Nodes of an ONNX file that overflow in FP16, found by running the FP32 file on sample tiles.

The largest FP16 value is 65504. Larger values overflow to infinity, and the output is silently wrong. The largest
magnitude of each value that would become FP16 is therefore measured, with a margin for other tiles.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.precision.fp16 import MAX_FP16
from export.precision.layers import nodes_between_layers
from export.precision.onnx_files import load_with_shapes
from export.precision.ort_session import open_session
from ifkd.core.detections import Array

MARGIN = 8.0
"""Factor by which a value of another tile may exceed the measured one."""


def fp16_overflow_nodes(path: Path, tiles: Array) -> dict[str, float]:
    """Return the nodes that must stay FP32, with the largest magnitude among their inputs, outputs and weights.

    Args:
        path: The FP32 file.
        tiles: Sample tiles, uint8 [tiles, 3, height, width].
    """
    model = load_with_shapes(path)
    graph, float32 = model.graph, onnx.TensorProto.FLOAT
    weights = {
        tensor.name: _max_magnitude(onnx.numpy_helper.to_array(tensor))
        for tensor in graph.initializer
        if tensor.data_type == float32
    }
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
    """Return the largest magnitude of some values of a model over all tiles.

    The maximum is computed inside the model, so that only scalars are returned.
    """
    del model.graph.output[:]
    for number, name in enumerate(names):
        magnitude, peak = f"magnitude_{number}", f"peak_{number}"
        model.graph.node.append(onnx.helper.make_node("Abs", [name], [magnitude]))
        model.graph.node.append(onnx.helper.make_node("ReduceMax", [magnitude], [peak], keepdims=0))
        model.graph.output.append(onnx.helper.make_tensor_value_info(peak, onnx.TensorProto.FLOAT, []))
    with tempfile.TemporaryDirectory(prefix="ifkd.range.") as folder:
        probe = Path(folder) / "probe.onnx"
        probe.write_bytes(model.SerializeToString())
        session = open_session(probe)
    peaks = np.array([session.run(None, {"tiles": tile[None]}) for tile in tiles], np.float64)
    return dict(zip(names, peaks.max(axis=0).tolist(), strict=True))


def _max_magnitude(values: Array) -> float:
    """Return the largest finite magnitude of a weight; infinity is intended, as in the limits of a Clip."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
