"""Summary of a report for the model card of the bundle whose files it measured."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from deploy.accuracy.provenance import DataRecord, EngineRecord
from deploy.engines.engine import EngineInfo
from deploy.report.bench_tables import describe_machine
from deploy.report.report import Report
from deploy.report.tables import ABSENT, engine_table, fastest_files, make_table, rates_table, shown
from export.bundle.bundle import MANIFEST_NAME, Bundle, open_bundle
from export.bundle.manifest import ReportedMetric, ReportedTable, ReportSummary
from ifkd.core.errors import UsageError
from ifkd.core.files import require_writable, sha256_of
from ifkd.core.html.table import Table
from ifkd.core.postprocess import PostprocessConfig
from ifkd.data.metrics import Metrics

AVERAGES = {"mean_ap": ("map", "mAP"), "ap50": ("map_50", "AP50"), "ap75": ("map_75", "AP75")}
SCENE_METRICS = {
    **AVERAGES,
    "precision": ("precision", "Precision"),
    "recall": ("recall", "Recall"),
    "f1": ("f1", "F1"),
}


@dataclass(frozen=True, slots=True)
class MeasuredAccuracy:
    """Accuracy of one file on labeled images."""

    engine: EngineRecord
    data: DataRecord
    postprocess: PostprocessConfig
    metrics: Metrics

    @property
    def file(self) -> str:
        """File and runtime."""
        return f"{self.engine.file}, {_runtime(self.engine)}"

    @property
    def images(self) -> str:
        """The data in words."""
        name = PurePath(self.data.path).name
        return f"{name}, {self.data.images} images with {self.data.objects} objects, sha256 {self.data.sha256[:12]}"


def open_measured_bundle(path: Path, report: Report) -> Bundle:
    """Return the bundle at `path` if latency, parity, scenes and accuracy of a report are those of its files.

    Evaluations of other detectors, such as the teacher, are allowed beside one of the bundle.

    Raises:
        UsageError: The report measured other files, or none; the message lists them.
        BundleError: There is no bundle, or a measured file is missing or damaged.
        OutputError: The bundle cannot be written.
    """
    bundle = open_bundle(path)
    require_writable(path / MANIFEST_NAME)
    own = {record.sha256 for record in bundle.manifest.files.values()}
    evaluated = [(one.engine.file, one.engine.sha256) for one in report.evaluations.values()]
    of_bundle = [one for one in evaluated if one[1] in own]
    measured = dict.fromkeys([*_measured_files(report), *(of_bundle or evaluated)])
    foreign = [one for one in measured if one[1] not in own]
    if foreign or not measured:
        got = ", ".join(f"{name} with sha256 {digest[:12]}" for name, digest in foreign) or "no result of a file"
        expected = ", ".join(f"{name} with {one.sha256[:12]}" for name, one in bundle.manifest.files.items())
        hint = "Measure the files of this bundle, and write the report from these results."
        problem = f"The report {report.title!r} is not of the files in {bundle.path}"
        raise UsageError(problem, got=got, expected=expected, hint=hint)
    digests = {sha256 for _, sha256 in measured}
    for name in (name for name, one in bundle.manifest.files.items() if one.sha256 in digests):
        bundle.file(name)
    return bundle


def summarize(report: Report, bundle: Bundle, *, report_path: Path) -> ReportSummary:
    """Return the results of a report, written to `report_path`, that are of a bundle's files."""
    accuracies = _accuracies(report, bundle)
    digests = {sha256 for _, sha256 in _measured_files(report)} | {one.engine.sha256 for one in accuracies}
    files = {name: one.sha256 for name, one in bundle.manifest.files.items() if one.sha256 in digests}
    problems = [one.text for one in report.verdict.reasons if one.status in ("failed", "warning", "incomplete")]
    tables = (one for one in _tables(report, accuracies) if one is not None)
    return ReportSummary(
        title=report.title,
        created=report.created,
        producer=report.producer,
        report_sha256=sha256_of(report_path),
        measured=files,
        metrics=(*_image_metrics(accuracies), *_scene_metrics(report)),
        tables=tuple(
            ReportedTable(caption=one.caption, headings=one.headings, numeric=one.numeric, rows=one.rows)
            for one in tables
        ),
        conditions=tuple(dict.fromkeys(_conditions(report, accuracies))),
        limits=(*problems, *_weak_classes(accuracies), *report.notes),
    )


def _measured_files(report: Report) -> Iterator[tuple[str, str]]:
    """Yield name and digest of the files behind latency, parity and scenes."""
    for bench in report.benches:
        for cell in bench.cells:
            if cell.role == "bundle" and cell.engine is not None:
                yield cell.engine.file, cell.engine.sha256
        yield from ((one.file, one.sha256) for one in bench.not_measured)
    for parity in report.parities:
        compared = (cell.engine for cell in parity.cells if cell.engine is not None)
        yield from ((one.file, one.sha256) for one in (parity.reference, *compared))
    for scene in report.scenes:
        yield scene.run.engine.file, scene.run.engine.sha256


def _accuracies(report: Report, bundle: Bundle) -> list[MeasuredAccuracy]:
    """Return the accuracy of each file: the evaluations, then what parity measured beside them."""
    names = {record.sha256: name for name, record in bundle.manifest.files.items()}
    rows = [(one.engine, one.data, one.postprocess, one.metrics) for one in report.evaluations.values()]
    for parity in report.parities:
        rows.append((parity.reference, parity.data, parity.postprocess, parity.reference_metrics))
        rows += [
            (cell.engine, parity.data, parity.postprocess, cell.metrics)
            for cell in parity.cells
            if cell.engine is not None and cell.metrics is not None
        ]
    found: dict[tuple[str, ...], MeasuredAccuracy] = {}
    for engine, data, postprocess, metrics in rows:
        if engine.sha256 in names:
            named = engine.model_copy(update={"file": names[engine.sha256]})  # a checkpoint has another name
            key = (engine.sha256, _runtime(engine), data.sha256, postprocess.model_dump_json())
            found.setdefault(key, MeasuredAccuracy(named, data, postprocess, metrics))
    return list(found.values())


