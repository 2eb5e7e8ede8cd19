"""STAC item of a bundle, validated by PySTAC's schemas of the core and by the extension's own models."""

from pathlib import Path
from typing import Any

import pystac
import pytest
from pystac.extensions.file import FileExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from stac_model.schema import MLModelExtension, MLModelProperties

from export.bundle.bundle import open_bundle
from export.bundle.manifest import InputSpec, Manifest
from export.bundle.stac_item import MLM_EXTENSION, mlm_name, model_item
from ifkd.core.files import sha256_of
from ifkd.imagery.contrast import ImageryOptions


@pytest.fixture
def manifest(whole_bundle: Path) -> Manifest:
    return open_bundle(whole_bundle).manifest


def changed(manifest: Manifest, **values: Any) -> Manifest:
    return manifest.model_copy(update=values)


def validated(item: dict[str, Any]) -> MLModelProperties:
    """Validate an item offline and return the properties of its model."""
    JsonSchemaSTACValidator().validate_core(item, pystac.STACObjectType.ITEM, "1.1.0")
    assert MLModelExtension.has_extension(pystac.Item.from_dict(item))
    properties = MLModelProperties(**item["properties"])
    bands = {band["name"] for band in item["properties"]["bands"]}
    for one in properties.input:
        assert set(one.bands) <= bands
        assert len(one.bands) == one.input.shape[1]
    for output in properties.output:
        assert len(output.result.shape) == len(output.result.dim_order)
    return properties


def test_the_item_is_valid_and_has_the_values_of_the_manifest(manifest: Manifest) -> None:
    item = model_item(manifest)
    properties = validated(item)
    assert MLM_EXTENSION.startswith(MLModelExtension.get_schema_uri().rpartition("v1.5.")[0] + "v1.5.")
    assert (properties.name, properties.architecture, properties.tasks) == ("tiny", "RetinaNet", {"object-detection"})
    tiles = properties.input[0].input
    assert (tiles.shape, tiles.data_type) == ([-1, 3, 64, 64], "uint8")
    assert tiles.dim_order == ["batch", "bands", "height", "width"]
    boxes, scores, labels = properties.output
    assert [output.result.shape for output in (boxes, scores, labels)] == [[-1, 354, 4], [-1, 354], [-1, 354]]
    assert [(one.value, one.name) for one in labels.classes or ()] == [(0, "ship"), (1, "tug"), (2, "ferry")]
    assert item["properties"]["mlm:hyperparameters"]["scene_score_threshold"] == 0.3
    assert (properties.pretrained, properties.pretrained_source) == (False, None)
    assert model_item(manifest) == item


def test_assets_have_the_digests_of_the_files(whole_bundle: Path) -> None:
    item = pystac.Item.from_file(str(whole_bundle / "model.stac.json"))
    models = item.get_assets(role="mlm:model")
    assert set(models) == {"model.onnx", "model.fp16.onnx"}
    for name, asset in (models | item.get_assets(role="mlm:weights")).items():
        file = FileExtension.ext(asset)
        path = whole_bundle / asset.href
        assert path.name == name
        assert (file.size, file.checksum) == (path.stat().st_size, f"1220{sha256_of(path)}")
        assert ("mlm:artifact_type" in asset.extra_fields) == (name in models)
    assert item.assets["model.yolo.onnx"].roles == ["data"]  # its interface is another one


def test_scaled_values_tiles_of_several_sizes_and_one_band(manifest: Manifest) -> None:
    spec = InputSpec(
        tile_px=(64, 64),
        tile_sides_px=(32, 128),
        max_batch=2,
        scale=0.5,
        imagery=ImageryOptions(bands=(2,), limits=(10.0, 520.0)),
    )
    (tiles,) = validated(model_item(changed(manifest, input=spec))).input
    assert tiles.input.shape == [-1, 3, -1, -1]
    assert tiles.resize_type == "interpolation-linear"
    assert tiles.bands == ["gray"] * 3
    (scaling,) = tiles.value_scaling or ()
    assert scaling is not None
    assert scaling.expression == "rint(clip((A - 10.0) * 255.0 / 510.0, 0, 255))"


def test_images_of_one_channel_have_one_band(manifest: Manifest) -> None:
    values = {"images": 1, "dtypes": ["uint16"], "channels": [1], "low": 0.0, "high": 1.0}
    item = model_item(changed(manifest, provenance={**manifest.provenance, "image_values": values}))
    validated(item)
    assert item["properties"]["bands"] == [{"name": "gray"}]


@pytest.mark.parametrize(
    ("detector", "source"),
    [
        ({"weights": "coco", "backbone_weights": "imagenet"}, "COCO"),
        ({"backbone_weights": "imagenet"}, "ImageNet"),
        ({"weights": "none", "backbone_weights": "/data/seen/backbone.pth"}, "backbone.pth"),
    ],
)
def test_the_source_of_pretrained_weights(manifest: Manifest, detector: dict[str, str], source: str) -> None:
    item = model_item(changed(manifest, detector={**manifest.detector, **detector}))
    assert (validated(item).pretrained, item["properties"]["mlm:pretrained_source"]) == (True, source)


def test_class_names_of_any_script_are_valid(manifest: Manifest) -> None:
    item = model_item(changed(manifest, classes=("A220 (old)", "军舰", "x|y")))
    validated(item)
    names = [one["name"] for one in item["properties"]["mlm:output"][2]["classification:classes"]]
    assert names == ["A220-old", "class-1", "x-y"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("harbor_2", "harbor_2"), ("1st", "detector-1st"), ("a", "detector-a"), ("军舰", "detector"), ("a b/", "a-b")],
)
def test_names_have_the_characters_that_the_extension_allows(name: str, expected: str) -> None:
    assert mlm_name(name) == expected
