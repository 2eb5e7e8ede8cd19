"""The frozen part of a distillation, and the cache of MobileSAM's embeddings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ifkd import recipe
from ifkd.detectors import Detector, build_detector, normalise
from ifkd.errors import ConfigError, OutputError
from ifkd.knowledge import Knowledge, measure_feature_rms
from ifkd.knowledge.store import EmbeddingCache


@pytest.fixture(scope="module")
def teacher() -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_detector(recipe.Detector(backbone="resnet18", channels=16), 3).train()


def pixels(batch: int = 2, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, 64, 96), generator=source, dtype=torch.uint8)


def disturbance(**options: Any) -> recipe.Disturbance:
    return recipe.Disturbance(**{"weights": "random", "input_px": "native", **options})


def test_teacher_and_encoder_stay_frozen_and_in_eval_mode(teacher: Detector) -> None:
    knowledge = Knowledge(teacher, disturbance(), None)
    for mode in (True, False):
        knowledge.train(mode)
        assert not any(module.training for module in knowledge.modules())
    assert not any(parameter.requires_grad for parameter in knowledge.parameters())
    before = {name: value.clone() for name, value in knowledge.state_dict().items()}
    images = normalise(pixels()).requires_grad_()
    taught = knowledge(images, pixels())
    output, embedding = taught.teacher, taught.embedding
    assert embedding is not None
    assert not any(level.requires_grad for level in (*output.pyramid, *output.logits, *output.deltas, embedding))
    assert embedding.shape == (2, 256, 4, 6)
    assert all(torch.equal(value, before[name]) for name, value in knowledge.state_dict().items())


def test_without_disturbance_there_is_no_encoder(teacher: Detector) -> None:
    knowledge = Knowledge(teacher, None, None)
    assert knowledge.encoder is None
    assert knowledge(normalise(pixels()), pixels()).embedding is None


def test_the_asked_size_reaches_the_encoder(teacher: Detector) -> None:
    embedding = Knowledge(teacher, disturbance(input_px=192), None)(normalise(pixels()), pixels()).embedding
    assert embedding is not None
    assert embedding.shape == (2, 256, 8, 12)
    with pytest.raises(ConfigError, match="multiple of 16"):
        Knowledge(teacher, disturbance(input_px=100), None)


def test_embeddings_are_kept_by_what_the_image_shows(
    teacher: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knowledge = Knowledge(teacher, disturbance(cache=True), tmp_path)
    seen = pixels()
    fresh = Knowledge(teacher, disturbance(), None)(normalise(seen), seen).embedding
    assert fresh is not None
    assert not any(tmp_path.rglob("*.npy"))
    kept = knowledge(normalise(seen), seen).embedding
    assert kept is not None
    torch.testing.assert_close(kept, fresh, rtol=1e-3, atol=1e-3)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("mobile_sam-")
    assert folder.name.endswith("-native")
    assert len(list(folder.rglob("*.npy"))) == 2
    # Another image of the batch is computed; the known ones are read, in the order that is asked for now.
    calls = []
    encoder = knowledge.encoder
    assert encoder is not None
    forward = encoder.forward
    monkeypatch.setattr(
        encoder, "forward", lambda images, **options: calls.append(len(images)) or forward(images, **options)
    )
    mixed = torch.cat([pixels(1, seed=5), seen.flip(0)])
    again = knowledge(normalise(mixed), mixed).embedding
    assert again is not None
    assert calls == [1]
    assert torch.equal(again[1:], kept.flip(0))
    later = Knowledge(teacher, disturbance(cache=True), tmp_path)
    monkeypatch.setattr(later, "_encode", None)
    found = later(normalise(mixed), mixed).embedding
    assert found is not None
    assert torch.equal(found, again)


def test_a_mirrored_image_is_another_image(teacher: Detector, tmp_path: Path) -> None:
    knowledge = Knowledge(teacher, disturbance(cache=True), tmp_path)
    seen = pixels(1)
    knowledge(normalise(seen), seen)
    knowledge(normalise(seen.flip(3)), seen.flip(3))
    assert len(list(tmp_path.rglob("*.npy"))) == 2


def test_encoders_and_sizes_do_not_share_embeddings(teacher: Detector, tmp_path: Path) -> None:
    Knowledge(teacher, disturbance(cache=True), tmp_path)
    Knowledge(teacher, disturbance(cache=True, input_px=128), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_cache_forgets_what_was_half_written(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.add("ab12", torch.ones(256, 2, 3))
    (tmp_path / "ab" / "ab99.partial").write_bytes(b"half")
    again = EmbeddingCache(tmp_path)
    assert len(again) == 1
    assert "ab12" in again
    assert "ab99" not in again
    assert again.read(["ab12", "ab12"]).shape == (2, 256, 2, 3)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EmbeddingCache(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
        cache.add("ab12", torch.ones(256, 2, 3))
    assert "ab12" not in cache


def test_the_teachers_feature_scale_is_its_root_mean_square(teacher: Detector) -> None:
    teacher.eval()
    batches = [normalise(pixels(seed=seed)) for seed in range(3)]
    found = measure_feature_rms(teacher, batches)
    with torch.no_grad():
        pyramids = [teacher(images).pyramid for images in batches]
    for level in range(5):
        values = torch.cat([pyramid[level].flatten() for pyramid in pyramids]).double()
        assert found[level] == pytest.approx(values.square().mean().sqrt().item(), rel=1e-5)
