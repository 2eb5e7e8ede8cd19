"""Export of a bundle to a model repository of Triton Inference Server.

REPOSITORY/
├── NAME_onnx_fp32/
│   ├── config.pbtxt
│   ├── labels.txt                 class names by label
│   └── 1/model.onnx
└── NAME_tensorrt_fp16/
    ├── config.pbtxt               maps compute capabilities to engines
    ├── labels.txt
    └── 1/*.engine
"""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.bundle.bundle import Bundle
from export.bundle.engine_metadata import EngineMetadata, engine_metadata_path, read_engine_metadata
from export.triton.model_config import (
    BUNDLE_KEY,
    LABELS_NAME,
    SOURCE_KEY,
    Device,
    InstanceConfig,
    TritonModel,
    batch_profiles_of,
    compute_capability,
    onnx_model,
    tensorrt_model,
)
from export.triton.protobuf_text import as_text
from ifkd.core.errors import BundleError, OutputError
from ifkd.core.files import make_folder, replace_folder

CONFIG_NAME, VERSION = "config.pbtxt", "1"
DEFAULT_INSTANCES = InstanceConfig()


@dataclass(frozen=True, slots=True)
class RepositoryPlan:
    """Models of a bundle."""

    models: tuple[TritonModel, ...]
    skipped: dict[str, str]
    """File of the bundle -> reason why no model contains it."""


def write_repository(bundle: Bundle, folder: Path, instances: InstanceConfig = DEFAULT_INSTANCES) -> RepositoryPlan:
    """Write the models of a bundle into a repository, which is created if missing.

    Each model is replaced atomically; models of other names are kept. The digest of every file is checked.

    Raises:
        BundleError: A file of the bundle is missing or its digest differs, or the bundle has no file for Triton.
        OutputError: A model's folder contains other files or another bundle, or the repository is not writable.
    """
    plan = repository_plan(bundle, instances)
    if not plan.models:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in plan.skipped.items())
        raise BundleError(f"{bundle.path} has no file for Triton", got=reasons or "no ONNX file")
    try:
        for model in plan.models:
            _refuse_other_models(folder / model.name, bundle.manifest.name)
        make_folder(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            for model in plan.models:
                _write_model(Path(temporary) / model.name, model, bundle)
            make_folder(folder)
            for model in plan.models:
                replace_folder(Path(temporary) / model.name, folder / model.name)
    except OSError as error:
        hint = "Choose another folder, or check permissions and disk space."
        raise OutputError(f"Cannot write {folder} ({error.strerror or error})", hint=hint) from error
    return plan


def repository_plan(bundle: Bundle, instances: InstanceConfig) -> RepositoryPlan:
    """Return the models of a bundle and the files that are skipped.

    Raises:
        BundleError: The metadata of an engine is invalid.
    """
    models: list[TritonModel] = []
    skipped: dict[str, str] = {}
    for name in bundle.find("onnx"):
        precision = bundle.manifest.files[name].precision
        assert precision is not None
        if instances.device == "cpu" and precision == "int8":
            skipped[name] = "it is made for TensorRT, which needs a GPU"
        else:
            models.append(onnx_model(bundle, name, precision, instances))
    for precision in dict.fromkeys(bundle.manifest.files[name].precision for name in bundle.find("engine")):
        assert precision is not None
        engines = {
            name: read_engine_metadata(bundle.file(str(engine_metadata_path(Path(name)))))
            for name in bundle.find("engine", precision)
        }
        sources = [bundle.manifest.files[name].sha256 for name in bundle.find("onnx", precision)]
        chosen, others = _select_engines(engines, sources, instances.device)
        skipped |= others
        if chosen:
            models.append(tensorrt_model(bundle, chosen, precision, instances))
    return RepositoryPlan(tuple(models), skipped)


def _select_engines(
    engines: Mapping[str, EngineMetadata], sources: Sequence[str], device: Device
) -> tuple[dict[str, EngineMetadata], dict[str, str]]:
    """Return the engines of a precision that one model can contain, and the reasons why the others are skipped.

    `sources` are the digests of the bundle's ONNX files of the precision.
    """
    chosen: dict[str, EngineMetadata] = {}
    skipped: dict[str, str] = {}
    for name in sorted(engines, key=lambda one: (engines[one].tf32, engines[one].compatibility == "ampere_plus", one)):
        engine = engines[name]
        capability = compute_capability(engine)
        same_gpus = next((one for one, other in chosen.items() if compute_capability(other) == capability), None)
        first = next(iter(chosen.values()), engine)
        if device == "cpu":
            skipped[name] = "engines need a GPU"
        elif engine.builder != "tensorrt":
            skipped[name] = "it is an engine of TensorRT-RTX, and Triton loads engines of TensorRT"
        elif engine.onnx_sha256 not in sources:
            skipped[name] = "it was built from another ONNX file than the bundle's"
        elif same_gpus is not None:
            skipped[name] = f"{same_gpus} is for the same GPUs"
        elif _shared_properties(engine) != _shared_properties(first):
            skipped[name] = f"its TensorRT version, largest batch or profiles differ from {next(iter(chosen))}"
        else:
            chosen[name] = engine
    return chosen, skipped


def _shared_properties(engine: EngineMetadata) -> tuple[str, int, int]:
    """Return the properties that are equal for all engines of a model."""
    return engine.builder_version, engine.batch.max, len(batch_profiles_of(engine))


def _refuse_other_models(folder: Path, bundle_name: str) -> None:
    """Raise an error if a folder exists and `ifkd export` did not write it, or wrote it from another bundle."""
    config, hint = folder / CONFIG_NAME, "Choose another repository, or move the folder."
    text = config.read_text("utf-8", errors="replace") if config.is_file() else ""
    if folder.exists() and SOURCE_KEY not in text:
        raise OutputError(f"{folder} exists and was not written by ifkd export", hint=hint)
    found = re.search(rf'key: "{re.escape(BUNDLE_KEY)}"\s+value \{{\s+string_value: (".*")', text)
    if found and (name := json.loads(found[1])) != bundle_name:
        raise OutputError(f"{folder} is a model of another bundle", got=name, expected=bundle_name, hint=hint)


def _write_model(folder: Path, model: TritonModel, bundle: Bundle) -> None:
    version = folder / VERSION
    version.mkdir(parents=True)
    for name in model.files:
        shutil.copyfile(bundle.file(name), version / Path(name).name)
    (folder / LABELS_NAME).write_text("".join(f"{one}\n" for one in bundle.manifest.classes), encoding="utf-8")
    (folder / CONFIG_NAME).write_text(as_text(model.config), encoding="utf-8")
