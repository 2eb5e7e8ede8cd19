"""Tables of accuracy, engines and the operational figures of scenes, for HTML, Markdown and the terminal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from deploy.accuracy.evaluation import Evaluation
from deploy.bench.bench_result import Bench, BenchCell
from deploy.parity.parity_result import Parity, ParityCell
from deploy.report.verdict import parity_of, same_engine, trained_roles
from deploy.scene.operational_figures import SIZES, DetectionRates, OperationalFigures
from deploy.scene.scene_score import SceneScore
from deploy.scene.screen_search import ScreenSearch, SearchRecall
from ifkd.core.html.table import Table
from ifkd.data.intervals import Interval

ABSENT = "–"
RATE_COLUMNS = "Detected | Objects | Probability of detection | False alarms | False alarms per km²"
MAX_REASON_LENGTH = 60


def accuracy_table(evaluations: Mapping[str, Evaluation]) -> Table | None:
    """Return accuracy and size of the detectors, or None without evaluations."""
    teacher = trained_roles(evaluations).get("teacher")
    teacher_parameters = evaluations[teacher].model.parameters if teacher else None
    rows = []
    for name, evaluation in evaluations.items():
        metrics, model, engine = evaluation.metrics, evaluation.model, evaluation.engine
        accuracy = (shown(value, ".3f") for value in (metrics.mean_ap, metrics.ap50, metrics.ap75))
        size = (millions(model.parameters), shown(model.gflops_per_tile, ".2f"))
        both = model.parameters and teacher_parameters
        fraction = f"{model.parameters / teacher_parameters:.0%}" if both else ABSENT  # type: ignore[operator]
        rows.append((name, _network(evaluation), *accuracy, *size, fraction, f"{engine.backend} {engine.precision}"))
    columns = ":Detector | :Network | mAP | AP50 | AP75 | Parameters | GFLOPs/tile | Of teacher | :Runtime"
    return make_table("Detectors: accuracy and size", columns, rows)


def engine_table(benches: Sequence[Bench], parities: Sequence[Parity] = ()) -> Table | None:
    """Return size, latency and parity of the engines by device, the fastest file first, or None without any."""
    rows: list[tuple[str, ...]] = []
    for bench in benches:
        prefix = f"{bench.bundle.name}/" if len(benches) > 1 else ""
        rows += [_bench_row(cell, parities, prefix) for cell in _by_use(bench)]
        for one in bench.not_measured:
            name, size = f"{prefix}{PurePosixPath(one.file).name}", file_size(one.file_mb)
            runtime = f"{(one.builder or 'engine').split()[0]} {one.precision or ''}".strip()
            rows.append((name, runtime, ABSENT, size, *(ABSENT,) * 5, one.reason))
    for cell in () if benches else (cell for parity in parities for cell in parity.cells):
        file, device = (cell.engine.file, cell.engine.device) if cell.engine else (ABSENT, ABSENT)
        rows.append((file, cell.name, device, *(ABSENT,) * 5, parity_word(cell), "not measured"))
    columns = ":File | :Runtime | :Device | MB | Batch | p50 ms | p95 ms | Tiles/s | :Parity | :Timing"
    return make_table("Engines: size, latency and parity", columns, rows)


def fastest_files(benches: Sequence[Bench], parities: Sequence[Parity]) -> list[str]:
    """Return, for each bundle and device, the file to use there: the fastest one that passed parity."""
    lines = []
    for bench in benches:
        passed = [cell for cell in _by_use(bench) if (other := parity_of(cell, parities)) is not None and other.passed]
        best: dict[str, BenchCell] = {}
        for cell in passed:
            if cell.engine is not None and cell.latency is not None and cell.role == "bundle":
                best.setdefault(cell.engine.device, cell)
        for device, cell in best.items():
            file = cell.engine.file if cell.engine is not None else ABSENT
            where = f"{bench.bundle.name}, on {device}" if len(benches) > 1 else f"On {device}"
            lines.append(f"{where}: use {file} ({cell.backend} {cell.precision}), the fastest file that passed parity.")
    return lines


def make_table(caption: str, columns: str, rows: Iterable[tuple[str, ...]]) -> Table | None:
    """Return a table, or None without rows; `columns` are separated by ` | `, and those of text start with a colon."""
    headings, cells = columns.split(" | "), tuple(rows)
    numeric = tuple(not heading.startswith(":") for heading in headings)
    return Table(caption, tuple(heading.removeprefix(":") for heading in headings), numeric, cells) if cells else None


def parity_word(cell: ParityCell) -> str:
    """Return the parity verdict in a table cell."""
    if cell.failure is not None:
        return "failed to run"
    return "passed" if cell.passed else "FAILED"


def shown(value: float | None, form: str) -> str:
    """Return a number in a format such as `.3f`, or a dash for None."""
    return ABSENT if value is None else format(value, form)


def millions(count: int | None) -> str:
    """Return a number of parameters in millions."""
    return ABSENT if count is None else f"{count / 1e6:.2f} M"


def file_size(megabytes: float | None) -> str:
    """Return a file size in megabytes."""
    return shown(megabytes, ".1f" if megabytes is None or megabytes >= 0.1 else ".3f")


def three_digits(value: float) -> str:
    """Return a duration or a rate with about three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def operational_tables(score: SceneScore | None) -> list[Table]:
    """Return the tables of a score; none without figures."""
    figures = None if score is None else score.operational
    return [] if figures is None else [rates_table(figures), curve_table(figures)]


