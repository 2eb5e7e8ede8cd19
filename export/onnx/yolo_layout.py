"""The FP32 file with the input and the output of a YOLO, for QGIS, WebODM and other programs that read this layout.

Nodes before the graph convert float32 RGB to the uint8 tiles that it expects; nodes after it convert its candidates to
one array: center, width and height of each box, then a score per class, 0 for all classes but the candidate's.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from export.bundle.manifest import TensorParity
from export.onnx.tensor_parity import TOLERANCES, compare_candidates, onnx_candidates
from export.precision.integer_indices import require_integer_indices
from export.precision.ort_session import open_session
from ifkd.core.detections import Array, Candidates
from ifkd.core.files import atomic_path, sha256_of
from ifkd.core.input_shapes import STEP_PX
from ifkd.core.postprocess import PostprocessConfig
from ifkd.recipe import Recipe

OPSET, IR_VERSION = 17, 8
"""The newest versions that ONNX Runtime 1.12 loads, the oldest release that Deepness installs."""
ANCHORS_PER_STEP = 4**2 + 2**2 + 1
"""Anchors of a YOLO in a square of `STEP_PX`: one per cell of its levels, which have strides of 8, 16 and 32 px."""
INPUT_NODES = """
yolo_input (float[{batch}, 3, {side}, {side}] images) => (uint8[{batch}, 3, {side}, {side}] tiles)
<float yolo_black = {{0}}, float yolo_white = {{255}}>
{{
  yolo_values = Mul(images, yolo_white)
  yolo_rounded = Round(yolo_values)
  yolo_clipped = Clip(yolo_rounded, yolo_black, yolo_white)
  tiles = Cast<to = 2>(yolo_clipped)
}}
"""
# The batch size of the output has no name: Ultralytics would resize images to its default size if it had one.
OUTPUT_NODES = """
yolo_output (float[{batch}, n, 4] boxes, float[{batch}, n] scores, int64[{batch}, n] labels)
  => (float[?, {rows}, {k}] output0)
