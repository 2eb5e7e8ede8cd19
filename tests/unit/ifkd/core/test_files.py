"""Atomic files and folders, locks and digests."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from ifkd.core.errors import OutputError
from ifkd.core.files import (
    acquire_lock,
    atomic_folder,
    atomic_path,
    file_lock,
    make_folder,
    remove_temporary_files,
    sha256_of,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_completed_block_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".bin"
        temporary.write_bytes(b"complete")
        assert not path.exists()
    assert path.read_bytes() == b"complete"
    assert names(path.parent) == ["a.bin"]


def test_a_failed_block_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_part() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("part")
            raise KeyError

    with pytest.raises(KeyError):
        write_part()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_written_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Cannot write .*file"):
        make_folder(tmp_path / "file" / "below")
    with pytest.raises(OutputError, match="Cannot write"), atomic_path(tmp_path / "file" / "a.txt"):
        pass


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write .*a\.txt"):
        write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == ["a.txt"]


def test_json_is_indented_utf8_without_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Größe", "n": [1, 2]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Größe" in text
    assert text.endswith("\n")
    assert json.loads(text) == {"name": "Größe", "n": [1, 2]}
    with pytest.raises(ValueError, match=r"JSON compliant|Out of range"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def write_folder(path: Path, content: str, *, fails: bool = False) -> None:
    with atomic_folder(path) as temporary:
        (temporary / f"{content}.txt").write_text(content)
        if fails:
            raise KeyError


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_folder(tmp_path / "new" / "a", "first")
    write_folder(tmp_path / "new" / "a", "second")
    assert names(tmp_path / "new") == ["a"]
    assert names(tmp_path / "new" / "a") == ["second.txt"]


def test_a_failed_block_leaves_only_the_old_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", "first")
    with pytest.raises(KeyError):
        write_folder(tmp_path / "a", "second", fails=True)
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["first.txt"]


def test_a_folder_that_cannot_be_replaced_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "a", "first")
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if target == tmp_path / "a" and self.name.startswith(".a."):
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OutputError, match="No space left on device"):
        write_folder(tmp_path / "a", "second")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["first.txt"]


def test_a_lock_excludes_other_owners_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path), pytest.raises(OutputError, match=rf"process {os.getpid()}\) is writing into {tmp_path}"):
        acquire_lock(path)
    assert names(tmp_path) == []
    os.close(acquire_lock(path))


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    for name in (".state.x1.pt", "state.pt", ".other.x1.pt"):
        (tmp_path / name).touch()
    remove_temporary_files(tmp_path / "state.pt")
    assert names(tmp_path) == [".other.x1.pt", "state.pt"]
