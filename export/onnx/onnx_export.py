"""A candidate graph becomes model.onnx: one file, free batch and where wanted free tiles, the same bytes every time."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from export.onnx.exportable import ExportableDetector
from ifkd.core.files import atomic_path
from ifkd.core.input_shapes import STEP_PX, InputShapes

OPSET = 20
INPUT_NAME = "tiles"
OUTPUT_NAMES = ("boxes", "scores", "labels")
METADATA_PREFIX = "ifkd."


@dataclass(frozen=True, slots=True)
class OnnxMetadata:
    """What an ONNX file tells of itself where it is found without its bundle."""

    name: str
    """The recipe's name."""
    producer: str
    """Program and version."""
    classes: tuple[str, ...]
    """Class names by label."""
    scale: float
    """Factor from the scene's pixels to the tile's."""
    weights_sha256: str
    """Digest of the checkpoint."""


def export_onnx(graph: ExportableDetector, path: Path, *, max_batch: int, essentials: OnnxMetadata) -> None:
    """Write a graph as ONNX, check it whole, and put it at `path` atomically.

    Nothing in the file depends on the time, the machine or the folder it was made in: equal weights and
    settings give equal bytes.

    Args:
        graph: What to write.
        path: The file.
        max_batch: The largest batch the graph is asked for; with 1 the batch is fixed.
        essentials: Written as `metadata_props`, each key with the prefix `ifkd.`.
    """
    shape, symbols = _symbols(graph, max_batch)
    program = torch.onnx.export(
        graph,
        (torch.zeros(shape, dtype=torch.uint8),),
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
        input_names=[INPUT_NAME],
        output_names=list(OUTPUT_NAMES),
        dynamic_shapes=(symbols,) if symbols else None,
    )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _forget_the_making(model)
    _write_essentials(model, essentials, sizes=graph.sizes, max_batch=max_batch)
    onnx.checker.check_model(model, full_check=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def _symbols(graph: ExportableDetector, max_batch: int) -> tuple[tuple[int, ...], dict[int, Any]]:
    """Return the shape of the tiles that a graph is exported with, and the axes that stay free, each with its symbol.

    The lengths of free axes differ from each other, so that none is taken for another.
    """
    batch, (height, width) = min(2, max_batch), graph.tile_px
    symbols: dict[int, Any] = {}
    if max_batch > 1:
        symbols[0] = torch.export.Dim("batch", min=1, max=max_batch)
    if graph.sizes.sides is not None:
        low, high = (side // STEP_PX for side in graph.sizes.sides)
        for axis, name in ((2, "rows"), (3, "columns")):
            symbols[axis] = STEP_PX * torch.export.Dim(name, min=low, max=high)
        height, width = STEP_PX * high, STEP_PX * (high - 1)
    return (batch, 3, height, width), symbols


def _forget_the_making(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold stack traces with the paths of whoever exported."""
    graph = model.graph
    for part in [*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph, model]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _write_essentials(model: onnx.ModelProto, essentials: OnnxMetadata, *, sizes: InputShapes, max_batch: int) -> None:
    name, _, version = essentials.producer.partition(" ")
    model.producer_name, model.producer_version = name, version
    model.graph.name = essentials.name
    properties = {
        "name": essentials.name,
        "producer": essentials.producer,
        "classes": json.dumps(essentials.classes, ensure_ascii=False),
        "scale": repr(essentials.scale),
        "tile_px": json.dumps(sizes.usual),
        **({} if sizes.sides is None else {"tile_sides_px": json.dumps(sizes.sides)}),
        "max_batch": str(max_batch),
        "weights_sha256": essentials.weights_sha256,
        "precision": "fp32",
    }
    onnx.helper.set_model_props(model, {METADATA_PREFIX + key: value for key, value in properties.items()})
