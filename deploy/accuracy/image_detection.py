"""Detect objects in whole images: cut them into tiles, run an engine, merge the detections of the tiles."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from deploy.engines.engine import Engine
from deploy.scene.merge.merge import MergeSettings, TileDetections, merge
from ifkd.core.detections import Array, Candidates, Detections
from ifkd.core.postprocess import PostprocessConfig, postprocess
from ifkd.data.coco import LabeledImage
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.image_files import read_image
from ifkd.imagery.image_tiles import TiledImage, tile_image


@dataclass(frozen=True, slots=True)
class TilingConfig:
    """Conversion of images to tiles, and of candidates to detections."""

    scale: float
    """Factor from the pixels of an image to those of a tile."""
    tile_px: tuple[int, int]
    """(height, width)."""
    overlap_px: int
    """Overlap of neighboring tiles, pixels of the tiles."""
    postprocess: PostprocessConfig
    imagery: ImageryOptions = ImageryOptions()  # noqa: RUF009 - frozen
    """Conversion of image files to uint8 RGB."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageResult:
    """The detections of one image, in its own pixels; all fields but the first are empty unless requested."""

    detections: Detections
    candidates: Detections = field(default_factory=Detections.empty)
    """Candidates above half the score threshold."""
    tile_detections: Detections = field(default_factory=Detections.empty)
    """Detections of the tiles, before they are merged."""
    tiles_sha256: str = ""
    """Digest of the tiles that the engine received."""


def prepare_tiles(pixels: Array, tiling: TilingConfig) -> TiledImage:
    """Return uint8 pixels [height, width, 3] as the tiles that an engine receives."""
    return tile_image(pixels, scale=tiling.scale, tile_px=tiling.tile_px, overlap_px=tiling.overlap_px)


def merge_tiles(found: TileDetections, config: PostprocessConfig) -> Detections:
    """Return the detections of all tiles of an image as those of the image, by falling score."""
    return merge(found, MergeSettings(threshold=config.iou_threshold)).detections


@dataclass(frozen=True, slots=True)
class PipelineHooks:
    """The functions before and after inference; parity tests replace them to inject drift."""

    prepare: Callable[[Array, TilingConfig], TiledImage] = prepare_tiles
    """uint8 pixels [height, width, 3] -> tiles."""
    postprocess: Callable[..., list[Detections]] = postprocess
    """Candidates of a batch -> detections of each tile."""
    merge: Callable[[TileDetections, PostprocessConfig], Detections] = merge_tiles
    """Detections of several tiles of an image -> detections of the image."""


def first_tiles(images: Sequence[LabeledImage], tiling: TilingConfig, *, count: int) -> Array:
    """Return the first `count` tiles of images, or all where there are fewer. uint8 [n, 3, height, width]."""
    parts: list[Array] = []
    for image in images:
        if sum(map(len, parts)) >= count:
            break
        parts.append(prepare_tiles(read_image(image.path, imagery=tiling.imagery), tiling).tiles)
    return np.concatenate(parts)[:count] if parts else np.zeros((0, 3, *tiling.tile_px), np.uint8)


def detect_images(
    engine: Engine,
    images: Sequence[LabeledImage],
    tiling: TilingConfig,
    *,
    batch: int,
    keep_candidates: bool = False,
    hooks: PipelineHooks | None = None,
) -> Iterator[tuple[int, ImageResult]]:
    """Yield the id of each image and the objects that `engine` detects in it, in order.

    `batch` is the number of images that are read, and of tiles that are run, together; with `keep_candidates` all
    fields of the results are filled; `hooks` replace the functions around inference.

    Raises:
        DataError: An image cannot be read, or its size is not that of the annotation file.
        EngineError: Inference fails.
    """
    hooks = hooks or PipelineHooks()
    remaining = iter(images)
    while group := list(itertools.islice(remaining, batch)):
        pictures = (read_image(image.path, size=image.size, imagery=tiling.imagery) for image in group)
        tiled = [hooks.prepare(pixels, tiling) for pixels in pictures]
        tiles = np.concatenate([one.tiles for one in tiled])
        parts = [engine.infer(tiles[start : start + batch]) for start in range(0, len(tiles), batch)]
        candidates = Candidates.concatenate(parts)
        ends = itertools.accumulate(len(one.windows) for one in tiled)
        for image, one, end in zip(group, tiled, ends, strict=True):
            rows = slice(end - len(one.windows), end)
            yield image.id, _result(candidates.select(rows), one, tiling, hooks, keep_candidates=keep_candidates)


def combine_tiles(
    found: Sequence[Detections], image: TiledImage, config: PostprocessConfig, hooks: PipelineHooks
) -> tuple[TileDetections, Detections]:
    """Return the detections of an image's tiles in pixels of the scaled image, before and after merging."""
    parts = []
    for tile, (one, window) in enumerate(zip(found, image.windows, strict=True)):
        moved = one.translated(dx=float(window.left), dy=float(window.top))
        parts.append(TileDetections.of_tile(moved, tile, window=window, size=image.scaled_size))
    placed = TileDetections.concatenate(parts)
    return placed, placed.detections if len(image.windows) == 1 else hooks.merge(placed, config)


def _result(
    candidates: Candidates, image: TiledImage, tiling: TilingConfig, hooks: PipelineHooks, *, keep_candidates: bool
) -> ImageResult:
    config = tiling.postprocess
    found = hooks.postprocess(candidates, config, size=tiling.tile_px)
    placed, combined = combine_tiles(found, image, config, hooks)
    detections = image.to_image(combined)
    if not keep_candidates:
        return ImageResult(detections)
    likely, digest = _likely_candidates(candidates, image, config), hashlib.sha256(image.tiles.tobytes()).hexdigest()
    return ImageResult(detections, likely, image.to_image(placed.detections), digest)


def _likely_candidates(candidates: Candidates, image: TiledImage, config: PostprocessConfig) -> Detections:
    """Return the candidates above half the score threshold, in pixels of the image."""
    parts = []
    for part, window in zip(candidates.of_each_tile(), image.windows, strict=True):
        likely = part.select(part.scores > config.score_threshold / 2)
        parts.append(likely.translated(dx=float(window.left), dy=float(window.top)))
    return image.to_image(Detections.concatenate(parts))
