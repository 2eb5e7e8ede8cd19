"""Charts of the results in a report."""

from collections.abc import Mapping, Sequence

from deploy.accuracy.evaluation import Evaluation
from deploy.bench.bench_result import Bench
from deploy.bench.stage_timing import STAGES
from deploy.parity.parity_result import Parity
from deploy.report import charts
from deploy.report.bench_tables import engine_label
from deploy.report.charts import NamedPoint, SampleSeries
from deploy.report.reported_scene import ReportedScene
from deploy.report.verdict import parity_of
from ifkd.core.html.chart import Series, bar_chart
from ifkd.core.html.svg import Chart

IMAGE_STAGE_WORDS = {"read": "read the file", "preprocess": "prepare tiles"}
SCENE_STAGE_WORDS = {"preprocess": "prepare tiles", "wait": "wait for tiles", "decode": "postprocess"}
"""Names of stages that differ from those in bench.json and run.json."""
SCENE_STAGES = ("read", "preprocess", "wait", "infer", "decode", "merge", "write")


def accuracy_charts(evaluations: Mapping[str, Evaluation]) -> list[Chart]:
    """Return mAP against size, and the average precision of each class."""
    found = []
    points = [
        NamedPoint(name, evaluation.model.parameters / 1e6, evaluation.metrics.mean_ap)
        for name, evaluation in evaluations.items()
        if evaluation.model.parameters and evaluation.metrics.mean_ap is not None
    ]
    if len(points) > 1:
        title = "Accuracy against size"
        found.append(charts.scatter_chart("accuracy-size", title, points, x_label="million parameters", y_label="mAP"))
    if evaluations:
        names = list(next(iter(evaluations.values())).metrics.per_class)
        series = []
        for label, evaluation in evaluations.items():
            classes = [evaluation.metrics.per_class.get(name) for name in names]
            series.append(Series(label, tuple(None if one is None else one.mean_ap for one in classes)))
        found.append(bar_chart("class-ap", "Average precision by class", names, series, maximum=1.0, x_label="AP"))
    return found


def latency_charts(benches: Sequence[Bench], parities: Sequence[Parity]) -> list[Chart]:
    """Return mAP against latency, all samples, throughput by batch size, and the stages of an image."""
    rows, points = [], []
    for bench in benches:
        for cell in bench.cells:
            if cell.latency is None:
                continue
            label = f"{bench.bundle.name} " if len(benches) > 1 else ""
            label += f"{engine_label(cell, bench)}, batch {cell.batch}"
            label += "" if cell.latency.stability.stable else " (unstable)"
            samples = [value / 1e6 / cell.batch for window in cell.latency.windows_ns for value in window]
            rows.append(SampleSeries(label, tuple(samples)))
            parity = parity_of(cell, parities)
            mean_ap = None if parity is None or parity.metrics is None else parity.metrics.mean_ap
            if mean_ap is not None and cell.batch == 1:
                points.append(NamedPoint(engine_label(cell, bench), cell.latency.per_tile.p50_ms, mean_ap))
    found = []
    if len(points) > 1:
        title = "Accuracy against latency"
        found.append(charts.scatter_chart("accuracy-latency", title, points, x_label="p50 ms, batch 1", y_label="mAP"))
    if rows:
        found.append(charts.strip_chart("latency", "Latency per tile, all samples", rows, unit="ms"))
    for index, bench in enumerate(benches):
        more = (batch_chart(bench, index), stage_chart(bench, index))
        found += [one for one in more if one is not None]
    return found


def batch_chart(bench: Bench, index: int) -> Chart | None:
    """Return throughput by batch size, or None with a single size; `index` is that of the bench."""
    throughput = {
        (engine_label(cell, bench), cell.batch): cell.latency.throughput.tiles_per_s
        for cell in bench.cells
        if cell.latency is not None
    }
    batches = sorted({batch for _, batch in throughput})
    if len(batches) < 2:
        return None
    labels = dict.fromkeys(label for label, _ in throughput)
    series = [Series(label, tuple(throughput.get((label, batch)) for batch in batches)) for label in labels]
    name, title, x_label = _numbered("batch", index), "Throughput by batch size", "tiles per run"
    return charts.line_chart(name, title, series, steps=batches, x_label=x_label, y_label="tiles per second")


def stage_chart(bench: Bench, index: int) -> Chart | None:
    """Return the median time of each stage of an image for each engine, or None where it was not measured."""
    if not bench.stages:
        return None
    times = [{stage.stage: stage.p50_ms for stage in profile.stages} for profile in bench.stages]
    names = [stage for stage in STAGES if any(stage in one for one in times)]
    series = [
        Series(f"{profile.backend} {profile.precision}", tuple(one.get(stage) for stage in names))
        for profile, one in zip(bench.stages, times, strict=True)
    ]
    name, title = _numbered("image-stages", index), "Time of each stage of an image"
    words = [IMAGE_STAGE_WORDS.get(stage, stage) for stage in names]
    highest = max(value for one in times for value in one.values())
    options = {"x_label": "median ms per image", "missing_text": "nothing to copy"}
    return bar_chart(name, title, words, series, maximum=highest, decimals=2, **options)


def parity_charts(parity: Parity, index: int) -> list[Chart]:
    """Return the change of each class's AP, and the distributions of the drift; `index` is that of the parity."""
    found = []
    names = [name for name, one in parity.reference_metrics.per_class.items() if one.mean_ap is not None]
    series = []
    for cell in (one for one in parity.cells if one.metrics is not None):
        classes = [cell.per_class.get(name) for name in names]
        series.append(Series(cell.name, tuple(None if one is None else one.mean_ap_change for one in classes)))
    if series and names:
        title = "Change of AP by class, compared with the torch network"
        name, x_label = _numbered("class-change", index), "AP of the engine minus AP of the reference"
        found.append(charts.diverging_bar_chart(name, title, names, series, x_label=x_label))
    for key, title, x_label in (
        ("iou", "Differences of boxes", "1 - IoU, bins of growing width"),
        ("score", "Differences of scores", "score difference, bins of growing width"),
    ):
        drifts = {cell.name: getattr(cell.drift, key) for cell in parity.cells if cell.drift is not None}
        known = {name: one.histogram for name, one in drifts.items() if one.histogram is not None}
        series = [Series(name, tuple(count / sum(one.counts) for count in one.counts)) for name, one in known.items()]
        if known:
            name, edges = _numbered(f"drift-{key}", index), next(iter(known.values())).edges
            found.append(charts.histogram_chart(name, title, edges, series, x_label=x_label))
    return found


def scene_stage_chart(scene: ReportedScene, index: int) -> Chart | None:
    """Return the time of each stage of a scene, or None where run.json does not state it."""
    stages = {stage: value for stage, value in scene.run.seconds.items() if stage in SCENE_STAGES}
    if not stages:
        return None
    name, title = _numbered("stages", index), "Time of each stage of the scene"
    words = [SCENE_STAGE_WORDS.get(stage, stage) for stage in stages]
    series, highest = [Series("seconds", tuple(stages.values()))], max(1e-3, *stages.values())
    return bar_chart(name, title, words, series, maximum=highest, x_label="seconds", decimals=2)


def _numbered(name: str, index: int) -> str:
    """Return the name of a chart, with a number from the second one on."""
    return name if index == 0 else f"{name}-{index + 1}"
