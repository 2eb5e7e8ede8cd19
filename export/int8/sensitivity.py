"""Search for layers to keep in float so that an INT8 file meets the limit of its mAP loss.

If all layers in INT8 lose too much mAP, layers are ranked by the error that each causes alone. The 1, 2, 4, … most
sensitive layers then stay in float until the loss is within the limit.
"""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx

from export.bundle.manifest import CalibrationRecord, QuantizationRecord, QuantizationStep
from export.int8.calibration_tiles import ValidationTiles
from export.int8.quantize import Quantizer
from export.precision.onnx_files import run_model
from ifkd.core.detections import Array
from ifkd.core.errors import VerdictError
from ifkd.core.progress import track
from ifkd.data.metrics import Metrics

RANKING_TILES = 4
"""Number of tiles on which the error of a layer is measured."""
GRID_OPERATOR = "GridSample"
"""Operator that pools the regions of a two-stage detector; its second input is the sampling grid."""
SamplingGrids: TypeAlias = list[Array]
"""Sampling grids of one tile, by node."""
MAX_HEAD_ERROR = 0.5
"""Largest relative error of the head's outputs; the output of a file beyond is random."""


def quantize_within_limit(
    quantizer: Quantizer,
    source: Path,
    path: Path,
    *,
    tiles: ValidationTiles,
    calibration: CalibrationRecord,
    max_map_loss: float,
) -> QuantizationRecord:
    """Write an INT8 file of the FP32 file `source` whose loss of mAP (0 to 1) is within a limit; return its record.

    Raises:
        VerdictError: The limit is exceeded with half of the layers in float, or the output of the head is random.
    """
    reference = tiles.evaluate(source)
    ranking: list[tuple[str, float]] = []
    kept: list[str] = []
    search: list[QuantizationStep] = []
    count, at_maximum, max_float_layers = 0, False, len(quantizer.layers) // 2
    while True:
        quantizer.write(path, float_layers=kept)
        metrics = tiles.evaluate(path)
        loss = map_loss_of(reference, metrics)
        search.append(QuantizationStep(float_layers=len(kept), mean_ap=metrics.mean_ap, map_loss=loss))
        if loss is None or loss <= max_map_loss or at_maximum or (ranking and count >= len(ranking)):
            break
        if not ranking:
            ranking = rank_layers(quantizer, source, tiles.pixels[:RANKING_TILES])
        count = 2 * count or 1
        kept, at_maximum = _most_sensitive(ranking[:count], quantizer.weight_groups, max_float_layers)
    layers, ranked = quantizer.last_layers, tiles.pixels[:RANKING_TILES]
    outputs = layer_outputs(path, layers, ranked, grids=sampling_grids(source, ranked))
    head_error = relative_error(layer_outputs(source, layers, ranked), outputs)
    record = QuantizationRecord(
        calibration=calibration,
        layers=len(quantizer.layers),
        float_layers=tuple(kept),
        sensitivity={name: round(error, 6) for name, error in ranking},
        search=tuple(search),
        max_map_loss=max_map_loss,
        map_loss=loss,
        per_class_loss=per_class_loss_of(reference, metrics),
        head_error=head_error,
        passed=(loss is None or loss <= max_map_loss) and head_error <= MAX_HEAD_ERROR,
    )
    if not record.passed:
        raise VerdictError(
            f"{path.name} is too inaccurate",
            got=f"a loss of mAP of {'n/a' if loss is None else f'{loss:.4f}'} with {len(kept)} of {record.layers} "
            f"layers in float, and a relative error of {head_error:.3f} of the head's outputs",
            expected=f"at most {max_map_loss:g} and {MAX_HEAD_ERROR:g}",
            hint="Remove this precision, calibrate on more tiles or by another export.calibration.method, or, for "
            "processors with VNNI only, set export.calibration.reduce_range=false.",
        )
    return record


