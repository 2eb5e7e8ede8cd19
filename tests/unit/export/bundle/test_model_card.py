"""Model card of a bundle; huggingface_hub reads its metadata."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from export.bundle.bundle import open_bundle
from export.bundle.manifest import CurvePoint, Manifest, OperatingPoint, TrainingImagery
from export.bundle.model_card import model_card
from export.bundle.stac_item import model_item


@pytest.fixture
def manifest(whole_bundle: Path) -> Manifest:
    return open_bundle(whole_bundle).manifest


def measured(manifest: Manifest, **values: Any) -> Manifest:
    """Return a manifest with thresholds that were chosen on images."""
    curve = (
        CurvePoint(score_threshold=0.5, precision=0.9, recall=0.5, f1=0.6429),
        CurvePoint(score_threshold=0.42, precision=0.8123, recall=0.75, f1=0.7799),
    )
    point = OperatingPoint(
        source="36 images of val.json",
        score_threshold=0.42,
        class_agnostic_iou=0.8,
        f1_standard_error=0.02,
        curve=curve,
    )
    defaults = manifest.defaults.model_copy(update={"scene_score_threshold": 0.42, "gsd_m": 0.5})
    return manifest.model_copy(update={"operating_point": point, "defaults": defaults, **values})


def test_the_metadata_have_the_measured_metrics(manifest: Manifest) -> None:
    card = ModelCard(model_card(measured(manifest)))
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == (
        "onnx",
        "object-detection",
        "unknown",
    )
    assert card.data.model_name == "tiny"
    results = card.data.eval_results
    assert results is not None
    assert {one.metric_type: one.metric_value for one in results} == {"precision": 0.8123, "recall": 0.75, "f1": 0.7799}
    for one in results:
        assert one.task_type == "object-detection"
        assert one.dataset_name == "Validation part: 36 images of val.json"
        assert str(one.metric_name).endswith("(score above 0.42, IoU 0.5)")


def test_the_text_states_thresholds_parity_and_origin(manifest: Manifest) -> None:
    origin = TrainingImagery(sensor="Pleiades, pansharpened", license="CC-BY-4.0")
    text = model_card(measured(manifest, training_imagery=origin))
    for row in (
        "| Sensor | Pleiades, pansharpened |",
        "| Ground sample distance | 0.5 m |",
        "| License of the training data | CC-BY-4.0 |",
        "| Tile | 64 x 64 px, RGB with 8 bits, after scaling by 1 |",
        "| Score threshold for scenes | 0.42 |",
        "| 0.42 | 0.812 | 0.750 | 0.780 |",
    ):
        assert row in text
    assert "precision of 0.812, a recall of 0.750 and an F1 of 0.780 (standard error 0.020)" in text
    for name, check in manifest.checks.items():
        result = f"tensor parity with {check.reference} passed: 100.00% of {check.candidates} candidates matched, "
        assert f"| {name} | {result}" in text
    assert manifest.created not in text


def test_what_was_not_measured_or_stated_is_unknown(manifest: Manifest) -> None:
    text = model_card(manifest)
    assert ModelCard(text).data.eval_results is None
    assert "The export measured no accuracy. The thresholds were not chosen: " in text
    for fact in ("Sensor", "Ground sample distance", "License of the training data"):
        assert f"| {fact} | unknown |" in text


def test_names_cannot_break_the_card(manifest: Manifest) -> None:
    classes = ("a|b", "<script>", "军舰: 1")
    text = model_card(measured(manifest, name="x: [y", classes=classes))
    assert ModelCard(text).data.model_name == "x: [y"
    assert "<script>" not in text
    assert "军舰: 1" in text


def test_the_card_and_the_item_state_the_form_of_the_boxes(manifest: Manifest) -> None:
    oriented = manifest.model_copy(update={"outputs": manifest.outputs.model_copy(update={"oriented": True})})
    for one, form, other in ((manifest, "horizontal", "oriented"), (oriented, "oriented", "horizontal")):
        for text in (model_card(one), model_item(one)["properties"]["description"]):
            assert f"as {form} boxes" in text
            assert f"{other} boxes" not in text
    assert "Boxes are horizontal" not in model_card(oriented)
