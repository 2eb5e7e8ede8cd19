"""Parts of the page that look at engines side by side: the reference, ratios, stages, the place of drift, crops."""

from collections.abc import Mapping, Sequence

from deploy.accuracy.evaluated_model import EvaluatedModelRecord
from deploy.bench.bench import Bench, BenchCell, name_of, on_gpu
from deploy.bench.speedup import Speedup
from deploy.bench.stage_timing import StageName
from deploy.parity.parity import Parity, ParityCell
from deploy.report import charts
from deploy.report.report import Report
from deploy.report.tables import ABSENT, ap, millions, milliseconds, parity_of, rate, size
from ifkd.core.html.chart import Series, bar_chart
from ifkd.core.html.svg import Chart
from ifkd.core.html.table import Table

STAGE_WORDS: dict[StageName, str] = {
    "read": "read the file",
    "preprocess": "prepare tiles",
    "upload": "upload",
    "infer": "infer",
    "download": "download",
    "decode": "select",
    "merge": "merge",
    "write": "write",
}


def reference_table(bench: Bench, report: Report) -> Table | None:
    """Return the reference and the bundle's engines: size, operations, accuracy, speed; None without a reference."""
    if bench.reference is None:
        return None
    ratios = {(ratio.name, ratio.batch): ratio for ratio in bench.ratios}
    least = min(cell.batch for cell in bench.cells)
    rows = []
    for cell in sorted(bench.cells, key=lambda cell: cell.role != "reference"):
        if cell.batch != least:
            continue
        subject = bench.reference if cell.role == "reference" else bench.subject
        row = _reference_row(cell, subject, bench.reference, ratios.get((name_of(cell), least)), report)
        rows.append((row[0], ABSENT if cell.engine is None else cell.engine.device, *row[1:]))
    return Table(
        caption=f"What the light detector saves against {bench.reference.name}, at batch {least}",
        headings=(
            "Engine",
            "On",
            "Parameters",
            "GFLOPs/tile",
            "MB",
            "mAP",
            "p50 ms",
            "Speed-up",
            "Over the rounds",
        ),
        numeric=(False, False, True, True, True, True, True, True, True),
        rows=tuple(rows),
    )


def ratio_table(bench: Bench) -> Table | None:
    """Return the ratios of engines measured in turns, or None without any."""
    if not bench.ratios:
        return None
    names = {name_of(cell): shown_name(cell, bench) for cell in bench.cells}
    return Table(
        caption="Engines against each other, measured in turns",
        headings=("Engine", "Against", "Batch", "Takes", "Over the rounds", "Speed-up", ""),
        numeric=(False, False, True, True, True, True, False),
        rows=tuple(
            (
                names[one.name],
                names[one.against],
                str(one.batch),
                f"x{one.ratio:.3f}",
                _between(one),
                f"x{one.speed_up:.2f}",
                "clear" if one.clear else "within noise",
            )
            for one in bench.ratios
        ),
    )


def location_table(cell: ParityCell) -> Table | None:
    """Return both sides followed stage by stage, or None when the engine gave no figures."""
    if cell.location is None:
        return None
    return Table(
        caption=f"Stage by stage: {cell.backend} {cell.precision} against the reference",
        headings=("Stage", "Compared", "Values", "Largest", "Mean", "Cosine", "Found"),
        numeric=(False, False, True, True, True, True, False),
        rows=tuple(
            (
                stage.name,
                stage.compares,
                f"{stage.compared:,}",
                _figure(stage.max),
                _figure(stage.mean),
                ABSENT if stage.cosine is None else f"{stage.cosine:.7f}",
                stage.finding if stage.agrees else f"DIFFERS: {stage.finding}",
            )
            for stage in cell.location.stages
        ),
    )


def drift_table(cells: Sequence[ParityCell]) -> Table | None:
    """Return the distributions of drift of engines, or None without pairs."""
    rows = []
    for cell in cells:
        if cell.drift is None:
            continue
        name = f"{cell.backend} {cell.precision}"
        for words, one in (
            ("1 - IoU", cell.drift.iou),
            ("score", cell.drift.score),
            ("box edge, px", cell.drift.corner_px),
        ):
            rows.append((name, words, *(f"{value:.3g}" for value in (one.mean, one.p50, one.p99, one.max))))
    if not rows:
        return None
    return Table(
        caption="How far paired detections lie apart",
        headings=("Engine", "Difference", "Mean", "p50", "p99", "Largest"),
        numeric=(False, False, True, True, True, True),
        rows=tuple(rows),
    )


