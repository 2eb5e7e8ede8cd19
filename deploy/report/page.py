"""A report as a page, as Markdown and as lines for a terminal.

All is drawn from report.json alone, and equal input gives equal bytes.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.accuracy.evaluation import Evaluation
from deploy.report import charts
from deploy.report.charts import Point, StripSeries
from deploy.report.report import Report, ReportedScene, ReportPicture
from deploy.report.sections import (
    batch_chart,
    bench_stage_chart,
    change_chart,
    cost_table,
    drift_charts,
    drift_table,
    location_table,
    machine_words,
    ratio_table,
    reference_table,
    shown_name,
    timing_table,
)
from deploy.report.tables import (
    ABSENT,
    accuracy_table,
    device_of,
    engine_table,
    gate_table,
    milliseconds,
    parity_of,
    unmatched_table,
)
from deploy.report.verdict import Status, parts_of
from ifkd.core.config import flatten
from ifkd.core.files import atomic_path, make_folder, write_json
from ifkd.core.html.chart import Series, bar_chart
from ifkd.core.html.document import jinja_environment, style_sheet
from ifkd.core.html.svg import Chart

WORDS: dict[Status, str] = {
    "passed": "Passed",
    "reserved": "Passed, with reservations",
    "failed": "Failed",
    "open": "No verdict",
    "info": "Measured",
}
FINDING_WORDS: dict[Status, str] = {
    "passed": "Gates held",
    "reserved": "Reservation",
    "failed": "Gate failed",
    "open": "Open",
    "info": "Measured",
}
MARKS: dict[Status, str] = {"passed": "✓", "reserved": "!", "failed": "✗", "open": "?", "info": "·"}
STAGES = {
    "read": "read",
    "preprocess": "prepare tiles",
    "wait": "wait for tiles",
    "infer": "infer",
    "decode": "select",
    "merge": "merge",
    "write": "write",
}


@dataclass(frozen=True, slots=True)
class SummaryTile:
    """A figure to see first."""

    figure: str
    label: str
    condition: str


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.html, report.md and the charts into `folder`, and return their paths.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OutputError: The folder cannot be written.
    """
    pages = render(report)
    make_folder(folder)
    write_json(folder / "report.json", report.model_dump(mode="json"))
    for name, content in pages.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
    return [folder / "report.json", *(folder / name for name in pages)]


def render(report: Report) -> dict[str, bytes]:
    """Return the files of a report by their path in its folder.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    view = _view(report)
    templates = _environment()
    pages = {
        "report.html": templates.get_template("report.html.j2").render(view),
        "report.md": templates.get_template("report.md.j2").render(view),
    }
    pages |= {f"figures/{chart.name}.svg": chart.svg(standalone=True) + "\n" for chart in _all_charts(view)}
    files = {name: text.encode() for name, text in pages.items()}
    for index, scene in enumerate(report.scenes):
        files |= {picture_file(index, one): base64.b64decode(one.data_base64) for one in scene.pictures}
    return files


def picture_file(scene: int, picture: ReportPicture) -> str:
    """Return where a picture of the scene of that index lies in the report's folder."""
    ending = "jpg" if picture.media_type == "image/jpeg" else "png"
    return f"figures/scene{scene + 1}-{Path(picture.name).stem}.{ending}"


def console(report: Report) -> str:
    """Return the two tables and the verdict as plain text."""
    tables = [table for table in (accuracy_table(report), engine_table(report)) if table is not None]
    parts = [f"{table.caption}\n{table.plain()}" for table in tables]
    parts.append(f"Verdict: {WORDS[report.verdict.status]}. {report.verdict.headline}")
    return "\n\n".join(parts)


def _environment() -> Any:
    made = jinja_environment("deploy.report", need="`ifkd report`")
    made.filters["md"] = markdown_text
    return made


def markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def _view(report: Report) -> dict[str, Any]:
    """Return what the templates need; they choose nothing and compute nothing."""
    return {
        "report": report,
        "words": WORDS,
        "finding_words": FINDING_WORDS,
        "marks": MARKS,
        "style": style_sheet(),
        "tiles": _tiles(report),
        "accuracy": accuracy_table(report),
        "engines": engine_table(report),
        "accuracy_charts": _accuracy_charts(report),
        "speed_charts": _speed_charts(report),
        "parity": [
            {
                "parity": parity,
                "gates": gate_table(parity.cells),
                "drift": drift_table(parity.cells),
                "charts": [
                    one for one in (change_chart(parity, index), *drift_charts(parity, index)) if one is not None
                ],
                "cells": [(cell, unmatched_table(cell)) for cell in parity.cells],
                "stages": [table for cell in parity.cells if (table := location_table(cell)) is not None],
            }
            for index, parity in enumerate(report.parities)
        ],
        "scenes": [
            {
                "scene": scene,
                "facts": _scene_facts(scene),
                "chart": _stage_chart(scene, index),
                "pictures": [(picture, picture_file(index, picture)) for picture in scene.pictures],
            }
            for index, scene in enumerate(report.scenes)
        ],
        "beside": [
            {
                "reference": reference_table(bench, report),
                "ratios": ratio_table(bench),
                "timing": timing_table(bench),
                "cost": cost_table(bench),
                "machine": machine_words(bench),
            }
            for bench in report.benches
        ],
        "devices": [device_of(bench) for bench in report.benches],
        "conditions": _accuracy_conditions(report),
        "environment": setting_rows(report.environment),
    }


