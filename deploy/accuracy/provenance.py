"""What a result file says of the engine, bundle and data behind its numbers, and how result files are read."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from deploy.engines.engine import EngineInfo
from export.bundle.bundle import MANIFEST_NAME, Bundle
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.core.errors import DataError
from ifkd.core.files import sha256_of
from ifkd.data.coco import CocoDataset


class EngineRecord(Schema):
    """The engine that gave the numbers beside it."""

    backend: str
    backend_version: str
    device: str
    precision: Precision
    file: str
    """Name of the file that was loaded, in its bundle."""
    sha256: str
    """Digest of that file: accuracy and latency of one digest belong together."""
    tile_px: tuple[int, int]
    """(height, width)."""
    max_batch: int

    @classmethod
    def of(cls, info: EngineInfo) -> "EngineRecord":
        """Return the record of a loaded engine."""
        return cls(
            backend=info.backend,
            backend_version=info.backend_version,
            device=info.device,
            precision=info.precision,
            file=info.file,
            sha256=info.sha256,
            tile_px=info.tile_px,
            max_batch=info.max_batch,
        )


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
    """Objects, ignored regions left out."""

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


def read_result(path: Path, schema: type[R]) -> R:
    """Read a result file that a verb wrote.

    Raises:
        DataError: The file is absent, is not JSON, or is not what `schema` describes.
    """
    verb = {"evaluation": "evaluate"}.get(name := schema.__name__.lower(), name)
    try:
        return schema.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}", expected=f"a result of `ifkd {verb}`") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"{path} is not a result of `ifkd {verb}` of this version, at {where}",
            got=_short(first["input"]),
            expected=first["msg"],
            hint="Check that the right file was named, or make it anew with this version.",
        ) from error


def now() -> str:
    """Return the time as UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _short(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
