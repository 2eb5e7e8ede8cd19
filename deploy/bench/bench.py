"""Measure latency, stages and process cost of a bundle's files on this machine."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from deploy.accuracy.evaluated_model import EvaluatedModel
from deploy.accuracy.image_detection import TilingConfig, first_tiles
from deploy.accuracy.provenance import BundleRecord, now
from deploy.bench.bench_result import Bench, TileSource, compute_speedups, unmeasured_files
from deploy.bench.latency import GroundCoverage, TimingConfig
from deploy.bench.process_cost import ProcessCost, measure_process_cost
from deploy.bench.session import BenchmarkCase, BenchmarkSession, EngineKey
from deploy.bench.stage_timing import StageProfile, profile_stages
from deploy.bench.system_monitor import SystemMonitor, process_peak_mb
from deploy.engines.engine import Engine
from deploy.scene.read.scene import Scene
from deploy.scene.run.executor import LocalExecutor
from deploy.scene.screen.screen_network import ScreenNetwork
from deploy.scene.screen_search import ScreenSearch, compare_searches
from deploy.scene.settings import settings_for
from export.bundle.bundle import Bundle
from ifkd.core.detections import Array
from ifkd.core.environment import describe_environment
from ifkd.data.coco import CocoDataset

logger = logging.getLogger(__name__)

NOISE_SEED = 0
NOISE_TILES = 8
MAX_TILES = 64
SCENE_ROUNDS = 3
"""Turns of the searches of a scene."""


@dataclass(frozen=True, slots=True, eq=False)
class BenchPlan:
    """The resolved arguments of `ifkd bench`."""

    bundle: Bundle
    model: EvaluatedModel
    reference: EvaluatedModel | None
    """A detector whose torch network is timed together with the bundle."""
    dataset: CocoDataset | None
    """Images to run on; noise when None."""
    cases: tuple[BenchmarkCase, ...]
    timing: TimingConfig
    threads: int | None
    """CPU threads of the runtimes; None for their own choice."""
    scene: Path | None = None
    """Raster to search without and with the screen of the bundle."""

    def open_engine(self, key: EngineKey) -> Engine:
        """Open an engine of the bundle or of the reference."""
        return self._model_of(key).open(key.backend, key.precision, self.threads)

    def measure_cost(self, key: EngineKey, batch: int) -> ProcessCost:
        """Measure an engine in a process of its own."""
        path = Path(self._model_of(key).record.path)
        return measure_process_cost(path, key.backend, key.precision, batch=batch, threads=self.threads)

    def _model_of(self, key: EngineKey) -> EvaluatedModel:
        model = self.model if key.role == "bundle" else self.reference
        assert model is not None
        return model


def run_bench(plan: BenchPlan) -> Bench:
    """Measure everything in a plan; after Ctrl-C return what was measured, marked as partial."""
    tiling = plan.model.tiling
    tiles, source = bench_tiles(plan.dataset, tiling)
    gsd_m = plan.bundle.manifest.defaults.gsd_m
    gsd_m = None if gsd_m is None else gsd_m / tiling.scale
    partial = False
    stages: list[StageProfile] = []
    screens: list[ScreenSearch] = []
    with BenchmarkSession(plan.bundle, plan.open_engine, tiles, plan.timing) as session:
        with SystemMonitor() as monitor:
            try:
                session.run(plan.cases)
            except KeyboardInterrupt:
                partial = True
        machine = monitor.result()
        try:
            if not partial:
                for profile in _profiles(session.bundle_engines(), plan.dataset, tiling):
                    stages.append(profile)  # noqa: PERF402 - keeps the profiles before an interruption
                for search in _searches(session.bundle_engines(), plan):
                    screens.append(search)  # noqa: PERF402
                session.measure_process_costs(plan.measure_cost)
        except KeyboardInterrupt:
            partial = True
        cells = session.cells(GroundCoverage(tiling.tile_px, tiling.overlap_px, gsd_m))
        return Bench(
            created=now(),
            bundle=BundleRecord.of(plan.bundle),
            timing=plan.timing,
            threads=plan.threads,
            tiles=source,
            gsd_m=gsd_m,
            overlap_px=tiling.overlap_px,
            cells=cells,
            model=plan.model.with_flops(),
            reference=None if plan.reference is None else plan.reference.with_flops(),
            speedups=compute_speedups(cells),
            stages=tuple(stages),
            screens=tuple(screens),
            machine=machine,
            not_measured=unmeasured_files(plan.bundle, cells),
            process_peak_mb=process_peak_mb(),
            partial=partial,
            environment=describe_environment(),
        )


def _searches(engines: list[Engine], plan: BenchPlan) -> Iterator[ScreenSearch]:
    """Yield searches of a scene without and with the screen, in turns; an engine that fails is logged and left out."""
    if plan.scene is None:
        return
    manifest = plan.bundle.manifest
    with Scene(plan.scene, imagery=manifest.input.imagery) as scene:
        for engine in engines:
            open_screen = partial(ScreenNetwork, plan.bundle, backend=engine.info.backend, threads=plan.threads)
            executor = LocalExecutor(engine, open_screen)
            try:
                yield compare_searches(executor, scene, settings_for(manifest, screen="auto"), rounds=SCENE_ROUNDS)
            except Exception as error:  # noqa: BLE001 - as in `_profiles`
                logger.warning("No search of %s by %s: %s", scene.info.name, _name_of(engine), error)


def bench_tiles(dataset: CocoDataset | None, tiling: TilingConfig) -> tuple[Array, TileSource]:
    """Return tiles of the images of a data set, or seeded noise without one, and their description."""
    height, width = tiling.tile_px
    if dataset is not None:
        tiles = first_tiles(dataset.images, tiling, count=MAX_TILES)
        description = f"the first {len(tiles)} tiles of {dataset.path.name}, {height}x{width}"
        return tiles, TileSource(kind="images", description=description, tiles=len(tiles))
    tiles = np.random.default_rng(NOISE_SEED).integers(0, 256, (NOISE_TILES, 3, height, width), np.uint8)
    description = f"uniform noise, {height}x{width}: there are no labeled images"
    return tiles, TileSource(kind="noise", description=description, tiles=len(tiles))


def _profiles(engines: list[Engine], dataset: CocoDataset | None, tiling: TilingConfig) -> Iterator[StageProfile]:
    """Yield the stage profiles of engines; an engine that fails is logged and left out."""
    if dataset is None:
        return
    for engine in engines:
        try:
            yield profile_stages(engine, dataset.images, tiling)
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the other engines are measured
            logger.warning("No stage times of %s: %s", _name_of(engine), error)


def _name_of(engine: Engine) -> str:
    return f"{engine.info.backend} {engine.info.precision}"
