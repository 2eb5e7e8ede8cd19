"""Pictures for the page: samples with their boxes, boxes that are wrong, images that look alike."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ifkd.core.detections import Array
from ifkd.core.errors import DataError
from ifkd.core.html.colors import class_color
from ifkd.data.check.check import Checked, CheckedImage
from ifkd.data.check.finding import DROPS_BOX, KINDS, shown
from ifkd.data.check.near_duplicates import DuplicatePair
from ifkd.imagery.image_files import Imagery, read_image

SAMPLES = 24
TROUBLED = 12
TROUBLED_OF_KIND = 3
PAIRS_SHOWN = 12
SIDE_PX = 440
MOST_ENLARGED = 2.0
"""Small images are enlarged by at most this."""
MARGIN_SHARE = 0.25
"""Most of an image's side that is added where boxes reach out of it."""
JPEG_QUALITY = 80
HALO_RGB = (10, 14, 20)
WRONG_RGB = (255, 60, 60)
IGNORED_RGB = (190, 190, 190)
AROUND_RGB = (60, 64, 70)
LEAST_BOX_PX = 5.0

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class PagePicture:
    """A picture and what it says."""

    caption: str
    detail: str
    alt: str
    jpeg_base64: str
    size: tuple[int, int]
    """(height, width), pixels."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    corners: Corners
    color: tuple[int, int, int]
    wrong: bool = False


def samples(checked: Checked, imagery: Imagery, *, most: int = SAMPLES) -> list[PagePicture]:
    """Return images that together show every class of every split, as far as `most` reach."""
    label_of = {name: label for label, name in enumerate(checked.record.classes)}
    found = []
    for image in _chosen(checked, most):
        drawn = [
            _Drawn(box.corners, IGNORED_RGB if box.ignore else class_color(label_of[name]))
            for box, name, verdict in zip(image.entry.boxes, image.classes, image.verdicts, strict=True)
            if verdict not in DROPS_BOX
        ]
        counts = dict.fromkeys(name for _, name in image.objects)
        words = ", ".join(f"{sum(name == one for _, one in image.objects)} {name}" for name in counts)
        picture = _picture(image, imagery, drawn, words or "no objects", what="its boxes")
        if picture is not None:
            found.append(picture)
    return found


def troubled(checked: Checked, imagery: Imagery) -> list[PagePicture]:
    """Return images with boxes that are wrong, a few of each kind; the wrong ones are red and crossed."""
    shown_of: dict[str, int] = {}
    found: list[PagePicture] = []
    for image in checked.images:
        kinds = [kind for kind in dict.fromkeys(image.verdicts) if kind is not None and KINDS[kind].severity != "note"]
        fresh = [kind for kind in kinds if shown_of.get(kind, 0) < TROUBLED_OF_KIND]
        if image.facts.problem is not None or not fresh or len(found) == TROUBLED:
            continue
        drawn = [
            _Drawn(box.corners, WRONG_RGB if verdict in kinds else IGNORED_RGB, wrong=verdict in kinds)
            for box, verdict in zip(image.entry.boxes, image.verdicts, strict=True)
            if np.isfinite(box.corners).all()
        ]
        drawn.sort(key=lambda one: one.wrong)
        words = "; ".join(KINDS[kind].title for kind in kinds)
        picture = _picture(image, imagery, drawn, words, what="the boxes that are wrong in red")
        if picture is not None:
            found.append(picture)
            for kind in fresh:
                shown_of[kind] = shown_of.get(kind, 0) + 1
    return found


def pairs(checked: Checked, imagery: Imagery, *, across: bool) -> list[PagePicture]:
    """Return pairs of images that are one or look alike, side by side; `across`: of two splits, else of one."""
    copied = [
        DuplicatePair(group[0], other, 1.0)
        for group in checked.copies
        for other in group[1:]
        if (checked.images[group[0]].split != checked.images[other].split) == across
    ]
    found = []
    for pair in [*copied, *(checked.across if across else checked.within)][:PAIRS_SHOWN]:
        first, second = checked.images[pair.first], checked.images[pair.second]
        sides = [_read(image, imagery) for image in (first, second)]
        if sides[0] is None or sides[1] is None:
            continue
        left, right = (_fitted(side, SIDE_PX // 2)[0] for side in (sides[0], sides[1]))
        canvas = Image.new("RGB", (left.width + right.width + 8, max(left.height, right.height)), AROUND_RGB)
        canvas.paste(left, (0, 0))
        canvas.paste(right, (left.width + 8, 0))
        equal = first.facts.digest == second.facts.digest
        word = "equal" if equal else f"correlation {pair.correlation:.3f}"
        names = f"{shown(first.entry.name)} ({first.split}) and {shown(second.entry.name)} ({second.split})"
        found.append(_encoded(canvas, names, word, f"{names} side by side: {word}."))
    return found


def _chosen(checked: Checked, most: int) -> list[CheckedImage]:
    """Return images that show the rarest classes of each split first, then others spread over the splits."""
    usable = [image for image in checked.images if image.facts.problem is None]
    wanted = sorted(
        ((count, split.name, name) for split in checked.record.splits for name, count in split.per_class.items()),
    )
    chosen: dict[int, CheckedImage] = {}
    for count, split, name in wanted:
        covered = any(image.split == split and _has(image, name) for image in chosen.values())
        if count and not covered and len(chosen) < most:
            image = next(image for image in usable if image.split == split and _has(image, name))
            chosen[id(image)] = image
    for share, split in enumerate(checked.splits):
        rest = [image for image in usable if image.split == split and id(image) not in chosen]
        room = (most - len(chosen)) // (len(checked.splits) - share)
        for place in np.linspace(0, len(rest) - 1, min(room, len(rest))).round().astype(int).tolist():
            chosen[id(rest[place])] = rest[place]
    order = {id(image): index for index, image in enumerate(checked.images)}
    return sorted(chosen.values(), key=lambda image: order[id(image)])


def _has(image: CheckedImage, name: str) -> bool:
    return any(one == name for _, one in image.objects)


def _picture(
    image: CheckedImage, imagery: Imagery, boxes: Sequence[_Drawn], words: str, *, what: str
) -> PagePicture | None:
    pixels = _read(image, imagery)
    if pixels is None:
        return None
    framed, (left, top) = _framed(pixels, [box.corners for box in boxes])
    picture, factor = _fitted(framed, SIDE_PX)
    draw = ImageDraw.Draw(picture)
    for box in boxes:
        x1, y1, x2, y2 = _limited(box.corners, framed.shape[:2], (left, top), factor)
        draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), outline=HALO_RGB, width=4)
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=box.color, width=2)
        if box.wrong:
            draw.line((x1, y1, x2, y2), fill=box.color, width=2)
    name = shown(image.entry.name)
    return _encoded(picture, f"{name} ({image.split})", words, f"{name} with {what}: {words}.")


def _read(image: CheckedImage, imagery: Imagery) -> Array | None:
    """Return an image's pixels; None when its file has gone since it was looked at."""
    assert image.facts.path is not None
    try:
        return read_image(image.facts.path, imagery=imagery)
    except DataError:
        return None


