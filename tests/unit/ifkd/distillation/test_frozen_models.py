"""Frozen models of a distillation, and the caches of their outputs."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ifkd import recipe
from ifkd.core.errors import OutputError
from ifkd.distillation import CacheSpec, FrozenModels, TeacherOutputs
from ifkd.distillation.frozen_models import measure_feature_rms
from ifkd.models import Detector, build_detector, normalize


@pytest.fixture(scope="module")
def teacher() -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_detector(recipe.DetectorOptions(backbone="resnet18", channels=16), 3).train()


def pixels(batch: int = 2, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, 64, 96), generator=source, dtype=torch.uint8)


def ede(**options: Any) -> recipe.EdeOptions:
    return recipe.EdeOptions(**{"weights": "random", "input_px": "native", **options})


def test_teacher_and_encoder_are_frozen_and_in_eval_mode(teacher: Detector) -> None:
    frozen = FrozenModels(teacher, ede())
    for mode in (True, False):
        frozen.train(mode)
        assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    images = normalize(pixels()).requires_grad_()
    outputs = frozen(images, pixels())
    output, embedding = outputs.teacher, outputs.embedding
    assert embedding is not None
    assert not any(level.requires_grad for level in (*output.pyramid, *output.logits, *output.deltas, embedding))
    assert embedding.shape == (2, 256, 4, 6)
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_without_ede_there_is_no_encoder(teacher: Detector) -> None:
    frozen = FrozenModels(teacher)
    assert frozen.sam is None
    assert frozen(normalize(pixels()), pixels()).embedding is None


def test_the_encoder_gets_the_configured_size(teacher: Detector) -> None:
    embedding = FrozenModels(teacher, ede(input_px=192))(normalize(pixels()), pixels()).embedding
    assert embedding is not None
    assert embedding.shape == (2, 256, 8, 12)


def cache_spec(folder: Path, **options: Any) -> CacheSpec:
    return CacheSpec(folder, **{"tile_px": 64, "max_tiles": 8, "depends_on": {"images": "eight"}, **options})


def tiles(batch: int = 2, seed: int = 0) -> Tensor:
    return pixels(batch, seed)[..., :64]


def same(one: TeacherOutputs, two: TeacherOutputs) -> bool:
    assert one.embedding is not None
    assert two.embedding is not None
    ours, theirs = ([*t.teacher.pyramid, *t.teacher.logits, *t.teacher.deltas, t.embedding] for t in (one, two))
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("source", ["embedding", "mask"])
def test_outputs_are_cached_by_the_digest_of_the_pixels(
    teacher: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    options = ede(cache=True, source=source)
    frozen = FrozenModels(teacher, options, cache_spec=cache_spec(tmp_path), cache_teacher=True)
    seen = tiles()
    computed = FrozenModels(teacher, options)(normalize(seen), seen)
    cached = frozen(normalize(seen), seen)
    assert computed.embedding is not None
    assert cached.embedding is not None
    for ours, exact in zip(
        [*cached.teacher.pyramid, *cached.teacher.logits, *cached.teacher.deltas, cached.embedding],
        [*computed.teacher.pyramid, *computed.teacher.logits, *computed.teacher.deltas, computed.embedding],
        strict=True,
    ):
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)
    # Only the new image of the batch is computed; the others are read, in the order of the batch.
    rows: list[int] = []
    for network in (frozen.teacher, frozen.sam):
        assert network is not None
        forward = network.forward
        monkeypatch.setattr(
            network, "forward", lambda images, _f=forward, **given: rows.append(len(images)) or _f(images, **given)
        )
    mixed = torch.cat([tiles(1, seed=5), seen.flip(0)])
    again = frozen(normalize(mixed), mixed)
    assert rows == [1, 1]
    assert again.embedding is not None
    assert torch.equal(again.embedding[1:], cached.embedding.flip(0))
    assert all(
        torch.equal(a[1:], b.flip(0)) for a, b in zip(again.teacher.pyramid, cached.teacher.pyramid, strict=True)
    )
    # A later run computes nothing, and has the same outputs as the first.
    later = FrozenModels(teacher, options, cache_spec=cache_spec(tmp_path), cache_teacher=True)
    rows.clear()
    assert same(later(normalize(mixed), mixed), again)
    assert rows == []
    turned = mixed.flip(3)
    later(normalize(turned), turned)
    assert rows == [3]


def test_cached_outputs_do_not_depend_on_autocast(teacher: Detector, tmp_path: Path) -> None:
    seen = tiles()
    found = []
    for name, enabled in (("one", False), ("two", True)):
        frozen = FrozenModels(teacher, ede(cache=True), cache_spec=cache_spec(tmp_path / name), cache_teacher=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(frozen(normalize(seen), seen))
    assert same(*found)


def test_only_configured_outputs_are_cached(teacher: Detector, tmp_path: Path) -> None:
    FrozenModels(teacher, ede(cache=False), cache_spec=cache_spec(tmp_path), cache_teacher=False)
    assert not any(tmp_path.iterdir())
    FrozenModels(teacher, ede(cache=True), cache_spec=cache_spec(tmp_path), cache_teacher=False)
    assert {path.name for path in tmp_path.iterdir()} == {"mobile_sam_native"}


def test_a_cache_of_another_teacher_or_data_set_is_refused_or_replaced(teacher: Detector, tmp_path: Path) -> None:
    FrozenModels(teacher, cache_spec=cache_spec(tmp_path), cache_teacher=True)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(
        OutputError, match=r'depends on other networks or images: network was "teacher \w+", is "teacher \w+"'
    ):
        FrozenModels(other, cache_spec=cache_spec(tmp_path), cache_teacher=True)
    with pytest.raises(OutputError, match=r'images was "eight", is "nine".*rebuild_cache = true'):
        FrozenModels(teacher, cache_spec=cache_spec(tmp_path, depends_on={"images": "nine"}), cache_teacher=True)
    FrozenModels(other, cache_spec=cache_spec(tmp_path, rebuild=True), cache_teacher=True)
    FrozenModels(other, cache_spec=cache_spec(tmp_path), cache_teacher=True)


def test_feature_rms_is_the_root_mean_square_by_level(teacher: Detector) -> None:
    teacher.eval()
    batches = [normalize(pixels(seed=seed)) for seed in range(3)]
    found = measure_feature_rms(teacher, batches)
    with torch.no_grad():
        pyramids = [teacher(images).pyramid for images in batches]
    for level in range(5):
        values = torch.cat([pyramid[level].flatten() for pyramid in pyramids]).double()
        assert found[level] == pytest.approx(values.square().mean().sqrt().item(), rel=1e-5)


def test_teacher_and_encoder_get_the_same_images(teacher: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the disturbance matches the positions of the teacher's objects under any augmentation."""
    frozen = FrozenModels(teacher, ede())
    seen: list[Tensor] = []
    for network in (frozen.teacher, frozen.sam):
        assert network is not None
        forward = network.forward
        monkeypatch.setattr(
            network, "forward", lambda images, _f=forward, **given: seen.append(images) or _f(images, **given)
        )
    images = normalize(pixels())
    frozen(images, pixels())
    assert [each is images for each in seen] == [True, True]
