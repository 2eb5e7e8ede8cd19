"""Export of a checkpoint to a bundle, step by step as listed in docs/bundle.md."""

import datetime as dt
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from export.bundle import manifest as schemas
from export.bundle.bundle import Bundle, new_bundle, open_bundle, record_file
from export.bundle.description import describe
from export.bundle.manifest import FileRecord, Manifest, OperatingPoint, Precision, QuantizationRecord, TensorParity
from export.bundle.screen_record import ScreenRecord
from export.export_plan import CONFIG_NAME, WEIGHTS_NAME, ExportPlan
from export.int8.decision import FloatBaseline
from export.int8.quantize import Quantizer
from export.int8.sensitivity import quantize_within_limit
from export.onnx.onnx_export import OnnxMetadata, export_onnx
from export.onnx.tensor_parity import check_tensor_parity
from export.onnx.yolo_layout import check_yolo_layout, write_yolo_layout, yolo_metadata
from export.operating_point import choose_operating_point, default_operating_point
from export.precision.fp16 import convert_to_fp16
from export.precision.fp16_overflow import fp16_overflow_nodes
from export.precision.precision_summary import require_precision
from export.screen.screen_export import SCREEN_NAMES, export_screen
from ifkd import __version__
from ifkd.core.config import dump
from ifkd.core.detections import Detections
from ifkd.core.errors import DataError, VerdictError
from ifkd.core.files import sha256_of, write_json, write_text
from ifkd.core.progress import progress, track
from ifkd.training.prediction import predict, predict_tiles

PRODUCER = f"ifkd {__version__}"
PARITY_NAME = "checks/tensor_parity.json"
QUANTIZATION_NAME = "checks/quantization.json"
ONNX_NAMES: dict[Precision, str] = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
    "int8-cpu": "model.int8-cpu.onnx",
}
YOLO_NAME = "model.yolo.onnx"
OVERFLOW_TILES = 4
"""Number of tiles on which FP16 overflow is measured."""


def export_bundle(plan: ExportPlan) -> Bundle:
    """Write a bundle and return it; an existing bundle at `plan.out` is replaced.

    Raises:
        OutputError: `plan.out` contains other files, or is not writable.
        VerdictError: Tensor parity fails or an INT8 file is too inaccurate; nothing is written.
    """
    with new_bundle(plan.out) as folder:
        shutil.copyfile(plan.checkpoint.path, folder / WEIGHTS_NAME)
        write_text(folder / CONFIG_NAME, dump(plan.recipe))
        operating_point = _operating_point(plan)
        fp32_nodes = _write_float_files(plan, folder, operating_point)
        checks = _check_parity(plan, folder, fp32_nodes)
        quantization = _write_int8_files(plan, folder)
        screen = _export_screen(plan, folder, operating_point.score_threshold)
        manifest = _manifest(plan, folder, checks, quantization, operating_point)
        describe(Bundle(folder, manifest.model_copy(update={"screen": screen})))
    return open_bundle(plan.out)


def add_screen(plan: ExportPlan) -> Bundle:
    """Export the screen of a plan into the bundle at `plan.out`, whose other files stay as they are; return the bundle.

    It replaces the screen of the bundle, with its engines.

    Raises:
        BundleError: The bundle is damaged.
        VerdictError: The screen differs from torch; the bundle stays as it is.
    """
    bundle = open_bundle(plan.out)
    kept = {name: one for name, one in bundle.manifest.files.items() if not one.kind.startswith("screen-")}
    with new_bundle(plan.out) as folder:
        for name in kept:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(name), folder / name)
        screen = _export_screen(plan, folder, bundle.manifest.defaults.scene_score_threshold)
        files = {**kept, **_screen_records(folder)}
        describe(Bundle(folder, bundle.manifest.model_copy(update={"files": files, "screen": screen})))
    return open_bundle(plan.out)


