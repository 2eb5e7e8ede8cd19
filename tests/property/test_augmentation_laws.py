"""Laws of augmentation: boxes enclose their objects after every flip, rotation, crop and scaling."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from ifkd import recipe
from ifkd.core.errors import DataError
from ifkd.core.oriented_boxes import corners, envelopes
from ifkd.data.coco import CocoDataset, read_coco
from ifkd.imagery.image_files import read_image
from ifkd.training.augmentation import LabeledPixels, flip_and_rotate
from ifkd.training.dataset import EpochSampler, Sample, TileDataset, collate, load_scaled

BOX = (7, 22, 31, 30)
"""x1, y1, x2, y2 of the object; off center, so that each symmetry has another position."""
SIZE = (40, 64)
PAINT, TOP_LEFT, TOP_RIGHT = (250, 10, 10), (10, 250, 10), (10, 10, 250)


def write(
    folder: Path, pixels: np.ndarray, boxes: list[tuple[float, ...]], crowds: tuple[int, ...] = ()
) -> CocoDataset:
    """Write one image with boxes of one class and read it back."""
    (folder / "images").mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    annotations = [
        {
            "id": index + 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": int(index in crowds),
        }
        for index, (x1, y1, x2, y2) in enumerate(boxes)
    ]
    image = {"id": 1, "file_name": "a.png", "height": pixels.shape[0], "width": pixels.shape[1]}
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "ship"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return read_coco(folder / "a.json")


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """An oblong image with one painted object and two marked corners."""
    pixels = np.full((*SIZE, 3), 90, np.uint8)
    x1, y1, x2, y2 = BOX
    pixels[y1:y2, x1:x2] = PAINT
    pixels[0, 0] = TOP_LEFT
    pixels[0, -1] = TOP_RIGHT
    return write(tmp_path_factory.mktemp("painted") / "set", pixels, [BOX])


@pytest.fixture(scope="module")
def located(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """An image whose red is the column and green the row, with boxes; the last one is a crowd."""
    rows, columns = np.mgrid[0:200, 0:240]
    pixels = np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)
    boxes = [(20, 20, 60, 44), (100, 10, 130, 40), (90, 90, 96, 99), (150, 120, 230, 190), (5, 150, 45, 195)]
    return write(tmp_path_factory.mktemp("located") / "set", pixels, [*boxes, (60, 60, 120, 110)], crowds=(5,))


def tiles(
    dataset: CocoDataset,
    *,
    seed: int = 0,
    tile_px: int = 64,
    scale: float = 1.0,
    oriented: bool = False,
    **augmentation: Any,
) -> TileDataset:
    settings = {"flip": False, "quarter_turns": False, **augmentation}
    config = recipe.DataOptions(
        train=dataset.path,
        validation=0.5,
        test=dataset.path,
        tile_px=tile_px,
        scale=scale,
        augmentation=recipe.AugmentationOptions(**settings),
    )
    return TileDataset(dataset, config, seed=seed, oriented=oriented)


def cells(sample: Sample, color: tuple[int, int, int]) -> np.ndarray:
    """Return the (row, column) of every pixel of a color."""
    pixels = sample.pixels.permute(1, 2, 0).numpy()
    return np.argwhere((pixels == np.array(color)).all(axis=2))


def extent(sample: Sample, color: tuple[int, int, int]) -> list[float]:
    """Return x1, y1, x2, y2 of the pixels of a color."""
    found = cells(sample, color)
    (top, left), (bottom, right) = found.min(axis=0), found.max(axis=0)
    return [left, top, right + 1, bottom + 1]


def symmetry(sample: Sample) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the positions of the image's top left and top right corners, as (is lower, is right) of each."""
    corners = []
    height, width = (SIZE[1], SIZE[0]) if _is_upright(sample) else SIZE
    for color in (TOP_LEFT, TOP_RIGHT):
        ((row, column),) = cells(sample, color)
        assert row in {0, height - 1}
        assert column in {0, width - 1}
        corners.append((int(row > 0), int(column > 0)))
    return corners[0], corners[1]


def _is_upright(sample: Sample) -> bool:
    (first,), (second,) = cells(sample, TOP_LEFT), cells(sample, TOP_RIGHT)
    return bool(first[1] == second[1])


