"""Verification of a bundle: its files, the parity of its ONNX files and the source of its engines."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from export.bundle.bundle import MANIFEST_NAME, ONNX_KINDS, Bundle, open_bundle
from export.bundle.engine_metadata import engine_metadata_path, read_engine_metadata
from export.bundle.manifest import QuantizationRecord, TensorParity
from export.bundle.screen_record import ScreenParity
from ifkd.core.config import Schema
from ifkd.core.errors import BundleError
from ifkd.core.files import sha256_of

ParityRecord = TensorParity | QuantizationRecord | ScreenParity


class Verification(Schema):
    """The result of `ifkd verify`."""

    bundle: str
    manifest_sha256: str
    name: str | None = None
    """None if the manifest is invalid."""
    files: int = 0
    bytes: int = 0
    """Number and size of the files in the manifest."""
    evidence: dict[str, str] = {}
    """ONNX file -> its parity; engine file -> its source; parity file -> its verdict; in words."""
    differences: tuple[str, ...] = ()
    """Everything in which the bundle differs from its records."""


def verify_bundle(folder: Path) -> Verification:
    """Compare a bundle with its manifest and return all differences; an engine's metadata are read after its digest.

    Raises:
        BundleError: The folder has no manifest.
    """
    try:
        bundle = open_bundle(folder)
    except BundleError as error:
        if not (folder / MANIFEST_NAME).is_file():
            raise
        digest = sha256_of(folder / MANIFEST_NAME)
        return Verification(bundle=str(folder), manifest_sha256=digest, differences=_mistakes(error))
    records = bundle.manifest.files
    damaged = {name: problem for name in records if (problem := _damage(bundle, name)) is not None}
    evidence: dict[str, str] = {}
    differences = [
        *damaged.values(),
        *_foreign_files(bundle),
        *_weight_differences(bundle),
        *_parity_differences(bundle, evidence),
        *_engine_differences(bundle, evidence, damaged),
    ]
    return Verification(
        bundle=str(folder),
        manifest_sha256=sha256_of(folder / MANIFEST_NAME),
        name=bundle.manifest.name,
        files=len(records),
        bytes=sum(record.bytes for record in records.values()),
        evidence=evidence,
        differences=tuple(differences),
    )


def _mistakes(error: BundleError) -> tuple[str, ...]:
    """Return all mistakes of an invalid manifest."""
    if not isinstance(error.__cause__, ValidationError):
        return (error.sentence(),)
    mistakes = error.__cause__.errors()
    return tuple(f"{MANIFEST_NAME} is invalid at {'.'.join(map(str, one['loc']))} ({one['msg']})." for one in mistakes)


def _damage(bundle: Bundle, name: str) -> str | None:
    """Return the difference between a file and its record in the manifest, or None."""
    try:
        bundle.file(name)
    except BundleError as error:
        return error.sentence()
    return None


def _foreign_files(bundle: Bundle) -> Iterator[str]:
    known = {bundle.path / name for name in (MANIFEST_NAME, *bundle.manifest.files)}
    for path in sorted(bundle.path.rglob("*")):
        if path not in known and (path.is_symlink() or not path.is_dir()):
            yield f"{path} is in the folder but not in the manifest."


def _weight_differences(bundle: Bundle) -> Iterator[str]:
    """Yield weights other than those of the checkpoint that the ONNX files were exported from."""
    checkpoint = bundle.manifest.provenance.get("checkpoint_sha256")
    for name in bundle.find("weights"):
        if (digest := bundle.manifest.files[name].sha256) != checkpoint:
            yield f"{name} is not the checkpoint that was exported: got sha256 {digest}, expected {checkpoint}."


def _parity_differences(bundle: Bundle, evidence: dict[str, str]) -> Iterator[str]:
    """Yield ONNX files whose parity is unknown or failed or was computed from other bytes; describe that of each."""
    manifest = bundle.manifest
    screen = manifest.screen
    records: dict[str, ParityRecord] = {**manifest.checks, **manifest.quantization, **(screen.checks if screen else {})}
    named = [name for kind in ONNX_KINDS for name in bundle.find(kind)] + ([screen.file] if screen else [])
    for name in sorted({*named, *records}):
        file, record = manifest.files.get(name), records.get(name)
        if file is None:
            yield f"The manifest describes {name}, which is no file of the bundle."
        elif record is None:
            yield f"The manifest records no parity of {name}."
        else:
            evidence[name] = _parity_in_words(record)
            if not record.passed:
                yield f"{name} failed: {evidence[name]}."
            if record.onnx_sha256 != file.sha256:
                got = f"sha256 {record.onnx_sha256}" if record.onnx_sha256 else "no digest"
                yield f"The parity of {name} was computed from another file: got {got}, expected {file.sha256}."


def _parity_in_words(record: ParityRecord) -> str:
    if isinstance(record, TensorParity | ScreenParity):
        return f"tensor parity with {record.reference} {'passed' if record.passed else 'failed'}, {record.in_words}"
    loss = "an unknown loss" if record.map_loss is None else f"a loss of {100 * record.map_loss:.2f} points"
    return f"INT8 with {loss} of mAP, {record.decision.in_words if record.decision else 'no decision'}"


def _engine_differences(bundle: Bundle, evidence: dict[str, str], damaged: dict[str, str]) -> Iterator[str]:
    """Yield engines whose metadata are missing, invalid, of another file or of another ONNX file; describe each."""
    manifest = bundle.manifest
    for name in (*bundle.find("engine"), *bundle.find("screen-engine")):
        metadata_name = str(engine_metadata_path(Path(name)))
        if metadata_name in damaged:
            continue
        if metadata_name not in manifest.files:
            yield f"{name} has no metadata {metadata_name}."
            continue
        try:
            metadata = read_engine_metadata(bundle.path / metadata_name)
        except BundleError as error:
            yield error.sentence()
            continue
        file, source = manifest.files[name], manifest.files.get(metadata.onnx_file)
        builder = f"{metadata.builder} {metadata.builder_version} for {metadata.device}"
        evidence[name] = f"built from {metadata.onnx_file} by {builder}"
        if (described := metadata.engine_sha256) != file.sha256:
            yield f"{metadata_name} describes another file: got sha256 {described}, expected {file.sha256}."
        if source is None or (metadata.onnx_sha256, file.precision) != (source.sha256, source.precision):
            expected = "that file" if source is None else f"{source.precision} and sha256 {source.sha256}"
            got = f"{file.precision} and sha256 {metadata.onnx_sha256}"
            yield f"{name} was not built from the bundle's {metadata.onnx_file}: got {got}, expected {expected}."
