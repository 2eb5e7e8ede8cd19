"""Engine pool: the engines of a run, in this process or on a cluster."""

from dataclasses import dataclass

from deploy.cluster.summary import EnginesRecord
from deploy.scene.run.executor import SceneExecutor


@dataclass(frozen=True, slots=True, eq=False)
class EnginePool:
    """Engines that process the scenes of a run."""

    executor: SceneExecutor
    record: EnginesRecord
    concurrent_scenes: int
    """Maximum of open scenes. A single scene is processed by the calling thread, with its own progress bar."""
