"""Common fixtures: a tiny data set, a tiny recipe, and the folder of real imagery."""

import fcntl
import gc
import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import hypothesis
import numpy as np
import pytest
from jaxtyping import _import_hook
from PIL import Image

pytest_plugins = ["browser_fixtures", "bundle_fixtures", "cli_fixtures", "figure_fixtures", "tensorrt_fixtures"]

# Tiny tensors are slower with several threads, in particular on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# glibc would return freed memory to the system and get it back page by page, for a fifth of the time of inferences and
# trainings. It keeps it in all processes that start from here, also those of pytest-xdist.
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "1000000000")
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "33554432")
os.environ.setdefault("MALLOC_TOP_PAD_", "33554432")

# Python would look for garbage hundreds of times per export, for a tenth of its time; here, each file of tests does it.
gc.set_threshold(20_000, 20, 50)


def _compiled(self: SourceFileLoader, fullname: str) -> CodeType:
    path = self.get_filename(fullname)
    code: CodeType = self.source_to_code(self.get_data(path), path)
    return code


# While jaxtyping imports a module with checks, it renames the bytecode files of all modules: each process would compile
# torch and what torch imports from source, for 7 seconds. Here, only the modules with checks are compiled each time.
_import_hook._JaxtypingLoader.exec_module = SourceFileLoader.exec_module
_import_hook._JaxtypingLoader.get_code = _compiled

REPOSITORY = Path(__file__).resolve().parents[1]

# Fixed examples make failures reproducible.
hypothesis.settings.register_profile(
    "ifkd",
    deadline=None,
    derandomize=True,
    max_examples=20,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("ifkd")


LONG_FILES = {
    "test_both_detectors.py",
    "test_clusters.py",
    "test_data_parallel.py",
    "test_end_to_end.py",
    "test_faster_rcnn_candidates.py",
    "test_quantize.py",
    "test_ray_pool.py",
    "test_topk.py",
    "test_study.py",
    "test_trainer.py",
    "test_tutorial.py",
    "test_write_figures.py",
}
"""Files that take longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the long files first: a process of pytest-xdist runs entire files, and the last one ends the run."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(autouse=True, scope="module")
def _little_to_collect() -> None:
    """Collect garbage, and exempt what earlier files left, as timings collect garbage before each of their turns."""
    gc.collect()
    gc.freeze()


CLASSES = {3: "barge", 7: "ferry", 9: "tug"}
"""Category id -> name; the ids are not consecutive, as in real files."""
COLORS = {3: (230, 60, 40), 7: (40, 220, 60), 9: (50, 70, 235)}
EXTENTS = {3: (26, 12), 7: (12, 26), 9: (16, 16)}
"""Width and height of the rectangle of each class, pixels."""


def write_tiny_data_set(
    folder: Path, name: str = "train", *, images: int = 8, size: tuple[int, int] = (64, 64), seed: int = 0
) -> Path:
    """Write a COCO data set of colored rectangles on noise and return its file; three images have the same place."""
    random = np.random.default_rng(seed)
    height, width = size
    (folder / "images").mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": identity, "name": label} for identity, label in CLASSES.items()],
    }
    for index in range(images):
        pixels = random.integers(80, 140, (height, width, 3), dtype=np.uint8)
        file_name = f"{name}_{index:03d}.png"
        image = {"id": index + 100, "file_name": file_name, "height": height, "width": width}
        content["images"].append({**image, "scene": f"{name} {index // 3}"})
        for column in range(2):
            category = int(random.choice(list(CLASSES)))
            w, h = EXTENTS[category]
            left = column * width // 2 + int(random.integers(0, width // 2 - w + 1))
            top = int(random.integers(0, height - h + 1))
            pixels[top : top + h, left : left + w] = COLORS[category]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [left, top, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(folder / "images" / file_name)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def tiny_recipe(root: Path) -> dict[str, Any]:
    """Return a recipe for `train.json` and `val.json` in `root` that trains in two seconds."""
    training = {
        "epochs": 2,
        "batch_size": 4,
        "optimizer": {"name": "adamw", "learning_rate": 0.001, "base_batch_size": 4},
        "schedule": {"name": "cosine", "warmup_iters": 0},
        "log_every": 1,
    }
    return {
        "name": "tiny",
        "seed": 5,
        "data": {"root": str(root), "train": "train.json", "validation": "val.json", "test": "val.json", "tile_px": 64},
        "teacher": {"detector": {"backbone": "resnet18", "channels": 16}, "training": deepcopy(training)},
        "student": {"detector": {"backbone": "mobilenet_v2", "channels": 16}, "training": deepcopy(training)},
        "distillation": {
            "training": deepcopy(training),
            "min_teacher_map": 0.0,
            "method": {
                "name": "ifkd",
                "warmup_iters": 0,
                "ede": {"weights": "random", "input_px": "native"},
                "fdr": {"filter": "grid", "grid": [4, 3]},
            },
        },
        "export": {"candidates_per_level": 50, "overlap_px": 16},
    }


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Function that makes a folder once for all processes of a test run: (name, make) -> folder; read-only."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    shared = Path(os.environ.get("IFKD_SHARED_FIXTURES", shared))  # of the run that started this one

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                made.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def write_data_set() -> Callable[..., Path]:
    """Function that writes a tiny data set: (folder, name, images, size, seed) -> COCO file."""
    return write_tiny_data_set


@pytest.fixture(scope="session")
def make_recipe() -> Callable[[Path], dict[str, Any]]:
    """Function that writes `train.json` (8 images) and `val.json` (4 images) and returns a tiny recipe for them."""

    def make(folder: Path) -> dict[str, Any]:
        write_tiny_data_set(folder, "train", images=8, seed=0)
        write_tiny_data_set(folder, "val", images=4, seed=1)
        return tiny_recipe(folder)

    return make


@pytest.fixture
def data_folder(tmp_path: Path, make_recipe: Callable[[Path], dict[str, Any]]) -> Path:
    """Folder with `train.json` (8 images), `val.json` (4 images) and their images, new for each test."""
    make_recipe(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def recipe_values(data_folder: Path) -> dict[str, Any]:
    """Values of a tiny recipe for `data_folder`, new for each test."""
    return tiny_recipe(data_folder)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real imagery beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"there is no real imagery in {folder}")
    return folder
