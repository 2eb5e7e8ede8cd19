"""Pictures of a scene's detections: the whole scene, and its busiest part pixel by pixel."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deploy.scene.read.scene import Scene
from deploy.scene.result import SceneResult
from ifkd.core.detections import Array, Detections
from ifkd.core.errors import SceneError
from ifkd.core.files import atomic_path
from ifkd.core.html.colors import class_color
from ifkd.core.tiling import Window

OVERVIEW_PX = 2048
SMALLEST_CANVAS_PX = 720
DETAIL_PX = 512
DETAIL_ZOOM = 2
LEAST_BOX_PX = 7.0
MOST_NAMES = 400
MARGIN_PX = 14
BAND_RGB = (24, 26, 30)
TEXT_RGB = (240, 240, 240)
HALO_RGB = (0, 0, 0)
HOLE_RGB = (190, 190, 190)


def write_quicklooks(result: SceneResult, scene: Scene, folder: Path) -> list[str]:
    """Write quicklook.png and quicklook_detail.png into `folder`, and return their names."""
    detail = busiest_window(result.detections, scene.size)
    pictures = {
        "quicklook.png": draw_overview(result, scene, detail),
        "quicklook_detail.png": draw_detail(result, scene, detail),
    }
    for name, picture in pictures.items():
        with atomic_path(folder / name) as temporary:
            picture.save(temporary, format="PNG")
    return list(pictures)


def draw_overview(result: SceneResult, scene: Scene, detail: Window) -> Image.Image:
    """Return the scene, thinned to at most 2048 pixels, with its objects, holes and the place of the detail."""
    height, width = scene.size
    thinned = scene.overview(OVERVIEW_PX).pixels
    zoom = max(1, -(-SMALLEST_CANVAS_PX // max(thinned.shape[:2]))) if max(scene.size) < SMALLEST_CANVAS_PX else 1
    picture = _enlarged(thinned, zoom)
    factors = (picture.width / width, picture.height / height)
    sheet = _Sheet(picture, result)
    for hole in result.holes:
        sheet.outline(_scaled(hole.window, factors), HOLE_RGB, crossed=True)
    sheet.outline(_scaled(detail, factors), TEXT_RGB)
    boxes = result.detections.boxes * np.array([*factors, *factors], np.float32)
    sheet.objects(boxes, result.detections)
    title = f"{result.scene.name}, {width} x {height} px, {_counted(len(result.detections))}"
    notes = ["White frame: the part shown in quicklook_detail.png."]
    if result.holes:
        notes.append(f"Crossed out: {len(result.holes)} tiles that could not be read.")
    return sheet.finished(title, notes)


def draw_detail(result: SceneResult, scene: Scene, window: Window) -> Image.Image:
    """Return a part of the scene at full resolution, drawn at twice its size, with its objects."""
    try:
        pixels = scene.read(window).pixels
    except SceneError:  # a hole; its frame and objects are still worth seeing
        pixels = np.full((window.height, window.width, 3), HOLE_RGB, np.uint8)
    picture = _enlarged(pixels, max(DETAIL_ZOOM, -(-SMALLEST_CANVAS_PX // max(pixels.shape[:2]))))
    zoom = picture.width / window.width
    inside = _inside(result.detections.boxes, window)
    shown = result.detections.select(inside)
    boxes = shown.translated(dx=-float(window.left), dy=-float(window.top)).boxes * np.float32(zoom)
    sheet = _Sheet(picture, result)
    sheet.objects(boxes, shown)
    title = f"{result.scene.name}, columns {window.left} to {window.right}, rows {window.top} to {window.bottom}, "
    return sheet.finished(title + _counted(len(shown)), [f"Every pixel of the scene is {zoom:g} x {zoom:g} here."])


def busiest_window(detections: Detections, size: tuple[int, int]) -> Window:
    """Return the window of at most 512x512 pixels, inside a scene of `size`, with the most and surest objects."""
    height, width = min(DETAIL_PX, size[0]), min(DETAIL_PX, size[1])
    if not len(detections):
        return Window((size[0] - height) // 2, (size[1] - width) // 2, height, width)
    centers = (detections.boxes[:, :2] + detections.boxes[:, 2:]) / 2.0
    step = DETAIL_PX // 4
    cells = (centers // step).astype(np.int64)
    columns, rows = size[1] // step + 1, size[0] // step + 1
    weights = np.zeros((rows + 3, columns + 3))
    np.add.at(weights, (cells[:, 1].clip(0, rows - 1), cells[:, 0].clip(0, columns - 1)), detections.scores)
    sums = np.lib.stride_tricks.sliding_window_view(weights, (4, 4)).sum(axis=(2, 3))
    row, column = np.unravel_index(int(np.argmax(sums)), sums.shape)
    inside = (cells[:, 1] >= row) & (cells[:, 1] < row + 4) & (cells[:, 0] >= column) & (cells[:, 0] < column + 4)
    middle = (centers[inside].min(axis=0) + centers[inside].max(axis=0)) / 2.0
    top = int(np.clip(round(float(middle[1]) - height / 2), 0, size[0] - height))
    left = int(np.clip(round(float(middle[0]) - width / 2), 0, size[1] - width))
    return Window(top, left, height, width)


@dataclass(frozen=True, slots=True)
class _Rect:
    x1: float
    y1: float
    x2: float
    y2: float

    def covers_some(self, boxes: Array) -> bool:
        """Return whether any of boxes [n, 4] lies at least partly under this."""
        x1, y1, x2, y2 = boxes.T
        return bool(((self.x1 < x2) & (x1 < self.x2) & (self.y1 < y2) & (y1 < self.y2)).any())

    def meets(self, other: "_Rect") -> bool:
        return self.x1 < other.x2 and other.x1 < self.x2 and self.y1 < other.y2 and other.y1 < self.y2


class _Sheet:
    """A picture being drawn on, to which a title and a legend are added."""

    def __init__(self, picture: Image.Image, result: SceneResult) -> None:
        self._picture = picture
        self._draw = ImageDraw.Draw(picture)
        self._classes = result.classes
        self._counts = np.zeros(len(result.classes), int)
        self._font = ImageFont.load_default(15)
        self._unit = max(1.0, picture.width / 1100)
        """Title and legend grow with the picture, as it is looked at from further away."""
        self._legend = ImageFont.load_default(15 * self._unit)
        self._title = ImageFont.load_default(19 * self._unit)

    def outline(self, box: _Rect, color: tuple[int, int, int], *, crossed: bool = False) -> None:
        """Draw a frame, and a cross through it when asked."""
        self._draw.rectangle((box.x1 - 1, box.y1 - 1, box.x2 + 1, box.y2 + 1), outline=HALO_RGB, width=4)
        self._draw.rectangle((box.x1, box.y1, box.x2, box.y2), outline=color, width=2)
        if crossed:
            self._draw.line((box.x1, box.y1, box.x2, box.y2), fill=color, width=2)
            self._draw.line((box.x1, box.y2, box.x2, box.y1), fill=color, width=2)

    def objects(self, boxes: Array, detections: Detections) -> None:
        """Draw boxes, and the names of as many as have room, the surest first."""
        self._counts += np.bincount(detections.labels, minlength=len(self._classes))
        rects = [_at_least(_Rect(*map(float, box)), LEAST_BOX_PX) for box in boxes]
        for rect, label in reversed(list(zip(rects, detections.labels.tolist(), strict=True))):
            self._draw.rectangle((rect.x1 - 2, rect.y1 - 2, rect.x2 + 2, rect.y2 + 2), outline=HALO_RGB, width=4)
            self._draw.rectangle(
                (rect.x1 - 1, rect.y1 - 1, rect.x2 + 1, rect.y2 + 1), outline=class_color(label), width=2
            )
        taken: list[_Rect] = []
        drawn = np.array([[rect.x1, rect.y1, rect.x2, rect.y2] for rect in rects[:MOST_NAMES]]).reshape(-1, 4)
        for rect, label, score in zip(rects, detections.labels.tolist(), detections.scores.tolist(), strict=True):
            if len(taken) < MOST_NAMES:
                self._name(rect, f"{self._classes[label]} {score:.2f}", class_color(label), taken, drawn)

    def finished(self, title: str, notes: list[str]) -> Image.Image:
        """Return the picture with its title above and its legend below."""
        width = max(self._picture.width, SMALLEST_CANVAS_PX)
        entries = [
            (name, int(count), class_color(label))
            for label, (name, count) in enumerate(zip(self._classes, self._counts, strict=True))
        ]
        rows = self._laid_out(entries, width)
        margin, line = round(MARGIN_PX * self._unit), round(26 * self._unit)
        head = line + margin
        foot = line * (len(rows) + len(notes)) + 2 * margin
        sheet = Image.new("RGB", (width, head + self._picture.height + foot), BAND_RGB)
        sheet.paste(self._picture, (0, head))
        draw = ImageDraw.Draw(sheet)
        draw.text((margin, margin // 2), title, fill=TEXT_RGB, font=self._title)
        y, mark = head + self._picture.height + margin, round(14 * self._unit)
        for row in rows:
            for x, text, color in row:
                draw.rectangle((x, y + 3, x + mark, y + 3 + mark), outline=color, width=mark // 4)
                draw.text((x + mark + 8, y), text, fill=TEXT_RGB, font=self._legend)
            y += line
        for note in notes:
            draw.text((margin, y), note, fill=TEXT_RGB, font=self._legend)
            y += line
        return sheet

    def _laid_out(
        self, entries: list[tuple[str, int, tuple[int, int, int]]], width: int
    ) -> list[list[tuple[float, str, tuple[int, int, int]]]]:
        """Return the legend's rows: where each entry starts, its text and its color."""
        rows: list[list[tuple[float, str, tuple[int, int, int]]]] = [[]]
        start = float(round(MARGIN_PX * self._unit))
        x = start
        for name, count, color in entries:
            text = f"{name} ({count})"
            needed = 46 * self._unit + self._legend.getlength(text)
            if rows[-1] and x + needed > width:
                rows.append([])
                x = start
            rows[-1].append((x, text, color))
            x += needed
        return rows

    def _name(self, box: _Rect, text: str, color: tuple[int, int, int], taken: list[_Rect], drawn: Array) -> None:
        length, height = self._font.getlength(text) + 6, 19
        x = min(max(0.0, box.x1 - 2), max(0.0, self._picture.width - length))
        for y in (box.y1 - height - 3, box.y2 + 3):
            place = _Rect(x, y, x + length, y + height)
            if y < 0 or y + height > self._picture.height or any(place.meets(other) for other in taken):
                continue
            if place.covers_some(drawn):
                continue
            taken.append(place)
            self._draw.rectangle((place.x1, place.y1, place.x2, place.y2), fill=HALO_RGB)
            self._draw.text((place.x1 + 3, place.y1), text, fill=color, font=self._font)
            return


def _counted(n: int) -> str:
    return "1 object" if n == 1 else f"{n} objects"


def _enlarged(pixels: Array, zoom: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    if zoom == 1:
        return picture
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _scaled(window: Window, factors: tuple[float, float]) -> _Rect:
    across, down = factors
    return _Rect(window.left * across, window.top * down, window.right * across - 1, window.bottom * down - 1)


def _at_least(rect: _Rect, side: float) -> _Rect:
    """Return a rectangle of at least `side` each way, around the same center."""
    right, down = max(0.0, side - (rect.x2 - rect.x1)) / 2, max(0.0, side - (rect.y2 - rect.y1)) / 2
    return _Rect(rect.x1 - right, rect.y1 - down, rect.x2 + right, rect.y2 + down)


def _inside(boxes: Array, window: Window) -> Array:
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2.0
    low = np.array([window.left, window.top])
    high = np.array([window.right, window.bottom])
    return np.asarray(((centers >= low) & (centers < high)).all(axis=1))
