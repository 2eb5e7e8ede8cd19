"""STAC item of a bundle: model.stac.json, which lists the model in catalogs by the Machine Learning Model extension."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.bundle.manifest import FileKind, InputSpec, Manifest
from ifkd.core.html.colors import class_color, hex_color
from ifkd.imagery.image_values import ImageValues

STAC_VERSION = "1.1.0"
FILE_EXTENSION = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
SHA256_MULTIHASH = "1220"
"""Prefix of a SHA-256 in the multihash format: the code of the function, then the length of 32 bytes."""
MLM_EXTENSION = "https://stac-extensions.github.io/mlm/v1.5.1/schema.json"
MLM_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]+[A-Za-z0-9]")
EXTENT = [-180.0, -90.0, 180.0, 90.0]
START, END = "1900-01-01T00:00:00Z", "9999-12-31T23:59:59Z"
"""A recipe does not state place and time of its images. These are the values that the extension's best practices give
for such models; many catalogs refuse an item without a geometry."""
ARCHITECTURES = {"retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN"}
TASKS = ["object-detection"]
RGB, GRAY = ("red", "green", "blue"), ("gray",)
ASSET_FIELDS: dict[FileKind, dict[str, Any]] = {
    "onnx": {
        "type": "application/octet-stream; framework=onnx",
        "roles": ["mlm:model", "mlm:weights", "data"],
        "mlm:framework": "ONNX",
        "mlm:artifact_type": "onnx",
    },
    "yolo-onnx": {
        "type": "application/octet-stream; framework=onnx",
        "roles": ["data"],
        "title": "FP32 in the layout of a YOLO, with another input and output",
    },
    "screen-onnx": {
        "type": "application/octet-stream; framework=onnx",
        "roles": ["data"],
        "title": "Screen, which finds the tiles worth searching",
    },
    "engine": {
        "type": "application/octet-stream; framework=tensorrt",
        "roles": ["mlm:model", "mlm:compiled", "data"],
        "mlm:artifact_type": "tensorrt",
        "mlm:compile_method": "aot",
        "mlm:accelerator": "cuda",
        "mlm:accelerator_constrained": True,
    },
    "screen-engine": {
        "type": "application/octet-stream; framework=tensorrt",
        "roles": ["data"],
        "title": "Engine of the screen",
    },
    "weights": {
        "type": "application/octet-stream; framework=pytorch",
        "roles": ["mlm:weights", "data"],
        "title": "Weights of the torch reference",
        "mlm:framework": "PyTorch",
    },
    "config": {"type": "application/toml", "roles": ["metadata"], "title": "Recipe"},
}
"""Fields of the assets by the kind of the file; other kinds have no asset."""


def model_item(manifest: Manifest) -> dict[str, Any]:
    """Return the item of a bundle's model; the same files give the same item."""
    west, south, east, north = EXTENT
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [MLM_EXTENSION, FILE_EXTENSION],
        "id": model_id(manifest),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": EXTENT,
        "properties": _properties(manifest),
        "links": [{"rel": "about", "href": "./README.md", "type": "text/markdown", "title": "Model card"}],
        "assets": _assets(manifest),
    }


def file_asset(name: str, *, sha256: str, size: int, **fields: Any) -> dict[str, Any]:
    """Return the asset of a file beside an item, with its digest and its size in bytes by the file extension."""
    return {"href": f"./{name}", **fields, "file:size": size, "file:checksum": f"{SHA256_MULTIHASH}{sha256}"}


def model_id(manifest: Manifest) -> str:
    """Return the id of a bundle's item: its name and the start of the digest of its weights."""
    return "-".join(filter(None, (manifest.name, manifest.provenance.get("checkpoint_sha256", "")[:12])))


def mlm_name(name: str) -> str:
    """Return the name of a bundle in the characters that the extension allows."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")
    return plain if MLM_NAME.fullmatch(plain) else f"detector-{plain}".rstrip("-")


def _properties(manifest: Manifest) -> dict[str, Any]:
    detector, defaults = manifest.detector, manifest.defaults
    source = _pretrained_source(detector)
    torch = re.match(r"\d+\.\d+\.\d+", manifest.provenance.get("versions", {}).get("torch", ""))
    return {
        "title": manifest.name,
        "description": f"{ARCHITECTURES[detector['family']]} with a {detector['backbone']} backbone that detects "
        f"{', '.join(manifest.classes)} as {manifest.outputs.box_form} boxes. Place and time of its training images "
        "are not recorded.",
        "datetime": None,
        "start_datetime": START,
        "end_datetime": END,
        **({} if defaults.gsd_m is None else {"gsd": defaults.gsd_m}),
        "bands": _bands(manifest),
        "mlm:name": mlm_name(manifest.name),
        "mlm:architecture": ARCHITECTURES[detector["family"]],
        "mlm:tasks": TASKS,
        "mlm:framework": "PyTorch",
        **({} if torch is None else {"mlm:framework_version": torch.group()}),
        "mlm:pretrained": source is not None,
        "mlm:pretrained_source": source,
        "mlm:batch_size_suggestion": manifest.input.max_batch,
        "mlm:accelerator": None,
        "mlm:accelerator_constrained": False,
        "mlm:input": [_input(manifest)],
        "mlm:output": list(_outputs(manifest)),
        "mlm:hyperparameters": {
            **defaults.postprocess.model_dump(mode="json"),
            "scene_score_threshold": defaults.scene_score_threshold,
            "class_agnostic_iou": defaults.class_agnostic_iou,
            "overlap_px": defaults.overlap_px,
            "scale": manifest.input.scale,
        },
    }


def _pretrained_source(detector: dict[str, Any]) -> str | None:
    """Return the source of the initial weights, or None if all were random."""
    for key in ("weights", "backbone_weights"):
        if (name := detector.get(key, "none")) != "none":
            return {"coco": "COCO", "imagenet": "ImageNet"}.get(name, Path(name).name)
    return None


def _bands(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the bands of the images: one, which is repeated, or three."""
    numbers, values = manifest.input.imagery.bands, ImageValues.of_provenance(manifest.provenance)
    if numbers is None:
        return [{"name": name} for name in (GRAY if values and values.channels == (1,) else RGB)]
    bands = zip(RGB if len(numbers) == 3 else GRAY, numbers, strict=True)
    return [{"name": name, "description": f"Band {number} of the image."} for name, number in bands]


