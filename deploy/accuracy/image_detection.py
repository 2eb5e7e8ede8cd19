"""Whole images through an engine: scaled as in training, padded to a tile or cut into tiles, answers put together."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from deploy.engines.engine import Engine
from deploy.scene.merge.merge import MergeSettings, TileDetections, merge
from ifkd.core.detections import Array, Candidates, Detections
from ifkd.core.postprocess import PostprocessConfig, postprocess
from ifkd.core.tiling import TileGrid, Window
from ifkd.data.coco import LabeledImage
from ifkd.imagery.image_files import Imagery, pad, read_image, resize


@dataclass(frozen=True, slots=True)
class TilingConfig:
    """How images become tiles and candidates become detections."""

    scale: float
    """Factor from the image's pixels to the tile's."""
    tile_px: tuple[int, int]
    """(height, width)."""
    overlap_px: int
    """Overlap of neighboring tiles, pixels after scaling."""
    selection: PostprocessConfig
    imagery: Imagery = Imagery()  # noqa: RUF009 - frozen
    """How files become uint8 RGB."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageResult:
    """What was found in one image, in its own pixels."""

    detections: Detections
    candidates: Detections
    """What the detections were chosen from, down to half the score threshold; empty unless asked for."""
    selected: Detections = field(default_factory=Detections.empty)
    """What was chosen tile by tile, before tiles were merged; empty unless candidates were asked for."""
    tiles_sha256: str = ""
    """Digest of the tiles that the engine saw; empty unless candidates were asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class TiledImage:
    """An image as tiles."""

    size: tuple[int, int]
    """(height, width), pixels of the image."""
    scaled: tuple[int, int]
    """(height, width) after scaling."""
    windows: tuple[Window, ...]
    """Of the scaled image; one that reaches beyond it was padded."""
    tiles: Array
    """uint8 [windows, 3, height, width]."""


def cut(pixels: Array, framing: TilingConfig) -> TiledImage:
    """Return uint8 pixels [height, width, 3] as tiles: one if the scaled image fits a tile, else a grid."""
    size = (pixels.shape[0], pixels.shape[1])
    scaled = (max(1, round(size[0] * framing.scale)), max(1, round(size[1] * framing.scale)))
    pixels = resize(pixels, scaled)
    windows = tuple(TileGrid(scaled, framing.tile_px, framing.overlap_px))
    tiles = [pad(pixels[w.top : w.bottom, w.left : w.right], framing.tile_px).transpose(2, 0, 1) for w in windows]
    return TiledImage(size, scaled, windows, np.ascontiguousarray(np.stack(tiles)))


def merged(found: TileDetections, selection: PostprocessConfig) -> Detections:
    """Return the detections of all tiles of an image as those of the image, best first."""
    return merge(found, MergeSettings(threshold=selection.iou_threshold)).detections


@dataclass(frozen=True, slots=True)
class PipelineHooks:
    """The steps around an engine. Parity replaces one of them to see that it would notice."""

    prepare: Callable[[Array, TilingConfig], TiledImage] = cut
    """uint8 pixels [height, width, 3] -> tiles."""
    select: Callable[..., list[Detections]] = postprocess
    """Candidates of a batch -> detections of each tile."""
    merge: Callable[[TileDetections, PostprocessConfig], Detections] = merged
    """Detections of an image's tiles, when there are several -> detections of the image."""


def tiles_of(images: Sequence[LabeledImage], framing: TilingConfig, *, most: int) -> Array:
    """Return the first `most` tiles of images, uint8 [n, 3, height, width]."""
    parts: list[Array] = []
    for image in images:
        if sum(map(len, parts)) >= most:
            break
        parts.append(cut(read_image(image.path, imagery=framing.imagery), framing).tiles)
    return np.concatenate(parts)[:most] if parts else np.zeros((0, 3, *framing.tile_px), np.uint8)


def detect_images(
    engine: Engine,
    images: Sequence[LabeledImage],
    framing: TilingConfig,
    *,
    batch: int,
    keep_candidates: bool = False,
    steps: PipelineHooks | None = None,
) -> Iterator[tuple[int, ImageResult]]:
    """Yield each image's id and what `engine` finds in it, in order.

    Args:
        engine: The engine.
        images: Image files.
        framing: Scale, tiles and thresholds.
        batch: Images read and tiles run together.
        keep_candidates: Also return what the detections came from: candidates, choice by tile, digest of the tiles.
        steps: Steps of another kind than usual.

    Raises:
        DataError: An image cannot be read, or is not of the size the annotation file says.
        EngineError: The engine fails.
    """
    steps = steps or PipelineHooks()
    waiting = iter(images)
    while group := list(itertools.islice(waiting, batch)):
        tiled = [
            steps.prepare(read_image(image.path, size=image.size, imagery=framing.imagery), framing) for image in group
        ]
        tiles = np.concatenate([one.tiles for one in tiled])
        parts = [engine.infer(tiles[start : start + batch]) for start in range(0, len(tiles), batch)]
        answers = Candidates(
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.labels for part in parts]),
        )
        start = 0
        for image, one in zip(group, tiled, strict=True):
            rows = slice(start, start + len(one.windows))
            start = rows.stop
            own = Candidates(answers.boxes[rows], answers.scores[rows], answers.labels[rows])
            yield image.id, _answer(own, one, framing, steps, keep_candidates=keep_candidates)


def _answer(
    candidates: Candidates, image: TiledImage, framing: TilingConfig, steps: PipelineHooks, *, keep_candidates: bool
) -> ImageResult:
    selection = framing.selection
    found = steps.select(candidates, selection, size=framing.tile_px)
    placed = TileDetections.concatenate(
        [
            TileDetections.of_tile(
                one.moved(right=float(window.left), down=float(window.top)), tile, window=window, size=image.scaled
            )
            for tile, (one, window) in enumerate(zip(found, image.windows, strict=True))
        ]
    )
    whole = placed.detections if len(image.windows) == 1 else steps.merge(placed, selection)
    detections = _to_image(whole, image)
    detections = detections.select(np.arange(min(len(detections), selection.max_detections)))
    if not keep_candidates:
        return ImageResult(detections, Detections.empty())
    return ImageResult(
        detections,
        _raw(candidates, image, selection),
        _to_image(placed.detections, image),
        hashlib.sha256(image.tiles.tobytes()).hexdigest(),
    )


def _raw(candidates: Candidates, image: TiledImage, selection: PostprocessConfig) -> Detections:
    parts = []
    for row, window in enumerate(image.windows):
        above = candidates.scores[row] > selection.score_threshold / 2
        part = Detections(candidates.boxes[row][above], candidates.scores[row][above], candidates.labels[row][above])
        parts.append(part.moved(right=float(window.left), down=float(window.top)))
    return _to_image(Detections.concatenate(parts), image)


def _to_image(detections: Detections, image: TiledImage) -> Detections:
    """Return detections of the scaled image in pixels of the image, cut to it."""
    down, right = image.size[0] / image.scaled[0], image.size[1] / image.scaled[1]
    boxes = (detections.boxes * np.array([right, down, right, down])).astype(np.float32)
    return Detections(boxes, detections.scores, detections.labels).clipped(image.size)
