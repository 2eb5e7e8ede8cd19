"""`ifkd parity`: compare a bundle's engine files with the torch network."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import cli
from deploy.cli.evaluate import BACKENDS, add_bundle_arguments, add_data_arguments, add_run_arguments, write_result

if TYPE_CHECKING:
    from deploy.engines.engine import Backend
    from deploy.parity.parity import ParityPlan
    from deploy.parity.parity_result import Parity
    from export.bundle.manifest import Precision


class Arguments(cli.Arguments):
    """Arguments of `ifkd parity`."""

    bundle: Path
    overrides: list[str]
    data: Path | None
    images: Path | None
    out: Path
    backend: "list[Backend]"
    server: str | None
    precision: "list[Precision] | None"
    batch: int
    threads: int | None
    scene: Path | None
    ground_truth: Path | None
    tolerances: Path | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    runtimes = "runtimes to compare with torch fp32"
    add_bundle_arguments(parser, out="parity.json", backends=BACKENDS, runtimes=runtimes)
    add_data_arguments(parser)
    add_run_arguments(parser)
    parser.add_argument("--scene", type=Path, metavar="RASTER", help="also compare on this scene, tiled and merged")
    parser.add_argument("--ground-truth", type=Path, metavar="FILE", help="labels of the scene, COCO or GeoJSON")
    words = "tolerances by precision (default: those in docs/reports.md)"
    parser.add_argument("--tolerances", type=Path, metavar="TOML", help=words)


def run(arguments: Arguments) -> dict[str, Any]:
    """Compare, write the result and print the verdict.

    Raises:
        VerdictError: A tolerance is exceeded or an engine failed; the result is written.
        KeyboardInterrupt: The comparison was interrupted; the result is written and marked as partial.
    """
    from deploy.parity.parity import run_parity
    from ifkd.core.errors import VerdictError
    from ifkd.core.files import require_writable

    require_writable(arguments.out)
    parity = run_parity(_plan(arguments))
    result = write_result(parity, _summary(parity), arguments)
    if not parity.passed:
        raise VerdictError(f"Parity failed ({parity.rule}). {parity.verdict}", result=result)
    return result


def _plan(arguments: Arguments) -> "ParityPlan":
    from deploy.accuracy.evaluated_model import bundle_model, choose_engines
    from deploy.accuracy.evaluation import open_data
    from deploy.parity.parity import ParityPlan
    from deploy.parity.scene_parity import read_scene_labels
    from deploy.parity.tolerances import ToleranceTable
    from deploy.scene.read.scene import Scene
    from export.bundle.bundle import open_bundle
    from ifkd.core.config import load
    from ifkd.core.errors import UsageError

    if arguments.ground_truth is not None and arguments.scene is None:
        raise UsageError("--ground-truth needs --scene", hint="Name the scene of these labels with --scene.")
    tolerances = ToleranceTable() if arguments.tolerances is None else load(arguments.tolerances, ToleranceTable)
    bundle = open_bundle(arguments.bundle)
    engines = choose_engines(bundle, arguments.backend, arguments.precision)
    if arguments.scene is not None:  # found before the comparison on images, which takes long
        with Scene(arguments.scene, imagery=bundle.manifest.input.imagery) as scene:
            read_scene_labels(arguments.ground_truth, scene, bundle.manifest.classes)
    model = bundle_model(bundle, server=arguments.server)
    return ParityPlan(
        bundle=bundle,
        model=model,
        dataset=open_data(
            arguments.data,
            images=arguments.images,
            recipe=model.recipe,
            classes=model.classes,
            command="parity",
            overrides=arguments.overrides,
        ),
        engines=tuple(engines),
        tolerances=tolerances,
        batch=arguments.batch,
        threads=arguments.threads,
        scene=arguments.scene,
        ground_truth=arguments.ground_truth,
    )


def _summary(parity: "Parity") -> str:
    from deploy.report.parity_tables import tolerance_table

    data = f"{parity.data.images} images with {parity.data.objects} objects of {parity.data.path}"
    lines = [f"{parity.bundle.name} compared with torch fp32 on {data}"]
    table = tolerance_table(parity.cells)
    lines += [table.plain()] if table is not None else []
    lines += [f"{cell.name}: {cell.verdict}" for cell in parity.cells]
    lines += [
        f"{one.name} on the scene {one.scene}: {'passed' if one.passed else 'FAILED'}, {one.engine_detections} "
        f"detections, {one.reference_detections} of the reference, {one.verdict}"
        for one in parity.scenes
    ]
    lines += [one.summary() for one in parity.screens]
    return "\n".join(lines)
