"""A checkpoint and the bundle made of it, once for all tests, as exports take seconds. Tests copy what they change."""

from collections.abc import Callable
from pathlib import Path

import pytest

from export.bundle import Bundle, open_bundle


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector of 64 px tiles whose scores and boxes spread, with its recipe; there are no images."""
    import torch

    from ifkd.checkpoint import CheckpointMeta, save_checkpoint
    from ifkd.config import parse
    from ifkd.detectors import build_detector
    from ifkd.recipe import Recipe

    folder = tmp_path_factory.mktemp("checkpoint")
    training = {"epochs": 1, "batch_size": 2}
    recipe = parse(
        {
            "name": "tiny",
            "data": {
                "train": str(folder / "train.json"),
                "validation": str(folder / "absent.json"),
                "test": str(folder / "absent.json"),
                "tile_px": 64,
            },
            "teacher": {"detector": {"backbone": "resnet18", "channels": 16}, "training": training},
            "student": {"detector": {"backbone": "resnet18", "channels": 16}, "training": training},
            "distillation": {"training": training, "method": {"name": "none"}},
            "export": {"candidates_per_level": 100, "max_batch": 4},
        },
        Recipe,
        source="the tests' recipe",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        detector = build_detector(recipe.student.detector, 3)
        for name, weight in detector.head.named_parameters():
            if name.endswith("weight"):
                torch.nn.init.kaiming_normal_(weight)
    meta = CheckpointMeta(
        detector=recipe.student.detector,
        classes=("ship", "tug", "ferry"),
        category_ids=(1, 4, 9),
        recipe=recipe,
        provenance={"role": "student", "notes": []},
    )
    path = folder / "best.safetensors"
    save_checkpoint(path, detector, meta)
    return path


@pytest.fixture(scope="session")
def whole_bundle(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the exported bundle, FP32 and FP16; not to be changed."""
    from export.producer import export_checkpoint

    return export_checkpoint(checkpoint_path, tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture
def bundle_copy(whole_bundle: Path, tmp_path: Path) -> Bundle:
    """A copy of the bundle for this test alone."""
    import shutil

    return open_bundle(Path(shutil.copytree(whole_bundle, tmp_path / "bundle")))


@pytest.fixture
def without_exporting(whole_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to let `export_checkpoint` take the ONNX file that was made already, which saves seconds."""
    import shutil

    def arrange() -> None:
        monkeypatch.setattr(
            "export.producer.export_onnx", lambda _graph, path, **_: shutil.copyfile(whole_bundle / "model.onnx", path)
        )

    return arrange