SYMMETRIES = {
    ((row, column), other)
    for row, column in product((0, 1), repeat=2)
    for other in ((row, 1 - column), (1 - row, column))
}
ROTATIONS = {((0, 0), (0, 1)), ((0, 1), (1, 1)), ((1, 1), (1, 0)), ((1, 0), (0, 0))}
MIRRORS = {((0, 0), (0, 1)), ((0, 1), (0, 0)), ((1, 0), (1, 1)), ((1, 1), (1, 0))}


@pytest.mark.parametrize(
    ("flip", "quarter_turns", "expected"),
    [(True, True, SYMMETRIES), (False, True, ROTATIONS), (True, False, MIRRORS), (False, False, {((0, 0), (0, 1))})],
)
def test_boxes_follow_each_allowed_symmetry(
    painted: CocoDataset, flip: bool, quarter_turns: bool, expected: set[Any]
) -> None:
    dataset = tiles(painted, flip=flip, quarter_turns=quarter_turns)
    seen = set()
    for epoch in range(96):
        sample = dataset[epoch, 0]
        assert sample.targets.boxes.tolist() == [extent(sample, PAINT)]
        assert sample.targets.labels.tolist() == [0]
        assert len(sample.targets.ignored) == 0
        seen.add(symmetry(sample))
    assert len(SYMMETRIES) == 8
    assert seen == expected


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
def test_crops_keep_and_ignore_objects_by_their_visible_fraction(located: CocoDataset, seed: int, epoch: int) -> None:
    sample = tiles(located, seed=seed)[epoch, 0]
    left, top = (int(value) for value in sample.pixels[:2, 0, 0])
    assert sample.pixels.shape == (3, 64, 64)
    assert (sample.pixels[0, 5] == torch.arange(left, left + 64)).all()
    kept, ignored = [], []
    for box, crowd in zip(located.images[0].boxes.tolist(), located.images[0].ignore, strict=True):
        x1, y1, x2, y2 = box
        cut = [max(x1 - left, 0), max(y1 - top, 0), min(x2 - left, 64), min(y2 - top, 64)]
        if cut[2] <= cut[0] or cut[3] <= cut[1]:
            continue
        visible = (cut[2] - cut[0]) * (cut[3] - cut[1]) / ((x2 - x1) * (y2 - y1))
        (kept if visible >= 0.4 and not crowd else ignored).append(cut)
    assert sample.targets.boxes.tolist() == kept
    assert sample.targets.ignored.tolist() == ignored
    assert len(sample.targets.labels) == len(kept)


def test_crops_reach_each_border_and_usually_show_an_object(located: CocoDataset) -> None:
    dataset = tiles(located)
    samples = [dataset[epoch, 0] for epoch in range(3000)]
    lefts, tops = ([int(sample.pixels[channel, 0, 0]) for sample in samples] for channel in (0, 1))
    assert (min(lefts), max(lefts)) == (0, 240 - 64)
    assert (min(tops), max(tops)) == (0, 200 - 64)
    assert np.mean([len(sample.targets.boxes) > 0 for sample in samples]) >= 0.75


def test_a_small_image_is_padded_at_the_right_and_bottom(painted: CocoDataset) -> None:
    sample = tiles(painted, tile_px=96)[0, 0]
    assert sample.pixels.shape == (3, 96, 96)
    assert extent(sample, PAINT) == list(BOX)
    assert (sample.pixels[:, 40:, :] == torch.tensor([124, 116, 104])[:, None, None]).all()
    assert (sample.pixels[:, :, 64:] == torch.tensor([124, 116, 104])[:, None, None]).all()


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
def test_a_sample_depends_on_seed_epoch_and_index_alone(located: CocoDataset, seed: int, epoch: int) -> None:
    options = {"flip": True, "quarter_turns": True, "photometric": 0.4, "scale_jitter": (0.7, 1.3)}
    unused = tiles(located, seed=seed, **options)
    used = tiles(located, seed=seed, **options)
    for other in range(3):
        used[other, 0]
    first, second = unused[epoch, 0], used[epoch, 0]
    assert torch.equal(first.pixels, second.pixels)
    assert torch.equal(first.targets.boxes, second.targets.boxes)
    assert torch.equal(first.targets.ignored, second.targets.ignored)
    assert not torch.equal(first.pixels, unused[epoch + 1, 0].pixels)
    assert not torch.equal(first.pixels, tiles(located, seed=seed + 1, **options)[epoch, 0].pixels)


