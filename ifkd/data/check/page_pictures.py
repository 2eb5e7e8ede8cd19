"""Pictures of the page: samples with their boxes, invalid boxes, duplicates side by side."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ifkd.core.detections import Array
from ifkd.core.errors import DataError
from ifkd.core.html.colors import class_color
from ifkd.core.oriented_boxes import corners
from ifkd.data.account import printable
from ifkd.data.check.box_checks import Corners, polygon_problems
from ifkd.data.check.check import CheckedDataset
from ifkd.data.check.finding import DROPS_BOX, DROPS_POLYGON, KINDS
from ifkd.data.check.image_inspection import CheckedImage
from ifkd.data.oriented_labels import oriented_boxes, polygon_points
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.image_files import read_image

MAX_SAMPLES = 24
MAX_INVALID = 12
MAX_INVALID_OF_KIND = 3
MAX_DUPLICATES_SHOWN = 12
SIDE_PX = 440
MAX_ENLARGEMENT = 2.0
MARGIN_FRACTION = 0.25
"""Largest margin for boxes that cross the border, as a fraction of the image's side."""
JPEG_QUALITY = 80
HALO_RGB = (10, 14, 20)
INVALID_RGB = (255, 60, 60)
IGNORED_RGB = (190, 190, 190)
MARGIN_RGB = (60, 64, 70)
MIN_BOX_PX = 5.0


@dataclass(frozen=True, slots=True)
class PagePicture:
    """A picture with its texts."""

    caption: str
    description: str
    alt: str
    jpeg_base64: str
    size: tuple[int, int]
    """(height, width), pixels."""


@dataclass(frozen=True, slots=True)
class _DrawnBox:
    corners: Corners
    color: tuple[int, int, int]
    invalid: bool = False
    polygon: tuple[tuple[float, float], ...] = ()
    """Corners of its oriented box, which is drawn in its place."""


def sample_pictures(checked: CheckedDataset, imagery: ImageryOptions) -> list[PagePicture]:
    """Return images that together show every class of every split, as far as `MAX_SAMPLES` allows."""
    label_of = {name: label for label, name in enumerate(checked.record.classes)}
    pictures = []
    for image in _samples(checked):
        polygons = _oriented_corners(image)
        boxes = [
            _DrawnBox(box.corners, IGNORED_RGB if box.ignore else class_color(label_of[name]), polygon=polygon)
            for box, name, kind, polygon in zip(
                image.entry.boxes, image.classes, image.box_findings, polygons, strict=True
            )
            if kind not in DROPS_BOX
        ]
        counts = Counter(name for _, name in image.objects)
        description = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no objects"
        pictures.append(_picture(image, imagery, boxes, description, alt="its boxes"))
    return [picture for picture in pictures if picture is not None]


def invalid_box_pictures(checked: CheckedDataset, imagery: ImageryOptions) -> list[PagePicture]:
    """Return images with invalid boxes, a few of each kind; these boxes are red and crossed."""
    shown: Counter[str] = Counter()
    pictures: list[PagePicture] = []
    for image in checked.images:
        found = dict.fromkeys(image.box_findings)
        kinds = [kind for kind in found if kind is not None and KINDS[kind].severity != "note"]
        new = [kind for kind in kinds if shown[kind] < MAX_INVALID_OF_KIND]
        if image.file.problem is not None or not new or len(pictures) == MAX_INVALID:
            continue
        boxes = [
            _DrawnBox(box.corners, INVALID_RGB if kind in kinds else IGNORED_RGB, invalid=kind in kinds)
            for box, kind in zip(image.entry.boxes, image.box_findings, strict=True)
            if np.isfinite(box.corners).all()
        ]
        boxes.sort(key=lambda box: box.invalid)
        description = "; ".join(KINDS[kind].title for kind in kinds)
        picture = _picture(image, imagery, boxes, description, alt="the invalid boxes in red")
        if picture is not None:
            pictures.append(picture)
            shown.update(new)
    return pictures