def drift_charts(parity: Parity, index: int) -> list[Chart]:
    """Return how the differences of pairs are distributed, of IoU and of scores; nothing without pairs."""
    found = []
    for key, title, x_label in (
        ("iou", "How far boxes of pairs drift", "1 - IoU, bins growing"),
        ("score", "How far scores of pairs drift", "score difference, bins growing"),
    ):
        series, edges = [], ()
        for cell in parity.cells:
            one = None if cell.drift is None else getattr(cell.drift, key).histogram
            if one is not None:
                edges = one.edges
                shares = tuple(count / sum(one.counts) for count in one.counts)
                series.append(Series(f"{cell.backend} {cell.precision}", shares))
        if series:
            name = f"drift-{key}{'' if index == 0 else f'-{index + 1}'}"
            found.append(charts.histogram(name, title, edges, series, x_label=x_label))
    return found


def timing_table(bench: Bench) -> Table | None:
    """Return all that was made of the samples of each engine, or None when nothing was timed."""
    rows = []
    for cell in bench.cells:
        if cell.latency is None or cell.engine is None:
            continue
        run, rates, stability = cell.latency.per_batch, cell.latency.throughput, cell.latency.stability
        figures = (run.p50_ms, run.p90_ms, run.p95_ms, run.p99_ms, run.mean_ms)
        rows.append(
            (
                name_of(cell) + ("" if stability.stable else " (unstable)"),
                cell.engine.device,
                str(cell.batch),
                *(milliseconds(value) for value in figures),
                f"{stability.cov:.1%}",
                milliseconds(cell.latency.per_tile.p50_ms),
                rate(rates.mpix_per_s),
                ABSENT if rates.km2_per_h is None else f"{rates.km2_per_h:,.0f}",
            )
        )
    if not rows:
        return None
    return Table(
        caption="Latency of a run in full, ms, and what comes of it per tile; of the engine alone",
        headings=("Engine", "On", "Batch", "p50", "p90", "p95", "p99", "Mean", "CoV", "p50/tile", "MPix/s", "km²/h"),
        numeric=(False, False, *(True,) * 10),
        rows=tuple(rows),
    )


def cost_table(bench: Bench) -> Table | None:
    """Return what each engine costs alone in a process, with its file's digest; None where no engine ran."""
    rows = {}
    for cell in bench.cells:
        if cell.engine is None:
            continue
        one = cell.footprint
        figures: tuple[str, ...] = (ABSENT,) * 7
        if one is not None:
            times = (one.start_up_ms, one.load_ms, one.first_run_ms)
            memory = (one.bare_rss_mb, one.peak_rss_mb, one.gpu_memory_mb)
            figures = (*(f"{value:.0f}" for value in times), str(one.batch),
                       *(ABSENT if value is None else f"{value:.0f}" for value in memory))  # fmt: skip
        digest = cell.engine.sha256[:12]
        rows[name_of(cell)] = (name_of(cell), cell.engine.device, digest, size(cell.file_mb), *figures)
    if not rows:
        return None
    return Table(
        caption="Each engine alone in a process: times, ms, and resident memory, MB, before loading and at its peak",
        headings=("Engine", "On", "SHA-256", "File MB", "Start-up", "Of it load", "First", "Batch", "Before",
                  "Peak", "GPU"),
        numeric=(False, False, False, *(True,) * 8),
        rows=tuple(rows.values()),
    )  # fmt: skip


def shown_name(cell: BenchCell, bench: Bench) -> str:
    """Return a cell's name; with its device, in short, where the bench's engines computed on several."""
    devices = {one.engine.device for one in bench.cells if one.engine is not None}
    if len(devices) < 2 or cell.engine is None:
        return name_of(cell)
    return f"{name_of(cell)} on {cell.engine.device.split(',')[0]}"


def change_chart(parity: Parity, index: int) -> Chart | None:
    """Return the change of each class's AP under each engine, or None when nothing was compared."""
    cells = [cell for cell in parity.cells if cell.metrics is not None]
    names = [name for name, one in parity.reference_metrics.per_class.items() if one.mean_ap is not None]
    if not cells or not names:
        return None
    series = [
        Series(
            f"{cell.backend} {cell.precision}",
            tuple(None if (one := cell.per_class.get(name)) is None else one.mean_ap_change for name in names),
        )
        for cell in cells
    ]
    return charts.diverging(
        f"class-change{'' if index == 0 else f'-{index + 1}'}", "Change of AP by class, against the torch network",
        names, series, x_label="AP of the engine less AP of the reference",
    )  # fmt: skip


def batch_chart(bench: Bench, index: int) -> Chart | None:
    """Return throughput by batch size, or None with fewer than two sizes."""
    batches = sorted({cell.batch for cell in bench.cells if cell.latency is not None})
    if len(batches) < 2:
        return None
    rates = {
        (shown_name(cell, bench), cell.batch): cell.latency.throughput.tiles_per_s
        for cell in bench.cells
        if cell.latency is not None
    }
    labels = list(dict.fromkeys(label for label, _ in rates))
    series = [Series(label, tuple(rates.get((label, batch)) for batch in batches)) for label in labels]
    name = "batch" if index == 0 else f"batch-{index + 1}"
    title = "Throughput by batch size"
    return charts.lines(name, title, series, steps=batches, x_label="tiles per run", y_label="tiles per second")