def _write_float_files(plan: ExportPlan, folder: Path, operating_point: OperatingPoint) -> dict[str, float]:
    """Write the FP32 file, also in the layout of a YOLO, and the FP16 file.

    Return the nodes that stay FP32 in the FP16 file, with their magnitude.
    """
    recipe, classes = plan.recipe, plan.checkpoint.meta.classes
    metadata = OnnxMetadata(recipe.name, PRODUCER, classes, recipe.data.scale, plan.checkpoint_sha256)
    fp32 = folder / ONNX_NAMES["fp32"]
    fp32_nodes: dict[str, float] = {}
    with progress(1 + ("fp16" in plan.precisions) + recipe.export.interop, "writing ONNX", unit="file") as bar:
        export_onnx(plan.model, fp32, max_batch=recipe.export.max_batch, metadata=metadata)
        require_precision(fp32, "fp32")
        bar.update()
        if "fp16" in plan.precisions:
            fp32_nodes = fp16_overflow_nodes(fp32, plan.sample.pixels[:OVERFLOW_TILES])
            convert_to_fp16(fp32, folder / ONNX_NAMES["fp16"], float_nodes=fp32_nodes)
            bar.update()
        if recipe.export.interop:
            properties = yolo_metadata(recipe, classes, score_threshold=operating_point.score_threshold)
            write_yolo_layout(fp32, folder / YOLO_NAME, side=recipe.data.tile_px, metadata=properties)
            bar.update()
    return fp32_nodes


def _check_parity(plan: ExportPlan, folder: Path, fp32_nodes: Mapping[str, float]) -> dict[str, TensorParity]:
    """Compare the FP32 and the FP16 file with torch, and the FP32 file in another layout with it; write the result."""
    checks = {}
    compared = [precision for precision in plan.precisions if precision in ("fp32", "fp16")]
    for precision in track(compared, "comparing with torch", total=len(compared), unit="file"):
        name = ONNX_NAMES[precision]
        checks[name] = check_tensor_parity(plan.model, folder / name, plan.sample.pixels, precision=precision)
    if plan.recipe.export.interop:
        checks[YOLO_NAME] = check_yolo_layout(folder / YOLO_NAME, folder / ONNX_NAMES["fp32"], plan.sample.pixels)
    written = {name: check.model_dump(mode="json") for name, check in checks.items()}
    write_json(folder / PARITY_NAME, {"tiles": plan.sample.source, "fp32_nodes": fp32_nodes, "checks": written})
    failed = {name: check for name, check in checks.items() if not check.passed}
    if failed and not plan.accept_drift:
        results = "; ".join(
            f"{name}: {check.matched_fraction:.4f} of {check.candidates} candidates matched, scores differ by up to "
            f"{check.max_score_difference:.2g}, boxes by up to {check.max_box_difference_px:.2g} px"
            for name, check in failed.items()
        )
        raise VerdictError(
            "Tensor parity failed, so no bundle was written",
            got=results,
            expected=json.dumps(next(iter(failed.values())).tolerance),
            hint="Check the weights, remove the precision, or accept the differences with --accept-drift.",
        )
    return checks


def _write_int8_files(plan: ExportPlan, folder: Path) -> dict[str, QuantizationRecord]:
    """Write the INT8 files and their records."""
    calibration, validation, options = plan.calibration, plan.validation, plan.recipe.export.calibration
    if calibration is None or validation is None:
        return {}
    paths = {precision: folder / ONNX_NAMES[precision] for precision in plan.precisions}
    float_paths: dict[Precision, Path] = {one: path for one, path in paths.items() if one in ("fp32", "fp16")}
    fp32, limit = paths["fp32"], options.max_map_loss
    baseline = FloatBaseline.measure(float_paths, validation)
    records = {}
    for precision in [one for one in paths if one not in float_paths]:
        path = paths[precision]
        with Quantizer(fp32, calibration.pixels, precision=precision, calibration=options) as quantizer:
            record = quantize_within_limit(
                quantizer, fp32, path, tiles=validation, calibration=calibration.record, max_map_loss=limit
            )
        measured = {"decision": baseline.decide(path, record, precision), "onnx_sha256": sha256_of(path)}
        records[path.name] = record.model_copy(update=measured)
    write_json(folder / QUANTIZATION_NAME, {name: one.model_dump(mode="json") for name, one in records.items()})
    return records


