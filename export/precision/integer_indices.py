"""Check that an ONNX file computes indices in integers.

An exporter can turn an integer division into Cast, Div, Floor and Cast. Float32 has all integers up to 2^24 only, and a
runtime that multiplies by the reciprocal is wrong for smaller ones, too: candidates get labels and boxes of others.
"""

from typing import Any

import onnx

from ifkd.core.errors import EngineError

TYPES = onnx.TensorProto
FLOATS = {TYPES.FLOAT, TYPES.FLOAT16, TYPES.BFLOAT16, TYPES.DOUBLE}
INTEGERS = {TYPES.INT64, TYPES.INT32, TYPES.INT16, TYPES.UINT64, TYPES.UINT32, TYPES.UINT16}
INDEX_OUTPUTS = {"TopK": 1, "ArgMax": 0, "ArgMin": 0, "NonZero": 0, "NonMaxSuppression": 0}
"""Operator -> its output of indices."""
LENGTHS = ("Shape", "Size")
"""Operators whose output does not depend on the values of the input."""
POSITION_INPUTS = {
    "Gather": 1,
    "GatherElements": 1,
    "GatherND": 1,
    "ScatterElements": 1,
    "ScatterND": 1,
    "Expand": 1,
    "Reshape": 1,
    "ConstantOfShape": 0,
}
"""Operator -> its input of indices or lengths, which say where values go and do not become values."""


def require_integer_indices(model: Any) -> None:
    """Raise an EngineError if a model computes indices in floating point.

    Indices are integers that depend on the output of an operator such as TopK; they may not become floats. Other
    integers, such as the sides of a tile, may, but a float that depends on integers alone may not become an integer.
    """
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    variable = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    indices: set[str] = set()
    of_integers: set[str] = set()
    """Floats that depend on integers alone."""
    wrong = []
    for node in graph.node:
        inputs = variable.intersection(node.input)
        variable.update(node.output if inputs else ())
        position = node.input[POSITION_INPUTS[node.op_type]] if node.op_type in POSITION_INPUTS else None
        values = inputs - {position}
        for number, name in enumerate(node.output):
            if types.get(name) in INTEGERS and node.op_type not in LENGTHS:
                if INDEX_OUTPUTS.get(node.op_type) == number or inputs & indices:
                    indices.add(name)
                elif values & of_integers:
                    wrong.append(node.name or name)
            elif types.get(name) in FLOATS and values:
                if values & indices:
                    wrong.append(node.name or name)
                elif all(types.get(value) in INTEGERS or value in of_integers for value in values):
                    of_integers.add(name)
    if wrong:
        hint = "Export with another version of torch and onnxscript."
        problem = "The exported graph computes indices in floating point, which is exact for small ones only"
        raise EngineError(problem, got=f"the nodes {', '.join(wrong)}", expected="integers", hint=hint)
