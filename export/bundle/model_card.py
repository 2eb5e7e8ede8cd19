"""Model card of a bundle: README.md with Hugging Face's metadata, from the manifest and the report in it."""

from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from export.bundle.manifest import CurvePoint, Manifest, ReportSummary
from export.bundle.stac_item import ARCHITECTURES, TASKS
from ifkd.core.html.table import Table, markdown_cell
from ifkd.imagery.image_values import ImageValues

UNKNOWN = "unknown"
CARD = """\
---
{metadata}---

# {name}

{architecture} with a {backbone} backbone. It detects {classes} as {box_form} boxes in overhead images, tile by tile.

## Use

    ifkd verify .
    ifkd detect . scene.tif --out results

Intended use: finding these objects in images like those of the training, with a person who checks what was found. How
well it works on images of another sensor, resolution, season or region is unknown until `ifkd evaluate` measures it.

{facts}

## Accuracy

{accuracy}

## Parity of the files

{parity}
{report}
## Limits

{limits}
"""


def model_card(manifest: Manifest) -> str:
    """Return the card; the same manifest gives the same text, and the time of the export is left out."""
    architecture, backbone = ARCHITECTURES[manifest.detector["family"]], manifest.detector["backbone"]
    return CARD.format(
        metadata=yaml.safe_dump(_metadata(manifest), sort_keys=False, allow_unicode=True, width=1000),
        name=manifest.name,
        architecture=architecture,
        backbone=backbone,
        box_form=manifest.outputs.box_form,
        classes=markdown_cell(", ".join(manifest.classes)),
        facts=_table(("", ""), _facts(manifest)),
        accuracy=_accuracy(manifest),
        parity=_table(("File", "Result"), _parity(manifest)),
        report="" if manifest.report is None else _report(manifest.report),
        limits="\n".join(f"- {markdown_cell(limit)}" for limit in _limits(manifest)),
    )


def _metadata(manifest: Manifest) -> dict[str, Any]:
    """Return the card's front matter; `model-index` has the metrics, if there are any."""
    metadata = {
        "license": UNKNOWN,  # of the weights; that of the data is in the table
        "library_name": "onnx",
        "pipeline_tag": TASKS[0],
        "tags": ["remote-sensing", "ifkd", manifest.detector["family"], manifest.detector["backbone"]],
    }
    results = list(_results(manifest))
    return {**metadata, "model-index": [{"name": manifest.name, "results": results}]} if results else metadata