def _all_charts(view: Mapping[str, Any]) -> list[Chart]:
    stages = [scene["chart"] for scene in view["scenes"] if scene["chart"] is not None]
    changes = [chart for part in view["parity"] for chart in part["charts"]]
    return [*view["accuracy_charts"], *view["speed_charts"], *changes, *stages]


def _tiles(report: Report) -> list[SummaryTile]:
    tiles = []
    parts = parts_of(report.evaluations)
    best = parts.get("distilled") or next(iter(report.evaluations), None)
    if best is not None:
        evaluation = report.evaluations[best]
        condition = f"{best}, {evaluation.data.images} images"
        if "plain" in parts and parts["plain"] != best:
            gain = evaluation.metrics.mean_ap - report.evaluations[parts["plain"]].metrics.mean_ap
            condition = f"{best}; {gain:+.3f} to the plain student"
        tiles.append(SummaryTile(f"{evaluation.metrics.mean_ap:.3f}", "mAP", condition))
        whole = report.evaluations[parts["teacher"]].subject.parameters if "teacher" in parts else None
        own = evaluation.subject.parameters
        if own and whole and parts["teacher"] != best:
            tiles.append(
                SummaryTile(
                    f"{own / whole:.0%}", "of the teacher's parameters", f"{own / 1e6:.2f} of {whole / 1e6:.2f} M"
                )
            )
    cells = [cell for bench in report.benches for cell in bench.cells if cell.latency and cell.role == "bundle"]
    if cells:
        cell = min(cells, key=lambda cell: cell.latency.per_tile.p50_ms if cell.latency else 0.0)
        assert cell.latency is not None
        assert cell.engine is not None  # a latency has an engine
        still = "" if cell.latency.stability.stable else ", unstable"
        condition = f"median, {cell.backend} {cell.precision}, batch {cell.batch}, {cell.engine.device}{still}"
        tiles.append(SummaryTile(f"{milliseconds(cell.latency.per_tile.p50_ms)} ms", "per tile", condition))
    if report.scenes and report.scenes[0].objects is not None:
        scene = report.scenes[0]
        seconds = scene.seconds.get("total")
        took = f" in {seconds:.1f} s" if seconds is not None else ""
        tiles.append(SummaryTile(f"{scene.objects:,}", "objects in the scene", f"{scene.name}{took}"))
    return tiles


def _accuracy_charts(report: Report) -> list[Chart]:
    found = []
    points = [
        Point(name, evaluation.subject.parameters / 1e6, evaluation.metrics.mean_ap)
        for name, evaluation in report.evaluations.items()
        if evaluation.subject.parameters
    ]
    if len(points) > 1:
        title = "Accuracy against size"
        found.append(charts.scatter("accuracy-size", title, points, x_label="million parameters", y_label="mAP"))
    if report.evaluations:
        names = list(next(iter(report.evaluations.values())).metrics.per_class)
        series = [
            Series(
                label,
                tuple(
                    metrics.mean_ap if (metrics := evaluation.metrics.per_class.get(name)) else None for name in names
                ),
            )
            for label, evaluation in report.evaluations.items()
        ]
        found.append(bar_chart("class-ap", "Average precision by class", names, series, most=1.0, x_label="AP"))
    return found


def _speed_charts(report: Report) -> list[Chart]:
    found = []
    several = len(report.benches) > 1
    rows, points = [], []
    for bench in report.benches:
        for cell in bench.cells:
            if cell.latency is None:
                continue
            label = f"{bench.bundle.name} " if several else ""
            label += f"{shown_name(cell, bench)}, batch {cell.batch}"
            still = "" if cell.latency.stability.stable else " (unstable)"
            samples = [value / 1e6 / cell.batch for window in cell.latency.windows_ns for value in window]
            rows.append(StripSeries(label + still, tuple(samples)))
            parity = parity_of(cell, report.parities)
            if parity is not None and parity.metrics is not None and cell.batch == 1:
                points.append(Point(shown_name(cell, bench), cell.latency.per_tile.p50_ms, parity.metrics.mean_ap))
    if len(points) > 1:
        title = "Accuracy against latency"
        found.append(charts.scatter("accuracy-latency", title, points, x_label="p50 ms, batch 1", y_label="mAP"))
    if rows:
        found.append(charts.strips("latency", "Latency per tile, every run", rows, unit="ms"))
    for index, bench in enumerate(report.benches):
        more = (batch_chart(bench, index), bench_stage_chart(bench, index))
        found += [chart for chart in more if chart is not None]
    return found