def rates_table(figures: OperationalFigures) -> Table:
    """Return the rates of all classes, of each class and of each size."""
    medium, large = (f"{limit:g} {figures.size_unit}" for limit in figures.size_limits)
    ranges = (f"below {medium}", f"{medium} to {large}", f"from {large}")
    rows = [("all classes", figures.total), ("all, of any class", figures.any_class), *figures.per_class.items()]
    rows += [(f"{name}, {words}", figures.per_size[name]) for name, words in zip(SIZES, ranges, strict=True)]
    return _rates_table(f"Operational figures: {_rate_conditions(figures)}", ":Objects", rows)


def curve_table(figures: OperationalFigures) -> Table:
    """Return the rates of all classes over the score threshold."""
    rows = [(f"{point.score_threshold:g}", point.rates) for point in figures.curve]
    return _rates_table("Operational figures over the score threshold", "Score from", rows)


def operational_text(figures: OperationalFigures) -> str:
    """Return the rates as text for the terminal."""
    table = rates_table(figures)
    return f"{table.caption}\n{table.plain()}"


def _by_use(bench: Bench) -> list[BenchCell]:
    """Return the cells by device, the engine with the lowest latency per tile first; the reference last."""
    fastest: dict[str, float] = {}
    for cell in bench.cells:
        own = cell.latency.per_tile.p50_ms if cell.latency is not None else math.inf
        fastest[cell.name] = min(own, fastest.get(cell.name, math.inf))

    def rank(cell: BenchCell) -> tuple[bool, bool, str, float, str, int]:
        device = None if cell.engine is None else cell.engine.device
        return (cell.role == "reference", device is None, device or "", fastest[cell.name], cell.name, cell.batch)

    return sorted(bench.cells, key=rank)


