"""Results of `ifkd detect`, as they lie in their folder, against labels: `ifkd evaluate DETECTIONS --scene LABELS`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from deploy.scene.ground_truth import SceneScore, pixel_boxes, read_ground_truth
from deploy.scene.read.georeference import Georeference
from deploy.scene.write.output_folder import PRODUCER, RUN_NAME
from deploy.scene.write.writers import FILE_NAMES
from ifkd.core.detections import Detections
from ifkd.core.errors import DataError


def evaluate_scene(folder: Path, labels: Path, *, score_threshold: float | None = None) -> SceneScore:
    """Return how well written detections match labels.

    The detections are taken from the GeoJSON file, so that the way to the map is part of what is measured; from the
    COCO file where the scene has no transform.

    Args:
        folder: What `ifkd detect --out` named.
        labels: COCO or GeoJSON; see `read_ground_truth`.
        score_threshold: For precision, recall and F1; by default the least score of the run.

    Raises:
        DataError: The folder holds no detections, or the labels do not fit.
    """
    run = _run_of(folder)
    scene = run["scene"]
    size = (int(scene["height_px"]), int(scene["width_px"]))
    classes = tuple(run["objects_per_class"])
    georeference = None
    if scene["transform"] is not None:
        georeference = Georeference(CRS.from_user_input(scene["crs"]), Affine(*scene["transform"]))
    truth = read_ground_truth(labels, scene=scene["name"], size=size, classes=classes, georeference=georeference)
    found = _detections(folder, run, classes, size, georeference)
    least = run["settings"]["selection"]["score_threshold"]
    return truth.score(found, score_threshold=least if score_threshold is None else score_threshold)


def _run_of(folder: Path) -> dict[str, Any]:
    path = folder / RUN_NAME
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no detections of a scene ({error})", hint="Name a folder that `ifkd detect` has written."
        ) from error
    if not str(run.get("producer", "")).startswith(PRODUCER) or "transform" not in run.get("scene", {}):
        raise DataError(
            f"{path} was not written by this version of {PRODUCER}",
            got=run.get("producer"),
            hint="Detect in the scene again.",
        )
    return run


def _detections(
    folder: Path,
    run: dict[str, Any],
    classes: tuple[str, ...],
    size: tuple[int, int],
    georeference: Georeference | None,
) -> Detections:
    mapped, listed = folder / FILE_NAMES["geojson"], folder / FILE_NAMES["coco"]
    if georeference is not None and mapped.is_file():
        features = [one for one in json.loads(mapped.read_text(encoding="utf-8"))["features"] if one["geometry"]]
        boxes = pixel_boxes(features, georeference, size)
        names = [feature["properties"]["class_name"] for feature in features]
        scores = [feature["properties"]["score"] for feature in features]
    elif listed.is_file():
        rows = json.loads(listed.read_text(encoding="utf-8"))
        corner = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
        boxes = np.concatenate([corner[:, :2], corner[:, :2] + corner[:, 2:]], axis=1)
        name_of = dict(zip(run["category_ids"], classes, strict=True))
        names = [name_of[row["category_id"]] for row in rows]
        scores = [row["score"] for row in rows]
    else:
        raise DataError(
            f"{folder} holds neither {mapped.name} nor {listed.name}", hint="Detect again, with --format geojson coco."
        )
    labels = np.array([classes.index(name) for name in names], np.int64)
    return Detections(boxes, np.array(scores, np.float32), labels)
