"""Time, operations and memory of a training step: plain, and distilled with different outputs cached.

    python benchmarks/training.py [--detector retinanet] [--student mobilenet_v2] [--px 256] [--batch 4] [--rounds 5]

The teacher is a ResNet-50, both pyramids have 256 channels, MobileSAM has random weights (its time does not depend on
them), and images are noise with rectangles. The learning rate is so small that the weights stay the same for all
variants, because the proposals of a two-stage detector depend on them. The variants run in turn in one process, so
that other load on the machine affects all of them. The time of a variant is the median over its rounds, and its ratio
to the plain step the median of the rounds' ratios. Memory is the peak of a separate process that runs two steps. Exit
code 1: a ratio exceeds its limit.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from deploy.bench.system_monitor import process_peak_mb
from ifkd.core.config import parse
from ifkd.data.splits import read_split
from ifkd.distillation import FrozenModels, TeacherOutputs, make_cache_spec
from ifkd.distillation.methods import NetworkPair, build_method
from ifkd.models import FasterRcnn, build_detector, normalize
from ifkd.recipe import IfkdOptions, Recipe
from ifkd.training.dataset import Batch, TileDataset, collate
from ifkd.training.optim import build_autocast, build_optimizer, prepare_detector
from ifkd.training.train_step import TrainStep, total_loss

CLASSES = 7
MAX_CACHED_RATIO = 1.35
"""Maximum ratio to the plain step with all outputs cached, for MobileNetV2."""
MAX_OVERHEAD = 0.15
"""Maximum fraction that the method itself adds to the plain step, for ResNet-18."""
ITERATION = 1000
"""Iteration of the measured step, after all warm-ups."""
PLAIN, METHOD, CACHED, SAM_CACHED, UNCACHED, TEACHER = (
    "plain",
    "IFKD, outputs in memory",
    "IFKD, all outputs cached",
    "IFKD, MobileSAM's cached",
    "IFKD, nothing cached",
    "the teacher's forward pass",
)
VARIANTS = (PLAIN, METHOD, CACHED, SAM_CACHED, UNCACHED, TEACHER)
MAX_UNCACHED_ROUNDS = 2
"""Rounds of the slowest variant."""


@dataclass(frozen=True, slots=True)
class StepConfig:
    """Networks and sizes to measure."""

    detector: str
    student: str
    px: int
    batch: int
    rounds: int
    device: str = "cpu"


def write_images(folder: Path, config: StepConfig) -> None:
    """Write one batch of labeled images as a COCO data set."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (folder / "images").mkdir()
    for index in range(config.batch):
        pixels = rng.integers(60, 160, (config.px, config.px, 3), dtype=np.uint8)
        for _ in range(8):
            width, height = rng.integers(16, 64, 2).tolist()
            x, y = (rng.integers(0, config.px - 64, 2)).tolist()
            pixels[y : y + height, x : x + width] = rng.integers(0, 255, 3, dtype=np.uint8)
            category = int(rng.integers(1, CLASSES + 1))
            box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": index, "category_id": category, **box})
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": config.px, "width": config.px})
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content), encoding="utf-8")


def make_recipe(folder: Path, config: StepConfig) -> Recipe:
    """Return the recipe of the paper's networks over the images."""
    training = {
        "batch_size": config.batch,
        "optimizer": {"learning_rate": 1e-12},
        "schedule": {"warmup_iters": 0},
    }

    def role(backbone: str) -> dict[str, object]:
        return {"detector": {"family": config.detector, "backbone": backbone}, "training": training}

    values = {
        "name": "benchmark",
        "data": {
            "root": str(folder),
            "train": "train.json",
            "validation": "train.json",
            "test": "train.json",
            "tile_px": config.px,
            "augmentation": {"flip": False, "quarter_turns": False},
        },
        "teacher": role("resnet50"),
        "student": role(config.student),
        "distillation": {
            "training": training,
            "method": {"name": "ifkd", "warmup_iters": 0, "ede": {"weights": "random", "cache": True}},
        },
    }
    return parse(values, Recipe, source="the benchmark's recipe")


