"""Which layers may become INT8: all, unless mAP falls; then those that hurt most stay in float, as few as do.

Layers are ranked by the error that each makes alone. Then more and more of them, worst first, stay in float until
the loss of mAP is within its limit; every step is kept as a point of the curve.
"""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from export.bundle.manifest import CalibrationRecord, QuantizationRecord, QuantizationStep
from export.int8.calibration import LabeledTiles
from export.int8.quantize import Quantizer, head_outputs
from export.precision.fp16 import load_onnx
from export.precision.ort_session import open_session
from ifkd.core.detections import Array
from ifkd.core.errors import VerdictError
from ifkd.core.progress import progress
from ifkd.data.metrics import Metrics

RANKED_ON = 4
"""Tiles on which the error of a layer is measured."""
SAMPLER = "GridSample"
"""The operator by which a second stage looks at places of the pyramid, its second input."""
Places: TypeAlias = list[Array]
"""Of one tile: the second input of each such operator."""
LARGEST_NOISE = 0.5
"""Largest error of the head's values as a share of the values themselves; beyond, a file answers at random."""


def quantize_within(
    quantizer: Quantizer, source: Path, path: Path, *, images: LabeledTiles, record: CalibrationRecord, limit: float
) -> QuantizationRecord:
    """Write an INT8 copy that loses at most `limit` of mAP, and return how it came to be.

    Args:
        quantizer: Of the FP32 file.
        source: The FP32 file.
        path: The INT8 file.
        images: What mAP is measured on.
        record: What the ranges were found on.
        limit: Largest loss of mAP, 0 to 1.

    Raises:
        VerdictError: Not even with half of the layers in float does it hold, or the head's values are noise.
    """
    reference = images.score(source)
    ranking: list[tuple[str, float]] = []
    kept: list[str] = []
    count, full = 0, False
    curve: list[QuantizationStep] = []
    allowed = len(quantizer.layers) // 2
    while True:
        quantizer.write(path, float_layers=kept)
        metrics = images.score(path)
        loss = reference.mean_ap - metrics.mean_ap
        curve.append(QuantizationStep(float_layers=len(kept), mean_ap=metrics.mean_ap, map_loss=loss))
        if loss <= limit or full or (ranking and count >= len(ranking)):
            break
        if not ranking:
            ranking = rank_layers(quantizer, source, images.tiles[:RANKED_ON])
        count = 2 * count or 1
        kept, full = _worst(ranking[:count], quantizer.sharing, allowed)
    noise = _noise(source, path, quantizer.last_layers, images.tiles[:RANKED_ON])
    answer = QuantizationRecord(
        calibration=record,
        layers=len(quantizer.layers),
        float_layers=tuple(kept),
        ranking={name: round(error, 6) for name, error in ranking},
        curve=tuple(curve),
        max_map_loss=limit,
        map_loss=curve[-1].map_loss,
        per_class_loss=per_class_loss(reference, metrics),
        noise=noise,
        passed=curve[-1].map_loss <= limit and noise <= LARGEST_NOISE,
    )
    if not answer.passed:
        raise VerdictError(
            f"{path.name} is not worth it",
            got=f"a loss of mAP of {answer.map_loss:.4f} with {len(kept)} of {answer.layers} layers in float, "
            f"and an error of {noise:.3f} of the head's values",
            expected=f"at most {limit:g} and {LARGEST_NOISE:g}",
            hint="Leave this precision out, calibrate on more tiles, by another export.calibration.method, or, for "
            "processors with VNNI alone, with export.calibration.reduce_range=false.",
        )
    return answer


