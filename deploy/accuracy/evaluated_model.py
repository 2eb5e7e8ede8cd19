"""What can be evaluated, a checkpoint or a bundle, under one face."""

import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from deploy.accuracy.image_detection import TilingConfig
from deploy.engines import open_engine
from deploy.engines.engine import Backend, Engine
from export.bundle.bundle import MANIFEST_NAME, Bundle, open_bundle
from export.bundle.manifest import Precision
from ifkd.core.config import Schema, load
from ifkd.core.errors import BundleError, CheckpointError, MissingExtraError, UsageError
from ifkd.core.files import sha256_of
from ifkd.recipe import Recipe

HEADER_BYTES = 100_000_000
"""The longest header the format allows."""
RUNNING_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


class EvaluatedModelRecord(Schema):
    """The detector that accuracy was measured of."""

    kind: Literal["checkpoint", "bundle"]
    name: str
    path: str
    sha256: str
    """Digest of the checkpoint, or of the bundle's manifest, which holds the digests of its files."""
    detector: dict[str, Any]
    """The detector's configuration."""
    parameters: int | None
    """Numbers that were learned; running statistics are left out. None when the bundle has no weights."""
    weights_mb: float | None = None
    """Size of the weights in fp32, 10^6 bytes."""
    gflops_per_tile: float | None = None
    """Floating point operations of a tile, 10^9, multiplications and additions counted apiece, of convolutions and
    matrix products, as torch counts them; None where torch or the weights are absent."""
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A detector that can be opened as an engine."""

    record: EvaluatedModelRecord
    classes: tuple[str, ...]
    framing: TilingConfig
    recipe: Recipe | None
    """The effective recipe, when it is known."""
    open: Callable[[Backend, Precision, int | None], Engine]
    """(backend, precision, threads) -> engine."""
    weights: Path | None = None
    """Its learned numbers; None when the bundle ships without."""
    per_level: int = 1000
    """Candidates of each pyramid level."""

    def with_complexity(self) -> EvaluatedModelRecord:
        """Return the record with the operations of a tile, which takes a second to count.

        Raises:
            CheckpointError: The weights are damaged.
        """
        if self.weights is None:
            return self.record
        try:
            from export.onnx.flops import gflops_of  # noqa: PLC0415 - a machine that only detects has no torch
        except ImportError:
            return self.record
        gflops = gflops_of(self.weights, tile_px=self.framing.tile_px, per_level=self.per_level)
        return self.record.model_copy(update={"gflops_per_tile": gflops})


def open_model(path: Path, *, server: str | None = None) -> EvaluatedModel:
    """Return the checkpoint or bundle at `path`.

    Args:
        path: Of its file or folder.
        server: URL of the Triton server on which a bundle is opened by the backend triton.

    Raises:
        UsageError: There is neither at `path`.
        CheckpointError: The checkpoint is damaged.
        BundleError: The bundle's manifest does not hold.
    """
    if (path / MANIFEST_NAME).is_file():
        return _bundle_subject(open_bundle(path), server)
    if path.is_file() and path.suffix == ".safetensors":
        return _checkpoint_subject(path)
    got = "a folder without model.json" if path.is_dir() else "another file" if path.exists() else "nothing there"
    raise UsageError(
        f"{path} cannot be evaluated", got=got, expected="a checkpoint (.safetensors) or the folder of a bundle"
    )


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file of a bundle that an engine is made of."""

    folder: Path
    """The bundle."""
    name: str
    """Of the file, inside the bundle."""
    backend: Backend
    precision: Precision


def bundle_file(path: Path) -> BundleFile | None:
    """Return which file of which bundle `path` is, or None when it is no ONNX file and no engine.

    Raises:
        UsageError: It is one, and no bundle around it knows it.
        BundleError: The bundle's manifest does not hold.
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
    raise UsageError(
        f"{path} is in no bundle that knows it",
        hint="Name a file that a bundle's model.json lists: classes, scale and thresholds are read there.",
    )


def tiling_of(bundle: Bundle) -> TilingConfig:
    """Return how a bundle's engines see images."""
    manifest = bundle.manifest
    return TilingConfig(
        scale=manifest.input.scale,
        tile_px=manifest.input.tile_px,
        overlap_px=manifest.defaults.overlap_px,
        selection=manifest.defaults.selection,
        imagery=manifest.input.imagery,
    )


