"""`ifkd detect` with a fake engine in a process of its own that kills itself: `python detection_process.py N ARGS`."""

import os
import signal
import sys
import time
from pathlib import Path

import deploy.engines
from deploy.cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes.fake_scene import CountingEngine


class DoomedEngine(CountingEngine):
    """An engine whose process is killed at its call number `calls`, as by `kill -9`."""

    def __init__(self, calls):
        super().__init__()
        self._calls = calls

    def _run(self, tiles):
        if self._calls == 0:
            time.sleep(0.5)  # what was handed on is written down meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
        self._calls -= 1
        return super()._run(tiles)


calls = int(sys.argv[1])
deploy.engines.open_engine = lambda *_, **__: DoomedEngine(calls)
sys.exit(main(["detect", *sys.argv[2:]]))
