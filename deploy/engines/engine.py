"""The engine interface: a loaded model that turns batches of tiles into candidates."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from export.bundle.manifest import Manifest, Precision
from ifkd.core.detections import Array, Candidates, Detections
from ifkd.core.errors import BundleError, EngineError
from ifkd.core.input_shapes import InputShapes

Backend = Literal["torch", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino", "tensorrt", "triton"]

ComputeType = Literal["fp32", "bf16"]

OUTPUT_DTYPES: dict[str, np.dtype[Any]] = {
    "boxes": np.dtype(np.float32),
    "scores": np.dtype(np.float32),
    "labels": np.dtype(np.int64),
    "oriented": np.dtype(np.float32),
}
"""Dtype of each output of an exported model."""


def output_shapes(k: int, *batch: int, oriented: bool) -> dict[str, tuple[int, ...]]:
    """Return the shape of each output for `k` candidates per tile, after the axes of `batch`.

    The order is that of the fields of `Candidates`; only an oriented detector has the last.
    """
    shapes = {"boxes": (*batch, k, 4), "scores": (*batch, k), "labels": (*batch, k)}
    return {**shapes, "oriented": (*batch, k, 5)} if oriented else shapes


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Description of an engine, for checks and reports."""

    backend: str
    """One of `Backend`, or `fake`."""
    backend_version: str
    device: str
    """Name of the device that computes."""
    precision: Precision
    file: str
    """Name of the loaded file in the bundle."""
    sha256: str
    """Digest of that file."""
    tile_px: tuple[int, int]
    """(height, width) of a tile, pixels."""
    max_batch: int
    candidates: int
    """Candidates per tile."""
    classes: tuple[str, ...]
    tile_sides_px: tuple[int, int] | None = None
    """Smallest and largest height and width of a tile; None for an engine with the fixed size `tile_px`."""
    compute_type: ComputeType | None = None
    """Type of the computation if it is not the type of the file; None if it is."""
    oriented: bool = False
    """Whether the candidates have oriented boxes."""

    @classmethod
    def of_file(
        cls,
        manifest: Manifest,
        file: str,
        *,
        backend: Backend,
        version: str,
        device: str,
        max_batch: int | None = None,
        compute_type: ComputeType | None = None,
    ) -> "EngineInfo":
        """Return the description of an engine for a file of a manifest; `max_batch` defaults to the manifest's."""
        record, tiles = manifest.files[file], manifest.input
        assert record.precision is not None, "files of models have a precision"
        return cls(
            backend=backend,
            backend_version=version,
            device=device,
            precision=record.precision,
            file=file,
            sha256=record.sha256,
            tile_px=tiles.tile_px,
            max_batch=tiles.max_batch if max_batch is None else max_batch,
            candidates=manifest.outputs.candidates,
            classes=manifest.classes,
            tile_sides_px=tiles.tile_sides_px,
            compute_type=compute_type,
            oriented=manifest.outputs.oriented,
        )

    def output_shapes(self, *batch: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each output, after the axes of `batch`."""
        return output_shapes(self.candidates, *batch, oriented=self.oriented)

    @property
    def sizes(self) -> InputShapes:
        """Tile sizes that the engine accepts."""
        return InputShapes(self.tile_px, self.tile_sides_px)


@dataclass(frozen=True, slots=True)
class InferenceTiming:
    """Duration of the steps of one inference on a device with its own memory."""

    upload_ms: float
    """Copy of the tiles to the device."""
    compute_ms: float
    download_ms: float
    """Copy of the candidates to the host."""


class Engine(ABC):
    """A loaded model, ready for inference. Use it as a context manager, or call `close`."""

    info: EngineInfo
    overlaps_batches: bool = False
    """Whether `infer_each` uploads a batch while the one before is computed."""
    last_timing: InferenceTiming | None = None
    """Timing of the last inference; None before the first, on a CPU (nothing is copied), and for a Triton server (it
    does not report it)."""

    def infer(self, tiles: Array) -> Candidates:
        """Return the candidates of a batch of tiles, in arrays that the caller owns.

        Args:
            tiles: uint8 [batch, 3, height, width], RGB, of a size in `info.sizes`.

        Raises:
            EngineError: The dtype, shape or batch size is invalid, the engine is closed or fails, or its output is NaN
                or has labels out of range.
        """
        self._check(tiles)
        return self._valid(self._run(tiles))

    def infer_each(self, batches: Iterable[Array]) -> Iterator[Candidates]:
        """Yield `infer` of each batch, in order; an engine may fetch the next batch before it yields."""
        with contextlib.closing(self._run_each(batches)) as outputs:
            for candidates in outputs:
                yield self._valid(candidates)

    @abstractmethod
    def _run(self, tiles: Array) -> Candidates:
        """Return the candidates of tiles that passed `_check`."""

    def _run_each(self, batches: Iterable[Array]) -> Generator[Candidates, None, None]:
        """Yield the candidates of each batch, in order; an implementation calls `_check` for each."""
        for tiles in batches:
            self._check(tiles)
            yield self._run(tiles)

    @abstractmethod
    def close(self) -> None:
        """Release all resources; a second call does nothing."""

    def __enter__(self) -> "Engine":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _closed_error() -> EngineError:
        """Return the error of an inference after `close`."""
        return EngineError("The engine is closed", hint="Open it again.")

    def _check_signature(self, input_name: str, found: Mapping[str, tuple[str, list[int]]]) -> None:
        """Refuse a file whose inputs and outputs, by dtype and shape without the batch, differ from the manifest."""
        expected = {
            input_name: ("uint8", [3, *self.info.sizes.axes]),
            **{name: (OUTPUT_DTYPES[name].name, list(shape)) for name, shape in self.info.output_shapes().items()},
        }
        if found != expected:
            problem, hint = f"{self.info.file} differs from the manifest", "Export the bundle again."
            raise BundleError(problem, got=found, expected=expected, hint=hint)

    def _check(self, tiles: Array) -> None:
        sizes, most = self.info.sizes, self.info.max_batch
        is_batch = isinstance(tiles, np.ndarray) and tiles.dtype == np.uint8 and tiles.ndim == 4
        if not (is_batch and tiles.shape[1] == 3 and sizes.accepts(tiles.shape[2:]) and 1 <= len(tiles) <= most):
            got = f"{tiles.dtype} {list(tiles.shape)}" if isinstance(tiles, np.ndarray) else type(tiles).__name__
            fixed = f"{sizes.opt[0]}, {sizes.opt[1]}]"
            tile = fixed if sizes.side_range is None else f"height, width] with {sizes}"
            raise EngineError("The tiles do not fit the engine", got=got, expected=f"uint8 [1..{most}, 3, {tile}")

    def _valid(self, found: Candidates) -> Candidates:
        """Return the output of the model, or raise an EngineError if no model with these classes can give it."""
        file, classes = self.info.file, len(self.info.classes)
        for name, values in (("scores", found.scores), ("boxes", found.boxes), ("oriented", found.oriented)):
            if values is None:
                continue
            wrong = np.count_nonzero(~np.isfinite(values))
            if wrong:
                problem = f"{file} returns {name} that are NaN or infinite on {self.info.device}"
                hint = "Use another precision, or export the bundle again."
                raise EngineError(problem, got=f"{wrong} of {values.size} values", expected="finite values", hint=hint)
        low, high = found.labels.min(initial=0), found.labels.max(initial=0)
        if low < 0 or high >= classes:
            problem = f"{file} returns labels out of range on {self.info.device}"
            hint = "Export the bundle again, or use another runtime."
            raise EngineError(problem, got=f"{low} to {high}", expected=f"0 to {classes - 1}", hint=hint)
        return found


class FakeEngine(Engine):
    """An engine for tests and benchmarks: `find` returns the detections of a tile, padded to k candidates."""

    def __init__(self, info: EngineInfo, find: Callable[[Array], Detections]) -> None:
        self.info = info
        self._find = find

    def _run(self, tiles: Array) -> Candidates:
        k, shapes = self.info.candidates, self.info.output_shapes(len(tiles))
        output = {name: np.zeros(shape, OUTPUT_DTYPES[name]) for name, shape in shapes.items()}
        for row, tile in enumerate(tiles):
            found = self._find(tile)
            for name, array in output.items():
                array[row, : len(found)] = getattr(found, name)[:k]
        return Candidates(**output)

    def close(self) -> None:
        """Do nothing: there are no resources."""
