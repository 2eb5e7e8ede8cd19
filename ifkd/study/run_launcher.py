"""Start a study's training runs as subprocesses, several at once."""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from ifkd.compute.device import gpu_groups
from ifkd.core.environment import usable_cores
from ifkd.core.errors import TrainingError
from ifkd.core.files import make_folder
from ifkd.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

OMP_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class RunLauncher:
    """Start `ifkd` commands whose run folders are inside one study folder."""

    folder: Path
    """The study's folder."""
    jobs: int = 1
    """Number of runs at once."""
    processes: int = 1
    """Number of processes of one run, started by torchrun."""

    def launch(self, commands: Mapping[str, Sequence[str]]) -> None:
        """Run each command whose run is not finished; each concurrent run gets its own GPUs while there are enough.

        `commands` are the arguments of `ifkd`, without `--out`, by the name of the run.

        Raises:
            TrainingError: Some runs failed; the others are finished.
        """
        pending = [name for name in commands if not RunFolder(self.folder / name).is_finished]
        if len(commands) > len(pending):
            logger.info("%d of %d runs are already finished", len(commands) - len(pending), len(commands))
        groups: list[str] = gpu_groups(self.processes)
        free_gpus: SimpleQueue[str | None] = SimpleQueue()
        for job in range(self.jobs):
            free_gpus.put(groups[job % len(groups)] if groups else None)

        def run(name: str) -> int:
            gpus = free_gpus.get()
            try:
                return self._run(name, commands[name], gpus=gpus)
            finally:
                free_gpus.put(gpus)

        with ThreadPoolExecutor(self.jobs) as pool:
            exit_codes = list(pool.map(run, pending))
        failed = [name for name, code in zip(pending, exit_codes, strict=True) if code]
        if failed:
            hint = f"See {self._log(failed[0])} for the reason. The same command resumes the study."
            raise TrainingError(f"{len(failed)} of {len(pending)} runs failed: {', '.join(failed)}", hint=hint)

    def _run(self, name: str, arguments: Sequence[str], *, gpus: str | None) -> int:
        """Run one command with its output in a log file, and return its exit code."""
        command = [sys.executable, "-m", "ifkd", *arguments, "--out", str(self.folder / name)]
        if self.processes > 1:
            torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(self.processes)]
            command[1:1] = [*torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        logger.info("Starting %s", name)
        make_folder(self._log(name).parent)
        variables = os.environ | ({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}) | self._threads()
        with self._log(name).open("a", encoding="utf-8") as log:
            done = subprocess.run(command, stdout=log, stderr=log, check=False, env=variables)  # noqa: S603
        return done.returncode

    def _threads(self) -> dict[str, str]:
        """Return the number of threads per process as a variable, unless there is one process or the user set it."""
        concurrent = self.jobs * self.processes
        if concurrent == 1 or OMP_THREADS in os.environ:
            return {}
        return {OMP_THREADS: str(max(1, usable_cores() // concurrent))}

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.txt"
