"""Time each stage from an image file to a file of its detections, one image after the other.

For an engine on a device with its own memory, upload and download are the engine's figures (`Engine.last_timing`), and
infer is the rest of the call, so that the stages add up to the total.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from deploy.accuracy.image_detection import PipelineHooks, TilingConfig, combine_tiles
from deploy.engines.engine import Engine
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.core.detections import Detections
from ifkd.data.coco import LabeledImage
from ifkd.imagery.image_files import read_image

TimedStage = Literal["read", "preprocess", "upload", "infer", "download", "postprocess", "merge", "write"]
STAGES: tuple[TimedStage, ...] = get_args(TimedStage)
MAX_IMAGES = 24
COPIED = "upload and download as the engine reports them; infer is the rest of its call"
NOT_COPIED = "the engine reports no upload or download"


class StageTime(Schema):
    """Time of one stage per image, milliseconds."""

    stage: TimedStage
    p50_ms: float
    p95_ms: float
    fraction: float
    """Fraction of the time of all stages."""
    samples_ns: list[int]
    """Durations of all images, in order."""


class StageProfile(Schema):
    """Time of the stages with one engine."""

    backend: str
    precision: Precision
    images: int
    tiles: int
    batch: Literal[1] = 1
    stages: tuple[StageTime, ...]
    """The stages of this engine, in order."""
    device: str = ""
    """Device of inference; the other stages run on the CPU."""
    transfers: str = NOT_COPIED


def profile_stages(
    engine: Engine, images: Sequence[LabeledImage], tiling: TilingConfig, *, max_images: int = MAX_IMAGES
) -> StageProfile:
    """Time the stages of the first images, after a warm-up with the first.

    Raises:
        DataError: An image cannot be read.
        EngineError: Inference fails.
    """
    images = list(images[:max_images])
    samples: dict[TimedStage, list[int]] = {stage: [] for stage in STAGES}
    tiles = 0
    with tempfile.TemporaryDirectory(prefix="ifkd-stages-") as folder:
        for index, image in enumerate([images[0], *images]):
            durations, count = _time_image(engine, image, tiling, Path(folder) / "detections.json")
            if index:
                tiles += count
                for stage, duration in durations.items():
                    samples[stage].append(duration)
    total = sum(map(sum, samples.values()))
    stages = [_stage_time(stage, values, total) for stage, values in samples.items() if values]
    return StageProfile(
        backend=engine.info.backend,
        precision=engine.info.precision,
        images=len(images),
        tiles=tiles,
        device=engine.info.device,
        transfers=COPIED if samples["upload"] else NOT_COPIED,
        stages=tuple(stages),
    )


def _stage_time(stage: TimedStage, values: list[int], total: int) -> StageTime:
    p50, p95 = (float(value) / 1e6 for value in np.percentile(values, [50, 95]))
    return StageTime(stage=stage, p50_ms=p50, p95_ms=p95, fraction=sum(values) / total, samples_ns=values)


def _time_image(
    engine: Engine, image: LabeledImage, tiling: TilingConfig, path: Path
) -> tuple[dict[TimedStage, int], int]:
    """Return the duration of each stage of an image, nanoseconds, and the number of its tiles."""
    hooks = PipelineHooks()
    marks = [time.perf_counter_ns()]
    pixels = read_image(image.path, size=image.size, imagery=tiling.imagery)
    marks.append(time.perf_counter_ns())
    tiled = hooks.prepare(pixels, tiling)
    marks.append(time.perf_counter_ns())
    candidates, timings = [], []
    for index in range(len(tiled.tiles)):
        candidates.append(engine.infer(tiled.tiles[index : index + 1]))
        timings.append(engine.last_timing)
    marks.append(time.perf_counter_ns())
    found = [hooks.postprocess(one, tiling.postprocess, size=tiling.tile_px)[0] for one in candidates]
    marks.append(time.perf_counter_ns())
    _, detections = combine_tiles(found, tiled, tiling.postprocess, hooks)
    marks.append(time.perf_counter_ns())
    _write(detections, path)
    marks.append(time.perf_counter_ns())
    read, preprocess, infer, postprocess, merge, write = (int(value) for value in np.diff(marks))
    durations: dict[TimedStage, int] = {"read": read, "preprocess": preprocess, "infer": infer}
    if copies := [one for one in timings if one is not None]:
        upload = round(1e6 * sum(one.upload_ms for one in copies))
        download = round(1e6 * sum(one.download_ms for one in copies))
        durations |= {"upload": upload, "download": download, "infer": max(0, infer - upload - download)}
    return durations | {"postprocess": postprocess, "merge": merge, "write": write}, len(tiled.tiles)


def _write(detections: Detections, path: Path) -> None:
    rows = zip(detections.boxes, detections.scores, detections.labels, strict=True)
    content = [{"category": int(label), "score": float(score), "bbox": box.tolist()} for box, score, label in rows]
    path.write_text(json.dumps(content), encoding="utf-8")
