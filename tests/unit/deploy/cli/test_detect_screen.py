"""`ifkd detect --screen`: what is written, said and refused; a bundle with the screen of `fake_screen`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.fake_scene import CountingEngine, sea, write_bundle, write_tif
from fakes.fake_screen import add_screen

from deploy.cli.main import main
from deploy.scene.write.file_names import RESULT_FILES
from export.bundle.bundle import open_bundle
from export.bundle.screen_record import EXCHANGEABLE, ScreenCalibration

OBJECTS = [(50, 60, 70, 80, 1), (600, 500, 616, 514, 1), (300, 300, 314, 312, 0), (420, 90, 434, 104, 0)]
"""The screen passes the bright ones at 0.8, the others at 0.6."""
SCRIPT = Path(__file__).parents[3] / "fakes" / "detection_process.py"
CALIBRATION = ScreenCalibration(
    source="validation",
    images=40,
    scenes=40,
    objects=400,
    score_threshold=0.3,
    max_lost_fraction=0.005,
    confidence=0.9,
    scenes_needed=10,
    bound=0.004,
    reason="the largest that satisfies the limit",
)


@pytest.fixture
def bundle(tmp_path):
    return add_screen(write_bundle(tmp_path / "bundle"), threshold=0.8, scale=0.5, calibration=CALIBRATION).path


@pytest.fixture
def scene(tmp_path):
    return write_tif(tmp_path / "sea.tif", sea(620, 700, OBJECTS))


@pytest.fixture
def call(bundle, scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())

    def run(*options, out="out", scenes=(scene,)):
        arguments = ["detect", str(bundle), *map(str, scenes), "--out", str(tmp_path / out), *map(str, options)]
        return main(arguments), *capsys.readouterr()

    return run


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in RESULT_FILES}


def run_of(folder):
    return json.loads((folder / "run.json").read_text())


def test_threshold_0_gives_the_files_of_a_search_of_all_tiles(call, tmp_path):
    assert call(out="full")[0] == call("--screen", 0, out="zero")[0] == call("--screen", "off", out="off")[0] == 0
    assert files(tmp_path / "zero") == files(tmp_path / "off") == files(tmp_path / "full")
    assert run_of(tmp_path / "zero")["screening"]["skipped"] == 0
    assert run_of(tmp_path / "full")["screening"] is None


def test_what_is_skipped_is_in_the_record_on_the_page_and_on_the_terminal(call, tmp_path):
    code, printed, _ = call("--screen", 0.5)
    assert code == 0
    assert re.search(
        r"Screen: \d+ tiles skipped, \d+ passed at 0\.5, at most 0\.40% lost in expectation with a confidence of 90%",
        printed,
    )
    assert EXCHANGEABLE in printed
    run = run_of(tmp_path / "out")
    screening, settings = run["screening"], run["settings"]["screen"]
    assert run["objects"] == len(OBJECTS)
    assert screening["passed"] + screening["skipped"] == run["tiles"]["count"]
    assert 0 < screening["passed"] < 40 < screening["skipped"]
    assert (screening["bound"], screening["confidence"], screening["assumption"]) == (0.004, 0.9, EXCHANGEABLE)
    assert screening["audit"]["tiles"] == -(-screening["skipped"] * 2 // 100)
    assert (screening["audit"]["lost"], screening["audit"]["found"]) == (0, [])
    assert (settings["threshold"], settings["auto"], settings["audit_fraction"]) == (0.5, False, 0.02)
    assert "screen" in run["seconds"]
    page = (tmp_path / "out" / "map.html").read_text()
    boxes = json.loads(re.search(r'"skipped":(\[.*?\]),"facts"', page)[1])
    covered = {(x, y) for x1, y1, x2, y2 in boxes for x in range(x1, x2) for y in range(y1, y2)}
    for x1, y1, x2, y2, _ in OBJECTS:
        assert covered.isdisjoint({(x1, y1), (x2 - 1, y2 - 1)})
    assert len(covered) > 620 * 700 / 2
    assert f'["Skipped by the screen","{screening["skipped"]} tiles, shaded"]' in page


def test_the_calibrated_threshold_is_the_automatic_one(call, tmp_path):
    assert call("--screen", "auto", "--audit", 0)[0] == 0
    run = run_of(tmp_path / "out")
    assert (run["objects"], run["settings"]["screen"]["threshold"], run["screening"]["audit"]) == (2, 0.8, None)


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        (("--screen", 0.85), None),
        (("--screen", 0.8, "--overlap-px", 19), None),
        (("--screen", 0.8, "--overlap-px", 24), 0.004),
        (("--screen", 0.8, "--score-threshold", 0.29), None),
        (("--screen", 0.8, "--score-threshold", 0.3), 0.004),
        (("--screen", 0.8, "--merge", "nms"), 0.004),
        (("--screen", 0.8, "--merge", "nmm"), None),
    ],
)
def test_a_bound_holds_for_searches_whose_detections_the_calibration_has_seen(call, tmp_path, options, bound):
    call(*options)
    run = run_of(tmp_path / "out")
    assert run["screening"]["bound"] == bound
    assert run["settings"]["screen"]["margin_px"] == 20  # without a margin in the manifest, the bundle's overlap


def test_a_smaller_margin_of_the_manifest_searches_fewer_tiles(call, bundle, tmp_path):
    call("--screen", 0.8, out="wide")
    add_screen(open_bundle(bundle), threshold=0.8, scale=0.5, margin_px=10.0, calibration=CALIBRATION)
    call("--screen", 0.8, out="narrow")
    wide, narrow = run_of(tmp_path / "wide"), run_of(tmp_path / "narrow")
    assert narrow["settings"]["screen"]["margin_px"] == 10
    assert narrow["screening"]["passed"] < wide["screening"]["passed"]
    assert narrow["screening"]["bound"] == 0.004


def test_an_audit_that_contradicts_the_bound_is_said_and_fails_a_strict_run(call, tmp_path):
    code, _, said = call("--screen", "auto", "--audit", 1)
    contradiction = (
        "The audit contradicts the bound of the screen, 0.40%: it estimates that 50.0% (50.0% to 50.0%) of the "
        "detections are lost. Search this scene without the screen"
    )
    assert (code, f"ifkd: {contradiction}\n" in said) == (0, True)
    audit = run_of(tmp_path / "out")["screening"]["audit"]
    assert (audit["lost"], audit["lost_fraction"], audit["contradicts_bound"]) == (2, 0.5, True)
    assert {tuple(one["box"]) for one in audit["found"]} == {one[:4] for one in OBJECTS if one[4] == 0}
    assert {one["label"] for one in audit["found"]} == {"cargo"}
    code, _, said = call("--screen", "auto", "--audit", 1, "--strict", out="strict")
    assert (code, f"error: {contradiction}" in said) == (1, True)
    assert files(tmp_path / "strict") == files(tmp_path / "out")


def test_several_scenes_say_which_contradict_the_bound(call, tmp_path, scene):
    empty = write_tif(tmp_path / "empty.tif", sea(620, 700, []))
    options = ("--screen", "auto", "--audit", 1)
    code, _, said = call(*options, scenes=(scene, empty))
    assert (code, "sea: 2 objects" in said, "The audit contradicts the bound" in said) == (0, True, True)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [bool(one["screen_problem"]) for one in summary["entries"]] == [True, False]
    assert all(one["skipped_tiles"] > 40 for one in summary["entries"])
    code, _, said = call(*options, "--strict", scenes=(scene, empty), out="strict")
    assert (code, "error: sea: The audit contradicts the bound" in said) == (1, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--screen", 1.5), r"threshold of a screen must be from 0 to 1: got 1\.5"),
        (("--screen", 0.5, "--audit", -1), r"fraction of audited tiles must be from 0 to 1: got -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(call, options, message):
    code, _, said = call(*options)
    assert code == 2
    assert re.search(message, said)


def test_a_bundle_without_a_screen(call, tmp_path):
    write_bundle(tmp_path / "bundle")
    code, _, said = call("--screen", 0.5)
    assert (code, "The bundle has no screen: got a threshold of 0.5" in said) == (2, True)
    code, _, said = call("--screen", "auto")
    assert (code, "no screen with a calibrated threshold: all tiles are searched" in said) == (0, True)
    assert run_of(tmp_path / "out")["screening"] is None


def test_kill_9_and_the_same_command_resumes_to_the_same_bytes(call, bundle, scene, tmp_path):
    options = ("--screen", "0.5", "--audit", "0.2")
    assert call(*options, out="whole")[0] == 0
    command = [sys.executable, SCRIPT, "3", bundle, scene, "--out", tmp_path / "out", *options]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -9
    code, _, said = call(*options)
    assert (code, "Resuming: an earlier run finished" in said) == (0, True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert run_of(tmp_path / "out")["screening"] == run_of(tmp_path / "whole")["screening"]


def test_a_run_is_not_resumed_with_another_screen(call, bundle, scene, tmp_path):
    command = [sys.executable, SCRIPT, "3", bundle, scene, "--out", tmp_path / "out", "--screen", "0.5"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -9
    manifest = bundle / "model.json"
    digest = json.loads(manifest.read_text())["files"]["screen.onnx"]["sha256"]
    manifest.write_text(manifest.read_text().replace(digest, "0" * 64))
    code, _, said = call("--screen", 0.5)
    assert (code, "bundle.screen_sha256 was" in said) == (2, True)
