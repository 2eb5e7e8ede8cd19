"""An interrupted run resumes to the same bytes; and only one run writes into a folder."""

import json
import multiprocessing
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes.fake_scene import CountingEngine, FailingEngine, FakeEngineError, sea, write_bundle, write_tif

from deploy.cli.main import main
from deploy.scene.merge.merge import TileDetections
from deploy.scene.result import UnreadableTile
from deploy.scene.run.row_journal import RowJournal, RowRecord
from deploy.scene.write.file_names import RESULT_FILES, RUN_FILE, STATE_FOLDER
from deploy.scene.write.output_folder import OutputFolder
from export.bundle.bundle import add_file, open_bundle
from export.bundle.description import CARD_NAME
from ifkd.core.detections import Detections
from ifkd.core.errors import OutputError
from ifkd.core.files import sha256_of
from ifkd.core.tiling import Window

OBJECTS = [
    (5, 5, 17, 15, 0),
    (50, 40, 68, 52, 1),
    (120, 118, 140, 130, 0),
    (60, 200, 74, 212, 1),
    (190, 160, 200, 170, 0),
]
PIXELS = sea(300, 200, OBJECTS)  # 7 rows of 5 tiles
SCRIPT = Path(__file__).parents[4] / "fakes" / "detection_process.py"


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle").path


@pytest.fixture
def scene(tmp_path):
    pixels = PIXELS.copy()
    pixels[100:170, 100:] = 0  # some tiles are empty, so that batches and rows never coincide
    return write_tif(tmp_path / "harbor.tif", pixels, nodata=0)


@pytest.fixture
def call(bundle, scene, monkeypatch, capsys):
    def run(out, *options, engine=None):
        engine = engine or CountingEngine()
        monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: engine)
        code = main(["detect", str(bundle), str(scene), "--out", str(out), *map(str, options)])
        return code, capsys.readouterr().err, engine

    return run


def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name in RESULT_FILES}


def cut_off(call, out, calls, *options):
    with pytest.raises(FakeEngineError):
        call(out, *options, engine=FailingEngine(calls))


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_run_resumes_to_the_same_bytes_with_the_same_batches(call, tmp_path, batch):
    code, _, whole = call(tmp_path / "whole", "--batch", batch)
    assert code == 0
    assert set(files(tmp_path / "whole")) == set(RESULT_FILES)
    last = len(whole.batches) - 1
    step = 3 if batch == 1 else 1  # rows have 5 tiles, so that every column is the first one missing
    for calls in [*range(0, last, step), last]:
        out = tmp_path / f"cut{calls}"
        cut_off(call, out, calls, "--batch", batch)
        assert not files(out)
        code, said, rest = call(out, "--batch", batch)
        assert code == 0
        assert files(out) == files(tmp_path / "whole")
        first = len(whole.batches) - len(rest.batches)
        assert first <= calls
        for mine, theirs in zip(rest.batches, whole.batches[first:], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        rows = json.loads((out / RUN_FILE).read_text())["tiles"]["resumed_rows"]
        assert (f"Resuming: an earlier run finished {rows} row" in said) == (rows > 0)
    assert rows == 6
    assert not (out / STATE_FOLDER).exists()


def test_kill_9_anywhere_and_the_same_command_resumes(call, bundle, scene, tmp_path):
    call(tmp_path / "whole")
    out = tmp_path / "out"
    for calls in (2, 2, 1):  # killed three times in a row
        command = [sys.executable, SCRIPT, str(calls), bundle, scene, "--out", out]
        assert subprocess.run(command, check=False, capture_output=True).returncode == -9
        assert not files(out)
    code, said, _ = call(out)
    assert code == 0
    assert "Resuming: " in said
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("place", ["write_json", "write_quicklooks", "replace"])
def test_a_run_cut_off_while_writing_resumes(call, tmp_path, place, monkeypatch):
    call(tmp_path / "whole")

    def stop(*_, **__):
        raise FakeEngineError

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        if place == "replace":
            moves = iter(range(3))
            replace = Path.replace
            patch.setattr(
                Path,
                "replace",
                lambda self, to: stop() if to.parent == out and next(moves, None) is None else replace(self, to),
            )
        else:
            patch.setattr(f"deploy.scene.scene_run.{place}", stop)
        with pytest.raises(FakeEngineError):
            call(out)
    assert not (out / RUN_FILE).exists()
    code, _, engine = call(out)
    assert code == 0
    assert engine.batches == []  # all rows were in the journal
    assert files(out) == files(tmp_path / "whole")


def test_a_journal_cut_at_any_byte_resumes(call, tmp_path):
    call(tmp_path / "whole")
    out = tmp_path / "out"
    cut_off(call, out, 4)
    journal = out / STATE_FOLDER / "row_journal"
    content = journal.read_bytes()
    for length in [*range(0, len(content), 997), len(content) - 1]:
        (out / STATE_FOLDER).mkdir(exist_ok=True)
        journal.write_bytes(content[:length])
        assert call(out)[0] == 0
        assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--score-threshold", 0.5), r"settings\.postprocess\.score_threshold was 0\.3, is 0\.5"),
        (("--batch", 2), r"batch was 4, is 2"),
        (("--overlap-px", 24), r"settings\.overlap_px was 20, is 24"),
        (("--bands", 1), r"scene\.bands was \[1, 2, 3\], is \[1\]"),
    ],
)
def test_other_settings_are_refused_with_the_difference(call, tmp_path, options, message):
    out = tmp_path / "out"
    cut_off(call, out, 4)
    code, said, engine = call(out, *options)
    assert code == 2
    assert re.search(rf"has an unfinished run with other settings: .*{message}", said)
    assert "or use --no-resume to start again" in said
    assert engine.batches == []
    code, said, _ = call(out, *options, "--no-resume")
    assert (code, "Resuming" in said) == (0, False)
    call(tmp_path / "whole", *options)
    assert files(out) == files(tmp_path / "whole")