def rank_layers(
    quantizer: Quantizer, source: Path, tiles: Array, *, among: Sequence[str] | None = None
) -> list[tuple[str, float]]:
    """Return layers and the error that each makes alone in the head's values, the worst first.

    Layers that share a weight make one error together, and the first of them stands for all.

    Args:
        quantizer: Of the FP32 file.
        source: The FP32 file.
        tiles: uint8 [tiles, 3, height, width].
        among: Names of layers; by default all but the head's last.
    """
    names = [name for name in quantizer.layers if name not in quantizer.last_layers] if among is None else among
    own = list(dict.fromkeys(quantizer.sharing[name][0] for name in names))
    reference, places = head_values(source, quantizer.last_layers, tiles), places_of(source, tiles)
    found = []
    with tempfile.TemporaryDirectory(prefix="ifkd.ranking.") as folder, progress(len(own), "ranking layers") as bar:
        path = Path(folder) / "alone.onnx"
        for name in own:
            quantizer.write(path, float_layers=set(quantizer.layers) - set(quantizer.sharing[name]))
            values = head_values(path, quantizer.last_layers, tiles, places=places)
            found.append((name, relative_error(reference, values)))
            bar.update()
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def head_values(path: Path, last: Collection[str], tiles: Array, *, places: Sequence[Places] = ()) -> list[Array]:
    """Return what the last layers of an ONNX file give for some tiles, before any choice is made among them.

    Args:
        path: The file.
        last: Names of the layers.
        tiles: uint8 [tiles, 3, height, width].
        places: Where the second stage looks, tile by tile; by default where the file's own proposals are.
    """
    onnx = load_onnx()
    model = onnx.load(str(path))
    names = head_outputs(model.graph, list(last))
    samplers = [node for node in model.graph.node if node.op_type == SAMPLER]
    for number, node in enumerate(samplers if places else ()):
        node.input[1] = f"places_{number}"
        given = onnx.helper.make_tensor_value_info(node.input[1], onnx.TensorProto.FLOAT, None)
        model.graph.input.append(given)
    feeds = [{f"places_{number}": grid for number, grid in enumerate(one)} for one in places] or [{}] * len(tiles)
    answers = _probe(model, names, [{"tiles": tile[None], **feed} for tile, feed in zip(tiles, feeds, strict=True)])
    return [np.concatenate([answer[index] for answer in answers]) for index in range(len(names))]


def places_of(path: Path, tiles: Array) -> list[Places]:
    """Return where the second stage of an ONNX file looks in each tile; nowhere in a detector of one stage.

    A file that is a little off has its proposals in another order, or others. Two files can be compared region by
    region only when both look at the same places.
    """
    model = load_onnx().load(str(path))
    names = [node.input[1] for node in model.graph.node if node.op_type == SAMPLER]
    return _probe(model, names, [{"tiles": tile[None]} for tile in tiles]) if names else []


def relative_error(reference: Sequence[Array], other: Sequence[Array]) -> float:
    """Return the mean over values of |other - reference| / |reference - mean|, by root mean squares; 0 is no error."""
    shares = []
    for this, that in zip(reference, other, strict=True):
        spread = float(np.sqrt(np.mean((this - this.mean()) ** 2)))
        error = float(np.sqrt(np.mean((that - this) ** 2)))
        shares.append(error / max(spread, 1e-12) if error else 0.0)
    return float(np.mean(shares))


def _worst(
    ranking: Sequence[tuple[str, float]], sharing: Mapping[str, tuple[str, ...]], allowed: int
) -> tuple[list[str], bool]:
    """Return the layers of a ranking with all that share their weights, and whether more would be too many."""
    kept: dict[str, None] = {}
    for name, _ in ranking:
        more = kept | dict.fromkeys(sharing[name])
        if len(more) > allowed:
            return list(kept), True
        kept = more
    return list(kept), len(kept) == allowed


def _noise(source: Path, path: Path, last: Collection[str], tiles: Array) -> float:
    places = places_of(source, tiles)
    return relative_error(head_values(source, last, tiles), head_values(path, last, tiles, places=places))


def _probe(model: Any, names: Sequence[str], feeds: Sequence[dict[str, Array]]) -> list[list[Array]]:
    """Return the values of these names, for each feed; nothing else is computed."""
    onnx = load_onnx()
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with tempfile.TemporaryDirectory(prefix="ifkd.probe.") as folder:
        path = Path(folder) / "probe.onnx"
        path.write_bytes(model.SerializeToString())
        session = open_session(path)
    known = {given.name for given in session.get_inputs()}
    return [session.run(list(names), {name: feed[name] for name in known}) for feed in feeds]


def per_class_loss(reference: Metrics, metrics: Metrics) -> dict[str, float]:
    """Return how much less AP each class has than in the reference; classes without objects are left out."""
    return {
        name: one.mean_ap - (metrics.per_class[name].mean_ap or 0.0)
        for name, one in reference.per_class.items()
        if one.mean_ap is not None
    }