def test_cached_images_equal_the_images_read(located: CocoDataset) -> None:
    dataset = tiles(located, flip=True, quarter_turns=True, photometric=0.3)
    first = dataset[3, 0]
    for image in located.images:
        assert dataset[3, 0] is not first
        assert image.boxes[0].tolist() == [20, 20, 60, 44]
    assert torch.equal(dataset[3, 0].pixels, first.pixels)
    assert torch.equal(dataset[3, 0].targets.boxes, first.targets.boxes)


def test_the_recipes_scale_scales_boxes_with_pixels(painted: CocoDataset) -> None:
    sample = tiles(painted, tile_px=128, scale=2.0)[0, 0]
    assert sample.targets.boxes.tolist() == [[2 * value for value in BOX]]
    half = tiles(painted, tile_px=32, scale=0.5)
    for epoch in range(20):
        sample = half[epoch, 0]
        red = sample.pixels[0].float() - sample.pixels[1].float() > 100
        if len(sample.targets.boxes):
            inside = torch.zeros_like(red)
            x1, y1, x2, y2 = (round(value) for value in sample.targets.boxes[0].tolist())
            inside[y1:y2, x1:x2] = True
            assert (red != inside).sum() <= red.sum() * 0.35


@given(seed=st.integers(0, 2**31))
def test_jittered_boxes_enclose_their_objects(painted: CocoDataset, seed: int) -> None:
    sample = tiles(painted, tile_px=128, seed=seed, scale_jitter=(0.6, 1.9), flip=True, quarter_turns=True)[0, 0]
    red = (sample.pixels[0].int() - sample.pixels[1].int()) > 80
    found = torch.nonzero(red)
    (top, left), (bottom, right) = found.min(dim=0).values, found.max(dim=0).values
    painted_box = torch.stack([left, top, right + 1, bottom + 1]).float()
    assert (sample.targets.boxes[0] - painted_box).abs().max() <= 1.01


def test_colors_change_only_with_photometric_augmentation(painted: CocoDataset) -> None:
    plain, colored = tiles(painted)[0, 0], tiles(painted, photometric=0.5)[0, 0]
    assert not torch.equal(plain.pixels, colored.pixels)
    assert torch.equal(plain.targets.boxes, colored.targets.boxes)
    assert len(cells(plain, PAINT)) == (BOX[2] - BOX[0]) * (BOX[3] - BOX[1])


@given(length=st.integers(1, 40), batch_size=st.integers(1, 9), seed=st.integers(0, 2**31), epoch=st.integers(0, 99))
def test_an_epoch_is_a_shuffle_in_complete_batches(length: int, batch_size: int, seed: int, epoch: int) -> None:
    length = max(length, batch_size)
    sampler = EpochSampler(length, batch_size, seed=seed)
    sampler.epoch = epoch
    batches = list(sampler)
    assert len(batches) == len(sampler) == length // batch_size
    assert all(len(batch) == batch_size for batch in batches)
    keys = [key for batch in batches for key in batch]
    assert {key[0] for key in keys} == {epoch}
    indices = [key[1] for key in keys]
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(length))
    again = EpochSampler(length, batch_size, seed=seed)
    again.epoch = epoch
    assert list(again) == batches


def test_epochs_differ_in_order() -> None:
    sampler = EpochSampler(30, 5, seed=0)
    orders = []
    for epoch in range(4):
        sampler.epoch = epoch
        orders.append(tuple(key[1] for batch in sampler for key in batch))
    assert len(set(orders)) == 4


def test_collated_tiles_keep_their_order(painted: CocoDataset) -> None:
    dataset = tiles(painted, flip=True, quarter_turns=True)
    samples = [dataset[epoch, 0] for epoch in range(3)]
    batch = collate(samples)
    assert len(batch.targets) == 3
    assert batch.image_ids == [1, 1, 1]
    for row, sample in enumerate(samples):
        assert torch.equal(batch.pixels[row], sample.pixels)
        assert batch.targets[row] is sample.targets