def test_another_bundle_or_scene_is_refused_with_the_difference(call, tmp_path, bundle, scene):
    out = tmp_path / "out"
    cut_off(call, out, 4)
    manifest = bundle / "model.json"
    before = manifest.read_text()
    manifest.write_text(before.replace('"category_ids": [7, 3]', '"category_ids": [7, 2]'))
    code, said, _ = call(out)
    assert code == 2
    assert "bundle.category_ids was [7, 3], is [7, 2]" in said
    manifest.write_text(before)
    write_tif(scene, PIXELS, nodata=0)
    code, said, _ = call(out)
    assert code == 2
    assert "scene.files.harbor.tif was" in said


def test_a_model_card_that_is_written_meanwhile_does_not_end_a_run(call, tmp_path, bundle):
    call(tmp_path / "whole")
    out = tmp_path / "out"
    cut_off(call, out, 4)
    (bundle / CARD_NAME).write_text("# Results")
    add_file(open_bundle(bundle), CARD_NAME, kind="description")
    code, said, _ = call(out)
    assert (code, "Resuming: an earlier run finished" in said) == (0, True)
    assert files(out) == files(tmp_path / "whole")
    assert json.loads((out / RUN_FILE).read_text())["bundle"]["manifest_sha256"] == sha256_of(bundle / "model.json")


def hold(folder, held, done):
    with OutputFolder(folder):
        held.set()
        done.wait(30)


def test_a_second_run_into_the_same_folder_is_refused(call, tmp_path):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    out = tmp_path / "out"
    process = context.Process(target=hold, args=(out, held, done))
    process.start()
    try:
        assert held.wait(60)
        code, said, engine = call(out)
    finally:
        done.set()
        process.join()
    assert code == 2
    assert f"Another run (process {process.pid}) is writing into {out}.\nhint: Wait until it ends" in said
    assert engine.batches == []
    assert call(out)[0] == 0  # and when it has ended, the folder is free


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
import deploy.engines
sys.path.insert(0, {here!r})
from fakes.fake_scene import CountingEngine
from deploy.cli.main import main
deploy.engines.open_engine = lambda *_, **__: CountingEngine()
sys.exit(main(["detect", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(("limit", "where"), [(5_000, "row_journal"), (40_000, "detections.gpkg")])
def test_a_full_disk_is_said_and_the_run_resumes_when_there_is_room(call, bundle, scene, tmp_path, limit, where):
    """A limit on the size of files stands for the full disk: writing fails in the same call."""
    call(tmp_path / "whole")
    out = tmp_path / "out"
    code = LIMITED.format(limit=limit, here=str(Path(__file__).parents[4]))
    ended = subprocess.run(
        [sys.executable, "-c", code, bundle, scene, "--out", out], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 2, ended.stderr
    assert re.search(rf"error: Cannot write .*{where} \(.*\)\.\nhint: .*[Ff]ree (disk )?space", ended.stderr)
    assert not files(out)
    code, said, _ = call(out)
    assert code == 0
    assert "Resuming: " in said
    assert files(out) == files(tmp_path / "whole")


def test_limits_on_files_are_known_here():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY


def record(row, n=3):
    rng = np.random.default_rng(row)
    oriented = rng.random((n, 5), np.float32) if row % 2 else None
    found = Detections(rng.random((n, 4), np.float32), rng.random(n, np.float32), rng.integers(0, 2, n), oriented)
    hole = UnreadableTile(f"r{row}c1", Window(row, 2, 3, 4), "torn, “badly”")
    return RowRecord(row, 4, 1, 2, (hole,), TileDetections(found, rng.integers(0, 9, n), rng.random((n, 4))))


def test_records_come_back_as_they_were(tmp_path):
    with RowJournal(tmp_path / "journal", {"a": 1}) as journal:
        for row in range(3):
            journal.append(record(row, n=row))
        assert len(journal) == 3
    with RowJournal(tmp_path / "journal", {"a": 1}) as journal:
        assert len(journal) == 3
        for row, back in enumerate(journal.records()):
            one = record(row, n=row)
            assert (back.row, back.processed, back.empty, back.outside, back.unreadable) == (
                row,
                4,
                1,
                2,
                one.unreadable,
            )
            np.testing.assert_array_equal(back.found.detections.boxes, one.found.detections.boxes)
            np.testing.assert_array_equal(back.found.detections.oriented, one.found.detections.oriented)
            np.testing.assert_array_equal(back.found.bounds, one.found.bounds)
            assert back.found.detections.boxes.dtype == np.float32


def test_a_damaged_record_and_all_after_it_are_forgotten(tmp_path):
    path = tmp_path / "journal"
    with RowJournal(path, {}) as journal:
        for row in range(3):
            journal.append(record(row))
        size = path.stat().st_size
    content = bytearray(path.read_bytes())
    content[size * 2 // 3 - 200] ^= 1
    path.write_bytes(content)
    with RowJournal(path, {}) as journal:
        assert len(journal) == 1
        journal.append(record(1))
        assert [one.row for one in journal.records()] == [0, 1]


def test_a_journal_without_room_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="Cannot write"):
        RowJournal(tmp_path / "absent" / "journal", {})
