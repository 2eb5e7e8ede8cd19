"""`ifkd export`: a checkpoint becomes a bundle."""

import argparse
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", type=Path, help="weights, as `ifkd train` and `ifkd distill` write them")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values of the recipe's export section")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument(
        "--accept-drift", action="store_true", help="write the bundle even when its files answer otherwise than torch"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Export, and say what came of it."""
    from export.producer import export_checkpoint

    bundle = export_checkpoint(
        options.checkpoint, options.out, overrides=options.overrides, accept_drift=options.accept_drift
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
        for name, made in manifest.quantisation.items():
            print(  # noqa: T201
                f"{name}: {manifest.files[name].bytes / 1e6:.1f} MB, loses {100 * made.map_loss:.2f} points of mAP on "
                f"the validation split with {len(made.float_layers)} of {made.layers} layers left in float; "
                f"calibrated by {made.calibration.method} on {made.calibration.source}"
            )
        print(f"Compared on {manifest.provenance['parity_tiles']}.\n{bundle.path}")  # noqa: T201
    return {
        "bundle": str(bundle.path),
        "files": {name: record.model_dump(mode="json") for name, record in manifest.files.items()},
        "checks": {name: check.model_dump(mode="json") for name, check in manifest.checks.items()},
        "quantisation": {name: made.model_dump(mode="json") for name, made in manifest.quantisation.items()},
        "parity_tiles": manifest.provenance["parity_tiles"],
    }