<int64[1] yolo_k = {{{k}}}, int64[1] yolo_one = {{1}}, int64[1] yolo_two = {{2}}, float yolo_zero = {{0}},
 float yolo_half = {{0.5}}, int64[1, {classes}, 1] yolo_classes = {{{labels}}}>
{{
  yolo_scores, yolo_best = TopK(scores, yolo_k)
  yolo_labels = GatherElements<axis = 1>(labels, yolo_best)
  yolo_index = Unsqueeze(yolo_best, yolo_two)
  yolo_boxes = GatherND<batch_dims = 1>(boxes, yolo_index)
  yolo_corners = Transpose<perm = [0, 2, 1]>(yolo_boxes)
  yolo_low, yolo_high = Split<axis = 1>(yolo_corners)
  yolo_sum = Add(yolo_low, yolo_high)
  yolo_center = Mul(yolo_sum, yolo_half)
  yolo_extent = Sub(yolo_high, yolo_low)
  yolo_label_row = Unsqueeze(yolo_labels, yolo_one)
  yolo_score_row = Unsqueeze(yolo_scores, yolo_one)
  yolo_of_class = Equal(yolo_label_row, yolo_classes)
  yolo_class_scores = Where(yolo_of_class, yolo_score_row, yolo_zero)
  output0 = Concat<axis = 1>(yolo_center, yolo_extent, yolo_class_scores)
}}
"""


def yolo_metadata(recipe: Recipe, classes: Sequence[str], *, score_threshold: float) -> dict[str, str]:
    """Return the metadata that Deepness and GeoDeep read, as JSON, and that Ultralytics reads, as Python literals.

    Without `export.gsd_m`, there is no `resolution`, and each program uses its own default. The boxes of the layout are
    upright, so those of an oriented detector are suppressed by the default for upright ones.
    """
    side, options = recipe.data.tile_px, recipe.export
    suppression = PostprocessConfig() if recipe.student.detector.oriented else recipe.postprocess
    for_maps = {
        "model_type": "Detector",
        "det_type": "YOLO_v9",  # of the types with this layout, the only one for which Deepness decodes whole batches
        "class_names": {str(label): name for label, name in enumerate(classes)},
        "tile_size": side,  # the key that Deepness reads
        "tiles_size": side,  # the key that its documentation names
        "tiles_overlap": min(99, math.ceil(100 * options.overlap_px / side)),
        "det_conf": score_threshold,
        "det_iou_thresh": suppression.iou_threshold,
        **({} if options.gsd_m is None else {"resolution": 100 * options.gsd_m / recipe.data.scale}),
    }
    for_ultralytics = {
        "task": "detect",
        "names": dict(enumerate(classes)),
        "stride": STEP_PX,
        "imgsz": [side, side],
        "batch": options.max_batch,
    }
    json_texts = {key: json.dumps(value) for key, value in for_maps.items()}
    return json_texts | {key: str(value) for key, value in for_ultralytics.items()}


def write_yolo_layout(source: Path, path: Path, *, side: int, metadata: Mapping[str, str]) -> None:
    """Write the FP32 file `source` in the layout of a YOLO, for square tiles of `side` pixels, and check it.

    The input is float32 [batch, 3, side, side], RGB from 0 to 1; the output is float32 [batch, 4 + classes, k], by
    descending score. k is at most the number of a YOLO's anchors: GeoLibre recognizes the layout by this number, and
    Deepness filters the candidates one by one in Python.
    """
    model = onnx.load(str(source))
    graph, labels = model.graph, list(json.loads(metadata["class_names"]))
    batch, candidates = graph.output[1].type.tensor_type.shape.dim
    values = {
        "batch": batch.dim_param or batch.dim_value,
        "side": side,
        "k": min(candidates.dim_value, ANCHORS_PER_STEP * (side // STEP_PX) ** 2),
        "rows": 4 + len(labels),
        "classes": len(labels),
        "labels": ", ".join(labels),
    }
    before, after = (onnx.parser.parse_graph(text.format(**values)) for text in (INPUT_NODES, OUTPUT_NODES))
    _convert_to_opset(model)
    nodes = [*before.node, *graph.node, *after.node]
    for field in ("node", "input", "output", "value_info"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    graph.input.extend(before.input)
    graph.output.extend(after.output)
    graph.initializer.extend([*before.initializer, *after.initializer])
    model.metadata_props.extend(onnx.StringStringEntryProto(key=key, value=text) for key, text in metadata.items())
    onnx.checker.check_model(model, full_check=True)
    require_integer_indices(model)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def yolo_candidates(path: Path, tiles: Array) -> Candidates:
    """Run a file in the layout of a YOLO on tiles, uint8 [tiles, 3, side, side], and return its candidates."""
    session = open_session(path)
    output = np.concatenate([session.run(None, {"images": tile[None] / np.float32(255)})[0] for tile in tiles])
    center, extent, scores = np.split(output.transpose(0, 2, 1), (2, 4), axis=2)
    boxes = np.concatenate([center - extent / 2, center + extent / 2], axis=2)
    return Candidates(boxes, scores.max(axis=2), scores.argmax(axis=2))


def check_yolo_layout(path: Path, source: Path, tiles: Array) -> TensorParity:
    """Compare the candidates of a file in the layout of a YOLO with the best of the FP32 file that it is made from."""
    found, every = yolo_candidates(path, tiles), onnx_candidates(source, tiles)
    best = np.argsort(-every.scores, axis=1, kind="stable")[:, : found.scores.shape[1]]
    boxes = np.take_along_axis(every.boxes, best[:, :, None], axis=1)
    scores, labels = (np.take_along_axis(values, best, axis=1) for values in (every.scores, every.labels))
    # The lowest candidate and those of score 0, which have no label in this layout, are not compared. The scores are of
    # the same graph, so no others are close to the cut, even where all scores of a new detector are nearly equal.
    groups, reference = [(best.shape[1], True)], Candidates(boxes, scores, labels)
    tolerance = replace(TOLERANCES["fp32"], cut_margin=0.0)
    parity = compare_candidates(reference, found, groups=groups, tolerance=tolerance)
    return parity.model_copy(update={"reference": source.name, "onnx_sha256": sha256_of(path)})


def _convert_to_opset(model: Any) -> None:
    """Convert the operators whose form changed after `OPSET`; the checker refuses what this does not convert."""
    graph, versions = model.graph, (model.opset_import[0].version, OPSET)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "ReduceMax" and len(node.input) == 2:
            axes = numpy_helper.to_array(initializers[node.input.pop()])
            node.attribute.append(onnx.helper.make_attribute("axes", axes.tolist()))
        if node.op_type == "GridSample":
            modes = [attribute for attribute in node.attribute if attribute.s == b"linear"]
            for mode in modes:
                mode.s = b"bilinear"
        new, old = (onnx.defs.get_schema(node.op_type, version).attributes for version in versions)
        for attribute in list(node.attribute):
            if attribute.name not in old and attribute == new[attribute.name].default_value:
                node.attribute.remove(attribute)
    used = {name for node in graph.node for name in node.input}
    graph.ClearField("initializer")
    graph.initializer.extend(tensor for name, tensor in initializers.items() if name in used)
    model.opset_import[0].version, model.ir_version = OPSET, IR_VERSION