def rank_layers(
    quantizer: Quantizer, source: Path, tiles: Array, *, names: Sequence[str] | None = None
) -> list[tuple[str, float]]:
    """Return layers and the error of the head's outputs if only this layer is INT8, in descending order.

    Layers with the same weight are quantized together; the first of them represents the group. By default, all layers
    of the FP32 file `source` but the last ones are ranked. `tiles` are uint8 [tiles, 3, height, width].
    """
    if names is None:
        names = [name for name in quantizer.layers if name not in quantizer.last_layers]
    groups = list(dict.fromkeys(quantizer.weight_groups[name][0] for name in names))
    reference, grids = layer_outputs(source, quantizer.last_layers, tiles), sampling_grids(source, tiles)
    errors = []
    with tempfile.TemporaryDirectory(prefix="ifkd.ranking.") as folder:
        path = Path(folder) / "alone.onnx"
        for name in track(groups, "ranking layers", total=len(groups)):
            quantizer.write(path, float_layers=set(quantizer.layers) - set(quantizer.weight_groups[name]))
            outputs = layer_outputs(path, quantizer.last_layers, tiles, grids=grids)
            errors.append((name, relative_error(reference, outputs)))
    return sorted(errors, key=lambda pair: (-pair[1], pair[0]))


def layer_outputs(
    path: Path, layers: Collection[str], tiles: Array, *, grids: Sequence[SamplingGrids] = ()
) -> list[Array]:
    """Return the outputs of some layers of an ONNX file for all tiles, uint8 [tiles, 3, height, width].

    The sampling grids of each tile, if given, replace those of the file's own proposals.
    """
    model = onnx.load(str(path))
    output_of = {node.name: node.output[0] for node in model.graph.node}
    names = [output_of[layer] for layer in layers]
    samplers = [node for node in model.graph.node if node.op_type == GRID_OPERATOR]
    for number, node in enumerate(samplers if grids else ()):
        node.input[1] = f"grid_{number}"
        model.graph.input.append(onnx.helper.make_tensor_value_info(node.input[1], onnx.TensorProto.FLOAT, None))
    grid_inputs = [{f"grid_{number}": grid for number, grid in enumerate(one)} for one in grids] or [{}] * len(tiles)
    inputs = [{"tiles": tile[None], **grid_input} for tile, grid_input in zip(tiles, grid_inputs, strict=True)]
    return [np.concatenate(outputs) for outputs in zip(*run_model(model, names, inputs), strict=True)]


def sampling_grids(path: Path, tiles: Array) -> list[SamplingGrids]:
    """Return the sampling grids of an ONNX file for each tile; empty for a one-stage detector.

    Small errors change the order of the proposals. Two files can be compared region by region only with the same grids.
    """
    model = onnx.load(str(path))
    names = [node.input[1] for node in model.graph.node if node.op_type == GRID_OPERATOR]
    return run_model(model, names, [{"tiles": tile[None]} for tile in tiles]) if names else []


def relative_error(reference: Sequence[Array], other: Sequence[Array]) -> float:
    """Return the mean over arrays of the RMS error divided by the standard deviation of the reference."""
    errors = []
    for this, that in zip(reference, other, strict=True):
        deviation = float(np.sqrt(np.mean((this - this.mean()) ** 2)))
        errors.append(float(np.sqrt(np.mean((that - this) ** 2))) / max(deviation, 1e-12))
    return float(np.mean(errors))


def map_loss_of(reference: Metrics, metrics: Metrics) -> float | None:
    """Return the loss of mAP on the same data; None without objects."""
    if reference.mean_ap is None or metrics.mean_ap is None:
        return None
    return reference.mean_ap - metrics.mean_ap


def per_class_loss_of(reference: Metrics, metrics: Metrics) -> dict[str, float]:
    """Return the loss of AP of each class with objects."""
    before = {name: one.mean_ap for name, one in reference.per_class.items() if one.mean_ap is not None}
    return {name: value - (metrics.per_class[name].mean_ap or 0.0) for name, value in before.items()}


def _most_sensitive(
    ranking: Sequence[tuple[str, float]], weight_groups: Mapping[str, tuple[str, ...]], max_layers: int
) -> tuple[list[str], bool]:
    """Return the layers of a ranking with their weight groups, and whether the maximum is reached."""
    kept: dict[str, None] = {}
    for name, _ in ranking:
        more = kept | dict.fromkeys(weight_groups[name])
        if len(more) > max_layers:
            return list(kept), True
        kept = more
    return list(kept), len(kept) == max_layers
