"""Calibration of a screen: the threshold that loses few of the detector's detections in held-out scenes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from export.bundle.screen_record import ScreenCalibration, ScreenPoint
from export.precision.ort_session import open_session
from export.screen.conformal import RiskLimit, mean_scene_loss
from ifkd.core.detections import Array, Detections, resize_boxes
from ifkd.core.postprocess import one_of_each
from ifkd.core.tiling import TileGrid
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.imagery.image_files import pad, read_image, resize
from ifkd.imagery.image_tiles import scaled_size
from ifkd.imagery.objectness import box_objectness, kept_up_to
from ifkd.recipe import Recipe, ScreenOptions

CURVE = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of the record."""
DECIMALS = 5
"""Of a threshold, which is rounded down: a lower one never loses more."""


def calibrate(
    path: Path,
    dataset: CocoDataset,
    detections: Mapping[int, Detections],
    *,
    recipe: Recipe,
    options: ScreenOptions,
    stride: int,
    margin_px: float,
    score_threshold: float,
) -> tuple[float | None, ScreenCalibration]:
    """Return the largest threshold that satisfies the limit of `options`, or None, and the record of its choice.

    `path` is the screen's ONNX file, and `margin_px` the margin of the tiles, pixels of the detector. `detections`, by
    image id, are those of the full search, of all tiles: those of an object count once.

    Raises:
        DataError: An image cannot be read.
    """
    scores: dict[str, list[Array]] = defaultdict(list)
    tiles: list[Array] = []
    scale = recipe.data.scale * options.scale
    for image, objectness in objectness_maps(path, dataset, recipe=recipe, scale=scale, stride=stride):
        found = detections[image.id].select(detections[image.id].scores >= score_threshold)
        if len(found):
            counted = one_of_each(found, iou_threshold=recipe.postprocess.iou_threshold)
            size, boxes = scaled_size(image.size, scale), np.concatenate([counted.boxes, found.boxes])
            boxes, factor = resize_boxes(boxes, image.size, size), min(np.array(size) / image.size) / recipe.data.scale
            margin = margin_px * min(options.scale, factor)  # sizes are rounded
            kept = kept_up_to(objectness, boxes, cell_px=float(stride), margin_px=margin)
            scores[image.scene].append(kept[: len(counted)])
        windows = _tile_windows(image, recipe, margin_px) * np.float32(options.scale)
        tiles.append(box_objectness(objectness, windows, cell_px=float(stride)))
    scenes = [np.concatenate(parts) for _, parts in sorted(scores.items())]
    limit = RiskLimit(options.max_lost_fraction, options.confidence or None)
    largest = limit.largest_threshold(scenes)
    threshold = None if largest is None else float(np.floor(largest * 10**DECIMALS) / 10**DECIMALS)
    bound = None if threshold is None else limit.bound(mean_scene_loss(scenes, threshold), len(scenes))
    passed = np.concatenate([*tiles, np.zeros(0, np.float32)])
    record = ScreenCalibration(
        source=f"{len(dataset)} images of {dataset.path.name}",
        images=len(dataset),
        scenes=len(scenes),
        objects=sum(map(len, scenes)),
        score_threshold=score_threshold,
        max_lost_fraction=limit.max_loss,
        confidence=limit.confidence,
        scenes_needed=limit.scenes_needed,
        bound=bound,
        reason=_reason(threshold, bound, scenes, limit),
        curve=tuple(
            ScreenPoint(
                threshold=value,
                lost_fraction=mean_scene_loss(scenes, value),
                passed_fraction=float((passed >= value).mean()) if len(passed) else 1.0,
            )
            for value in sorted({*CURVE, *([] if threshold is None else [threshold])})
        ),
    )
    return threshold, record


def objectness_maps(
    path: Path, dataset: CocoDataset, *, recipe: Recipe, scale: float, stride: int
) -> Iterator[tuple[LabeledImage, Array]]:
    """Yield each image with its objectness, float32 [rows, columns]; `scale` leads from the image to the screen."""
    network = open_session(path)
    for image in dataset.images:
        pixels = resize(
            read_image(image.path, size=image.size, imagery=recipe.data.imagery), scaled_size(image.size, scale)
        )
        (found,) = network.run(["objectness"], {"tiles": screen_input(pixels, stride)})
        yield image, found[0, 0]


def screen_input(pixels: Array, stride: int) -> Array:
    """Return an image, uint8 [height, width, 3], as [1, 3, height, width], padded to multiples of the stride."""
    height, width = (-(-side // stride) * stride for side in pixels.shape[:2])
    return np.ascontiguousarray(pad(pixels, (height, width)).transpose(2, 0, 1)[None])


def _tile_windows(image: LabeledImage, recipe: Recipe, margin_px: float) -> Array:
    """Return the tiles of an image with their margin, float32 [n, 4], pixels of the detector."""
    size, tile_px = scaled_size(image.size, recipe.data.scale), (recipe.data.tile_px, recipe.data.tile_px)
    grid = TileGrid(size, tile_px, recipe.export.overlap_px)
    tiles = np.array([(one.left, one.top, one.right, one.bottom) for one in grid], np.float32)
    return tiles + np.array([-margin_px, -margin_px, margin_px, margin_px], np.float32)


def _reason(threshold: float | None, bound: float | None, scenes: list[Array], limit: RiskLimit) -> str:
    """Return the choice in words."""
    confidence = "on average" if limit.confidence is None else f"with a confidence of {limit.confidence:.0%}"
    wanted = f"at most {limit.max_loss:.2%} of a scene's detections {confidence}"
    if threshold is not None and bound is not None:
        return f"the largest threshold that loses {wanted}; the bound is {bound:.2%}, from {len(scenes)} scenes"
    if len(scenes) < limit.scenes_needed:
        return (
            f"no threshold is known to lose {wanted}: this needs at least {limit.scenes_needed} held-out scenes with "
            f"detections, and there are {len(scenes)}"
        )
    return f"no threshold is known to lose {wanted}: the screen misses too many detections in {len(scenes)} scenes"
