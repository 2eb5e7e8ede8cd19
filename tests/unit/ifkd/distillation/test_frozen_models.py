"""The frozen part of a distillation, and the cache of MobileSAM's embeddings."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ifkd import recipe
from ifkd.core.errors import CheckpointError, ConfigError, OutputError
from ifkd.data.coco import read_coco
from ifkd.distillation import CacheSpec, Draws, FrozenModels, TeacherOutputs, cache_spec_of, measure_feature_rms
from ifkd.distillation.cache_spec import distinct_tiles
from ifkd.distillation.output_cache import OutputCache, keys_of
from ifkd.models import Detector, build_detector, normalize
from ifkd.training.dataset import TileDataset


@pytest.fixture(scope="module")
def teacher() -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_detector(recipe.DetectorOptions(backbone="resnet18", channels=16), 3).train()


def pixels(batch: int = 2, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, 64, 96), generator=source, dtype=torch.uint8)


def disturbance(**options: Any) -> recipe.EdeOptions:
    return recipe.EdeOptions(**{"weights": "random", "input_px": "native", **options})


def test_teacher_and_encoder_stay_frozen_and_in_eval_mode(teacher: Detector) -> None:
    knowledge = FrozenModels(teacher, disturbance())
    for mode in (True, False):
        knowledge.train(mode)
        assert not any(module.training for module in knowledge.modules())
    assert not any(parameter.requires_grad for parameter in knowledge.parameters())
    before = {name: value.clone() for name, value in knowledge.state_dict().items()}
    images = normalize(pixels()).requires_grad_()
    taught = knowledge(images, pixels())
    output, embedding = taught.teacher, taught.embedding
    assert embedding is not None
    assert not any(level.requires_grad for level in (*output.pyramid, *output.logits, *output.deltas, embedding))
    assert embedding.shape == (2, 256, 4, 6)
    assert all(torch.equal(value, before[name]) for name, value in knowledge.state_dict().items())


def test_without_disturbance_there_is_no_encoder(teacher: Detector) -> None:
    knowledge = FrozenModels(teacher)
    assert knowledge.sam is None
    assert knowledge(normalize(pixels()), pixels()).embedding is None


def test_the_asked_size_reaches_the_encoder(teacher: Detector) -> None:
    embedding = FrozenModels(teacher, disturbance(input_px=192))(normalize(pixels()), pixels()).embedding
    assert embedding is not None
    assert embedding.shape == (2, 256, 8, 12)
    with pytest.raises(ConfigError, match="multiple of 16"):
        FrozenModels(teacher, disturbance(input_px=100))


def keeping(folder: Path, **options: Any) -> CacheSpec:
    return CacheSpec(folder, **{"tile_px": 64, "tiles": 8, "depends_on": {"images": "eight"}, **options})


def tiles(batch: int = 2, seed: int = 0) -> Tensor:
    return pixels(batch, seed)[..., :64]


def same(one: TeacherOutputs, two: TeacherOutputs) -> bool:
    assert one.embedding is not None
    assert two.embedding is not None
    ours, theirs = ([*t.teacher.pyramid, *t.teacher.logits, *t.teacher.deltas, t.embedding] for t in (one, two))
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("source", ["embedding", "mask"])
def test_what_was_said_is_kept_by_what_the_image_shows(
    teacher: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    options = disturbance(cache=True, source=source)
    knowledge = FrozenModels(teacher, options, keeping=keeping(tmp_path), keep_teacher=True)
    seen = tiles()
    fresh = FrozenModels(teacher, options)(normalize(seen), seen)
    kept = knowledge(normalize(seen), seen)
    assert fresh.embedding is not None
    assert kept.embedding is not None
    for ours, exact in zip(
        [*kept.teacher.pyramid, *kept.teacher.logits, *kept.teacher.deltas, kept.embedding],
        [*fresh.teacher.pyramid, *fresh.teacher.logits, *fresh.teacher.deltas, fresh.embedding],
        strict=True,
    ):
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)
    # Another image of the batch is computed; the known ones are read, in the order that is asked for now.
    rows: list[int] = []
    for network in (knowledge.teacher, knowledge.sam):
        assert network is not None
        forward = network.forward
        monkeypatch.setattr(
            network, "forward", lambda images, _f=forward, **given: rows.append(len(images)) or _f(images, **given)
        )
    mixed = torch.cat([tiles(1, seed=5), seen.flip(0)])
    again = knowledge(normalize(mixed), mixed)
    assert rows == [1, 1]
    assert again.embedding is not None
    assert torch.equal(again.embedding[1:], kept.embedding.flip(0))
    assert all(torch.equal(a[1:], b.flip(0)) for a, b in zip(again.teacher.pyramid, kept.teacher.pyramid, strict=True))
    # A later run computes nothing, and what it reads is what the first one went on with.
    later = FrozenModels(teacher, options, keeping=keeping(tmp_path), keep_teacher=True)
    rows.clear()
    assert same(later(normalize(mixed), mixed), again)
    assert rows == []
    turned = mixed.flip(3)
    later(normalize(turned), turned)
    assert rows == [3]


def test_autocast_does_not_reach_what_is_kept(teacher: Detector, tmp_path: Path) -> None:
    seen = tiles()
    found = []
    for name, enabled in (("one", False), ("two", True)):
        knowledge = FrozenModels(teacher, disturbance(cache=True), keeping=keeping(tmp_path / name), keep_teacher=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(knowledge(normalize(seen), seen))
    assert same(*found)


def test_only_what_is_asked_for_is_kept(teacher: Detector, tmp_path: Path) -> None:
    FrozenModels(teacher, disturbance(cache=False), keeping=keeping(tmp_path), keep_teacher=False)
    assert not any(tmp_path.iterdir())
    FrozenModels(teacher, disturbance(cache=True), keeping=keeping(tmp_path), keep_teacher=False)
    assert {path.name for path in tmp_path.iterdir()} == {"mobile_sam_native"}


def test_another_teacher_or_data_set_is_refused_or_made_anew(teacher: Detector, tmp_path: Path) -> None:
    FrozenModels(teacher, keeping=keeping(tmp_path), keep_teacher=True)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(OutputError, match=r"made of something else: network was "teacher \w+", is "teacher \w+""):
        FrozenModels(other, keeping=keeping(tmp_path), keep_teacher=True)
    with pytest.raises(OutputError, match=r"images was "eight", is "nine".*rebuild_cache = true"):
        FrozenModels(teacher, keeping=keeping(tmp_path, depends_on={"images": "nine"}), keep_teacher=True)
    FrozenModels(other, keeping=keeping(tmp_path, rebuild=True), keep_teacher=True)
    FrozenModels(other, keeping=keeping(tmp_path), keep_teacher=True)


def test_answers_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    memory = OutputCache("loud", torch.nn.Identity(), [(1, 2, 2)], keeping(tmp_path))
    with pytest.raises(CheckpointError, match="larger than float16 holds"):
        memory.answers([bytes(32)], lambda rows: [torch.full((len(rows), 1, 2, 2), 1e5)], torch.device("cpu"))


def data(**augmentation: Any) -> recipe.DataOptions:
    base: dict[str, Any] = {"train": "t.json", "validation": "v.json", "test": "t.json", "tile_px": 64}
    return recipe.DataOptions.model_validate(base | {"augmentation": augmentation})


@pytest.mark.parametrize(
    ("flip", "turns", "size"),
    [(True, True, (48, 64)), (True, False, (64, 64)), (False, True, (40, 64)), (False, False, (64, 64))],
)
def test_the_count_of_distinct_tiles_is_what_training_makes(
    tmp_path: Path, write_data_set: Callable[..., Path], flip: bool, turns: bool, size: tuple[int, int]
) -> None:
    dataset = read_coco(write_data_set(tmp_path, images=2, size=size))
    config = data(flip=flip, quarter_turns=turns)
    made = TileDataset(dataset, config, seed=0)
    seen = {key for epoch in range(60) for key in keys_of(torch.stack([made[epoch, i].pixels for i in range(2)]))}
    assert len(seen) == distinct_tiles(dataset.images, config)


@pytest.mark.parametrize(
    ("augmentation", "told"),
    [
        ({"scale_jitter": (0.9, 1.1)}, "scale_jitter"),
        ({"photometric": 0.2}, "photometric = 0.2"),
        ({"speckle": 0.2}, "speckle = 0.2"),
    ],
)
def test_endless_augmentation_is_refused(
    tmp_path: Path, write_data_set: Callable[..., Path], augmentation: dict[str, Any], told: str
) -> None:
    dataset = read_coco(write_data_set(tmp_path, images=2))
    with pytest.raises(ConfigError, match=told):
        cache_spec_of(dataset, data(**augmentation), tmp_path, rebuild=False)


def test_random_crops_are_refused(tmp_path: Path, write_data_set: Callable[..., Path]) -> None:
    dataset = read_coco(write_data_set(tmp_path, images=2, size=(64, 96)))
    with pytest.raises(ConfigError, match=r"random crops, as 2 of 2 images are larger than data.tile_px = 64"):
        cache_spec_of(dataset, data(), tmp_path, rebuild=False)


def test_the_teachers_feature_scale_is_its_root_mean_square(teacher: Detector) -> None:
    teacher.eval()
    batches = [normalize(pixels(seed=seed)) for seed in range(3)]
    found = measure_feature_rms(teacher, batches)
    with torch.no_grad():
        pyramids = [teacher(images).pyramid for images in batches]
    for level in range(5):
        values = torch.cat([pyramid[level].flatten() for pyramid in pyramids]).double()
        assert found[level] == pytest.approx(values.square().mean().sqrt().item(), rel=1e-5)


def test_teacher_and_encoder_see_the_very_same_images(teacher: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is added to a teacher's map lies where the teacher's objects lie, however tiles were turned."""
    knowledge = FrozenModels(teacher, disturbance())
    seen: list[Tensor] = []
    for network in (knowledge.teacher, knowledge.sam):
        assert network is not None
        forward = network.forward
        monkeypatch.setattr(
            network, "forward", lambda images, _f=forward, **given: seen.append(images) or _f(images, **given)
        )
    images = normalize(pixels())
    knowledge(images, pixels())
    assert [each is images for each in seen] == [True, True]


