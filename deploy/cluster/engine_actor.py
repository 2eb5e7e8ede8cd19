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
from deploy.scene.screen.screen_band import screen_bands
from deploy.scene.screen.screen_layout import BandScores, ScreenLayout
from deploy.scene.screen.screen_network import ScreenNetwork
from export.bundle.bundle import Bundle
from ifkd.core.errors import SceneError
from ifkd.imagery.address import HTTP_OPTIONS, RasterAddress
from ifkd.imagery.contrast import ContrastStretch, ImageryOptions

OpenEngine = Callable[[Bundle], Engine]
OpenScreen = Callable[[Bundle], ScreenNetwork]


@dataclass(frozen=True, slots=True, eq=False)
class ScenePlan:
    """Everything that an actor needs to run any row range of a scene, or to screen any of its bands."""

    location: Path | RasterAddress
    """Absolute."""
    imagery: ImageryOptions
    stretch: ContrastStretch
    """Contrast stretch of the entire scene, so that actors need not sample it again."""
    plan: RowPlan | ScreenLayout
    """What to do with its row ranges or its bands."""


@dataclass(frozen=True, slots=True, eq=False)
class RangeResult:
    """Result of a row range or a band."""

    results: tuple[RowRecord | BandScores, ...]
    """From top to bottom."""
    seconds: dict[str, float]
    """By stage."""


class EngineActor:
    """An engine in a process of its own.

    Several row ranges may run at a time: while the engine works on one, the tiles of the next are read.
    """

    def __init__(
        self, fetch_bundle: Callable[[], BundleCopy], open_engine: OpenEngine, open_screen: OpenScreen
    ) -> None:
        # Ray calls the methods in other threads, but rasterio's options are thread-local; GDAL reads the environment.
        for name, value in {**HTTP_OPTIONS, "GDAL_CACHEMAX": str(CACHE_BYTES >> 20)}.items():
            os.environ.setdefault(name, value)
        self._bundle = fetch_bundle().unpack()
        self._engine = open_engine(self._bundle)
        self._engine_lock = threading.Lock()
        self._open_screen = open_screen
        self._screen: ScreenNetwork | None = None

    def info(self) -> EngineInfo:
        """Return the description of the engine; a response means that the actor is ready."""
        return self._engine.info

    def run(self, scene: ScenePlan, task: RowRange | int) -> RangeResult:
        """Run a row range of a scene, or screen a band.

        Raises:
            SceneError: The scene cannot be opened on this node; or a part is unreadable, and the run is strict.
        """
        results: list[RowRecord | BandScores] = []
        engine, lock, plan, seconds = self._engine, self._engine_lock, scene.plan, dict[str, float]()
        with gdal_environment(), _open(scene) as opened:
            if isinstance(plan, ScreenLayout):
                assert isinstance(task, int)
                with lock:
                    self._screen = self._screen or self._open_screen(self._bundle)
                    screen_bands(self._screen, opened, plan, [task], put=results.append)
            else:
                assert isinstance(task, RowRange)
                seconds = run_rows(engine, opened, plan, task, put=results.append, engine_lock=lock)
        return RangeResult(tuple(results), seconds)


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