def _input(manifest: Manifest) -> dict[str, Any]:
    spec, names = manifest.input, [band["name"] for band in _bands(manifest)]
    sides = [-1, -1] if spec.tile_sides_px else list(spec.tile_px)
    return {
        "name": spec.name,
        "description": f"Tiles of RGB images after scaling by {spec.scale:g}. {_values_in_words(spec)}",
        "bands": names if len(names) == 3 else names * 3,
        "input": {
            "shape": [-1, 3, *sides],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "uint8",
        },
        "value_scaling": _value_scaling(spec),
        "resize_type": None if spec.scale == 1 else "interpolation-linear",
        "pre_processing_function": {"format": "python", "expression": "ifkd.imagery.contrast:to_rgb"},
    }


def _values_in_words(spec: InputSpec) -> str:
    imagery = spec.imagery
    if imagery.limits is not None:
        low, high = imagery.limits
        return f"Values from {low:g} to {high:g} are mapped to 0 to 255."
    low, high = imagery.percentiles
    kept = "" if imagery.stretch_uint8 else "8-bit values are unchanged. "
    return (
        f"{kept}{'Others' if kept else 'All'} are stretched from their percentiles {low:g} and {high:g} to 0 and 255."
    )


def _value_scaling(spec: InputSpec) -> list[dict[str, Any]] | None:
    if spec.imagery.limits is None:
        return None
    low, high = spec.imagery.limits
    expression = f"rint(clip((A - {low!r}) * 255.0 / {high - low!r}, 0, 255))"
    return [{"type": "processing", "format": "gdal-calc", "expression": expression}]


def _outputs(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the outputs of the ONNX files: candidates, before non-maximum suppression."""
    candidates = {"batch": -1, "candidate": manifest.outputs.candidates}
    outputs = {
        "boxes": ({**candidates, "coordinate": 4}, "float32", "x1, y1, x2, y2 in pixels of the tile."),
        "scores": (candidates, "float32", "0 to 1."),
        "labels": (candidates, "int64", "Index of the class."),
    }
    if manifest.outputs.oriented:
        meaning = (
            "Center x, center y, length and width in pixels of the tile; angle of the length from +x to +y, degrees."
        )
        outputs["oriented"] = ({**candidates, "value": 5}, "float32", meaning)
    for name, (dimensions, data_type, description) in outputs.items():
        shape, order = list(dimensions.values()), list(dimensions)
        yield {
            "name": name,
            "description": description,
            "tasks": TASKS,
            "result": {"shape": shape, "dim_order": order, "data_type": data_type},
            "classification:classes": _classes(manifest) if name == "labels" else [],
            "post_processing_function": {"format": "python", "expression": "ifkd.core.postprocess:postprocess"},
        }


def _classes(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {
            "value": label,
            "name": re.sub(r"[^A-Za-z0-9_-]+", "-", title).strip("-") or f"class-{label}",
            "description": title,
            "color_hint": hex_color(class_color(label)).removeprefix("#").upper(),
        }
        for label, title in enumerate(manifest.classes)
    ]


def _assets(manifest: Manifest) -> dict[str, Any]:
    """Return the assets by file name; the manifest has no digest, because it has that of this item."""
    manifest_asset = {"href": "./model.json", "type": "application/json", "roles": ["metadata"], "title": "Manifest"}
    assets: dict[str, Any] = {"model.json": manifest_asset}
    for name, record in sorted(manifest.files.items()):
        if (fields := ASSET_FIELDS.get(record.kind)) is None:
            continue
        if "mlm:model" in fields["roles"]:
            fields = {**fields, "title": f"{record.kind} in {record.precision}", "bands": _bands(manifest)}
        assets[name] = file_asset(name, sha256=record.sha256, size=record.bytes, **fields)
    return assets
