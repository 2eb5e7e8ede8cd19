"""Tables of a bench: latency in full, process cost, comparison with the reference, speedups."""

from deploy.accuracy.evaluated_model import EvaluatedModelRecord
from deploy.bench.bench_result import Bench, BenchCell
from deploy.bench.speedup import EngineSpeedup
from deploy.report.report import Report
from deploy.report.tables import ABSENT, file_size, make_table, millions, shown, three_digits
from deploy.report.verdict import parity_of
from ifkd.core.html.table import Table


def timing_table(bench: Bench) -> Table | None:
    """Return the statistics of the samples of each engine, or None when nothing was timed."""
    rows = []
    overlaps = any(cell.pipelined_tiles_per_s is not None for cell in bench.cells)
    for cell in bench.cells:
        if cell.latency is None or cell.engine is None:
            continue
        run, throughput, stability = cell.latency.per_batch, cell.latency.throughput, cell.latency.stability
        name = cell.name + ("" if stability.stable else " (unstable)")
        durations = map(three_digits, (run.p50_ms, run.p90_ms, run.p95_ms, run.p99_ms, run.mean_ms))
        rates = map(three_digits, (cell.latency.per_tile.p50_ms, throughput.mpix_per_s))
        area = shown(throughput.km2_per_h, ",.0f")
        pipelined = [shown(cell.pipelined_tiles_per_s, ",.0f")] if overlaps else []
        figures = (*durations, f"{stability.cov:.1%}", *rates, area, *pipelined)
        rows.append((name, cell.engine.device, str(cell.batch), *figures))
    columns = ":Engine | :Device | Batch | p50 | p90 | p95 | p99 | Mean | CoV | p50/tile | MPix/s | km²/h"
    columns += " | Tiles/s overlapped" if overlaps else ""
    return make_table("Latency per run, ms, and throughput of inference alone", columns, rows)


def cost_table(bench: Bench) -> Table | None:
    """Return start-up time and memory of each engine in a process of its own, or None when no engine ran."""
    rows = {}
    for cell in bench.cells:
        if cell.engine is None:
            continue
        figures: tuple[str, ...] = (ABSENT,) * 7
        if (cost := cell.process_cost) is not None:
            times = (f"{value:.0f}" for value in (cost.start_up_ms, cost.load_ms, cost.first_run_ms))
            memory = (shown(value, ".0f") for value in (cost.base_rss_mb, cost.peak_rss_mb, cost.gpu_memory_mb))
            figures = (*times, str(cost.batch), *memory)
        rows[cell.name] = (cell.name, cell.engine.device, cell.engine.sha256[:12], file_size(cell.file_mb), *figures)
    caption = "Each engine in a process of its own: times, ms, and resident memory, MB"
    columns = ":Engine | :Device | :SHA-256 | File MB | Start-up | Load | First run | Batch | Before load | Peak | GPU"
    return make_table(caption, columns, rows.values())


def reference_table(bench: Bench, report: Report) -> Table | None:
    """Return size, operations, accuracy and latency of the reference and the bundle; None without a reference."""
    reference = bench.reference
    if reference is None:
        return None
    batch = min(cell.batch for cell in bench.cells)
    speedups = {one.name: one for one in bench.speedups if one.batch == batch}
    cells = sorted((one for one in bench.cells if one.batch == batch), key=lambda one: one.role != "reference")
    rows = (_reference_row(cell, bench, reference, speedups.get(cell.name), report) for cell in cells)
    caption = f"Savings of the student compared with {reference.name}, at batch {batch}"
    columns = ":Engine | :Device | Parameters | GFLOPs/tile | MB | mAP | p50 ms | Speedup | Range over rounds"
    return make_table(caption, columns, rows)


