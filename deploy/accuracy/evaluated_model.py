"""Open a checkpoint or a bundle as a model to evaluate."""

import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from deploy.accuracy.image_detection import TilingConfig
from deploy.engines import GPU_BACKENDS, open_engine
from deploy.engines.engine import Backend, Engine
from export.bundle.bundle import MANIFEST_NAME, Bundle, open_bundle
from export.bundle.manifest import Precision
from ifkd.core.config import Schema, load
from ifkd.core.errors import BundleError, CheckpointError, MissingExtraError, UsageError
from ifkd.core.files import sha256_of
from ifkd.recipe import Recipe

MAX_HEADER_BYTES = 100_000_000
"""Longest header that the safetensors format allows."""
RUNNING_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
DEFAULT_CANDIDATES_PER_LEVEL = 1000


class EvaluatedModelRecord(Schema):
    """The detector that results belong to."""

    kind: Literal["checkpoint", "bundle"]
    name: str
    path: str
    sha256: str
    """Digest of the checkpoint, or of the bundle's manifest, which contains the digests of its files."""
    detector: dict[str, Any]
    """Configuration of the detector."""
    parameters: int | None
    """Number of trained parameters, without running statistics; None for a bundle without weights."""
    weights_mb: float | None = None
    """Size of the weights in fp32, 10^6 bytes."""
    gflops_per_tile: float | None = None
    """Floating point operations of a tile, 10^9: convolutions and matrix products as torch counts them, a
    multiplication and an addition being two; None without torch or without weights."""
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A detector that can be opened as an engine."""

    record: EvaluatedModelRecord
    classes: tuple[str, ...]
    tiling: TilingConfig
    recipe: Recipe | None
    """The effective recipe; None for a bundle without one."""
    open: Callable[[Backend, Precision, int | None], Engine]
    """(backend, precision, threads) -> engine."""
    weights: Path | None = None
    """Weights in safetensors format; None for a bundle without them."""

    def with_flops(self) -> EvaluatedModelRecord:
        """Return the record with the operations of a tile, which takes about a second to count.

        Raises:
            CheckpointError: The weights are damaged.
        """
        if self.weights is None:
            return self.record
        try:
            from export.onnx.flops import gflops_of  # noqa: PLC0415 - torch is absent on machines that only detect
        except ImportError:
            return self.record
        per_level = DEFAULT_CANDIDATES_PER_LEVEL if self.recipe is None else self.recipe.export.candidates_per_level
        gflops = gflops_of(self.weights, tile_px=self.tiling.tile_px, candidates_per_level=per_level)
        return self.record.model_copy(update={"gflops_per_tile": gflops})


def open_model(path: Path, *, server: str | None = None) -> EvaluatedModel:
    """Return the checkpoint or bundle at `path`; `server` is the URL of the Triton server for the backend triton.

    Raises:
        UsageError: There is no checkpoint or bundle at `path`.
        CheckpointError: The checkpoint is damaged.
        BundleError: The bundle's manifest is invalid.
    """
    if (path / MANIFEST_NAME).is_file():
        return bundle_model(open_bundle(path), server=server)
    if path.is_file() and path.suffix == ".safetensors":
        return _checkpoint_model(path)
    got = f"a folder without {MANIFEST_NAME}" if path.is_dir() else "another file" if path.exists() else "no such path"
    expected = "a checkpoint (.safetensors) or the folder of a bundle"
    raise UsageError(f"{path} cannot be evaluated", got=got, expected=expected)


def bundle_model(bundle: Bundle, *, server: str | None = None) -> EvaluatedModel:
    """Return an open bundle as a model; `server` is the URL of the Triton server for the backend triton.

    Raises:
        BundleError: A file of the bundle is missing or damaged.
    """
    manifest = bundle.manifest
    weights = _file_of_kind(bundle, "weights")
    config = _file_of_kind(bundle, "config")
    recipe = None if config is None else load(config, Recipe)
    record = EvaluatedModelRecord(
        kind="bundle",
        name=manifest.name,
        path=str(bundle.path),
        sha256=sha256_of(bundle.path / MANIFEST_NAME),
        detector=manifest.detector,
        **_size_of(weights),
        provenance=manifest.provenance,
    )
    tiles, defaults = manifest.input, manifest.defaults
    tiling = TilingConfig(tiles.scale, tiles.tile_px, defaults.overlap_px, defaults.postprocess, tiles.imagery)

    def open_backend(backend: Backend, precision: Precision, threads: int | None) -> Engine:
        address = server if backend == "triton" else None
        return open_engine(bundle, backend=backend, precision=precision, threads=threads, server=address)

    return EvaluatedModel(record, manifest.classes, tiling, recipe, open_backend, weights)


@dataclass(frozen=True, slots=True)
class BundleFile:
    """An ONNX file or engine of a bundle."""

    folder: Path
    """Folder of the bundle."""
    name: str
    """Path of the file in the bundle."""
    backend: Backend
    precision: Precision


def bundle_file(path: Path) -> BundleFile | None:
    """Return the bundle that the ONNX file or engine at `path` belongs to, or None for any other path.

    Raises:
        UsageError: No bundle around the file lists it.
        BundleError: The bundle's manifest is invalid.
    """
    if not path.is_file() or path.suffix not in (".onnx", ".engine"):
        return None
    for folder in path.resolve().parents[:2]:
        if (folder / MANIFEST_NAME).is_file():
            name = path.resolve().relative_to(folder).as_posix()
            record = open_bundle(folder).manifest.files.get(name)
            if record is not None and record.precision is not None and record.kind in ("onnx", "engine"):
                backend: Backend = "onnxruntime" if record.kind == "onnx" else "tensorrt"
                return BundleFile(folder, name, backend, record.precision)
    hint = f"Name a file that the {MANIFEST_NAME} of a bundle lists: it states classes, scale and thresholds."
    raise UsageError(f"{path} is not a file of a bundle", hint=hint)


def choose_precisions(bundle: Bundle, requested: Sequence[Precision] | None) -> list[Precision]:
    """Return the requested precisions, each once, or by default those of the bundle's ONNX files, fp32 first.

    Raises:
        BundleError: The bundle has neither an ONNX file nor an engine in a requested precision.
    """
    files = bundle.manifest.files.values()
    if not requested:
        exported = {record.precision for record in files if record.kind == "onnx"}
        return [precision for precision in get_args(Precision) if precision in exported]
    available = {record.precision for record in files if record.kind in ("onnx", "engine")}
    absent = [precision for precision in dict.fromkeys(requested) if precision not in available]
    if absent:
        problem, got = f"{bundle.path} has no file in a requested precision", ", ".join(absent)
        expected = f"some of {', '.join(one for one in get_args(Precision) if one in available)}"
        hint = "Export the checkpoint in this precision, or choose another one."
        raise BundleError(problem, got=got, expected=expected, hint=hint)
    return list(dict.fromkeys(requested))


def choose_engines(
    bundle: Bundle, backends: Sequence[Backend], requested: Sequence[Precision] | None
) -> list[tuple[Backend, Precision]]:
    """Return the pairs of a backend and a precision of `choose_precisions`, each once.

    By default, the file for CPUs, int8-cpu, is left out for a backend that needs a GPU.

    Raises:
        BundleError: The bundle has neither an ONNX file nor an engine in a requested precision.
    """
    precisions = choose_precisions(bundle, requested)
    pairs = [(backend, precision) for backend in dict.fromkeys(backends) for precision in precisions]
    return [one for one in pairs if requested or one[0] not in GPU_BACKENDS or one[1] != "int8-cpu"]


def count_parameters(weights: Path) -> int:
    """Return the number of trained parameters in a safetensors file; only its header is read.

    Raises:
        CheckpointError: The file is absent or not in safetensors format.
    """
    try:
        with weights.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, MAX_HEADER_BYTES)))
        shapes = {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{weights} is not a complete safetensors file ({error})") from error
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(RUNNING_STATISTICS))


def _size_of(weights: Path | None) -> dict[str, Any]:
    """Return the fields `parameters` and `weights_mb` of a record."""
    if weights is None:
        return {"parameters": None}
    return {"parameters": count_parameters(weights), "weights_mb": weights.stat().st_size / 1e6}


def _file_of_kind(bundle: Bundle, kind: Literal["weights", "config"]) -> Path | None:
    names = bundle.find(kind)
    return bundle.file(names[0]) if names else None


def _checkpoint_model(path: Path) -> EvaluatedModel:
    try:
        from deploy.engines.torch_engine import TorchEngine  # noqa: PLC0415 - only a checkpoint needs torch
        from ifkd.models.checkpoint import load_checkpoint  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", extra="train", need="A checkpoint") from error
    meta = load_checkpoint(path).meta
    recipe, data = meta.recipe, meta.recipe.data
    record = EvaluatedModelRecord(
        kind="checkpoint",
        name=" ".join(filter(None, (recipe.name, str(meta.provenance.get("role", ""))))),
        path=str(path),
        sha256=sha256_of(path),
        detector=meta.detector.model_dump(mode="json"),
        **_size_of(path),
        provenance=meta.provenance,
    )
    tile_px, overlap_px = (data.tile_px, data.tile_px), recipe.export.overlap_px
    tiling = TilingConfig(data.scale, tile_px, overlap_px, recipe.postprocess, data.imagery)

    def open_torch(backend: Backend, precision: Precision, threads: int | None) -> Engine:
        if backend != "torch" or precision != "fp32":
            hint = "Export it with `ifkd export` and evaluate the bundle."
            raise UsageError(f"The checkpoint {path} runs in torch fp32 only", got=f"{backend} {precision}", hint=hint)
        return TorchEngine.from_checkpoint(path, threads=threads)

    return EvaluatedModel(record, meta.classes, tiling, recipe, open_torch, path)
