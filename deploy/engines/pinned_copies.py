"""Copies between pinned memory of the host and the GPU, for a runtime that owns the memory on the GPU.

The GPU copies pinned memory by itself: the calling thread only writes the tiles there, and waits asleep for a copy.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deploy.engines.cuda_stream import Cuda
from deploy.engines.engine import OUTPUT_DTYPES, EngineInfo
from export.tensorrt import tensorrt_api
from ifkd.core.detections import Array

GPU_EXTRAS = ("gpu", "gpu-cu12")
"""Extras that install ONNX Runtime with CUDA and cuda-bindings, for a driver of CUDA 13 or 12."""


@dataclass(slots=True, eq=False)
class PinnedSlot:
    """Pinned memory of a batch, of up to the largest shape, and the events around its upload."""

    tiles: Array
    """Uint8, flat."""
    outputs: dict[str, Array]
    start: tensorrt_api.CudaEvent
    end: tensorrt_api.CudaEvent


class PinnedCopies:
    """Uploads of tiles and downloads of outputs, each on a stream of its own.

    In this process, a thread that waits for the GPU sleeps, also one that waits inside another library.

    Raises:
        EngineError: There is no GPU, or cuda-bindings is too old.
        MissingExtraError: cuda-bindings is not installed.
    """

    def __init__(self, info: EngineInfo) -> None:
        self._info = info
        self._owner = contextlib.ExitStack()
        self._free: list[PinnedSlot] = []
        cuda = self._cuda = Cuda(self._owner, need=f"The backend {info.backend}", extras=GPU_EXTRAS)
        cuda.sleep_while_waiting()
        try:
            self._streams = [cuda.stream(), cuda.stream()]
            self._downloaded = cuda.event()
        except BaseException:
            self._owner.close()
            raise

    def upload(self, tiles: Array, address: int) -> PinnedSlot:
        """Start to copy tiles to an address on the GPU; `release` the slot after use."""
        slot = self._free.pop() if self._free else self._new_slot()
        pinned = slot.tiles[: tiles.size].reshape(tiles.shape)
        pinned[:] = tiles
        cuda, stream = self._cuda, self._streams[0]
        cuda.record(slot.start, stream)
        cuda.upload(pinned, address, stream)
        cuda.record(slot.end, stream)
        return slot

    def finish_upload(self, slot: PinnedSlot) -> float:
        """Wait until the tiles are on the GPU, and return the time of the copy in milliseconds."""
        self._cuda.synchronize(slot.end)
        return self._cuda.elapsed_ms(slot.start, slot.end)

    def download(self, slot: PinnedSlot, addresses: Mapping[str, int], batch: int) -> list[Array]:
        """Return the outputs of a batch of `batch` tiles, in the order of `OUTPUT_DTYPES`, by addresses on the GPU."""
        cuda, stream = self._cuda, self._streams[1]
        for name, array in slot.outputs.items():
            cuda.download(addresses[name], array[:batch], stream)
        cuda.record(self._downloaded, stream)
        cuda.synchronize(self._downloaded)
        # A later batch overwrites the pinned memory, so the caller gets copies.
        return [array[:batch].copy() for array in slot.outputs.values()]

    def release(self, slot: PinnedSlot) -> None:
        """Let another batch use a slot, whose copies have ended."""
        self._free.append(slot)

    def close(self) -> None:
        """Wait for copies, and free memory, events and streams; a second call does nothing."""
        self._cuda.synchronize_streams(self._streams)
        self._streams, self._free = [], []
        self._owner.close()

    def _new_slot(self) -> PinnedSlot:
        cuda, batch = self._cuda, self._info.max_batch
        height, width = self._info.sizes.largest
        shapes = self._info.output_shapes(batch)
        outputs = {name: cuda.pinned(shape, OUTPUT_DTYPES[name]) for name, shape in shapes.items()}
        tiles = cuda.pinned((batch * 3 * height * width,), np.dtype(np.uint8))
        return PinnedSlot(tiles, outputs, cuda.event(), cuda.event())