def duplicate_pictures(checked: CheckedDataset, imagery: ImageryOptions, *, across: bool) -> list[PagePicture]:
    """Return duplicates side by side, exact ones first: those in different splits, or those in one split."""
    pairs = [(checked.images[pair.first], checked.images[pair.second], pair) for pair in checked.duplicates]
    pairs = [(first, second, pair) for first, second, pair in pairs if (first.split != second.split) == across]
    pictures = []
    for first, second, pair in pairs[:MAX_DUPLICATES_SHOWN]:
        arrays = [pixels for image in (first, second) if (pixels := _read(image, imagery)) is not None]
        if len(arrays) < 2:
            continue
        left, right = (_resized(pixels, SIDE_PX // 2)[0] for pixels in arrays)
        canvas = Image.new("RGB", (left.width + right.width + 8, max(left.height, right.height)), MARGIN_RGB)
        canvas.paste(left, (0, 0))
        canvas.paste(right, (left.width + 8, 0))
        description = "identical" if pair.identical else f"correlation {pair.correlation:.3f}"
        names = " and ".join(f"{printable(image.entry.name)} ({image.split})" for image in (first, second))
        pictures.append(_encoded(canvas, names, description, f"{names} side by side: {description}."))
    return pictures


def _samples(checked: CheckedDataset) -> list[CheckedImage]:
    """Return images with the rarest classes of each split, then others spread over the splits."""
    usable = [index for index, image in enumerate(checked.images) if image.file.problem is None]
    classes = [{name for _, name in image.objects} for image in checked.images]
    splits = [image.split for image in checked.images]
    counted = checked.record.splits
    rarest = sorted((count, split.name, name) for split in counted for name, count in split.per_class.items())
    chosen: set[int] = set()
    for count, split, name in rarest:
        shown = any(splits[index] == split and name in classes[index] for index in chosen)
        if count and not shown and len(chosen) < MAX_SAMPLES:
            chosen.add(next(index for index in usable if splits[index] == split and name in classes[index]))
    for number, split in enumerate(checked.splits):
        others = [index for index in usable if splits[index] == split and index not in chosen]
        count = min((MAX_SAMPLES - len(chosen)) // (len(checked.splits) - number), len(others))
        chosen |= {others[index] for index in np.linspace(0, len(others) - 1, count).round().astype(int).tolist()}
    return [checked.images[index] for index in sorted(chosen)]


def _oriented_corners(image: CheckedImage) -> list[tuple[tuple[float, float], ...]]:
    """Return the corners of the oriented box of each object of an image; none for an object that has none."""
    kinds = polygon_problems(image.entry.boxes, image.size)
    points = [polygon_points(box.content.get("segmentation")) for box in image.entry.boxes]
    oriented = oriented_boxes([None if kind in DROPS_POLYGON else one for one, kind in zip(points, kinds, strict=True)])
    return [() if np.isnan(one).any() else tuple((x, y) for x, y in one.tolist()) for one in corners(oriented)]


def _picture(
    image: CheckedImage, imagery: ImageryOptions, boxes: Sequence[_DrawnBox], description: str, *, alt: str
) -> PagePicture | None:
    pixels = _read(image, imagery)
    if pixels is None:
        return None
    framed, origin = _with_margin(pixels, [box.corners for box in boxes])
    picture, factor = _resized(framed, SIDE_PX)
    draw = ImageDraw.Draw(picture)
    for box in boxes:
        if box.polygon:
            points = [((x + origin[0]) * factor, (y + origin[1]) * factor) for x, y in box.polygon]
            draw.polygon(points, outline=HALO_RGB, width=4)
            draw.polygon(points, outline=box.color, width=2)
            continue
        x1, y1, x2, y2 = _drawn_corners(box.corners, framed.shape[:2], origin, factor)
        draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), outline=HALO_RGB, width=4)
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=box.color, width=2)
        if box.invalid:
            draw.line((x1, y1, x2, y2), fill=box.color, width=2)
    name = printable(image.entry.name)
    return _encoded(picture, f"{name} ({image.split})", description, f"{name} with {alt}: {description}.")


def _read(image: CheckedImage, imagery: ImageryOptions) -> Array | None:
    """Return an image's pixels; None if its file has been deleted since the check."""
    assert image.file.path is not None
    try:
        return read_image(image.file.path, size=image.file.size, imagery=imagery)
    except DataError:
        return None


def _with_margin(pixels: Array, boxes: Sequence[Corners]) -> tuple[Array, tuple[int, int]]:
    """Return an image with a margin for boxes that cross its border, and the margin's (left, top)."""
    height, width = pixels.shape[:2]
    size = np.array([width, height])
    most = (size * MARGIN_FRACTION).round()
    corners = np.array([(0.0, 0.0, width, height), *boxes])
    left, top = (-corners[:, :2].min(axis=0)).round().clip(0, most).astype(int).tolist()
    right, bottom = (corners[:, 2:].max(axis=0) - size).round().clip(0, most).astype(int).tolist()
    canvas = np.full((top + height + bottom, left + width + right, 3), MARGIN_RGB, np.uint8)
    canvas[top : top + height, left : left + width] = pixels
    return canvas, (left, top)


def _resized(pixels: Array, side: int) -> tuple[Image.Image, float]:
    """Return pixels as a picture whose longer side is at most `side`, and the factor."""
    picture = Image.fromarray(pixels)
    factor = min(side / max(picture.size), MAX_ENLARGEMENT)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    resampling = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST
    return picture.resize(size, resampling), factor


def _drawn_corners(corners: Corners, size: tuple[int, int], origin: tuple[int, int], factor: float) -> Corners:
    """Return a box in a picture's pixels, inside the picture and at least `MIN_BOX_PX` wide and high."""
    x1, y1, x2, y2 = (
        min(max((value + offset) * factor, 1.0), most * factor - 2.0)
        for value, offset, most in zip(corners, origin * 2, (size[1], size[0]) * 2, strict=True)
    )
    x1, x2 = sorted((x1, x2))
    y1, y2 = sorted((y1, y2))
    wider, higher = max(0.0, MIN_BOX_PX - (x2 - x1)) / 2, max(0.0, MIN_BOX_PX - (y2 - y1)) / 2
    return x1 - wider, y1 - higher, x2 + wider, y2 + higher


def _encoded(picture: Image.Image, caption: str, description: str, alt: str) -> PagePicture:
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=JPEG_QUALITY)
    jpeg = base64.b64encode(stream.getvalue()).decode()
    return PagePicture(caption, description, alt, jpeg, (picture.height, picture.width))