def speedup_table(bench: Bench) -> Table | None:
    """Return the speedups, or None without any."""
    labels = {cell.name: engine_label(cell, bench) for cell in bench.cells}
    rows = []
    for one in bench.speedups:
        window = f"x{one.latency_ratio_min:.3f} to x{one.latency_ratio_max:.3f}"
        figures = (str(one.batch), f"x{one.latency_ratio:.3f}", window, f"x{one.speedup:.2f}")
        rows.append((labels[one.name], labels[one.baseline], *figures, "clear" if one.conclusive else "within noise"))
    columns = ":Engine | :Baseline | Batch | Latency ratio | Range over rounds | Speedup | :Significance"
    return make_table("Engines compared, measured in interleaved turns", columns, rows)


def engine_label(cell: BenchCell, bench: Bench) -> str:
    """Return the name of an engine, with its device where the engines of the bench ran on several."""
    devices = {one.engine.device for one in bench.cells if one.engine is not None}
    if len(devices) < 2 or cell.engine is None:
        return cell.name
    return f"{cell.name} on {cell.engine.device.split(',')[0]}"


def describe_machine(bench: Bench) -> str:
    """Return the record of the machine in words; empty without one."""
    machine = bench.machine
    if machine is None:
        return ""
    words = (
        f"During {machine.seconds:.0f} s of measurement: load average {machine.load_before:.2f} before and "
        f"{machine.load_after:.2f} after"
    )
    if machine.cpu_mhz_min is not None:
        words += f", cores at {machine.cpu_mhz_min:.0f} to {machine.cpu_mhz_max:.0f} MHz"
    if machine.steal_fraction is not None:
        words += f", {machine.steal_fraction:.1%} of CPU time given to other guests"
    words += f", {machine.other_processes_cores:.2f} cores used by other processes."
    if not machine.gpus:
        return f"{words} GPU {machine.nvml}."
    if not bench.used_gpu:
        return f"{words} The machine has a GPU ({', '.join(gpu.name for gpu in machine.gpus)}), which no engine used."
    for gpu in machine.gpus:
        words += (
            f" {gpu.name}: SM clock {gpu.sm_clock_mhz_min} to {gpu.sm_clock_mhz_max} MHz, at most "
            f"{gpu.temperature_c_max} °C and {gpu.power_w_max:.0f} W, {gpu.memory_mb_peak:.0f} MB in use, "
            f"{'throttled: ' + ', '.join(gpu.throttled) if gpu.throttled else 'not throttled'}."
        )
    return words


def _reference_row(
    cell: BenchCell, bench: Bench, reference: EvaluatedModelRecord, speedup: EngineSpeedup | None, report: Report
) -> tuple[str, ...]:
    is_reference = cell.role == "reference"
    model = reference if is_reference else bench.model
    own = None if model is None else model.parameters
    parameters = millions(own)
    if own and reference.parameters and not is_reference:
        parameters += f" (x{own / reference.parameters:.2f})"
    gflops = None if model is None else model.gflops_per_tile
    megabytes = model.weights_mb if model is not None and cell.file_mb is None else cell.file_mb
    factor = window = ABSENT
    if speedup is not None:
        factor = f"x{speedup.speedup:.2f}"
        window = f"x{1 / speedup.latency_ratio_max:.2f} to x{1 / speedup.latency_ratio_min:.2f}"
    return (
        "reference, torch fp32" if is_reference else cell.name,
        ABSENT if cell.engine is None else cell.engine.device,
        parameters,
        shown(gflops, ".2f"),
        shown(megabytes, ".1f"),
        shown(_mean_ap(cell, model, report), ".3f"),
        ABSENT if cell.latency is None else three_digits(cell.latency.per_batch.p50_ms),
        "1" if is_reference else factor,
        window,
    )


def _mean_ap(cell: BenchCell, model: EvaluatedModelRecord | None, report: Report) -> float | None:
    """Return the mAP of the file that was timed, by its digest; None when it was not measured."""
    parity = parity_of(cell, report.parities)
    if parity is not None and parity.metrics is not None:
        return parity.metrics.mean_ap
    by_digest = {one.engine.sha256: one.metrics.mean_ap for one in report.evaluations.values()}
    by_digest |= {one.reference.sha256: one.reference_metrics.mean_ap for one in report.parities}
    digest = cell.engine.sha256 if cell.engine is not None else model.sha256 if model is not None else ""
    return by_digest.get(digest)
