"""Run of a scene: detect its objects and write the results into a folder."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.scene.filters import require_places
from deploy.scene.operational_figures import Ground
from deploy.scene.read.aoi import aoi_mask_of
from deploy.scene.read.scene import SceneInfo
from deploy.scene.read.scene_list import SceneSource
from deploy.scene.result import SceneResult
from deploy.scene.run.executor import SceneExecutor
from deploy.scene.run.pipeline import ProgressFactory, detect_scene, resolve_batch
from deploy.scene.run.row_journal import RowJournal
from deploy.scene.scene_score import SceneGroundTruth, SceneScore, read_ground_truth
from deploy.scene.settings import SceneRequest
from deploy.scene.write.crops import write_crops
from deploy.scene.write.detection_item import write_item
from deploy.scene.write.file_names import CROPS_FOLDER, RUN_FILE
from deploy.scene.write.map_page import write_page
from deploy.scene.write.output_folder import OutputFolder
from deploy.scene.write.quicklook import write_quicklooks
from deploy.scene.write.run_record import RunRecord, make_run_record, run_identity
from deploy.scene.write.writers import choose_formats, write_results
from ifkd.core.errors import SceneError
from ifkd.core.files import write_json

OVERVIEW_PX = 3072
"""Largest side of the picture of the scene in map.html."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneRun:
    """A scene whose results are written."""

    result: SceneResult
    record: RunRecord


def run_scene(
    request: SceneRequest,
    source: SceneSource,
    folder: Path,
    *,
    executor: Callable[[], SceneExecutor],
    log: Callable[[str], object],
    in_collection: bool = False,
    show_progress: bool | ProgressFactory = True,
) -> SceneRun:
    """Detect the objects of a scene and write the results; an interrupted run into the same folder is resumed.

    The executor is requested after all inputs are checked; `log` receives messages for the user; `in_collection` states
    that the run writes a STAC collection; and `show_progress` may be a factory of another bar than that on stderr.

    Raises:
        EngineError: The engine cannot run.
        OutputError: The folder is not writable, or has files of another program.
        SceneError: The scene is unreadable.
        UsageError: A setting is invalid.
    """
    settings, bundle = request.settings, request.bundle
    with request.open_scene(source.location, time=source.time) as scene:
        area = aoi_mask_of(settings.aoi, scene.info, request.grid_of(scene))
        require_places(request.filters, scene.info)
        formats, message = choose_formats(request.formats, scene.info)
        ground_truth = _read_ground_truth(request, scene.info)
        with OutputFolder(folder, resume=request.resume) as output:
            for text in (*scene.info.remarks, *([message] if message else ())):
                log(text)
            try:
                engine = executor()
                size = resolve_batch(request.batch, engine.info.max_batch)
                identity = run_identity(bundle.manifest, scene, engine.info, settings, size)
                with RowJournal(output.journal_path, identity) as journal:
                    if len(journal):
                        rows = "1 row" if journal.rows == 1 else f"{journal.rows} rows"
                        log(f"Resuming: an earlier run finished {rows} of tiles.")
                    ids, bar = bundle.manifest.category_ids, show_progress
                    result = detect_scene(
                        engine, scene, settings, category_ids=ids, batch=size, show_progress=bar, journal=journal
                    )
            except SceneError:  # a resumed run would fail in the same way
                output.discard()
                raise
            start = time.perf_counter()
            result = result.filtered(request.filters)
            staging = output.make_staging_folder()
            if request.crops:
                result = write_crops(result, scene, staging, limit=request.crops)
            files = write_results(result, staging, formats, image_id=ground_truth.image_id if ground_truth else 1)
            overview = scene.overview(OVERVIEW_PX, within=area.window if area else None).pixels
            files += write_quicklooks(result, scene, overview, staging) + write_page(result, overview, staging)
            files += write_item(result, source, staging, files=files, bundle=bundle, in_collection=in_collection)
            files += [CROPS_FOLDER] if request.crops else []
            score = _score(result, ground_truth)
            seconds = time.perf_counter() - start
            record = make_run_record(result, bundle.path, files=files, score=score, write_seconds=seconds)
            write_json(staging / RUN_FILE, record.model_dump(mode="json"))
            output.commit()
            return SceneRun(result, record)


def _read_ground_truth(request: SceneRequest, scene: SceneInfo) -> SceneGroundTruth | None:
    if request.ground_truth is None:
        return None
    return read_ground_truth(
        request.ground_truth,
        scene=scene.name,
        size=scene.size,
        classes=request.bundle.manifest.classes,
        georeference=scene.georeference,
        place_problem=scene.place_problem,
    )


def _score(result: SceneResult, ground_truth: SceneGroundTruth | None) -> SceneScore | None:
    if ground_truth is None:
        return None
    scene, threshold = result.scene, result.settings.postprocess.score_threshold
    gsd_m = None if scene.georeference is None else scene.georeference.gsd_m(scene.size)
    ground = Ground.of_scene(scene.size, scene.georeference, gsd_m=gsd_m, searched=result.searched)
    score = ground_truth.score(result.detections, score_threshold=threshold)
    figures = ground_truth.figures(result.detections, ground=ground, score_threshold=threshold, lowest_score=threshold)
    return score.model_copy(update={"operational": figures})
