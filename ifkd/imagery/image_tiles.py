"""Scale an image, cut it into tiles, and map detections back to the image."""

from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array, Detections
from ifkd.core.tiling import TileGrid, Window
from ifkd.imagery.image_files import pad, resize


@dataclass(frozen=True, slots=True, eq=False)
class TiledImage:
    """An image as tiles of one size."""

    size: tuple[int, int]
    """(height, width) of the image."""
    scaled_size: tuple[int, int]
    windows: tuple[Window, ...]
    """Tiles in the scaled image; the part of a window outside of the image is padding."""
    tiles: Array
    """uint8 [windows, 3, height, width]."""

    def to_image(self, detections: Detections) -> Detections:
        """Return detections of the scaled image in pixels of the image, clipped to it."""
        return detections.resized(self.scaled_size, self.size).clipped(self.size)


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the (height, width) of an image after scaling, rounded to whole pixels."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def tile_image(pixels: Array, *, scale: float, tile_px: tuple[int, int], overlap_px: int) -> TiledImage:
    """Return uint8 pixels [height, width, 3], multiplied in size by `scale`, as tiles of `tile_px` (height, width).

    There is a single tile where the scaled image fits it, else a grid; `overlap_px` is in pixels of the tiles.
    """
    size = (pixels.shape[0], pixels.shape[1])
    scaled = scaled_size(size, scale)
    pixels = resize(pixels, scaled)
    windows = tuple(TileGrid(scaled, tile_px, overlap_px))
    tiles = [pad(pixels[w.top : w.bottom, w.left : w.right], tile_px).transpose(2, 0, 1) for w in windows]
    return TiledImage(size, scaled, windows, np.ascontiguousarray(np.stack(tiles)))
