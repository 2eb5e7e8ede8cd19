"""`ifkd bench`: the latency of a bundle's files on this machine."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.accuracy.image_detection import TilingConfig
    from deploy.bench.bench import Bench
    from deploy.bench.stage_timing import StageRun
    from deploy.engines.engine import Backend, Engine
    from export.bundle.bundle import Bundle
    from export.bundle.manifest import Precision
    from ifkd.data.coco import CocoDataset


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder made by `ifkd export`")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="the result (bench.json)")
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "torch", "tensorrt"],
        default=["onnxruntime"],
        help="runtimes (onnxruntime)",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=["fp32", "fp16", "int8", "int8-cpu"],
        help="precisions (all the bundle has)",
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N", help="tiles per run (1)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="least time per engine and batch (3)")
    parser.add_argument("--samples", type=int, default=30, metavar="N", help="least runs per engine and batch (30)")
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="turns each engine gets (6)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the runtimes (their own choice)")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="TEACHER",
        help="a checkpoint or bundle whose torch network is measured in turns with the bundle's files, so that the "
        "speed-up is a figure; the bundle's own torch network takes part as well",
    )
    parser.add_argument("--data", type=Path, metavar="COCO.json", help="images to run (the recipe's test split)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="their folder (`images` beside the json)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the result and print its table.

    Raises:
        VerdictError: An engine that was asked for gave no figures, or broke off; the result is written all the same.
        KeyboardInterrupt: It was interrupted; what was measured until then is written and marked partial.
    """
    from deploy.accuracy.evaluated_model import open_model, tiling_of
    from deploy.bench.bench import BenchmarkSession, bench_tiles, speedups_of, unmeasured_files
    from deploy.bench.latency import GroundCoverage
    from deploy.bench.process_cost import measure_process_cost
    from deploy.bench.system_monitor import SystemMonitor
    from deploy.engines import open_engine
    from export.bundle.bundle import open_bundle

    procedure = _procedure(options)
    bundle = open_bundle(options.bundle)
    framing = tiling_of(bundle)
    dataset = _images(bundle, options)
    tiles, source = bench_tiles(dataset, framing)
    subject = open_model(options.bundle)
    reference = None if options.reference is None else open_model(options.reference)
    gsd_m = bundle.manifest.defaults.gsd_m
    gsd_m = None if gsd_m is None else gsd_m / framing.scale
    ground = GroundCoverage(framing.tile_px, framing.overlap_px, gsd_m)

    def open_one(backend: "Backend", precision: "Precision") -> Any:
        return open_engine(bundle, backend=backend, precision=precision, threads=options.threads)

    def open_reference() -> Any:
        assert reference is not None
        return reference.open("torch", "fp32", options.threads)

    def weigh_one(role: str, backend: "Backend", precision: "Precision", batch: int) -> Any:
        path = options.reference if role == "reference" else options.bundle
        return measure_process_cost(path, backend, precision, batch=batch, threads=options.threads)

    combinations = _combinations(bundle, options)
    interrupted = False
    stages: list[StageRun] = []
    beside = None if reference is None else open_reference
    with BenchmarkSession(bundle, open_one, tiles, procedure, beside) as race:
        with SystemMonitor() as watch:
            try:
                race.run(combinations)
            except KeyboardInterrupt:
                interrupted = True
        try:
            for engine in () if interrupted else race.engines():
                stages += _stages(engine, dataset, framing)
            if not interrupted:
                race.weigh(weigh_one)
        except KeyboardInterrupt:
            interrupted = True
        cells = race.cells(ground)
        bench = _result(
            bundle,
            procedure=procedure,
            threads=options.threads,
            tiles=source,
            gsd_m=gsd_m,
            overlap_px=framing.overlap_px,
            cells=cells,
            subject=subject.with_complexity(),
            reference=None if reference is None else reference.with_complexity(),
            ratios=speedups_of(cells),
            stages=tuple(stages),
            machine=watch.result(),
            not_measured=unmeasured_files(bundle, cells),
            partial=interrupted,
        )
    return _tell(bench, options)


def _tell(bench: "Bench", options: argparse.Namespace) -> dict[str, Any]:
    """Write and print the result; what is wrong with it ends the verb afterwards."""
    from ifkd.core.errors import VerdictError
    from ifkd.core.files import write_json

    write_json(options.out, bench.model_dump(mode="json"))
    result = {**bench.model_dump(mode="json"), "out": str(options.out)}
    if not options.json:
        print(f"{_summary(bench)}\n{options.out}")  # noqa: T201
    if bench.partial:
        raise KeyboardInterrupt
    failures = [
        f"{cell.backend} {cell.precision} batch {cell.batch}: {cell.failure}" for cell in bench.cells if cell.failure
    ]
    if failures:
        words = "; ".join(" ".join(failure.split()) for failure in failures)
        raise VerdictError(f"{len(failures)} of {len(bench.cells)} measurements failed. {words}", result=result)
    return result


