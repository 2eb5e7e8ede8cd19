import numpy as np
import pytest
from fakes import drifting_engine as fake

from deploy.accuracy.evaluation import open_data
from deploy.accuracy.image_detection import TilingConfig, detect_images, prepare_tiles
from ifkd.core.detections import Detections
from ifkd.core.postprocess import PostprocessConfig
from ifkd.data.metrics import evaluate


def tiling(scale=1.0, **postprocess):
    return TilingConfig(scale, (fake.TILE, fake.TILE), 24, PostprocessConfig(**postprocess))


def data_at(path):
    return open_data(path, images=None, recipe=None, classes=fake.CLASSES, command="evaluate")


def detect(engine, dataset, config):
    return {image_id: one.detections for image_id, one in detect_images(engine, dataset.images, config, batch=4)}


def test_large_images_are_tiled_and_merged(tmp_path):
    dataset = data_at(fake.write_dataset(tmp_path / "w", images=2, size=(200, 260), objects=30))
    assert len(prepare_tiles(np.zeros((200, 260, 3), np.uint8), tiling()).windows) == 12
    found = detect(fake.make_engine(), dataset, tiling())
    assert sum(map(len, found.values())) == 60
    assert evaluate(dataset, found).mean_ap == pytest.approx(1.0)


def test_the_limit_of_detections_is_that_of_a_tile(tmp_path):
    dataset = data_at(fake.write_dataset(tmp_path / "w", images=1, size=(200, 260), objects=30))
    (found,) = detect(fake.make_engine(), dataset, tiling(max_detections=12)).values()
    assert len(found) == 30


def test_detections_of_scaled_images_are_in_pixels_of_the_image(tmp_path):
    path = fake.write_dataset(tmp_path / "w", images=1, size=(161, 175))  # at half scale 80 x 88
    corner = Detections(np.array([[8, 4, 40, 44]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    found = detect(fake.make_engine(lambda _: corner), data_at(path), tiling(scale=0.5))
    right, down = 175 / 88, 161 / 80
    np.testing.assert_allclose(found[1].boxes, [[8 * right, 4 * down, 40 * right, 44 * down]], rtol=1e-6)


def test_detections_in_the_padding_are_dropped(tmp_path):
    path = fake.write_dataset(tmp_path / "w", images=1, size=(60, 50))
    boxes = np.array([[40, 10, 70, 30], [60, 70, 80, 90]], np.float32)
    both = Detections(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64))
    found = detect(fake.make_engine(lambda _: both), data_at(path), tiling())
    np.testing.assert_array_equal(found[1].boxes, [[40, 10, 50, 30]])


def test_the_batch_size_changes_nothing(tmp_path):
    dataset = data_at(fake.write_dataset(tmp_path / "w", images=5, size=(120, 90)))
    one, many = (dict(detect_images(fake.make_engine(), dataset.images, tiling(), batch=batch)) for batch in (1, 4))
    for image_id, result in one.items():
        np.testing.assert_array_equal(result.detections.boxes, many[image_id].detections.boxes)
        np.testing.assert_array_equal(result.detections.scores, many[image_id].detections.scores)


def test_candidates_reach_down_to_half_the_threshold(tmp_path):
    dataset = data_at(fake.write_dataset(tmp_path / "w", images=1))

    def faint(tile):
        found = fake.find_squares(tile)
        found.scores[:] = [0.8, 0.55, 0.35, 0.25]
        return found

    (result,) = dict(
        detect_images(
            fake.make_engine(faint), dataset.images, tiling(score_threshold=0.6), batch=1, keep_candidates=True
        )
    ).values()
    assert (len(result.detections), len(result.candidates)) == (1, 3)
