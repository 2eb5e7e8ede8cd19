"""Export of a screen's checkpoint: ONNX files in each precision, their parity with torch, and the calibration."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from export.bundle.manifest import Precision
from export.bundle.screen_record import ScreenCalibration, ScreenParity, ScreenRecord
from export.int8.quantize import Quantizer
from export.onnx.onnx_export import INPUT_NAME, METADATA_PREFIX, export_graph
from export.precision.fp16 import convert_to_fp16
from export.precision.fp16_overflow import fp16_overflow_nodes
from export.precision.ort_session import open_session
from export.precision.precision_summary import require_precision
from export.screen.calibration import calibrate, screen_input
from ifkd.core.detections import Array, Detections
from ifkd.core.errors import CheckpointError, DataError, VerdictError
from ifkd.core.files import atomic_path, sha256_of
from ifkd.data.coco import CocoDataset
from ifkd.imagery.image_files import resize
from ifkd.imagery.image_tiles import scaled_size
from ifkd.models import normalize
from ifkd.recipe import CalibrationOptions, Recipe, ScreenOptions
from ifkd.screen.checkpoint import load_screen
from ifkd.screen.network import CONTEXT_PX, STRIDE, Screen

SCREEN_NAMES: dict[Precision, str] = {
    "fp32": "screen.onnx",
    "fp16": "screen.fp16.onnx",
    "int8": "screen.int8.onnx",
    "int8-cpu": "screen.int8-cpu.onnx",
}
OUTPUT_NAME = "objectness"
MAX_CELLS = 4096
"""Largest number of rows and of columns of cells, and of images in a batch."""
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.1, "int8-cpu": 0.1}
"""Largest differences of objectness from torch."""


class ExportableScreen(nn.Module):
    """The deployed form of a screen: uint8 images in, objectness from 0 to 1 out."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self.screen = screen
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, tiles: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 rows columns"]:
        """Return the objectness of each cell."""
        objectness: Tensor = self.screen(normalize(tiles)).sigmoid()
        return objectness


@dataclass(frozen=True, slots=True, eq=False)
class ScreenPlan:
    """A screen to be exported beside a detector."""

    model: ExportableScreen
    sha256: str
    """Digest of the checkpoint."""
    options: ScreenOptions
    """Those of the training, with the limit of the detector's recipe."""


def plan_screen(path: Path, recipe: Recipe) -> ScreenPlan:
    """Return the plan of a screen for the detector of a recipe, whose limit and confidence apply.

    Raises:
        CheckpointError: The file is no checkpoint of a screen, or the screen was trained on other pixels.
    """
    screen, meta = load_screen(path)
    for key in ("scale", "imagery"):
        got, expected = getattr(meta.recipe.data, key), getattr(recipe.data, key)
        if got != expected:
            hint = "Train the screen with the detector's recipe."
            problem = f"The screen {path} was trained with another data.{key} than the detector"
            raise CheckpointError(problem, got=got, expected=expected, hint=hint)
    limit = {key: getattr(recipe.screen, key) for key in ("max_lost_fraction", "confidence")}
    return ScreenPlan(ExportableScreen(screen), sha256_of(path), meta.screen.model_copy(update=limit))


