"""Seconds, operations and memory of a training step: plain, and distilled with more and more of it computed once.

    python benchmarks/training.py [--detector retinanet] [--student mobilenet_v2] [--px 256] [--batch 4] [--rounds 5]

The teacher is a ResNet-50, both pyramids are 256 wide, MobileSAM's network has random weights (its time does not
depend on them), images are noise with rectangles; the rate is so small that every variant works on the same weights, as
the regions of a two-stage detector depend on them. The variants take turns within one process, so that whatever else
the machine does meets all of them; a variant's seconds are the median of its turns, and its ratio to the plain step is
the median of the turns' ratios. Memory is the peak of a process of its own that takes two steps. Exit code 1 when a
ratio misses its goal.
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
from ifkd import recipe
from ifkd.core.config import parse
from ifkd.data.splits import read_split
from ifkd.distillation import FrozenModels, TeacherOutputs, make_cache_spec
from ifkd.distillation.methods import NetworkPair, build_method
from ifkd.models import build_detector, normalize
from ifkd.models.faster_rcnn import FasterRcnn
from ifkd.training.dataset import Batch, TileDataset, collate
from ifkd.training.optim import build_autocast, build_optimizer, place
from ifkd.training.train_step import TrainStep

CLASSES = 7
GOAL_ALL_KEPT = 1.35
"""Largest ratio to the plain step with every answer kept, for MobileNetV2."""
GOAL_OVERHEAD = 0.15
"""Largest share of a plain ResNet-18 step that the method itself may add."""
PLAIN, METHOD, ALL, SAM, LIVE, TEACHER = (
    "plain",
    "IFKD alone, answers in memory",
    "IFKD, all answers kept",
    "IFKD, MobileSAM's kept",
    "IFKD, nothing kept",
    "the teacher's forward alone",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured."""

    detector: str
    student: str
    px: int
    batch: int
    rounds: int


def write_images(folder: Path, setting: Setting) -> None:
    """Write one batch of labeled images as a COCO data set."""
    random = np.random.default_rng(0)
    images, annotations = [], []
    (folder / "images").mkdir()
    for index in range(setting.batch):
        pixels = random.integers(60, 160, (setting.px, setting.px, 3), dtype=np.uint8)
        for _ in range(8):
            width, height = random.integers(16, 64, 2).tolist()
            x, y = (random.integers(0, setting.px - 64, 2)).tolist()
            pixels[y : y + height, x : x + width] = random.integers(0, 255, 3, dtype=np.uint8)
            category = int(random.integers(1, CLASSES + 1))
            box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": index, "category_id": category, **box})
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": setting.px, "width": setting.px})
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content), encoding="utf-8")


def read_recipe(folder: Path, setting: Setting) -> recipe.Recipe:
    """Return the recipe of the paper's networks over the images."""
    training = {
        "batch_size": setting.batch,
        "optimizer": {"learning_rate": 1e-12},
        "schedule": {"warmup_iters": 0},
    }

    def role(backbone: str) -> dict[str, object]:
        return {"detector": {"family": setting.detector, "backbone": backbone}, "training": training}

    values = {
        "name": "benchmark",
        "data": {
            "root": str(folder),
            "train": "train.json",
            "validation": "train.json",
            "test": "train.json",
            "tile_px": setting.px,
            "augmentation": {"flip": False, "quarter_turns": False},
        },
        "teacher": role("resnet50"),
        "student": role(setting.student),
        "distillation": {
            "training": training,
            "method": {"name": "ifkd", "warmup_iters": 0, "ede": {"weights": "random", "cache": True}},
        },
    }
    return parse(values, recipe.Recipe, source="the benchmark's recipe")


