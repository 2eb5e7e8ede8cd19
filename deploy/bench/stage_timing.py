"""Where the time of an image goes: each stage from its file to its detections, one image after the other.

An engine that computes elsewhere than where the tiles are tells what it copied (`Engine.parts`): upload and download
are its figures, infer is the rest of the call, so that the stages add up to the whole.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from deploy.accuracy.image_detection import PipelineHooks, TilingConfig
from deploy.engines.engine import Engine
from deploy.scene.merge.merge import TileDetections
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.core.detections import Detections
from ifkd.data.coco import LabeledImage
from ifkd.imagery.image_files import read_image

StageName = Literal["read", "preprocess", "upload", "infer", "download", "decode", "merge", "write"]
STAGES: tuple[StageName, ...] = get_args(StageName)
MOST_IMAGES = 24
COPIED = "upload and download as the engine tells them; infer is the rest of its call"
NOT_COPIED = "tiles are computed in the memory they lie in, so nothing is uploaded or downloaded"


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
    """Those that the engine has, in order."""
    device: str = ""
    """Where the engine computes; the other stages are the CPU's."""
    transfers: str = NOT_COPIED


def measure_stages(
    engine: Engine, images: Sequence[LabeledImage], framing: TilingConfig, *, most: int = MOST_IMAGES
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
            durations, count = _one(engine, image, framing, Path(folder) / "answer.json")
            if index:
                tiles += count
                for stage, duration in durations.items():
                    samples[stage].append(duration)
    everything = sum(map(sum, samples.values()))
    return StageRun(
        backend=engine.info.backend,
        precision=engine.info.precision,
        images=len(chosen),
        tiles=tiles,
        device=engine.info.device,
        transfers=COPIED if samples["upload"] else NOT_COPIED,
        stages=tuple(
            StageTime(
                stage=stage,
                p50_ms=float(np.percentile(values, 50)) / 1e6,
                p95_ms=float(np.percentile(values, 95)) / 1e6,
                share=sum(values) / everything,
                samples_ns=values,
            )
            for stage, values in samples.items()
            if values
        ),
    )


def _one(engine: Engine, image: LabeledImage, framing: TilingConfig, path: Path) -> tuple[dict[StageName, int], int]:
    """Return the duration of each stage of an image, nanoseconds, and its tiles."""
    steps = PipelineHooks()
    marks = [time.perf_counter_ns()]
    pixels = read_image(image.path, size=image.size, imagery=framing.imagery)
    marks.append(time.perf_counter_ns())
    tiled = steps.prepare(pixels, framing)
    marks.append(time.perf_counter_ns())
    parts, copies = [], []
    for index in range(len(tiled.tiles)):
        parts.append(engine.infer(tiled.tiles[index : index + 1]))
        copies.append(engine.parts)
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
    _write(detections, path)
    marks.append(time.perf_counter_ns())
    read, preprocess, infer, decode, merge, write = (int(value) for value in np.diff(marks))
    durations: dict[StageName, int] = {"read": read, "preprocess": preprocess, "infer": infer}
    if told := [one for one in copies if one is not None]:
        upload = round(1e6 * sum(one.upload_ms for one in told))
        download = round(1e6 * sum(one.download_ms for one in told))
        durations |= {"upload": upload, "download": download, "infer": max(0, infer - upload - download)}
    return durations | {"decode": decode, "merge": merge, "write": write}, len(tiled.tiles)


def _write(detections: Detections, path: Path) -> None:
    rows = zip(detections.boxes, detections.scores, detections.labels, strict=True)
    answer = [{"category": int(label), "score": float(score), "bbox": box.tolist()} for box, score, label in rows]
    path.write_text(json.dumps(answer), encoding="utf-8")
