"""Fake engines for Ray actors: they log their tiles, block, or kill their process."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from fakes.fake_scene import CountingEngine

CRASH_VALUE = 255
"""A tile with a pixel of this value in its first band kills the process of a `CrashingEngine`."""


def opened(engine, _bundle, **_):
    """Return a fake engine; replaces `open_engine`."""
    return engine()


class LoggingEngine(CountingEngine):
    """A fake engine that logs the process id and digest of every tile; all engines block after `max_tiles` tiles.

    It starts when there are `engines` of them; otherwise a late engine would start after the limit is reached.
    """

    def __init__(self, log, *, max_tiles=None, engines=1):
        super().__init__()
        self._log = Path(log)
        self._max_tiles = max_tiles
        self._engines = engines
        self._log.with_name(f"{self._log.name}.{os.getpid()}").touch()

    def _run(self, tiles):
        while len(list(self._log.parent.glob(f"{self._log.name}.*"))) < self._engines:
            time.sleep(0.05)
        if self._max_tiles is not None and self._log.exists() and self._log.read_text().count("\n") >= self._max_tiles:
            time.sleep(600)  # until the test kills the process
        lines = "".join(f"{os.getpid()} {hash(tile.tobytes()) & 0xFFFFFFFF:08x}\n" for tile in tiles)
        handle = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, lines.encode())
        os.close(handle)
        output = super()._run(tiles)
        self.batches.clear()
        return output


class CrashingEngine(CountingEngine):
    """A fake engine whose process is killed by tiles with the value `CRASH_VALUE`, like a crashing decoder."""

    def _run(self, tiles):
        if (tiles[:, 0] == CRASH_VALUE).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._run(tiles)


class KilledOnceEngine(CountingEngine):
    """A fake engine that kills its process with SIGKILL after `calls` batches, in only one of all processes.

    That process is the one that creates the file `mark`.
    """

    def __init__(self, mark, calls):
        super().__init__()
        self._mark = Path(mark)
        self._calls = calls

    def _run(self, tiles):
        self._calls -= 1
        if self._calls < 0:
            try:
                self._mark.touch(exist_ok=False)
            except FileExistsError:
                return super()._run(tiles)
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._run(tiles)


def noise(seed, height=300, width=200):
    """Return a scene of noise with some objects, whose tiles all differ."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(20, 60, (height, width, 3), np.uint8)
    for _ in range(8):
        top, left = rng.integers(0, height - 30), rng.integers(0, width - 30)
        pixels[top : top + rng.integers(8, 20), left : left + rng.integers(8, 20)] = 170
    return pixels


class BatchDependentEngine(CountingEngine):
    """A fake engine whose scores depend slightly on the other tiles of the batch, as in a real runtime."""

    def _run(self, tiles):
        output = super()._run(tiles)
        divisor = np.float32(1 + int(tiles.astype(np.uint64).sum()) % 997 / 1e5)
        return type(output)(output.boxes, output.scores * (output.scores > 0) / divisor, output.labels)
