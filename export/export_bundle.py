"""A checkpoint becomes a bundle: weights, ONNX files, the recipe, and the proof that all of them answer alike."""

import datetime as dt
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.bundle.bundle import Bundle, new_bundle, open_bundle, record_file, write_manifest
from export.bundle.manifest import (
    Defaults,
    FileRecord,
    InputSpec,
    Manifest,
    OutputSpec,
    Precision,
    QuantizationDecision,
    QuantizationRecord,
    TensorParity,
)
from export.int8.benchmark import measure_latency_ms, speedup
from export.int8.calibration import CalibrationTiles, LabeledTiles, calibration_tiles, validation_tiles
from export.int8.decision import decide
from export.int8.quantize import Quantizer
from export.int8.sensitivity import per_class_loss, quantize_within
from export.onnx.exportable import ExportableDetector
from export.onnx.onnx_export import OnnxMetadata, export_onnx
from export.onnx.tensor_parity import check_tensor_parity
from export.precision.fp16 import convert_to_fp16, require_precision
from export.precision.fp16_overflow import fp16_overflow_nodes
from export.sample_tiles import sample_tiles
from ifkd import __version__
from ifkd.core.config import dump, override
from ifkd.core.detections import Array
from ifkd.core.environment import usable_cores
from ifkd.core.errors import VerdictError
from ifkd.core.files import sha256_of, write_json, write_text
from ifkd.core.progress import progress
from ifkd.models.checkpoint import Checkpoint, build_from, load_checkpoint
from ifkd.recipe import ExportOptions, Recipe

PRODUCER = f"ifkd {__version__}"
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.toml"
CHECK_NAME = "checks/tensor_parity.json"
QUANTIZATION_NAME = "checks/quantization.json"
MEASURED_ON = 4
"""Tiles on which it is seen what FP16 can hold."""
ONNX_NAMES: dict[Precision, str] = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
    "int8-cpu": "model.int8-cpu.onnx",
}


