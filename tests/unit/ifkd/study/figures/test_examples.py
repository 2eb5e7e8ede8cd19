"""Example images of figures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifkd.core.errors import UsageError
from ifkd.core.oriented_boxes import envelopes, from_upright
from ifkd.data.coco import read_coco
from ifkd.recipe import DataOptions
from ifkd.study.figures.examples import select_examples


@pytest.fixture
def options() -> DataOptions:
    return DataOptions(train=Path("t.json"), validation=0.5, test=Path("t.json"), tile_px=64)


def test_examples_are_windows_with_their_objects(
    data_folder: Path, write_data_set: Callable[..., Path], options: DataOptions
) -> None:
    write_data_set(data_folder, "large", images=2, size=(200, 150))
    dataset = read_coco(data_folder / "large.json")
    examples = select_examples(dataset, options, names=["100", "large_001.png"])
    for image, example in zip(dataset.images, examples, strict=True):
        assert example.name == image.path.stem
        assert example.size == (64, 64)
        pixels = np.asarray(Image.open(image.path))
        assert len(example.boxes) >= 1
        for box, label in zip(example.boxes, example.labels, strict=True):
            x1, y1, x2, y2 = box.round().astype(int)
            shown = example.pixels[(y1 + y2) // 2, (x1 + x2) // 2]
            boxes = image.boxes[np.flatnonzero(image.labels == label)]
            colors = [pixels[int(b[1] + b[3]) // 2, int(b[0] + b[2]) // 2] for b in boxes]
            assert any((shown == color).all() for color in colors)


def test_oriented_boxes_are_moved_and_resized_with_the_window(
    data_folder: Path, write_data_set: Callable[..., Path], options: DataOptions
) -> None:
    write_data_set(data_folder, "large", images=1, size=(200, 150))
    dataset = read_coco(data_folder / "large.json")
    image = dataset.images[0]
    turned = replace(dataset, images=(replace(image, oriented=from_upright(image.boxes)),))
    half = options.model_copy(update={"scale": 0.5})
    for data in (options, half):
        (example,) = select_examples(turned, data, names=["100"])
        assert example.oriented is not None
        inside = ((example.boxes > 0) & (example.boxes < 64)).all(1)
        assert envelopes(example.oriented)[inside] == pytest.approx(example.boxes[inside], abs=1e-3)
        assert inside.any()


def test_selected_examples_show_many_classes(data_folder: Path, options: DataOptions) -> None:
    examples = select_examples(read_coco(data_folder / "train.json"), options, count=2)
    assert {label for example in examples for label in example.labels.tolist()} == {0, 1, 2}


def test_an_unknown_image_is_refused_with_a_hint(data_folder: Path, options: DataOptions) -> None:
    message = r"no image 'val_01'.*Did you mean 'val_001'\? .*100 \(val_000\)"
    with pytest.raises(UsageError, match=message):
        select_examples(read_coco(data_folder / "val.json"), options, names=["val_01"])
