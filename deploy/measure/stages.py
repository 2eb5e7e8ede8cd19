"""Where the time of an image goes: each stage from its file to its detections, one image after the other."""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from deploy.engine import Engine
from deploy.measure.images import Framing, Steps
from deploy.scenes.merge import TileDetections
from export.manifest import Precision
from ifkd.config import Schema
from ifkd.data.coco import LabelledImage
from ifkd.data.imagery import read_image

StageName = Literal["read", "preprocess", "infer", "decode", "merge", "write"]
STAGES: tuple[StageName, ...] = ("read", "preprocess", "infer", "decode", "merge", "write")
MOST_IMAGES = 24
TRANSFERS = "upload and download are part of infer; on a CPU there are none"


class StageTime(Schema):
    """One stage, milliseconds per image."""

    stage: StageName
    p50_ms: float
    p95_ms: float
    share: float
    """Of the time of all stages."""
    samples_ns: list[int]
    """Every image, in order."""


class StageRun(Schema):
    """The stages of one engine."""

    backend: str
    precision: Precision
    images: int
    tiles: int
    batch: Literal[1] = 1
    stages: tuple[StageTime, ...]
    transfers: str = TRANSFERS


def measure_stages(
    engine: Engine, images: Sequence[LabelledImage], framing: Framing, *, most: int = MOST_IMAGES
) -> StageRun:
    """Return the stages of the first `most` images, after one that warms up.

    Raises:
        DataError: An image cannot be read.
        EngineError: The engine fails.
    """
    chosen = list(images[:most])
    samples: dict[StageName, list[int]] = {stage: [] for stage in STAGES}
    tiles = 0
    with tempfile.TemporaryDirectory(prefix="ifkd-stages-") as folder:
        for index, image in enumerate([chosen[0], *chosen]):
            marks, count = _one(engine, image, framing, Path(folder) / "answer.json")
            if index:
                tiles += count
                for stage, duration in zip(STAGES, np.diff(marks).tolist(), strict=True):
                    samples[stage].append(int(duration))
    everything = sum(map(sum, samples.values()))
    return StageRun(
        backend=engine.info.backend,
        precision=engine.info.precision,
        images=len(chosen),
        tiles=tiles,
        stages=tuple(
            StageTime(
                stage=stage,
                p50_ms=float(np.percentile(values, 50)) / 1e6,
                p95_ms=float(np.percentile(values, 95)) / 1e6,
                share=sum(values) / everything,
                samples_ns=values,
            )
            for stage, values in samples.items()
        ),
    )


def _one(engine: Engine, image: LabelledImage, framing: Framing, path: Path) -> tuple[list[int], int]:
    """Return the moments between the stages of an image, nanoseconds, and its tiles."""
    steps = Steps()
    marks = [time.perf_counter_ns()]
    pixels = read_image(image.path, size=image.size, imagery=framing.imagery)
    marks.append(time.perf_counter_ns())
    tiled = steps.prepare(pixels, framing)
    marks.append(time.perf_counter_ns())
    parts = [engine.infer(tiled.tiles[index : index + 1]) for index in range(len(tiled.tiles))]
    marks.append(time.perf_counter_ns())
    found = [steps.select(part, framing.selection, size=framing.tile_px)[0] for part in parts]
    marks.append(time.perf_counter_ns())
    placed = [
        TileDetections.of_tile(
            one.moved(right=float(window.left), down=float(window.top)), tile, window=window, size=tiled.scaled
        )
        for tile, (one, window) in enumerate(zip(found, tiled.windows, strict=True))
    ]
    whole = TileDetections.concatenate(placed)
    detections = whole.detections if len(placed) == 1 else steps.merge(whole, framing.selection)
    marks.append(time.perf_counter_ns())
    path.write_text(
        json.dumps(
            [
                {"category": int(label), "score": float(score), "bbox": box.tolist()}
                for box, score, label in zip(detections.boxes, detections.scores, detections.labels, strict=True)
            ]
        ),
        encoding="utf-8",
    )
    marks.append(time.perf_counter_ns())
    return marks, len(tiled.tiles)
