"""Precision of the layers in an ONNX file, by the types of their weights.

Engines are strongly typed: they compute in the types of the ONNX file. A file with a layer in an unexpected precision
is therefore refused, unless its metadata lists the layer as FP32 by design.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from export.bundle.manifest import Precision
from export.precision.layers import LAYER_OPERATORS
from export.precision.onnx_files import FLOAT_LAYERS_KEY
from ifkd.core.errors import EngineError

INT8, INT8_CPU = "INT8", "INT8 with UINT8 activations"
"""Types of INT8 layers, for TensorRT and for CPUs."""


@dataclass(frozen=True, slots=True)
class PrecisionSummary:
    """Types of the layers in an ONNX file."""

    weight_types: Mapping[str, int]
    """Type of the weights, such as FLOAT16 or INT8 -> number of layers."""
    weight_bytes: int
    """Size of all initializers."""
    float_layers: int = 0
    """Number of layers that are FP32 by design; `weight_types` counts them, too."""

    @property
    def layers(self) -> int:
        """Number of layers."""
        return sum(self.weight_types.values())

    @property
    def precision(self) -> Precision | None:
        """The common precision of all layers that are not FP32 by design; None if they differ or there are none."""
        names: dict[str, Precision] = {"FLOAT": "fp32", "FLOAT16": "fp16", INT8: "int8", INT8_CPU: "int8-cpu"}
        counts = dict(self.weight_types)
        if set(counts) != {"FLOAT"}:
            counts["FLOAT"] = counts.get("FLOAT", 0) - self.float_layers
        types = [name for name, count in counts.items() if count]
        return names.get(types[0]) if len(types) == 1 else None


def summarize_precision(path: Path) -> PrecisionSummary:
    """Return the types of the layers in an ONNX file."""
    model = onnx.load(str(path))
    graph = model.graph
    type_of = {tensor.name: tensor.data_type for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    counts: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type not in LAYER_OPERATORS:
            continue
        weight = producer.get(node.input[1])
        if weight is not None and weight.op_type == "DequantizeLinear":
            counts[_quantized_type(node, producer, type_of)] += 1
        elif node.input[1] in type_of or node.op_type == "Conv":
            counts[onnx.TensorProto.DataType.Name(type_of.get(node.input[1], onnx.TensorProto.UNDEFINED))] += 1
    listed = [json.loads(entry.value) for entry in model.metadata_props if entry.key == FLOAT_LAYERS_KEY]
    size = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)
    return PrecisionSummary(dict(counts), size, len(listed[0]) if listed else 0)


def require_precision(path: Path, precision: Precision) -> PrecisionSummary:
    """Return the summary of an ONNX file, or raise an EngineError if a layer has another precision."""
    summary = summarize_precision(path)
    if summary.precision != precision:
        types = ", ".join(f"{count} {name}" for name, count in sorted(summary.weight_types.items()))
        raise EngineError(
            f"Not all layers of {path.name} are {precision}",
            got=f"weights of type {types}" if types else "no layers",
            expected=f"all {summary.layers - summary.float_layers} in {precision}",
            hint="Export the bundle again.",
        )
    return summary


def _quantized_type(node: Any, producer: Mapping[str, Any], type_of: Mapping[str, int]) -> str:
    """Return the type of a layer with dequantized weights."""
    data, weight = producer.get(node.input[0]), producer[node.input[1]]
    if data is None or data.op_type != "DequantizeLinear":
        return "INT8 with FLOAT activations"
    int8, uint8 = onnx.TensorProto.INT8, onnx.TensorProto.UINT8
    if type_of.get(weight.input[0]) != int8 or type_of.get(data.input[2]) not in (int8, uint8):
        return "other integer"
    return INT8 if type_of[data.input[2]] == int8 else INT8_CPU