class World:
    """One batch, a teacher, and the steps that can be taken with them."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        write_images(folder, setting)
        self.folder = folder
        self.settings = read_recipe(folder, setting)
        self.data = read_split(self.settings.data, "train")
        tiles = TileDataset(self.data, self.settings.data, seed=0)
        self.batch: Batch = collate([tiles[0, index] for index in range(setting.batch)])
        torch.manual_seed(0)
        self.teacher = build_detector(self.settings.teacher.detector, CLASSES).eval()
        self.images = normalize(self.batch.pixels).to(memory_format=torch.channels_last)

    def step_of(self, variant: str) -> Callable[[], None]:
        """Return a function that takes one step of a variant."""
        if variant == TEACHER:
            return self._teach
        training = self.settings.distillation.training
        torch.manual_seed(0)
        student = place(build_detector(self.settings.student.detector, CLASSES), training, torch.device("cpu"))
        method = build_method(self.settings.distillation.method, self._networks()) if variant != PLAIN else None
        step = TrainStep(student, method, build_autocast(training, torch.device("cpu"))).train()
        optimizer = build_optimizer(training, student, method)
        taught = self._taught_by(variant)

        def take() -> None:
            torch.manual_seed(1)
            optimizer.zero_grad(set_to_none=True)
            terms = step(self.images, self.batch.targets, taught() if taught is not None else None, 1000)
            torch.stack([term.weight * term.value for term in terms.values()]).sum().backward()
            optimizer.step()

        return take

    def _teach(self) -> None:
        with torch.no_grad():
            self.teacher(self.images)

    def _taught_by(self, variant: str) -> Callable[[], TeacherOutputs] | None:
        if variant == PLAIN:
            return None
        method = self.settings.distillation.method
        assert isinstance(method, recipe.IfkdOptions)
        cache_spec = make_cache_spec(self.data, self.settings.data, self.folder / "cache", rebuild=False)
        frozen_models = FrozenModels(
            self.teacher,
            method.ede,
            cache_spec=None if variant == LIVE else cache_spec,
            cache_teacher=variant in {ALL, METHOD},
        )
        if variant == METHOD:
            outputs = frozen_models(self.images, self.batch.pixels)
            return lambda: outputs
        return lambda: frozen_models(self.images, self.batch.pixels)

    def _networks(self) -> NetworkPair:
        student, teacher = self.settings.student.detector, self.settings.teacher.detector
        second = self.teacher.classify if isinstance(self.teacher, FasterRcnn) else None
        return NetworkPair(student.channels, teacher.channels, student.levels, (0.3,) * 5, second)


def seconds_of(world: World, variants: list[str], rounds: int) -> dict[str, list[float]]:
    """Return each variant's samples, taken in turns after one step of warm-up; the slowest one takes two at most."""
    steps = {variant: world.step_of(variant) for variant in variants}
    samples: dict[str, list[float]] = {variant: [] for variant in variants}
    for turn in range(rounds + 1):
        for variant, step in steps.items():
            if variant == LIVE and turn > 2:
                continue
            started = time.perf_counter()
            step()
            if turn:
                samples[variant].append(time.perf_counter() - started)
    return samples


def operations_of(world: World, variant: str) -> float:
    """Return the floating-point operations of a step's convolutions and products, in units of 10^9."""
    step = world.step_of(variant)
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def peak_mb(folder: str, setting: Setting, variant: str) -> float:
    """Return the peak resident memory of a process that takes two steps, megabytes; call it in a fresh one."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        step = World(Path(own), setting).step_of(variant)
        for _ in range(2):
            step()
    return process_peak_mb()


def measure(setting: Setting, *, memory: bool) -> bool:
    """Measure a detector and a student, print the table, and return whether the goals are met."""
    print(
        f"\n{setting.detector}, {setting.student}, {setting.px} px, batch {setting.batch}, "
        f"{torch.get_num_threads()} threads",
        flush=True,
    )
    variants = [PLAIN, METHOD, ALL, SAM, LIVE, TEACHER]
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), setting)
        samples = seconds_of(world, variants, setting.rounds)
        ratios = {variant: ratio_to_plain(samples, variant) for variant in variants}
        for variant in variants:
            middle, low, high = statistics.median(samples[variant]), min(samples[variant]), max(samples[variant])
            line = f"{variant:32} {middle:7.3f} s ({low:.3f} to {high:.3f}, n {len(samples[variant])})"
            line += f" {ratios[variant]:6.2f} x plain {operations_of(world, variant):8.1f} GFLOP"
            if memory:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    line += f" {pool.apply(peak_mb, (folder, setting, variant)):7.0f} MB"
            print(line, flush=True)
    return judge(setting, ratios)


def ratio_to_plain(samples: dict[str, list[float]], variant: str) -> float:
    """Return the median over the turns of a variant's time by the plain step's in the same turn."""
    return statistics.median(one / plain for one, plain in zip(samples[variant], samples[PLAIN], strict=False))


def judge(setting: Setting, ratios: dict[str, float]) -> bool:
    """Print each goal that this student has, with its figure, and return whether all are met."""
    if setting.student == "mobilenet_v2":
        with_teacher = GOAL_ALL_KEPT + ratios[TEACHER]
        goals = [
            ("all kept / plain", ratios[ALL], GOAL_ALL_KEPT),
            ("MobileSAM's kept / plain", ratios[SAM], with_teacher),
        ]
    else:
        goals = [("what the method adds / plain", ratios[METHOD] - 1, GOAL_OVERHEAD)]
    for name, figure, limit in goals:
        print(f"{name}: {figure:.3f}, goal {limit:.3f}: {'met' if figure <= limit else 'MISSED'}", flush=True)
    return all(figure <= limit for _, figure, limit in goals)


def main() -> int:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=["retinanet", "faster_rcnn"], action="append")
    parser.add_argument("--student", choices=["mobilenet_v2", "resnet18"], action="append")
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="also the peak memory, in a process for each variant")
    options = parser.parse_args()
    met = [
        measure(Setting(detector, student, options.px, options.batch, options.rounds), memory=options.memory)
        for detector in options.detector or ["retinanet", "faster_rcnn"]
        for student in options.student or ["mobilenet_v2", "resnet18"]
    ]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
