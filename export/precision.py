"""The precision of an ONNX file: the FP16 copy of an FP32 file, and the count that proves what was delivered.

Precision is a property of the file, not a flag of a builder: TensorRT-RTX and TensorRT 11 know strongly typed
networks only. FP16 is everything between the first and the last convolution. What comes before (the
normalisation of 0 to 255) and after (top-k, sigmoid, box decoding) stays FP32: it costs next to nothing, and in
FP16 neighbouring scores tie and a box at pixel 1500 moves in steps of a whole pixel. The file is cast here and not
by ONNX Runtime's converter, which sends every value between two FP32 nodes through FP16 as well.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export.manifest import Precision
from ifkd.errors import EngineError, MissingExtraError
from ifkd.files import atomic_path

PRECISION_KEY = "ifkd.precision"
LARGEST_FP16 = float(np.finfo(np.float16).max)
ALWAYS_FLOAT32 = {"Resize": (1, 2)}
"""Operator -> inputs that are FP32 whatever the data's type (regions and scales)."""


@dataclass(frozen=True, slots=True)
class Census:
    """How the convolutions of an ONNX file are typed."""

    weight_types: Mapping[str, int]
    """ONNX type name, such as FLOAT16 -> number of convolutions with weights of that type."""
    weight_bytes: int
    """Size of all initialisers."""

    @property
    def convolutions(self) -> int:
        """All convolutions."""
        return sum(self.weight_types.values())

    @property
    def precision(self) -> Precision | None:
        """The precision of all convolutions, or None when they differ or there are none."""
        names: dict[str, Precision] = {"FLOAT": "fp32", "FLOAT16": "fp16"}
        return names.get(next(iter(self.weight_types))) if len(self.weight_types) == 1 else None


def convert_to_fp16(source: Path, path: Path) -> Census:
    """Write an FP32 ONNX file in FP16; inputs and outputs keep their types.

    Raises:
        EngineError: A weight is beyond FP16, or a convolution was left in another precision.
    """
    onnx = _onnx()
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)), strict_mode=True, data_prop=True)
    _Caster(onnx, model.graph, between_convolutions(model.graph.node)).cast()
    for entry in model.metadata_props:
        if entry.key == PRECISION_KEY:
            entry.value = "fp16"
    onnx.checker.check_model(model, full_check=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    return require_precision(path, "fp16")


def between_convolutions(nodes: Sequence[Any]) -> set[str]:
    """Return the names of the convolutions and of the nodes that both follow one and feed one.

    Args:
        nodes: ONNX nodes in topological order, each with a name of its own.
    """
    assert len({node.name for node in nodes}) == len(nodes), "nodes are told apart by name"
    after = _reached((node.name, node.op_type, node.input, node.output) for node in nodes)
    before = _reached((node.name, node.op_type, node.output, node.input) for node in reversed(nodes))
    return after & before


def count_precision(path: Path) -> Census:
    """Return how the convolutions of an ONNX file are typed, whatever the file's name says."""
    onnx = _onnx()
    graph = onnx.load(str(path)).graph
    type_of = {tensor.name: tensor.data_type for tensor in graph.initializer}
    counts = Counter(
        onnx.TensorProto.DataType.Name(type_of.get(node.input[1], onnx.TensorProto.UNDEFINED))
        for node in graph.node
        if node.op_type == "Conv"
    )
    return Census(dict(counts), sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer))


def require_precision(path: Path, precision: Precision) -> Census:
    """Return the census of an ONNX file that has the precision asked for.

    Raises:
        EngineError: It has not.
    """
    census = count_precision(path)
    if census.precision != precision:
        found = ", ".join(f"{count} {name}" for name, count in sorted(census.weight_types.items()))
        raise EngineError(
            f"{path.name} is not {precision} throughout",
            got=f"convolution weights {found or 'nowhere'}",
            expected=f"all {census.convolutions} in {precision}",
            mend="Export the bundle again.",
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
    """FP32 initialisers by name."""
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
                mend="Export with precisions=['fp32'].",
            )
        return self.onnx.numpy_helper.from_array(values.astype(np.float16), alias)

    def _drop_unused_weights(self) -> None:
        used = {name for node in self.graph.node for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _reached(nodes: Iterable[tuple[str, str, Sequence[str], Sequence[str]]]) -> set[str]:
    """Return the names of the convolutions and of all nodes downstream of one.

    Args:
        nodes: (name, operator, what it takes, what it gives), in flow order.
    """
    fed: set[str] = set()
    names = set()
    for name, operator, taken, given in nodes:
        if operator == "Conv" or any(value in fed for value in taken):
            names.add(name)
            fed.update(value for value in given if value)
    return names


def _onnx() -> Any:
    try:
        import onnx  # noqa: PLC0415
        import onnx.checker  # noqa: PLC0415
        import onnx.shape_inference  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("onnx", extra="export", need="Reading ONNX files") from error
    return onnx
