"""Checkpoints: saving, loading, and refusal of damaged and foreign files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ifkd.core.config import parse
from ifkd.core.errors import CheckpointError
from ifkd.models import Detector, build_detector
from ifkd.models.checkpoint import HEADER_KEY, CheckpointMeta, build_from, load_checkpoint, save_checkpoint
from ifkd.recipe import Recipe


@pytest.fixture
def meta(recipe_values: dict[str, Any]) -> CheckpointMeta:
    recipe = parse(recipe_values, Recipe, source="values")
    return CheckpointMeta(
        detector=recipe.student.detector,
        classes=("barge", "ferry", "Škoda tug"),
        category_ids=(3, 7, 9),
        recipe=recipe,
        provenance={"role": "student", "seed": 5, "notes": ["ä"]},
    )


@pytest.fixture
def detector(meta: CheckpointMeta) -> Detector:
    return build_detector(meta.detector, len(meta.classes)).eval()


def rewrite(path: Path, *, header: dict[str, str] | None, drop: str | None = None) -> None:
    weights = {name: value for name, value in load_file(path).items() if name != drop}
    save_file(weights, path, metadata=header)


def header_of(path: Path) -> str:
    with safe_open(path, framework="pt") as stream:
        return stream.metadata()[HEADER_KEY]


def test_a_checkpoint_is_saved_and_loaded(tmp_path: Path, meta: CheckpointMeta, detector: Detector) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, detector, meta)
    checkpoint = load_checkpoint(path)
    assert checkpoint.meta == meta
    built = build_from(checkpoint)
    assert not built.training
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(built(images).logits, detector(images).logits, strict=True):
            assert torch.equal(ours, theirs)


def test_backbone_weights_are_not_fetched_again(tmp_path: Path, meta: CheckpointMeta, detector: Detector) -> None:
    there = meta.detector.model_copy(update={"backbone_weights": str(tmp_path / "deleted.pth")})
    save_checkpoint(tmp_path / "a.safetensors", detector, meta.model_copy(update={"detector": there}))
    build_from(load_checkpoint(tmp_path / "a.safetensors"))


def test_channels_last_weights_are_saved_as_they_are(tmp_path: Path, meta: CheckpointMeta, detector: Detector) -> None:
    expected = {name: value.clone() for name, value in detector.state_dict().items()}
    save_checkpoint(tmp_path / "a.safetensors", detector.to(memory_format=torch.channels_last), meta)
    weights = load_checkpoint(tmp_path / "a.safetensors").weights
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_same_weights_make_the_same_file(tmp_path: Path, meta: CheckpointMeta, detector: Detector) -> None:
    for name in "ab":
        save_checkpoint(tmp_path / name, detector, meta)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path, meta: CheckpointMeta, detector: Detector) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        load_checkpoint(tmp_path / "absent.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        load_checkpoint(tmp_path / "text")
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        load_checkpoint(tmp_path)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, detector, meta)
    content = path.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
            load_checkpoint(path)
    path.write_bytes(content)
    rewrite(path, header=None)
    with pytest.raises(CheckpointError, match="no IFKD header"):
        load_checkpoint(path)


def test_an_invalid_header_is_refused(tmp_path: Path, meta: CheckpointMeta, detector: Detector) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, detector, meta)
    values = json.loads(header_of(path))
    del values["classes"]
    rewrite(path, header={HEADER_KEY: json.dumps(values)})
    with pytest.raises(CheckpointError, match=r"header of .* is invalid"):
        load_checkpoint(path)
    rewrite(path, header={HEADER_KEY: "{"})
    with pytest.raises(CheckpointError, match=r"header of .* is invalid"):
        load_checkpoint(path)


def test_a_recipe_of_an_earlier_version_is_refused(tmp_path: Path, meta: CheckpointMeta, detector: Detector) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, detector, meta)
    values = json.loads(header_of(path))
    values["recipe"]["selection"] = values["recipe"].pop("postprocess")
    values["recipe"]["student"]["training"]["optimizer"] = "sgd"
    rewrite(path, header={HEADER_KEY: json.dumps(values)})
    with pytest.raises(CheckpointError, match=r"recipe in .* has keys of an earlier version\. Train again"):
        load_checkpoint(path)


def test_weights_of_another_detector_are_refused(tmp_path: Path, meta: CheckpointMeta, detector: Detector) -> None:
    path = tmp_path / "a.safetensors"
    other = meta.detector.model_copy(update={"backbone": "resnet18"})
    save_checkpoint(path, detector, meta.model_copy(update={"detector": other}))
    with pytest.raises(CheckpointError, match="do not match the resnet18 retinanet in its header"):
        build_from(load_checkpoint(path))
    wider = meta.detector.model_copy(update={"channels": 32})
    save_checkpoint(path, detector, meta.model_copy(update={"detector": wider}))
    with pytest.raises(CheckpointError, match="tensors missing or of another shape"):
        build_from(load_checkpoint(path))
    save_checkpoint(path, detector, meta)
    rewrite(path, header={HEADER_KEY: header_of(path)}, drop="head.regression_head.bbox_reg.bias")
    with pytest.raises(CheckpointError, match=r"got 1 tensors missing.*first head\.regression_head\.bbox_reg\.bias"):
        build_from(load_checkpoint(path))