def export_checkpoint(
    checkpoint_path: Path, out: Path, *, overrides: Sequence[str] = (), accept_drift: bool = False
) -> Bundle:
    """Write the bundle of a checkpoint; a bundle that was at `out` is replaced as a whole.

    Args:
        checkpoint_path: Weights with their recipe, as training writes them.
        out: The bundle's folder.
        overrides: `KEY=VALUE` of the recipe's `export` section, with or without the prefix `export.`.
        accept_drift: Write the bundle even when tensor parity fails; the figures say so.

    Raises:
        CheckpointError: The checkpoint is absent or damaged.
        ConfigError: A setting is wrong.
        DataError: INT8 is asked for, and the training or validation images cannot be read or have other classes.
        VerdictError: An ONNX file answers differently than the torch network; nothing is written.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    settings = _effective(checkpoint.meta.recipe, overrides)
    images = _images_for_int8(settings, checkpoint.meta.classes)
    side = settings.data.tile_px
    graph = ExportableDetector(
        build_from(checkpoint),
        tile_px=(side, side),
        per_level=settings.export.candidates_per_level,
        sides_px=settings.export.tile_sides_px,
    )
    digest = sha256_of(checkpoint_path)
    with new_bundle(out) as folder:
        shutil.copyfile(checkpoint_path, folder / WEIGHTS_NAME)
        write_text(folder / CONFIG_NAME, dump(settings))
        sample = sample_tiles(settings.data)
        precisions, kept = _write_onnx(graph, folder, checkpoint, settings, digest=digest, tiles=sample.tiles)
        checks = _check(graph, folder, sample.tiles, precisions)
        _judge(checks, accept_drift=accept_drift)
        quantized = _quantize(folder, settings, precisions, images)
        write_json(
            folder / CHECK_NAME,
            {
                "tiles": sample.source,
                "kept_in_fp32": kept,
                "checks": {name: check.model_dump(mode="json") for name, check in checks.items()},
            },
        )
        provenance = {
            **checkpoint.meta.provenance,
            "checkpoint_sha256": digest,
            "parity_tiles": sample.source,
        }
        manifest = _manifest(checkpoint, settings, graph, provenance=provenance)
        facts = {"files": _records(folder, precisions), "checks": checks, "quantization": quantized}
        write_manifest(folder, manifest.model_copy(update=facts))
    return open_bundle(out)


def _manifest(
    checkpoint: Checkpoint, settings: Recipe, graph: ExportableDetector, *, provenance: dict[str, Any]
) -> Manifest:
    """Return the manifest of a bundle without its files."""
    return Manifest(
        name=settings.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        producer=PRODUCER,
        provenance=provenance,
        detector=checkpoint.meta.detector.model_dump(mode="json"),
        input=InputSpec(
            tile_px=graph.tile_px,
            tile_sides_px=graph.sizes.side_range,
            max_batch=settings.export.max_batch,
            scale=settings.data.scale,
            imagery=settings.data.imagery,
        ),
        outputs=OutputSpec(candidates=graph.count_candidates()),
        classes=checkpoint.meta.classes,
        category_ids=checkpoint.meta.category_ids,
        defaults=Defaults(
            selection=settings.postprocess,
            scene_score=settings.export.scene_score_threshold,
            overlap_px=settings.export.overlap_px,
            gsd_m=settings.export.gsd_m,
        ),
        files={},
    )


def _effective(settings: Recipe, overrides: Sequence[str]) -> Recipe:
    keys = [text.removeprefix("export.") for text in overrides]
    export: ExportOptions = override(settings.export, keys, source="export")
    return settings.model_copy(update={"export": export})


def _write_onnx(
    graph: ExportableDetector, folder: Path, checkpoint: Checkpoint, settings: Recipe, *, digest: str, tiles: Array
) -> tuple[tuple[Precision, ...], dict[str, float]]:
    """Write the ONNX files; return their precisions and the nodes of the FP16 file that FP16 could not hold.

    FP32 is always among them, as the others come from it.
    """
    precisions: tuple[Precision, ...] = ("fp32", *(one for one in settings.export.precisions if one != "fp32"))
    essentials = OnnxMetadata(
        name=settings.name,
        producer=PRODUCER,
        classes=checkpoint.meta.classes,
        scale=settings.data.scale,
        weights_sha256=digest,
    )
    with progress(len(precisions), "writing ONNX", unit="file") as bar:
        export_onnx(graph, folder / ONNX_NAMES["fp32"], max_batch=settings.export.max_batch, essentials=essentials)
        require_precision(folder / ONNX_NAMES["fp32"], "fp32")
        bar.update()
        kept: dict[str, float] = {}
        if "fp16" in precisions:
            kept = fp16_overflow_nodes(folder / ONNX_NAMES["fp32"], tiles[:MEASURED_ON])
            convert_to_fp16(folder / ONNX_NAMES["fp32"], folder / ONNX_NAMES["fp16"], float_nodes=kept)
            bar.update()
    return precisions, kept


def _check(
    graph: ExportableDetector, folder: Path, tiles: Array, precisions: Sequence[Precision]
) -> dict[str, TensorParity]:
    """Return the parity of each ONNX file on some tiles."""
    checks = {}
    compared = [precision for precision in precisions if precision in ("fp32", "fp16")]
    with progress(len(compared), "comparing with torch", unit="file") as bar:
        for precision in compared:
            name = ONNX_NAMES[precision]
            checks[name] = check_tensor_parity(graph, folder / name, tiles, precision=precision)
            bar.update()
    return checks


def _images_for_int8(settings: Recipe, classes: Sequence[str]) -> tuple[CalibrationTiles, LabeledTiles] | None:
    """Return what INT8 is fitted to and judged on, or None when it is not asked for."""
    if not {"int8", "int8-cpu"} & set(settings.export.precisions):
        return None
    tiles = calibration_tiles(settings.data, settings.export.calibration, classes=classes)
    return tiles, validation_tiles(settings.data, settings.postprocess, classes=classes)


def _quantize(
    folder: Path,
    settings: Recipe,
    precisions: Sequence[Precision],
    images: tuple[CalibrationTiles, LabeledTiles] | None,
) -> dict[str, QuantizationRecord]:
    """Write the INT8 files and return how each came to be."""
    if images is None:
        return {}
    fitted, labeled = images
    calibration = settings.export.calibration
    source = folder / ONNX_NAMES["fp32"]
    records = {}
    against: Precision = "fp16" if "fp16" in precisions else "fp32"
    rival = _Rival(against, {one: folder / ONNX_NAMES[one] for one in precisions if one in ("fp32", "fp16")}, labeled)
    for precision in precisions:
        if precision in ("fp32", "fp16"):
            continue
        with Quantizer(source, fitted.tiles, precision=precision, calibration=calibration) as quantizer:
            records[ONNX_NAMES[precision]] = quantize_within(
                quantizer,
                source,
                folder / ONNX_NAMES[precision],
                images=labeled,
                record=fitted.record,
                limit=calibration.max_map_loss,
            )
        verdict = rival.compared_with(folder / ONNX_NAMES[precision], records[ONNX_NAMES[precision]], precision)
        records[ONNX_NAMES[precision]] = records[ONNX_NAMES[precision]].model_copy(update={"verdict": verdict})
    write_json(folder / QUANTIZATION_NAME, {name: one.model_dump(mode="json") for name, one in records.items()})
    return records


class _Rival:
    """The file that one would take if there were no INT8."""

    def __init__(self, precision: Precision, paths: dict[Precision, Path], images: LabeledTiles) -> None:
        """Measure the file of `precision`; `paths` has all files in float."""
        self._precision, self._paths, self._tile = precision, paths, images.tiles[0]
        reference = images.score(paths["fp32"])
        metrics = reference if precision == "fp32" else images.score(paths[precision])
        self._loss = reference.mean_ap - metrics.mean_ap
        self._class_loss = per_class_loss(reference, metrics)

    def compared_with(self, path: Path, record: QuantizationRecord, precision: Precision) -> QuantizationDecision:
        """Return the verdict on an INT8 file; both losses of its record are against FP32."""
        # The file for TensorRT runs on a CPU too, but its speed there says nothing.
        timed = precision == "int8-cpu"
        speeds = measure_latency_ms({precision: path, **self._paths}, self._tile) if timed else {}
        verdict = decide(
            against=self._precision,
            map_loss=record.map_loss - self._loss,
            per_class_loss={name: loss - self._class_loss[name] for name, loss in record.per_class_loss.items()},
            max_map_loss=record.max_map_loss,
            speed_up={name: speedup(speeds[precision], one) for name, one in speeds.items() if name != precision},
        )
        return verdict.model_copy(update={"latency": speeds, "threads": usable_cores() if timed else None})


def _judge(checks: dict[str, TensorParity], *, accept_drift: bool) -> None:
    failed = {name: check for name, check in checks.items() if not check.passed}
    if failed and not accept_drift:
        figures = "; ".join(
            f"{name}: {check.matched:.4f} of {check.candidates} candidates matched, scores differ by up to "
            f"{check.max_score_difference:.2g}, boxes by up to {check.max_box_difference_px:.2g} px"
            for name, check in failed.items()
        )
        raise VerdictError(
            "Tensor parity failed, so no bundle was written",
            got=figures,
            expected=json.dumps(next(iter(failed.values())).tolerance),
            hint="Look into the weights, leave the precision out, or accept the drift with --accept-drift.",
        )


def _records(folder: Path, precisions: Sequence[Precision]) -> dict[str, FileRecord]:
    onnx = {
        ONNX_NAMES[precision]: record_file(folder, ONNX_NAMES[precision], kind="onnx", precision=precision)
        for precision in precisions
    }
    written = [name for name in (CHECK_NAME, QUANTIZATION_NAME) if (folder / name).is_file()]
    return {
        WEIGHTS_NAME: record_file(folder, WEIGHTS_NAME, kind="weights", precision="fp32"),
        **onnx,
        CONFIG_NAME: record_file(folder, CONFIG_NAME, kind="config"),
        **{name: record_file(folder, name, kind="check") for name in written},
    }