def _stage_chart(scene: ReportedScene, index: int) -> Chart | None:
    stages = {STAGES[stage]: value for stage, value in scene.seconds.items() if stage in STAGES}
    if not stages:
        return None
    most = max(1e-3, *stages.values())
    name = "stages" if index == 0 else f"stages-{index + 1}"
    series = [Series("seconds", tuple(stages.values()))]
    return bar_chart(
        name, "Where the time of the scene went", list(stages), series, most=most, x_label="seconds", decimals=2
    )


def _scene_facts(scene: ReportedScene) -> list[tuple[str, str]]:
    """Return what is known of a scene run, as pairs of name and words."""
    run = scene.run
    where, tiles, engine = _table(run, "scene"), _table(run, "tiles"), _table(run, "engine")
    facts: list[tuple[str, Any]] = [("Scene", scene.name)]
    if "height_px" in where and "width_px" in where:
        facts.append(("Size", f"{where['width_px']:,} x {where['height_px']:,} px"))
    if where.get("gsd_m"):
        facts.append(("Ground sample distance", f"{where['gsd_m']:.3g} m"))
    if where.get("crs"):
        facts.append(("Coordinate system", where["crs"]))
    if "count" in tiles:
        facts.append(
            ("Tiles", f"{tiles['count']} ({tiles.get('empty', 0)} empty, {len(tiles.get('holes', ()))} unreadable)")
        )
    facts.append(("Objects", ABSENT if scene.objects is None else f"{scene.objects:,}"))
    counts = run.get("objects_per_class")
    if isinstance(counts, dict):
        present = [f"{name} {count}" for name, count in counts.items() if count]
        facts.append(("By class", ", ".join(present) or "none"))
    facts += _truth_facts(run.get("score"))
    if "backend" in engine:
        facts.append(("Engine", f"{engine['backend']} {engine.get('precision', '')} on {engine.get('device', ABSENT)}"))
    if "total" in scene.seconds:
        facts.append(("Time", f"{scene.seconds['total']:.2f} s, writing included"))
    if scene.files:
        facts.append(("Files", f"{', '.join(Path(file).name for file in scene.files)} in {scene.folder}"))
    return [(name, str(value)) for name, value in facts]


def _table(run: Mapping[str, Any], key: str) -> dict[str, Any]:
    part = run.get(key)
    return part if isinstance(part, dict) else {}


SCORE_WORDS = (
    ("mAP", "mean_ap"), ("AP50", "ap50"), ("AP75", "ap75"), ("precision", "precision"), ("recall", "recall"),
)  # fmt: skip
"""What is shown of a scene's score, and its key; a run of an older version lacks some."""


def _truth_facts(score: Any) -> list[tuple[str, str]]:
    if not isinstance(score, dict):
        return []
    shown = [f"{word} {score[key]:.3f}" for word, key in SCORE_WORDS if isinstance(score.get(key), int | float)]
    conditions = (
        f"{score.get('objects', ABSENT)} labeled objects, score above {score.get('score_threshold', ABSENT)}, IoU 0.5"
    )
    return [("Against labels", f"{', '.join(shown) or 'nothing to compare'} ({conditions})")]


def _accuracy_conditions(report: Report) -> list[str]:
    """Return the conditions of the accuracy figures; those that all share are said once."""
    seen = {name: _seen(one) for name, one in report.evaluations.items()}
    shared = len(set(seen.values())) == 1
    lines = [f"All: {next(iter(seen.values()))}"] if shared else []
    for name, one in report.evaluations.items():
        engine = f"{one.engine.backend} {one.engine.backend_version} {one.engine.precision} on {one.engine.device}"
        subject = f"{one.subject.kind} {one.subject.path}, sha256 {one.subject.sha256[:12]}"
        lines.append(f"{name}: {engine}; {subject}" + ("" if shared else f"; {seen[name]}"))
    return lines


def _seen(one: Evaluation) -> str:
    return (
        f"{one.data.images} images with {one.data.objects} objects of {one.data.path}, scale {one.scale:g}, "
        f"score above {one.selection.score_threshold:g}, NMS at IoU {one.selection.iou_threshold:g}, "
        f"at most {one.selection.max_detections} detections per image"
    )


def setting_rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return nested settings as pairs of dotted key and text."""
    return [(key, _setting_text(value)) for key, value in flatten(values).items()]


def _setting_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping | list) for item in value):
            return json.dumps(value, ensure_ascii=False)
        return ", ".join(str(item) for item in value) or "none"
    return "unknown" if value is None else str(value)
