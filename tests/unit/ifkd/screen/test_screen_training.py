"""Training of a screen: it finds what is labeled or what the teacher detects, and resumes like every run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.cli.main import main
from ifkd.core.config import parse
from ifkd.core.detections import Detections
from ifkd.core.errors import CheckpointError, OutputError, TrainingError
from ifkd.data.coco import LabeledImage, read_coco
from ifkd.imagery.image_files import read_image
from ifkd.imagery.objectness import box_objectness
from ifkd.models import normalize
from ifkd.recipe import Recipe
from ifkd.screen import screen_training
from ifkd.screen.checkpoint import load_screen
from ifkd.screen.network import STRIDE
from ifkd.screen.screen_training import screen_data, train_screen, with_detections
from ifkd.training.prediction import as_batch


@pytest.fixture
def recipe(recipe_values: dict[str, Any]) -> Recipe:
    screen = {"scale": 0.5, "channels": 16, "epochs": 2, "batch_size": 4}
    return parse({**recipe_values, "screen": screen}, Recipe, source="values")


class Stopped(Exception):  # noqa: N818
    """Stops a run before its training."""


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_screen(path)[0].state_dict()


def test_it_learns_to_find_objects(recipe: Recipe, tmp_path: Path, write_data_set: Callable[..., Path]) -> None:
    screen = recipe.screen.model_copy(update={"epochs": 30, "learning_rate": 0.01, "scale": 1.0})
    result = train_screen(recipe.model_copy(update={"screen": screen}), tmp_path / "run")
    network, meta = load_screen(tmp_path / "run" / result.checkpoint)
    assert (result.best_validation_map, meta.provenance["role"]) == (None, "screen")
    inside, outside = [], []
    for image in read_coco(write_data_set(tmp_path / "other", images=4, seed=9)).images:
        with torch.inference_mode():
            found = network(normalize(as_batch([read_image(image.path)]))).sigmoid()[0, 0].numpy()
        inside += box_objectness(found, image.boxes, cell_px=float(STRIDE)).tolist()
        cells = np.stack(np.meshgrid(*[np.arange(0, 64, STRIDE)] * 2), axis=-1).reshape(-1, 2)
        cells = np.concatenate([cells, cells + STRIDE], axis=1)
        empty = [box for box in cells if not touches(box, image.boxes)]
        outside += box_objectness(found, np.array(empty), cell_px=float(STRIDE)).tolist()
    assert min(inside) > 0.4
    assert np.quantile(outside, 0.9) < 0.3


def touches(box: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> bool:
    return bool(((others[:, :2] < box[2:]) & (others[:, 2:] > box[:2])).all(axis=1).any())


def test_the_same_recipe_gives_the_same_weights_and_a_finished_run_returns(recipe: Recipe, tmp_path: Path) -> None:
    first, second = train_screen(recipe, tmp_path / "a"), train_screen(recipe, tmp_path / "b")
    one, other = weights_of(tmp_path / "a" / first.checkpoint), weights_of(tmp_path / "b" / second.checkpoint)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert train_screen(recipe, tmp_path / "a") == first
    changed = recipe.model_copy(update={"screen": recipe.screen.model_copy(update={"epochs": 3})})
    with pytest.raises(OutputError, match="a run with other settings"):
        train_screen(changed, tmp_path / "a")


def test_the_teachers_detections_become_objects(
    recipe: Recipe, tmp_path: Path, checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Detections(np.array([[40, 40, 60, 60]], np.float32), np.array([0.9], np.float32), np.zeros(1, np.int64))
    seen = []

    def stop(run: Any, _screen: Any) -> None:
        seen.append(run)
        raise Stopped

    monkeypatch.setattr(
        screen_training, "predict_tiles", lambda _, dataset, __: [(one.id, found) for one in dataset.images]
    )
    monkeypatch.setattr(screen_training, "train", stop)
    for teacher in (None, checkpoint_path):
        with pytest.raises(Stopped):
            train_screen(recipe, tmp_path / "run", teacher=teacher)
    plain, taught = ([image.boxes.tolist() for image in run.train_data.images] for run in seen)
    assert any(len(more) == len(fewer) + 1 for fewer, more in zip(plain, taught, strict=True))
    assert all(more[: len(fewer)] == fewer for fewer, more in zip(plain, taught, strict=True))


def test_a_teacher_of_another_scale_is_refused(recipe: Recipe, tmp_path: Path, checkpoint_path: Path) -> None:
    data = recipe.data.model_copy(update={"scale": 0.5})
    with pytest.raises(CheckpointError, match="trained at another scale"):
        train_screen(recipe.model_copy(update={"data": data}), tmp_path / "run", teacher=checkpoint_path)


def test_weak_and_known_detections_add_nothing() -> None:
    boxes = np.array([[0, 0, 10, 10]], np.float32)
    image = LabeledImage(1, Path("a"), (64, 64), boxes, np.array([2]), "a", np.array([True]))
    corners = np.array([[0, 0, 10, 9], [20, 20, 30, 30], [40, 40, 50, 50]], np.float32)
    found = Detections(corners, np.array([0.9, 0.5, 0.2], np.float32), np.zeros(3, np.int64))
    taught = with_detections(image, found, score=0.3)
    assert taught.boxes.tolist() == [[0, 0, 10, 10], [20, 20, 30, 30]]
    assert taught.ignore.tolist() == [True, False]
    assert len(with_detections(image, Detections.empty(), score=0.3).boxes) == 1


def test_pieces_of_objects_add_nothing() -> None:
    """Of a labeled object, and of a detection that another tile shows completely."""
    boxes = np.array([[0, 0, 40, 10]], np.float32)
    image = LabeledImage(1, Path("a"), (64, 64), boxes, np.array([2]), "a", np.array([False]))
    corners = np.array([[28, 0, 44, 10], [0, 30, 40, 40], [0, 30, 12, 40]], np.float32)
    found = Detections(corners, np.array([0.9, 0.8, 0.9], np.float32), np.zeros(3, np.int64))
    assert with_detections(image, found, score=0.3).boxes.tolist() == [[0, 0, 40, 10], [0, 30, 40, 40]]


def test_tiles_are_at_the_screens_scale_and_no_larger_than_the_images(recipe: Recipe) -> None:
    image = LabeledImage(1, Path("a"), (50, 90), np.zeros((0, 4)), np.zeros(0), "a", np.zeros(0, bool))
    data = screen_data(recipe, (image,))
    assert (data.scale, data.tile_px) == (0.5, 48)


def test_too_few_images_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    screen = recipe.screen.model_copy(update={"batch_size": 32})
    with pytest.raises(TrainingError, match=r"fewer images than one batch of screen\.batch_size: got 8"):
        train_screen(recipe.model_copy(update={"screen": screen}), tmp_path / "run")


def test_a_detectors_checkpoint_is_no_screen(checkpoint_path: Path) -> None:
    with pytest.raises(CheckpointError, match="header"):
        load_screen(checkpoint_path)


def test_a_teacher_needs_the_role_screen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", str(tmp_path / "recipe.toml"), "--teacher", "x.safetensors"]) == 2
    assert "--teacher needs --role screen: got student" in capsys.readouterr().err
