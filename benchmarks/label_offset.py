"""Offset of labels from the bright extents of objects: python benchmarks/label_offset.py LABELS.json [MARGIN].

An extent is the largest bright region in a box and a margin around it, in raw pixels. It must not touch the edge of
this window, and must cover 60 % of the box's sides. The rule is symmetric: without an offset the mean of centers is 0.
"""

import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

from ifkd.core.detections import Array
from ifkd.data.coco import read_coco
from ifkd.imagery.image_files import read_image

MARGIN, LEAST_COVERED = 0.3, 0.6


def difference(gray: Array, box: Array, margin: float) -> Array | None:
    """Return the bright extent x1, y1, x2, y2 minus the box, pixels; None without a clear extent."""
    sides = box[2:] - box[:2]
    low, high = np.floor(box[:2] - margin * sides).astype(int), np.ceil(box[2:] + margin * sides).astype(int)
    if low.min() < 0 or (high > gray.shape[::-1]).any():
        return None
    window = gray[low[1] : high[1], low[0] : high[0]]
    regions, count = ndimage.label(window > otsu(window))
    if not count:
        return None
    rows, columns = ndimage.find_objects(regions)[int(np.argmax(np.bincount(regions.ravel())[1:]))]
    extent = np.array([columns.start, rows.start, columns.stop, rows.stop])
    touches = (extent[:2] == 0).any() or (extent[2:] == window.shape[::-1]).any()
    if touches or ((extent[2:] - extent[:2]) < LEAST_COVERED * sides).any():
        return None
    return np.asarray(extent + np.tile(low, 2) - box)


def otsu(values: Array) -> float:
    """Return the threshold (Otsu 1979) with the largest variance between both classes."""
    counts, levels = np.bincount(values.ravel(), minlength=256).astype(float), np.arange(256)
    below, moment = counts.cumsum() / counts.sum(), (counts * levels).cumsum() / counts.sum()
    between = (moment[-1] * below - moment) ** 2 / np.maximum(below * (1 - below), 1e-12)
    return float(between.argmax())


def main() -> None:
    """Print the mean and its standard error of the difference of each edge and of the centers."""
    found, margin = [], float(sys.argv[2]) if len(sys.argv) > 2 else MARGIN
    for image in read_coco(Path(sys.argv[1])).images:
        gray = read_image(image.path).mean(axis=2).astype(np.uint8)
        found += [difference(gray, box, margin) for box in image.boxes[~image.ignore].astype(float)]
    edges = np.array([one for one in found if one is not None])
    values = np.hstack([edges, (edges[:, :2] + edges[:, 2:]) / 2])
    print(f"{len(edges)} of {len(found)} objects, extent minus box, px")
    for name, column in zip(("x1", "y1", "x2", "y2", "center x", "center y"), values.T, strict=True):
        print(f"{name}: {column.mean():+.2f}, standard error {column.std(ddof=1) / len(edges) ** 0.5:.2f}")


if __name__ == "__main__":
    main()