def _framed(pixels: Array, boxes: Sequence[Corners]) -> tuple[Array, tuple[int, int]]:
    """Return a picture with room for boxes that reach out of it, and how much was added on the left and above."""
    height, width = pixels.shape[:2]
    across, down = round(width * MARGIN_SHARE), round(height * MARGIN_SHARE)
    x1, y1, x2, y2 = np.array([(0.0, 0.0, width, height), *boxes]).T
    left, top = (min(room, max(0, round(-float(low.min())))) for room, low in ((across, x1), (down, y1)))
    right = min(across, max(0, round(float(x2.max()) - width)))
    bottom = min(down, max(0, round(float(y2.max()) - height)))
    if not (left or top or right or bottom):
        return pixels, (0, 0)
    canvas = np.empty((top + height + bottom, left + width + right, 3), np.uint8)
    canvas[:] = AROUND_RGB
    canvas[top : top + height, left : left + width] = pixels
    return canvas, (left, top)


def _fitted(pixels: Array, side: int) -> tuple[Image.Image, float]:
    """Return pixels as a picture whose longer side is `side`, and the factor; small ones grow twofold at most."""
    picture = Image.fromarray(pixels)
    factor = min(side / max(picture.size), MOST_ENLARGED)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    how = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST
    return picture.resize(size, how), factor


def _limited(corners: Corners, size: tuple[int, int], origin: tuple[int, int], factor: float) -> Corners:
    """Return a box in a picture's pixels, inside it and large enough to be seen."""
    x1, y1, x2, y2 = (
        min(max((value + offset) * factor, 1.0), most * factor - 2.0)
        for value, offset, most in zip(corners, origin * 2, (size[1], size[0]) * 2, strict=True)
    )
    x1, x2 = sorted((x1, x2))
    y1, y2 = sorted((y1, y2))
    wide, high = max(0.0, LEAST_BOX_PX - (x2 - x1)) / 2, max(0.0, LEAST_BOX_PX - (y2 - y1)) / 2
    return x1 - wide, y1 - high, x2 + wide, y2 + high


def _encoded(picture: Image.Image, caption: str, detail: str, alt: str) -> PagePicture:
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=JPEG_QUALITY)
    return PagePicture(
        caption, detail, alt, base64.b64encode(stream.getvalue()).decode(), (picture.height, picture.width)
    )
