"""A data set of colored squares on gray, engines that detect them, and engines whose output drifts."""

import json

import numpy as np
from PIL import Image

from deploy.engines.engine import Engine, EngineInfo, FakeEngine
from ifkd.core.detections import Candidates, Detections

TILE = 96
CLASSES = ("tanker", "cargo", "tug")
COLORS = np.array([[200, 40, 90], [60, 180, 20], [30, 70, 220]], np.int64)
GRAY = 128


def write_dataset(folder, *, images=6, size=(80, 96), seed=0, objects=4, classes=CLASSES):
    """Write a COCO json with its images, and return its path."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 10 * (label + 1), "name": name} for label, name in enumerate(classes)]
    for index in range(images):
        pixels = np.full((*size, 3), GRAY, np.uint8)
        cells = random.permutation((size[0] // 20) * (size[1] // 20))[:objects]
        for cell in cells:
            row, column = divmod(int(cell), size[1] // 20)
            label, side = int(random.integers(3)), int(random.integers(9, 15))
            top, left = row * 20 + 2, column * 20 + 3
            pixels[top : top + side, left : left + side] = COLORS[label]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": index + 1,
                    "category_id": 10 * (label + 1),
                    "bbox": [left, top, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
        name = f"{index}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        content["images"].append({"id": index + 1, "file_name": name, "height": size[0], "width": size[1]})
    path = folder / "test.json"
    path.write_text(json.dumps(content))
    return path


def find_squares(tile):
    """Return the squares of a tile [3, h, w]; scores depend on size and place, so that all differ."""
    pixels = tile.transpose(1, 2, 0).astype(np.int64)
    found = []
    for label, color in enumerate(COLORS):
        mask = np.abs(pixels - color).sum(axis=2) < 60
        while mask.any():
            rows, columns = np.nonzero(mask)
            top, left = int(rows[0]), int(columns[0])
            bottom, right = top, left
            while bottom < mask.shape[0] and mask[bottom, left]:
                bottom += 1
            while right < mask.shape[1] and mask[top, right]:
                right += 1
            mask[top:bottom, left:right] = False
            score = 0.5 + 0.4 * ((bottom - top) * 31 + top * 7 + left * 3) % 97 / 97
            found.append(((left, top, right, bottom), score, label))
    if not found:
        return Detections.empty()
    boxes, scores, labels = zip(*found, strict=True)
    return Detections(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels, np.int64))


def engine_info(**changes):
    facts = {
        "backend": "fake",
        "backend_version": "1",
        "device": "CPU",
        "precision": "fp32",
        "file": "model.onnx",
        "sha256": "0" * 64,
        "tile_px": (TILE, TILE),
        "max_batch": 4,
        "candidates": 64,
        "classes": CLASSES,
    }
    return EngineInfo(**{**facts, **changes})


def make_engine(find=find_squares, **changes):
    return FakeEngine(engine_info(**changes), find)


class DriftingEngine(Engine):
    """An engine whose tiles and candidates are changed by functions."""

    def __init__(self, inner, change=lambda candidates: candidates, *, change_tiles=lambda tiles: tiles):
        self.info = inner.info
        self.inner, self.change, self.change_tiles = inner, change, change_tiles

    def _run(self, tiles):
        found = self.inner.infer(np.ascontiguousarray(self.change_tiles(tiles)))
        oriented = None if found.oriented is None else found.oriented.copy()
        return self.change(Candidates(found.boxes.copy(), found.scores.copy(), found.labels.copy(), oriented))

    def close(self):
        self.inner.close()
