import numpy as np
from fakes import drifting_engine as fake

from deploy.accuracy.evaluation import open_data
from deploy.accuracy.image_detection import TilingConfig
from deploy.bench.bench import NOISE_SEED, bench_tiles
from ifkd.core.postprocess import PostprocessConfig

TILING = TilingConfig(1.0, (fake.TILE, fake.TILE), 24, PostprocessConfig())


def test_tiles_are_those_of_the_images(tmp_path):
    path = fake.write_dataset(tmp_path / "w", images=3)
    dataset = open_data(path, images=None, recipe=None, classes=fake.CLASSES, command="bench")
    found, source = bench_tiles(dataset, TILING)
    assert found.shape == (3, 3, fake.TILE, fake.TILE)
    assert found.dtype == np.uint8
    assert (source.kind, source.tiles) == ("images", 3)
    assert "test.json" in source.description
    assert len(fake.find_squares(found[0])) == 4


def test_without_images_the_tiles_are_noise_and_say_so():
    found, source = bench_tiles(None, TILING)
    again, _ = bench_tiles(None, TILING)
    np.testing.assert_array_equal(found, again)
    assert source.kind == "noise"
    assert "noise" in source.description
    expected = np.random.default_rng(NOISE_SEED).integers(0, 256, found.shape, np.uint8)
    np.testing.assert_array_equal(found, expected)
