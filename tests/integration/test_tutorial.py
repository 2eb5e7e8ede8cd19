"""Run the commands of docs/tutorial.md, on a tiny data set and with tiny networks."""

import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tomli_w
from affine import Affine

from deploy.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text("utf-8")
MAY_FAIL_ITS_LIMITS = ("data check", "export", "bench", "parity", "report")
"""Commands that exit 1 when a result fails its limits: an untrained network does, and a busy machine may."""


def fenced_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def tiny_recipe() -> str:
    """Return the tutorial's recipe with networks and schedules of a few seconds."""
    (text,) = fenced_blocks("toml")
    recipe = tomllib.loads(text)
    recipe["data"]["tile_px"] = 64
    recipe["teacher"]["detector"].update(backbone="resnet18", channels=16)
    recipe["student"]["detector"].update(channels=16)
    for role in ("teacher", "student"):
        del recipe[role]["detector"]["backbone_weights"]
        recipe[role]["training"].update(epochs=1, batch_size=4)
    recipe["distillation"]["training"].update(epochs=1, batch_size=4)
    recipe["distillation"].update(min_teacher_map=0.0)
    recipe["distillation"]["method"]["ede"].update(input_px="native", weights="random")
    recipe["export"] = {"candidates_per_level": 50, "overlap_px": 16, "precisions": ["fp32"]}
    return tomli_w.dumps(recipe)


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run(tmp_path, monkeypatch, write_data_set):
    monkeypatch.chdir(tmp_path)
    write_data_set(tmp_path / "harbor", "train", images=12, seed=0)
    write_data_set(tmp_path / "harbor", "test", images=4, seed=1)
    (tmp_path / "harbor.toml").write_text(tiny_recipe())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 160, 200), np.uint8)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 160, "width": 200}
    with rasterio.open("scene.tif", "w", **profile, crs="EPSG:32633", transform=Affine(1, 0, 4e5, 0, -1, 5e6)) as scene:
        scene.write(pixels)

    commands = [line for block in fenced_blocks("sh") for line in block.splitlines()]
    assert len(commands) > 10
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "ifkd"
        code = main(words)
        allowed = {0, 1} if " ".join(words).startswith(MAY_FAIL_ITS_LIMITS) else {0}
        assert code in allowed, command

    for made in ("detections/map.html", "detections/detections.gpkg", "report/report.html", "bundle/model.onnx"):
        assert (tmp_path / "runs" / "harbor" / made).is_file(), made
    assert (tmp_path / "harbor" / "check" / "check.html").is_file()


@pytest.mark.parametrize("key", ["name", "data", "teacher", "student", "distillation"])
def test_the_recipe_of_the_tutorial_is_complete(key):
    (text,) = fenced_blocks("toml")
    assert key in tomllib.loads(text)
