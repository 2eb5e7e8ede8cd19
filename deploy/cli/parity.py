"""`ifkd parity`: a bundle's engine files against the torch network they came from."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploy.engines.engine import Backend, Engine
    from deploy.parity.parity import Parity
    from deploy.parity.scene_parity import SceneParity
    from deploy.parity.tolerances import PrecisionTolerances
    from export.bundle.bundle import Bundle
    from export.bundle.manifest import Precision


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder made by `ifkd export`")
    parser.add_argument("--data", type=Path, metavar="COCO.json", help="labeled images (the recipe's test split)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="their folder (`images` beside the json)")
    parser.add_argument("--out", type=Path, default=Path("parity.json"), help="the result (parity.json)")
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "torch", "tensorrt", "triton"],
        default=["onnxruntime"],
        help="runtimes to compare with torch fp32 (onnxruntime)",
    )
    parser.add_argument("--server", metavar="URL", help="of Triton, or of a model there (http://localhost:8000)")
    parser.add_argument(
        "--precision", nargs="+", choices=["fp32", "fp16", "int8", "int8-cpu"], help="precisions (all the bundle has)"
    )
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="tiles run together (4)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the runtimes (their own choice)")
    parser.add_argument("--scene", type=Path, metavar="RASTER", help="a scene to compare on as well, tiled and merged")
    parser.add_argument("--ground-truth", type=Path, metavar="FILE", help="the scene's labels, COCO or GeoJSON")
    parser.add_argument(
        "--tolerances", type=Path, metavar="TOML", help="gates by precision (docs/reports.md lists them)"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compare, write the result and print the verdict.

    Raises:
        VerdictError: A gate does not hold; the result is written all the same.
        KeyboardInterrupt: It was interrupted; what was compared until then is written and marked partial.
    """
    from ifkd.core.errors import VerdictError
    from ifkd.core.files import write_json

    parity = _compare(options)
    write_json(options.out, parity.model_dump(mode="json"))
    result = {**parity.model_dump(mode="json"), "out": str(options.out)}
    if not options.json:
        print(f"{_summary(parity)}\n{options.out}")  # noqa: T201
    if parity.partial:
        raise KeyboardInterrupt
    if not parity.passed:
        raise VerdictError(f"Parity failed ({parity.rule}). {parity.verdict}", result=result)
    return result


def _compare(options: argparse.Namespace) -> "Parity":
    from deploy.accuracy.evaluated_model import precisions_to_run, recipe_of, tiling_of
    from deploy.accuracy.evaluation import open_data
    from deploy.accuracy.provenance import BundleRecord, DataRecord, now
    from deploy.engines import open_engine
    from deploy.parity.parity import Parity, ParityCell, Reference, run_parity, verdict_of
    from deploy.parity.scene_parity import SceneParity
    from deploy.parity.tolerances import PrecisionTolerances
    from export.bundle.bundle import open_bundle
    from ifkd.core.config import load
    from ifkd.core.errors import UsageError

    if options.batch < 1:
        raise UsageError("--batch must be at least 1", got=options.batch)
    if options.ground_truth is not None and options.scene is None:
        raise UsageError("--ground-truth gives the labels of a scene", hint="Name the scene with --scene.")
    gates = PrecisionTolerances() if options.tolerances is None else load(options.tolerances, PrecisionTolerances)
    bundle = open_bundle(options.bundle)
    asked = precisions_to_run(bundle, options.precision)
    dataset = open_data(
        options.data,
        images=options.images,
        recipe=recipe_of(bundle),
        classes=bundle.manifest.classes,
        needed_by="parity",
    )
    framing = tiling_of(bundle)
    with open_engine(bundle, backend="torch", precision="fp32", threads=options.threads) as engine:
        reference = Reference(engine, dataset, framing, batch=options.batch)

    def opener(backend: "Backend", precision: "Precision") -> "Engine":
        server = options.server if backend == "triton" else None
        return open_engine(bundle, backend=backend, precision=precision, threads=options.threads, server=server)

    pairs = [(backend, precision) for backend in dict.fromkeys(options.backend) for precision in dict.fromkeys(asked)]
    cells: list[ParityCell] = []
    scenes: list[SceneParity] = []
    partial = False
    try:
        for cell in run_parity(reference, pairs, opener, gates):
            cells.append(cell)  # noqa: PERF402 - an interruption keeps what was compared
        for found in () if options.scene is None else _scene(options, bundle, pairs, opener, gates):
            scenes.append(found)  # noqa: PERF402 - likewise
    except KeyboardInterrupt:
        partial = True
    passed, verdict = verdict_of(cells, scenes, partial=partial)
    return Parity(
        created=now(),
        bundle=BundleRecord.of(bundle),
        data=DataRecord.of(dataset),
        selection=framing.selection,
        reference=reference.record,
        reference_metrics=reference.metrics,
        cells=tuple(cells),
        scenes=tuple(scenes),
        partial=partial,
        passed=passed,
        verdict=verdict,
    )


def _scene(
    options: argparse.Namespace,
    bundle: "Bundle",
    pairs: "list[tuple[Backend, Precision]]",
    opener: "Callable[[Backend, Precision], Engine]",
    gates: "PrecisionTolerances",
) -> "Iterator[SceneParity]":
    from deploy.engines import open_engine
    from deploy.parity.parity import run_scene_parity
    from deploy.parity.scene_parity import SceneReference, open_truth, settings_of
    from deploy.scene.read.scene import Scene

    manifest = bundle.manifest
    with Scene(options.scene, imagery=manifest.input.imagery) as scene:
        truth = open_truth(options.ground_truth, scene, manifest.classes)
        with open_engine(bundle, backend="torch", precision="fp32", threads=options.threads) as engine:
            reference = SceneReference(engine, scene, settings_of(bundle), truth=truth)
        yield from run_scene_parity(reference, pairs, opener, gates)


def _summary(parity: "Parity") -> str:
    from deploy.report.tables import gate_table

    data = parity.data
    head = f"{data.images} images with {data.objects} objects of {data.path}"
    lines = [f"{parity.bundle.name} against torch fp32, {head}"]
    table = gate_table(parity.cells)
    lines += [table.plain()] if table is not None else []
    lines += [f"{cell.backend} {cell.precision}: {cell.verdict}" for cell in parity.cells]
    lines += [
        f"{one.backend} {one.precision} on the scene {one.scene}: {'passed' if one.passed else 'FAILED'}, "
        f"{one.engine_detections} detections against {one.reference_detections}, {one.verdict}"
        for one in parity.scenes
    ]
    return "\n".join(lines)
