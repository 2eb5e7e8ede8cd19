"""Integer divisions replaced as some versions of the exporter write them: Cast, Div, Floor and Cast."""

from typing import Any

import onnx

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def with_float_division(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with each division of integers done in FP32."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type != "Div" or types[node.output[0]] != INT64:
            nodes.append(node)
            continue
        quotient = node.output[0]
        parts = [f"{quotient} in floats {number}" for number in range(4)]
        make = onnx.helper.make_node
        nodes += [make("Cast", [name], [part], to=FLOAT) for name, part in zip(node.input, parts, strict=False)]
        nodes.append(make("Div", parts[:2], [parts[2]]))
        nodes.append(make("Floor", [parts[2]], [parts[3]]))
        nodes.append(make("Cast", [parts[3]], [quotient], to=INT64))
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    onnx.checker.check_model(changed, full_check=True)
    return changed
