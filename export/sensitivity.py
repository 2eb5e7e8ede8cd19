"""Which layers may become INT8: all, unless mAP falls; then those that hurt most stay in float, as few as do.

Layers are ranked by the error that each makes alone. Then more and more of them, worst first, stay in float until
the loss of mAP is within its limit; every step is kept as a point of the curve.
"""

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from export.calibration import LabelledTiles
from export.manifest import CalibrationRecord, QuantisationRecord, QuantisationStep
from export.precision import load_onnx
from export.quantisation import Quantiser, head_outputs
from export.runtime import open_session
from ifkd.data.evaluation import Metrics
from ifkd.detections import Array
from ifkd.errors import VerdictError
from ifkd.progress import progress

RANKED_ON = 4
"""Tiles on which the error of a layer is measured."""
LARGEST_NOISE = 0.5
"""Largest error of the head's values as a share of the values themselves; beyond, a file answers at random."""


def quantise_within(
    quantiser: Quantiser, source: Path, path: Path, *, images: LabelledTiles, record: CalibrationRecord, limit: float
) -> QuantisationRecord:
    """Write an INT8 copy that loses at most `limit` of mAP, and return how it came to be.

    Args:
        quantiser: Of the FP32 file.
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
    curve: list[QuantisationStep] = []
    allowed = len(quantiser.layers) // 2
    while True:
        quantiser.write(path, float_layers=kept)
        metrics = images.score(path)
        loss = reference.mean_ap - metrics.mean_ap
        curve.append(QuantisationStep(float_layers=len(kept), mean_ap=metrics.mean_ap, map_loss=loss))
        if loss <= limit or len(kept) >= allowed:
            break
        if not ranking:
            ranking = rank_layers(quantiser, source, images.tiles[:RANKED_ON])
        count = min(allowed, max(1, 2 * len(kept)))
        kept = [name for name, _ in ranking[:count]]
    noise = _noise(source, path, quantiser.last_layers, images.tiles[:RANKED_ON])
    answer = QuantisationRecord(
        calibration=record,
        layers=len(quantiser.layers),
        float_layers=tuple(kept),
        ranking={name: round(error, 6) for name, error in ranking},
        curve=tuple(curve),
        max_map_loss=limit,
        map_loss=curve[-1].map_loss,
        per_class_loss=_per_class_loss(reference, metrics),
        noise=noise,
        passed=curve[-1].map_loss <= limit and noise <= LARGEST_NOISE,
    )
    if not answer.passed:
        raise VerdictError(
            f"{path.name} is not worth it",
            got=f"a loss of mAP of {answer.map_loss:.4f} with {len(kept)} of {answer.layers} layers in float, "
            f"and an error of {noise:.3f} of the head's values",
            expected=f"at most {limit:g} and {LARGEST_NOISE:g}",
            mend="Leave this precision out, calibrate on more tiles, or by another export.calibration.method.",
        )
    return answer


def rank_layers(
    quantiser: Quantiser, source: Path, tiles: Array, *, among: Sequence[str] | None = None
) -> list[tuple[str, float]]:
    """Return layers and the error that each makes alone in the head's values, the worst first.

    Args:
        quantiser: Of the FP32 file.
        source: The FP32 file.
        tiles: uint8 [tiles, 3, height, width].
        among: Names of layers; by default all but the head's last.
    """
    own = [name for name in quantiser.layers if name not in quantiser.last_layers] if among is None else list(among)
    reference = head_values(source, quantiser.last_layers, tiles)
    found = []
    with tempfile.TemporaryDirectory(prefix="ifkd.ranking.") as folder, progress(len(own), "ranking layers") as bar:
        path = Path(folder) / "alone.onnx"
        for name in own:
            quantiser.write(path, float_layers=set(quantiser.layers) - {name})
            found.append((name, relative_error(reference, head_values(path, quantiser.last_layers, tiles))))
            bar.update()
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def head_values(path: Path, last: Collection[str], tiles: Array) -> list[Array]:
    """Return what the last layers of an ONNX file give for some tiles, before any choice is made among them."""
    onnx = load_onnx()
    model = onnx.load(str(path))
    names = head_outputs(model.graph, list(last))
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    with tempfile.TemporaryDirectory(prefix="ifkd.head.") as folder:
        probe = Path(folder) / "probe.onnx"
        probe.write_bytes(model.SerializeToString())
        session = open_session(probe)
    answers = [session.run(names, {"tiles": tile[None]}) for tile in tiles]
    return [np.concatenate([answer[index] for answer in answers]) for index in range(len(names))]


def relative_error(reference: Sequence[Array], other: Sequence[Array]) -> float:
    """Return the mean over values of |other - reference| / |reference - mean|, by root mean squares; 0 is no error."""
    shares = []
    for this, that in zip(reference, other, strict=True):
        spread = float(np.sqrt(np.mean((this - this.mean()) ** 2)))
        error = float(np.sqrt(np.mean((that - this) ** 2)))
        shares.append(error / max(spread, 1e-12) if error else 0.0)
    return float(np.mean(shares))


def _noise(source: Path, path: Path, last: Collection[str], tiles: Array) -> float:
    return relative_error(head_values(source, last, tiles), head_values(path, last, tiles))


def _per_class_loss(reference: Metrics, metrics: Metrics) -> dict[str, float]:
    return {
        name: one.mean_ap - (metrics.per_class[name].mean_ap or 0.0)
        for name, one in reference.per_class.items()
        if one.mean_ap is not None
    }
