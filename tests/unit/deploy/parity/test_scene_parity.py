"""Parity on a scene: an engine agrees with itself, tiled and merged, and a drift is detected."""

import json

import pytest
from fakes import fake_scene as fake

from deploy.parity.parity import compare_engines
from deploy.parity.parity_result import ParityCell, overall_verdict
from deploy.parity.scene_parity import SceneReference, read_scene_labels
from deploy.parity.tolerances import ToleranceTable
from deploy.scene.read.scene import Scene
from deploy.scene.settings import settings_for
from ifkd.core.detections import Candidates

OBJECTS = [
    (20, 20, 44, 30, 0),
    (58, 10, 70, 30, 1),
    (100, 90, 120, 100, 0),
    (150, 40, 160, 64, 1),
    (60, 120, 76, 128, 0),
]


class DriftingSceneEngine(fake.CountingEngine):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def _run(self, tiles):
        candidates = super()._run(tiles)
        found = Candidates(candidates.boxes.copy(), candidates.scores.copy(), candidates.labels.copy())
        self.change(found)
        return found


@pytest.fixture
def reference(tmp_path):
    bundle = fake.write_bundle(tmp_path / "bundle")
    path = fake.write_tif(tmp_path / "scene.tif", fake.sea(160, 190, OBJECTS))
    labels = {
        "images": [{"id": 1, "file_name": "scene.tif", "height": 160, "width": 190}],
        "categories": [{"id": 7, "name": "cargo"}, {"id": 3, "name": "tanker"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": fake.CATEGORY_IDS[label], "iscrowd": 0,
             "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            for i, (x1, y1, x2, y2, label) in enumerate(OBJECTS, 1)
        ],
    }  # fmt: skip
    (tmp_path / "scene.json").write_text(json.dumps(labels))
    with Scene(path) as scene:
        ground_truth = read_scene_labels(tmp_path / "scene.json", scene, fake.CLASSES)
        yield SceneReference(fake.CountingEngine(), scene, settings_for(bundle.manifest), ground_truth=ground_truth)


def test_an_engine_agrees_with_itself_on_a_scene(reference):
    one = reference.compare(fake.CountingEngine(max_batch=3), ToleranceTable().fp32)
    assert one.passed, one.verdict
    assert (one.reference_detections, one.engine_detections, one.matched_fraction) == (5, 5, 1.0)
    assert one.tiles > 4
    assert one.reference_score == one.engine_score
    assert one.engine_score.ap50 == pytest.approx(1.0)


def shift(found):
    found.boxes[:] += 0.5


def lose_cargo(found):
    found.scores[found.labels == 0] = 0


@pytest.mark.parametrize(("change", "tolerance"), [(shift, "shift_px"), (lose_cargo, "matched_fraction")])
def test_a_drift_is_detected_on_a_scene(reference, change, tolerance):
    one = reference.compare(DriftingSceneEngine(change), ToleranceTable().fp32)
    assert not one.passed
    assert tolerance in {check.name for check in one.tolerances if not check.passed}
    if change is lose_cargo:
        score = one.engine_score
        assert (score.mean_ap, score.ap50, score.ap75) == pytest.approx((0.5, 0.5, 0.5))
        failed = {check.name for check in one.tolerances if not check.passed}
        assert failed >= {"mean_ap", "ap50", "ap75"}
        assert "AP50" in one.verdict


def test_a_drift_of_the_scene_alone_starts_at_tiling_or_merging(reference):
    cell = ParityCell(backend="fake", precision="fp32", passed=True, verdict="passed: within all 12 tolerances")
    scenes = (reference.compare(DriftingSceneEngine(lose_cargo), ToleranceTable().fp32),)
    passed, words = overall_verdict((cell,), scenes)
    assert not passed
    assert "starts at tiling or merging" in words


def test_an_engine_that_fails_has_the_reason(reference):
    def broken(found):
        raise RuntimeError("no memory left")

    engines = [("onnxruntime", "fp16")]
    (one,) = compare_engines(
        engines, lambda *_: DriftingSceneEngine(broken), reference.compare, ToleranceTable(), reference.failed
    )
    assert (one.passed, one.failure) == (False, "no memory left")


def test_a_failed_scene_fails_the_report(reference, tmp_path):
    from fakes import report_inputs as parts

    from deploy.report.report import assemble

    data = parts.dataset(tmp_path / "data")
    parity = parts.parity(data)
    assert assemble(title="t", evaluations={}, parities=[parity]).verdict.status == "passed"
    lost = parity.model_copy(
        update={"scenes": (reference.compare(DriftingSceneEngine(lose_cargo), ToleranceTable().fp32),)}
    )
    verdict = assemble(title="t", evaluations={}, parities=[lost]).verdict
    assert verdict.status == "failed"
    assert any("tiled and merged" in reason.text for reason in verdict.reasons)
