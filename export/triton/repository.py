"""A bundle as models of a Triton Inference Server: a folder for each ONNX file and for the engines of each precision.

REPOSITORY/
├── NAME_onnx_fp32/
│   ├── config.pbtxt
│   ├── labels.txt                 class names by label
│   └── 1/model.onnx
└── NAME_tensorrt_fp16/
    ├── config.pbtxt               which engine is for which GPU
    ├── labels.txt
    └── 1/*.engine
"""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from export.bundle.bundle import MANIFEST_NAME, Bundle
from export.bundle.engine_metadata import BatchProfile, EngineMetadata, engine_metadata_path, read_engine_metadata
from export.bundle.manifest import Manifest, Precision
from export.triton.protobuf_text import Word, as_text, entries
from ifkd.core.errors import BundleError, OutputError, UsageError
from ifkd.core.files import make_folder, replace_folder, sha256_of

Runtime = Literal["onnx", "tensorrt"]
Device = Literal["gpu", "cpu"]

CONFIG_NAME, LABELS_NAME, VERSION = "config.pbtxt", "labels.txt", "1"
SOURCE_KEY = "ifkd.onnx_sha256"
"""The parameter that ties a served model to a bundle: the digest of the ONNX file that it is, or was built from."""
FOR_TENSORRT: tuple[Precision, ...] = ("int8",)
"""Precisions whose ONNX file is made for TensorRT, and runs there only as it should."""
FOR_CPU: tuple[Precision, ...] = ("int8-cpu",)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of a repository."""

    name: str
    runtime: Runtime
    precision: Precision
    files: tuple[str, ...]
    """Files of the bundle that its version holds."""
    config: dict[str, Any]
    """What config.pbtxt says."""


@dataclass(frozen=True, slots=True)
class RepositoryPlan:
    """What of a bundle can be served."""

    models: tuple[ServedModel, ...]
    left_out: dict[str, str]
    """File of the bundle -> why no model holds it."""


@dataclass(frozen=True, slots=True)
class InstanceConfig:
    """Where models compute, and how often at once."""

    device: Device = "gpu"
    instances: int = 1
    """Copies of each model on every GPU, or on the CPU."""

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise UsageError("A model needs at least one instance", got=self.instances)


def model_name(manifest: Manifest, runtime: Runtime, precision: Precision) -> str:
    """Return what a model is called: the detector's name, what runs it and how precisely."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', manifest.name)}_{runtime}_{precision}"