def bench_stage_chart(bench: Bench, index: int) -> Chart | None:
    """Return the median time of each stage of an image for each engine, or None where it was not measured."""
    if not bench.stages:
        return None
    times = [{stage.stage: stage.p50_ms for stage in run.stages} for run in bench.stages]
    names = [stage for stage in STAGE_WORDS if any(stage in one for one in times)]
    series = [
        Series(f"{run.backend} {run.precision}", tuple(one.get(stage) for stage in names))
        for run, one in zip(bench.stages, times, strict=True)
    ]
    most = max(value for one in series for value in one.values if value is not None)
    name = "image-stages" if index == 0 else f"image-stages-{index + 1}"
    title = "Where the time of an image goes"
    groups = [STAGE_WORDS[stage] for stage in names]
    return bar_chart(name, title, groups, series, most=most, x_label="median ms per image", decimals=2,
        absent="nothing to copy",
    )  # fmt: skip


def machine_words(bench: Bench) -> str:
    """Return what the machine did while the bench ran, in a sentence or two."""
    machine = bench.machine
    if machine is None:
        return ""
    frequency = (
        ""
        if machine.cpu_mhz_min is None or machine.cpu_mhz_max is None
        else f", cores at {machine.cpu_mhz_min:.0f} to {machine.cpu_mhz_max:.0f} MHz"
    )
    steal = "" if machine.steal_share is None else f", {machine.steal_share:.1%} of CPU time given to other guests"
    words = (
        f"Meanwhile, over {machine.seconds:.0f} s: load average {machine.load_before:.2f} before and "
        f"{machine.load_after:.2f} after{frequency}{steal}, other processes busy on {machine.others_cpu:.2f} cores."
    )
    if not machine.gpus:
        return f"{words} GPU {machine.nvml}."
    if not on_gpu(bench):
        return f"{words} A GPU was there ({', '.join(gpu.name for gpu in machine.gpus)}), and nothing here ran on it."
    for gpu in machine.gpus:
        words += (
            f" {gpu.name}: SM clock {gpu.sm_clock_mhz_min} to {gpu.sm_clock_mhz_max} MHz, at most "
            f"{gpu.temperature_c_max} °C and {gpu.power_w_max:.0f} W, {gpu.memory_mb_peak:.0f} MB in use, "
            f"{'throttled: ' + ', '.join(gpu.throttled) if gpu.throttled else 'not throttled'}."
        )
    return words


def _reference_row(
    cell: BenchCell,
    subject: EvaluatedModelRecord | None,
    reference: EvaluatedModelRecord,
    ratio: Speedup | None,
    report: Report,
) -> tuple[str, ...]:
    is_reference = cell.role == "reference"
    own, whole = (None, None) if subject is None else (subject.parameters, reference.parameters)
    parameters = millions(own)
    if own and whole and not is_reference:
        parameters += f" (x{own / whole:.2f})"
    gflops = subject.gflops_per_tile if subject is not None else None
    megabytes = subject.weights_mb if subject is not None and cell.file_mb is None else cell.file_mb
    return (
        "reference, torch fp32" if is_reference else name_of(cell),
        parameters,
        ABSENT if gflops is None else f"{gflops:.2f}",
        ABSENT if megabytes is None else f"{megabytes:.1f}",
        ap(_accuracy(cell, subject, report)),
        ABSENT if cell.latency is None else milliseconds(cell.latency.per_batch.p50_ms),
        "1" if is_reference else ABSENT if ratio is None else f"x{ratio.speed_up:.2f}",
        ABSENT if ratio is None else f"x{1 / ratio.high:.2f} to x{1 / ratio.low:.2f}",
    )


def _accuracy(cell: BenchCell, subject: EvaluatedModelRecord | None, report: Report) -> float | None:
    """Return the mAP of the very file that was timed, by its digest; None when it was not measured."""
    parity = parity_of(cell, report.parities)
    if parity is not None and parity.metrics is not None:
        return parity.metrics.mean_ap
    digests: Mapping[str, float] = {one.engine.sha256: one.metrics.mean_ap for one in report.evaluations.values()} | {
        one.reference.sha256: one.reference_metrics.mean_ap for one in report.parities
    }
    digest = cell.engine.sha256 if cell.engine is not None else subject.sha256 if subject is not None else ""
    return digests.get(digest)


def _between(ratio: Speedup) -> str:
    return f"x{ratio.low:.3f} to x{ratio.high:.3f}"


def _figure(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3g}"