def _bench_row(cell: BenchCell, parities: Sequence[Parity], prefix: str) -> tuple[str, ...]:
    prefix += "reference: " if cell.role == "reference" else ""
    engine = f"{cell.backend} {cell.precision}"
    name = f"{prefix}{cell.engine.file}" if cell.engine else f"{prefix}({engine})"
    parity = parity_of(cell, parities)
    is_reference = any(same_engine(cell.engine, one.reference) for one in parities)
    word = parity_word(parity) if parity else "reference" if is_reference else ABSENT
    figures: tuple[str, ...] = (ABSENT,) * 3
    timing = f"not measured: {_first_line(cell.failure)}" if cell.failure else "not measured"
    if (latency := cell.latency) is not None:
        values = (latency.per_batch.p50_ms, latency.per_batch.p95_ms, latency.throughput.tiles_per_s)
        figures = tuple(map(three_digits, values))
        timing = "aborted" if cell.failure else "stable" if latency.stability.stable else "UNSTABLE"
        timing += f", n={latency.runs}"
    device = ABSENT if cell.engine is None else cell.engine.device
    return (name, engine, device, file_size(cell.file_mb), str(cell.batch), *figures, word, timing)


def _first_line(text: str) -> str:
    """Return the first line of a message, shortened for a table cell; the verdict has the full message."""
    line = text.strip().splitlines()[0] if text.strip() else "no reason was given"
    return line if len(line) <= MAX_REASON_LENGTH else f"{line[: MAX_REASON_LENGTH - 1]}…"


def _network(evaluation: Evaluation) -> str:
    detector = evaluation.model.detector
    words = " ".join(str(detector[key]) for key in ("family", "backbone") if key in detector)
    return (words + (f", {detector['channels']} channels" if "channels" in detector else "")) or ABSENT


def _rate_conditions(figures: OperationalFigures) -> str:
    """Return the conditions of the figures in words."""
    rule = f"IoU {figures.min_iou:g}" if figures.within_m is None else f"centers closer than {figures.within_m:g} m"
    area = "an unknown area" if figures.area_km2 is None else f"{figures.area_km2:.4g} km² searched"
    return f"score from {figures.score_threshold:g}, {rule}, {area}, {figures.confidence:.0%} intervals"


def _rates_table(caption: str, first: str, rows: list[tuple[str, DetectionRates]]) -> Table:
    cells = [
        (
            name,
            str(rates.detected),
            str(rates.objects),
            _with_interval(rates.detection_probability, rates.detection_probability_interval, ".3f"),
            str(rates.false_alarms),
            _with_interval(rates.false_alarms_per_km2, rates.false_alarms_per_km2_interval, ".3g"),
        )
        for name, rates in rows
    ]
    table = make_table(caption, f"{first} | {RATE_COLUMNS}", cells)
    assert table is not None
    return table


def _with_interval(value: float | None, interval: Interval | None, form: str) -> str:
    if value is None or interval is None:
        return ABSENT
    low, high = (format(limit, form) for limit in interval)
    return f"{value:{form}} ({low} to {high})"


def screen_tables(searches: Sequence[ScreenSearch]) -> list[Table]:
    """Return the throughput without and with a screen, and the recall of each search by class and size."""
    rows = []
    for one in searches:
        without, beside = (f"{value:.1f}" for value in one.megapixels_per_second)
        tiles = (str(one.screening.passed), str(one.screening.skipped))
        rows.append((one.scene, one.engine, *tiles, without, beside, f"x{one.speedup:.2f}"))
    columns = ":Scene | :Engine | Passed | Skipped | Million px/s without screen | With screen | Speedup"
    tables = [make_table("Searches without and with the screen, in turns", columns, rows)]
    for one in searches:
        low, high = (f"{limit:g} px" for limit in one.size_limits_px)
        sizes = zip(SIZES, (f"below {low}", f"{low} to {high}", f"from {high}"), strict=True)
        parts = [("all", one.total), *one.per_class.items()]
        parts += [(f"{name}, {words}", one.per_size[name]) for name, words in sizes]
        caption = f"Detections with the screen, {one.engine} on {one.scene}; those without it are 100 %"
        tables.append(make_table(caption, ":Objects | Without | With | Recall", map(_recall_row, parts)))
    return [table for table in tables if table is not None]


def _recall_row(part: tuple[str, SearchRecall]) -> tuple[str, ...]:
    name, one = part
    return name, str(one.detections), str(one.found), _with_interval(one.recall, one.interval, ".3f")
