"""Many scenes in one process: a folder per scene, failures by name, one summary, and resuming."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from affine import Affine
from fakes.fake_scene import CountingEngine, FailingEngine, FakeEngineError, sea, write_bundle, write_tif
from fakes.http_range_server import serve_folder
from rasterio.shutil import copy

from deploy.cli.main import main
from deploy.cluster.completed_scenes import CompletedScenes
from deploy.cluster.summary import EnginesRecord, SceneEntry, summarize
from deploy.cluster.summary_page import render
from deploy.scene.read.acquisition_time import stated_time
from deploy.scene.read.scene_list import read_sources
from deploy.scene.write.file_names import (
    BATCH_FILES,
    BATCH_STATE_FOLDER,
    ITEM_FILE,
    RESULT_FILES,
    RUN_FILE,
    STATE_FOLDER,
)
from deploy.scene.write.result_store import RemoteStore
from deploy.scene.write.run_record import BundleReference
from export.bundle.bundle import MANIFEST_NAME, add_file, open_bundle
from export.bundle.description import CARD_NAME
from ifkd.core.errors import OutputError
from ifkd.imagery.address import parse_source
from ifkd.imagery.raster import RasterFile


@pytest.fixture
def scenes(tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number in range(4):
        objects = [(5 + 9 * number, 5, 17 + 9 * number, 15, 0), (120, 118, 140, 130, number % 2)]
        write_tif(folder / f"s{number}.tif", sea(170, 200, objects))
    return folder


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle").path


@pytest.fixture
def call(bundle, tmp_path, monkeypatch, capsys):
    def run(*arguments, out=None, engine=None):
        engine = engine or CountingEngine()
        monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: engine)
        code = main(["detect", str(bundle), "--out", str(out or tmp_path / "out"), *map(str, arguments)])
        return code, *capsys.readouterr(), engine

    return run


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name in RESULT_FILES}


def test_every_scene_gets_the_files_of_a_run_of_its_own(call, scenes, tmp_path):
    code, printed, said, _ = call(scenes / "*.tif")
    assert code == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"s0", "s1", "s2", "s3", *BATCH_FILES}
    for name in ("s0", "s1", "s2", "s3"):
        call(scenes / f"{name}.tif", out=tmp_path / name)
        in_batch, alone = files(out / name), files(tmp_path / name)
        assert set(in_batch) == set(alone) == set(RESULT_FILES)
        item, item_alone = (json.loads(one.pop(ITEM_FILE)) for one in (in_batch, alone))
        assert in_batch == alone
        del item["collection"]
        item["links"] = [link for link in item["links"] if link["rel"] == "derived_from"]
        assert item == item_alone
    assert "8 objects in 4 of 4 scenes" in printed
    assert re.search(r"ifkd: \[4/4\] s3: 2 objects in ", said)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["scenes"], summary["done"], summary["failed"], summary["unreadable_tiles"]) == (4, 4, 0, 0)
    assert summary["objects_per_class"] == {"cargo": 6, "tanker": 2}
    # The pixels of the scenes are 2 m in UTM, which near the central meridian is 2 m on the ground.
    assert summary["km2"] == pytest.approx(4 * 170 * 200 * 4e-6, rel=0.01)
    assert summary["km2_per_hour"] == pytest.approx(summary["km2"] / summary["seconds"] * 3600, rel=0.01)
    assert [entry["name"] for entry in summary["entries"]] == ["s0", "s1", "s2", "s3"]


def test_a_broken_scene_is_named_and_the_others_continue(call, scenes, tmp_path):
    (scenes / "s1.tif").write_text("no raster")
    torn = write_tif(scenes / "s4.tif", sea(170, 200, []), blockysize=10)
    torn.write_bytes(torn.read_bytes()[: int(torn.stat().st_size * 0.7)])
    code, printed, said, _ = call(scenes / "*.tif", "--json")
    assert code == 1
    summary = json.loads(printed)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(entry["name"], entry["state"], entry["unreadable_tiles"]) for entry in summary["entries"]] == [
        ("s0", "done", 0), ("s1", "failed", 0), ("s2", "done", 0), ("s3", "done", 0), ("s4", "done", 10),
    ]  # fmt: skip
    assert re.search(r"1 of 5 scenes failed \(s1: .*s1\.tif is not a raster", said)
    assert "10 tiles of 1 scenes could not be read (s4 10)" in said
    assert not (tmp_path / "out" / "s1").exists()
    assert "s1 failed" in (tmp_path / "out" / "summary.html").read_text()


def test_a_bug_that_one_scene_causes_does_not_end_the_others(call, scenes, tmp_path, monkeypatch):
    original = RasterFile.read

    def read(self, *arguments, **more):
        if self.name == "s1.tif":
            raise ZeroDivisionError("no such block")
        return original(self, *arguments, **more)

    monkeypatch.setattr(RasterFile, "read", read)
    code, _, said, _ = call(scenes / "*.tif")
    assert code == 1
    entries = json.loads((tmp_path / "out" / "summary.json").read_text())["entries"]
    assert [entry["state"] for entry in entries] == ["done", "failed", "done", "done"]
    assert entries[1]["problem"] == "A bug of ifkd: ZeroDivisionError: no such block"
    assert "1 of 4 scenes failed (s1: A bug of ifkd: ZeroDivisionError" in said
    assert 'raise ZeroDivisionError("no such block")' in said  # the traceback


def test_scenes_partly_off_the_earth_are_all_treated_alike(call, tmp_path):
    geostationary = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +units=m"
    names = [f"limb{number}" for number in range(4)]
    for name in names:
        pixels = sea(170, 200, [(5, 5, 17, 15, 0), (120, 118, 140, 130, 1)])
        write_tif(tmp_path / f"{name}.tif", pixels, crs=geostationary, transform=Affine(2000, 0, 5.2e6, 0, -2000, 1e5))
    assert call(*(tmp_path / f"{name}.tif" for name in names))[0] == 0
    found = [files(tmp_path / "out" / name) for name in names]
    for name, content in zip(names, found, strict=True):
        assert set(content) == {*RESULT_FILES} - {ITEM_FILE}
        assert content["detections.coco.json"] == found[0]["detections.coco.json"]
        features = json.loads(content["detections.geojson"])["features"]
        assert [one["geometry"] is None for one in features] == [True, False], name


def test_a_run_that_was_cut_off_resumes_without_processing_a_scene_twice(call, scenes, tmp_path):
    call(scenes / "*.tif", out=tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(FakeEngineError):
        call(scenes / "*.tif", engine=FailingEngine(13))  # two scenes of 5 batches, and a part of the third
    assert not (out / "summary.json").exists()
    code, _, said, engine = call(scenes / "*.tif")
    assert code == 0
    assert "Resuming: an earlier run completed 2 of 4 scenes." in said
    assert "s2: Resuming: an earlier run finished " in said
    assert sum(map(len, engine.batches)) <= 2 * 20 - 5
    assert files(out) == files(tmp_path / "whole")
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["done"], summary["from_earlier_run"], summary["objects"]) == (4, 2, 8)
    assert not (out / BATCH_STATE_FOLDER).exists()
    assert sum(map(len, call(scenes / "*.tif")[3].batches)) == 80  # a complete run starts again


def test_a_run_that_was_cut_off_while_files_are_moved_resumes(call, scenes, tmp_path, monkeypatch):
    original = Path.replace

    def move(path, target):
        if path.parent.parent.name == STATE_FOLDER and path.name == "map.html":
            raise FakeEngineError
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", move)
        with pytest.raises(FakeEngineError):
            call(scenes / "*.tif")
    assert (tmp_path / "out" / "s0" / "detections.csv").exists()
    code, _, said, _ = call(scenes / "*.tif")
    assert (code, "s0: Resuming: an earlier run finished" in said) == (0, True)


def test_a_scene_that_changed_meanwhile_is_processed_again(call, scenes, tmp_path):
    with pytest.raises(FakeEngineError):
        call(scenes / "*.tif", engine=FailingEngine(13))
    write_tif(scenes / "s0.tif", sea(170, 200, [(5, 5, 17, 15, 1)]))
    assert "completed 1 of 4 scenes" in call(scenes / "*.tif")[2]
    csv = (tmp_path / "out" / "s0" / "detections.csv").read_text()
    assert csv.count("\n") == 2


def test_a_scene_whose_source_changed_or_whose_results_are_gone_is_processed_again(call, scenes, tmp_path):
    (tmp_path / "list.txt").write_text("scenes/s0.vrt\nscenes/s1.tif\nscenes/s2.tif\n")
    copy(str(scenes / "s0.tif"), str(scenes / "s0.vrt"), driver="VRT")
    with pytest.raises(FakeEngineError):
        call(tmp_path / "list.txt", engine=FailingEngine(13))
    write_tif(scenes / "s0.tif", sea(170, 200, [(5, 5, 17, 15, 1)]))
    shutil.rmtree(tmp_path / "out" / "s1")
    code, _, said, _ = call(tmp_path / "list.txt")
    assert (code, "an earlier run completed" in said) == (0, False)
    objects = [json.loads((tmp_path / "out" / name / RUN_FILE).read_text())["objects"] for name in ("s0", "s1", "s2")]
    assert objects == [1, 2, 2]


def test_of_the_bundle_only_what_determines_the_detections_must_be_the_same(call, bundle, scenes):
    with pytest.raises(FakeEngineError):
        call(scenes / "*.tif", engine=FailingEngine(13))
    (bundle / CARD_NAME).write_text("# Results")
    changed = add_file(open_bundle(bundle), CARD_NAME, kind="description").manifest
    (bundle / MANIFEST_NAME).write_text(changed.model_copy(update={"classes": ("ship", "buoy")}).model_dump_json())
    code, _, said, _ = call(scenes / "*.tif")
    assert (code, "bundle.classes" in said) == (2, True)
    (bundle / MANIFEST_NAME).write_text(changed.model_dump_json())
    code, _, said, _ = call(scenes / "*.tif")
    assert (code, "Resuming: an earlier run completed 2 of 4 scenes." in said) == (0, True)


def test_a_batch_is_not_resumed_with_other_weights(call, scenes):
    with pytest.raises(FakeEngineError):
        call(scenes / "*.tif", engine=FailingEngine(10))  # two scenes, and nothing of the third
    engine = CountingEngine()
    engine.info = replace(engine.info, sha256="e" * 64)
    code, _, said, _ = call(scenes / "*.tif", engine=engine)
    assert (code, engine.batches) == (2, [])
    assert "engine.sha256 was" in said


def test_other_settings_are_refused_with_the_difference(call, scenes, tmp_path):
    with pytest.raises(FakeEngineError):
        call(scenes / "*.tif", engine=FailingEngine(13))
    code, _, said, engine = call(scenes / "*.tif", "--score-threshold", 0.5)
    assert (code, engine.batches) == (2, [])
    assert (
        "settings.postprocess.score_threshold was 0.3, is 0.5.\nhint: Repeat the command of that run to resume it"
        in said
    )
    code, _, said, engine = call(scenes / "*.tif", "--score-threshold", 0.5, "--no-resume")
    assert (code, sum(map(len, engine.batches))) == (0, 80)


def test_a_completed_cut_at_any_byte_resumes(tmp_path, scenes):
    sources = read_sources([str(scenes / "*.tif")])
    path = tmp_path / "state" / "completed_scenes.jsonl"
    path.parent.mkdir()
    with CompletedScenes(path, {"a": 1}) as completed:
        for source in sources:
            completed.append(source, SceneEntry(name=source.name, source=str(source.location), state="done"))
    content = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == 10]
    for length in [*range(0, len(content), 23), len(content)]:
        path.write_bytes(content[:length])
        whole = max(0, sum(end <= length for end in ends) - 1)
        with CompletedScenes(path, {"a": 1}) as completed:
            assert len(completed) == whole
            assert [completed.entry(source) is not None for source in sources] == [n < whole for n in range(4)]
            completed.append(sources[0], SceneEntry(name="s0", source="x", state="done"))
        with CompletedScenes(path, {"a": 1}) as completed:
            assert len(completed) == max(whole, 1)
    with pytest.raises(OutputError, match="a was 1, is 2"):
        CompletedScenes(path, {"a": 2})


def test_a_completed_scene_with_another_time_is_processed_again(tmp_path, scenes):
    source = read_sources([str(scenes / "s0.tif")])[0]
    with CompletedScenes(tmp_path / "completed_scenes.jsonl", {}) as completed:
        completed.append(source, SceneEntry(name="s0", source="x", state="done"))
        assert completed.entry(source) is not None
        assert completed.entry(replace(source, time=stated_time("2026-05-01T10:20:30Z"))) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda out: out.write_text("a file"), "Cannot write"),
        (
            lambda out: (out / "s2").mkdir(parents=True) or (out / "s2" / "detections.csv").write_text("mine"),
            "s2 has",
        ),
        (lambda out: out.mkdir() or (out / "summary.json").write_text("{}"), r"has summary\.json, not written by"),
    ],
)
def test_places_that_do_not_fit_are_said_before_the_work(call, scenes, tmp_path, make, message):
    make(tmp_path / "out")
    code, _, said, engine = call(scenes / "*.tif")
    assert (code, engine.batches) == (2, [])
    assert re.search(message, said)
    assert said.startswith("error: ")
    assert said.count("\n") == 2  # the error and its hint


def test_a_batch_and_a_run_of_a_scene_in_one_folder_do_not_share_their_state(call, scenes, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "detections.geojson").write_text("mine")
    with pytest.raises(FakeEngineError):
        call(scenes / "*.tif", engine=FailingEngine(13))
    code, _, said, _ = call(scenes / "s0.tif")
    assert (code, "has detections.geojson, not written by" in said) == (2, True)
    (out / "detections.geojson").unlink()
    with pytest.raises(FakeEngineError):
        call(scenes / "s0.tif", engine=FailingEngine(3))
    assert call(scenes / "*.tif")[0] == 0
    code, _, said, _ = call(scenes / "s0.tif")
    assert (code, "Resuming: an earlier run finished" in said) == (0, True)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--batch", 9, "The batch does not fit the engine"), ("--overlap-px", 64, "The overlap must be at least 0")],
)
def test_a_setting_that_fits_no_scene_is_no_failure_of_each(call, scenes, tmp_path, option, value, message):
    code, printed, said, engine = call(scenes / "*.tif", option, value)
    assert (code, printed, engine.batches) == (2, "", [])
    said = said[said.index("error: ") :]  # a chosen engine is named before
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1 + ("\nhint: " in said)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_scene_with_the_name_of_a_file_of_the_batch_is_refused(call, scenes, tmp_path):
    (tmp_path / "list.txt").write_text("scenes/s0.tif\tSummary.json\nscenes/s1.tif\n")
    code, _, said, engine = call(tmp_path / "list.txt")
    assert (code, engine.batches) == (2, [])
    assert "list.txt) cannot have the name of a file of the batch: got Summary.json" in said


def test_labels_are_those_of_one_scene(call, scenes):
    problem = "--ground-truth has the labels of one scene, named by its path or URL"
    code, _, said, _ = call(scenes / "*.tif", "--ground-truth", "labels.json")
    assert code == 2
    assert f"{problem}: got 4 scenes.\nhint: Evaluate each with" in said
    code, _, said, _ = call(scenes / "s0*.tif", "--ground-truth", "labels.json")
    assert code == 2
    assert f"{problem}: got {scenes}/s0*.tif.\nhint: Name {scenes}/s0.tif itself." in said


def test_scenes_are_read_over_http_in_ranges(call, scenes, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 90, (512, 512, 3), np.uint8)
    pixels[200:210, 300:320] = 170
    big = write_tif(scenes / "big.tif", pixels, tiled=True, blockxsize=64, blockysize=64)
    call(big, out=tmp_path / "local")
    with serve_folder(scenes) as address:
        code, _, _, _ = call(f"{address}/big.tif?key=secret", out=tmp_path / "remote")
    assert code == 0
    assert len((scenes / "big.ranges").read_text().splitlines()) > 2
    remote, local = files(tmp_path / "remote"), files(tmp_path / "local")
    item = remote.pop(ITEM_FILE).decode()
    assert f'"{address}/big.tif"' in item
    assert "secret" not in item
    del local[ITEM_FILE]
    assert remote == local
    run = (tmp_path / "remote" / RUN_FILE).read_text()
    assert json.loads(run)["scene"]["path"].endswith("/big.tif")
    assert "secret" not in run


def test_a_remote_scene_that_is_not_there_is_said_without_its_key(call, scenes, tmp_path):
    with serve_folder(scenes) as address:
        code, _, said, _ = call(f"{address}/absent.tif?key=secret")
    assert code == 2
    assert "/absent.tif cannot be opened" in said
    assert "secret" not in said


def test_a_remote_scene_is_known_again_by_some_of_its_blocks(scenes):
    with serve_folder(scenes) as address:
        place = parse_source(f"{address}/s0.tif")
        before = RasterFile(place).files()
        assert RasterFile(place).files() == before
    pixels = sea(170, 200, [(0, 0, 17, 15, 1)])
    write_tif(scenes / "s9.tif", pixels)
    with serve_folder(scenes) as address:
        other = RasterFile(parse_source(f"{address}/s9.tif")).files()
    assert list(other.values()) != list(before.values())


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def in_memory(store, root):
    return {name: store.cat_file(name) for name in store.find(root)}


def test_results_go_to_a_store(call, scenes, tmp_path, memory):
    call(scenes / "*.tif")
    code, printed, _, _ = call(scenes / "*.tif", "--work-dir", tmp_path / "work", out="memory://bucket/day")
    assert code == 0
    assert "Results: memory://bucket/day (a folder per scene" in printed
    stored = in_memory(memory, "/bucket/day")
    expected = files(tmp_path / "out")
    assert {
        name.removeprefix("/bucket/day/"): content
        for name, content in stored.items()
        if Path(name).name in RESULT_FILES
    } == expected
    assert "/bucket/day/summary.json" in stored
    assert "/bucket/day/s3/run.json" in stored
    assert not [path for path in (tmp_path / "work").rglob("*") if path.name in RESULT_FILES]
    code, _, _, _ = call(
        scenes / "s0.tif", "--work-dir", tmp_path / "work", "--format", "csv", out="memory://bucket/day/s0"
    )
    assert code == 0
    assert "/bucket/day/s0/detections.geojson" not in in_memory(memory, "/bucket/day/s0")


def test_a_store_of_files_takes_results_too(call, scenes, tmp_path):
    call(scenes / "s0.tif")
    assert call(scenes / "s0.tif", "--work-dir", tmp_path / "work", out=f"file://{tmp_path}/stored")[0] == 0
    assert files(tmp_path / "stored") == files(tmp_path / "out")


def test_a_run_into_a_store_resumes(call, scenes, tmp_path, memory):
    options = (scenes / "*.tif", "--work-dir", tmp_path / "work")
    with pytest.raises(FakeEngineError):
        call(*options, out="memory://b/o", engine=FailingEngine(13))
    assert "/b/o/s1/run.json" in in_memory(memory, "/b/o")
    code, _, said, engine = call(*options, out="memory://b/o")
    assert code == 0
    assert "completed 2 of 4 scenes" in said
    assert sum(map(len, engine.batches)) <= 35


@pytest.mark.parametrize("pattern", ["s0.tif", "s[01].tif"])
def test_an_upload_that_was_cut_off_is_repeated(call, scenes, tmp_path, memory, monkeypatch, pattern):
    options = (scenes / pattern, "--work-dir", tmp_path / "work", "--crops", 1)
    call(scenes / pattern, "--crops", 1)

    def put_file(_, source, target):
        if target.endswith("map.html"):
            raise OSError("connection reset")
        memory.pipe_file(target, Path(source).read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", put_file)
        assert call(*options, out="memory://b")[0] == 2
    assert [name for name in memory.find("/b") if name.endswith("detections.csv")]
    code, _, said, _ = call(*options, out="memory://b")
    assert code == 0, said
    stored = {name.removeprefix("/b/") for name in memory.find("/b")}
    out = tmp_path / "out"
    assert stored == {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def test_files_of_a_store_are_checked_before_the_work(call, scenes, tmp_path, memory):
    memory.pipe_file("/b/s2/detections.csv", b"precious")
    memory.pipe_file("/c/collection.json", b"precious")
    for scene, out, found in (
        ("s*.tif", "memory://b", "memory://b/s2 has detections.csv"),
        ("s2.tif", "memory://b/s2", "memory://b/s2 has detections.csv"),
        ("s*.tif", "memory://c", "memory://c has collection.json"),
    ):
        code, _, said, engine = call(scenes / scene, "--work-dir", tmp_path / "work", out=out)
        assert (code, engine.batches) == (2, [])
        assert f"{found}, not written by ifkd detect" in said


def test_a_summary_whose_upload_was_cut_off_is_uploaded_again(call, scenes, tmp_path, memory, monkeypatch):
    options = (scenes / "*.tif", "--work-dir", tmp_path / "work")

    def put_file(_, source, target):
        if target.endswith("summary.html"):
            raise OSError("connection reset")
        memory.pipe_file(target, Path(source).read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", put_file)
        assert call(*options, out="memory://b")[0] == 2
    code, _, said, engine = call(*options, out="memory://b")
    assert (code, engine.batches, "completed 4 of 4 scenes" in said) == (0, [], True)
    assert {path.rpartition("/")[2] for path in memory.ls("/b", detail=False)} == {"s0", "s1", "s2", "s3", *BATCH_FILES}


def test_stores_that_cannot_be_written_are_said_before_the_work(call, scenes, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for out, message in (
        (f"file://{tmp_path}/file/deeper", "Cannot write file://"),
        ("nowhere://bucket", "Results cannot be written to nowhere://bucket"),
    ):
        code, _, said, engine = call(scenes / "*.tif", "--work-dir", tmp_path / "work", out=out)
        assert (code, engine.batches) == (2, [])
        assert message in said
    monkeypatch.setitem(sys.modules, "fsspec", None)
    code, _, said, _ = call(scenes / "*.tif", out="s3://bucket")
    assert code == 2
    assert "pip install 'ifkd[ray]'" in said


def test_a_stores_own_files_are_not_overwritten(tmp_path, memory):
    memory.pipe_file("/b/s0/detections.csv", b"precious")
    store = RemoteStore("memory://b", work=tmp_path)
    (store.work / "s0").mkdir(parents=True)
    (store.work / "s0" / "detections.csv").write_text("new")
    with pytest.raises(OutputError, match=r"memory://b/s0 has detections\.csv, not written by ifkd detect"):
        store.publish("s0")
    assert memory.cat_file("/b/s0/detections.csv") == b"precious"


def example():
    entries = [
        SceneEntry(name="häfen & co", source="a.tif", state="done", width_px=900, height_px=900, km2=3.24, objects=3,
                   objects_per_class={"cargo": 2, "<tanker>": 1}, tiles=9, unreadable_tiles=2,
                   first_unreadable="torn <here>", retried_row_ranges=1, seconds={"total": 2.5}),
        SceneEntry.of_failure(read_sources(["b.tif"])[0], "b.tif is not a raster"),
    ]  # fmt: skip
    return summarize(
        entries, earlier=frozenset(), bundle=BundleReference(path="b", manifest_sha256="0" * 64),
        engines=EnginesRecord(backend="fake", device="nowhere", count=2), seconds=10.0,
    )  # fmt: skip


def test_figures_of_a_summary():
    summary = example()
    assert (summary.km2_per_hour, summary.megapixels_per_second) == (pytest.approx(1166.4), 0.081)
    assert (summary.retried_row_ranges, summary.unreadable_tiles, summary.failed) == (1, 2, 1)
    assert summary.verdict == (
        "1 of 2 scenes failed (b: b.tif is not a raster); 2 tiles of 1 scenes could not be read (häfen & co 2)"
    )


def test_rows_of_an_earlier_run_do_not_count_for_the_speed(call, scenes, tmp_path):
    with pytest.raises(FakeEngineError):
        call(scenes / "s[01].tif", engine=FailingEngine(8))
    call(scenes / "s[01].tif")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    resumed = json.loads((tmp_path / "out" / "s1" / RUN_FILE).read_text())["tiles"]["resumed_rows"]
    assert 0 < resumed < 4
    assert [entry["resumed_fraction"] for entry in summary["entries"]] == [0, resumed / 4]
    assert summary["megapixels"] == pytest.approx(170 * 200 * (1 - resumed / 4) / 1e6)


def test_the_page_opens_in_a_browser_and_is_valid(open_page, html_errors, tmp_path):
    path = tmp_path / "summary.html"
    path.write_text(render(example()), encoding="utf-8")
    assert html_errors(path) == []
    visit = open_page(path, width=390, scheme="dark")
    assert visit.page.get_by_text("häfen & co: 2 of 9 tiles could not be read").count() == 1
    assert visit.page.get_by_text("torn <here>").count() == 1
    assert (visit.errors, visit.overflow_px()) == ([], 0)
