"""Parity on a scene: the same engine agrees with itself tile by tile and merged, and a drift is seen there too."""

import json

import pytest
from fakes import fake_scene as world

from deploy.parity.parity import run_scene_parity, verdict_of
from deploy.parity.scene_parity import SceneReference, open_truth, settings_of
from deploy.parity.tolerances import PrecisionTolerances
from deploy.scene.read.scene import Scene
from ifkd.core.detections import Candidates

OBJECTS = [
    (20, 20, 44, 30, 0),
    (58, 10, 70, 30, 1),
    (100, 90, 120, 100, 0),
    (150, 40, 160, 64, 1),
    (60, 120, 76, 128, 0),
]


class Drifting(world.CountingEngine):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def _run(self, tiles):
        answer = super()._run(tiles)
        found = Candidates(answer.boxes.copy(), answer.scores.copy(), answer.labels.copy())
        self.change(found)
        return found


@pytest.fixture
def reference(tmp_path):
    bundle = world.write_bundle(tmp_path / "bundle")
    path = world.write_tif(tmp_path / "scene.tif", world.sea(160, 190, OBJECTS))
    labels = {
        "images": [{"id": 1, "file_name": "scene.tif", "height": 160, "width": 190}],
        "categories": [{"id": 7, "name": "cargo"}, {"id": 3, "name": "tanker"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": world.CATEGORY_IDS[label], "iscrowd": 0,
             "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            for i, (x1, y1, x2, y2, label) in enumerate(OBJECTS, 1)
        ],
    }  # fmt: skip
    (tmp_path / "scene.json").write_text(json.dumps(labels))
    with Scene(path) as scene:
        truth = open_truth(tmp_path / "scene.json", scene, world.CLASSES)
        yield SceneReference(world.CountingEngine(), scene, settings_of(bundle), truth=truth)


def test_an_engine_agrees_with_itself_on_a_scene(reference):
    one = reference.compare(world.CountingEngine(max_batch=3), PrecisionTolerances().fp32)
    assert one.passed, one.verdict
    assert (one.reference_detections, one.engine_detections, one.matched_share) == (5, 5, 1.0)
    assert one.tiles > 4
    assert one.reference_score == one.engine_score
    assert one.engine_score.ap50 == pytest.approx(1.0)


def shift(found):
    found.boxes[:] += 0.5


def lose_cargo(found):
    found.scores[found.labels == 0] = 0


@pytest.mark.parametrize(("change", "gate"), [(shift, "shift_px"), (lose_cargo, "matched_share")])
def test_a_drift_is_caught_on_a_scene(reference, change, gate):
    one = reference.compare(Drifting(change), PrecisionTolerances().fp32)
    assert not one.passed
    assert gate in {gate.name for gate in one.gates if not gate.passed}
    if change is lose_cargo:
        score = one.engine_score
        assert (score.mean_ap, score.ap50, score.ap75) == pytest.approx((0.5, 0.5, 0.5))
        failed = {gate.name for gate in one.gates if not gate.passed}
        assert failed >= {"mean_ap", "ap50", "ap75"}
        assert "AP50" in one.verdict


def test_what_only_the_scene_shows_is_laid_to_tiling_or_merge(reference):
    from deploy.parity.parity import ParityCell

    cell = ParityCell(backend="fake", precision="fp32", passed=True, verdict="passed: all 12 gates hold")
    scenes = (reference.compare(Drifting(lose_cargo), PrecisionTolerances().fp32),)
    passed, words = verdict_of((cell,), scenes)
    assert not passed
    assert "enters at tiling or merge" in words


def test_an_engine_that_fails_leaves_the_reason(reference):
    def broken(found):
        raise RuntimeError("no memory left")

    (one,) = run_scene_parity(reference, [("onnxruntime", "fp16")], lambda *_: Drifting(broken), PrecisionTolerances())
    assert (one.passed, one.failure) == (False, "no memory left")


def test_a_scene_that_fails_fails_the_report(reference, tmp_path):
    from fakes import report_inputs as parts

    from deploy.report.report import assemble

    data = parts.dataset(tmp_path / "data")
    parity = parts.parity(data)
    assert assemble(title="t", evaluations={}, parities=[parity]).verdict.status == "passed"
    lost = parity.model_copy(update={"scenes": (reference.compare(Drifting(lose_cargo), PrecisionTolerances().fp32),)})
    verdict = assemble(title="t", evaluations={}, parities=[lost]).verdict
    assert verdict.status == "failed"
    assert any("tiled and merged" in finding.text for finding in verdict.findings)
