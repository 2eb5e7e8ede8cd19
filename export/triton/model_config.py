"""Models of a Triton repository and their configurations (config.pbtxt)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from export.bundle.bundle import MANIFEST_NAME, Bundle
from export.bundle.engine_metadata import BatchProfile, EngineMetadata
from export.bundle.manifest import Manifest, Precision
from export.triton.protobuf_text import EnumValue, map_entries
from ifkd.core.errors import UsageError
from ifkd.core.files import sha256_of

Runtime = Literal["onnx", "tensorrt"]
Device = Literal["gpu", "cpu"]

LABELS_NAME = "labels.txt"
BUNDLE_KEY = "ifkd.bundle"
"""Parameter with the name of the model's bundle."""
SOURCE_KEY = "ifkd.onnx_sha256"
"""Parameter with the digest of the bundle's ONNX file that a model is, or was built from."""


@dataclass(frozen=True, slots=True)
class InstanceConfig:
    """Device of the models, and number of instances of each on every GPU or on the CPU."""

    device: Device = "gpu"
    instances: int = 1

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise UsageError("A model needs at least one instance", got=self.instances)

    def group(self, device: Device) -> dict[str, Any]:
        """Return the instance group of a model on a device."""
        return {"kind": EnumValue("KIND_GPU" if device == "gpu" else "KIND_CPU"), "count": self.instances}


@dataclass(frozen=True, slots=True)
class TritonModel:
    """One model of a repository."""

    name: str
    files: tuple[str, ...]
    """Names of the bundle's files in the model's version."""
    config: dict[str, Any]
    """Content of config.pbtxt."""


def model_name(manifest: Manifest, runtime: Runtime, precision: Precision) -> str:
    """Return the name of a model: detector, runtime and precision."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', manifest.name)}_{runtime}_{precision}"


def onnx_model(bundle: Bundle, name: str, precision: Precision, instances: InstanceConfig) -> TritonModel:
    """Return the model of an ONNX file."""
    max_batch = bundle.manifest.input.max_batch
    device: Device = "cpu" if precision == "int8-cpu" else instances.device
    group = instances.group(device)
    config = _common_config(bundle, "onnx", precision, opt_batches=[max_batch], max_batch=max_batch, group=group)
    config["default_model_filename"] = Path(name).name
    if device == "gpu":
        accelerators = {"gpu_execution_accelerator": _accelerator(bundle, precision)}
        config["optimization"] = {"execution_accelerators": accelerators}
    return TritonModel(config["name"], (name,), config)


def tensorrt_model(
    bundle: Bundle, engines: Mapping[str, EngineMetadata], precision: Precision, instances: InstanceConfig
) -> TritonModel:
    """Return the model of a precision's engines, one for each compute capability."""
    first = next(iter(engines.values()))
    profiles = batch_profiles_of(first)
    config = _common_config(
        bundle,
        "tensorrt",
        precision,
        opt_batches=[profile.opt for profile in profiles],
        max_batch=first.batch.max,
        group=instances.group("gpu") | {"profile": [str(number) for number in range(len(profiles))]},
        parameters={"ifkd.tensorrt": first.builder_version},
    )
    by_capability = {compute_capability(engine): Path(name).name for name, engine in engines.items()}
    if "" in by_capability:
        config["default_model_filename"] = by_capability.pop("")
    config["cc_model_filenames"] = map_entries(by_capability)
    return TritonModel(config["name"], tuple(engines), config)


def compute_capability(engine: EngineMetadata) -> str:
    """Return the compute capability of an engine; empty for an engine that runs on all GPUs from Ampere on."""
    return "" if engine.compatibility == "ampere_plus" else str(engine.compute_capability)


def batch_profiles_of(engine: EngineMetadata) -> tuple[BatchProfile, ...]:
    """Return the optimization profiles of an engine."""
    return engine.batch_profiles or (engine.batch,)


def _common_config(
    bundle: Bundle,
    runtime: Runtime,
    precision: Precision,
    *,
    opt_batches: Sequence[int],
    max_batch: int,
    group: dict[str, Any],
    parameters: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the fields that all models have, with an instance group and additional parameters."""
    manifest = bundle.manifest
    onnx = bundle.onnx_name(precision)
    k, oriented, sizes = manifest.outputs.candidates, manifest.outputs.oriented, manifest.input.sizes
    uint8 = {"data_type": EnumValue("TYPE_UINT8")}
    warmup = {"key": manifest.input.name, "value": {**uint8, "dims": [3, *sizes.opt], "random_data": True}}
    parameters = {
        BUNDLE_KEY: manifest.name,
        "ifkd.manifest_sha256": sha256_of(bundle.path / MANIFEST_NAME),
        "ifkd.precision": precision,
        "ifkd.onnx": onnx,
        SOURCE_KEY: manifest.files[onnx].sha256,
        **(parameters or {}),
    }
    config: dict[str, Any] = {
        "name": model_name(manifest, runtime, precision),
        "platform": {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}[runtime],
        "max_batch_size": max_batch,
        "input": {"name": manifest.input.name, **uint8, "dims": [3, *sizes.axes]},
        "output": [
            {"name": "boxes", "data_type": EnumValue("TYPE_FP32"), "dims": [k, 4]},
            {"name": "scores", "data_type": EnumValue("TYPE_FP32"), "dims": [k]},
            {"name": "labels", "data_type": EnumValue("TYPE_INT64"), "dims": [k], "label_filename": LABELS_NAME},
            *([{"name": "oriented", "data_type": EnumValue("TYPE_FP32"), "dims": [k, 5]}] if oriented else ()),
        ],
        "instance_group": group,
        "model_warmup": [
            {"name": f"batch of {size}", "batch_size": size, "inputs": warmup} for size in sorted({1, *opt_batches})
        ],
        "parameters": map_entries({key: {"string_value": value} for key, value in parameters.items()}),
    }
    if max_batch > 1:
        config["dynamic_batching"] = {"preferred_batch_size": sorted(set(opt_batches))}
    return config


def _accelerator(bundle: Bundle, precision: Precision) -> dict[str, Any]:
    """Return the GPU accelerator of an ONNX model: CUDA without TF32, or TensorRT for a file made for it."""
    if precision != "int8":
        return {"name": "cuda", "parameters": map_entries({"use_tf32": "0"})}
    tiles = bundle.manifest.input
    sizes, most = tiles.sizes, tiles.max_batch
    # A precision_mode would let TensorRT choose the types; without one it uses those of the file.
    shapes = {"min": (1, *sizes.smallest), "opt": (most, *sizes.opt), "max": (most, *sizes.largest)}
    texts = {kind: f"{tiles.name}:{batch}x3x{height}x{width}" for kind, (batch, height, width) in shapes.items()}
    parameters = {f"trt_profile_{kind}_shapes": text for kind, text in texts.items()}
    return {"name": "tensorrt", "parameters": map_entries(parameters)}
