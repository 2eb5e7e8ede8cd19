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
    def stop(self) -> None:
        """Make pending `run` calls of other threads fail."""


class LocalExecutor(SceneExecutor):
    """Runs row ranges one after the other with an engine of this process."""

    def __init__(self, engine: Engine) -> None:
        self.info = engine.info
        self._engine = engine

    def run(
        self, scene: Scene, plan: RowPlan, row_ranges: Sequence[RowRange], assembly: Assembly, *, step: Step
    ) -> ExecutionStats:
        """Run row ranges of a scene; see `SceneExecutor.run`."""
        total: Counter[str] = Counter()
        for row_range in join_adjacent(row_ranges):
            total.update(run_rows(self._engine, scene, plan, row_range, put=assembly.put, step=lambda: step(1)))
        return ExecutionStats(dict(total))

    def stop(self) -> None:
        """Do nothing: no other thread calls `run`."""
