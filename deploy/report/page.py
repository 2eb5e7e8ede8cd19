"""Render a report as HTML, Markdown and text; all of it comes from report.json, and equal input gives equal bytes."""

import base64
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from deploy.accuracy.evaluation import Evaluation
from deploy.parity.tolerances import AP_LABELS
from deploy.report.bench_tables import cost_table, describe_machine, reference_table, speedup_table, timing_table
from deploy.report.figures import accuracy_charts, latency_charts, parity_charts, scene_stage_chart
from deploy.report.parity_tables import drift_source_table, drift_table, tolerance_table, unmatched_table
from deploy.report.report import Report
from deploy.report.reported_scene import ReportedScene, ReportPicture
from deploy.report.tables import (
    accuracy_table,
    engine_table,
    fastest_files,
    operational_tables,
    screen_tables,
    shown,
    three_digits,
)
from deploy.report.verdict import Status, fastest_cell, trained_roles
from ifkd.core.config import flatten
from ifkd.core.files import atomic_path, make_folder, write_json
from ifkd.core.html.document import jinja_environment, style_sheet
from ifkd.core.html.svg import Chart

VERDICT_WORDS: dict[Status, str] = {
    "passed": "Passed",
    "warning": "Passed, with warnings",
    "failed": "Failed",
    "incomplete": "No verdict",
    "info": "Measured",
}
REASON_WORDS: dict[Status, str] = {**VERDICT_WORDS, "warning": "Warning", "incomplete": "Incomplete"}
MARKS: dict[Status, str] = {"passed": "✓", "warning": "!", "failed": "✗", "incomplete": "?", "info": "·"}
SCORE_LABELS = {**AP_LABELS, "precision": "precision", "recall": "recall"}


class SummaryCard(NamedTuple):
    """A main result at the top of the page."""

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
    """Return the content of a report's files by their path in its folder.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    view = _view(report)
    templates = jinja_environment("deploy.report", need="`ifkd report`")
    templates.filters |= {"md": escape_markdown, "fixed": partial(shown, form=".3f")}
    pages = {name: templates.get_template(f"{name}.j2").render(view) for name in ("report.html", "report.md")}
    pages |= {f"figures/{chart.name}.svg": chart.svg(standalone=True) + "\n" for chart in _all_charts(view)}
    files = {name: text.encode() for name, text in pages.items()}
    for index, scene in enumerate(report.scenes):
        files |= {_picture_path(index, one): base64.b64decode(one.data_base64) for one in scene.pictures}
    return files


def console(report: Report) -> str:
    """Return the tables of accuracy and engines, and the verdict, as text."""
    tables = (accuracy_table(report.evaluations), engine_table(report.benches, report.parities))
    parts = [f"{table.caption}\n{table.plain()}" for table in tables if table is not None]
    parts += fastest_files(report.benches, report.parities)
    parts.append(f"Verdict: {VERDICT_WORDS[report.verdict.status]}. {report.verdict.headline}")
    return "\n\n".join(parts)


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows unchanged."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text).replace("\n", " ")


def setting_rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return nested settings as pairs of dotted key and text."""
    return [(key, _setting_text(value)) for key, value in flatten(values).items()]


def _setting_text(value: Any) -> str:
    if not isinstance(value, list | tuple):
        return "unknown" if value is None else str(value)
    if any(isinstance(item, Mapping | list) for item in value):
        return json.dumps(value, ensure_ascii=False)
    return ", ".join(map(str, value)) or "none"


def _view(report: Report) -> dict[str, Any]:
    """Return the variables of the templates, which contain no logic of their own."""
    return {
        "report": report,
        "verdict_words": VERDICT_WORDS,
        "reason_words": REASON_WORDS,
        "marks": MARKS,
        "style": style_sheet(),
        "tiles": _summary_tiles(report),
        "accuracy": accuracy_table(report.evaluations),
        "accuracy_charts": accuracy_charts(report.evaluations),
        "conditions": _accuracy_conditions(report.evaluations),
        "engines": engine_table(report.benches, report.parities),
        "fastest_files": fastest_files(report.benches, report.parities),
        "latency_charts": latency_charts(report.benches, report.parities),
        "benches": [
            {
                "bench": bench,
                "timing": timing_table(bench),
                "cost": cost_table(bench),
                "reference": reference_table(bench, report),
                "speedups": speedup_table(bench),
                "machine": describe_machine(bench),
                "screens": screen_tables(bench.screens),
            }
            for bench in report.benches
        ],
        "parities": [
            {
                "parity": parity,
                "tolerances": tolerance_table(parity.cells),
                "drift": drift_table(parity.cells),
                "screens": screen_tables(parity.screens),
                "charts": parity_charts(parity, index),
                "cells": [(cell, unmatched_table(cell)) for cell in parity.cells],
                "sources": [table for cell in parity.cells if (table := drift_source_table(cell)) is not None],
            }
            for index, parity in enumerate(report.parities)
        ],
        "scenes": [
            {
                "facts": _scene_facts(scene),
                "chart": scene_stage_chart(scene, index),
                "tables": operational_tables(scene.run.score),
                "pictures": [(picture, _picture_path(index, picture)) for picture in scene.pictures],
            }
            for index, scene in enumerate(report.scenes)
        ],
        "environment": setting_rows(report.environment),
    }