def _results(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the metrics of each data set: the validation part at the export, and the data of a report."""
    point = _scene_point(manifest)
    if point is not None and manifest.operating_point is not None:
        condition = f"score above {point.score_threshold:g}, IoU 0.5"
        names = {"precision": "Precision", "recall": "Recall", "f1": "F1"}
        metrics = [
            {"type": key, "value": getattr(point, key), "name": f"{name} ({condition})"} for key, name in names.items()
        ]
        dataset = {"type": "validation", "name": f"Validation part: {manifest.operating_point.source}"}
        yield {"task": {"type": TASKS[0]}, "dataset": dataset, "metrics": metrics}
    by_data: dict[str, list[dict[str, Any]]] = {}
    for one in () if manifest.report is None else manifest.report.metrics:
        metric = {"type": one.kind, "value": one.value, "name": one.name}
        by_data.setdefault(one.data, []).append(metric)
    for data, metrics in by_data.items():
        yield {"task": {"type": TASKS[0]}, "dataset": {"type": "report", "name": data}, "metrics": metrics}


def _scene_point(manifest: Manifest) -> CurvePoint | None:
    """Return precision, recall and F1 at the default score threshold for scenes, where they were measured."""
    point = manifest.operating_point
    curve = () if point is None else point.curve
    return next((one for one in curve if one.score_threshold == manifest.defaults.scene_score_threshold), None)


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    spec, defaults, data = manifest.input, manifest.defaults, manifest.training_imagery
    height, width = spec.tile_px
    sides = "" if spec.tile_sides_px is None else " (sides of {} to {} px are possible)".format(*spec.tile_sides_px)
    values = ImageValues.of_provenance(manifest.provenance)
    yield "Sensor", data.sensor or UNKNOWN
    yield "Ground sample distance", UNKNOWN if defaults.gsd_m is None else f"{defaults.gsd_m:g} m"
    yield "License of the training data", data.license or UNKNOWN
    yield "Training images", UNKNOWN if values is None else values.described
    yield "Tile", f"{height} x {width} px{sides}, RGB with 8 bits, after scaling by {spec.scale:g}"
    yield "Overlap of tiles", f"{defaults.overlap_px} px"
    yield "Score threshold for scenes", f"{defaults.scene_score_threshold:g}"
    yield "Class-agnostic IoU", f"{defaults.class_agnostic_iou:g}"
    yield "Weights", f"sha256 {manifest.provenance['checkpoint_sha256']}"
    yield "Made by", manifest.producer


def _accuracy(manifest: Manifest) -> str:
    chosen, point = manifest.operating_point, _scene_point(manifest)
    if chosen is None or point is None:
        reason = "" if chosen is None else f" The thresholds were {chosen.source}."
        return f"The export measured no accuracy.{reason} Measure it with `ifkd evaluate`."
    rows = (
        (f"{one.score_threshold:g}", f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}")
        for one in chosen.curve
    )
    table = _table(("Score above", "Precision", "Recall", "F1"), rows)
    error = "" if chosen.f1_standard_error is None else f" (standard error {chosen.f1_standard_error:.3f})"
    return (
        f"On the validation part, {chosen.source}, at an IoU of 0.5 over all classes, the score threshold for scenes "
        f"has a precision of {point.precision:.3f}, a recall of {point.recall:.3f} and an F1 of {point.f1:.3f}{error}. "
        f"The threshold was chosen on these images, so expect less on others.\n\n{table}"
    )


def _parity(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for name, check in manifest.checks.items():
        yield name, f"tensor parity with {check.reference} {'passed' if check.passed else 'FAILED'}: {check.in_words}"
    for name, record in manifest.quantization.items():
        loss = UNKNOWN if record.map_loss is None else f"{100 * record.map_loss:.2f} points"
        decision = "" if record.decision is None else f"; {record.decision.in_words}: {record.decision.reason}"
        yield name, f"loss of mAP on the validation part: {loss}{decision}"


def _report(report: ReportSummary) -> str:
    """Return the section with the results of a report."""
    source = f"of {report.created} by {report.producer}, report.json with sha256 {report.report_sha256}"
    parts = ["\n## Measurements", f"From the report {markdown_cell(report.title)} {source}."]
    for one in report.tables:
        parts += [f"{markdown_cell(one.caption)}:", Table("", one.headings, one.numeric, one.rows).markdown()]
    parts.append("\n".join(f"- {markdown_cell(condition)}" for condition in report.conditions))
    return "\n\n".join(parts) + "\n"


def _limits(manifest: Manifest) -> Iterator[str]:
    if manifest.outputs.oriented:
        yield "The direction of a box is that of its longer axis; which end is the bow is unknown."
    else:
        yield "Boxes are horizontal; the box of a long object at 45 degrees is mostly background."
    yield f"An object longer than the overlap, {manifest.defaults.overlap_px} px, may not be whole in any tile."
    tiles = manifest.provenance["parity_tiles"]
    yield f"Parity compares raw outputs on {tiles}; `ifkd parity` compares detections on a data set."
    for record in manifest.quantization.values():
        worst = max(record.per_class_loss.items(), key=lambda one: one[1], default=None)
        if worst is not None and worst[1] > 0:
            yield f"Of all classes, {worst[0]} loses most by INT8: {100 * worst[1]:.2f} points of AP."
    notes = manifest.provenance.get("notes", ())
    notes = [notes] if isinstance(notes, str) else list(notes)
    yield from notes
    if manifest.report is not None:
        yield from (limit for limit in manifest.report.limits if limit not in notes)
        for name, digest in manifest.report.measured.items():
            if name not in manifest.files or manifest.files[name].sha256 != digest:
                yield f"{name} was replaced after the report, whose figures are those of the earlier file."


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return Table("", headings, (False,) * len(headings), tuple(rows)).markdown()
