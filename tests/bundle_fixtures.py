"""A checkpoint and the bundle made of it, once for all tests, as exports take seconds. Tests copy what they change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.bundle.bundle import Bundle, add_file, open_bundle
from export.bundle.engine_metadata import BatchProfile, DeliveredPrecision, EngineMetadata, engine_metadata_path
from ifkd.core.files import sha256_of, write_json


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector of 64 px tiles whose scores and boxes spread, with its recipe; there are no images."""
    import torch

    from ifkd.core.config import parse
    from ifkd.models import build_detector
    from ifkd.models.checkpoint import CheckpointMeta, save_checkpoint
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
    from export.export_bundle import export_checkpoint

    return export_checkpoint(checkpoint_path, tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture(scope="session")
def free_bundle(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle in FP32 that takes tiles of 32 to 128 px; not to be changed."""
    from export.export_bundle import export_checkpoint

    words = ["precisions=['fp32']", "tile_sides_px=[32, 128]"]
    return export_checkpoint(checkpoint_path, tmp_path_factory.mktemp("bundles") / "free", overrides=words).path


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
            "export.export_bundle.export_onnx",
            lambda _graph, path, **_: shutil.copyfile(whole_bundle / "model.onnx", path),
        )

    return arrange


def with_engine(bundle: Bundle, name: str = "made", **values: Any) -> Bundle:
    """Return the bundle with an FP16 engine file of no content and a sidecar of our wording, for an H100."""
    path = bundle.path / "engines" / f"{name}.engine"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"plan " + name.encode())
    facts: dict[str, Any] = {
        "device": "NVIDIA H100 80GB HBM3",
        "compute_capability": "9.0",
        "driver_cuda": "12.4",
        "builder": "tensorrt",
        "builder_version": "11.4.0",
        "onnx": "model.fp16.onnx",
        "onnx_sha256": bundle.manifest.files["model.fp16.onnx"].sha256,
        "engine_sha256": sha256_of(path),
        "engine_bytes": path.stat().st_size,
        "batch": BatchProfile(opt=4, max=4),
        "tile_px": (64, 64),
        "workspace_mib": 64,
        "tf32": False,
        "build_seconds": 1.0,
        "precision_asked": "fp16",
        "precision_delivered": DeliveredPrecision(weight_types={"FLOAT16": 1}, engine_to_weights=1.0),
    }
    write_json(engine_metadata_path(path), EngineMetadata(**{**facts, **values}).model_dump(mode="json"))
    bundle = add_file(bundle, f"engines/{name}.engine", kind="engine", precision="fp16")
    return add_file(bundle, f"engines/{name}.json", kind="sidecar", precision="fp16")
