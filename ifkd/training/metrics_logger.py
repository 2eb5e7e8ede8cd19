"""What a run tells while it goes: metrics.jsonl, TensorBoard, and a watch over the method's share of the loss."""

import json
import logging
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ifkd.core.errors import OutputError
from ifkd.core.files import write_text

LOG, EVENTS = "metrics.jsonl", "events"
HEALTHY_RATIO = (0.1, 10.0)
"""A method's weighted term over the task losses: below, it hardly teaches; above, the student hears nothing else."""
RATIO_MEMORY = 0.95
"""Of the running mean of a ratio, for each logged step."""

logger = logging.getLogger(__name__)


class MetricsLogger:
    """The record of a run in its folder; rank 0 keeps it.

    metrics.jsonl holds nothing that depends on the clock, so that a resumed run writes the very same lines;
    speed and memory go to TensorBoard alone.
    """

    def __init__(self, folder: Path, *, warm_after: int) -> None:
        """Open the record.

        Args:
            folder: The run's folder.
            warm_after: Iteration from which ratios are watched.
        """
        self._path = folder / LOG
        self._events = folder / EVENTS
        self._writer: SummaryWriter | None = None
        self._begun_at = 0
        self._warm_after = warm_after
        self._ratios: dict[str, float] = {}
        self._warned: set[str] = set()

    def begin(self, *, epoch: int, iteration: int) -> None:
        """Go on from a state: what was told after it is taken back, as those steps are taken again."""
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.is_file() else []
        kept = []
        for line in lines:
            if not line.endswith("\n"):
                break
            entry = json.loads(line)
            if iteration and entry.get("iteration", -1) < iteration and entry.get("epoch", 0) <= epoch:
                kept.append(line)
        if lines:
            write_text(self._path, "".join(kept))
        for line in kept:
            self._follow(json.loads(line), warn=False)
        self._begun_at = iteration

    def step(self, iteration: int, losses: dict[str, float], *, pace: dict[str, float]) -> None:
        """Tell a step: loss terms, shares and ratios to both places; `pace` (images/s, MB) to TensorBoard."""
        entry = {"iteration": iteration, **losses}
        self._write(entry)
        self._plot({**losses, **{f"pace/{name}": value for name, value in pace.items()}}, iteration)
        self._follow(entry, warn=True)

    def validation(self, epoch: int, iteration: int, metrics: dict[str, float]) -> None:
        """Tell the metrics of a validation."""
        self._write({"epoch": epoch, "validation": metrics})
        self._plot({f"validation/{name}": value for name, value in metrics.items()}, iteration)

    def close(self) -> None:
        """Write out what is waiting."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, entry: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _plot(self, values: dict[str, float], iteration: int) -> None:
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._events), purge_step=self._begun_at)
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)
        except OSError as error:
            raise _unwritable(self._events, error) from error

    def _follow(self, entry: dict[str, Any], *, warn: bool) -> None:
        """Keep a running mean of each ratio once it is warm, and warn once when it leaves the healthy range."""
        if entry.get("iteration", -1) < self._warm_after:
            return
        for name, value in entry.items():
            if not name.startswith("ratio/") or value == 0.0:
                continue
            mean = RATIO_MEMORY * self._ratios.get(name, value) + (1 - RATIO_MEMORY) * value
            self._ratios[name] = mean
            if name in self._warned or HEALTHY_RATIO[0] <= mean <= HEALTHY_RATIO[1]:
                continue
            self._warned.add(name)
            if warn:
                logger.warning(
                    "The weighted %s loss is %.3g times the detection loss at iteration %d; %g to %g is healthy. "
                    "Change its weight in distillation.method.",
                    name.removeprefix("ratio/"),
                    mean,
                    entry["iteration"],
                    *HEALTHY_RATIO,
                )


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"Cannot write {path} ({error.strerror or error})",
        hint="Free space and rights; the same command goes on from the last saved state.",
    )
