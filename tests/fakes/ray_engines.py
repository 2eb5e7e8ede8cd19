"""Engines for actors on Ray: they write down what they look at, wait at a gate, or take their process with them."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from fakes.fake_scene import CountingEngine

POISON = 255
"""A tile with a pixel of this shade in its first band kills whoever looks at it."""


def opened(engine, _bundle, **_):
    """Return an engine, in the place of `open_engine`."""
    return engine()


class LoggingEngine(CountingEngine):
    """Appends the process and the digest of every tile to a file; after `most` tiles of all engines it only waits.

    It begins when there are `engines` of them: one that came late would find the others done, and stop in its
    first band.
    """

    def __init__(self, log, *, most=None, engines=1):
        super().__init__()
        self._log = Path(log)
        self._most = most
        self._engines = engines
        self._log.with_name(f"{self._log.name}.{os.getpid()}").touch()

    def _run(self, tiles):
        while len(list(self._log.parent.glob(f"{self._log.name}.*"))) < self._engines:
            time.sleep(0.05)
        if self._most is not None and self._log.exists() and self._log.read_text().count("\n") >= self._most:
            time.sleep(600)  # until its process is ended
        lines = "".join(f"{os.getpid()} {hash(tile.tobytes()) & 0xFFFFFFFF:08x}\n" for tile in tiles)
        handle = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, lines.encode())
        os.close(handle)
        answer = super()._run(tiles)
        self.batches.clear()
        return answer


class PoisonedEngine(CountingEngine):
    """Is killed by tiles of the poison's shade, as a decoder may be."""

    def _run(self, tiles):
        if (tiles[:, 0] == POISON).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._run(tiles)


class DoomedOnceEngine(CountingEngine):
    """The first of all processes that finds no file there makes it and is killed, as by `kill -9`."""

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
    """Return a scene whose tiles all differ, with some objects."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(20, 60, (height, width, 3), np.uint8)
    for _ in range(8):
        top, left = rng.integers(0, height - 30), rng.integers(0, width - 30)
        pixels[top : top + rng.integers(8, 20), left : left + rng.integers(8, 20)] = 170
    return pixels


class FirstBatchEngine(CountingEngine):
    """Rounds its scores by the company that tiles are in, as a runtime may."""

    def _run(self, tiles):
        answer = super()._run(tiles)
        company = np.float32(1 + int(tiles.astype(np.uint64).sum()) % 997 / 1e5)
        return type(answer)(answer.boxes, answer.scores * (answer.scores > 0) / company, answer.labels)
