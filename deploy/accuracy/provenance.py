"""Records of the engine, bundle and data behind results, and reading of result files."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from deploy.engines.engine import ComputeType, EngineInfo
from export.bundle.bundle import MANIFEST_NAME, Bundle
from export.bundle.manifest import Precision
from ifkd.core.config import Schema, read_versioned
from ifkd.core.files import sha256_of
from ifkd.data.coco import CocoDataset


class EngineRecord(Schema):
    """The engine that was measured."""

    backend: str
    backend_version: str
    device: str
    precision: Precision
    file: str
    """Path of the loaded file in its bundle."""
    sha256: str
    """Digest of that file; latency and accuracy are shown side by side only for the same digest."""
    tile_px: tuple[int, int]
    """(height, width)."""
    max_batch: int
    compute_type: ComputeType | None = None
    """Type of the computation if it is not the type of the file; None if it is."""

    @classmethod
    def of(cls, info: EngineInfo) -> "EngineRecord":
        """Return the record of an engine."""
        return cls(**{name: getattr(info, name) for name in cls.model_fields})


class BundleRecord(Schema):
    """The bundle that was measured."""

    name: str
    path: str
    manifest_sha256: str
    created: str
    producer: str
    provenance: dict[str, Any]
    """As in the manifest."""

    @classmethod
    def of(cls, bundle: Bundle) -> "BundleRecord":
        """Return the record of an open bundle."""
        manifest = bundle.manifest
        return cls(
            name=manifest.name,
            path=str(bundle.path),
            manifest_sha256=sha256_of(bundle.path / MANIFEST_NAME),
            created=manifest.created,
            producer=manifest.producer,
            provenance=manifest.provenance,
        )


class DataRecord(Schema):
    """The labeled images that accuracy was measured on."""

    path: str
    sha256: str
    """Digest of the annotation file."""
    images: int
    objects: int
    """Labeled objects without ignored regions."""

    @classmethod
    def of(cls, dataset: CocoDataset) -> "DataRecord":
        """Return the record of a data set."""
        return cls(
            path=str(dataset.path),
            sha256=sha256_of(dataset.path),
            images=len(dataset),
            objects=sum(dataset.objects_per_class().values()),
        )


R = TypeVar("R", bound=Schema)


def read_result(path: Path, schema: type[R], *, command: str) -> R:
    """Read a result file that `command` writes, such as `ifkd bench`.

    Raises:
        DataError: The file cannot be read, has another schema version, or is invalid.
    """
    return read_versioned(path, schema, hint=f"Name a result of `{command}`, or create it again with this command.")


def now() -> str:
    """Return the current time as UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
