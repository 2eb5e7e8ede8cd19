"""The bundle folder: written atomically, extended file by file, and read with a digest check of every file.

bundle/
├── model.json                     the manifest
├── model.safetensors              weights, for the torch reference
├── model.onnx  model.fp16.onnx  model.yolo.onnx  screen.onnx …
├── engines/<device>-<builder><version>-<precision>.engine, with metadata in a .json file of the same name; screen-…
├── config.toml                    the effective recipe
├── model.stac.json  README.md     descriptions for catalogs and readers
└── checks/
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from export.bundle.manifest import FileKind, FileRecord, Manifest, Precision
from ifkd.core.config import read_versioned
from ifkd.core.errors import BundleError, OutputError
from ifkd.core.files import atomic_folder, sha256_of, write_json

MANIFEST_NAME = "model.json"
AGAIN = "Export the bundle again."
ONNX_KINDS: tuple[FileKind, ...] = ("onnx", "yolo-onnx", "screen-onnx")
MAX_ONNX_BYTES = 2**31 - 1
"""Size limit of a protobuf message, which an ONNX file of a bundle is."""
EXTERNAL_LOCATION = b"\x0a\x08location\x12"
"""Protobuf encoding of the key of an external data location: field 1 of length 8, then field 2."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder and its manifest, from `open_bundle`."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Return the path of a file after checking its digest.

        Raises:
            BundleError: The file is missing or not in the manifest, or its digest differs.
        """
        record = self.manifest.files.get(name)
        if record is None:
            expected = f"one of {', '.join(sorted(self.manifest.files))}"
            raise BundleError(f"The bundle {self.path} has no {name}", expected=expected)
        path = self.path / name
        if not path.is_file():
            raise BundleError(f"{path} is in the manifest but not in the folder", hint=AGAIN)
        size = path.stat().st_size
        if record.kind in ONNX_KINDS and size > MAX_ONNX_BYTES:
            got, expected = f"{size / 1e9:.1f} GB", f"at most {MAX_ONNX_BYTES / 1e9:.1f} GB"
            raise BundleError(f"{path} exceeds the size limit of ONNX files", got=got, expected=expected, hint=AGAIN)
        if size != record.bytes:
            raise self._changed(path, f"{size} bytes", f"{record.bytes} bytes")
        digest = sha256_of(path)
        if digest != record.sha256:
            raise self._changed(path, f"sha256 {digest}", record.sha256)
        if record.kind in ONNX_KINDS and _has_external_data(path):
            problem = f"{path} has external data, which no digest covers"
            raise BundleError(problem, expected="one file with all its weights", hint=AGAIN)
        return path

    def verify(self) -> None:
        """Check every file; a missing or changed file is a BundleError, as in `file`."""
        for name in self.manifest.files:
            self.file(name)

    def find(self, kind: FileKind, precision: Precision | None = None) -> list[str]:
        """Return the sorted names of the files of a kind, and of a precision if given."""
        files = self.manifest.files.items()
        return sorted(name for name, one in files if one.kind == kind and precision in (None, one.precision))

    def onnx_name(self, precision: Precision) -> str:
        """Return the name of the ONNX file of a precision.

        Raises:
            BundleError: The bundle has no such file.
        """
        names = self.find("onnx", precision)
        if not names:
            available = sorted(str(self.manifest.files[name].precision) for name in self.find("onnx"))
            problem = f"{self.path} has no ONNX file in {precision}"
            quoted = ", ".join(f'"{one}"' for one in dict.fromkeys(("fp32", precision)))
            hint = f"Export the checkpoint with it, for example 'precisions=[{quoted}]'."
            raise BundleError(problem, expected=f"one of {', '.join(available)}" if available else None, hint=hint)
        return names[0]

    @staticmethod
    def _changed(path: Path, got: str, expected: str) -> BundleError:
        hint = "Copy the bundle again, or export the checkpoint again."
        return BundleError(f"{path} differs from the manifest", got=got, expected=expected, hint=hint)


def open_bundle(path: Path) -> Bundle:
    """Return a bundle after reading its manifest; files are checked on access.

    Raises:
        BundleError: The manifest is missing or invalid, or names a file outside the folder.
    """
    hint = "Export the checkpoint again with `ifkd export`."
    if path.is_file():
        hint = f"Name the folder that contains it, such as {path.parent}."
        raise BundleError(f"{path} is a file", expected="the folder of a bundle", hint=hint)
    try:
        manifest = read_versioned(path / MANIFEST_NAME, Manifest, hint=hint, error_type=BundleError)
    except BundleError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        problem = f"{path} is not a bundle: it has no {MANIFEST_NAME}"
        raise BundleError(problem, hint="Write a bundle with `ifkd export`.") from error
    for name in manifest.files:
        _check_inside(path, name)
    return Bundle(path, manifest)


@contextmanager
def new_bundle(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes the bundle at `path`, or replaces it, if the block raises no exception.

    Raises:
        OutputError: `path` contains files but no bundle, or is not writable.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, and a bundle is a folder", hint="Choose another path.")
    if path.exists() and any(path.iterdir()) and not (path / MANIFEST_NAME).is_file():
        raise OutputError(f"{path} contains files but no bundle", hint="Choose another folder.")
    with atomic_folder(path) as temporary:
        yield temporary


def add_file(bundle: Bundle, name: str, *, kind: FileKind, precision: Precision | None = None) -> Bundle:
    """Add a file in the bundle's folder to the manifest, and return the bundle with the new manifest."""
    record = record_file(bundle.path, name, kind=kind, precision=precision)
    manifest = bundle.manifest.model_copy(update={"files": {**bundle.manifest.files, name: record}})
    write_manifest(bundle.path, manifest)
    return Bundle(bundle.path, manifest)


def record_file(folder: Path, name: str, *, kind: FileKind, precision: Precision | None = None) -> FileRecord:
    """Return the record of the file `name` in `folder`."""
    path = folder / name
    return FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size, kind=kind, precision=precision)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write model.json."""
    write_json(folder / MANIFEST_NAME, manifest.model_dump(mode="json"))


def _has_external_data(path: Path) -> bool:
    """Return whether an ONNX file refers to external data, by a byte search without a parser."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(EXTERNAL_LOCATION) >= 0


def _check_inside(folder: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"The manifest of {folder} names {name!r}, which is outside the bundle")