def export_screen(
    plan: ScreenPlan,
    folder: Path,
    *,
    recipe: Recipe,
    precisions: Collection[Precision],
    tiles: Array,
    validation: CocoDataset | DataError,
    detections: Mapping[int, Detections] | DataError,
    score_threshold: float,
    accept_drift: bool,
) -> ScreenRecord:
    """Write the ONNX files into a bundle's folder, calibrate the threshold, and return the record.

    The FP32 file is always written. `tiles`, uint8 [tiles, 3, height, width], are the detector's, for parity and for
    the ranges of INT8; `detections`, by image id, are those of the detector in the tiles of the validation images, or
    the reason why there are none.

    Raises:
        VerdictError: The outputs differ from torch, and `accept_drift` is false.
    """
    images = _screen_images(tiles, plan.options.scale)
    fp32 = folder / SCREEN_NAMES["fp32"]
    write_onnx(plan, fp32)
    checks = {}
    for precision, name in SCREEN_NAMES.items():
        if precision == "fp32" or precision in precisions:
            checks[name] = _write_checked(plan, folder / name, precision, images, recipe.export.calibration)
    failed = {name: check for name, check in checks.items() if not check.passed}
    if failed and not accept_drift:
        raise VerdictError(
            "The screen differs from torch, so no bundle was written",
            got="; ".join(f"{name}: {check.in_words}" for name, check in failed.items()),
            expected=f"at most {next(iter(failed.values())).tolerance:g}",
            hint="Check the weights, or accept the differences with --accept-drift.",
        )
    margin_px = max(recipe.export.overlap_px, STRIDE / plan.options.scale) / 2  # objects are no longer than the overlap
    threshold: float | None = None
    calibration: ScreenCalibration | None = None
    if not isinstance(validation, DataError) and not isinstance(detections, DataError):
        threshold, calibration = calibrate(
            fp32,
            validation,
            detections,
            recipe=recipe,
            options=plan.options,
            stride=STRIDE,
            margin_px=margin_px,
            score_threshold=score_threshold,
        )
    return ScreenRecord(
        scale=plan.options.scale,
        stride=STRIDE,
        context_px=CONTEXT_PX,
        parameters=sum(one.numel() for one in plan.model.parameters()),
        margin_px=margin_px,
        threshold=threshold,
        calibration=calibration,
        checks=checks,
        sha256=plan.sha256,
    )


def _write_checked(
    plan: ScreenPlan, path: Path, precision: Precision, images: Array, calibration: CalibrationOptions
) -> ScreenParity:
    """Write a file in a precision from the FP32 file beside it, which exists, and return its parity.

    Of an INT8 file, the first layers stay in float, no more than the tolerance needs.
    """
    fp32 = path.with_name(SCREEN_NAMES["fp32"])
    if precision == "fp16":
        convert_to_fp16(fp32, path, float_nodes=fp16_overflow_nodes(fp32, images))
    if precision not in ("int8", "int8-cpu"):
        return check_screen(plan.model, path, images, precision)
    with Quantizer(fp32, images, precision=precision, calibration=calibration) as quantizer:
        for count in range(len(quantizer.layers)):
            quantizer.write(path, float_layers=quantizer.layers[:count])
            check = check_screen(plan.model, path, images, precision)
            if check.passed:
                break
    return check.model_copy(update={"float_layers": count})


def check_screen(model: ExportableScreen, path: Path, images: Array, precision: Precision) -> ScreenParity:
    """Run torch and ONNX Runtime on the same images and compare the objectness of each cell."""
    network = open_session(path)
    with torch.inference_mode():
        expected = [model(torch.from_numpy(one[None])).numpy() for one in images]
    found = [network.run([OUTPUT_NAME], {INPUT_NAME: one[None]})[0] for one in images]
    difference = float(np.abs(np.stack(found) - np.stack(expected)).max())
    return ScreenParity(
        images=len(images),
        cells=sum(one.size for one in expected),
        max_difference=difference,
        tolerance=TOLERANCES[precision],
        passed=difference <= TOLERANCES[precision],  # false for NaN
        onnx_sha256=sha256_of(path),
    )


def _screen_images(tiles: Array, scale: float) -> Array:
    """Return tiles at the screen's scale, uint8 [tiles, 3, height, width] with multiples of the stride."""
    size = scaled_size((tiles.shape[2], tiles.shape[3]), scale)
    return np.concatenate([screen_input(resize(tile.transpose(1, 2, 0), size), STRIDE) for tile in tiles])


def write_onnx(plan: ScreenPlan, path: Path) -> None:
    """Write the FP32 file; the number of images and their size are free."""
    rows, columns = (torch.export.Dim(name, min=1, max=MAX_CELLS) for name in ("rows", "columns"))
    axes = {0: torch.export.Dim("batch", min=1, max=MAX_CELLS), 2: STRIDE * rows, 3: STRIDE * columns}
    example = torch.zeros((2, 3, 5 * STRIDE, 4 * STRIDE), dtype=torch.uint8)
    proto = export_graph(plan.model, example, inputs=[INPUT_NAME], outputs=[OUTPUT_NAME], dynamic_axes=axes)
    properties = {"precision": "fp32", "scale": repr(plan.options.scale), "weights_sha256": plan.sha256}
    onnx.helper.set_model_props(proto, {METADATA_PREFIX + key: value for key, value in properties.items()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
    require_precision(path, "fp32")
