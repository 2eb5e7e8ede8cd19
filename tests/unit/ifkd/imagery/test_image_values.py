"""Data types, channels and range of training images."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from ifkd.core.errors import DataError
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.image_values import IMAGES, ImageValues, image_values

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
RNG = np.random.default_rng(0)


def write(path: Path, pixels: np.ndarray) -> Path:
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype
    ) as dataset:
        dataset.write(pixels)
    return path


def test_types_channels_and_range(tmp_path: Path) -> None:
    colors = RNG.integers(20, 200, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "a.png")
    Image.fromarray(colors[..., 0]).save(tmp_path / "b.png")
    deep = RNG.integers(900, 3000, (5, 30, 40)).astype(np.uint16)
    paths = [tmp_path / "a.png", tmp_path / "b.png", write(tmp_path / "c.tif", deep)]
    values = image_values(paths, ImageryOptions())
    assert (values.images, values.dtypes, values.channels) == (3, ("uint16", "uint8"), (1, 3))
    pooled = np.concatenate([colors.ravel(), colors[..., 0].ravel(), deep[:3].ravel()])
    assert (values.low, values.high) == tuple(np.percentile(pooled, (2, 98)))
    assert ImageValues.of_provenance({"image_values": values.model_dump(mode="json")}) == values
    assert ImageValues.of_provenance({}) is None
    assert image_values(paths, ImageryOptions(bands=(1,))).channels == (1,)


def test_at_most_a_few_images_are_read_and_remarks_are_kept(tmp_path: Path) -> None:
    pixels = RNG.integers(900, 3000, (1, 30, 40)).astype(np.int16)
    pixels[:, :5] = -32768
    paths = [write(tmp_path / f"{index}.tif", pixels) for index in range(IMAGES + 9)]
    values = image_values(paths, ImageryOptions())
    assert values.images == IMAGES
    assert values.low > 900
    assert "-32768" in values.remarks[0]


def test_an_unreadable_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("no image")
    with pytest.raises(DataError, match="is not an image that can be read"):
        image_values([tmp_path / "a.tif"], ImageryOptions())
    with pytest.raises(DataError, match="one or three of 1"):
        image_values([write(tmp_path / "b.tif", np.ones((1, 4, 4), np.uint8))], ImageryOptions(bands=(2,)))
