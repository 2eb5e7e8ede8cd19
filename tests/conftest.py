"""What many tests share: a tiny labeled data set, a tiny recipe, and the place of the real imagery."""

import json
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from PIL import Image

pytest_plugins = ["browser_fixtures", "bundle_fixtures"]

# Tiny tensors gain nothing from threads, and on a busy machine threads that wait for each other cost tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]

# Laws hold for every seed; a fixed walk through the examples keeps a failure from coming and going.
hypothesis.settings.register_profile(
    "ifkd",
    deadline=None,
    derandomize=True,
    max_examples=20,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("ifkd")

CLASSES = {3: "barge", 7: "ferry", 9: "tug"}
"""Category id -> name; the ids have gaps, as those of real files do."""
COLORS = {3: (230, 60, 40), 7: (40, 220, 60), 9: (50, 70, 235)}
EXTENTS = {3: (26, 12), 7: (12, 26), 9: (16, 16)}
"""Width and height of each class's rectangle, pixels."""


def write_tiny_data_set(
    folder: Path, name: str = "train", *, images: int = 8, size: tuple[int, int] = (64, 64), seed: int = 0
) -> Path:
    """Write a COCO data set of colored rectangles on noise and return its json; three images share a place."""
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
    """Return the values of a recipe over `train.json` and `val.json` in `root` that runs in a second or two."""
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
                "fdr": {"grid": [4, 3]},
            },
        },
        "export": {"candidates_per_level": 50},
    }


@pytest.fixture(scope="session")
def write_data_set() -> Callable[..., Path]:
    """The function that writes a tiny data set: (folder, name, images, size, seed) -> json."""
    return write_tiny_data_set


@pytest.fixture(scope="session")
def make_recipe() -> Callable[[Path], dict[str, Any]]:
    """A function that writes `train.json` (8 images) and `val.json` (4) and returns a tiny recipe over them."""

    def make(folder: Path) -> dict[str, Any]:
        write_tiny_data_set(folder, "train", images=8, seed=0)
        write_tiny_data_set(folder, "val", images=4, seed=1)
        return tiny_recipe(folder)

    return make


@pytest.fixture
def data_folder(tmp_path: Path, make_recipe: Callable[[Path], dict[str, Any]]) -> Path:
    """A folder with `train.json` (8 images), `val.json` (4) and their images, for this test alone."""
    make_recipe(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def recipe_values(data_folder: Path) -> dict[str, Any]:
    """The values of a tiny recipe over `data_folder`; change them freely."""
    return tiny_recipe(data_folder)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imagery that developers and CI have beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real imagery is not at {folder}")
    return folder
