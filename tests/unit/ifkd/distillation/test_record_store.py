"""Stores of records: several processes, interrupted writes, damaged files and other headers."""

import hashlib
import json
import logging
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifkd.core.errors import OutputError
from ifkd.distillation import record_store as store_module
from ifkd.distillation.record_store import RecordStore

VALUES = 1000


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def record(number: int) -> Any:
    return np.random.default_rng(number).standard_normal(VALUES).astype(np.float16)


def opened(folder: Path, **options: Any) -> RecordStore:
    return RecordStore(folder, **{"depends_on": {"network": "a"}, "values": VALUES, "capacity": 64, **options})


def add(store: RecordStore, *numbers: int) -> None:
    store.add([key(number) for number in numbers], np.stack([record(number) for number in numbers]))


def found(store: RecordStore, *numbers: int) -> list[bool]:
    """Return which records exist, and check their values."""
    records = store.find([key(number) for number in numbers])
    for number, found_record in zip(numbers, records, strict=True):
        assert found_record is None or np.array_equal(found_record, record(number))
    return [found_record is not None for found_record in records]


def test_records_are_found_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert found(store, 1, 2) == [False, False]
    add(store, 1, 2, 1)
    assert found(store, 2, 1, 3) == [True, True, False]
    assert len(store) == 2
    add(store, 2, 3)
    assert len(store) == 3
    assert found(opened(tmp_path), 1, 2, 3) == [True, True, True]
    assert (tmp_path / "index.bin").stat().st_size == 3 * 76


def test_records_of_another_process_are_found(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path)
    add(one, 1)
    assert found(two, 1) == [True]
    add(two, 2)
    add(one, 2, 3)
    assert found(one, 1, 2, 3) == [True, True, True]
    assert len(opened(tmp_path)) == 3


def _writer(folder: Path, first: int) -> None:
    store = opened(folder)
    for number in range(first, first + 20):
        add(store, number, 0)


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_writer, args=(tmp_path, first)) for first in (1, 11, 21)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = opened(tmp_path)
    assert len(store) == 41
    assert all(found(store, *range(41)))
    assert (tmp_path / "index.bin").stat().st_size == 41 * 76


def _killed_between_record_and_entry(folder: Path) -> None:
    store = opened(folder)
    add(store, 1)
    store._append = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    add(store, 2)


def test_a_kill_before_the_entry_leaves_the_record_missing(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_killed_between_record_and_entry, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store = opened(tmp_path)
    assert found(store, 1, 2) == [True, False]
    add(store, 3, 2)
    assert found(opened(tmp_path), 1, 2, 3) == [True, True, True]


@pytest.mark.parametrize("kept", [75, 77, 100, 151])
def test_an_incomplete_end_of_the_index_is_removed(tmp_path: Path, kept: int) -> None:
    add(opened(tmp_path), 1, 2)
    os.truncate(tmp_path / "index.bin", kept)
    store = opened(tmp_path)
    assert found(store, 1, 2) == [kept >= 76, False]
    add(store, 1, 2)
    assert found(opened(tmp_path), 1, 2) == [True, True]


def test_an_incomplete_entry_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    """The store was open before another process was killed during its write."""
    store = opened(tmp_path)
    add(store, 1)
    with (tmp_path / "index.bin").open("ab") as index:
        index.write(b"x" * 100)
    add(store, 2)
    assert found(opened(tmp_path), 1, 2) == [True, True]


def test_a_truncated_file_of_records_is_computed_again(tmp_path: Path) -> None:
    add(opened(tmp_path), 1, 2)
    os.truncate(tmp_path / "records.bin", VALUES * 2 + 10)
    store = opened(tmp_path)
    assert found(store, 1, 2) == [True, False]
    add(store, 1, 2)
    assert found(store, 1, 2) == [True, True]
    assert found(opened(tmp_path), 1, 2) == [True, True]
    assert len(opened(tmp_path)) == 2


def test_a_changed_byte_is_detected(tmp_path: Path) -> None:
    add(opened(tmp_path), 1)
    with (tmp_path / "records.bin").open("r+b") as stream:
        stream.seek(77)
        byte = stream.read(1)
        stream.seek(77)
        stream.write(bytes([byte[0] ^ 1]))
    assert found(opened(tmp_path), 1) == [False]


@pytest.mark.parametrize("change", [{"depends_on": {"network": "b"}}, {"values": 8}, {"capacity": 65}])
def test_a_store_with_another_header_is_refused_or_replaced(tmp_path: Path, change: dict[str, Any]) -> None:
    add(opened(tmp_path), 1)
    with pytest.raises(OutputError, match=r"depends on other networks or images: \w+ was .*, is .*rebuild_cache"):
        opened(tmp_path, **change)
    assert found(opened(tmp_path, rebuild=True), 1) == [True]
    assert len(opened(tmp_path, rebuild=True, **change)) == 0
    with pytest.raises(OutputError):
        opened(tmp_path)


def test_a_store_that_another_run_has_replaced_is_not_changed(tmp_path: Path) -> None:
    store = opened(tmp_path)
    add(store, 1)
    new = opened(tmp_path, depends_on={"network": "b"}, rebuild=True)
    add(new, 2)
    with pytest.raises(OutputError, match=r"Another run has replaced the cache"):
        add(store, 3)
    assert found(new, 1, 2, 3) == [False, True, False]


def test_an_unreadable_header_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "header.json").write_text(text)
        with pytest.raises(OutputError, match="header cannot be read"):
            opened(tmp_path)


def test_the_size_is_logged_before_records_are_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        opened(tmp_path, capacity=1_000_000)
    assert "up to 1,000,000 tiles x 2,000 bytes = 2.00 GB" in caplog.text
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) < 100_000
    header = json.loads((tmp_path / "header.json").read_text())
    assert header == {"format": 1, "dtype": "float16", "values": 1000, "capacity": 1_000_000, "network": "a"}
    caplog.clear()
    opened(tmp_path, capacity=1_000_000)
    assert not caplog.text


def test_a_store_larger_than_its_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"is too large for its disk: got .* free, expected 10,000,000,000,000 tiles x"
    ):
        opened(tmp_path, capacity=10**13)
    assert not (tmp_path / "header.json").exists()


def test_more_records_than_the_capacity_are_refused(tmp_path: Path) -> None:
    store = opened(tmp_path, capacity=2)
    add(store, 1, 2)
    with pytest.raises(OutputError, match="is full: got more than 2 distinct tiles"):
        add(store, 3)
    assert found(store, 1, 2, 3) == [True, True, False]


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    add(store, 1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.RecordStore, "_write_record", full)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
        add(store, 2)
    assert found(opened(tmp_path), 1, 2) == [True, False]