def as_torchvision(dataset: CocoDataset) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]:
    """Return the only image of a data set and its boxes in torchvision's own types."""
    (image,) = dataset.images
    pixels = torch.from_numpy(read_image(image.path)).permute(2, 0, 1)
    boxes = tv_tensors.BoundingBoxes(torch.from_numpy(image.boxes), format="XYXY", canvas_size=image.size)
    return tv_tensors.Image(pixels), boxes


def test_flips_and_rotations_are_those_of_torchvision(painted: CocoDataset) -> None:
    pixels, boxes = as_torchvision(painted)
    known = []
    for turns, mirrored in product(range(4), (False, True)):
        turned = [transforms.rotate(part, 90.0 * turns, expand=True) for part in (pixels, boxes)]
        known.append([transforms.horizontal_flip(part) for part in turned] if mirrored else turned)
    dataset = tiles(painted, flip=True, quarter_turns=True)
    found = set()
    for epoch in range(64):
        sample = dataset[epoch, 0]
        same = []
        for number, (image, expected) in enumerate(known):
            height, width = image.shape[1:]
            inside = sample.pixels[:, :height, :width]
            if torch.equal(inside, image.as_subclass(torch.Tensor)):
                same.append(number)
                torch.testing.assert_close(sample.targets.boxes, expected.as_subclass(torch.Tensor), rtol=0, atol=1e-4)
        assert len(same) == 1
        found.add(same[0])
    assert len(found) == 8


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
def test_crops_are_those_of_torchvision(located: CocoDataset, seed: int, epoch: int) -> None:
    sample = tiles(located, seed=seed)[epoch, 0]
    left, top = (int(value) for value in sample.pixels[:2, 0, 0])
    pixels, boxes = as_torchvision(located)
    assert torch.equal(sample.pixels, transforms.crop(pixels, top, left, 64, 64).as_subclass(torch.Tensor))
    cut = transforms.crop(boxes, top, left, 64, 64).as_subclass(torch.Tensor)
    shown = cut[(cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])].tolist()
    assert sorted(shown) == sorted(sample.targets.boxes.tolist() + sample.targets.ignored.tolist())


@given(zoom=st.floats(0.3, 3.0))
def test_scaled_boxes_are_those_of_torchvision(located: CocoDataset, zoom: float) -> None:
    pixels, boxes = load_scaled(located.images[0], zoom)
    expected = transforms.resize(as_torchvision(located)[1], list(pixels.shape[:2])).as_subclass(torch.Tensor)
    torch.testing.assert_close(torch.from_numpy(boxes), expected, rtol=1e-5, atol=1e-4)


@given(seed=st.integers(0, 2**31), most=st.floats(0.05, 1.0))
def test_speckle_has_a_mean_of_one_and_moves_no_box(
    tmp_path_factory: pytest.TempPathFactory, seed: int, most: float
) -> None:
    gray = write(tmp_path_factory.mktemp("gray") / "set", np.full((128, 128, 3), 60, np.uint8), [(10, 10, 40, 50)])
    plain = tiles(gray, tile_px=128, seed=seed)
    noisy = tiles(gray, tile_px=128, seed=seed, speckle=most)
    deviations = []
    for epoch in range(8):
        sample = noisy[epoch, 0]
        assert torch.equal(sample.targets.boxes, plain[epoch, 0].targets.boxes)
        assert torch.equal(sample.pixels[0], sample.pixels[1])
        assert torch.equal(sample.pixels[0], sample.pixels[2])
        values = sample.pixels[0].double()
        assert float(values.mean()) == pytest.approx(60, rel=0.05)
        deviations.append(float(values.std()) / 60)
    assert max(deviations) <= 1.1 * most + 0.01
    assert len({round(value, 4) for value in deviations}) > 1


def test_zero_speckle_changes_nothing(located: CocoDataset) -> None:
    options = {"flip": True, "quarter_turns": True, "photometric": 0.4, "scale_jitter": (0.7, 1.3)}
    for epoch in range(5):
        plain, with_zero = tiles(located, **options)[epoch, 0], tiles(located, **options, speckle=0.0)[epoch, 0]
        noisy = tiles(located, **options, speckle=0.3)[epoch, 0]
        assert torch.equal(plain.pixels, with_zero.pixels)
        assert torch.equal(plain.targets.boxes, noisy.targets.boxes)
        assert not torch.equal(plain.pixels, noisy.pixels)


