"""Crops of the images around the detections that drifted most, with the boxes of both sides."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from deploy.parity.matching import DetectionPair, Matching
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.oriented_boxes import corners, envelopes
from ifkd.data.coco import CocoDataset
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.image_files import read_image

MAX_UNMATCHED = 6
MAX_PAIRS = 6
SIDE_PX = 240
MIN_SOURCE_PX = 32
REFERENCE_RGB = (64, 156, 255)
ENGINE_RGB = (255, 140, 40)
HALO_RGB = (10, 14, 20)


class DriftCrop(Schema):
    """A crop of an image with the boxes of both sides."""

    image: str
    class_name: str
    description: str
    """The difference in words."""
    alt: str
    """Alternative text."""
    jpeg_base64: str
    side_px: int
    """Width and height of the crop."""
    drift: float
    """1 - IoU plus score difference; 2 for an unmatched detection."""


@dataclass(frozen=True, slots=True, eq=False)
class _Difference:
    """A difference between both sides in one place."""

    image_id: int
    label: int
    description: str
    drift: float
    reference: Array | None
    """Box of the reference [4], or oriented box [5], pixels; likewise of the engine."""
    engine: Array | None


def worst_crops(
    matching: Matching, dataset: CocoDataset, imagery: ImageryOptions | None = None
) -> tuple[DriftCrop, ...]:
    """Return crops of unmatched detections, highest scores first, and of the pairs that drifted most, if at all.

    Raises:
        DataError: An image cannot be read.
    """
    images = {image.id: image.path for image in dataset.images}
    crops = []
    pairs = sorted((one for one in map(_difference, matching.pairs) if one.drift > 0), key=lambda one: -one.drift)
    for one in [*_unmatched(matching, dataset)[:MAX_UNMATCHED], *pairs[:MAX_PAIRS]]:
        path = images[one.image_id]
        stream = io.BytesIO()
        _draw(read_image(path, imagery=imagery), one).save(stream, "JPEG", quality=88)
        name, words = dataset.classes[one.label], one.description
        alt, content = f"{name} in {path.name}: {words}", base64.b64encode(stream.getvalue()).decode("ascii")
        facts: dict[str, Any] = {"image": path.name, "class_name": name, "description": words, "drift": one.drift}
        crops.append(DriftCrop(**facts, alt=alt, jpeg_base64=content, side_px=SIDE_PX))
    return tuple(crops)


def _unmatched(matching: Matching, dataset: CocoDataset) -> list[_Difference]:
    """Return the unmatched detections, highest scores first; a changed class is one difference, not two."""
    differences = []
    for one in sorted(matching.unmatched, key=lambda one: -one.score):
        box = np.array(one.box) if one.oriented is None else one.oriented
        reference, engine = (box, None) if one.in_reference else (None, box)
        description = f"score {one.score:.2f}, missing in the {'engine' if one.in_reference else 'reference'}"
        if one.changed_to is not None:
            if not one.in_reference:
                continue
            engine = box
            description = f"class changed from {dataset.classes[one.label]} to {dataset.classes[one.changed_to]}"
        differences.append(_Difference(one.image_id, one.label, description, 2.0, reference, engine))
    return differences


def _difference(pair: DetectionPair) -> _Difference:
    drift = 1 - pair.iou + abs(pair.engine_score - pair.reference_score)
    description = f"IoU {pair.iou:.4f}, score {pair.reference_score:.4f} to {pair.engine_score:.4f}"
    boxes = pair.reference_box, pair.engine_box
    if pair.reference_oriented is not None and pair.engine_oriented is not None:
        boxes = pair.reference_oriented, pair.engine_oriented
    return _Difference(pair.image_id, pair.label, description, drift, *boxes)


def _draw(pixels: Array, difference: _Difference) -> Image.Image:
    shown = [box[None] for box in (difference.reference, difference.engine) if box is not None]
    boxes = np.concatenate([box if box.shape[1] == 4 else envelopes(box) for box in shown])
    (x1, y1), (x2, y2) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    height, width = pixels.shape[:2]
    side = max(MIN_SOURCE_PX, 1.6 * max(x2 - x1, y2 - y1))
    left = np.clip((x1 + x2 - side) / 2, 0, max(0, width - side))
    top = np.clip((y1 + y2 - side) / 2, 0, max(0, height - side))
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    place = (side / SIDE_PX, 0, left, 0, side / SIDE_PX, top)
    picture = Image.fromarray(pixels).transform((SIDE_PX, SIDE_PX), affine, place, bilinear)
    pen, zoom = ImageDraw.Draw(picture), SIDE_PX / side
    for box, color, inset in ((difference.reference, REFERENCE_RGB, 0), (difference.engine, ENGINE_RGB, 3)):
        if box is None:
            continue
        if len(box) == 5:
            points = ((corners(box[None])[0] - np.array([left, top])) * zoom).tolist()
            ring = [tuple(point) for point in (*points, *points[:2])]
            pen.line(ring, fill=HALO_RGB, width=4, joint="curve")
            pen.line(ring, fill=color, width=2, joint="curve")
            continue
        a, b, c, d = ((box - np.array([left, top, left, top])) * zoom).tolist()
        frame = (a + inset, b + inset, max(a + inset, c - inset), max(b + inset, d - inset))
        pen.rectangle((frame[0] - 1, frame[1] - 1, frame[2] + 1, frame[3] + 1), outline=HALO_RGB, width=4)
        pen.rectangle(frame, outline=color, width=2)
    return picture
