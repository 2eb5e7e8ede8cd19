"""What runs beside an engine elsewhere: it opens scenes itself, and answers bands with their rows."""

import os
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rasterio

from deploy.cluster.bundle_copy import BundleCopy
from deploy.engines.engine import Engine, EngineInfo
from deploy.scene.read.scene import CACHE_BYTES, Scene
from deploy.scene.run.row_journal import RowRecord
from deploy.scene.run.row_ranges import RowRange
from deploy.scene.run.run_rows import RowPlan, run_rows
from export.bundle.bundle import Bundle
from ifkd.core.errors import SceneError
from ifkd.imagery.address import HTTP_OPTIONS, RasterAddress
from ifkd.imagery.contrast import ContrastStretch

OpenEngine = Callable[[Bundle], Engine]


@dataclass(frozen=True, slots=True, eq=False)
class ScenePlan:
    """A scene and how it is searched: all that is needed to look at any band of it."""

    place: Path | RasterAddress
    """Absolute."""
    bands: tuple[int, ...]
    nodata: float | None
    scaling: ContrastStretch
    """As the whole scene's, so that nobody samples it again."""
    plan: RowPlan


@dataclass(frozen=True, slots=True, eq=False)
class RangeResult:
    """What a band gave."""

    rows: tuple[RowRecord, ...]
    """From the top."""
    seconds: dict[str, float]
    """By stage."""


class EngineActor:
    """An engine and its scenes, in a process of its own.

    Several bands may be asked for at a time: while the engine works on one, the tiles of the next are read.

    Args:
        fetch: Gives the bundle, or where it lies.
        open_engine: Loads its model.
    """

    def __init__(self, fetch: Callable[[], BundleCopy], open_engine: OpenEngine) -> None:
        # Calls come in threads of their own, and rasterio's options are those of a thread; GDAL also asks here.
        for name, value in {**HTTP_OPTIONS, "GDAL_CACHEMAX": str(CACHE_BYTES >> 20)}.items():
            os.environ.setdefault(name, value)
        self._engine = open_engine(fetch().unpacked())
        self._turn = threading.Lock()

    def info(self) -> EngineInfo:
        """Return what the engine is; whoever answers is ready."""
        return self._engine.info

    def look(self, scene: ScenePlan, stretch: RowRange) -> RangeResult:
        """Return the rows of a stretch.

        Raises:
            SceneError: The scene cannot be opened here; or a part cannot be read, and the search is strict.
        """
        rows: list[RowRecord] = []
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, **HTTP_OPTIONS), self._opened(scene) as opened:
            seconds = run_rows(self._engine, opened, scene.plan, stretch, take=rows.append, turn=self._turn)
        return RangeResult(tuple(rows), seconds)

    def _opened(self, scene: ScenePlan) -> Scene:
        try:
            opened = Scene(scene.place, bands=scene.bands, nodata=scene.nodata, scaling=scene.scaling)
        except SceneError as error:
            raise SceneError(
                f"The scene cannot be opened on {platform.node()}: {error}",
                hint="Every node needs it at the same path, or at an address (s3://, https://).",
            ) from error
        if opened.size != scene.plan.grid.size:
            opened.close()
            raise SceneError(
                f"{scene.place} is another scene on {platform.node()}",
                got=f"{opened.size[1]}x{opened.size[0]}",
                expected=f"{scene.plan.grid.size[1]}x{scene.plan.grid.size[0]} (width x height)",
            )
        return opened
