"""`ifkd export`: export a checkpoint to a bundle, add a screen to a bundle, and write a Triton model repository."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploy import cli

if TYPE_CHECKING:
    from export.bundle.bundle import Bundle
    from export.bundle.manifest import Manifest
    from export.bundle.screen_record import ScreenRecord


class Arguments(cli.Arguments):
    """Arguments of `ifkd export`."""

    source: Path
    overrides: list[str]
    out: Path | None
    screen: Path | None
    accept_drift: bool
    interop: bool | None
    triton: Path | None
    device: Literal["gpu", "cpu"]
    instances: int


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    source = "weights written by `ifkd train` or `ifkd distill`; with --screen or --triton also a bundle"
    parser.add_argument("source", type=Path, metavar="checkpoint", help=source)
    overrides = "options of the recipe's export section; or, where its data moved, data.root=DIR"
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=overrides)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the bundle")
    screen = "screen of `ifkd train --role screen`, which finds the tiles of a scene that are worth searching"
    parser.add_argument("--screen", type=Path, metavar="CHECKPOINT", help=screen)
    drift = "write the bundle even if its outputs differ from torch"
    parser.add_argument("--accept-drift", action="store_true", help=drift)
    interop = "write model.yolo.onnx for QGIS, WebODM and other programs (default: yes)"
    parser.add_argument("--interop", action=argparse.BooleanOptionalAction, help=interop)
    triton = parser.add_argument_group("Triton Inference Server")
    triton.add_argument("--triton", type=Path, metavar="DIR", help="write the bundle's models into this repository")
    triton.add_argument("--device", choices=["gpu", "cpu"], default="gpu", help="device of the server (default: gpu)")
    instances = "instances of each model per device (default: 1)"
    triton.add_argument("--instances", type=cli.positive_int, default=1, metavar="N", help=instances)


def run(arguments: Arguments) -> dict[str, Any]:
    """Export a checkpoint, or open a bundle and add a screen; then write the Triton repository if requested."""
    from export.bundle.bundle import open_bundle
    from export.triton.model_config import InstanceConfig

    instances = InstanceConfig(arguments.device, arguments.instances)
    result: dict[str, Any] = {}
    if arguments.source.is_dir():
        _check_bundle_arguments(arguments)
        bundle = open_bundle(arguments.source)
        if arguments.screen is not None:
            bundle = _add_screen(bundle, arguments)
            result = {"bundle": str(bundle.path), **bundle.manifest.model_dump(mode="json", include={"screen"})}
    else:
        bundle = _export(arguments)
        files = bundle.manifest.model_dump(mode="json", include={"files", "checks", "quantization"})
        result = {"bundle": str(bundle.path), **files, "parity_tiles": bundle.manifest.provenance["parity_tiles"]}
    if arguments.triton is not None:
        from export.triton.repository import write_repository

        plan = write_repository(bundle, arguments.triton, instances)
        models = {model.name: list(model.files) for model in plan.models}
        lines = [f"{name}: {', '.join(files)}" for name, files in models.items()]
        lines += [f"{name} is skipped: {reason}" for name, reason in plan.skipped.items()]
        if not arguments.json:
            print("\n".join([*lines, str(arguments.triton)]))  # noqa: T201
        triton = {"repository": str(arguments.triton), "models": models, "skipped": plan.skipped}
        result = {"bundle": str(bundle.path), **result, "triton": triton}
    return result


def _check_bundle_arguments(arguments: Arguments) -> None:
    """Refuse arguments that apply to a checkpoint only."""
    from ifkd.core.errors import UsageError

    adds_screen = arguments.screen is not None
    if arguments.triton is None and not adds_screen:
        expected = "a checkpoint, or a bundle with --screen CHECKPOINT or --triton DIR"
        raise UsageError(f"{arguments.source} is a folder", expected=expected)
    options = ["--out"] * (arguments.out is not None)
    options += [*arguments.overrides, *["--accept-drift"] * arguments.accept_drift] if not adds_screen else []
    options += [] if arguments.interop is None else ["--interop" if arguments.interop else "--no-interop"]
    if options:
        got, hint = " ".join(options), "Name its checkpoint to export it again."
        raise UsageError(f"{arguments.source} is exported already", got=got, hint=hint)


def _add_screen(bundle: "Bundle", arguments: Arguments) -> "Bundle":
    """Add a screen to the bundle and print a summary."""
    from export.export_bundle import add_screen
    from export.export_plan import plan_added_screen

    assert arguments.screen is not None
    plan = plan_added_screen(
        bundle, arguments.screen, overrides=arguments.overrides, accept_drift=arguments.accept_drift
    )
    bundle = add_screen(plan)
    assert bundle.manifest.screen is not None
    if not arguments.json:
        print("\n".join([*_screen_summary(bundle.manifest.screen), str(bundle.path)]))  # noqa: T201
    return bundle


def _export(arguments: Arguments) -> "Bundle":
    """Export the checkpoint and print a summary."""
    from export.export_bundle import export_bundle
    from export.export_plan import plan_export
    from ifkd.core.errors import UsageError

    if arguments.out is None:
        raise UsageError("The bundle's folder is missing", hint="Name it with --out.")
    overrides, accept_drift = list(arguments.overrides), arguments.accept_drift
    overrides += [] if arguments.interop is None else [f"interop={str(arguments.interop).lower()}"]
    plan = plan_export(
        arguments.source, arguments.out, overrides=overrides, screen=arguments.screen, accept_drift=accept_drift
    )
    bundle = export_bundle(plan)
    if not arguments.json:
        print("\n".join([*_summary(bundle.manifest), str(bundle.path)]))  # noqa: T201
    return bundle


def _summary(manifest: "Manifest") -> list[str]:
    """Return the size and the accuracy of each ONNX file."""
    size = {name: f"{record.bytes / 1e6:.1f} MB" for name, record in manifest.files.items()}
    lines = [
        f"{name}: {size[name]}, parity with {check.reference} {'passed' if check.passed else 'FAILED (accepted)'}: "
        f"{check.in_words}"
        for name, check in manifest.checks.items()
    ]
    for name, record in manifest.quantization.items():
        loss = "an unknown number of" if record.map_loss is None else f"{100 * record.map_loss:.2f}"
        lines.append(
            f"{name}: {size[name]}, loses {loss} points of mAP on the validation split with "
            f"{len(record.float_layers)} of {record.layers} layers in float; "
            f"calibrated by {record.calibration.method} on {record.calibration.source}"
        )
        if record.decision is not None:
            lines.append(f"{name}: {record.decision.in_words}: {record.decision.reason}")
    point = manifest.operating_point
    if point is not None:
        lines.append(
            f"Thresholds for scenes: score {point.score_threshold:g}, class-agnostic IoU {point.class_agnostic_iou:g} "
            f"({point.source})"
        )
    if manifest.screen is not None:
        lines += _screen_summary(manifest.screen)
    return [*lines, f"Compared on {manifest.provenance['parity_tiles']}."]


def _screen_summary(screen: "ScreenRecord") -> list[str]:
    """Return the size, the parity and the threshold of a screen."""
    from export.bundle.screen_record import EXCHANGEABLE

    lines = [
        f"{name}: parity with {check.reference} {'passed' if check.passed else 'FAILED (accepted)'}: {check.in_words}"
        for name, check in screen.checks.items()
    ]
    if screen.calibration is None:
        return [*lines, "The screen has no threshold, because the validation images cannot be read."]
    if screen.threshold is None:
        return [*lines, f"The screen has no threshold: {screen.calibration.reason}."]
    return [*lines, f"Threshold of the screen: {screen.threshold:g}, {screen.calibration.reason}. {EXCHANGEABLE}"]
