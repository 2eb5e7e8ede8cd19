"""Run of a scene: detect its objects and write the results into a folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.scene.ground_truth import SceneGroundTruth, read_ground_truth
from deploy.scene.read.aoi import aoi_mask_of
from deploy.scene.read.scene import Scene
from deploy.scene.result import SceneResult
from deploy.scene.run.executor import SceneExecutor
from deploy.scene.run.pipeline import ProgressFactory, detect_scene, resolve_batch
from deploy.scene.run.row_journal import RowJournal
from deploy.scene.settings import SceneRequest
from deploy.scene.write.file_names import RUN_FILE
from deploy.scene.write.map_page import write_page
from deploy.scene.write.output_folder import OutputFolder
from deploy.scene.write.quicklook import write_quicklooks
from deploy.scene.write.run_record import RunRecord, make_run_record, run_identity
from deploy.scene.write.writers import choose_formats, write_results
from ifkd.core.errors import SceneError
from ifkd.core.files import write_json
from ifkd.imagery.address import RasterAddress


@dataclass(frozen=True, slots=True, eq=False)
class SceneRun:
    """A scene whose results are written."""

    result: SceneResult
    record: RunRecord


def run_scene(
    request: SceneRequest,
    location: Path | RasterAddress,
    folder: Path,
    *,
    executor: Callable[[], SceneExecutor],
    log: Callable[[str], object],
    show_progress: bool | ProgressFactory = True,
) -> SceneRun:
    """Detect the objects of a scene and write the results; an interrupted run into the same folder is resumed.

    Args:
        request: Inputs that are the same for all scenes.
        location: File or URL of the scene.
        folder: Folder for the results.
        executor: Returns the executor; called after all inputs are checked.
        log: Receives messages for the user.
        show_progress: Whether to show a progress bar on stderr, or a factory of another bar.

    Raises:
        EngineError: The engine cannot run.
        OutputError: The folder is not writable, or has files of another program.
        SceneError: The scene is unreadable.
        UsageError: A setting is invalid.
    """
    with request.open_scene(location) as scene:
        aoi_mask_of(request.settings.aoi, scene.info, request.grid_of(scene))  # checks the settings
        formats, message = choose_formats(request.formats, scene.info)
        ground_truth = _read_ground_truth(request, scene)
        with OutputFolder(folder, resume=request.resume) as output:
            if message:
                log(message)
            try:
                result = _detect(request, scene, executor(), output, log=log, show_progress=show_progress)
            except SceneError:  # a resumed run would fail in the same way
                output.discard()
                raise
            return SceneRun(result, _write(request, result, scene, formats, ground_truth, output))


def _read_ground_truth(request: SceneRequest, scene: Scene) -> SceneGroundTruth | None:
    if request.ground_truth is None:
        return None
    return read_ground_truth(
        request.ground_truth,
        scene=scene.info.name,
        size=scene.size,
        classes=request.bundle.manifest.classes,
        georeference=scene.info.georeference,
    )


def _detect(
    request: SceneRequest,
    scene: Scene,
    executor: SceneExecutor,
    output: OutputFolder,
    *,
    log: Callable[[str], object],
    show_progress: bool | ProgressFactory,
) -> SceneResult:
    batch = resolve_batch(request.batch, executor.info.max_batch)
    identity = run_identity(request.bundle.path, scene, executor.info, request.settings, batch)
    with RowJournal(output.journal_path, identity) as journal:
        if len(journal):
            rows = "1 row" if len(journal) == 1 else f"{len(journal)} rows"
            log(f"Resuming: an earlier run finished {rows} of tiles.")
        return detect_scene(
            executor,
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
    ground_truth: SceneGroundTruth | None,
    output: OutputFolder,
) -> RunRecord:
    """Write all files, and return the run record."""
    start = time.perf_counter()
    folder = output.make_staging_folder()
    files = write_results(result, folder, formats, image_id=ground_truth.image_id if ground_truth else 1)
    files += write_quicklooks(result, scene, folder)
    files += write_page(result, scene, folder)
    score_threshold = request.settings.postprocess.score_threshold
    record = make_run_record(
        result,
        bundle=request.bundle.path,
        files=files,
        score=ground_truth.score(result.detections, score_threshold=score_threshold) if ground_truth else None,
        write_seconds=time.perf_counter() - start,
    )
    write_json(folder / RUN_FILE, record.model_dump(mode="json"))
    output.commit()
    return record