def _all_charts(view: Mapping[str, Any]) -> list[Chart]:
    parity = [chart for part in view["parities"] for chart in part["charts"]]
    stages = [scene["chart"] for scene in view["scenes"] if scene["chart"] is not None]
    return [*view["accuracy_charts"], *view["latency_charts"], *parity, *stages]


def _picture_path(scene: int, picture: ReportPicture) -> str:
    """Return the path of a picture in the report's folder."""
    suffix = "jpg" if picture.media_type == "image/jpeg" else "png"
    return f"figures/scene{scene + 1}-{Path(picture.name).stem}.{suffix}"


def _summary_tiles(report: Report) -> list[SummaryCard]:
    tiles = []
    roles = trained_roles(report.evaluations)
    best = roles.get("distilled") or next(iter(report.evaluations), None)
    if best is not None:
        evaluation = report.evaluations[best]
        condition = f"{best}, {evaluation.data.images} images"
        if "plain" in roles and roles["plain"] != best:
            own_map, plain_map = evaluation.metrics.mean_ap, report.evaluations[roles["plain"]].metrics.mean_ap
            if own_map is not None and plain_map is not None:
                condition = f"{best}; {own_map - plain_map:+.3f} compared with the plain student"
        tiles.append(SummaryCard(shown(evaluation.metrics.mean_ap, ".3f"), "mAP", condition))
        teacher = report.evaluations[roles["teacher"]].model.parameters if "teacher" in roles else None
        own = evaluation.model.parameters
        if own and teacher and roles["teacher"] != best:
            condition = f"{own / 1e6:.2f} of {teacher / 1e6:.2f} M"
            tiles.append(SummaryCard(f"{own / teacher:.0%}", "of the teacher's parameters", condition))
    if (fastest := fastest_cell(report.benches)) is not None:
        cell, latency = fastest
        assert cell.engine is not None  # a latency has an engine
        unstable = "" if latency.stability.stable else ", unstable"
        condition = f"median, {cell.name}, batch {cell.batch}, {cell.engine.device}{unstable}"
        tiles.append(SummaryCard(f"{three_digits(latency.per_tile.p50_ms)} ms", "per tile", condition))
    for run in (scene.run for scene in report.scenes[:1]):
        condition = f"{run.scene.name} in {run.seconds['total']:.1f} s"
        tiles.append(SummaryCard(f"{run.objects:,}", "objects in the scene", condition))
    return tiles


def _scene_facts(scene: ReportedScene) -> list[tuple[str, str]]:
    """Return the facts of a scene run, as pairs of name and text."""
    run = scene.run
    raster, tiles = run.scene, run.tiles
    facts = [("Scene", raster.name), ("Size", f"{raster.width_px:,} x {raster.height_px:,} px")]
    if raster.gsd_m:
        facts.append(("Ground sample distance", f"{raster.gsd_m:.3g} m"))
    if raster.crs:
        facts.append(("Coordinate system", raster.crs))
    present = [f"{name} {count}" for name, count in run.objects_per_class.items() if count]
    facts += [
        ("Tiles", f"{tiles.count} ({tiles.empty} empty, {len(tiles.unreadable)} unreadable)"),
        ("Objects", f"{run.objects:,}"),
        ("By class", ", ".join(present) or "none"),
    ]
    if run.screening is not None:
        facts.append(("Screen", run.screening.summary().removeprefix("Screen: ")))
        if run.screening.contradiction is not None:
            facts.append(("Contradiction", run.screening.contradiction))
    if run.score is not None:
        known = {label: getattr(run.score, key) for key, label in SCORE_LABELS.items()}
        metrics = [f"{label} {value:.3f}" for label, value in known.items() if value is not None]
        conditions = f"{run.score.objects} labeled objects, score above {run.score.score_threshold}, IoU 0.5"
        facts.append(("Metrics", f"{', '.join(metrics) or 'none'} ({conditions})"))
    facts += [
        ("Engine", f"{run.engine.backend} {run.engine.precision} on {run.engine.device}"),
        ("Time", f"{run.seconds['total']:.2f} s, including writing"),
    ]
    if scene.files:
        facts.append(("Files", f"{', '.join(Path(file).name for file in scene.files)} in {scene.folder}"))
    return facts


def _accuracy_conditions(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Return the conditions of the metrics, with common conditions stated once."""
    settings = {name: _settings(one) for name, one in evaluations.items()}
    common = len(set(settings.values())) == 1
    lines = [f"All: {next(iter(settings.values()))}"] if common else []
    for name, one in evaluations.items():
        engine = f"{one.engine.backend} {one.engine.backend_version} {one.engine.precision} on {one.engine.device}"
        model = f"{one.model.kind} {one.model.path}, sha256 {one.model.sha256[:12]}"
        lines.append(f"{name}: {engine}; {model}" + ("" if common else f"; {settings[name]}"))
    return lines


def _settings(one: Evaluation) -> str:
    return (
        f"{one.data.images} images with {one.data.objects} objects of {one.data.path}, scale {one.scale:g}, "
        f"score above {one.postprocess.score_threshold:g}, NMS at IoU {one.postprocess.iou_threshold:g}, "
        f"at most {one.postprocess.max_detections} detections per tile"
    )