def _validation_detections(
    plan: ExportPlan, search: Callable[..., Iterator[tuple[int, Detections]]], label: str
) -> dict[int, Detections] | DataError:
    """Return the detections in the validation images, by image id, or the reason why there are none."""
    dataset = plan.scene_validation
    if isinstance(dataset, DataError):
        return dataset
    found = search(plan.model.detector, dataset, plan.recipe)
    try:
        return dict(track(found, label, total=len(dataset), unit="image"))
    except DataError as error:  # an image cannot be read
        return error


def _operating_point(plan: ExportPlan) -> OperatingPoint:
    """Return the thresholds for scenes, chosen on the validation images where they can be read."""
    dataset, options = plan.scene_validation, plan.recipe.export
    found = _validation_detections(plan, predict, "choosing thresholds")
    if isinstance(dataset, DataError) or isinstance(found, DataError):
        return default_operating_point(options, reason=str(found))
    return choose_operating_point(dataset, found, options)


def _export_screen(plan: ExportPlan, folder: Path, score_threshold: float) -> ScreenRecord | None:
    """Write the files of the screen, if there is one, and return its record."""
    if plan.screen is None:
        return None
    return export_screen(
        plan.screen,
        folder,
        recipe=plan.recipe,
        precisions=plan.precisions,
        tiles=plan.sample.pixels,
        validation=plan.scene_validation,
        detections=_validation_detections(plan, predict_tiles, "calibrating the screen"),
        score_threshold=score_threshold,
        accept_drift=plan.accept_drift,
    )


def _manifest(
    plan: ExportPlan,
    folder: Path,
    checks: dict[str, TensorParity],
    quantization: dict[str, QuantizationRecord],
    operating_point: OperatingPoint,
) -> Manifest:
    meta, options, data = plan.checkpoint.meta, plan.recipe.export, plan.recipe.data
    return Manifest(
        name=plan.recipe.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        producer=PRODUCER,
        provenance={**meta.provenance, "checkpoint_sha256": plan.checkpoint_sha256, "parity_tiles": plan.sample.source},
        detector=meta.detector.model_dump(mode="json"),
        input=schemas.InputSpec(
            tile_px=plan.model.tile_px,
            tile_sides_px=options.tile_sides_px,
            max_batch=options.max_batch,
            scale=data.scale,
            imagery=data.imagery,
        ),
        outputs=schemas.OutputSpec(
            candidates=plan.model.count_candidates(), oriented=plan.model.detector.config.oriented
        ),
        classes=meta.classes,
        category_ids=meta.category_ids,
        defaults=schemas.Defaults(
            postprocess=plan.recipe.postprocess,
            scene_score_threshold=operating_point.score_threshold,
            class_agnostic_iou=operating_point.class_agnostic_iou,
            overlap_px=options.overlap_px,
            gsd_m=options.gsd_m,
        ),
        operating_point=operating_point,
        training_imagery=schemas.TrainingImagery(sensor=data.sensor, license=data.license),
        files=_records(folder, plan.precisions),
        checks=checks,
        quantization=quantization,
    )


def _records(folder: Path, precisions: Collection[Precision]) -> dict[str, FileRecord]:
    records = {WEIGHTS_NAME: record_file(folder, WEIGHTS_NAME, kind="weights", precision="fp32")}
    for precision in precisions:
        records[ONNX_NAMES[precision]] = record_file(folder, ONNX_NAMES[precision], kind="onnx", precision=precision)
    if (folder / YOLO_NAME).is_file():
        records[YOLO_NAME] = record_file(folder, YOLO_NAME, kind="yolo-onnx", precision="fp32")
    records |= _screen_records(folder)
    records[CONFIG_NAME] = record_file(folder, CONFIG_NAME, kind="config")
    checks = [name for name in (PARITY_NAME, QUANTIZATION_NAME) if (folder / name).is_file()]
    return records | {name: record_file(folder, name, kind="check") for name in checks}


def _screen_records(folder: Path) -> dict[str, FileRecord]:
    return {
        name: record_file(folder, name, kind="screen-onnx", precision=precision)
        for precision, name in SCREEN_NAMES.items()
        if (folder / name).is_file()
    }
