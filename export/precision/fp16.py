"""Conversion of an FP32 ONNX file to FP16.

All nodes between the first and the last layer become FP16. Normalization, top-k, sigmoid and box decoding stay FP32:
they cost next to nothing, and in FP16 many scores are equal and a coordinate near 1500 has a resolution of one pixel.
ONNX Runtime's converter is not used because it also rounds values between two FP32 nodes to FP16.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.precision.layers import layer_names, nodes_between_layers
from export.precision.onnx_files import load_with_shapes, save_checked
from export.precision.precision_summary import PrecisionSummary, require_precision
from ifkd.core.detections import Array
from ifkd.core.errors import EngineError

MAX_FP16 = float(np.finfo(np.float16).max)
FP32_INPUTS = {"Resize": (1, 2)}
"""Operator -> indices of inputs that are always FP32 (regions and scales)."""


def convert_to_fp16(source: Path, path: Path, *, float_nodes: Collection[str] = ()) -> PrecisionSummary:
    """Write an FP32 ONNX file in FP16; its inputs, its outputs and the nodes `float_nodes` keep their types.

    Raises:
        EngineError: A weight exceeds the range of FP16, or a layer has another precision.
    """
    model = load_with_shapes(source)
    layers = set(layer_names(model.graph))
    _Fp16Converter(model.graph, nodes_between_layers(model.graph) - set(float_nodes)).convert()
    save_checked(model, path, precision="fp16", float_layers=layers & set(float_nodes))
    return require_precision(path, "fp16")


class _Fp16Converter:
    """Converts some nodes of a graph to FP16 and inserts casts at their boundary."""

    def __init__(self, graph: Any, fp16_nodes: Collection[str]) -> None:
        float32 = onnx.TensorProto.FLOAT
        self.graph, self.fp16_nodes = graph, fp16_nodes
        self.weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == float32}
        typed = [*graph.value_info, *graph.input, *graph.output]
        self.fp32_values = {value.name for value in typed if value.type.tensor_type.elem_type == float32}
        """Names of the FP32 values of the original graph."""
        self.fp32_values |= set(self.weights)
        outputs = {name for node in graph.node if node.name in fp16_nodes for name in node.output}
        self.fp16_values = outputs & self.fp32_values
        """Names of the values that become FP16."""
        self.aliases: dict[tuple[str, int], str] = {}
        """(value, type) -> name of the value cast to the type."""
        self.nodes: list[Any] = []
        """Nodes of the new graph."""

    def convert(self) -> None:
        """Rewrite the graph in place."""
        assert not any(output.name in self.fp16_values for output in self.graph.output), "outputs are FP32"
        float16, float32 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        for node in self.graph.node:
            assert not any(attribute.HasField("g") for attribute in node.attribute), "detectors have no subgraphs"
            is_fp16 = node.name in self.fp16_nodes
            for index, name in enumerate(node.input):
                if name in self.fp32_values:
                    always_fp32 = index in FP32_INPUTS.get(node.op_type, ())
                    node.input[index] = self._cast(name, float16 if is_fp16 and not always_fp32 else float32)
            for attribute in node.attribute if is_fp16 and node.op_type == "Cast" else ():
                if attribute.name == "to" and attribute.i == float32:
                    attribute.i = float16
            self.nodes.append(node)
        for value in self.graph.value_info:
            if value.name in self.fp16_values:
                value.type.tensor_type.elem_type = float16
        used = {name for node in self.nodes for name in node.input}
        weights = [tensor for tensor in self.graph.initializer if tensor.name in used]
        for field, values in ((self.graph.node, self.nodes), (self.graph.initializer, weights)):
            del field[:]
            field.extend(values)

    def _cast(self, name: str, data_type: int) -> str:
        """Return the name of a value in the given type, and add a cast or a converted weight if it is new."""
        float16 = onnx.TensorProto.FLOAT16
        if data_type == (float16 if name in self.fp16_values else onnx.TensorProto.FLOAT):
            return name
        if (name, data_type) not in self.aliases:
            alias = f"{name}_{'fp16' if data_type == float16 else 'fp32'}"
            if name in self.weights:
                self.graph.initializer.append(self._fp16_weight(name, alias))
            else:
                self.nodes.append(onnx.helper.make_node("Cast", [name], [alias], to=data_type, name=f"cast_{alias}"))
            self.aliases[name, data_type] = alias
        return self.aliases[name, data_type]

    def _fp16_weight(self, name: str, alias: str) -> Any:
        values = onnx.numpy_helper.to_array(self.weights[name])
        largest = max_magnitude(values)
        if largest > MAX_FP16:
            raise EngineError(
                f"The weight {name} exceeds the range of FP16",
                got=f"a value of {largest:g}",
                expected=f"at most {MAX_FP16:g}",
                hint="Keep its node in FP32, or export with precisions=['fp32'].",
            )
        return onnx.numpy_helper.from_array(values.astype(np.float16), alias)


def max_magnitude(weight: Array) -> float:
    """Return the largest finite magnitude of a weight; infinity is intended, as in the limits of a Clip."""
    return float(np.abs(weight[np.isfinite(weight)]).max(initial=0.0))
