"""`ifkd detect` with a fake engine that kills its process: `python detection_process.py CALLS ARGS`."""

import os
import signal
import sys
import time
from pathlib import Path

import deploy.engines
from deploy.cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes.fake_scene import CountingEngine


class SelfKillingEngine(CountingEngine):
    """A fake engine that kills its process with SIGKILL after `calls` batches."""

    def __init__(self, calls):
        super().__init__()
        self._calls = calls

    def _run(self, tiles):
        if self._calls == 0:
            time.sleep(0.5)  # finished rows are written to the journal meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
        self._calls -= 1
        return super()._run(tiles)


calls = int(sys.argv[1])
deploy.engines.open_engine = lambda *_, **__: SelfKillingEngine(calls)
sys.exit(main(["detect", *sys.argv[2:]]))
