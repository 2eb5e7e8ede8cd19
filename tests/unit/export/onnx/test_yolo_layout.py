"""The layout of a YOLO: interface, metadata, and detections as other programs read them."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import geodeep
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import rasterio
import torch
from affine import Affine
from fakes.untrained_detectors import TILES
from torchvision.ops import batched_nms, box_convert

from deploy.engines import open_engine
from export.bundle.bundle import open_bundle
from export.onnx.yolo_layout import check_yolo_layout, write_yolo_layout, yolo_metadata
from ifkd.core.config import load, override
from ifkd.core.detections import Detections
from ifkd.core.files import sha256_of
from ifkd.core.postprocess import PostprocessConfig, postprocess
from ifkd.recipe import Recipe

NAME = "model.yolo.onnx"
CONFIGS = Path(__file__).parents[4] / "configs"
FIND_COLORS = """
<ir_version: 10, opset_import: ["" : 20]>
find_colors (uint8[batch, 3, 64, 64] tiles)
  => (float[batch, 2, 4] boxes, float[batch, 2] scores, int64[batch, 2] labels)
<int64[2] red_and_blue = {0, 2}, int64[2] axes = {2, 3}, int64[2] classes = {1, 0}, float bright = {200},
 float side = {64}, float half = {0.5}>
{
  colors = Gather<axis = 1>(tiles, red_and_blue)
  values = Cast<to = 1>(colors)
  found = Greater(values, bright)
  mask = Cast<to = 1>(found)
  right_ends = Mul(mask, column_ends)
  left_ends = Mul(mask, column_starts)
  bottom_ends = Mul(mask, row_ends)
  top_ends = Mul(mask, row_starts)
  right = ReduceMax<keepdims = 0>(right_ends, axes)
  left_of_right = ReduceMax<keepdims = 0>(left_ends, axes)
  bottom = ReduceMax<keepdims = 0>(bottom_ends, axes)
  top_of_bottom = ReduceMax<keepdims = 0>(top_ends, axes)
  left = Sub(side, left_of_right)
  top = Sub(side, top_of_bottom)
  corners = Concat<axis = 1>(left, top, right, bottom)
  by_color = Reshape(corners, four_by_two)
  boxes = Transpose<perm = [0, 2, 1]>(by_color)
  present = ReduceMax<keepdims = 0>(mask, axes)
  scores = Mul(present, half)
  zeros = Sub(scores, scores)
  integers = Cast<to = 7>(zeros)
  labels = Add(integers, classes)
}
"""
"""A detector that finds the red rectangle of a tile as class 1 and the blue one as class 0, with a score of 0.5."""


def write_color_detector(path: Path) -> Path:
    model = onnx.parser.parse_model(FIND_COLORS)
    ends = np.arange(1, 65, dtype=np.float32)
    constants = {"column_ends": ends, "column_starts": ends[::-1], "four_by_two": np.array([-1, 4, 2])}
    constants |= {"row_ends": ends[:, None], "row_starts": ends[::-1, None]}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.save(model, str(path))
    return path


def metadata_of(path: Path) -> dict[str, str]:
    return dict(onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map)


def recipe_of(bundle: Path, *overrides: str) -> Recipe:
    return override(load(bundle / "config.toml", Recipe), overrides, source="test")


@pytest.mark.parametrize("bundle", ["whole_bundle", "free_bundle"])
def test_it_has_the_shapes_and_the_versions_that_the_programs_load(bundle: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(bundle) / NAME
    model, source = onnx.load(str(path)), onnx.load(str(path.with_name("model.onnx")))
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    assert len(model.graph.node) == len(source.graph.node) + 18
    session = onnxruntime.InferenceSession(str(path))
    (images,), (output,) = session.get_inputs(), session.get_outputs()
    assert (images.type, images.shape) == ("tensor(float)", ["batch", 3, 64, 64])
    # A YOLO for 64 px has 84 anchors. A batch without a name tells Ultralytics to use the size in the metadata.
    assert (output.type, output.shape) == ("tensor(float)", [None, 4 + 3, 84])
    (found,) = session.run(None, {images.name: np.zeros((3, 3, 64, 64), np.float32)})
    assert found.shape == (3, 7, 84)
    assert (np.count_nonzero(found[:, 4:], axis=1) == 1).all(), "each candidate has a score of one class"


def test_the_metadata_are_those_that_deepness_geodeep_and_ultralytics_read(whole_bundle: Path) -> None:
    manifest, found = open_bundle(whole_bundle).manifest, metadata_of(whole_bundle / NAME)
    keys = ("model_type", "det_type", "class_names", "tile_size", "tiles_size")
    assert {key: json.loads(found[key]) for key in keys} == {
        "model_type": "Detector",
        "det_type": "YOLO_v9",
        "class_names": {"0": "ship", "1": "tug", "2": "ferry"},
        "tile_size": 64,
        "tiles_size": 64,
    }
    assert json.loads(found["det_conf"]) == manifest.defaults.scene_score_threshold
    assert json.loads(found["det_iou_thresh"]) == manifest.defaults.postprocess.iou_threshold
    assert json.loads(found["tiles_overlap"]) == 25
    assert "resolution" not in found
    assert found["task"] == "detect"
    assert ast.literal_eval(found["names"]) == {0: "ship", 1: "tug", 2: "ferry"}
    assert ast.literal_eval(found["imgsz"]) == [64, 64]
    assert (int(found["stride"]), int(found["batch"])) == (32, 4)


def test_the_resolution_is_that_of_a_tile(whole_bundle: Path) -> None:
    recipe = recipe_of(whole_bundle, "export.gsd_m=0.3", "data.scale=0.5", "export.overlap_px=63")
    found = yolo_metadata(recipe, ("å",), score_threshold=0.3)
    assert json.loads(found["resolution"]) == 60.0, "centimeters per pixel"
    assert json.loads(found["tiles_overlap"]) == 99, "percent, never all of the tile"
    assert json.loads(found["class_names"])["0"] == ast.literal_eval(found["names"])[0] == "å"


def test_upright_boxes_around_oriented_ones_are_not_suppressed_like_oriented_ones() -> None:
    """The IoU of 0.1, above which oriented boxes are one object, would remove most ships moored side by side."""
    recipe = load(CONFIGS / "oriented_ships.toml", Recipe)
    assert recipe.postprocess.iou_threshold == 0.1
    assert json.loads(yolo_metadata(recipe, ("ship",), score_threshold=0.3)["det_iou_thresh"]) == 0.5
    upright = override(recipe, ["student.detector.oriented=false", "teacher.detector.oriented=false"], source="recipe")
    assert json.loads(yolo_metadata(upright, ("ship",), score_threshold=0.3)["det_iou_thresh"]) == 0.1


def test_the_bundle_has_its_digest_and_its_check(whole_bundle: Path) -> None:
    bundle = open_bundle(whole_bundle)
    record, check = bundle.manifest.files[NAME], bundle.manifest.checks[NAME]
    assert (record.kind, record.precision) == ("yolo-onnx", "fp32")
    assert bundle.file(NAME).is_file()
    assert bundle.onnx_name("fp32") == "model.onnx", "engines do not use it"
    assert check.passed
    assert check.max_score_difference == 0.0
    assert check.max_box_difference_px < 1e-4
    assert json.loads((whole_bundle / "checks/tensor_parity.json").read_text())["checks"][NAME]["passed"]


def test_the_same_bundle_gives_the_same_bytes(whole_bundle: Path, tmp_path: Path) -> None:
    source = shutil.copyfile(whole_bundle / "model.onnx", tmp_path / "elsewhere.onnx")
    keys = metadata_of(whole_bundle / NAME)
    metadata = yolo_metadata(
        recipe_of(whole_bundle), ("ship", "tug", "ferry"), score_threshold=json.loads(keys["det_conf"])
    )
    write_yolo_layout(source, tmp_path / "again.onnx", side=64, metadata=metadata)
    assert sha256_of(tmp_path / "again.onnx") == sha256_of(whole_bundle / NAME)


def test_a_wrong_box_is_found(whole_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(str(whole_bundle / NAME))
    (half,) = (tensor for tensor in model.graph.initializer if tensor.name == "yolo_half")
    half.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.501), half.name))
    onnx.save(model, str(tmp_path / NAME))
    assert not check_yolo_layout(tmp_path / NAME, whole_bundle / "model.onnx", TILES).passed


@pytest.mark.parametrize("bundle", ["whole_bundle", "free_bundle"])
def test_the_documented_decoding_gives_the_detections_of_our_engine(
    bundle: str, request: pytest.FixtureRequest
) -> None:
    """As Ultralytics documents it: transpose, best class, score threshold, suppression within a class."""
    folder = request.getfixturevalue(bundle)
    config = PostprocessConfig(score_threshold=0.985, iou_threshold=0.5, max_detections=1000)
    with open_engine(open_bundle(folder)) as engine:
        ours = postprocess(engine.infer(TILES), config)
    session = onnxruntime.InferenceSession(str(folder / NAME))
    (output,) = session.run(None, {"images": TILES.astype(np.float32) / 255})
    for tile, found in zip(torch.from_numpy(output), ours, strict=True):
        boxes, (scores, labels) = box_convert(tile[:4].T, "cxcywh", "xyxy"), tile[4:].max(dim=0)
        above = scores > config.score_threshold
        assert 10 < above.sum() < 84
        boxes, scores, labels = boxes[above], scores[above], labels[above]
        kept = batched_nms(boxes, scores, labels, config.iou_threshold)
        theirs = Detections(boxes[kept].numpy(), scores[kept].numpy(), labels[kept].numpy()).in_canonical_order()
        np.testing.assert_allclose(theirs.scores, found.scores, atol=1e-6)
        np.testing.assert_array_equal(theirs.labels, found.labels)
        np.testing.assert_allclose(theirs.boxes, found.boxes, atol=1e-4)


def write_scene(path: Path, rectangles: dict[int, tuple[int, int, int, int]], *, side: int, gsd_m: float) -> Path:
    """Write a GeoTIFF with a rectangle (x1, y1, x2, y2) in each of the given bands."""
    pixels = np.full((3, side, side), 60, np.uint8)
    for band, (x1, y1, x2, y2) in rectangles.items():
        pixels[band, y1:y2, x1:x2] = 255
    profile: dict[str, Any] = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8"}
    profile |= {"tiled": True, "blockxsize": 64, "blockysize": 64, "photometric": "RGB"}
    transform = Affine(gsd_m, 0, 400_000, 0, -gsd_m, 5_000_000)
    with rasterio.open(path, "w", crs="EPSG:32633", transform=transform, **profile) as dataset:
        dataset.write(pixels)
    return path


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")  # which GeoDeep tries first
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of rasterio, which it uses
@pytest.mark.parametrize("reduction", [1, 2])
def test_geodeep_finds_the_objects_of_a_scene(whole_bundle: Path, tmp_path: Path, reduction: int) -> None:
    source, path = write_color_detector(tmp_path / "colors.onnx"), tmp_path / NAME
    recipe = recipe_of(whole_bundle, "export.gsd_m=0.3", f"data.scale={1 / reduction}")
    metadata = yolo_metadata(recipe, ("tug", "ferry"), score_threshold=0.3)
    write_yolo_layout(source, path, side=64, metadata=metadata)
    rectangles = {0: (8, 20, 40, 32), 2: (114, 66, 124, 92)}  # each in one tile, or complete in all that it is in
    scaled = {band: tuple(reduction * value for value in box) for band, box in rectangles.items()}
    scene = write_scene(tmp_path / "scene.tif", scaled, side=128 * reduction, gsd_m=0.3)
    boxes, scores, classes = geodeep.detect(str(scene), str(path))
    found = dict(zip([name for _, name in classes], boxes, strict=True))
    assert found.keys() == {"tug", "ferry"}
    assert len(boxes) == 2
    assert scores == [0.5, 0.5]
    np.testing.assert_allclose(found["ferry"], scaled[0], atol=2 * (reduction - 1))
    np.testing.assert_allclose(found["tug"], scaled[2], atol=2 * (reduction - 1))
