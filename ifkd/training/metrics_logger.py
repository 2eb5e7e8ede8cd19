"""Log a run's metrics to metrics.jsonl and TensorBoard, and warn about badly weighted distillation losses."""

import json
import logging
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter

from ifkd.core.files import not_writable, write_text

RECOMMENDED_RATIO = (0.01, 10.0)
"""Range of the norm of a weighted loss term's gradient at the student's pyramid over that of the task losses; below:
negligible, above: the method rules the task."""
RATIO_MOMENTUM = 0.95
"""Of the running mean of a ratio, per logged step."""

logger = logging.getLogger(__name__)


class MetricsLogger:
    """The metrics of a run; only rank 0 has one. Ratios count for the warning from iteration `warn_after`.

    Those of balanced terms do not, because their weights follow from gradients.

    metrics.jsonl contains nothing that depends on time, so that a resumed run writes the same lines again. Speed and
    memory are logged to TensorBoard only.
    """

    def __init__(self, folder: Path, *, warn_after: int) -> None:
        self._path, self._events = folder / "metrics.jsonl", folder / "events"
        self._writer: SummaryWriter | None = None
        self._first_iteration, self._warn_after = 0, warn_after
        self.gradient_ratios: dict[str, float] = {}
        """Term of the method -> running mean of its ratio."""
        self._warned: set[str] = set()

    def resume(self, *, epoch: int, iteration: int) -> None:
        """Remove the lines after a saved state, because those steps are repeated."""
        entries = read_metrics(self._path.parent) if iteration else []
        kept = [one for one in entries if one.get("iteration", -1) < iteration and one.get("epoch", 0) <= epoch]
        if self._path.is_file():
            write_text(self._path, "".join(f"{json.dumps(entry)}\n" for entry in kept))
        for entry in kept:
            self._check_ratios(entry, warn=False)
        self._first_iteration = iteration

    def log_step(self, iteration: int, losses: dict[str, float], *, speed: dict[str, float]) -> None:
        """Log the losses of a step to both places, and `speed` (images per second, memory) to TensorBoard."""
        entry = {"iteration": iteration, **losses}
        self._write_line(entry)
        self._write_scalars({**losses, **{f"speed/{name}": value for name, value in speed.items()}}, iteration)
        self._check_ratios(entry, warn=True)

    def log_validation(self, epoch: int, iteration: int, metrics: dict[str, float | None]) -> None:
        """Log the metrics of a validation; TensorBoard gets those that are not None."""
        self._write_line({"epoch": epoch, "validation": metrics})
        scalars = {f"validation/{name}": value for name, value in metrics.items() if value is not None}
        self._write_scalars(scalars, iteration)

    def close(self) -> None:
        """Flush and close the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()

    def _write_line(self, entry: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise not_writable(self._path, error) from error

    def _write_scalars(self, values: dict[str, float], iteration: int) -> None:
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._events), purge_step=self._first_iteration)
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)
        except OSError as error:
            raise not_writable(self._events, error) from error

    def _check_ratios(self, entry: dict[str, Any], *, warn: bool) -> None:
        """Update the running mean of each ratio, and warn once where it is outside the recommended range."""
        if entry.get("iteration", -1) < self._warn_after:
            return
        for name, value in entry.items():
            kind, _, term = name.partition("/")
            if kind != "gradient" or value == 0.0:
                continue
            mean = RATIO_MOMENTUM * self.gradient_ratios.get(term, value) + (1 - RATIO_MOMENTUM) * value
            self.gradient_ratios[term] = mean
            balanced = f"factor/{term}" in entry
            if balanced or term in self._warned or RECOMMENDED_RATIO[0] <= mean <= RECOMMENDED_RATIO[1]:
                continue
            self._warned.add(term)
            if warn:
                effect = "rules the training" if mean > RECOMMENDED_RATIO[1] else "has hardly any effect"
                logger.warning(
                    "At iteration %d the %s loss %s: its gradient at the student's pyramid is %.3g times that of the "
                    'detection losses; the recommended range is %g to %g. Set distillation.balance.form = "gradient", '
                    "or change its weight in distillation.method.",
                    *(entry["iteration"], term, effect, mean, *RECOMMENDED_RATIO),
                )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, without an incomplete last line; none if there is no file."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def memory_mb(device: torch.device) -> float:
    """Return the peak memory allocated on a GPU, or the process's resident memory on a CPU, megabytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return float(psutil.Process().memory_info().rss) / 1e6
