"""Text, atomic files and folders, locks and digests."""

import codecs
import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifkd.core.errors import BundleError, DataError, OutputError, UsageError
from ifkd.core.files import (
    acquire_lock,
    atomic_folder,
    atomic_path,
    existing_path,
    file_lock,
    make_folder,
    read_json,
    read_text,
    remove_temporary_files,
    require_unicode,
    require_writable,
    sha256_of,
    shortened,
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


def test_a_writable_path_is_checked_without_a_trace(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "deep" / "a.json", size=1)
    assert names(tmp_path) == []
    (tmp_path / "a.json").write_text("old")
    require_writable(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("file/a.json", "Cannot write"),
        ("folder", "is not a file"),
        ("/dev/null", "is not a file"),
        ("/proc/absent/a.json", "Cannot write"),
        ("海" * 100, "Choose a shorter name"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=message):
        require_writable(tmp_path / path)


def test_a_disk_that_is_too_full_is_refused(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OutputError, match=r"too full: got .* MB free, expected at least .* MB"):
        require_writable(tmp_path / "a.bin", size=2 * free)
    assert names(tmp_path) == []


# --- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8, 2 * codecs.BOM_UTF8])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_text_has_no_byte_order_mark_and_one_kind_of_line_end(tmp_path: Path, mark: bytes, end: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(mark + "one ü".encode() + end + "two\u2028three\x0bfour".encode() + end)
    assert read_text(path) == "one ü\ntwo\u2028three\x0bfour\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_text_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("ok\nship ä".encode(encoding))
    with pytest.raises(DataError, match=r"a\.txt cannot be read as text: got .*, expected UTF-8\. Save it as UTF-8"):
        read_text(path)


def test_unreadable_text_has_the_error_type_and_the_name_of_its_kind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no list of scenes .*absent"):
        read_text(tmp_path / "absent", what="list of scenes", error_type=UsageError)
    with pytest.raises(BundleError, match=r"cannot be read: got a folder"):
        read_text(tmp_path, error_type=BundleError)
    with pytest.raises(DataError, match=r"cannot be read .*null"):
        read_text(Path("a\0b"))


def test_json_is_read_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(codecs.BOM_UTF8 + b'{"name": "\\ud83d\\ude00"}')
    assert read_json(path) == {"name": "\U0001f600"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON file"),
        ("[" * 100_000, "is not a JSON file"),
        ("", "is not a JSON file"),
        (r'["hafen_\udcfc.tif"]', "has text that is not Unicode"),
    ],
)
def test_text_that_is_not_json_or_cannot_be_written_again_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_json(path)


# --- names --------------------------------------------------------------------------------------------------------


def test_a_name_that_is_not_utf_8_is_refused_and_shown() -> None:
    require_unicode("häfen/海.tif")
    with pytest.raises(UsageError, match=r"got b'hafen_\\xfc\.tif'.*Rename the file"):
        require_unicode(os.fsdecode(b"hafen_\xfc.tif"), UsageError)
    with pytest.raises(DataError, match=r"Names are UTF-8, but the locale is not"):
        require_unicode("häfen.tif".encode().decode("ascii", errors="surrogateescape"))


@given(name=st.text(st.characters(exclude_categories=["Cs"])), limit=st.integers(0, 300))
def test_a_shortened_name_is_the_longest_start_that_fits(name: str, limit: int) -> None:
    short = shortened(name, limit)
    assert name.startswith(short)
    assert len(short.encode()) <= limit
    assert short == name or len(name[: len(short) + 1].encode()) > limit


@pytest.mark.parametrize("name", ["海" * 83 + ".json", "x" * 250 + ".json", "[a]*?.json"])
def test_a_name_of_any_length_that_the_file_system_allows_is_written(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "first")
    write_text(tmp_path / name, "second")
    assert (tmp_path / name).read_text() == "second"
    with atomic_path(tmp_path / name) as temporary:
        remove_temporary_files(tmp_path / name)
        assert not temporary.exists()
        temporary.touch()
    with atomic_folder(tmp_path / f"{name[:60]}.folder") as folder:
        (folder / "a").touch()
    with atomic_folder(tmp_path / f"{name[:60]}.folder") as folder:
        (folder / "b").touch()
    assert names(tmp_path / f"{name[:60]}.folder") == ["b"]


def test_a_name_that_is_too_long_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"File name too long.*Choose a shorter name"):
        write_text(tmp_path / ("海" * 90 + ".json"), "")


def test_listed_names_are_found_with_the_separators_of_windows_and_with_escapes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("sub/a.tif", "b c.tif", "d%20e.tif"):
        (tmp_path / name).touch()
    assert existing_path(tmp_path, "sub\\a.tif") == tmp_path / "sub/a.tif"
    assert existing_path(tmp_path, "b%20c.tif") == tmp_path / "b c.tif"
    assert existing_path(tmp_path, "d%20e.tif") == tmp_path / "d%20e.tif"
    assert existing_path(tmp_path, "absent%20.tif") == tmp_path / "absent%20.tif"
