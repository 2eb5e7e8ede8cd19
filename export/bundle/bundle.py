"""The artifact folder: made whole, extended file by file, and opened only when every digest holds.

bundle/
├── model.json                     the manifest
├── model.safetensors              weights, for the torch reference
├── model.onnx  model.fp16.onnx
├── engines/<device>-<builder><version>-<precision>.engine, and .json beside it
├── config.toml                    the effective recipe
└── checks/
"""

import json
import mmap
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from export.bundle.manifest import FileKind, FileRecord, Manifest, Precision
from ifkd.core.errors import BundleError, OutputError
from ifkd.core.files import make_folder, put_in_place, sha256_of, write_text

MANIFEST_NAME = "model.json"
LARGEST_ONNX_BYTES = 2**31 - 1
"""What one protobuf message holds; our ONNX files are one message, without data beside them."""

EXTERNAL_LOCATION = b"\x0a\x08location\x12"
"""How the place of a tensor's data in another file begins: field 1, eight letters, field 2."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder and its manifest; make one with `open_bundle` or `new_bundle`."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Return the path of a file after checking its digest.

        Raises:
            BundleError: The manifest does not list it, it is absent, or its bytes are not those recorded.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(
                f"The bundle {self.path} has no {name}",
                expected=f"one of {', '.join(sorted(self.manifest.files))}",
            )
        path = self.path / name
        if not path.is_file():
            raise BundleError(f"{path} is in the manifest but not in the folder", hint="Export the bundle again.")
        size = path.stat().st_size
        if record.kind == "onnx" and size > LARGEST_ONNX_BYTES:
            raise BundleError(
                f"{path} is larger than an ONNX file can be",
                got=f"{size / 1e9:.1f} GB",
                expected=f"at most {LARGEST_ONNX_BYTES / 1e9:.1f} GB, the limit of its format",
                hint="Export the bundle again.",
            )
        if size != record.bytes:
            raise BundleError(
                f"{path} is not the file the manifest describes",
                got=f"{size} bytes",
                expected=f"{record.bytes} bytes",
                hint="Copy the bundle again, or export it anew.",
            )
        digest = sha256_of(path)
        if digest != record.sha256:
            raise BundleError(
                f"{path} is not the file the manifest describes",
                got=f"sha256 {digest}",
                expected=record.sha256,
                hint="Copy the bundle again, or export it anew.",
            )
        if record.kind == "onnx" and _has_data_elsewhere(path):
            raise BundleError(
                f"{path} keeps weights in another file, which no digest covers",
                expected="one file with all its weights",
                hint="Export the bundle again.",
            )
        return path

    def verify(self) -> None:
        """Check every file.

        Raises:
            BundleError: Any file is absent or changed.
        """
        for name in self.manifest.files:
            self.file(name)

    def find(self, kind: FileKind, precision: Precision | None = None) -> list[str]:
        """Return the names of the files of a kind, and of a precision when one is given, sorted."""
        return sorted(
            name
            for name, record in self.manifest.files.items()
            if record.kind == kind and precision in (None, record.precision)
        )


def open_bundle(path: Path) -> Bundle:
    """Read a bundle's manifest; files are checked when they are asked for.

    Raises:
        BundleError: There is no manifest, it does not hold, or it names a file outside the folder.
    """
    manifest_path = path / MANIFEST_NAME
    try:
        manifest = Manifest.model_validate_json(manifest_path.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST_NAME}", hint="Make one with: ifkd export"
        ) from error
    except OSError as error:
        raise BundleError(f"{manifest_path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleError(
            f"{manifest_path} does not hold at {where} ({first['msg']})", hint="Export the bundle again."
        ) from error
    for name in manifest.files:
        _refuse_outside(path, name)
    return Bundle(path, manifest)


@contextmanager
def new_bundle(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes the bundle at `path` when the block ends well.

    The block fills it and writes the manifest with `write_manifest`. An older bundle at `path` is replaced as
    a whole; a folder that is not a bundle is refused.

    Raises:
        OutputError: `path` holds something else, or cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, and a bundle is a folder", hint="Choose another place.")
    if path.exists() and any(path.iterdir()) and not (path / MANIFEST_NAME).is_file():
        raise OutputError(f"{path} holds files but no bundle", hint="Choose another folder.")
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        temporary.chmod(0o755)
        yield temporary
        put_in_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def add_file(bundle: Bundle, name: str, *, kind: FileKind, precision: Precision | None = None) -> Bundle:
    """Record a file that already lies in the bundle's folder, and return the bundle with its new manifest."""
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
    write_text(
        folder / MANIFEST_NAME,
        json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n",
    )


def _has_data_elsewhere(path: Path) -> bool:
    """Return whether an ONNX file names files beside it; found by the bytes of such a name's key, without a parser."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(EXTERNAL_LOCATION) >= 0


def _refuse_outside(folder: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"The manifest of {folder} names {name!r}, which is outside the bundle")
