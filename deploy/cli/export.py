"""`ifkd export`: a checkpoint becomes a bundle, and a bundle a model repository for Triton."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.bundle.bundle import Bundle
    from export.triton.repository import InstanceConfig, RepositoryPlan


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="checkpoint",
        help="weights, as `ifkd train` and `ifkd distill` write them; with --triton also a finished bundle",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values of the recipe's export section")
    parser.add_argument("--out", type=Path, help="the bundle's folder")
    parser.add_argument(
        "--accept-drift", action="store_true", help="write the bundle even when its files answer otherwise than torch"
    )
    triton = parser.add_argument_group("Triton Inference Server")
    triton.add_argument("--triton", type=Path, metavar="DIR", help="write the bundle's models into this repository")
    triton.add_argument("--device", choices=["gpu", "cpu"], default="gpu", help="where the server computes (gpu)")
    triton.add_argument("--instances", type=int, default=1, metavar="N", help="copies of each model on each device (1)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Export, serve what was exported, and say what came of it."""
    from export.bundle.bundle import open_bundle
    from export.triton.repository import InstanceConfig

    hosting = InstanceConfig(options.device, options.instances)
    answer: dict[str, Any] = {}
    if options.source.is_dir():
        _refuse_export(options)
        bundle = open_bundle(options.source)
    else:
        bundle, answer = _export(options)
    if options.triton is not None:
        answer = {"bundle": str(bundle.path), **answer, "triton": _serve(options, bundle, hosting)}
    return answer


def _refuse_export(options: argparse.Namespace) -> None:
    """Refuse what makes no sense for a bundle, which is exported already."""
    from ifkd.core.errors import UsageError

    if options.triton is None:
        raise UsageError(f"{options.source} is a folder", expected="a checkpoint, or a bundle with --triton DIR")
    given = [*options.overrides, *(["--out"] if options.out else []), *(["--accept-drift"] * options.accept_drift)]
    if given:
        raise UsageError(
            f"{options.source} is exported already",
            got=" ".join(given),
            hint="Name its checkpoint to export it anew.",
        )


def _serve(options: argparse.Namespace, bundle: "Bundle", hosting: "InstanceConfig") -> dict[str, Any]:
    """Write the models, and say which."""
    from export.triton.repository import write_repository

    offer: RepositoryPlan = write_repository(bundle, options.triton, hosting)
    if not options.json:
        for model in offer.models:
            print(f"{model.name}: {', '.join(model.files)}")  # noqa: T201
        for name, reason in offer.left_out.items():
            print(f"{name} is left out: {reason}")  # noqa: T201
        print(options.triton)  # noqa: T201
    return {
        "repository": str(options.triton),
        "models": {model.name: list(model.files) for model in offer.models},
        "left_out": offer.left_out,
    }


def _export(options: argparse.Namespace) -> "tuple[Bundle, dict[str, Any]]":
    """Make the bundle, and say how it came out."""
    from export.export_bundle import export_checkpoint
    from ifkd.core.errors import UsageError

    if options.out is None:
        raise UsageError("A checkpoint is exported into a folder", hint="Name it with --out.")
    bundle = export_checkpoint(
        options.source, options.out, overrides=options.overrides, accept_drift=options.accept_drift
    )
    manifest = bundle.manifest
    if not options.json:
        for name, check in manifest.checks.items():
            verdict = "as torch" if check.passed else "DRIFTS from torch (accepted)"
            print(  # noqa: T201
                f"{name}: {manifest.files[name].bytes / 1e6:.1f} MB, {verdict}: {check.matched:.2%} of "
                f"{check.candidates} candidates matched, scores within {check.max_score_difference:.1g}, "
                f"boxes within {check.max_box_difference_px:.1g} px"
            )
        for name, made in manifest.quantization.items():
            print(  # noqa: T201
                f"{name}: {manifest.files[name].bytes / 1e6:.1f} MB, loses {100 * made.map_loss:.2f} points of mAP on "
                f"the validation split with {len(made.float_layers)} of {made.layers} layers left in float; "
                f"calibrated by {made.calibration.method} on {made.calibration.source}"
            )
            if made.verdict is not None:
                worth = {True: "is worth it", False: "is not worth it", None: "may be worth it"}[made.verdict.worth_it]
                print(f"{name} {worth} against {made.verdict.against}: {made.verdict.reason}")  # noqa: T201
        print(f"Compared on {manifest.provenance['parity_tiles']}.\n{bundle.path}")  # noqa: T201
    return bundle, {
        "bundle": str(bundle.path),
        "files": {name: record.model_dump(mode="json") for name, record in manifest.files.items()},
        "checks": {name: check.model_dump(mode="json") for name, check in manifest.checks.items()},
        "quantization": {name: made.model_dump(mode="json") for name, made in manifest.quantization.items()},
        "parity_tiles": manifest.provenance["parity_tiles"],
    }