def test_runs_of_one_seed_share_even_endless_tiles(tmp_path: Path, write_data_set: Callable[..., Path]) -> None:
    """Crops and colors without end are drawn alike by all runs of a seed, and so is what is kept of them."""
    dataset = read_coco(write_data_set(tmp_path, images=3, size=(64, 96)))
    config = data(photometric=0.2, scale_jitter=(0.8, 1.2))
    kept = cache_spec_of(dataset, config, tmp_path, rebuild=False, draws=Draws(seed=5, epochs=4))
    runs = [
        {key for e in range(4) for key in keys_of(torch.stack([made[e, i].pixels for i in range(3)]))}
        for made in (TileDataset(dataset, config, seed=seed) for seed in (5, 5, 6))
    ]
    assert len(runs[0]) == kept.tiles == 12
    assert runs[0] == runs[1]
    assert not runs[0] & runs[2]


def test_draws_of_another_seed_have_a_cache_of_their_own(
    teacher: Detector, tmp_path: Path, write_data_set: Callable[..., Path]
) -> None:
    dataset = read_coco(write_data_set(tmp_path, images=2))

    def knowledge(seed: int, epochs: int, **augmentation: Any) -> FrozenModels:
        draws = Draws(seed, epochs)
        kept = cache_spec_of(dataset, data(**augmentation), tmp_path / "cache", rebuild=False, draws=draws)
        return FrozenModels(teacher, keeping=kept, keep_teacher=True)

    knowledge(1, 3), knowledge(2, 3)
    with pytest.raises(OutputError, match=r"made of something else: .*epochs was 3, is 4"):
        knowledge(1, 4)
    with pytest.raises(OutputError, match=r"made of something else: .*photometric"):
        knowledge(1, 3, photometric=0.2)
