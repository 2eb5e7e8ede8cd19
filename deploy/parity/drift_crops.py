"""Pictures of the detections that drifted most: both boxes on the image they were found in."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from deploy.parity.matching import Matching
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.data.coco import CocoDataset
from ifkd.imagery.image_files import Imagery, read_image

MOST_LOST = 6
MOST_MOVED = 6
SIDE_PX = 240
LEAST_SOURCE_PX = 32
REFERENCE_RGB = (64, 156, 255)
ENGINE_RGB = (255, 140, 40)
HALO_RGB = (10, 14, 20)


class Crop(Schema):
    """A part of an image with the boxes of both sides."""

    image: str
    class_name: str
    what: str
    """What happened here, in words."""
    alt: str
    """What it shows, for those who cannot see it."""
    jpeg_base64: str
    side_px: int
    """Width and height of the picture."""
    drift: float
    """1 - IoU plus score difference; 2 for a detection that the other side lacks."""


@dataclass(frozen=True, slots=True, eq=False)
class _Spot:
    """A place where both sides differ."""

    image_id: int
    label: int
    what: str
    drift: float
    ours: Array | None
    """The reference's box [4]."""
    theirs: Array | None
    """The engine's box [4]."""


def worst_crops(
    matching: Matching,
    dataset: CocoDataset,
    imagery: Imagery | None = None,
    *,
    lost: int = MOST_LOST,
    moved: int = MOST_MOVED,
) -> tuple[Crop, ...]:
    """Return pictures of detections that one side lacks, the surest first, and then of the pairs that drifted most.

    Pairs that agree to the last bit are not shown.

    Args:
        matching: What pairing found.
        dataset: The images.
        imagery: How their files become uint8 RGB: as the detector itself saw them.
        lost: Most pictures of detections without a partner.
        moved: Most pictures of pairs.

    Raises:
        DataError: An image cannot be read.
    """
    images = {image.id: image.path for image in dataset.images}
    shown = []
    pairs = sorted(_drifted(matching), key=lambda spot: -spot.drift)
    for spot in [*_orphans(matching, dataset)[:lost], *pairs[:moved]]:
        path = images[spot.image_id]
        stream = io.BytesIO()
        _draw(read_image(path, imagery=imagery), spot.ours, spot.theirs).save(stream, "JPEG", quality=88)
        name = dataset.classes[spot.label]
        shown.append(
            Crop(
                image=path.name,
                class_name=name,
                what=spot.what,
                alt=f"{name} in {path.name}: {spot.what}",
                jpeg_base64=base64.b64encode(stream.getvalue()).decode("ascii"),
                side_px=SIDE_PX,
                drift=spot.drift,
            )
        )
    return tuple(shown)


def _orphans(matching: Matching, dataset: CocoDataset) -> list[_Spot]:
    """Return detections that one side lacks, the surest first; a changed class is one place, not two."""
    spots = []
    for orphan in sorted(matching.orphans, key=lambda orphan: -orphan.score):
        box = np.array(orphan.box)
        ours, theirs = (box, None) if orphan.in_reference else (None, box)
        what = f"score {orphan.score:.2f}, missing in the {'engine' if orphan.in_reference else 'reference'}"
        if orphan.became is not None:
            if not orphan.in_reference:
                continue
            theirs = box
            what = f"class changed from {dataset.classes[orphan.label]} to {dataset.classes[orphan.became]}"
        spots.append(_Spot(orphan.image_id, orphan.label, what, 2.0, ours, theirs))
    return spots


def _drifted(matching: Matching) -> list[_Spot]:
    spots = []
    for index, iou in enumerate(matching.ious):
        before, after = matching.reference_scores[index], matching.subject_scores[index]
        drift = 1 - iou + abs(after - before)
        if drift <= 0:
            continue
        what = f"IoU {iou:.4f}, score {before:.4f} to {after:.4f}"
        boxes = matching.reference_boxes[index], matching.subject_boxes[index]
        spots.append(_Spot(matching.image_ids[index], matching.labels[index], what, drift, *boxes))
    return spots


def _draw(pixels: Array, ours: Array | None, theirs: Array | None) -> Image.Image:
    boxes = np.stack([box for box in (ours, theirs) if box is not None])
    (x1, y1), (x2, y2) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    height, width = pixels.shape[:2]
    side = max(LEAST_SOURCE_PX, 1.6 * max(x2 - x1, y2 - y1))
    left = np.clip((x1 + x2 - side) / 2, 0, max(0, width - side))
    top = np.clip((y1 + y2 - side) / 2, 0, max(0, height - side))
    picture = Image.fromarray(pixels).transform(
        (SIDE_PX, SIDE_PX),
        Image.Transform.AFFINE,
        (side / SIDE_PX, 0, left, 0, side / SIDE_PX, top),
        Image.Resampling.BILINEAR,
    )
    pen, zoom = ImageDraw.Draw(picture), SIDE_PX / side
    for box, color, inset in ((ours, REFERENCE_RGB, 0), (theirs, ENGINE_RGB, 3)):
        if box is None:
            continue
        a, b, c, d = ((box - np.array([left, top, left, top])) * zoom).tolist()
        frame = (a + inset, b + inset, max(a + inset, c - inset), max(b + inset, d - inset))
        pen.rectangle((frame[0] - 1, frame[1] - 1, frame[2] + 1, frame[3] + 1), outline=HALO_RGB, width=4)
        pen.rectangle(frame, outline=color, width=2)
    return picture
