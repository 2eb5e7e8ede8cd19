"""Ray actor with an engine: opens scenes itself, and returns the rows of row ranges."""

import os
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.cluster.bundle_copy import BundleCopy
from deploy.engines.engine import Engine, EngineInfo
from deploy.scene.read.scene import CACHE_BYTES, Scene, gdal_environment
from deploy.scene.run.row_journal import RowRecord
from deploy.scene.run.row_ranges import RowRange
from deploy.scene.run.run_rows import RowPlan, run_rows
from export.bundle.bundle import Bundle
from ifkd.core.errors import SceneError
from ifkd.imagery.address import HTTP_OPTIONS, RasterAddress
from ifkd.imagery.contrast import ContrastStretch, ImageryOptions

OpenEngine = Callable[[Bundle], Engine]


@dataclass(frozen=True, slots=True, eq=False)
class ScenePlan:
    """Everything that an actor needs to run any row range of a scene."""

    location: Path | RasterAddress
    """Absolute."""
    imagery: ImageryOptions
    stretch: ContrastStretch
    """Contrast stretch of the entire scene, so that actors need not sample it again."""
    plan: RowPlan


@dataclass(frozen=True, slots=True, eq=False)
class RangeResult:
    """Result of a row range."""

    rows: tuple[RowRecord, ...]
    """From top to bottom."""
    seconds: dict[str, float]
    """By stage."""


class EngineActor:
    """An engine in a process of its own.

    Several row ranges may run at a time: while the engine works on one, the tiles of the next are read.
    """

    def __init__(self, fetch_bundle: Callable[[], BundleCopy], open_engine: OpenEngine) -> None:
        # Ray calls the methods in other threads, but rasterio's options are thread-local; GDAL reads the environment.
        for name, value in {**HTTP_OPTIONS, "GDAL_CACHEMAX": str(CACHE_BYTES >> 20)}.items():
            os.environ.setdefault(name, value)
        self._engine = open_engine(fetch_bundle().unpack())
        self._engine_lock = threading.Lock()

    def info(self) -> EngineInfo:
        """Return the description of the engine; a response means that the actor is ready."""
        return self._engine.info

    def run(self, scene: ScenePlan, row_range: RowRange) -> RangeResult:
        """Run a row range of a scene.

        Raises:
            SceneError: The scene cannot be opened on this node; or a part is unreadable, and the run is strict.
        """
        rows: list[RowRecord] = []
        engine, lock = self._engine, self._engine_lock
        with gdal_environment(), _open(scene) as opened:
            seconds = run_rows(engine, opened, scene.plan, row_range, put=rows.append, engine_lock=lock)
        return RangeResult(tuple(rows), seconds)


def _open(scene: ScenePlan) -> Scene:
    try:
        opened = Scene(scene.location, imagery=scene.imagery, stretch=scene.stretch)
    except SceneError as error:
        hint = "Every node needs it at the same path, or at a URL (s3://, https://)."
        raise SceneError(f"The scene cannot be opened on {platform.node()}: {error}", hint=hint) from error
    if opened.size != scene.plan.grid.size:
        opened.close()
        (height, width), expected = opened.size, scene.plan.grid.size
        problem = f"{scene.location} is another scene on {platform.node()}"
        raise SceneError(problem, got=f"{width}x{height}", expected=f"{expected[1]}x{expected[0]} (width x height)")
    return opened
