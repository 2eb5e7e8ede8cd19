"""From a scene to its objects: its rows of tiles are searched, written down and merged.

    searcher: rows of tiles ─► engine, here or elsewhere ─► finished rows
    assembly: finished rows ─► journal ─► streaming merge ─► objects

Only the rows that still wait for a neighbor and the objects are held, so memory follows the width of the scene and the
number of objects, not its area. The result does not depend on the batch size; and a run that goes on from its journal
gives the engine the same batches as one that was never cut off.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import rasterio

from deploy.engines import open_engine
from deploy.engines.engine import Backend, Engine
from deploy.scene.read.aoi import aoi_mask_of
from deploy.scene.read.scene import CACHE_BYTES, Scene
from deploy.scene.result import SceneResult
from deploy.scene.run.assembly import Assembly
from deploy.scene.run.executor import LocalExecutor, SceneExecutor
from deploy.scene.run.row_journal import RowJournal
from deploy.scene.run.row_ranges import unfinished
from deploy.scene.run.run_rows import RowPlan
from deploy.scene.settings import DetectionSettings, grid_for, settings_for, tile_for
from export.bundle.bundle import Bundle, open_bundle
from export.bundle.manifest import Precision
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError, UsageError
from ifkd.core.progress import progress

BarOpener = Callable[[int, int], AbstractContextManager[Any]]
"""Opens a bar of so many tiles, of which so many are done; it has `update(n)`."""


def detect(
    bundle: Bundle | Path | str,
    scene: Scene | Path | str | Array,
    *,
    backend: Backend = "onnxruntime",
    precision: Precision = "fp32",
    threads: int | None = None,
    server: str | None = None,
    batch: int | None = None,
    show_progress: bool = False,
    **settings: Any,
) -> SceneResult:
    """Find the objects of a scene.

    Args:
        bundle: A bundle, or its folder.
        scene: A raster file or address, an array [height, width(, bands)], or an opened `Scene`.
        backend: The runtime.
        precision: Which of the bundle's files.
        threads: CPU threads of the runtime; by default all cores.
        server: URL of the Triton server, or of a model on it, for the backend triton.
        batch: Tiles per call of the engine; by default the most it takes.
        show_progress: Show a bar on stderr.
        **settings: Those of `settings_for`: score, overlap_px, gsd_m, merge, metric, area, strict, tile_px.

    Raises:
        BundleError: The bundle does not hold.
        EngineError: The engine cannot run here.
        SceneError: The scene cannot be read.
        UsageError: A setting does not fit.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    chosen = settings_for(opened.manifest, **settings)
    own = not isinstance(scene, Scene)
    raster = scene if isinstance(scene, Scene) else Scene(scene)
    try:
        grid_for(raster.size, tile_for(raster.size, opened.manifest.input.sizes, chosen), chosen)
        with open_engine(opened, backend=backend, precision=precision, threads=threads, server=server) as engine:
            return detect_scene(
                engine,
                raster,
                chosen,
                category_ids=opened.manifest.category_ids,
                batch=batch,
                show_progress=show_progress,
            )
    finally:
        if own:
            raster.close()


def detect_scene(
    engine: Engine | SceneExecutor,
    scene: Scene,
    settings: DetectionSettings,
    *,
    category_ids: tuple[int, ...] | None = None,
    batch: int | None = None,
    show_progress: bool | BarOpener = False,
    journal: RowJournal | None = None,
) -> SceneResult:
    """Find the objects of a scene.

    Args:
        engine: Answers tiles; or a searcher, which looks at bands.
        scene: What to look at.
        settings: How.
        category_ids: COCO category id by label; by default the labels, counted from 1.
        batch: Tiles per call; by default the most the engine takes.
        show_progress: Show a bar on stderr, or on what this opens.
        journal: Where finished rows are written down; those it already holds are taken from it.

    Raises:
        SceneError: No part of the scene can be read; with `settings.strict`, any part.
        UsageError: The batch or the overlap does not fit the engine.
    """
    began = time.perf_counter()
    searcher = LocalExecutor(engine) if isinstance(engine, Engine) else engine
    tile_px = tile_for(scene.size, searcher.info.sizes, settings)
    grid = grid_for(scene.size, tile_px, settings)
    reach = aoi_mask_of(settings.area, scene.info, grid)
    size = batch_size(batch, searcher.info.max_batch)
    plan = RowPlan(grid, tile_px, settings, size, None if reach is None else reach.wanted)
    assembly = Assembly(grid, settings, journal)
    done = len(assembly.looked) * plan.columns
    stretches = tuple(unfinished(len(grid.tops), plan.columns, batch=size, looked=assembly.looked))
    with (
        rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES),
        _bar(len(grid), f"Detecting in {scene.info.name}", initial=done, shown=show_progress) as bar,
    ):
        spent = searcher.search(scene, plan, stretches, assembly, step=bar.update if bar else lambda _: None)
    if assembly.holes and len(assembly.holes) + assembly.outside == len(grid):
        raise SceneError(f"No tile of {scene.info.name} can be read. The first says: {assembly.holes[0].problem}")
    found = assembly.finish(reach)
    return SceneResult(
        detections=found.detections,
        tiles=found.tiles,
        scene=scene.info,
        engine=searcher.info,
        settings=settings,
        grid=grid,
        category_ids=category_ids or tuple(range(1, len(searcher.info.classes) + 1)),
        skipped=assembly.empty,
        outside=assembly.outside,
        holes=tuple(assembly.holes),
        resumed_rows=assembly.resumed,
        retries=spent.retries,
        seconds={**spent.seconds, **assembly.watch.seconds, "total": time.perf_counter() - began},
    )


def batch_size(asked: int | None, most: int) -> int:
    """Return the tiles per call of an engine that takes at most `most`.

    Raises:
        UsageError: More were asked for, or none.
    """
    if asked is None:
        return most
    if not 1 <= asked <= most:
        raise UsageError("The batch does not fit the engine", got=asked, expected=f"1 to {most}")
    return asked


def _bar(total: int, label: str, *, initial: int, shown: bool | BarOpener) -> AbstractContextManager[Any]:
    if callable(shown):
        return shown(total, initial)
    return progress(total, label, unit="tile", initial=initial) if shown else nullcontext()
