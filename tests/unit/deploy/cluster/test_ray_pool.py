"""Scenes on Ray: the files equal those of a single process, also after lost engines."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from fakes import ray_engines
from fakes.fake_scene import CountingEngine, sea, write_bundle, write_tif
from fakes.fake_screen import add_screen
from fakes.ray_engines import BatchDependentEngine, CrashingEngine, KilledOnceEngine, LoggingEngine, noise

from deploy.cli.main import main
from deploy.cluster.bundle_copy import BundleCopy
from deploy.scene.write.file_names import BATCH_STATE_FOLDER, RESULT_FILES, STATE_FOLDER
from export.bundle.bundle import open_bundle
from ifkd.core.errors import BundleError

ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'ifkd[ray]')")
TESTS = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, once for all tests of this file."""
    from deploy.cluster.ray_cluster import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.cluster.ray_cluster.usable_cores", lambda: 2)
        patch.setenv("PYTHONPATH", str(TESTS))  # workers find the engines of `ray_engines` there
        with connected() as started, redirect_stdout(sys.__stdout__):  # each test captures what it prints
            yield started


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle").path


@pytest.fixture
def call(bundle, tmp_path, monkeypatch, capsys, cluster):
    def run(*arguments, out=None, engine=CountingEngine, ray=True):
        monkeypatch.setattr("deploy.engines.open_engine", functools.partial(ray_engines.opened, engine))
        options = ["--cluster", "ray"] if ray else []
        out = str(out or tmp_path / "out")
        code = main(["detect", str(bundle), "--out", out, *options, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name in RESULT_FILES}


def summary_of(out):
    return json.loads((out / "summary.json").read_text())


def write_scenes(folder, count, *, size=(170, 200)):
    folder.mkdir()
    for number in range(count):
        write_tif(folder / f"s{number:02d}.tif", noise(number, *size))
    return folder


def test_a_screened_scene_gives_the_files_of_the_single_process(call, bundle, tmp_path, monkeypatch):
    add_screen(open_bundle(bundle), threshold=0.5, scale=0.5)
    objects = [(x, y, x + 14, y + 12, 0) for x, y in ((40, 60), (150, 900), (200, 2700), (60, 3100))]
    scene = write_tif(tmp_path / "scene.tif", sea(3200, 260, objects))
    options = (scene, "--screen", 0.5, "--audit", 0.3, "--batch", 2)
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert call(*options, out=whole, engine=BatchDependentEngine, ray=False)[0] == 0
    assert call(*options, out=shared, engine=BatchDependentEngine)[0] == 0
    assert files(shared) == files(whole)
    screenings = [json.loads((out / "run.json").read_text())["screening"] for out in (whole, shared)]
    assert screenings[0] == screenings[1]
    assert screenings[0]["skipped"] > 100


@pytest.mark.parametrize("batch", [1, 4])
def test_one_scene_gives_the_files_of_the_single_process(call, tmp_path, batch):
    """The engine's outputs depend on the batch, so equal files mean equal batches."""
    pixels = noise(0, 700, 260)
    pixels[100:400, 100:] = 0  # some tiles are empty, so that batches and rows never coincide
    scene = write_tif(tmp_path / "scene.tif", pixels, nodata=0)
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert call(scene, "--batch", batch, out=whole, engine=BatchDependentEngine, ray=False)[0] == 0
    code, _, said = call(scene, "--batch", batch, out=shared, engine=BatchDependentEngine)
    assert code == 0, said
    assert "Opening 2 engines on Ray" in said
    assert set(files(whole)) == set(RESULT_FILES)
    assert files(shared) == files(whole)
    assert (whole / "detections.csv").read_text().count("\n") > 4
    assert call(scene, "--batch", 3, out=tmp_path / "other", engine=BatchDependentEngine, ray=False)[0] == 0
    assert files(tmp_path / "other") != files(whole)  # otherwise the engine does not depend on the batch


def test_twenty_scenes_with_three_broken_ones(call, tmp_path):
    folder = write_scenes(tmp_path / "scenes", 20, size=(70, 80))
    for name in ("s07", "s12", "s19"):
        (folder / f"{name}.tif").write_bytes(b"II*\0no raster")
    code, printed, said = call(folder / "*.tif")
    assert code == 1
    summary = summary_of(tmp_path / "out")
    assert (summary["done"], summary["failed"], summary["scenes"]) == (17, 3, 20)
    failed = {entry["name"]: entry["problem"] for entry in summary["entries"] if entry["state"] == "failed"}
    assert set(failed) == {"s07", "s12", "s19"}
    assert all(f"{name}.tif is not a raster" in problem for name, problem in failed.items())
    assert len(list((tmp_path / "out").glob("*/run.json"))) == 17
    assert re.search(r"3 of 20 scenes failed \(s07: ", said)
    assert summary["engines"]["count"] == 2
    assert "in 17 of 20 scenes" in printed
    call(*sorted(folder.glob("s0[0-3].tif")), out=tmp_path / "alone", ray=False)
    alone = files(tmp_path / "alone")
    assert len(alone) == 4 * len(RESULT_FILES)
    assert {name: content for name, content in files(tmp_path / "out").items() if name in alone} == alone


def test_filters_give_the_files_of_the_single_process(call, tmp_path):
    folder = write_scenes(tmp_path / "scenes", 2)
    ring = [[15.0, 40.649], [15.002, 40.649], [15.002, 40.651], [15.0, 40.651], [15.0, 40.649]]
    area = tmp_path / "area.geojson"
    area.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    options = ["--exclude", area, "--tag", "--coast", area]
    call(folder / "*.tif", *options, out=tmp_path / "whole", ray=False)
    assert call(folder / "*.tif", *options)[0] == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    tags = [
        feature["properties"]["excluded"]
        for path in (tmp_path / "out").glob("*/detections.geojson")
        for feature in json.loads(path.read_text())["features"]
    ]
    assert set(tags) == {False, True}


def test_an_engine_that_is_killed_loses_and_duplicates_no_detection(call, tmp_path):
    folder = write_scenes(tmp_path / "scenes", 3, size=(700, 260))
    call(folder / "*.tif", out=tmp_path / "whole", ray=False)
    engine = functools.partial(KilledOnceEngine, tmp_path / "killed", 9)
    code, printed, _ = call(folder / "*.tif", engine=engine)
    assert code == 0
    assert (tmp_path / "killed").exists()
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    summary = summary_of(tmp_path / "out")
    assert 1 <= summary["retried_row_ranges"] <= 2
    assert "row ranges retried" in printed


@pytest.mark.slow
def test_kill_9_of_the_driver_and_the_same_command_resumes(call, bundle, tmp_path):
    folder = write_scenes(tmp_path / "scenes", 3, size=(2600, 260))
    call(folder / "*.tif", out=tmp_path / "whole", ray=False)
    out, log = tmp_path / "out", tmp_path / "log"
    # A scene has 354 tiles in ranges of up to 66, of which four are in flight. When the engines stop at 1,000 of the
    # 1,062 tiles, more than four ranges of the last scene have begun, so one of them is complete.
    names = ["s00", "s01", "s02"]
    command = [sys.executable, TESTS / "fakes" / "ray_driver.py", log, 1000, bundle, folder / "*.tif", "--out", out]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(list(map(str, command)), start_new_session=True, **quiet) as driver:
        try:
            deadline = time.monotonic() + 120
            while not list(out.glob("*/run.json")) or not any(_resumable_rows(out, name) for name in names):
                assert driver.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            driver.kill()
            driver.wait()
            os.killpg(driver.pid, signal.SIGKILL)  # agents of its Ray would stay for a while
    done = {path.parent.name for path in out.glob("*/run.json")}
    resumable = {name: _resumable_rows(out, name) for name in names if name not in done}
    assert any(resumable.values())
    log.unlink()
    code, _, said = call(folder / "*.tif", engine=functools.partial(LoggingEngine, log))
    assert code == 0
    assert "Resuming: " in said
    assert files(out) == files(tmp_path / "whole")
    runs = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/run.json")}
    for name, rows in resumable.items():
        assert runs[name]["tiles"]["resumed_rows"] == len(rows)
    # Every tile of a row in a journal is not processed again, except those that fill up a first batch.
    processed = len(log.read_text().splitlines())
    per_scene = runs["s00"]["tiles"]["count"]
    columns = 6
    rest = sum(per_scene - len(rows) * columns for rows in resumable.values())
    earlier = summary_of(out)["from_earlier_run"]
    fresh = (3 - earlier - len(resumable)) * per_scene
    assert rest + fresh <= processed <= rest + fresh + len(resumable) * 8 * 4
    assert not (out / BATCH_STATE_FOLDER).exists()


def _resumable_rows(out, name):
    """Return the rows in a scene's journal, of which a copy is read, as its run may still write it."""
    from deploy.scene.run.row_journal import RowJournal

    path = out / name / STATE_FOLDER / "row_journal"
    content = path.read_bytes() if path.exists() else b""
    if b"\n" not in content:
        return set()
    copy = out.with_name("journal")
    copy.write_bytes(content)
    with RowJournal(copy, json.loads(content.split(b"\n", 1)[0])) as journal:
        return {record.row for record in journal.records()}


@pytest.mark.slow
def test_a_scene_that_kills_every_engine_is_reported_and_the_others_continue(call, tmp_path):
    folder = write_scenes(tmp_path / "scenes", 3)
    poisoned = noise(9)
    poisoned[100, 100] = ray_engines.CRASH_VALUE
    write_tif(folder / "poison.tif", poisoned)
    code, _, said = call(folder / "*.tif", engine=CrashingEngine)
    assert code == 1
    summary = summary_of(tmp_path / "out")
    failed = [(entry["name"], entry["problem"]) for entry in summary["entries"] if entry["state"] == "failed"]
    assert [name for name, _ in failed] == ["poison"]
    assert failed[0][1].startswith("3 engines were lost while they processed rows 0 to ")
    assert summary["done"] == 3
    assert "poison failed" in said


@pytest.mark.slow
def test_strict_stops_a_torn_scene_and_unreadable_tiles_are_those_of_the_single_process(call, tmp_path):
    folder = write_scenes(tmp_path / "scenes", 1)
    torn = write_tif(folder / "torn.tif", sea(700, 260, [(5, 5, 17, 15, 0)]), blockysize=10)
    torn.write_bytes(torn.read_bytes()[: int(torn.stat().st_size * 0.7)])
    assert call(folder / "*.tif")[0] == call(folder / "*.tif", out=tmp_path / "whole", ray=False)[0] == 1
    ours, theirs = (json.loads((tmp_path / out / "torn" / "run.json").read_text()) for out in ("out", "whole"))
    assert ours["tiles"]["unreadable"] == theirs["tiles"]["unreadable"]
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert call(folder / "*.tif", "--strict", out=tmp_path / "strict")[0] == 1
    failed = [entry["problem"] for entry in summary_of(tmp_path / "strict")["entries"] if entry["state"] == "failed"]
    assert len(failed) == 1
    assert "because of --strict" in failed[0]


def test_the_bundles_own_engine_gives_the_same_files(whole_bundle, tmp_path, cluster, capsys):
    """A real network by ONNX Runtime, and what it finds in noise."""
    scene = write_tif(tmp_path / "scene.tif", noise(3, 500, 300))
    options = [str(whole_bundle), str(scene), "--threads", "1", "--score-threshold", "0.01", "--overlap-px", "16"]
    assert main(["detect", *options, "--out", str(tmp_path / "whole")]) == 0
    assert main(["detect", *options, "--out", str(tmp_path / "out"), "--cluster", "ray"]) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["objects"] > 0


def test_a_node_without_the_bundle_gets_its_files(bundle_copy, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    copy = BundleCopy.of(bundle_copy, with_content=True)
    here = BundleCopy(tmp_path / "absent", copy.manifest_sha256, copy.content)
    unpacked = here.unpack()
    assert unpacked.path.is_relative_to(tmp_path / "node")
    assert unpacked.file("model.onnx").read_bytes() == bundle_copy.file("model.onnx").read_bytes()
    assert here.unpack().path == unpacked.path
    assert copy.unpack().path == bundle_copy.path
    with pytest.raises(BundleError, match=r"absent is missing on this machine, or differs: expected a manifest"):
        BundleCopy(tmp_path / "absent", copy.manifest_sha256, None).unpack()
    with pytest.raises(BundleError, match="is damaged"):
        BundleCopy(tmp_path / "absent", "0" * 64, copy.content).unpack()


def test_a_bundle_travels_to_the_engines(call, bundle, tmp_path, monkeypatch):
    """The engines get a path where there is no bundle."""
    monkeypatch.setattr("deploy.cluster.ray_pool.check_nodes", lambda *_: False)
    traveled = BundleCopy.of(open_bundle(bundle), with_content=True)
    elsewhere = BundleCopy(tmp_path / "absent", traveled.manifest_sha256, traveled.content)
    monkeypatch.setattr("deploy.cluster.ray_pool.BundleCopy.of", lambda *_, **__: elsewhere)
    assert call(write_tif(tmp_path / "scene.tif", noise(0)))[0] == 0


@pytest.mark.parametrize(
    ("options", "patch", "message"),
    [
        ((), ("deploy.cluster.ray_cluster.local_versions", lambda _: {"onnxruntime": "1.0", "python": "3.11"}),
         r"versions differ from .*: got .*onnxruntime 1\.0 here, .* on .*; python 3\.11 here"),
        (("--cores-per-actor", "64"), None, "too small .*: got .* with 2 cores and 0 GPUs, expected 64 cores"),
        (("--backend", "tensorrt"), None, "too small for an engine: .* expected 1 cores and a GPU on one node"),
    ],
)  # fmt: skip
def test_clusters_that_do_not_fit_are_said_before_the_work(call, tmp_path, monkeypatch, options, patch, message):
    if patch is not None:
        monkeypatch.setattr(*patch)
    engine = functools.partial(LoggingEngine, tmp_path / "log")
    code, _, said = call(write_tif(tmp_path / "scene.tif", noise(0)), *options, engine=engine)
    assert code == 2
    assert re.search(message, said)
    assert not (tmp_path / "log").exists()


def test_a_cluster_in_use_by_others_is_said(call, tmp_path, monkeypatch, cluster):
    class Other:
        def started(self):
            return True

    monkeypatch.setattr("deploy.cluster.ray_pool.RESTART_TIMEOUT_S", 3.0)
    other = cluster.remote(Other).options(num_cpus=2).remote()
    assert cluster.get(other.started.remote())
    try:
        code, _, said = call(write_tif(tmp_path / "scene.tif", noise(0)))
    finally:
        cluster.kill(other)
    assert code == 2
    assert (
        "Not all 2 engines started within 3 s: got 0 CPU available and 0 GPU available, expected 2 CPU in all" in said
    )


def test_an_engine_that_cannot_start_is_said(bundle, tmp_path, cluster, capsys):
    code = main(
        ["detect", str(bundle), str(write_tif(tmp_path / "s.tif", noise(0))), "--out", str(tmp_path / "out"),
         "--cluster", "ray"]
    )  # fmt: skip
    assert code == 2
    assert re.search(r"An engine cannot start on Ray \(.*BundleError: .* has no ONNX file", capsys.readouterr().err)


def test_ray_that_is_not_installed_is_said_with_its_extra(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["detect", str(bundle), "a.tif", "--out", str(tmp_path / "out"), "--cluster", "ray"]) == 2
    said = capsys.readouterr().err
    assert "--cluster ray needs the package ray" in said
    assert "pip install 'ifkd[ray]'" in said
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there_is_said(bundle, tmp_path, monkeypatch, capsys):
    scene = write_tif(tmp_path / "scene.tif", noise(0))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # the other tests' Ray is not of this run
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert main(["detect", str(bundle), str(scene), "--out", str(tmp_path / "out"), "--cluster", "ray"]) == 2
    assert "There is no Ray cluster at 127.0.0.1:9" in capsys.readouterr().err
