"""Detect the objects of a scene: run its rows of tiles, store them in the journal and merge them.

    screening: bands of the scene -> screen -> tiles to search, if the settings have a screen
    executor: rows of tiles -> engine, of this or another process -> finished rows
    assembly: finished rows -> journal -> streaming merge -> detections

Memory grows with the width of the scene and the number of objects, not with its area. A resumed run gives the engine
the same batches as an uninterrupted run.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from deploy.engines import EngineOptions
from deploy.engines.engine import Backend, Engine
from deploy.scene.read.acquisition_time import stated_time, time_beside
from deploy.scene.read.aoi import aoi_mask_of
from deploy.scene.read.scene import CACHE_BYTES, Scene
from deploy.scene.result import SceneResult
from deploy.scene.run.assembly import Assembly
from deploy.scene.run.executor import LocalExecutor, SceneExecutor
from deploy.scene.run.prefetch import Stopwatch
from deploy.scene.run.row_journal import RowJournal
from deploy.scene.run.row_ranges import unfinished_ranges
from deploy.scene.run.run_rows import RowPlan
from deploy.scene.run.screening import layout_for, screen_scene
from deploy.scene.screen.audit import screening_of
from deploy.scene.screen.screen_network import ScreenNetwork
from deploy.scene.settings import DetectionSettings, SceneRequest, grid_for, settings_for, tile_for
from export.bundle.bundle import Bundle, open_bundle
from export.bundle.manifest import Precision
from ifkd.core.detections import Array, Detections
from ifkd.core.errors import SceneError, UsageError
from ifkd.core.progress import progress
from ifkd.imagery.address import parse_source

ProgressFactory = Callable[[int, int], AbstractContextManager[Any]]
"""Opens a progress bar for a total and an initial number of tiles; the bar has `update(n)`."""


def detect(
    bundle: Bundle | Path | str,
    scene: Scene | Path | str | Array,
    *,
    backend: Backend = "onnxruntime",
    precision: Precision = "fp32",
    threads: int | None = None,
    server: str | None = None,
    batch: int | None = None,
    acquired: str | None = None,
    show_progress: bool = False,
    **settings: Any,
) -> SceneResult:
    """Detect the objects of a scene.

    Args:
        bundle: A bundle or its folder.
        scene: A raster file or URL, an array [height, width(, bands)], or an open `Scene`.
        backend: The runtime.
        precision: Precision of the bundle's file.
        threads: CPU threads of the runtime; by default all cores.
        server: URL of a Triton server or of a model on it, for the backend triton.
        batch: Tiles per inference; by default the engine's maximum.
        acquired: Acquisition time (RFC 3339) of a scene that is not open; by default that of its STAC item or tags.
        show_progress: Whether to show a progress bar on stderr.
        **settings: Arguments of `settings_for`: score_threshold, overlap_px, gsd_m, merge, metric, class_agnostic_iou,
            aoi, strict, tile_px, screen, audit.

    Raises:
        BundleError: The bundle is invalid.
        DataError: The STAC item beside the scene is invalid.
        EngineError: The engine cannot run on this machine.
        SceneError: The scene is unreadable.
        UsageError: A setting is invalid.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    request = SceneRequest(opened, settings_for(opened.manifest, **settings), batch=batch)
    engine_options = EngineOptions(backend, precision, threads, server)
    with nullcontext(scene) if isinstance(scene, Scene) else _open(request, scene, acquired) as raster:
        request.grid_of(raster)  # checks the settings before the engine is opened
        ids = opened.manifest.category_ids
        with engine_options.open(opened) as engine:
            executor = LocalExecutor(engine, partial(ScreenNetwork, opened, backend=backend, threads=threads))
            return detect_scene(
                executor, raster, request.settings, category_ids=ids, batch=batch, show_progress=show_progress
            )