def write_repository(bundle: Bundle, folder: Path, hosting: InstanceConfig = InstanceConfig()) -> RepositoryPlan:
    """Write a bundle's models into a repository, each whole or not at all; models of other names are left alone.

    A model of the same name is replaced. Files are copied, and compared with their digests before.

    Args:
        bundle: What is served.
        folder: The repository; it is made when it is absent.
        hosting: Where the models compute.

    Raises:
        BundleError: A file of the bundle is absent or changed, or none can be served.
        OutputError: A folder of a model's name holds something else, or the repository cannot be written.
    """
    offer = repository_plan(bundle, hosting)
    if not offer.models:
        raise BundleError(
            f"{bundle.path} has nothing that Triton could serve",
            got="; ".join(f"{name}: {reason}" for name, reason in offer.left_out.items()) or "no ONNX file",
        )
    try:
        for model in offer.models:
            _refuse_foreign(folder / model.name)
        make_folder(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as stage:
            for model in offer.models:
                _fill(Path(stage) / model.name, model, bundle)
            make_folder(folder)
            for model in offer.models:
                replace_folder(Path(stage) / model.name, folder / model.name)
    except OSError as error:
        raise OutputError(
            f"Cannot write {folder} ({error.strerror or error})", hint="Choose another place, or free space and rights."
        ) from error
    return offer


def repository_plan(bundle: Bundle, hosting: InstanceConfig) -> RepositoryPlan:
    """Return a bundle's models and what is left out of them.

    Raises:
        BundleError: A sidecar does not hold.
    """
    models: list[ServedModel] = []
    left_out: dict[str, str] = {}
    for name in bundle.find("onnx"):
        precision = bundle.manifest.files[name].precision
        assert precision is not None
        if hosting.device == "cpu" and precision in FOR_TENSORRT:
            left_out[name] = "it is made for TensorRT, which needs a GPU"
            continue
        models.append(_onnx_model(bundle, name, precision, hosting))
    for precision in dict.fromkeys(bundle.manifest.files[name].precision for name in bundle.find("engine")):
        assert precision is not None
        engines = {name: _sidecar(bundle, name) for name in bundle.find("engine", precision)}
        sources = [bundle.manifest.files[name].sha256 for name in bundle.find("onnx", precision)]
        chosen, refused = _servable(engines, sources, hosting.device)
        left_out |= refused
        if chosen:
            models.append(_tensorrt_model(bundle, chosen, precision, hosting))
    return RepositoryPlan(tuple(models), left_out)


def _servable(
    engines: Mapping[str, EngineMetadata], sources: Sequence[str], device: Device
) -> tuple[dict[str, EngineMetadata], dict[str, str]]:
    """Return the engines of a precision that one model can hold, and why it cannot hold the others.

    Args:
        engines: By their file in the bundle.
        sources: Digests of the ONNX files that they may have been built from.
        device: Where models compute.
    """
    chosen: dict[str, EngineMetadata] = {}
    refused: dict[str, str] = {}
    for name in sorted(engines, key=lambda one: (engines[one].tf32, engines[one].compatibility == "ampere_plus", one)):
        engine = engines[name]
        rival = next((one for one, other in chosen.items() if _place(other) == _place(engine)), None)
        first = next(iter(chosen.values()), engine)
        if device == "cpu":
            refused[name] = "engines need a GPU"
        elif engine.builder != "tensorrt":
            refused[name] = "it is an engine of TensorRT-RTX, and Triton loads those of TensorRT"
        elif engine.onnx_sha256 not in sources:
            refused[name] = "it was built from another ONNX file than the bundle has"
        elif rival is not None:
            refused[name] = f"{rival} is for the same GPUs"
        elif _make(engine) != _make(first):
            refused[name] = f"its TensorRT, largest batch or profiles are not those of {next(iter(chosen))}"
        else:
            chosen[name] = engine
    return chosen, refused


def _onnx_model(bundle: Bundle, name: str, precision: Precision, hosting: InstanceConfig) -> ServedModel:
    largest = bundle.manifest.input.max_batch
    device: Device = "cpu" if precision in FOR_CPU else hosting.device
    config = _config(
        bundle, "onnx", precision, batches=[largest], max_batch=largest, group=_group(device, hosting.instances)
    )
    config["default_model_filename"] = Path(name).name
    if device == "gpu":
        config["optimization"] = {
            "execution_accelerators": {"gpu_execution_accelerator": _accelerator(bundle, precision)}
        }
    return ServedModel(config["name"], "onnx", precision, (name,), config)


def _tensorrt_model(
    bundle: Bundle, engines: Mapping[str, EngineMetadata], precision: Precision, hosting: InstanceConfig
) -> ServedModel:
    first = next(iter(engines.values()))
    profiles = _profiles(first)
    group = _group("gpu", hosting.instances) | {"profile": [str(number) for number in range(len(profiles))]}
    config = _config(
        bundle,
        "tensorrt",
        precision,
        batches=[profile.opt for profile in profiles],
        max_batch=first.batch.max,
        group=group,
        facts={"ifkd.tensorrt": first.builder_version},
    )
    by_place = {_place(engine): Path(name).name for name, engine in engines.items()}
    anywhere = by_place.pop("", None)
    if anywhere is not None:
        config["default_model_filename"] = anywhere
    config["cc_model_filenames"] = entries(by_place)
    return ServedModel(config["name"], "tensorrt", precision, tuple(engines), config)


def _config(
    bundle: Bundle,
    runtime: Runtime,
    precision: Precision,
    *,
    batches: Sequence[int],
    max_batch: int,
    group: dict[str, Any],
    facts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what is common to all models.

    Args:
        bundle: Where shapes and names stand.
        runtime: What runs the model.
        precision: Of its files.
        batches: Batch sizes that it is tuned for.
        max_batch: The largest it takes.
        group: Its instances.
        facts: Parameters besides those that every model has.
    """
    manifest = bundle.manifest
    (onnx,) = bundle.find("onnx", precision)
    k, sizes = manifest.outputs.candidates, manifest.input.sizes
    kind = {"data_type": Word("TYPE_UINT8")}
    parameters = {
        "ifkd.bundle": manifest.name,
        "ifkd.manifest_sha256": sha256_of(bundle.path / MANIFEST_NAME),
        "ifkd.precision": precision,
        "ifkd.onnx": onnx,
        SOURCE_KEY: manifest.files[onnx].sha256,
        **(facts or {}),
    }
    config: dict[str, Any] = {
        "name": model_name(manifest, runtime, precision),
        "platform": {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}[runtime],
        "max_batch_size": max_batch,
        "input": {"name": manifest.input.name, **kind, "dims": [3, *sizes.axes]},
        "output": [
            {"name": "boxes", "data_type": Word("TYPE_FP32"), "dims": [k, 4]},
            {"name": "scores", "data_type": Word("TYPE_FP32"), "dims": [k]},
            {"name": "labels", "data_type": Word("TYPE_INT64"), "dims": [k], "label_filename": LABELS_NAME},
        ],
        "instance_group": group,
        "model_warmup": [
            {
                "name": f"batch of {size}",
                "batch_size": size,
                "inputs": {
                    "key": manifest.input.name,
                    "value": {**kind, "dims": [3, *sizes.opt], "random_data": True},
                },
            }
            for size in sorted({1, *batches})
        ],
        "parameters": entries({key: {"string_value": value} for key, value in parameters.items()}),
    }
    if max_batch > 1:
        config["dynamic_batching"] = {"preferred_batch_size": sorted(set(batches))}
    return config


def _accelerator(bundle: Bundle, precision: Precision) -> dict[str, Any]:
    """Return how ONNX Runtime computes on a GPU: by CUDA without TF32, or by the TensorRT that a file was made for."""
    if precision not in FOR_TENSORRT:
        return {"name": "cuda", "parameters": entries({"use_tf32": "0"})}
    sizes, largest = bundle.manifest.input.sizes, bundle.manifest.input.max_batch
    shape = f"{bundle.manifest.input.name}:{{0}}x3x{{1[0]}}x{{1[1]}}".format
    # No precision_mode: the file's types are to hold, and any would leave TensorRT the choice.
    shapes = {
        "min": shape(1, sizes.smallest),
        "opt": shape(largest, sizes.opt),
        "max": shape(largest, sizes.largest),
    }
    return {
        "name": "tensorrt",
        "parameters": entries({f"trt_profile_{which}_shapes": text for which, text in shapes.items()}),
    }


def _group(device: Device, instances: int) -> dict[str, Any]:
    return {"kind": Word("KIND_GPU" if device == "gpu" else "KIND_CPU"), "count": instances}


def _place(engine: EngineMetadata) -> str:
    """Return the compute capability an engine is for; empty for one that all GPUs from Ampere on can run."""
    return "" if engine.compatibility == "ampere_plus" else str(engine.compute_capability)


def _make(engine: EngineMetadata) -> tuple[str, int, int]:
    """Return what all engines of a model share: TensorRT's version, the largest batch and the number of profiles."""
    return engine.builder_version, engine.batch.max, len(_profiles(engine))


def _profiles(engine: EngineMetadata) -> tuple[BatchProfile, ...]:
    return engine.profiles or (engine.batch,)


def _sidecar(bundle: Bundle, name: str) -> EngineMetadata:
    return read_engine_metadata(bundle.file(str(engine_metadata_path(Path(name)))))


def _refuse_foreign(place: Path) -> None:
    """Refuse to replace what is no model of ours."""
    config = place / CONFIG_NAME
    if place.exists() and not (config.is_file() and SOURCE_KEY in config.read_text("utf-8", errors="replace")):
        raise OutputError(
            f"{place} is there and was not written by ifkd export", hint="Choose another repository, or move it away."
        )


def _fill(folder: Path, model: ServedModel, bundle: Bundle) -> None:
    """Write a model's folder."""
    version = folder / VERSION
    version.mkdir(parents=True)
    for name in model.files:
        shutil.copyfile(bundle.file(name), version / Path(name).name)
    (folder / LABELS_NAME).write_text("".join(f"{one}\n" for one in bundle.manifest.classes), encoding="utf-8")
    (folder / CONFIG_NAME).write_text(as_text(model.config), encoding="utf-8")
