"""Run record: run.json, which states how the files beside it were made."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from deploy.engines.engine import EngineInfo
from deploy.scene.filters import FiltersRecord
from deploy.scene.read.scene import Scene, SceneInfo
from deploy.scene.result import SceneResult, UnreadableTile
from deploy.scene.run.row_ranges import BATCHES_PER_RANGE
from deploy.scene.scene_score import SceneScore
from deploy.scene.screen.audit import ScreeningRecord
from deploy.scene.settings import DetectionSettings
from deploy.scene.write.file_names import PRODUCER, RUN_FILE
from export.bundle.bundle import MANIFEST_NAME
from export.bundle.manifest import Manifest
from ifkd import __version__
from ifkd.core.config import Schema, read_versioned
from ifkd.core.errors import DataError
from ifkd.core.files import sha256_of
from ifkd.imagery.contrast import ContrastStretch


class BundleReference(Schema):
    """The bundle of a run."""

    path: str
    manifest_sha256: str

    @classmethod
    def of_folder(cls, folder: Path) -> "BundleReference":
        """Return the reference of a bundle's folder."""
        return cls(path=str(folder), manifest_sha256=sha256_of(folder / MANIFEST_NAME))


class SceneRecord(Schema):
    """The scene of a run."""

    name: str
    path: str
    driver: str
    height_px: int
    width_px: int
    dtype: str
    bands: tuple[int, ...]
    """Bands that were read as red, green and blue."""
    alpha: int | None = None
    """Band that is 0 where the scene has no data."""
    nodata: str | None
    """One value, or one for each of the bands."""
    contrast_stretch: ContrastStretch
    """Conversion of values to uint8."""
    crs: str | None
    """None without a georeference; so are the next three."""
    georeference: Literal["transform", "gcps"] | None
    transform: tuple[float, float, float, float, float, float] | None
    """From (column, row) to map coordinates, in the order of `affine.Affine`; None with ground control points."""
    gsd_m: float | None
    """Ground sample distance at the center, meters."""
    time: str | None = None
    """Acquisition time, UTC, RFC 3339; None if it is unknown."""
    time_source: str | None = None
    """What states the time."""
    remarks: tuple[str, ...] = ()
    """Assumptions about the scene that may be wrong."""

    @classmethod
    def of(cls, scene: SceneInfo) -> "SceneRecord":
        """Return the record of a scene."""
        georeference = scene.georeference
        transform = None if georeference is None else georeference.transform
        return cls(
            name=scene.name,
            path=scene.path,
            driver=scene.driver,
            height_px=scene.size[0],
            width_px=scene.size[1],
            dtype=scene.dtype,
            bands=scene.bands,
            alpha=scene.alpha,
            nodata=_text_of_nodata(scene.nodata),
            contrast_stretch=scene.stretch,
            crs=None if georeference is None else georeference.crs.to_string(),
            georeference=None if georeference is None else ("gcps" if georeference.gcps else "transform"),
            transform=None if transform is None else tuple(transform)[:6],
            gsd_m=None if georeference is None else georeference.gsd_m(scene.size),
            time=None if scene.time is None else str(scene.time),
            time_source=None if scene.time is None else scene.time.source,
            remarks=scene.remarks,
        )


class TilesRecord(Schema):
    """The tiles of a run."""

    count: int
    height_px: int
    """Scene pixels."""
    width_px: int
    overlap_px: int
    empty: int
    """Tiles without data."""
    outside_aoi: int
    resumed_rows: int
    """Rows that an earlier run had finished."""
    retried_row_ranges: int
    """Row ranges that ran again because their engine was lost."""
    unreadable: tuple[UnreadableTile, ...]


class RunRecord(Schema):
    """Content of run.json."""

    schema_version: Literal[2] = 2
    producer: str
    bundle: BundleReference
    engine: EngineInfo
    scene: SceneRecord
    settings: DetectionSettings
    tiles: TilesRecord
    screening: ScreeningRecord | None = None
    """Outcome of the screen; None without one."""
    filters: FiltersRecord | None = None
    """Filters of the detections, and how many they dropped or tagged."""
    category_ids: tuple[int, ...]
    """COCO category id by label."""
    objects: int
    """Number of detections."""
    objects_per_class: dict[str, int]
    score: SceneScore | None
    """Metrics of the detections, if there were labels."""
    seconds: dict[str, float]
    """By stage."""
    files: tuple[str, ...]
    """Names of the files beside run.json, and of the folder of crops."""


def make_run_record(
    result: SceneResult, bundle: Path, *, files: Sequence[str], score: SceneScore | None, write_seconds: float
) -> RunRecord:
    """Return the run record of a result of the bundle in a folder, with the `files` beside run.json."""
    seconds = {**result.seconds, "write": write_seconds}
    seconds["total"] += write_seconds
    grid = result.grid
    return RunRecord(
        producer=f"{PRODUCER} {__version__}",
        bundle=BundleReference.of_folder(bundle),
        engine=result.engine,
        scene=SceneRecord.of(result.scene),
        settings=result.settings,
        tiles=TilesRecord(
            count=len(grid),
            height_px=grid.tile_px[0],
            width_px=grid.tile_px[1],
            overlap_px=grid.overlap_px,
            empty=result.empty,
            outside_aoi=result.outside,
            resumed_rows=result.resumed_rows,
            retried_row_ranges=result.retries,
            unreadable=result.unreadable,
        ),
        screening=None if result.screening is None else result.screening.record,
        filters=result.filters,
        category_ids=result.category_ids,
        objects=len(result.detections),
        objects_per_class=result.counts(),
        score=score,
        seconds={stage: round(value, 6) for stage, value in seconds.items()},
        files=tuple(files),
    )


def read_run_record(folder: Path) -> RunRecord:
    """Read the run record of an output folder.

    Raises:
        DataError: The record is missing or invalid, or has another schema version.
    """
    path = folder / RUN_FILE
    if not path.exists():
        raise DataError(f"{folder} has no {RUN_FILE}", expected=f"an output folder of `{PRODUCER}`")
    return read_versioned(path, RunRecord, hint=f"Create it again with `{PRODUCER}`.")


def bundle_identity(manifest: Manifest, settings: DetectionSettings) -> dict[str, Any]:
    """Return what the detections of a run take from a manifest, besides settings and engine: classes, input, screen.

    A model card, a new engine file or a new name change none of it.
    """
    parts = manifest.model_dump(mode="json", include={"input", "classes", "category_ids"})
    if settings.screen is not None and manifest.screen is not None:
        parts["screen_sha256"] = manifest.files[manifest.screen.file].sha256
    return parts


def run_identity(
    manifest: Manifest, scene: Scene, engine: EngineInfo, settings: DetectionSettings, batch: int
) -> dict[str, Any]:
    """Return everything that the detections of a run depend on; a run can be resumed only if all of it is the same."""
    info = scene.info
    return {
        "program": f"{PRODUCER} {__version__}",
        "bundle": bundle_identity(manifest, settings),
        "engine": asdict(engine),
        "batch": batch,
        "batches_per_range": BATCHES_PER_RANGE,
        "scene": {
            "name": info.name,
            "size": list(info.size),
            "files": scene.files(),
            "bands": list(info.bands),
            "alpha": info.alpha,
            "nodata": [repr(value) for value in info.nodata],
            "contrast_stretch": asdict(info.stretch),
        },
        "settings": settings.model_dump(mode="json"),
    }


def _text_of_nodata(values: Sequence[float | None]) -> str | None:
    values = values[:1] if len(set(map(repr, values))) == 1 else values
    return None if values == (None,) else " ".join(map(repr, values))