def detect_scene(
    engine: Engine | SceneExecutor,
    scene: Scene,
    settings: DetectionSettings,
    *,
    category_ids: tuple[int, ...] | None = None,
    batch: int | None = None,
    show_progress: bool | ProgressFactory = False,
    journal: RowJournal | None = None,
) -> SceneResult:
    """Detect the objects of an open scene with an open engine.

    By default, the COCO category id of a label is label + 1, and the batch is the engine's maximum. `show_progress` may
    be a factory of another bar than that on stderr. Rows of the journal are not processed again.

    Raises:
        SceneError: No tile is readable; in a strict run, a tile is unreadable.
        UsageError: The batch or the overlap is invalid for the engine.
    """
    start = time.perf_counter()
    executor = LocalExecutor(engine) if isinstance(engine, Engine) else engine
    info, name = executor.info, scene.info.name
    tile_px = tile_for(scene.size, info.sizes, settings)
    grid = grid_for(scene.size, tile_px, settings)
    aoi = aoi_mask_of(settings.aoi, scene.info, grid)
    size = resolve_batch(batch, info.max_batch)
    selected, selection, screening = None if aoi is None else aoi.tiles, None, Stopwatch()
    if (layout := layout_for(grid, settings, selected)) is not None:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), screening("screen"):
            selection = screen_scene(executor, scene, layout, journal)
        selected = selection.searched if selected is None else selection.searched & selected
    plan = RowPlan(grid, tile_px, settings, size, selected)
    assembly = Assembly(grid, settings, journal, selection)
    done = len(assembly.processed) * plan.columns
    row_ranges = tuple(unfinished_ranges(len(grid.tops), plan.columns, batch=size, processed=assembly.processed))
    progress_bar = _progress_bar(len(grid), f"Detecting in {name}", initial=done, shown=show_progress)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), progress_bar as bar:
        stats = executor.run(scene, plan, row_ranges, assembly, step=bar.update if bar else lambda _: None)
    if assembly.unreadable and len(assembly.unreadable) + assembly.outside == len(grid):
        raise SceneError(f"No tile of {name} is readable. The first error: {assembly.unreadable[0].problem}")
    found = assembly.finish(aoi)
    screened = None
    if selection is not None and settings.screen is not None:
        left_out, kept = assembly.left_out(aoi), len(found)
        screened = screening_of(selection, left_out, settings.screen, grid, kept=kept, classes=info.classes)
    return SceneResult(
        detections=found.detections if len(found) else Detections.empty(oriented=info.oriented),
        tiles=found.tiles,
        scene=scene.info,
        engine=info,
        settings=settings,
        grid=grid,
        category_ids=category_ids or tuple(range(1, len(info.classes) + 1)),
        empty=assembly.empty,
        outside=assembly.outside - (selection.unsearched if selection is not None else 0),
        screening=screened,
        unreadable=tuple(assembly.unreadable),
        resumed_rows=assembly.resumed,
        retries=stats.retries,
        seconds={
            **screening.seconds,
            **stats.seconds,
            **assembly.stopwatch.seconds,
            "total": time.perf_counter() - start,
        },
    )


def resolve_batch(batch: int | None, max_batch: int) -> int:
    """Return the tiles per inference: `batch`, or the engine's maximum.

    Raises:
        UsageError: `batch` is below 1 or above the maximum.
    """
    if batch is not None and not 1 <= batch <= max_batch:
        raise UsageError("The batch does not fit the engine", got=batch, expected=f"1 to {max_batch}")
    return batch or max_batch


def _open(request: SceneRequest, scene: Path | str | Array, acquired: str | None) -> Scene:
    source = parse_source(scene) if isinstance(scene, str) else scene
    if acquired is not None:
        return request.open_scene(source, time=stated_time(acquired))
    return request.open_scene(source, time=None if isinstance(source, np.ndarray) else time_beside(source))


def _progress_bar(
    total: int, label: str, *, initial: int, shown: bool | ProgressFactory
) -> AbstractContextManager[Any]:
    if callable(shown):
        return shown(total, initial)
    return progress(total, label, unit="tile", initial=initial) if shown else nullcontext()
