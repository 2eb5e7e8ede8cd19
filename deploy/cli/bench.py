"""`ifkd bench`: latency, stages and process cost of a bundle's files on this machine."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import cli
from deploy.cli.evaluate import LOCAL_BACKENDS, add_bundle_arguments, add_data_arguments, write_result

if TYPE_CHECKING:
    from deploy.accuracy.evaluated_model import EvaluatedModel
    from deploy.bench.bench import BenchPlan
    from deploy.bench.bench_result import Bench
    from deploy.bench.latency import TimingConfig
    from deploy.bench.session import BenchmarkCase
    from deploy.engines.engine import Backend
    from export.bundle.bundle import Bundle
    from export.bundle.manifest import Precision
    from ifkd.data.coco import CocoDataset


class Arguments(cli.Arguments):
    """Arguments of `ifkd bench`."""

    bundle: Path
    out: Path
    backend: "list[Backend]"
    precision: "list[Precision] | None"
    batch: list[int]
    seconds: float
    samples: int
    rounds: int
    threads: int | None
    reference: Path | None
    overrides: list[str]
    data: Path | None
    images: Path | None
    scene: Path | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_bundle_arguments(parser, out="bench.json", backends=LOCAL_BACKENDS, runtimes="runtimes")
    words = "tiles per run (default: 1)"
    parser.add_argument("--batch", nargs="+", type=cli.positive_int, default=[1], metavar="N", help=words)
    words = "least duration per engine and batch (default: 3)"
    parser.add_argument("--seconds", type=cli.positive_float, default=3.0, metavar="S", help=words)
    words = "least runs per engine and batch (default: 30)"
    parser.add_argument("--samples", type=cli.positive_int, default=30, metavar="N", help=words)
    words = "turns of each engine (default: 6)"
    parser.add_argument("--rounds", type=cli.positive_int, default=6, metavar="N", help=words)
    words = "CPU threads (default: the runtime's choice)"
    parser.add_argument("--threads", type=cli.positive_int, metavar="N", help=words)
    others = "the bundle's files and torch network, to measure the speedup"
    words = f"a checkpoint or bundle whose torch network is timed in turns with {others}"
    parser.add_argument("--reference", type=Path, metavar="TEACHER", help=words)
    add_data_arguments(parser)
    words = "also measure the throughput on this scene, without and with the screen of the bundle"
    parser.add_argument("--scene", type=Path, metavar="RASTER", help=words)


def run(arguments: Arguments) -> dict[str, Any]:
    """Measure, write the result and print its table.

    Raises:
        VerdictError: An engine failed; the result is written.
        KeyboardInterrupt: The measurement was interrupted; the result is written and marked as partial.
    """
    from deploy.bench.bench import run_bench
    from ifkd.core.errors import VerdictError
    from ifkd.core.files import require_writable

    require_writable(arguments.out)
    bench = run_bench(_plan(arguments))
    result = write_result(bench, summary(bench), arguments)
    failures = [f"{cell.name} batch {cell.batch}: {cell.failure}" for cell in bench.cells if cell.failure]
    if failures:
        words = "; ".join(" ".join(failure.split()) for failure in failures)
        raise VerdictError(f"{len(failures)} of {len(bench.cells)} measurements failed. {words}", result=result)
    return result


def _plan(arguments: Arguments) -> "BenchPlan":
    from deploy.accuracy.evaluated_model import bundle_model, open_model
    from deploy.bench.bench import BenchPlan
    from deploy.scene.read.scene import Scene
    from export.bundle.bundle import open_bundle
    from ifkd.core.errors import UsageError

    timing = _timing(arguments)
    bundle = open_bundle(arguments.bundle)
    if arguments.scene is not None and (bundle.manifest.screen is None or bundle.manifest.screen.threshold is None):
        raise UsageError("The bundle has no screen with a calibrated threshold", hint="Omit --scene.")
    if arguments.scene is not None:
        # Mistakes are found before the timing, which takes long.
        Scene(arguments.scene, imagery=bundle.manifest.input.imagery).close()
    model = bundle_model(bundle)
    return BenchPlan(
        bundle=bundle,
        model=model,
        reference=None if arguments.reference is None else open_model(arguments.reference),
        dataset=_dataset(model, arguments),
        cases=_cases(bundle, arguments),
        timing=timing,
        threads=arguments.threads,
        scene=arguments.scene,
    )


def _timing(arguments: Arguments) -> "TimingConfig":
    from deploy.bench.latency import TimingConfig

    seconds, samples, rounds = arguments.seconds, arguments.samples, arguments.rounds
    return TimingConfig(warmup_s=min(0.5, seconds), min_s=seconds, min_samples=samples, rounds=rounds)


def _cases(bundle: "Bundle", arguments: Arguments) -> "tuple[BenchmarkCase, ...]":
    """Return the engines and batch sizes to measure, those of the reference first."""
    from deploy.accuracy.evaluated_model import choose_engines
    from deploy.bench.session import BenchmarkCase, EngineKey

    with_reference = arguments.reference is not None
    backends: list[Backend] = [*arguments.backend, "torch"] if with_reference else arguments.backend
    keys = [EngineKey("torch", "fp32", "reference")] if with_reference else []
    keys += [
        EngineKey(backend, precision)
        for backend, precision in choose_engines(bundle, backends, arguments.precision)
        # Torch runs in fp32 unless a precision is named.
        if backend != "torch" or precision == "fp32" or arguments.precision is not None
    ]
    return tuple(BenchmarkCase(key, batch) for key in keys for batch in sorted(set(arguments.batch)))


def _dataset(model: "EvaluatedModel", arguments: Arguments) -> "CocoDataset | None":
    """Return the images to run on: the named ones, else the test split of the recipe where it can be read."""
    from deploy.accuracy.evaluation import open_data
    from ifkd.core.errors import DataError

    try:
        return open_data(
            arguments.data,
            images=arguments.images,
            recipe=model.recipe,
            classes=model.classes,
            command="bench",
            overrides=arguments.overrides,
        )
    except DataError:
        if arguments.data is not None or arguments.overrides:
            raise
        return None


def summary(bench: "Bench") -> str:
    """Return the table of engines, with warnings and speedups, as text."""
    from deploy.report.tables import engine_table

    table = engine_table([bench])
    lines = [f"{bench.bundle.name} on {bench.devices}, input: {bench.tiles.description}"]
    lines += [table.plain()] if table is not None else ["There was nothing to measure."]
    rule = ""
    for cell in bench.cells:
        name = f"{cell.name} batch {cell.batch}"
        if cell.failure is not None:
            lines.append(f"{name}: {cell.failure}")
        elif cell.latency is not None and not cell.latency.stability.stable:
            lines.append(f"{name} is UNSTABLE: {cell.latency.stability.reason}")
            rule = f"Rule for stable timing: {cell.latency.stability.rule}"
    lines += [rule] if rule else []
    lines += [
        f"{one.name} is {one.speedup:.2f} times as fast as {one.baseline} at batch {one.batch}: latency ratio "
        f"{one.latency_ratio:.3f} ({one.latency_ratio_min:.3f} to {one.latency_ratio_max:.3f} over {one.rounds} rounds)"
        for one in bench.speedups
    ]
    lines += [one.summary() for one in bench.screens]
    lines += [f"Warning: {warning}." for warning in bench.machine_warnings()]
    lines += dict.fromkeys(cell.note for cell in bench.cells if cell.note is not None)
    return "\n".join(lines)
