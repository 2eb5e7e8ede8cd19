"""Fixtures with a checkpoint and its bundle, exported once per test run; tests change copies only."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from export.bundle.bundle import Bundle

LINKED = (".onnx", ".safetensors")
"""Endings of the large files of a bundle."""


@pytest.fixture(scope="session")
def checkpoint_path(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A checkpoint of an untrained detector for 64 px tiles with varied scores and boxes; its images do not exist."""
    return make_once("checkpoint", write_checkpoint) / "best.safetensors"


@pytest.fixture(scope="session")
def whole_bundle(checkpoint_path: Path, make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The folder of the exported bundle with FP32 and FP16; read-only."""
    from export.export_bundle import export_bundle
    from export.export_plan import plan_export

    return make_once("tiny", lambda out: export_bundle(plan_export(checkpoint_path, out)))


@pytest.fixture(scope="session")
def free_bundle(checkpoint_path: Path, make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The folder of an FP32 bundle for tiles of 32 to 128 px; read-only."""
    from export.export_bundle import export_bundle
    from export.export_plan import plan_export

    overrides = ["precisions=['fp32']", "tile_sides_px=[32, 128]"]
    return make_once("free", lambda out: export_bundle(plan_export(checkpoint_path, out, overrides=overrides)))


@pytest.fixture(scope="session")
def oriented_bundle(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The folder of the bundle of an oriented detector with FP32 and FP16; read-only."""
    from export.export_bundle import export_bundle
    from export.export_plan import plan_export

    checkpoint = make_once("oriented checkpoint", lambda folder: write_checkpoint(folder, oriented=True))
    return make_once("oriented", lambda out: export_bundle(plan_export(checkpoint / "best.safetensors", out)))


@pytest.fixture
def bundle_copy(whole_bundle: Path, tmp_path: Path) -> "Iterator[Bundle]":
    """A copy of the bundle for one test, which must not write into its ONNX files and weights: they are hard links.

    The copies of all tests would be 20 GB.
    """
    from export.bundle.bundle import open_bundle

    def link_or_copy(source: str, target: str) -> None:
        (os.link if source.endswith(LINKED) else shutil.copy2)(source, target)

    def state() -> dict[Path, tuple[int, int]]:
        files = (path for path in whole_bundle.iterdir() if path.name.endswith(LINKED))
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    before = state()
    yield open_bundle(Path(shutil.copytree(whole_bundle, tmp_path / "bundle", copy_function=link_or_copy)))
    assert state() == before, "the test changed files of other tests; it needs the fixture `full_copy`"


@pytest.fixture
def full_copy(whole_bundle: Path, tmp_path: Path) -> "Bundle":
    """A copy of the bundle for one test, which may write into all of its files."""
    from export.bundle.bundle import open_bundle

    return open_bundle(Path(shutil.copytree(whole_bundle, tmp_path / "bundle")))


@pytest.fixture
def without_exporting(whole_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that makes `export_bundle` reuse the exported ONNX file, which saves seconds."""

    def reuse() -> None:
        monkeypatch.setattr(
            "export.export_bundle.export_onnx",
            lambda _model, path, **_: shutil.copyfile(whole_bundle / "model.onnx", path),
        )

    return reuse


def write_checkpoint(folder: Path, *, oriented: bool = False) -> None:
    """Write `best.safetensors`, an untrained detector with varied scores and boxes."""
    import torch

    from ifkd.core.config import parse
    from ifkd.models import build_detector
    from ifkd.models.checkpoint import CheckpointMeta, save_checkpoint
    from ifkd.recipe import Recipe

    folder.mkdir()
    training = {"epochs": 1, "batch_size": 2}
    tiny = {"backbone": "resnet18", "channels": 16, "oriented": oriented}
    recipe = parse(
        {
            "name": "tiny",
            "data": {
                "train": str(folder / "train.json"),
                "validation": str(folder / "absent.json"),
                "test": str(folder / "absent.json"),
                "tile_px": 64,
            },
            "teacher": {"detector": tiny, "training": training},
            "student": {"detector": tiny, "training": training},
            "distillation": {"training": training, "method": {"name": "none"}},
            "export": {"candidates_per_level": 100, "max_batch": 4, "overlap_px": 16},
        },
        Recipe,
        source="test recipe",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        detector = build_detector(recipe.student.detector, 3)
        for name, weight in detector.head.named_parameters():
            if name.endswith("weight"):
                torch.nn.init.kaiming_normal_(weight)
        if oriented:  # deltas of a trained detector, whose boxes are not many times as long as a tile
            torch.nn.init.normal_(detector.head.regression_head.bbox_reg.weight, std=0.02)
    meta = CheckpointMeta(
        detector=recipe.student.detector,
        classes=("ship", "tug", "ferry"),
        category_ids=(1, 4, 9),
        recipe=recipe,
        provenance={"role": "student", "notes": []},
    )
    save_checkpoint(folder / "best.safetensors", detector, meta)