def _stages(engine: "Engine", dataset: "CocoDataset | None", framing: "TilingConfig") -> "list[StageRun]":
    """Return an engine's stages; none without images, or when it does not get through: its cell has said so."""
    from deploy.bench.stage_timing import measure_stages

    if dataset is None:
        return []
    try:
        return [measure_stages(engine, dataset.images, framing)]
    except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the rest is measured
        logging.getLogger("ifkd").warning("No stages of %s %s: %s", engine.info.backend, engine.info.precision, error)
        return []


def _procedure(options: argparse.Namespace) -> Any:
    from deploy.bench.latency import TimingConfig
    from ifkd.core.errors import UsageError

    for flag, value in (("--seconds", options.seconds), ("--samples", options.samples), ("--rounds", options.rounds)):
        if value <= 0:
            raise UsageError(f"{flag} must be above 0", got=value)
    if min(options.batch) < 1:
        raise UsageError("--batch must be at least 1", got=min(options.batch))
    return TimingConfig(
        warmup_s=min(0.5, options.seconds),
        min_s=options.seconds,
        min_samples=options.samples,
        rounds=options.rounds,
    )


def _combinations(bundle: "Bundle", options: argparse.Namespace) -> "list[tuple[Backend, Precision, int]]":
    """Return backend, precision and batch of every cell; torch is the fp32 reference and has no other precision."""
    from deploy.accuracy.evaluated_model import precisions_to_run

    asked = precisions_to_run(bundle, options.precision)
    return [
        (backend, precision, batch)
        for backend in dict.fromkeys([*options.backend, *(["torch"] if options.reference is not None else [])])
        for precision in asked
        if not (backend == "torch" and precision != "fp32" and options.precision is None)
        for batch in sorted(set(options.batch))
    ]


def _images(bundle: "Bundle", options: argparse.Namespace) -> "CocoDataset | None":
    """Return the images to run: those asked for, else the recipe's where they are at hand."""
    from deploy.accuracy.evaluated_model import recipe_of
    from deploy.accuracy.evaluation import open_data
    from ifkd.core.errors import DataError

    classes = bundle.manifest.classes
    recipe = recipe_of(bundle)
    try:
        return open_data(options.data, images=options.images, recipe=recipe, classes=classes, needed_by="bench")
    except DataError:
        if options.data is not None:
            raise
        return None


def _result(bundle: "Bundle", **facts: Any) -> "Bench":
    from deploy.accuracy.provenance import BundleRecord, now
    from deploy.bench.bench import Bench
    from deploy.bench.system_monitor import process_peak_mb
    from ifkd.core.environment import describe

    return Bench(
        created=now(),
        bundle=BundleRecord.of(bundle),
        process_peak_mb=process_peak_mb(),
        environment=describe(),
        **facts,
    )


def _summary(bench: "Bench") -> str:
    from deploy.bench.bench import reservations
    from deploy.report.report import assemble
    from deploy.report.tables import device_of, engine_table

    table = engine_table(assemble(title="", evaluations={}, benches=[bench]))
    lines = [f"{bench.bundle.name} on {device_of(bench)}, fed with {bench.tiles.description}"]
    lines += [table.plain()] if table is not None else ["There was nothing to measure."]
    rules = []
    for cell in bench.cells:
        name = f"{cell.backend} {cell.precision} batch {cell.batch}"
        if cell.failure is not None:
            lines.append(f"{name}: {cell.failure}")
        elif cell.latency is not None and not cell.latency.stability.stable:
            lines.append(f"{name} is UNSTABLE: {cell.latency.stability.reason}")
            rules.append(f"Stable means: {cell.latency.stability.rule}")
    lines += rules[:1]
    lines += [
        f"{one.name} takes {one.ratio:.3f} times as long as {one.against} at batch {one.batch} "
        f"({one.low:.3f} to {one.high:.3f} over {one.rounds} rounds): {one.speed_up:.2f} times as fast"
        for one in bench.ratios
    ]
    lines += [f"Reservation: {words}." for words in reservations(bench)]
    lines += dict.fromkeys(cell.remark for cell in bench.cells if cell.remark is not None)
    return "\n".join(lines)
