"""The main job in small: generated data, teacher, distillation, bundle, engines, scene, figures, report."""

import json
import tomllib
from pathlib import Path

import pyogrio
import pytest
import rasterio
import tomli_w
from huggingface_hub import ModelCard

from deploy.cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(
    scope="module",
    params=[["fp32", "fp16"], pytest.param(["fp32", "fp16", "int8-cpu"], marks=pytest.mark.slow)],
    ids="-".join,
)
def whole_way(request, tmp_path_factory):
    """Walk the Makefile's way with the demo's recipe, shrunk until it takes seconds; INT8 is what takes longest."""
    folder = tmp_path_factory.mktemp("way")
    data = tomllib.loads((ROOT / "configs/demo_data.toml").read_text())
    data.update(tile_px=128, gsd_m=4.0)
    data["images"].update(train=8, validation=4, test=4)
    data["scenes"].update(size_px=[256, 320], block_px=128)
    recipe = tomllib.loads((ROOT / "configs/demo.toml").read_text())
    recipe["data"].update(root=str(folder / "data"), scale=0.5, tile_px=64)
    for training in (recipe["teacher"], recipe["student"], recipe["distillation"]):
        training["training"].update(epochs=1, batch_size=4, compute={"amp": "none"})
    for role in ("teacher", "student"):
        recipe[role]["detector"].update(backbone="mobilenet_v2", channels=16)
    recipe["distillation"]["min_teacher_map"] = 0.0
    recipe["distillation"]["method"]["ede"]["weights"] = "random"
    recipe["export"].update(precisions=request.param, candidates_per_level=100, overlap_px=16, gsd_m=4.0)
    recipe["export"]["scene_score_threshold"] = 0.001
    (folder / "data.toml").write_text(tomli_w.dumps(data))
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    scene = folder / "data/scenes/scene_00.tif"
    for words in (
        ["data", "synth", folder / "data.toml", "--out", folder / "data", "--workers", "1"],
        ["train", folder / "recipe.toml", "--role", "teacher", "--out", folder / "teacher"],
        [
            "distill",
            folder / "recipe.toml",
            "--teacher",
            folder / "teacher/best.safetensors",
            "--out",
            folder / "distilled",
        ],
        ["evaluate", folder / "distilled/best.safetensors", "--out", folder / "distilled.json"],
        ["export", folder / "distilled/best.safetensors", "--out", folder / "bundle", "--accept-drift"],
        ["engine", folder / "bundle"],
        [
            "detect",
            folder / "bundle",
            scene,
            "--ground-truth",
            scene.with_suffix(".json"),
            "--out",
            folder / "detections",
        ],
        ["bench", folder / "bundle", "--seconds", 0.1, "--samples", 6, "--rounds", 2, "--out", folder / "bench.json"],
    ):
        assert main([str(word) for word in words]) == 0, words
    # A nearly untrained detector may exceed parity tolerances; the result is written anyway.
    assert main(["parity", str(folder / "bundle"), "--out", str(folder / "parity.json")]) in (0, 1)
    words = ["report", "--out", folder / "report", "--title", "small", "--detection", folder / "detections"]
    words += ["--evaluation", f"distilled={folder / 'distilled.json'}", "--bench", folder / "bench.json"]
    words += ["--parity", folder / "parity.json", "--model-card", folder / "bundle"]
    assert main([str(word) for word in words]) in (0, 1)
    return folder


def test_every_station_leaves_its_artifact(whole_way):
    for name in (
        "teacher/best.safetensors",
        "distilled/metrics.jsonl",
        "bundle/model.onnx",
        "bundle/model.fp16.onnx",
        "detections/detections.gpkg",
        "report/report.html",
        "report/report.md",
    ):
        assert (whole_way / name).stat().st_size > 0, name


def test_the_bundle_holds_engines_of_both_precisions(whole_way):
    manifest = json.loads((whole_way / "bundle/model.json").read_text())
    engines = [record["precision"] for record in manifest["files"].values() if record["kind"] == "engine"]
    assert sorted(engines) == ["fp16", "fp32"]


def test_the_model_card_has_the_measurements_of_the_bundle_and_nothing_else_changed(whole_way):
    assert main(["verify", str(whole_way / "bundle")]) == 0
    card = (whole_way / "bundle/README.md").read_text()
    evaluation = json.loads((whole_way / "distilled.json").read_text())
    name = f"mAP (model.safetensors, torch {evaluation['engine']['backend_version']} fp32"
    (read,) = (one for one in ModelCard(card).data.eval_results if one.metric_name.startswith(name))
    assert read.metric_value == evaluation["metrics"]["mean_ap"]
    for cell in json.loads((whole_way / "parity.json").read_text())["cells"]:
        assert f"| {cell['engine']['file']} | {cell['backend']} {cell['precision']} | " in card


def test_the_student_was_distilled_with_a_stand_in_encoder_and_says_so(whole_way):
    manifest = json.loads((whole_way / "bundle/model.json").read_text())
    assert manifest["provenance"]["method"]["name"] == "ifkd"
    assert "random weights" in " ".join(manifest["provenance"]["notes"])
    assert "random weights" in (whole_way / "report/report.html").read_text()


def test_detections_lie_on_the_scene(whole_way):
    with rasterio.open(whole_way / "data/scenes/scene_00.tif") as scene:
        left, bottom, right, top = scene.bounds
        crs = scene.crs.to_epsg()
    info = pyogrio.read_info(whole_way / "detections/detections.gpkg", layer="detections")
    assert info["crs"] == f"EPSG:{crs}"
    assert info["features"] > 0
    x1, y1, x2, y2 = info["total_bounds"]
    assert left <= x1 <= x2 <= right
    assert bottom <= y1 <= y2 <= top


def test_every_loss_term_was_logged(whole_way):
    told = [json.loads(line) for line in (whole_way / "distilled/metrics.jsonl").read_text().splitlines()]
    first = next(entry for entry in told if "iteration" in entry)
    assert {"task/classification", "task/boxes", "method/feature", "method/head", "total"} <= set(first)


def test_the_same_commands_do_nothing_again(whole_way, capsys):
    before = (whole_way / "distilled/best.safetensors").stat().st_mtime_ns
    words = ["distill", "recipe.toml", "--teacher", "teacher/best.safetensors", "--out", "distilled"]
    assert main([word if word in {"distill", "--teacher", "--out"} else str(whole_way / word) for word in words]) == 0
    assert (whole_way / "distilled/best.safetensors").stat().st_mtime_ns == before
