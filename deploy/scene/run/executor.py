"""Executors: run the row ranges of a scene with an engine of this process, or with engines of other processes."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.engines.engine import Engine, EngineInfo
from deploy.scene.read.scene import Scene
from deploy.scene.run.assembly import Assembly
from deploy.scene.run.row_ranges import RowRange, join_adjacent
from deploy.scene.run.run_rows import RowPlan, run_rows
from deploy.scene.screen.screen_band import Objectness, screen_bands
from deploy.scene.screen.screen_layout import BandScores, ScreenLayout
from ifkd.core.errors import UsageError

Step = Callable[[int], object]
"""Called with the number of tiles that were finished since the last call."""


@dataclass(frozen=True, slots=True, eq=False)
class ExecutionStats:
    """Cost of the execution of a scene."""

    seconds: dict[str, float]
    """By stage, summed over the engines."""
    retries: int = 0
    """Row ranges that ran again because their engine was lost."""


class SceneExecutor(ABC):
    """Runs row ranges of scenes."""

    info: EngineInfo
    """The engine; several engines are identical."""

    @abstractmethod
    def run(
        self, scene: Scene, plan: RowPlan, row_ranges: Sequence[RowRange], assembly: Assembly, *, step: Step
    ) -> ExecutionStats:
        """Run unfinished row ranges of a scene, and put their rows into the assembly, in any order."""

    @abstractmethod
    def screen(
        self, scene: Scene, layout: ScreenLayout, bands: Sequence[int], *, put: Callable[[BandScores], None]
    ) -> None:
        """Screen bands of a scene, and put their scores, in any order.

        Raises:
            BundleError: The bundle has no screen.
        """

    @abstractmethod
    def stop(self) -> None:
        """Make pending `run` calls of other threads fail."""


class LocalExecutor(SceneExecutor):
    """Runs row ranges one after the other with an engine of this process.

    `open_screen` opens the screen of the bundle when a scene is screened first.
    """

    def __init__(self, engine: Engine, open_screen: Callable[[], Objectness] | None = None) -> None:
        self.info = engine.info
        self._engine = engine
        self._open_screen = open_screen
        self._network: Objectness | None = None

    def run(
        self, scene: Scene, plan: RowPlan, row_ranges: Sequence[RowRange], assembly: Assembly, *, step: Step
    ) -> ExecutionStats:
        """Run row ranges of a scene; see `SceneExecutor.run`."""
        total: Counter[str] = Counter()
        for row_range in join_adjacent(row_ranges):
            total.update(run_rows(self._engine, scene, plan, row_range, put=assembly.put, step=lambda: step(1)))
        return ExecutionStats(dict(total))

    def screen(
        self, scene: Scene, layout: ScreenLayout, bands: Sequence[int], *, put: Callable[[BandScores], None]
    ) -> None:
        """Screen bands of a scene; see `SceneExecutor.screen`."""
        if not bands:
            return
        if self._network is None:
            if self._open_screen is None:
                raise UsageError("A screen needs the bundle", hint="Use `detect`, or open the executor with a screen.")
            self._network = self._open_screen()
        screen_bands(self._network, scene, layout, bands, put=put)

    def stop(self) -> None:
        """Do nothing: no other thread calls `run`."""
