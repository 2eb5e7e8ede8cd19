"""Which nodes of an ONNX file FP16 cannot hold: found by running the FP32 file, and left in FP32 in its FP16 copy.

FP16 ends at 65504. A value beyond becomes infinite, and from there on an answer is rubbish without an error. So the
largest magnitude of everything that would become FP16 is measured on tiles, with room for tiles that were not seen.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.precision.fp16 import LARGEST_FP16, between_layers, load_onnx
from export.precision.ort_session import open_session
from ifkd.core.detections import Array

HEADROOM = 8.0
"""How many times larger a value may be on a tile that was not measured."""


def fp16_overflow_nodes(path: Path, tiles: Array) -> dict[str, float]:
    """Return the nodes that must stay FP32 and the largest magnitude that each of them takes, gives or weighs with.

    Args:
        path: The FP32 file.
        tiles: uint8 [tiles, 3, height, width] to measure on.
    """
    onnx = load_onnx()
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True, data_prop=True)
    graph = model.graph
    weights = {
        tensor.name: _largest(onnx.numpy_helper.to_array(tensor))
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    floats = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    low = between_layers(graph)
    touched = {node.name: [*node.input, *node.output] for node in graph.node if node.name in low}
    wanted = sorted({name for names in touched.values() for name in names if name in floats})
    measured = _measured(model, wanted, tiles)
    found = {}
    for node, names in touched.items():
        value = max((measured[name] for name in names if name in measured), default=0.0)
        weight = max((weights[name] for name in names if name in weights), default=0.0)
        # Not even a NaN passes; a weight is the same on every tile and needs no room.
        if not (value * HEADROOM <= LARGEST_FP16 and weight <= LARGEST_FP16):
            found[node] = max(value, weight)
    return found


def _measured(model: Any, names: Sequence[str], tiles: Array) -> dict[str, float]:
    """Return the largest magnitude of some of a graph's values over all tiles; only scalars leave the runtime."""
    onnx = load_onnx()
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


def _largest(values: Array) -> float:
    """Return the largest magnitude of a weight; infinity itself is meant, as in the limits of a clip."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
