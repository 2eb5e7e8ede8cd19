"""Summary of a batch run: summary.json."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from deploy.scene.read.scene_list import SceneSource
from deploy.scene.scene_run import SceneRun
from deploy.scene.write.detection_item import SceneOutline
from deploy.scene.write.file_names import PRODUCER
from deploy.scene.write.run_record import BundleReference
from ifkd import __version__
from ifkd.core.config import Schema

PROBLEMS_SHOWN = 3


class SceneEntry(Schema):
    """A scene of the batch run."""

    name: str
    source: str
    """Path or URL."""
    state: Literal["done", "failed"]
    problem: str | None = None
    """Reason of the failure."""
    width_px: int = 0
    height_px: int = 0
    km2: float | None = None
    """Area of the raster on the ground, square kilometers; None without a georeference."""
    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north, degrees; west > east across the antimeridian; None if the scene has no STAC item."""
    time: str | None = None
    """Acquisition time, UTC, RFC 3339; None if it is unknown."""
    objects: int = 0
    objects_per_class: dict[str, int] = {}
    tiles: int = 0
    unreadable_tiles: int = 0
    first_unreadable: str | None = None
    """Problem of the first unreadable tile."""
    retried_row_ranges: int = 0
    """Row ranges that ran again because their engine was lost."""
    resumed_fraction: float = 0.0
    """Fraction of the rows of tiles that an earlier, interrupted run of the scene had finished."""
    skipped_tiles: int = 0
    """Tiles that the screen skipped."""
    screen_problem: str | None = None
    """Contradiction between the audit of the skipped tiles and the bound of the screen; an error if `strict`."""
    strict: bool = False
    seconds: dict[str, float] = {}
    """By stage; read, preprocess, infer and decode are sums over the engines."""

    @classmethod
    def of_run(cls, source: SceneSource, run: SceneRun) -> "SceneEntry":
        """Return the entry of a scene whose results are written."""
        record = run.record
        scene, tiles, outline = record.scene, record.tiles, SceneOutline.of(run.result.scene)
        return cls(
            name=source.name,
            source=str(source.location),
            state="done",
            width_px=scene.width_px,
            height_px=scene.height_px,
            km2=None if scene.gsd_m is None else scene.height_px * scene.width_px * scene.gsd_m**2 / 1e6,
            bbox=None if outline is None else outline.bbox,
            time=scene.time,
            objects=record.objects,
            objects_per_class=record.objects_per_class,
            tiles=tiles.count,
            unreadable_tiles=len(tiles.unreadable),
            first_unreadable=tiles.unreadable[0].problem if tiles.unreadable else None,
            retried_row_ranges=tiles.retried_row_ranges,
            resumed_fraction=tiles.resumed_rows / len(run.result.grid.tops),
            skipped_tiles=0 if record.screening is None else record.screening.skipped,
            screen_problem=None if record.screening is None else record.screening.contradiction,
            strict=record.settings.strict,
            seconds={stage: round(value, 3) for stage, value in record.seconds.items()},
        )

    @classmethod
    def of_failure(cls, source: SceneSource, problem: str) -> "SceneEntry":
        """Return the entry of a scene that failed."""
        return cls(name=source.name, source=str(source.location), state="failed", problem=problem)


class EnginesRecord(Schema):
    """Engines of a batch run."""

    backend: str
    device: str
    count: int
    cluster: str | None = None
    """Name and version of the cluster software; None without a cluster. So are the next two."""
    cores_per_engine: int | None = None
    nodes: int | None = None


class Summary(Schema):
    """Content of summary.json."""

    schema_version: Literal[2] = 2
    producer: str
    created: str
    """UTC, ISO 8601."""
    bundle: BundleReference
    engines: EnginesRecord
    scenes: int
    done: int
    failed: int
    from_earlier_run: int
    """Scenes that an earlier, interrupted run completed."""
    seconds: float
    """Duration of this run, from the first scene to the last."""
    megapixels: float
    """Size of the scenes of this run, less the rows of tiles that an earlier run had finished; so is `km2`."""
    km2: float
    """Scenes without a georeference count as 0."""
    km2_per_hour: float
    megapixels_per_second: float
    objects: int
    """Detections in all completed scenes, including those of an earlier run; so are the following values."""
    objects_per_class: dict[str, int]
    tiles: int
    unreadable_tiles: int
    retried_row_ranges: int
    entries: tuple[SceneEntry, ...]
    """In the order of the command's arguments."""

    @property
    def verdict(self) -> str | None:
        """Failures of the run in one line; None without any."""
        failed = [f"{entry.name}: {entry.problem}" for entry in self.entries if entry.state == "failed"]
        incomplete = [f"{entry.name} {entry.unreadable_tiles}" for entry in self.entries if entry.unreadable_tiles]
        parts = []
        if failed:
            parts.append(f"{len(failed)} of {self.scenes} scenes failed ({_first(failed, '; ')})")
        if incomplete:
            scenes = f"{len(incomplete)} scenes could not be read ({_first(incomplete, ', ')})"
            parts.append(f"{self.unreadable_tiles} tiles of {scenes}")
        contradicted = [f"{entry.name}: {entry.screen_problem}" for entry in self.entries if entry.screen_problem]
        if contradicted and any(entry.strict for entry in self.entries):
            parts.append(_first(contradicted, "; "))
        return "; ".join(parts) or None


def _first(problems: Sequence[str], separator: str) -> str:
    more = [f"and {len(problems) - PROBLEMS_SHOWN} more"] if len(problems) > PROBLEMS_SHOWN else []
    return separator.join([*problems[:PROBLEMS_SHOWN], *more])


def summarize(
    entries: Sequence[SceneEntry],
    *,
    earlier: frozenset[str],
    bundle: BundleReference,
    engines: EnginesRecord,
    seconds: float,
) -> Summary:
    """Return the summary of a run of `seconds`; `earlier` has the names of scenes that an earlier run completed."""
    done = [entry for entry in entries if entry.state == "done"]
    this_run = [entry for entry in done if entry.name not in earlier]
    megapixels = sum(entry.width_px * entry.height_px * (1 - entry.resumed_fraction) for entry in this_run) / 1e6
    km2 = sum((entry.km2 or 0.0) * (1 - entry.resumed_fraction) for entry in this_run)
    per_class: Counter[str] = Counter()
    for entry in done:
        per_class.update(entry.objects_per_class)
    return Summary(
        producer=f"{PRODUCER} {__version__}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=bundle,
        engines=engines,
        scenes=len(entries),
        done=len(done),
        failed=len(entries) - len(done),
        from_earlier_run=len(done) - len(this_run),
        seconds=round(seconds, 3),
        megapixels=round(megapixels, 3),
        km2=round(km2, 6),
        km2_per_hour=round(km2 / seconds * 3600, 3) if seconds else 0.0,
        megapixels_per_second=round(megapixels / seconds, 3) if seconds else 0.0,
        objects=sum(entry.objects for entry in done),
        objects_per_class=dict(per_class),
        tiles=sum(entry.tiles for entry in done),
        unreadable_tiles=sum(entry.unreadable_tiles for entry in done),
        retried_row_ranges=sum(entry.retried_row_ranges for entry in entries),
        entries=tuple(entries),
    )
