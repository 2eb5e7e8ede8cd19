"""Start the engines of a run: one in this process, or several on a Ray cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from deploy.cluster.engine_pool import EnginePool
from deploy.cluster.ray_pool import ray_engines
from deploy.cluster.summary import EnginesRecord
from deploy.engines import GPU_BACKENDS
from deploy.engines.best_engine import chosen_options
from deploy.scene.detect_plan import DetectPlan
from deploy.scene.run.executor import LocalExecutor
from deploy.scene.screen.screen_network import ScreenNetwork


@contextmanager
def open_engine_pool(plan: DetectPlan, log: Callable[[str], object]) -> Iterator[EnginePool]:
    """Open the engines of a plan; `log` receives messages for the user.

    Raises:
        BundleError: The bundle has no file of this precision, or its digest differs.
        EngineError: An engine cannot start.
        MissingExtraError: The runtime or Ray is not installed.
        UsageError: Versions differ between this machine and the cluster.
    """
    options = chosen_options(plan.engine, plan.request.bundle, gpu=plan.cluster is None, log=log)
    if plan.cluster is None:
        with options.open(plan.request.bundle) as engine:
            record = EnginesRecord(backend=engine.info.backend, device=engine.info.device, count=1)
            screen = partial(ScreenNetwork, plan.request.bundle, backend=options.backend, threads=options.threads)
            yield EnginePool(LocalExecutor(engine, screen), record, concurrent_scenes=1)
        return
    cores, on_gpu = plan.cores_per_actor, options.backend in GPU_BACKENDS
    opener = replace(options, threads=options.threads or cores).opener()
    screen = partial(ScreenNetwork, backend=options.backend, threads=options.threads or cores)
    with ray_engines(
        plan.request.bundle, opener, on_gpu=on_gpu, cores_per_engine=cores, log=log, open_screen=screen
    ) as pool:
        yield pool
