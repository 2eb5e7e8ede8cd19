"""Export of a detector to ONNX: one file with a dynamic batch axis and, if configured, dynamic tile sizes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset20
from torch import Tensor, nn

from export.onnx.exportable import ExportableDetector
from export.precision.integer_indices import require_integer_indices
from ifkd.core.files import atomic_path
from ifkd.core.input_shapes import STEP_PX, InputShapes

OPSET = 20
"""Version of the operators; `opset20` above belongs to it."""
INPUT_NAME = "tiles"
METADATA_PREFIX = "ifkd."


@dataclass(frozen=True, slots=True)
class OnnxMetadata:
    """Properties written into an ONNX file, for use without its bundle."""

    name: str
    """Name of the recipe."""
    producer: str
    """Program and version."""
    classes: tuple[str, ...]
    scale: float
    """Factor from the scene's pixels to the tile's."""
    weights_sha256: str


def export_onnx(model: ExportableDetector, path: Path, *, max_batch: int, metadata: OnnxMetadata) -> None:
    """Export a model to ONNX, check it and write it atomically; a `max_batch` of 1 makes the batch axis static.

    The file does not depend on the time, the machine or the folder: the same weights and settings give the same bytes.
    """
    shape, dynamic_axes = _input_shape(model, max_batch)
    tiles = torch.zeros(shape, dtype=torch.uint8)
    proto = export_graph(model, tiles, inputs=[INPUT_NAME], outputs=model.output_names, dynamic_axes=dynamic_axes)
    _write_metadata(proto, metadata, shapes=model.sizes, max_batch=max_batch)
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def export_graph(
    model: nn.Module,
    example: Tensor,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_axes: dict[int, Any] | None = None,
) -> onnx.ModelProto:
    """Return the checked ONNX model of a module with one input; `dynamic_axes` are axis -> `torch.export.Dim`.

    Raises:
        EngineError: The exporter computes indices in floating point.
    """
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=(dynamic_axes,) if dynamic_axes else None,
        custom_translation_table={torch.ops.aten.floor_divide.default: _divide_indices},
    )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    _remove_exporter_notes(proto)
    onnx.checker.check_model(proto, full_check=True)
    require_integer_indices(proto)
    return proto


def _divide_indices(index: Any, divisor: Any) -> Any:
    """Return `index // divisor` of integers that are not negative; some versions of the exporter divide floats."""
    return opset20.Div(index, divisor)


def _input_shape(model: ExportableDetector, max_batch: int) -> tuple[tuple[int, ...], dict[int, Any]]:
    """Return the shape of the example input, and the dynamic axes with their symbols.

    All dynamic axes of the example differ in length, so that torch does not treat two of them as one.
    """
    batch, (height, width) = min(2, max_batch), model.tile_px
    dynamic_axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=max_batch)} if max_batch > 1 else {}
    if model.sizes.side_range is not None:
        low, high = (side // STEP_PX for side in model.sizes.side_range)
        for axis, name in ((2, "rows"), (3, "columns")):
            dynamic_axes[axis] = STEP_PX * torch.export.Dim(name, min=low, max=high)
        height, width = STEP_PX * high, STEP_PX * (high - 1)
    return (batch, 3, height, width), dynamic_axes


def _remove_exporter_notes(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which contain stack traces with paths of this machine."""
    graph = proto.graph
    for part in [*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph, proto]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _write_metadata(proto: onnx.ModelProto, metadata: OnnxMetadata, *, shapes: InputShapes, max_batch: int) -> None:
    proto.producer_name, _, proto.producer_version = metadata.producer.partition(" ")
    proto.graph.name = metadata.name
    properties = {
        "name": metadata.name,
        "producer": metadata.producer,
        "classes": json.dumps(metadata.classes, ensure_ascii=False),
        "scale": repr(metadata.scale),
        "tile_px": json.dumps(shapes.opt),
        **({} if shapes.side_range is None else {"tile_sides_px": json.dumps(shapes.side_range)}),
        "max_batch": str(max_batch),
        "weights_sha256": metadata.weights_sha256,
        "precision": "fp32",
    }
    onnx.helper.set_model_props(proto, {METADATA_PREFIX + key: value for key, value in properties.items()})
