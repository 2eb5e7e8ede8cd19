"""run.json: how the files beside it were made."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.engines.engine import EngineInfo
from deploy.scene.ground_truth import SceneScore
from deploy.scene.read.scene import Scene
from deploy.scene.result import SceneResult
from deploy.scene.run.row_ranges import BATCHES_PER_BAND
from deploy.scene.settings import DetectionSettings
from deploy.scene.write.output_folder import PRODUCER
from export.bundle.bundle import MANIFEST_NAME
from ifkd import __version__
from ifkd.core.files import sha256_of


def run_identity(
    bundle: Path, scene: Scene, engine: EngineInfo, settings: DetectionSettings, batch: int
) -> dict[str, Any]:
    """Return what the detections of a run depend on: it may go on from a journal only where all of this is the same."""
    info = scene.info
    return {
        "program": f"{PRODUCER} {__version__}",
        "bundle": {"manifest_sha256": sha256_of(bundle / MANIFEST_NAME)},
        "engine": asdict(engine),
        "batch": batch,
        "batches_per_band": BATCHES_PER_BAND,
        "scene": {
            "name": info.name,
            "size": list(info.size),
            "files": scene.files(),
            "bands": list(info.bands),
            "nodata": repr(info.nodata),
            "scaling": asdict(info.scaling),
        },
        "settings": settings.model_dump(mode="json"),
    }


def run_record(
    result: SceneResult,
    *,
    bundle: Path,
    files: Sequence[str],
    score: SceneScore | None,
    write_seconds: float,
) -> dict[str, Any]:
    """Return the content of run.json.

    Args:
        result: What was found.
        bundle: The bundle's folder.
        files: Names of the files written beside it.
        score: The result against labels, where there are any.
        write_seconds: Time spent on writing.
    """
    scene = result.scene
    georeference = scene.georeference
    seconds = {**result.seconds, "write": write_seconds}
    seconds["total"] += write_seconds
    return {
        "schema_version": 1,
        "producer": f"{PRODUCER} {__version__}",
        "bundle": {"path": str(bundle), "manifest_sha256": sha256_of(bundle / MANIFEST_NAME)},
        "engine": asdict(result.engine),
        "scene": {
            "name": scene.name,
            "path": scene.path,
            "driver": scene.driver,
            "height_px": scene.size[0],
            "width_px": scene.size[1],
            "dtype": scene.dtype,
            "bands": list(scene.bands),
            "nodata": None if scene.nodata is None else repr(scene.nodata),
            "scaling": asdict(scene.scaling),
            "crs": None if georeference is None else georeference.crs.to_string(),
            "georeference": None if georeference is None else ("gcps" if georeference.gcps else "transform"),
            "transform": None
            if georeference is None or georeference.transform is None
            else list(georeference.transform)[:6],
            "gsd_m": None if georeference is None else georeference.gsd_m(scene.size),
        },
        "settings": result.settings.model_dump(mode="json"),
        "tiles": {
            "count": len(result.grid),
            "side_px": list(result.grid.tile_px),
            "overlap_px": result.grid.overlap_px,
            "empty": result.skipped,
            "outside": result.outside,
            "rows_from_journal": result.resumed_rows,
            "retries": result.retries,
            "holes": [
                {"tile": hole.tile, "window": asdict(hole.window), "problem": hole.problem} for hole in result.holes
            ],
        },
        "category_ids": list(result.category_ids),
        "objects": len(result.detections),
        "objects_per_class": result.counts(),
        "score": None if score is None else score.model_dump(mode="json"),
        "seconds": {stage: round(value, 6) for stage, value in seconds.items()},
        "files": list(files),
    }
