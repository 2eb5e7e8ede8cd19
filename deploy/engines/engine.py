"""The engine contract: a loaded model that answers `infer`, whatever runs it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import numpy as np

from export.bundle.manifest import Precision
from ifkd.core.detections import Array, Candidates, Detections
from ifkd.core.errors import EngineError
from ifkd.core.input_shapes import InputShapes

Backend = Literal["torch", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "triton"]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is, for checks and for reports."""

    backend: str
    """One of `Backend`, or `fake`."""
    backend_version: str
    device: str
    """Where it computes, in words."""
    precision: Precision
    file: str
    """The file in the bundle that was loaded."""
    sha256: str
    """Digest of that file."""
    tile_px: tuple[int, int]
    """(height, width)."""
    max_batch: int
    candidates: int
    """Candidates per tile."""
    classes: tuple[str, ...]
    tile_sides_px: tuple[int, int] | None = None
    """Least and largest height and width, where it takes tiles of several sizes; None where of `tile_px` alone."""

    @property
    def sizes(self) -> InputShapes:
        """The tiles it takes."""
        return InputShapes(self.tile_px, self.tile_sides_px)


@dataclass(frozen=True, slots=True)
class InferenceParts:
    """What one inference was made of, for an engine that computes elsewhere than where the tiles are."""

    upload_ms: float
    """Tiles to the device."""
    compute_ms: float
    download_ms: float
    """Candidates back from it."""


class Engine(ABC):
    """Answers tiles with candidates. Construction means ready; use it in a `with`, or `close` it."""

    info: EngineInfo

    def infer(self, tiles: Array) -> Candidates:
        """Return the candidates of a batch of tiles, in arrays that belong to the caller.

        Args:
            tiles: uint8 [batch, 3, height, width], RGB, of a size that `info.sizes` takes.

        Raises:
            EngineError: The tiles are not what the engine takes; the runtime has not seen them.
        """
        self._check(tiles)
        return self._run(tiles)

    def infer_each(self, batches: Iterable[Array]) -> Iterator[Candidates]:
        """Yield the candidates of each batch, in order; an engine may take the next one before it answers the last.

        Raises:
            EngineError: A batch is not what the engine takes.
        """
        for tiles in batches:
            yield self.infer(tiles)

    @property
    def parts(self) -> InferenceParts | None:
        """The parts of the last inference that was answered.

        None before the first one, and always where tiles are computed in the memory that they lie in, as on a CPU:
        nothing is uploaded there; nor does a Triton server tell its parts.
        """
        return None

    @abstractmethod
    def _run(self, tiles: Array) -> Candidates:
        """Answer tiles that were checked."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the engine holds; a second call does nothing."""

    def __enter__(self) -> "Engine":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, tiles: Array) -> None:
        sizes = self.info.sizes
        fits = (
            isinstance(tiles, np.ndarray)
            and tiles.dtype == np.uint8
            and tiles.ndim == 4
            and tiles.shape[1] == 3
            and sizes.takes(tiles.shape[2:])
            and 1 <= len(tiles) <= self.info.max_batch
        )
        if not fits:
            got = f"{tiles.dtype} {list(tiles.shape)}" if isinstance(tiles, np.ndarray) else type(tiles).__name__
            raise EngineError(
                "These tiles do not fit the engine",
                got=got,
                expected=f"uint8 [1..{self.info.max_batch}, 3, {sizes.usual[0]}, {sizes.usual[1]}]"
                if sizes.sides is None
                else f"uint8 [1..{self.info.max_batch}, 3, height, width] with {sizes}",
            )


class FakeEngine(Engine):
    """An engine for tests and dry runs: for each tile it answers what `find` returns, padded to k candidates."""

    def __init__(self, info: EngineInfo, find: Callable[[Array], Detections]) -> None:
        self.info = info
        self._find = find

    def _run(self, tiles: Array) -> Candidates:
        k = self.info.candidates
        boxes = np.zeros((len(tiles), k, 4), np.float32)
        scores = np.zeros((len(tiles), k), np.float32)
        labels = np.zeros((len(tiles), k), np.int64)
        for row, tile in enumerate(tiles):
            found = self._find(tile)
            n = min(k, len(found))
            boxes[row, :n], scores[row, :n], labels[row, :n] = (
                found.boxes[:n],
                found.scores[:n],
                found.labels[:n],
            )
        return Candidates(boxes, scores, labels)

    def close(self) -> None:
        """Nothing is held."""