class StepBenchmark:
    """One batch, a teacher, and the steps of all variants."""

    def __init__(self, folder: Path, config: StepConfig) -> None:
        write_images(folder, config)
        self.folder = folder
        self.recipe = make_recipe(folder, config)
        self.data = read_split(self.recipe.data, "train")
        tiles = TileDataset(self.data, self.recipe.data, seed=0)
        batch: Batch = collate([tiles[0, index] for index in range(config.batch)])
        self.device = torch.device(config.device)
        torch.manual_seed(0)
        self.teacher = build_detector(self.recipe.teacher.detector, CLASSES).eval().to(self.device)
        self.pixels, self.targets = batch.pixels.to(self.device), [one.to(self.device) for one in batch.targets]
        self.images = normalize(self.pixels).to(memory_format=torch.channels_last)

    def make_step(self, variant: str) -> Callable[[], None]:
        """Return a function that runs one step of a variant."""
        if variant == TEACHER:
            return self._run_teacher
        training = self.recipe.distillation.training
        torch.manual_seed(0)
        student = prepare_detector(build_detector(self.recipe.student.detector, CLASSES), training, self.device)
        method = None
        if variant != PLAIN:
            method = build_method(self.recipe.distillation.method, self._networks()).to(self.device)
        model = TrainStep(student, method, build_autocast(training, self.device)).train()
        optimizer = build_optimizer(training, student, method)
        teacher_outputs = self._teacher_outputs(variant)

        def run() -> None:
            torch.manual_seed(1)
            optimizer.zero_grad(set_to_none=True)
            outputs = teacher_outputs() if teacher_outputs is not None else None
            total_loss(model(self.images, self.targets, outputs, ITERATION)).backward()
            optimizer.step()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return run

    def _run_teacher(self) -> None:
        with torch.no_grad():
            self.teacher(self.images)

    def _teacher_outputs(self, variant: str) -> Callable[[], TeacherOutputs] | None:
        """Return the function that computes, reads or holds a variant's teacher outputs."""
        if variant == PLAIN:
            return None
        method = self.recipe.distillation.method
        assert isinstance(method, IfkdOptions)
        cache_spec = make_cache_spec(self.data, self.recipe.data, self.folder / "cache", rebuild=False)
        frozen_models = FrozenModels(
            self.teacher,
            method.ede,
            cache_spec=None if variant == UNCACHED else cache_spec,
            cache_teacher=variant in {CACHED, METHOD},
        ).to(self.device)
        if variant == METHOD:
            outputs = frozen_models(self.images, self.pixels)
            return lambda: outputs
        return lambda: frozen_models(self.images, self.pixels)

    def _networks(self) -> NetworkPair:
        student, teacher = self.recipe.student.detector, self.recipe.teacher.detector
        second_stage = self.teacher.classify if isinstance(self.teacher, FasterRcnn) else None
        return NetworkPair(student.channels, teacher.channels, student.levels, (0.3,) * 5, second_stage)


def measure_seconds(benchmark: StepBenchmark, rounds: int) -> dict[str, list[float]]:
    """Return the samples of each variant, which run in turn after one warm-up round."""
    steps = {variant: benchmark.make_step(variant) for variant in VARIANTS}
    samples: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for index in range(rounds + 1):
        for variant, step in steps.items():
            if variant == UNCACHED and index > MAX_UNCACHED_ROUNDS:
                continue
            started = time.perf_counter()
            step()
            if index:
                samples[variant].append(time.perf_counter() - started)
    return samples


def measure_gflop(benchmark: StepBenchmark, variant: str) -> float:
    """Return the floating-point operations of a step's convolutions and matrix products, in units of 10^9."""
    step = benchmark.make_step(variant)
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def measure_peak_mb(folder: str, config: StepConfig, variant: str) -> float:
    """Return the peak resident memory of this process after two steps, megabytes; call it in a new process."""
    with tempfile.TemporaryDirectory(dir=folder) as own_folder:
        step = StepBenchmark(Path(own_folder), config).make_step(variant)
        for _ in range(2):
            step()
    return process_peak_mb()


def run_benchmark(config: StepConfig, *, memory: bool) -> bool:
    """Measure a detector and a student, print the table, and return whether all ratios are within their limits."""
    size = f"{config.px} px, batch {config.batch}, {torch.get_num_threads()} threads"
    print(f"\n{config.detector}, {config.student}, {size}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        benchmark = StepBenchmark(Path(folder), config)
        samples = measure_seconds(benchmark, config.rounds)
        ratios = {variant: ratio_to_plain(samples, variant) for variant in VARIANTS}
        for variant in VARIANTS:
            median, low, high = statistics.median(samples[variant]), min(samples[variant]), max(samples[variant])
            line = f"{variant:32} {median:7.3f} s ({low:.3f} to {high:.3f}, n {len(samples[variant])})"
            line += f" {ratios[variant]:6.2f} x plain {measure_gflop(benchmark, variant):8.1f} GFLOP"
            if memory:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    line += f" {pool.apply(measure_peak_mb, (folder, config, variant)):7.0f} MB"
            print(line, flush=True)
    return check_limits(config, ratios)


def ratio_to_plain(samples: dict[str, list[float]], variant: str) -> float:
    """Return the median over the rounds of a variant's time divided by that of the plain step."""
    return statistics.median(one / plain for one, plain in zip(samples[variant], samples[PLAIN], strict=False))


def check_limits(config: StepConfig, ratios: dict[str, float]) -> bool:
    """Print the ratios of this student with their limits, and return whether all are within them."""
    if config.student == "mobilenet_v2":
        limits = [
            ("all outputs cached / plain", ratios[CACHED], MAX_CACHED_RATIO),
            ("MobileSAM's cached / plain", ratios[SAM_CACHED], MAX_CACHED_RATIO + ratios[TEACHER]),
        ]
    else:
        limits = [("overhead of the method / plain", ratios[METHOD] - 1, MAX_OVERHEAD)]
    for name, ratio, limit in limits:
        print(f"{name}: {ratio:.3f}, limit {limit:.3f}: {'passed' if ratio <= limit else 'FAILED'}", flush=True)
    return all(ratio <= limit for _, ratio, limit in limits)


def main() -> int:
    """Run the benchmarks that the arguments select."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=["retinanet", "faster_rcnn"], action="append")
    parser.add_argument("--student", choices=["mobilenet_v2", "resnet18"], action="append")
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure peak memory, in one process per variant")
    arguments = parser.parse_args()
    passed = [
        run_benchmark(
            StepConfig(detector, student, arguments.px, arguments.batch, arguments.rounds), memory=arguments.memory
        )
        for detector in arguments.detector or ["retinanet", "faster_rcnn"]
        for student in arguments.student or ["mobilenet_v2", "resnet18"]
    ]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
