"""Quicklooks: pictures of the entire scene, and of its part with the most detections, at full resolution."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deploy.scene.read.scene import Scene
from deploy.scene.result import SceneResult
from deploy.scene.write.file_names import QUICKLOOK_DETAIL_FILE, QUICKLOOK_FILE
from ifkd.core.detections import Array, Detections
from ifkd.core.errors import SceneError
from ifkd.core.files import atomic_path
from ifkd.core.html.colors import class_color
from ifkd.core.tiling import Window

OVERVIEW_PX = 2048
MIN_CANVAS_PX = 720
DETAIL_PX = 512
DETAIL_ZOOM = 2
MIN_BOX_PX = 7.0
MAX_LABELS = 400
MARGIN_PX = 14
BACKGROUND_RGB = (24, 26, 30)
TEXT_RGB = (240, 240, 240)
HALO_RGB = (0, 0, 0)
UNREADABLE_RGB = (190, 190, 190)


def write_quicklooks(result: SceneResult, scene: Scene, folder: Path) -> list[str]:
    """Write quicklook.png and quicklook_detail.png into `folder`, and return their names."""
    detail = busiest_window(result.detections, scene.size)
    pictures = {
        QUICKLOOK_FILE: draw_overview(result, scene, detail),
        QUICKLOOK_DETAIL_FILE: draw_detail(result, scene, detail),
    }
    for name, picture in pictures.items():
        with atomic_path(folder / name) as temporary:
            picture.save(temporary, format="PNG")
    return list(pictures)


def draw_overview(result: SceneResult, scene: Scene, detail: Window) -> Image.Image:
    """Return the scene, at most 2048 pixels a side, with objects, unreadable tiles and the frame of the detail."""
    height, width = scene.size
    overview = scene.overview(OVERVIEW_PX).pixels
    zoom = max(1, -(-MIN_CANVAS_PX // max(overview.shape[:2]))) if max(scene.size) < MIN_CANVAS_PX else 1
    picture = _enlarged(overview, zoom)
    factors = (picture.width / width, picture.height / height)
    sheet = _Sheet(picture, result)
    for tile in result.unreadable:
        sheet.outline(_scaled(tile.window, factors), UNREADABLE_RGB, crossed=True)
    sheet.outline(_scaled(detail, factors), TEXT_RGB)
    boxes = result.detections.boxes * np.array([*factors, *factors], np.float32)
    sheet.objects(boxes, result.detections)
    title = f"{result.scene.name}, {width} x {height} px, {_counted(len(result.detections))}"
    notes = [f"White frame: the part shown in {QUICKLOOK_DETAIL_FILE}."]
    if result.unreadable:
        notes.append(f"Crossed out: {len(result.unreadable)} tiles that could not be read.")
    return sheet.finish(title, notes)


def draw_detail(result: SceneResult, scene: Scene, window: Window) -> Image.Image:
    """Return a part of the scene at full resolution, enlarged at least twice, with its objects."""
    try:
        pixels = scene.read(window).pixels
    except SceneError:  # unreadable; its objects are drawn on gray
        pixels = np.full((window.height, window.width, 3), UNREADABLE_RGB, np.uint8)
    picture = _enlarged(pixels, max(DETAIL_ZOOM, -(-MIN_CANVAS_PX // max(pixels.shape[:2]))))
    zoom = picture.width / window.width
    inside = _inside(result.detections.boxes, window)
    shown = result.detections.select(inside)
    boxes = shown.translated(dx=-float(window.left), dy=-float(window.top)).boxes * np.float32(zoom)
    sheet = _Sheet(picture, result)
    sheet.objects(boxes, shown)
    title = f"{result.scene.name}, columns {window.left} to {window.right}, rows {window.top} to {window.bottom}, "
    return sheet.finish(title + _counted(len(shown)), [f"Each pixel of the scene is {zoom:g} x {zoom:g} pixels here."])


def busiest_window(detections: Detections, size: tuple[int, int]) -> Window:
    """Return the window of at most 512x512 pixels, in a scene of `size`, with the largest sum of scores."""
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
    center = (centers[inside].min(axis=0) + centers[inside].max(axis=0)) / 2.0
    top = int(np.clip(round(float(center[1]) - height / 2), 0, size[0] - height))
    left = int(np.clip(round(float(center[0]) - width / 2), 0, size[1] - width))
    return Window(top, left, height, width)


@dataclass(frozen=True, slots=True)
class _Rect:
    x1: float
    y1: float
    x2: float
    y2: float

    def overlaps_any(self, boxes: Array) -> bool:
        """Return whether the rectangle overlaps any of boxes [n, 4]."""
        x1, y1, x2, y2 = boxes.T
        return bool(((self.x1 < x2) & (x1 < self.x2) & (self.y1 < y2) & (y1 < self.y2)).any())


class _Sheet:
    """A picture with drawings, a title and a legend."""

    def __init__(self, picture: Image.Image, result: SceneResult) -> None:
        self._picture = picture
        self._draw = ImageDraw.Draw(picture)
        self._classes = result.classes
        self._counts = np.zeros(len(result.classes), int)
        self._font = ImageFont.load_default(15)
        self._unit = max(1.0, picture.width / 1100)
        """Size factor of title and legend, which grow with the picture."""
        self._legend = ImageFont.load_default(15 * self._unit)
        self._title = ImageFont.load_default(19 * self._unit)

    def outline(self, box: _Rect, color: tuple[int, int, int], *, crossed: bool = False) -> None:
        """Draw a frame, optionally with a cross."""
        self._draw.rectangle((box.x1 - 1, box.y1 - 1, box.x2 + 1, box.y2 + 1), outline=HALO_RGB, width=4)
        self._draw.rectangle((box.x1, box.y1, box.x2, box.y2), outline=color, width=2)
        if crossed:
            self._draw.line((box.x1, box.y1, box.x2, box.y2), fill=color, width=2)
            self._draw.line((box.x1, box.y2, box.x2, box.y1), fill=color, width=2)

    def objects(self, boxes: Array, detections: Detections) -> None:
        """Draw boxes, and labels where there is space, in descending order of score."""
        self._counts += np.bincount(detections.labels, minlength=len(self._classes))
        rects = [_at_least(_Rect(*map(float, box)), MIN_BOX_PX) for box in boxes]
        for rect, label in reversed(list(zip(rects, detections.labels.tolist(), strict=True))):
            self._draw.rectangle((rect.x1 - 2, rect.y1 - 2, rect.x2 + 2, rect.y2 + 2), outline=HALO_RGB, width=4)
            self._draw.rectangle(
                (rect.x1 - 1, rect.y1 - 1, rect.x2 + 1, rect.y2 + 1), outline=class_color(label), width=2
            )
        occupied = np.array([[rect.x1, rect.y1, rect.x2, rect.y2] for rect in rects[:MAX_LABELS]]).reshape(-1, 4)
        labels = 0
        for rect, label, score in zip(rects, detections.labels.tolist(), detections.scores.tolist(), strict=True):
            text = f"{self._classes[label]} {score:.2f}"
            if (
                labels < MAX_LABELS
                and (drawn := self._draw_label(rect, text, class_color(label), occupied)) is not None
            ):
                occupied = np.concatenate([occupied, [[drawn.x1, drawn.y1, drawn.x2, drawn.y2]]])
                labels += 1

    def finish(self, title: str, notes: list[str]) -> Image.Image:
        """Return the picture with the title above and the legend below."""
        width = max(self._picture.width, MIN_CANVAS_PX)
        entries = [
            (name, int(count), class_color(label))
            for label, (name, count) in enumerate(zip(self._classes, self._counts, strict=True))
        ]
        rows = self._legend_rows(entries, width)
        margin, line = round(MARGIN_PX * self._unit), round(26 * self._unit)
        head = line + margin
        foot = line * (len(rows) + len(notes)) + 2 * margin
        sheet = Image.new("RGB", (width, head + self._picture.height + foot), BACKGROUND_RGB)
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

    def _legend_rows(
        self, entries: list[tuple[str, int, tuple[int, int, int]]], width: int
    ) -> list[list[tuple[float, str, tuple[int, int, int]]]]:
        """Return the rows of the legend: x position, text and color of each entry."""
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

    def _draw_label(self, box: _Rect, text: str, color: tuple[int, int, int], occupied: Array) -> _Rect | None:
        """Draw a label above or below a box if there is space, and return its rectangle."""
        length, height = self._font.getlength(text) + 6, 19
        x = min(max(0.0, box.x1 - 2), max(0.0, self._picture.width - length))
        for y in (box.y1 - height - 3, box.y2 + 3):
            rect = _Rect(x, y, x + length, y + height)
            if y >= 0 and y + height <= self._picture.height and not rect.overlaps_any(occupied):
                self._draw.rectangle((rect.x1, rect.y1, rect.x2, rect.y2), fill=HALO_RGB)
                self._draw.text((rect.x1 + 3, rect.y1), text, fill=color, font=self._font)
                return rect
        return None


def _counted(n: int) -> str:
    return "1 object" if n == 1 else f"{n} objects"


def _enlarged(pixels: Array, zoom: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    if zoom == 1:
        return picture
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _scaled(window: Window, factors: tuple[float, float]) -> _Rect:
    fx, fy = factors
    return _Rect(window.left * fx, window.top * fy, window.right * fx - 1, window.bottom * fy - 1)


def _at_least(rect: _Rect, side: float) -> _Rect:
    """Return a rectangle with the same center and sides of at least `side`."""
    dx, dy = max(0.0, side - (rect.x2 - rect.x1)) / 2, max(0.0, side - (rect.y2 - rect.y1)) / 2
    return _Rect(rect.x1 - dx, rect.y1 - dy, rect.x2 + dx, rect.y2 + dy)


def _inside(boxes: Array, window: Window) -> Array:
    """Return which boxes [n, 4] have their center in a window, bool [n]."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2.0
    low = np.array([window.left, window.top])
    high = np.array([window.right, window.bottom])
    return np.asarray(((centers >= low) & (centers < high)).all(axis=1))
