"""Quicklooks: pictures of the entire scene, and of its part with the most detections, at full resolution."""

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
from ifkd.core.oriented_boxes import corners
from ifkd.core.tiling import Window
from ifkd.imagery.contrast import decimated
from ifkd.imagery.image_files import resize

Color = tuple[int, int, int]
OUTWARD = np.array([-1.0, -1.0, 1.0, 1.0])
QUICKLOOK_PX = 2048
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


def write_quicklooks(result: SceneResult, scene: Scene, overview: Array, folder: Path) -> list[str]:
    """Write quicklook.png, from an overview as `Scene.overview` returns it, and quicklook_detail.png into `folder`.

    Returns:
        The names of the files.
    """
    detail = busiest_window(result.detections, scene.size)
    pictures = {
        QUICKLOOK_FILE: draw_overview(result, overview, detail),
        QUICKLOOK_DETAIL_FILE: draw_detail(result, scene, detail),
    }
    for name, picture in pictures.items():
        with atomic_path(folder / name) as temporary:
            picture.save(temporary, format="PNG")
    return list(pictures)


def draw_overview(result: SceneResult, overview: Array, detail: Window) -> Image.Image:
    """Return an overview, at most 2048 pixels a side, with objects, unreadable tiles and the frame of the detail."""
    height, width = result.scene.size
    overview = resize(overview, decimated((overview.shape[0], overview.shape[1]), QUICKLOOK_PX))
    zoom = max(1, -(-MIN_CANVAS_PX // max(overview.shape[:2]))) if max(result.scene.size) < MIN_CANVAS_PX else 1
    picture = _enlarged(overview, zoom)
    factors = (picture.width / width, picture.height / height)
    sheet = _Sheet(picture, result)
    for tile in result.unreadable:
        sheet.outline(_scaled(tile.window, factors), UNREADABLE_RGB, crossed=True)
    sheet.outline(_scaled(detail, factors), TEXT_RGB)
    sheet.objects(result.detections, factors)
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
    centers = (result.detections.boxes[:, :2] + result.detections.boxes[:, 2:]) / 2.0
    inside = (centers >= [window.left, window.top]) & (centers < [window.right, window.bottom])
    shown = result.detections.select(np.flatnonzero(inside.all(axis=1)))
    sheet = _Sheet(picture, result)
    sheet.objects(shown.translated(dx=-float(window.left), dy=-float(window.top)), (zoom, zoom))
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
    inside = ((cells >= [column, row]) & (cells < [column + 4, row + 4])).all(axis=1)
    center = (centers[inside].min(axis=0) + centers[inside].max(axis=0)) / 2.0
    top = int(np.clip(round(float(center[1]) - height / 2), 0, size[0] - height))
    left = int(np.clip(round(float(center[0]) - width / 2), 0, size[1] - width))
    return Window(top, left, height, width)


class _Sheet:
    """A picture with drawings, a title and a legend; boxes are float64, pixels of the picture."""

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

    def outline(self, box: Array, color: Color, *, crossed: bool = False) -> None:
        """Draw a frame, optionally with a cross."""
        self._frame(box, color)
        if crossed:
            self._draw.line(box.tolist(), fill=color, width=2)
            self._draw.line(box[[0, 3, 2, 1]].tolist(), fill=color, width=2)

    def _frame(self, box: Array, color: Color) -> None:
        self._draw.rectangle((box + OUTWARD).tolist(), outline=HALO_RGB, width=4)
        self._draw.rectangle(box.tolist(), outline=color, width=2)

    def objects(self, detections: Detections, factors: tuple[float, float]) -> None:
        """Draw boxes, and labels where there is space, in descending order of score.

        The factors, of columns and rows, are from the pixels of the detections to those of the picture.
        """
        self._counts += np.bincount(detections.labels, minlength=len(self._classes))
        scaled = detections.boxes * np.array([*factors, *factors], np.float32)
        boxes = _at_least(scaled.astype(np.float64), MIN_BOX_PX)
        labels = detections.labels.tolist()
        if detections.oriented is None:
            for box, label in zip(boxes[::-1], labels[::-1], strict=True):
                self._frame(box + OUTWARD, class_color(label))
        else:
            outlines = corners(detections.oriented) * np.array(factors)
            growth = MIN_BOX_PX / np.ptp(outlines, axis=1).max(axis=1).clip(1e-6, MIN_BOX_PX)
            middles = outlines.mean(axis=1, keepdims=True)
            outlines = middles + (outlines - middles) * growth[:, None, None]
            for outline, label in zip(outlines[::-1], labels[::-1], strict=True):
                self._polygon(outline, class_color(label))
        occupied = boxes[:MAX_LABELS]
        most = len(occupied) + MAX_LABELS
        for box, label, score in zip(boxes, labels, detections.scores.tolist(), strict=True):
            text = f"{self._classes[label]} {score:.2f}"
            if len(occupied) < most:
                occupied = np.concatenate([occupied, self._draw_label(box, text, class_color(label), occupied)])

    def _polygon(self, outline: Array, color: Color) -> None:
        ring = [tuple(point) for point in (*outline.tolist(), *outline[:2].tolist())]  # the last corner is joined, too
        self._draw.line(ring, fill=HALO_RGB, width=4, joint="curve")
        self._draw.line(ring, fill=color, width=2, joint="curve")

    def finish(self, title: str, notes: list[str]) -> Image.Image:
        """Return the picture with the title above and the legend below."""
        width = max(self._picture.width, MIN_CANVAS_PX)
        rows = self._legend_rows(width)
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

    def _legend_rows(self, width: int) -> list[list[tuple[float, str, Color]]]:
        """Return the rows of the legend: x position, text and color of each entry."""
        rows: list[list[tuple[float, str, Color]]] = [[]]
        x = start = float(round(MARGIN_PX * self._unit))
        for label, (name, count) in enumerate(zip(self._classes, self._counts.tolist(), strict=True)):
            text = f"{name} ({count})"
            needed = 46 * self._unit + self._legend.getlength(text)
            if rows[-1] and x + needed > width:
                rows.append([])
                x = start
            rows[-1].append((x, text, class_color(label)))
            x += needed
        return rows

    def _draw_label(self, box: Array, text: str, color: Color, occupied: Array) -> Array:
        """Draw a label above or below a box if there is space, and return its boxes [0 or 1, 4]."""
        length, height = self._font.getlength(text) + 6, 19
        x1, y1, _, y2 = box.tolist()
        x = min(max(0.0, x1 - 2), max(0.0, self._picture.width - length))
        for y in (y1 - height - 3, y2 + 3):
            drawn = np.array([x, y, x + length, y + height])
            free = not ((drawn[:2] < occupied[:, 2:]) & (occupied[:, :2] < drawn[2:])).all(axis=1).any()
            if free and y >= 0 and y + height <= self._picture.height:
                self._draw.rectangle(drawn.tolist(), fill=HALO_RGB)
                self._draw.text((x + 3, y), text, fill=color, font=self._font)
                return drawn[None]
        return np.zeros((0, 4))


def _counted(n: int) -> str:
    return "1 object" if n == 1 else f"{n} objects"


def _enlarged(pixels: Array, zoom: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    if zoom == 1:
        return picture
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _scaled(window: Window, factors: tuple[float, float]) -> Array:
    box = np.array([window.left, window.top, window.right, window.bottom])
    return box * np.array([*factors, *factors]) - np.array([0, 0, 1, 1])


def _at_least(boxes: Array, side: float) -> Array:
    """Return boxes [n, 4] with the same centers and sides of at least `side`."""
    growth = (side - (boxes[:, 2:] - boxes[:, :2])).clip(min=0) / 2
    return boxes + np.concatenate([-growth, growth], axis=1)