HULLS = [(60.0, 40.0, 50.0, 12.0, 30.0), (120.0, 100.0, 40.0, 8.0, 100.0), (200.0, 60.0, 30.0, 30.0, 45.0),
         (30.0, 150.0, 60.0, 10.0, 0.0), (150.0, 160.0, 90.0, 10.0, 135.0)]  # fmt: skip
"""Center x, center y, length, width and angle of objects of an image of 240 x 200 pixels."""


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """An image whose red is the column and green the row, with oriented boxes; the last object is a crowd without."""
    rows, columns = np.mgrid[0:200, 0:240]
    pixels = np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)
    points = corners(np.array(HULLS, np.float32))
    boxes = [(*one.min(axis=0).tolist(), *one.max(axis=0).tolist()) for one in points]
    folder = tmp_path_factory.mktemp("turned") / "set"
    write(folder, pixels, [*boxes, (60, 60, 90, 90)], crowds=(5,))
    content = json.loads((folder / "a.json").read_text())
    for annotation, one in zip(content["annotations"], points.tolist(), strict=False):
        annotation["segmentation"] = [[value for point in one for value in point]]
    (folder / "a.json").write_text(json.dumps(content))
    return read_coco(folder / "a.json")


def assert_same_boxes(oriented: torch.Tensor, expected: Any) -> None:
    """Compare oriented boxes with corners [n, 8] in any order, by the nearest corners."""
    found, wanted = corners(oriented.numpy()), np.asarray(expected, np.float64).reshape(-1, 4, 2)
    assert found.shape == wanted.shape
    distances = np.linalg.norm(found[:, :, None] - wanted[:, None], axis=-1)
    assert distances.min(axis=2).max(initial=0) < 0.01
    assert distances.min(axis=1).max(initial=0) < 0.01


def rotated_boxes(dataset: CocoDataset) -> tv_tensors.BoundingBoxes:
    """Return the objects' oriented boxes in torchvision's own type; its angle grows counterclockwise."""
    x, y, length, width, angle = torch.from_numpy(dataset.images[0].oriented[:5]).T
    boxes = torch.stack([x, y, length, width, -angle], dim=1)
    return tv_tensors.BoundingBoxes(boxes, format="CXCYWHR", canvas_size=dataset.images[0].size)


def corners_of(boxes: tv_tensors.BoundingBoxes) -> torch.Tensor:
    converted = transforms.convert_bounding_box_format(boxes, new_format="XYXYXYXY")
    return converted.as_subclass(torch.Tensor)


def test_oriented_boxes_flip_and_rotate_as_those_of_torchvision(turned: CocoDataset) -> None:
    pixels, _ = as_torchvision(turned)
    known = []
    for turns, mirrored in product(range(4), (False, True)):
        parts = [transforms.rotate(part, 90.0 * turns, expand=True) for part in (pixels, rotated_boxes(turned))]
        known.append([transforms.horizontal_flip(part) for part in parts] if mirrored else parts)
    dataset = tiles(turned, tile_px=256, oriented=True, flip=True, quarter_turns=True)
    found = set()
    for epoch in range(64):
        sample = dataset[epoch, 0]
        for number, (image, expected) in enumerate(known):
            if torch.equal(sample.pixels[:, : image.shape[1], : image.shape[2]], image.as_subclass(torch.Tensor)):
                assert_same_boxes(sample.targets.oriented, corners_of(expected))
                found.add(number)
    assert len(found) == 8


