"""Evaluate the written detections of a scene against labels: `ifkd evaluate DETECTIONS --scene LABELS`."""

from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from deploy.scene.operational_figures import Ground, RateOptions
from deploy.scene.read.georeference import Georeference
from deploy.scene.scene_score import PixelOutlines, SceneScore, exterior_points, read_ground_truth
from deploy.scene.write.file_names import DETECTION_FILES
from deploy.scene.write.run_record import RunRecord, read_run_record
from ifkd.core.detections import Detections
from ifkd.core.errors import DataError
from ifkd.core.files import read_json
from ifkd.data.metrics import BoxKind, as_boxes
from ifkd.data.oriented_labels import oriented_boxes, polygon_points


def evaluate_scene(
    folder: Path,
    labels: Path,
    *,
    score_threshold: float | None = None,
    options: RateOptions | None = None,
    boxes: BoxKind | None = None,
) -> SceneScore:
    """Return the metrics of the detections that `ifkd detect` wrote into `folder`.

    They are read from the GeoJSON file, so that the conversion to map coordinates is evaluated too; for a scene without
    a transform, from the COCO file. `score_threshold`, the least score for precision, recall and F1, is by default that
    of the run; for `labels` see `read_ground_truth`, for `options` the operational figures, and for `boxes`
    `ifkd.data.metrics.evaluate`.

    Raises:
        DataError: The folder has no detections, or the labels are invalid or of another scene.
        UsageError: Matching by distance is requested for a scene without a ground sample distance.
    """
    run = read_run_record(folder)
    scene = run.scene
    georeference = None
    if scene.transform is not None:
        georeference = Georeference(CRS.from_user_input(scene.crs), Affine(*scene.transform))
    size, classes = (scene.height_px, scene.width_px), tuple(run.objects_per_class)
    problem = "has no coordinate system"
    if scene.georeference == "gcps":
        problem = "is placed by ground control points, which its run record does not contain"
    ground_truth = read_ground_truth(
        labels, scene=scene.name, size=size, classes=classes, georeference=georeference, place_problem=problem
    )
    detections = _read_detections(folder, run, georeference)
    lowest, tiles = run.settings.postprocess.score_threshold, run.tiles
    score_threshold = lowest if score_threshold is None else score_threshold
    searched = 1.0 - (tiles.empty + tiles.outside_aoi + len(tiles.unreadable)) / tiles.count
    score = ground_truth.score(detections, score_threshold=score_threshold, boxes=boxes)
    detections = as_boxes(score.boxes, detections)
    figures = ground_truth.figures(
        detections,
        ground=Ground.of_scene(size, georeference, gsd_m=scene.gsd_m, searched=searched),
        score_threshold=score_threshold,
        lowest_score=lowest,
        options=options,
    )
    return score.model_copy(update={"operational": figures})


def _read_detections(folder: Path, run: RunRecord, georeference: Georeference | None) -> Detections:
    classes = tuple(run.objects_per_class)
    geojson, coco = folder / DETECTION_FILES["geojson"], folder / DETECTION_FILES["coco"]
    on_map = georeference is not None and geojson.is_file()
    features = read_json(geojson)["features"] if on_map else []
    if georeference is not None and on_map and all(one["geometry"] for one in features):
        size = (run.scene.height_px, run.scene.width_px)
        outlines = PixelOutlines.of([exterior_points(one) for one in features], georeference, size)
        boxes, turned = outlines.boxes.astype(np.float32), outlines.oriented
        is_oriented = any("heading_deg" in feature["properties"] for feature in features)
        names = [feature["properties"]["class_name"] for feature in features]
        scores = [feature["properties"]["score"] for feature in features]
    elif coco.is_file():
        rows = read_json(coco)
        corner = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
        boxes = np.concatenate([corner[:, :2], corner[:, :2] + corner[:, 2:]], axis=1)
        turned = oriented_boxes([polygon_points(row.get("segmentation")) for row in rows])
        is_oriented = any("segmentation" in row for row in rows)
        name_of = dict(zip(run.category_ids, classes, strict=True))
        names = [name_of[row["category_id"]] for row in rows]
        scores = [row["score"] for row in rows]
    else:
        missing = f"{coco.name}, and objects without a place" if on_map else f"{geojson.name} and no {coco.name}"
        raise DataError(f"{folder} has no {missing}", hint="Run `ifkd detect` again with --format geojson coco.")
    labels = np.array([classes.index(name) for name in names], np.int64)
    return Detections(boxes, np.array(scores, np.float32), labels, turned if is_oriented else None)
