"""Detection plan: the resolved arguments of `ifkd detect`."""

from dataclasses import dataclass
from typing import Literal

from deploy.engines import EngineOptions
from deploy.scene.read.scene_list import SceneSource
from deploy.scene.settings import SceneRequest
from deploy.scene.write.result_store import ResultStore

ClusterType = Literal["ray"]


@dataclass(frozen=True, slots=True, eq=False)
class DetectPlan:
    """Scenes, bundle, settings, engine and destination of a run."""

    scenes: tuple[SceneSource, ...]
    request: SceneRequest
    """Bundle and settings for all scenes."""
    engine: EngineOptions
    store: ResultStore
    single: bool = False
    """Whether the results of the only scene are written into the store itself, without a folder and a summary."""
    cluster: ClusterType | None = None
    cores_per_actor: int = 1
    """CPU cores of each engine on a cluster."""
