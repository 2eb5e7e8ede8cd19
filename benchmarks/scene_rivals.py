"""The same detector in SAHI and in supervision, and their merges, for benchmarks/scenes.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import supervision as sv
from sahi.models.base import DetectionModel
from sahi.postprocess.combine import GreedyNMMPostprocess, NMMPostprocess, NMSPostprocess
from sahi.predict import get_sliced_prediction
from sahi.prediction import ObjectPrediction

from deploy.engines.engine import Engine
from deploy.scene.settings import DetectionSettings
from ifkd.core.detections import Array, Detections
from ifkd.core.postprocess import postprocess
from ifkd.core.tiling import TileGrid
from ifkd.imagery.image_files import pad, resize

THRESHOLD = 0.5


def infer_window(engine: Engine, settings: DetectionSettings, window: Array, grid: TileGrid) -> Detections:
    """Return the detections of a window [height, width, 3], in pixels of the window."""
    size = settings.tile_px or engine.info.tile_px
    tile = resize(np.ascontiguousarray(pad(window, grid.tile_px)), size)
    candidates = engine.infer(np.ascontiguousarray(tile.transpose(2, 0, 1))[None])
    (found,) = postprocess(candidates, settings.postprocess, size=size)
    return found.resized(size, grid.tile_px)


class SahiModel(DetectionModel):  # type: ignore[misc]  # it is untyped
    """An engine as a model of SAHI."""

    def __init__(self, engine: Engine, settings: DetectionSettings, grid: TileGrid) -> None:
        self._engine, self._settings, self._grid = engine, settings, grid
        names = {str(label): name for label, name in enumerate(engine.info.classes)}
        super().__init__(
            model=engine,
            device="cpu",
            confidence_threshold=settings.postprocess.score_threshold,
            category_mapping=names,
        )

    def set_device(self, device: str | None = None) -> None:
        """Set the device, which is not used."""
        self.device = device

    def set_model(self, model: Engine, **_: Any) -> None:
        """Set the engine."""
        self.model = model

    def perform_inference(self, image: Array) -> None:
        """Run the engine on one slice."""
        self._original_predictions = infer_window(self._engine, self._settings, image, self._grid)

    @property
    def num_categories(self) -> int:
        """The number of classes."""
        return len(self._engine.info.classes)

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        shift = (
            shift_amount_list[0] if shift_amount_list and isinstance(shift_amount_list[0], list) else shift_amount_list
        )
        full = full_shape_list[0] if full_shape_list and isinstance(full_shape_list[0], list) else full_shape_list
        found = self._original_predictions
        self._object_prediction_list_per_image = [predictions(found, self._engine.info.classes, shift, full)]


def predictions(
    found: Detections, classes: tuple[str, ...], shift: Any = None, full: Any = None
) -> list[ObjectPrediction]:
    """Return detections as SAHI's objects."""
    return [
        ObjectPrediction(
            bbox=box, category_id=label, score=score, category_name=classes[label], shift_amount=shift or [0, 0],
            full_shape=full,
        )
        for box, score, label in zip(
            found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]  # fmt: skip


def detect_with_sahi(engine: Engine, path: Path, settings: DetectionSettings, grid: TileGrid) -> int:
    """Detect in a scene with SAHI and its defaults (greedy NMM, IOS), and return the number of objects."""
    height, width = grid.tile_px
    with rasterio.open(path) as dataset:
        bands = [1, 2, 3] if dataset.count >= 3 else [1, 1, 1]
        image = np.ascontiguousarray(dataset.read(bands).transpose(1, 2, 0))
    result = get_sliced_prediction(
        image,
        SahiModel(engine, settings, grid),
        slice_height=height,
        slice_width=width,
        overlap_height_ratio=grid.overlap_px / height,
        overlap_width_ratio=grid.overlap_px / width,
        perform_standard_pred=False,
        verbose=0,
    )
    return len(result.object_prediction_list)


def detect_with_supervision(engine: Engine, path: Path, settings: DetectionSettings, grid: TileGrid) -> int:
    """Detect in a scene with supervision's slicer, and return the number of objects."""

    def callback(window: Array) -> sv.Detections:
        found = infer_window(engine, settings, window, grid)
        return sv.Detections(xyxy=found.boxes, confidence=found.scores, class_id=found.labels)

    slicer = sv.InferenceSlicer(
        callback,
        slice_wh=(grid.tile_px[1], grid.tile_px[0]),
        overlap_wh=(grid.overlap_px, grid.overlap_px),
        iou_threshold=THRESHOLD,
    )
    with rasterio.open(path) as dataset:
        image = np.ascontiguousarray(dataset.read([1, 2, 3]).transpose(1, 2, 0))
    return len(slicer(image))


def _with_sahi(kind: Any, metric: str) -> Callable[[Detections, tuple[str, ...]], Detections]:
    def work(found: Detections, classes: tuple[str, ...]) -> Detections:
        kept = kind(match_threshold=THRESHOLD, match_metric=metric, class_agnostic=False)(predictions(found, classes))
        return Detections(
            np.array([one.bbox.to_xyxy() for one in kept], np.float32).reshape(-1, 4),
            np.array([one.score.value for one in kept], np.float32),
            np.array([one.category.id for one in kept], np.int64),
        ).in_canonical_order()

    return work


def _with_supervision(method: str) -> Callable[[Detections, tuple[str, ...]], Detections]:
    def work(found: Detections, _: tuple[str, ...]) -> Detections:
        given = sv.Detections(xyxy=found.boxes, confidence=found.scores, class_id=found.labels)
        kept = getattr(given, method)(threshold=THRESHOLD)
        return Detections(
            kept.xyxy.astype(np.float32), kept.confidence.astype(np.float32), kept.class_id.astype(np.int64)
        ).in_canonical_order()

    return work


RIVAL_MERGES = {
    "SAHI NMS (IOU)": _with_sahi(NMSPostprocess, "IOU"),
    "SAHI NMM (IOS)": _with_sahi(NMMPostprocess, "IOS"),
    "SAHI greedy NMM (IOS)": _with_sahi(GreedyNMMPostprocess, "IOS"),
    "supervision NMS": _with_supervision("with_nms"),
}