@given(zoom=st.floats(0.4, 2.5))
def test_scaled_oriented_boxes_are_those_of_torchvision(turned: CocoDataset, zoom: float) -> None:
    sample = tiles(turned, tile_px=640, scale_jitter=(zoom, zoom), oriented=True)[0, 0]
    size = [round(side * zoom) for side in (200, 240)]
    found, keypoints = corners(sample.targets.oriented.numpy()), corners(turned.images[0].oriented[:5])
    points = tv_tensors.KeyPoints(torch.from_numpy(keypoints), canvas_size=(200, 240))
    expected = transforms.resize(points, size).numpy()
    for one, other in zip(found, expected, strict=True):
        # Sizes are whole pixels, so the factors differ by up to 1 / 80 and a rectangle becomes a parallelogram.
        gap = np.linalg.norm(one[:, None] - other[None], axis=-1).min(axis=1).max()
        assert gap <= 1.0 * zoom


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
def test_crops_keep_objects_by_the_visible_fraction_of_their_oriented_boxes(
    turned: CocoDataset, seed: int, epoch: int
) -> None:
    sample = tiles(turned, seed=seed, oriented=True)[epoch, 0]
    left, top = (int(value) for value in sample.pixels[:2, 0, 0])
    window = shapely.box(left, top, left + 64, top + 64)
    whole = [shapely.Polygon(one) for one in corners(turned.images[0].oriented[:5])]
    parts = [one.intersection(window) for one in whole]
    shown = [part for one, part in zip(whole, parts, strict=True) if part.area / one.area >= 0.4]
    assert len(sample.targets.oriented) == len(sample.targets.boxes) == len(sample.targets.labels) == len(shown)
    bounds = np.array([part.bounds for part in shown]).reshape(-1, 4) - [left, top, left, top]
    np.testing.assert_allclose(sample.targets.boxes, bounds, atol=0.01)
    for box, part in zip(corners(sample.targets.oriented.numpy()), shown, strict=True):
        assert shapely.Polygon(box + np.array([left, top])).buffer(0.01).contains(part)
    assert not torch.isnan(sample.targets.oriented).any()
    assert not torch.isnan(sample.targets.ignored).any()


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
def test_an_upright_detector_does_not_notice_oriented_labels(
    turned: CocoDataset, tmp_path_factory: pytest.TempPathFactory, seed: int, epoch: int
) -> None:
    plain = replace(turned, images=tuple(replace(image, oriented=None) for image in turned.images))
    options = {"seed": seed, "flip": True, "quarter_turns": True, "scale_jitter": (0.7, 1.3)}
    first, second = tiles(turned, **options)[epoch, 0], tiles(plain, **options)[epoch, 0]
    assert first.targets.oriented is None
    for name in ("boxes", "labels", "ignored"):
        assert torch.equal(getattr(first.targets, name), getattr(second.targets, name))
    assert torch.equal(first.pixels, tiles(turned, oriented=True, **options)[epoch, 0].pixels)


def test_four_quarter_turns_are_the_identity(turned: CocoDataset) -> None:
    def draws(seed: int) -> list[bool]:
        return (np.random.default_rng(seed).random(3) < 0.5).tolist()

    seed = next(seed for seed in range(200) if draws(seed) == [True, True, False])  # transposed, then flipped along x
    image = turned.images[0]
    start = LabeledPixels(read_image(image.path), image.boxes, image.oriented)
    found = start
    options = recipe.AugmentationOptions(flip=True, quarter_turns=True)
    for turn in range(1, 5):
        found = flip_and_rotate(found, options, np.random.default_rng(seed))
        angles = np.mod(start.oriented[:5, 4] + 90 * turn, np.where(start.oriented[:5, 2] > 30, 180, 90))
        np.testing.assert_allclose(found.oriented[:5, 4], angles, atol=1e-4)
    assert (found.pixels == start.pixels).all()
    np.testing.assert_allclose(found.boxes, start.boxes, atol=1e-4)
    np.testing.assert_allclose(found.oriented, start.oriented, atol=1e-4)


def test_upright_rectangles_give_the_boxes_of_an_upright_detector(located: CocoDataset, tmp_path: Path) -> None:
    content = json.loads(located.path.read_text())
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    (tmp_path / "a.json").write_text(json.dumps(content))
    labeled = read_coco(tmp_path / "a.json", images=located.images[0].path.parent)
    options = {"flip": True, "quarter_turns": True, "scale_jitter": (0.7, 1.3)}
    for epoch in range(50):
        upright, oriented = (tiles(labeled, oriented=one, **options)[epoch, 0].targets for one in (False, True))
        torch.testing.assert_close(oriented.boxes, upright.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(
            torch.from_numpy(envelopes(oriented.oriented.numpy())), upright.boxes, rtol=0, atol=0.05
        )


def test_an_oriented_detector_refuses_labels_without_oriented_boxes(located: CocoDataset) -> None:
    with pytest.raises(DataError, match=r"5 of 5 objects of .* have no oriented box"):
        tiles(located, oriented=True)
