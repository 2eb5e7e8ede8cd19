"""Who searches a scene: one engine of this process, or several elsewhere behind the same face."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.engines.engine import Engine, EngineInfo
from deploy.scene.read.scene import Scene
from deploy.scene.run.assembly import Assembly
from deploy.scene.run.row_ranges import RowRange, joined
from deploy.scene.run.run_rows import RowPlan, run_rows


@dataclass(frozen=True, slots=True, eq=False)
class ExecutionStats:
    """What a search took."""

    seconds: dict[str, float]
    """By stage; where several engines look at once, the sum over them."""
    retries: int = 0
    """Bands that were looked at again, as who looked at them was lost."""


class SceneExecutor(ABC):
    """Looks at bands of scenes, here or elsewhere."""

    info: EngineInfo
    """The engine that looks; where there are several, they are alike."""

    @abstractmethod
    def search(
        self,
        scene: Scene,
        plan: RowPlan,
        stretches: Sequence[RowRange],
        assembly: Assembly,
        *,
        step: Callable[[int], object],
    ) -> ExecutionStats:
        """Put the rows of stretches into the assembly, in any order, and return what it took.

        Args:
            scene: What to look at.
            plan: How.
            stretches: What is left of each of its bands.
            assembly: Where rows go.
            step: Told how many tiles more were looked at.
        """

    @abstractmethod
    def stop(self) -> None:
        """End the searches that other threads wait for, with an error."""


class LocalExecutor(SceneExecutor):
    """Looks with an engine of this process, band after band without a pause."""

    def __init__(self, engine: Engine) -> None:
        self.info = engine.info
        self._engine = engine

    def search(
        self,
        scene: Scene,
        plan: RowPlan,
        stretches: Sequence[RowRange],
        assembly: Assembly,
        *,
        step: Callable[[int], object],
    ) -> ExecutionStats:
        """Put the rows of stretches into the assembly; see `Searcher.search`."""
        total: Counter[str] = Counter()
        for stretch in joined(iter(stretches)):
            total.update(run_rows(self._engine, scene, plan, stretch, take=assembly.put, step=lambda: step(1)))
        return ExecutionStats(dict(total))

    def stop(self) -> None:
        """Do nothing: only the calling thread searches."""
