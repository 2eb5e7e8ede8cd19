"""summary.json: what a run over many scenes came to."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from deploy.cluster.scene_list import SceneSource
from deploy.scene.result import SceneResult
from deploy.scene.write.output_folder import PRODUCER
from ifkd import __version__
from ifkd.core.config import Schema

PROBLEMS_SHOWN = 3


class SceneEntry(Schema):
    """A scene of the run."""

    name: str
    source: str
    """Path or address."""
    state: Literal["done", "failed"]
    problem: str | None = None
    """Why it failed."""
    width_px: int = 0
    height_px: int = 0
    km2: float | None = None
    """What the raster covers on the ground, square kilometers; None where it has no place on the map."""
    objects: int = 0
    objects_per_class: dict[str, int] = {}
    tiles: int = 0
    holes: int = 0
    """Tiles that could not be read."""
    first_hole: str | None = None
    retries: int = 0
    """Bands of tile rows that were looked at again, as who looked at them was lost."""
    seconds: dict[str, float] = {}
    """By stage; read, preprocess, infer and decode are sums over the engines."""

    @classmethod
    def of_result(cls, source: SceneSource, result: SceneResult, seconds: dict[str, float]) -> "SceneEntry":
        """Return the entry of a scene that was searched and written."""
        height, width = result.scene.size
        georeference = result.scene.georeference
        gsd_m = None if georeference is None else georeference.gsd_m(result.scene.size)
        return cls(
            name=source.name,
            source=str(source.place),
            state="done",
            width_px=width,
            height_px=height,
            km2=None if gsd_m is None else height * width * gsd_m**2 / 1e6,
            objects=len(result.detections),
            objects_per_class=result.counts(),
            tiles=len(result.grid),
            holes=len(result.holes),
            first_hole=result.holes[0].problem if result.holes else None,
            retries=result.retries,
            seconds={stage: round(value, 3) for stage, value in seconds.items()},
        )

    @classmethod
    def of_failure(cls, source: SceneSource, problem: str) -> "SceneEntry":
        """Return the entry of a scene that could not be searched."""
        return cls(name=source.name, source=str(source.place), state="failed", problem=problem)


class Summary(Schema):
    """What summary.json holds."""

    schema_version: Literal[1] = 1
    producer: str
    created: str
    """UTC, ISO 8601."""
    bundle: dict[str, str]
    """Path and manifest_sha256."""
    engines: dict[str, Any]
    """Who looked: backend, device, how many, and on Ray its version and nodes."""
    scenes: int
    done: int
    failed: int
    from_earlier_run: int
    """Of those done, by a run that was cut off."""
    seconds: float
    """Of this run, from the first scene to the last."""
    megapixels: float
    """Of the scenes done in this run."""
    km2: float
    """Likewise; scenes without a place on the map count for nothing."""
    km2_per_hour: float
    megapixels_per_second: float
    objects: int
    """Of all scenes done, also by an earlier run; so are the following."""
    objects_per_class: dict[str, int]
    tiles: int
    holes: int
    retries: int
    entries: tuple[SceneEntry, ...]
    """In the order of the command line."""

    @property
    def verdict(self) -> str | None:
        """What went wrong, in a line; None where nothing did."""
        failed = [entry for entry in self.entries if entry.state == "failed"]
        torn = [entry for entry in self.entries if entry.holes]
        parts = []
        if failed:
            shown = "; ".join(f"{entry.name}: {entry.problem}" for entry in failed[:PROBLEMS_SHOWN])
            more = f"; and {len(failed) - PROBLEMS_SHOWN} more" if len(failed) > PROBLEMS_SHOWN else ""
            parts.append(f"{len(failed)} of {self.scenes} scenes failed ({shown}{more})")
        if torn:
            shown = ", ".join(f"{entry.name} {entry.holes}" for entry in torn[:PROBLEMS_SHOWN])
            more = f", and {len(torn) - PROBLEMS_SHOWN} more" if len(torn) > PROBLEMS_SHOWN else ""
            parts.append(f"{self.holes} tiles of {len(torn)} scenes could not be read ({shown}{more})")
        return "; ".join(parts) or None


def summarize(
    entries: Sequence[SceneEntry],
    *,
    earlier: frozenset[str],
    bundle: dict[str, str],
    engines: dict[str, Any],
    seconds: float,
) -> Summary:
    """Return the summary of a run.

    Args:
        entries: Of all scenes.
        earlier: Names of those that a run which was cut off had done.
        bundle: Path and manifest_sha256.
        engines: Who looked.
        seconds: Of this run.
    """
    done = [entry for entry in entries if entry.state == "done"]
    fresh = [entry for entry in done if entry.name not in earlier]
    megapixels = sum(entry.width_px * entry.height_px for entry in fresh) / 1e6
    km2 = sum(entry.km2 or 0.0 for entry in fresh)
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
        from_earlier_run=len(done) - len(fresh),
        seconds=round(seconds, 3),
        megapixels=round(megapixels, 3),
        km2=round(km2, 6),
        km2_per_hour=round(km2 / seconds * 3600, 3) if seconds else 0.0,
        megapixels_per_second=round(megapixels / seconds, 3) if seconds else 0.0,
        objects=sum(entry.objects for entry in done),
        objects_per_class=dict(per_class),
        tiles=sum(entry.tiles for entry in done),
        holes=sum(entry.holes for entry in done),
        retries=sum(entry.retries for entry in entries),
        entries=tuple(entries),
    )
