"""The precision of an ONNX file: the FP16 copy of an FP32 file, and the count that proves what was delivered.

Precision is a property of the file, not a flag of a builder: TensorRT-RTX and TensorRT 11 know strongly typed
networks only. FP16 is everything between the first and the last layer with weights. What comes before (the
normalization of 0 to 255) and after (top-k, sigmoid, box decoding) stays FP32: it costs next to nothing, and in
FP16 neighboring scores tie and a box at pixel 1500 moves in steps of a whole pixel. The file is cast here and not
by ONNX Runtime's converter, which sends every value between two FP32 nodes through FP16 as well.

A layer that was left in FP32 on purpose is named in the file's metadata; any other one is a reason to refuse it.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export.bundle.manifest import Precision
from ifkd.core.errors import EngineError, MissingExtraError
from ifkd.core.files import atomic_path

PRECISION_KEY = "ifkd.precision"
LARGEST_FP16 = float(np.finfo(np.float16).max)
FLOAT_LAYERS_KEY = "ifkd.float_layers"
ALWAYS_FLOAT32 = {"Resize": (1, 2)}
"""Operator -> inputs that are FP32 whatever the data's type (regions and scales)."""
WEIGHTED = {"Conv", "Gemm", "MatMul"}
"""Operators that are layers when their second input is a weight."""
FLOAT_FRONTIER = {"TopK", "Sigmoid", "Softmax", "Exp", "GridSample", "ArgMax", "ReduceMax"}
"""Operators that FP16 neither enters nor passes: what they compute are scores, boxes, or samples at exact places."""


@dataclass(frozen=True, slots=True)
class PrecisionSummary:
    """How the layers of an ONNX file, its convolutions and fully connected layers, are typed."""

    weight_types: Mapping[str, int]
    """Type, such as FLOAT16 or INT8 -> number of layers with weights of that type."""
    weight_bytes: int
    """Size of all initializers."""
    float_layers: int = 0
    """Layers that are FP32 on purpose, by the file's own metadata; they are in `weight_types` too."""

    @property
    def layers(self) -> int:
        """All layers."""
        return sum(self.weight_types.values())

    @property
    def precision(self) -> Precision | None:
        """The precision of all layers but those in FP32 on purpose, or None when they differ or there are none."""
        names: dict[str, Precision] = {"FLOAT": "fp32", "FLOAT16": "fp16", INT8: "int8", INT8_CPU: "int8-cpu"}
        meant = dict(self.weight_types)
        if set(meant) != {"FLOAT"}:
            meant["FLOAT"] = meant.get("FLOAT", 0) - self.float_layers
        kinds = [kind for kind, count in meant.items() if count]
        return names.get(kinds[0]) if len(kinds) == 1 else None


INT8, INT8_CPU = "INT8", "INT8 by UINT8"
"""Weights and activations: both signed, as TensorRT wants them; or unsigned activations, as CPUs multiply them."""


def convert_to_fp16(source: Path, path: Path, *, float_nodes: Collection[str] = ()) -> PrecisionSummary:
    """Write an FP32 ONNX file in FP16; inputs and outputs keep their types.

    Args:
        source: The FP32 file.
        path: The FP16 file.
        float_nodes: Names of nodes that stay FP32, such as those whose values FP16 cannot hold.

    Raises:
        EngineError: A weight is beyond FP16, or a layer was left in another precision.
    """
    onnx = load_onnx()
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)), strict_mode=True, data_prop=True)
    layers = set(layers_of(model.graph))
    _Caster(onnx, model.graph, between_layers(model.graph) - set(float_nodes)).cast()
    save_as(model, path, precision="fp16", float_layers=layers & set(float_nodes))
    return require_precision(path, "fp16")