def _tables(report: Report, accuracies: list[MeasuredAccuracy]) -> Iterator[Table | None]:
    rows = (
        (one.file, one.images, *(shown(getattr(one.metrics, key), ".3f") for key in AVERAGES)) for one in accuracies
    )
    yield make_table("Accuracy", ":File | :Images | mAP | AP50 | AP75", rows)
    for one in accuracies[:1]:
        classes = (
            (name, str(of.objects), *(shown(getattr(of, key), ".3f") for key in AVERAGES))
            for name, of in one.metrics.per_class.items()
        )
        yield make_table(f"Accuracy by class, {one.file}", ":Class | Objects | mAP | AP50 | AP75", classes)
    benches = [
        one.model_copy(update={"cells": tuple(cell for cell in one.cells if cell.role == "bundle")})
        for one in report.benches
    ]
    yield engine_table(benches, report.parities)
    yield _parity_table(report)
    yield _scene_table(report)
    for run in (scene.run for scene in report.scenes):
        if run.score is not None and run.score.operational is not None:
            yield replace(table := rates_table(run.score.operational), caption=f"{run.scene.name}: {table.caption}")


def _parity_table(report: Report) -> Table | None:
    rows = []
    for parity in report.parities:
        data = f"{parity.data.images} images"
        rows += [(one.engine.file if one.engine else ABSENT, one.name, data, one.verdict) for one in parity.cells]
        rows += [(ABSENT, one.name, f"the scene {one.scene}", one.verdict) for one in parity.scenes]
    return make_table("Detections compared with the torch network", ":File | :Runtime | :Data | :Verdict", rows)


def _scene_table(report: Report) -> Table | None:
    rows = []
    for run in (scene.run for scene in report.scenes):
        figures = [ABSENT] * len(SCENE_METRICS)
        if run.score is not None:
            figures = [shown(getattr(run.score, key), ".3f") for key in SCENE_METRICS]
        threshold = f"{run.settings.postprocess.score_threshold:g}"
        rows.append(
            (run.scene.name, f"{run.engine.file}, {_runtime(run.engine)}", threshold, str(run.objects), *figures)
        )
    columns = " | ".join(name for _, name in SCENE_METRICS.values())
    return make_table("Scenes", f":Scene | :File | Score from | Detections | {columns}", rows)


def _image_metrics(accuracies: list[MeasuredAccuracy]) -> Iterator[ReportedMetric]:
    for one in accuracies:
        for key, (kind, name) in AVERAGES.items():
            if (value := getattr(one.metrics, key)) is not None:
                yield ReportedMetric(data=one.images, kind=kind, name=f"{name} ({one.file})", value=value)


def _scene_metrics(report: Report) -> Iterator[ReportedMetric]:
    """Yield the metrics of labeled scenes; precision, recall and F1 are those at the score threshold of the run."""
    for run in (scene.run for scene in report.scenes if scene.run.score is not None):
        assert run.score is not None
        data = f"Scene {run.scene.name} with {run.score.objects} objects"
        condition = f"{run.engine.file}, {_runtime(run.engine)}, score from {run.score.score_threshold:g}"
        for key, (kind, name) in SCENE_METRICS.items():
            if (value := getattr(run.score, key)) is not None:
                yield ReportedMetric(data=data, kind=kind, name=f"{name} ({condition})", value=value)


def _conditions(report: Report, accuracies: list[MeasuredAccuracy]) -> Iterator[str]:
    for one in accuracies:
        after = one.postprocess
        yield (
            f"Accuracy: COCO box metrics of detections with a score above {after.score_threshold:g}, after NMS at IoU "
            f"{after.iou_threshold:g}, at most {after.max_detections} per tile."
        )
    for bench in report.benches:
        threads = "the runtimes' own number of threads" if bench.threads is None else f"{bench.threads} threads"
        conditions = f"{bench.scope}; {bench.tiles.description}; {threads}"
        yield f"Latency per batch: {conditions}. {describe_machine(bench)}".rstrip()
    yield from fastest_files(report.benches, report.parities)
    for run in (scene.run for scene in report.scenes):
        size = f"{run.scene.width_px} x {run.scene.height_px} px"
        gsd = "" if run.scene.gsd_m is None else f" at {run.scene.gsd_m:.3g} m"
        yield f"Scene {run.scene.name}: {size}{gsd}, in {run.seconds['total']:.1f} s on {run.engine.device}."


def _weak_classes(accuracies: list[MeasuredAccuracy]) -> Iterator[str]:
    """Yield the class with the lowest AP50, and the classes whose accuracy is unknown."""
    for one in accuracies[:1]:
        known = {name: of.ap50 for name, of in one.metrics.per_class.items() if of.ap50 is not None}
        if len(known) > 1:
            worst = min(known, key=lambda name: known[name])
            yield f"Of all classes, {worst} has the lowest AP50 in {one.images}: {known[worst]:.3f}."
        if absent := [name for name, of in one.metrics.per_class.items() if of.ap50 is None]:
            yield f"No object of {', '.join(absent)} is labeled in {one.images}, so the accuracy is unknown."


def _runtime(engine: EngineRecord | EngineInfo) -> str:
    computed = "" if engine.compute_type is None else f" computed in {engine.compute_type}"
    return f"{engine.backend} {engine.backend_version} {engine.precision}{computed} on {engine.device}"