def precisions_of(bundle: Bundle) -> list[Precision]:
    """Return the precisions of a bundle's ONNX files, the most exact first."""
    have = {record.precision for record in bundle.manifest.files.values() if record.kind == "onnx"}
    return [precision for precision in get_args(Precision) if precision in have]


def precisions_to_run(bundle: Bundle, asked: Sequence[Precision] | None) -> list[Precision]:
    """Return the precisions that were asked for, each once, or by default all of the bundle's ONNX files.

    Raises:
        BundleError: One was asked for in which the bundle has neither an ONNX file nor an engine.
    """
    if not asked:
        return precisions_of(bundle)
    have = {record.precision for record in bundle.manifest.files.values() if record.kind in ("onnx", "engine")}
    absent = [precision for precision in dict.fromkeys(asked) if precision not in have]
    if absent:
        raise BundleError(
            f"{bundle.path} has no file in a precision that was asked for",
            got=", ".join(absent),
            expected=f"some of {', '.join(one for one in get_args(Precision) if one in have)}",
            hint="Export the checkpoint with this precision, or ask for another.",
        )
    return list(dict.fromkeys(asked))


def recipe_of(bundle: Bundle) -> Recipe | None:
    """Return the bundle's effective recipe, or None when it carries none."""
    names = bundle.find("config")
    return load(bundle.file(names[0]), Recipe) if names else None


def count_parameters(weights: Path) -> int:
    """Return how many numbers of a safetensors file were learned, read from its header alone.

    Raises:
        CheckpointError: The file is absent or is not safetensors.
    """
    try:
        with weights.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, HEADER_BYTES)))
        tensors = {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{weights} is not a whole safetensors file ({error})") from error
    return sum(math.prod(shape) for name, shape in tensors.items() if not name.endswith(RUNNING_STATISTICS))


def _bundle_subject(bundle: Bundle, server: str | None) -> EvaluatedModel:
    manifest = bundle.manifest
    names = bundle.find("weights")
    weights = bundle.file(names[0]) if names else None
    recipe = recipe_of(bundle)
    record = EvaluatedModelRecord(
        kind="bundle",
        name=manifest.name,
        path=str(bundle.path),
        sha256=sha256_of(bundle.path / MANIFEST_NAME),
        detector=manifest.detector,
        parameters=None if weights is None else count_parameters(weights),
        weights_mb=None if weights is None else weights.stat().st_size / 1e6,
        provenance=manifest.provenance,
    )

    def open_one(backend: Backend, precision: Precision, threads: int | None) -> Engine:
        return open_engine(bundle, backend=backend, precision=precision, threads=threads, server=server)

    per_level = 1000 if recipe is None else recipe.export.candidates_per_level
    return EvaluatedModel(record, manifest.classes, tiling_of(bundle), recipe, open_one, weights, per_level)


def _checkpoint_subject(path: Path) -> EvaluatedModel:
    try:
        from deploy.engines.torch_engine import TorchEngine  # noqa: PLC0415 - only a checkpoint needs torch
        from ifkd.models.checkpoint import load_checkpoint  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", extra="train", need="A checkpoint") from error
    meta = load_checkpoint(path).meta
    data = meta.recipe.data
    record = EvaluatedModelRecord(
        kind="checkpoint",
        name=" ".join(filter(None, (meta.recipe.name, str(meta.provenance.get("role", ""))))),
        path=str(path),
        sha256=sha256_of(path),
        detector=meta.detector.model_dump(mode="json"),
        parameters=count_parameters(path),
        weights_mb=path.stat().st_size / 1e6,
        provenance=meta.provenance,
    )
    framing = TilingConfig(
        data.scale, (data.tile_px, data.tile_px), meta.recipe.export.overlap_px, meta.recipe.selection, data.imagery
    )

    def open_one(backend: Backend, precision: Precision, threads: int | None) -> Engine:
        if backend != "torch" or precision != "fp32":
            raise UsageError(
                f"The checkpoint {path} runs in torch fp32 only",
                got=f"{backend} {precision}",
                hint="Export it with `ifkd export`, and evaluate the bundle.",
            )
        return TorchEngine.from_checkpoint(path, threads=threads)

    per_level = meta.recipe.export.candidates_per_level
    return EvaluatedModel(record, meta.classes, framing, meta.recipe, open_one, path, per_level)
