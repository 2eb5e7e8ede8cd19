"""The run of a scene: from its place to the files of its results in a folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.scene.ground_truth import SceneGroundTruth, read_ground_truth
from deploy.scene.read.aoi import aoi_mask_of
from deploy.scene.read.scene import Scene
from deploy.scene.result import SceneResult
from deploy.scene.run.executor import SceneExecutor
from deploy.scene.run.pipeline import BarOpener, batch_size, detect_scene
from deploy.scene.run.row_journal import RowJournal
from deploy.scene.settings import DetectionSettings, grid_for, tile_for
from deploy.scene.write.map_page import write_page
from deploy.scene.write.output_folder import RUN_NAME, OutputFolder
from deploy.scene.write.quicklook import write_quicklooks
from deploy.scene.write.run_record import run_identity, run_record
from deploy.scene.write.writers import RESULT_NAMES, choose_formats, write_results
from export.bundle.bundle import Bundle
from ifkd.core.errors import SceneError
from ifkd.core.files import write_json
from ifkd.imagery.address import RasterAddress


@dataclass(frozen=True, slots=True, eq=False)
class SceneRequest:
    """What is asked of every scene of a run."""

    bundle: Bundle
    settings: DetectionSettings
    bands: tuple[int, ...] | None = None
    """One or three, from 1, in place of the bundle's."""
    scale_range: tuple[float, float] | None = None
    """The values that become black and white, in place of the bundle's."""
    nodata: float | None = None
    formats: Sequence[str] | None = None
    """None: all that a scene can have."""
    batch: int | None = None
    """Tiles per call; None: the most the engine takes."""
    restart: bool = False
    """Forget what an earlier run into the same folder had done."""
    truth: Path | None = None
    """Labels to score the result with."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneRun:
    """A scene that was searched and written."""

    result: SceneResult
    record: dict[str, Any]
    """Content of run.json."""


def run_scene(
    request: SceneRequest,
    place: Path | RasterAddress,
    folder: Path,
    *,
    searcher: Callable[[], SceneExecutor],
    say: Callable[[str], object],
    show_progress: bool | BarOpener = True,
) -> SceneRun:
    """Look at a scene and write what was found, going on from what an earlier run into the same folder had done.

    Args:
        request: What is asked.
        place: Where the scene lies.
        folder: Where the results will.
        searcher: Gives who looks; asked when everything else is known to fit.
        say: Takes lines for the user.
        show_progress: Show a bar on stderr, or on what this opens.

    Raises:
        EngineError: The engine cannot run.
        OutputError: The folder cannot be written, or is another's.
        SceneError: The scene cannot be read.
        UsageError: A setting does not fit.
    """
    manifest, settings = request.bundle.manifest, request.settings
    with Scene(
        place,
        imagery=manifest.input.imagery,
        bands=request.bands,
        scale_range=request.scale_range,
        nodata=request.nodata,
    ) as scene:
        tile_px = tile_for(scene.size, manifest.input.sizes, settings)
        aoi_mask_of(settings.area, scene.info, grid_for(scene.size, tile_px, settings))
        formats, left_out = choose_formats(request.formats, scene.info)
        truth = _truth(request, scene)
        with OutputFolder(folder, RESULT_NAMES, restart=request.restart) as workspace:
            if left_out:
                say(left_out)
            try:
                result = _detect(request, scene, searcher(), workspace, say=say, show_progress=show_progress)
            except SceneError:  # going on would only come to the same place
                workspace.discard()
                raise
            return SceneRun(result, _write(request, result, scene, formats, truth, workspace))


def _truth(request: SceneRequest, scene: Scene) -> SceneGroundTruth | None:
    if request.truth is None:
        return None
    return read_ground_truth(
        request.truth,
        scene=scene.info.name,
        size=scene.size,
        classes=request.bundle.manifest.classes,
        georeference=scene.info.georeference,
    )


def _detect(
    request: SceneRequest,
    scene: Scene,
    searcher: SceneExecutor,
    workspace: OutputFolder,
    *,
    say: Callable[[str], object],
    show_progress: bool | BarOpener,
) -> SceneResult:
    batch = batch_size(request.batch, searcher.info.max_batch)
    identity = run_identity(request.bundle.path, scene, searcher.info, request.settings, batch)
    with RowJournal(workspace.journal_path, identity) as journal:
        if len(journal):
            rows = "1 row" if len(journal) == 1 else f"{len(journal)} rows"
            say(f"An earlier run had finished {rows} of tiles; going on from there.")
        return detect_scene(
            searcher,
            scene,
            request.settings,
            category_ids=request.bundle.manifest.category_ids,
            batch=batch,
            show_progress=show_progress,
            journal=journal,
        )


def _write(
    request: SceneRequest,
    result: SceneResult,
    scene: Scene,
    formats: Sequence[str],
    truth: SceneGroundTruth | None,
    workspace: OutputFolder,
) -> dict[str, Any]:
    """Write everything, and return what run.json holds."""
    start = time.perf_counter()
    folder = workspace.make_stage()
    files = write_results(result, folder, formats, image_id=truth.image_id if truth else 1)
    files += write_quicklooks(result, scene, folder)
    files += write_page(result, scene, folder)
    least = request.settings.selection.score_threshold
    record = run_record(
        result,
        bundle=request.bundle.path,
        files=files,
        score=None if truth is None else truth.score(result.detections, score_threshold=least),
        write_seconds=time.perf_counter() - start,
    )
    write_json(folder / RUN_NAME, record)
    workspace.commit()
    return record
