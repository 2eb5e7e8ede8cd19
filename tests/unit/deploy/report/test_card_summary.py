"""Results of a report in the model card of its bundle; huggingface_hub reads the metrics."""

from pathlib import Path

import pytest
from fakes import report_inputs as parts
from fakes.engine_file import with_engine
from fakes.fake_bundle import error_line, run_command
from huggingface_hub import ModelCard

from deploy.report.report import Report
from export.bundle.bundle import MANIFEST_NAME, Bundle, add_file, open_bundle
from export.bundle.description import CARD_NAME, describe
from export.bundle.verification import verify_bundle

ENGINE = "engines/made.engine"
STAND_INS = {"1" * 64: "model.onnx", "2" * 64: "model.fp16.onnx", "4" * 64: "model.safetensors"}
"""Digests of the synthetic results, and the files that they stand for."""


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report of a teacher, a plain student and the distilled student, whose weights are those of the bundle."""
    report = parts.full_report(tmp_path_factory.mktemp("report"))
    distilled = report.evaluations["distilled student"]
    weights = distilled.engine.model_copy(update={"sha256": "4" * 64, "file": "best.safetensors"})
    changed = distilled.model_copy(update={"engine": weights})
    return report.model_copy(update={"evaluations": {**report.evaluations, "distilled student": changed}})


def write_report_of(bundle: Bundle, report: Report, folder: Path, **digests: str) -> Report:
    """Write a report whose files have the digests of those in a bundle, and return it."""
    text = report.model_dump_json().replace("3" * 64, bundle.manifest.files[ENGINE].sha256)
    text = text.replace("engines/generic-rtx1.7-fp16.engine", ENGINE)
    for stand_in, name in STAND_INS.items():
        text = text.replace(stand_in, digests.get(name, bundle.manifest.files[name].sha256))
    (folder / "report.json").write_text(text)
    return Report.model_validate_json(text)


def test_the_card_has_the_results(
    bundle_copy: Bundle, synthetic: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = write_report_of(with_engine(bundle_copy), synthetic, tmp_path)
    code, out, _ = run_command(capsys, "report", str(tmp_path), "--model-card", str(bundle_copy.path))
    assert code == 0
    assert str(bundle_copy.path / CARD_NAME) in out
    assert verify_bundle(bundle_copy.path).differences == ()
    text = (bundle_copy.path / CARD_NAME).read_text()

    results = {
        (one.dataset_name, one.metric_type, one.metric_name): one for one in ModelCard(text).data.eval_results or ()
    }
    read = {(data, kind): one.metric_value for (data, kind, name), one in results.items() if "safetensors" in str(name)}
    evaluation = report.evaluations["distilled student"]
    images = f"test.json, 12 images with 48 objects, sha256 {evaluation.data.sha256[:12]}"
    assert read[images, "map"] == evaluation.metrics.mean_ap
    assert read[images, "map_50"] == evaluation.metrics.ap50
    scene = {kind: one.metric_value for (data, kind, _), one in results.items() if "Scene" in str(data)}
    assert scene == {"map_50": 0.71, "precision": 0.86, "recall": 0.8}

    (parity,), (bench,) = report.parities, report.benches
    for name, of in evaluation.metrics.per_class.items():
        assert f"| {name} | {of.objects} | {of.mean_ap:.3f} | {of.ap50:.3f} |" in text
    for cell in parity.cells:
        assert cell.engine is not None
        assert f"| {cell.engine.file} | {cell.name} | 12 images | {cell.verdict} |" in text
    assert "| model.onnx | onnxruntime fp32 | CPU, 2 threads | 45.3 | 1 | 3" in text
    assert "| passed | stable, n=60 |" in text
    assert f"| {ENGINE.removeprefix('engines/')} | tensorrt-rtx fp16 | – | 24.9 |" in text
    assert bench.tiles.description in text
    assert "Load" not in text  # the page has more
    assert "cores at 2394 to 2401 MHz" in text
    assert "harbor.tif: Operational figures: score from 0.3, centers closer than 20 m" in text
    assert "timing was unstable" in text.split("## Limits")[1]
    assert "has the lowest AP50 in test.json" in text.split("## Limits")[1]
    for other in ("harbor teacher", "reference:", "plain student", "runs/harbor", str(tmp_path)):
        assert other not in text


def test_a_later_engine_keeps_the_results_and_a_replaced_one_is_a_limit(
    bundle_copy: Bundle, synthetic: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report_of(with_engine(bundle_copy), synthetic, tmp_path)
    run_command(capsys, "report", str(tmp_path), "--model-card", str(bundle_copy.path))
    before = (bundle_copy.path / CARD_NAME).read_text()
    bundle = describe(open_bundle(bundle_copy.path))
    assert (bundle_copy.path / CARD_NAME).read_text() == before
    (bundle.path / ENGINE).write_bytes(b"another build")
    describe(add_file(bundle, ENGINE, kind="engine", precision="fp16"))
    after = (bundle_copy.path / CARD_NAME).read_text()
    (added,) = set(after.splitlines()) - set(before.splitlines())
    assert added == f"- {ENGINE} was replaced after the report, whose figures are those of the earlier file."


@pytest.mark.parametrize("name", STAND_INS.values())
def test_a_report_of_other_files_is_refused_and_changes_nothing(
    bundle_copy: Bundle, synthetic: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_report_of(with_engine(bundle_copy), synthetic, tmp_path, **{name: "e" * 64})
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.*")) if path.is_file()}
    code, _, err = run_command(capsys, "report", str(tmp_path), "--model-card", str(bundle_copy.path))
    assert code == 2
    line = error_line(err)
    assert "is not of the files in" in line
    assert f"{name} with sha256 eeeeeeeeeeee" in line
    assert f"{name} with {bundle_copy.manifest.files[name].sha256[:12]}" in line
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.*")) if path.is_file()} == before


def test_evaluations_of_other_detectors_alone_are_refused(
    bundle_copy: Bundle, synthetic: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, teacher = with_engine(bundle_copy), {"teacher": synthetic.evaluations["teacher"]}
    write_report_of(bundle, synthetic.model_copy(update={"evaluations": teacher}), tmp_path)
    code, _, err = run_command(capsys, "report", str(tmp_path), "--model-card", str(bundle_copy.path))
    assert code == 2
    assert "with sha256 000000000000" in error_line(err)


def test_a_damaged_file_is_refused(
    full_copy: Bundle, synthetic: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report_of(with_engine(full_copy), synthetic, tmp_path)
    with (full_copy.path / "model.onnx").open("ab") as file:
        file.write(b"x")
    manifest = (full_copy.path / MANIFEST_NAME).read_bytes()
    code, _, err = run_command(capsys, "report", str(tmp_path), "--model-card", str(full_copy.path))
    assert code == 2
    assert "model.onnx differs from the manifest" in error_line(err)
    assert (full_copy.path / MANIFEST_NAME).read_bytes() == manifest


def test_a_comparison_has_no_model_card(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_command(capsys, "report", "compare", "a", "b", "--model-card", "bundle")
    assert code == 2
    assert "--model-card needs one report" in error_line(err)