def save_as(model: Any, path: Path, *, precision: Precision, float_layers: Collection[str]) -> None:
    """Check a model, name its precision in its metadata, and write it."""
    onnx = load_onnx()
    for entry in model.metadata_props:
        if entry.key == PRECISION_KEY:
            entry.value = precision
    if float_layers:
        model.metadata_props.add(key=FLOAT_LAYERS_KEY, value=json.dumps(sorted(float_layers)))
    onnx.checker.check_model(model, full_check=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def layers_of(graph: Any) -> list[str]:
    """Return the names of an FP32 graph's nodes that have weights, in order."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type in WEIGHTED and node.input[1] in weights]


def between_layers(graph: Any) -> set[str]:
    """Return the names of the layers and of the nodes that follow one and feed one, no frontier in between.

    Args:
        graph: An ONNX graph, its nodes in topological order and each with a name of its own.
    """
    nodes = graph.node
    assert len({node.name for node in nodes}) == len(nodes), "nodes are told apart by name"
    layers = set(layers_of(graph))
    after = _reached(layers, ((node.name, node.op_type, node.input, node.output) for node in nodes))
    before = _reached(layers, ((node.name, node.op_type, node.output, node.input) for node in reversed(nodes)))
    return after & before


def count_precision(path: Path) -> PrecisionSummary:
    """Return how the layers of an ONNX file are typed, whatever the file's name says."""
    onnx = load_onnx()
    model = onnx.load(str(path))
    graph = model.graph
    type_of = {tensor.name: tensor.data_type for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    counts: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type not in WEIGHTED:
            continue
        weight = maker.get(node.input[1])
        if weight is not None and weight.op_type == "DequantizeLinear":
            counts[_integer_kind(onnx, node, maker, type_of)] += 1
        elif node.input[1] in type_of or node.op_type == "Conv":
            counts[onnx.TensorProto.DataType.Name(type_of.get(node.input[1], onnx.TensorProto.UNDEFINED))] += 1
    meant = [json.loads(entry.value) for entry in model.metadata_props if entry.key == FLOAT_LAYERS_KEY]
    size = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)
    return PrecisionSummary(dict(counts), size, len(meant[0]) if meant else 0)


def require_precision(path: Path, precision: Precision) -> PrecisionSummary:
    """Return the census of an ONNX file that has the precision asked for.

    Raises:
        EngineError: It has not.
    """
    census = count_precision(path)
    if census.precision != precision:
        found = ", ".join(f"{count} {name}" for name, count in sorted(census.weight_types.items()))
        raise EngineError(
            f"{path.name} is not {precision} throughout",
            got=f"layer weights {found or 'nowhere'}",
            expected=f"all {census.layers - census.float_layers} in {precision}",
            hint="Export the bundle again.",
        )
    return census


@dataclass
class _Caster:
    """Turns a set of a graph's nodes to FP16 and puts casts where values enter and leave the set."""

    onnx: Any
    graph: Any
    low: set[str]
    """Names of the nodes that become FP16."""
    floats: set[str] = field(init=False)
    """FP32 values of the graph as it was."""
    weights: dict[str, Any] = field(init=False)
    """FP32 initializers by name."""
    made_low: set[str] = field(init=False)
    """FP32 values that a low node makes, and that are FP16 afterwards."""
    known: dict[tuple[str, int], str] = field(default_factory=dict)
    """(value, type) -> name under which the value has that type."""
    nodes: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        graph, float32 = self.graph, self.onnx.TensorProto.FLOAT
        self.weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == float32}
        typed = [*graph.value_info, *graph.input, *graph.output]
        self.floats = {value.name for value in typed if value.type.tensor_type.elem_type == float32}
        self.floats |= set(self.weights)
        self.made_low = {
            name for node in graph.node if node.name in self.low for name in node.output if name in self.floats
        }

    def cast(self) -> None:
        """Rewrite the graph in place."""
        assert not any(output.name in self.made_low for output in self.graph.output), "candidates are decoded in FP32"
        float16, float32 = self.onnx.TensorProto.FLOAT16, self.onnx.TensorProto.FLOAT
        for node in self.graph.node:
            assert not any(attribute.HasField("g") for attribute in node.attribute), "no subgraphs in a detector"
            low = node.name in self.low
            for place, name in enumerate(node.input):
                if name in self.floats:
                    stays = place in ALWAYS_FLOAT32.get(node.op_type, ())
                    node.input[place] = self._as(name, float16 if low and not stays else float32)
            if low and node.op_type == "Cast":
                for attribute in node.attribute:
                    if attribute.name == "to" and attribute.i == float32:
                        attribute.i = float16
            self.nodes.append(node)
        for value in self.graph.value_info:
            if value.name in self.made_low:
                value.type.tensor_type.elem_type = float16
        nodes = list(self.nodes)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._drop_unused_weights()

    def _as(self, name: str, wanted: int) -> str:
        """Return the name under which an FP32 value of the old graph is at hand as `wanted`."""
        float16 = self.onnx.TensorProto.FLOAT16
        if wanted == (float16 if name in self.made_low else self.onnx.TensorProto.FLOAT):
            return name
        if (name, wanted) not in self.known:
            alias = f"{name}_{'fp16' if wanted == float16 else 'fp32'}"
            if name in self.weights:
                self.graph.initializer.append(self._low_weight(name, alias))
            else:
                self.nodes.append(self.onnx.helper.make_node("Cast", [name], [alias], to=wanted, name=f"cast_{alias}"))
            self.known[name, wanted] = alias
        return self.known[name, wanted]

    def _low_weight(self, name: str, alias: str) -> Any:
        values = self.onnx.numpy_helper.to_array(self.weights[name])
        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
        if largest > LARGEST_FP16:
            raise EngineError(
                f"The weight {name} does not fit FP16",
                got=f"a value of {largest:g}",
                expected=f"at most {LARGEST_FP16:g}",
                hint="Leave its node in FP32, or export with precisions=['fp32'].",
            )
        return self.onnx.numpy_helper.from_array(values.astype(np.float16), alias)

    def _drop_unused_weights(self) -> None:
        used = {name for node in self.graph.node for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _integer_kind(onnx: Any, node: Any, maker: Mapping[str, Any], type_of: Mapping[str, int]) -> str:
    """Return what a layer with integer weights multiplies, or what is amiss with it."""
    data, weight = maker.get(node.input[0]), maker[node.input[1]]
    if data is None or data.op_type != "DequantizeLinear":
        return "INT8 by FLOAT"
    kinds = onnx.TensorProto.INT8, onnx.TensorProto.UINT8
    if type_of.get(weight.input[0]) != kinds[0] or type_of.get(data.input[2]) not in kinds:
        return "another integer"
    return INT8 if type_of[data.input[2]] == kinds[0] else INT8_CPU


def _reached(layers: Collection[str], nodes: Iterable[tuple[str, str, Sequence[str], Sequence[str]]]) -> set[str]:
    """Return the names of the layers and of all nodes downstream of one, up to the frontier.

    Args:
        layers: Names of the layers.
        nodes: (name, operator, what it takes, what it gives), in flow order.
    """
    fed: set[str] = set()
    names = set()
    for name, operator, taken, given in nodes:
        if operator in FLOAT_FRONTIER:
            continue
        if name in layers or any(value in fed for value in taken):
            names.add(name)
            fed.update(value for value in given if value)
    return names


def load_onnx() -> Any:
    """Return the package onnx.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import onnx  # noqa: PLC0415
        import onnx.checker  # noqa: PLC0415
        import onnx.shape_inference  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("onnx", extra="export", need="Reading ONNX files") from error
    return onnx
