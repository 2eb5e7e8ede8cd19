"""The training loop: optimiser, schedule, validation, checkpoints, resume. It knows nothing of any one method.

Nothing random is kept between steps: every draw depends on the seed, the epoch, the image or the iteration, so a
run that is stopped and resumed ends with the same weights as one that was not.
"""

import json
import math
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ifkd import recipe
from ifkd.checkpoint import CheckpointMeta, save_checkpoint
from ifkd.config import dump
from ifkd.data.coco import CocoDataset
from ifkd.data.dataset import Batch, BatchDataset, EpochSampler, TileDataset
from ifkd.data.evaluation import Metrics
from ifkd.detectors import Detector, DetectorOutput, Targets, normalise
from ifkd.device import best_device, move_targets
from ifkd.errors import DataError, OutputError, TrainingError
from ifkd.files import atomic_path, make_folder, write_json, write_text
from ifkd.knowledge import Knowledge, Taught, Views
from ifkd.methods import Method
from ifkd.prediction import validate
from ifkd.progress import progress

BEST, LAST, STATE, RESULT, LOG = "best.safetensors", "last.safetensors", "state.pt", "result.json", "metrics.jsonl"
LOG_EVERY = 10
DIFFERENCES_SHOWN = 4
INDECISIVE = ("recipe.", "provenance.teacher", "provenance.versions")
"""Parts of a run's record that its weights do not depend on, or that stand elsewhere in it: what decides is the
detector, the data, the schedule, the seed, the method and the teacher's digest."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One training run."""

    folder: Path
    label: str
    """Shown beside the progress bar."""
    settings: recipe.Recipe
    training: recipe.Training
    meta: CheckpointMeta
    """Of the checkpoints it writes."""
    train_data: CocoDataset
    validation_data: CocoDataset


@dataclass(slots=True)
class _Standing:
    """How far a run is."""

    epoch: int = 0
    iteration: int = 0
    best: float = -1.0
    seconds: float = 0.0


def fit(
    run: Run, detector: Detector, *, method: Method | None = None, knowledge: Knowledge | None = None
) -> dict[str, Any]:
    """Train a detector, going on where an earlier call with the same settings stopped.

    The folder gets `best.safetensors` (highest validation mAP), `last.safetensors`, `state.pt` (for resume),
    `metrics.jsonl`, `config.toml` and, at the end, `result.json`, whose content is returned. A finished run
    returns at once.

    Raises:
        OutputError: The folder holds a run of other settings, or cannot be written.
        TrainingError: A loss is not finite; the batch is saved for inspection.
    """
    _claim(run)
    result_path = run.folder / RESULT
    if result_path.is_file():
        finished: dict[str, Any] = json.loads(result_path.read_text(encoding="utf-8"))
        return finished
    loop = _Loop(run, detector, method, knowledge)
    loop.resume()
    metrics = loop.train()
    result = {
        "label": run.label,
        "checkpoint": BEST,
        "best_validation_map": loop.standing.best,
        "last_validation": metrics.model_dump(mode="json"),
        "epochs": run.training.epochs,
        "iterations": loop.standing.iteration,
        "seconds": round(loop.standing.seconds, 1),
    }
    write_json(result_path, result)
    (run.folder / STATE).unlink(missing_ok=True)
    return result


class _Loop:
    """The moving parts of a run."""

    def __init__(self, run: Run, detector: Detector, method: Method | None, knowledge: Knowledge | None) -> None:
        self.run = run
        self.device = best_device()
        self.detector = detector.to(self.device).to(memory_format=torch.channels_last)
        self.method = method.to(self.device) if method is not None else None
        self.knowledge = knowledge.to(self.device) if knowledge is not None else None
        self.standing = _Standing()
        training, seed = run.training, run.settings.seed
        self.sampler = EpochSampler(len(run.train_data), training.batch_size, seed=seed)
        self.loader: DataLoader[Any] = DataLoader(
            BatchDataset(TileDataset(run.train_data, run.settings.data, seed=seed)),
            batch_size=None,
            sampler=self.sampler,
            num_workers=run.settings.data.workers,
            persistent_workers=run.settings.data.workers > 0,
        )
        self.total = training.epochs * len(self.sampler)
        self.optimizer = _optimizer(training, detector, method)
        self.autocast = _autocast(training, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=training.amp == "fp16")

    def train(self) -> Metrics:
        """Run the remaining epochs and return the last validation's metrics."""
        run, standing = self.run, self.standing
        metrics: Metrics | None = None
        self.detector.train()
        if self.method is not None:
            self.method.train()
        with progress(self.total, run.label, unit="step", initial=standing.iteration) as bar:
            while standing.epoch < run.training.epochs:
                started = time.perf_counter()
                self.sampler.epoch = standing.epoch
                for batch in self.loader:
                    if isinstance(batch, DataError):
                        raise batch
                    losses = self.step(batch)
                    if standing.iteration % LOG_EVERY == 0:
                        self.log({"iteration": standing.iteration, **losses})
                        bar.set_postfix(loss=f"{losses['total']:.3f}", refresh=False)
                    standing.iteration += 1
                    bar.update()
                standing.epoch += 1
                standing.seconds += time.perf_counter() - started
                if self.validation_is_due():
                    metrics = self.validate()
                self.save()
        return metrics or self.validate()

    def step(self, batch: Batch) -> dict[str, float]:
        """Take one optimiser step and return every loss term's value, its weighted share and the total."""
        standing = self.standing
        pixels, targets = batch.pixels.to(self.device), move_targets(batch.targets, self.device)
        images = normalise(pixels).to(memory_format=torch.channels_last)
        with self.autocast:
            output = self.detector(images)
        shares = {f"task/{name}": value for name, value in self.detector.task_losses(output, targets).items()}
        raw: dict[str, Tensor] = {}
        if self.method is not None and self.knowledge is not None:
            with self.autocast:
                terms = self.method.losses(self._views(images, pixels, targets, output))
            for name, term in terms.items():
                shares[f"method/{name}"] = term.weight * term.value
                raw[f"raw/{name}"] = term.value
        total = torch.stack(list(shares.values())).sum()
        if not math.isfinite(total.item()):
            raise self._not_finite(batch, {name: value.item() for name, value in shares.items()})
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate_factor(self.run.training, standing.iteration, len(self.sampler))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        if self.run.training.grad_clip is not None:
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.run.training.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        losses = {name: value.item() for name, value in {**shares, **raw}.items()}
        return {**losses, "total": total.item(), "rate": self.optimizer.param_groups[0]["lr"]}

    def validation_is_due(self) -> bool:
        """Return whether the epoch just done is one to validate after."""
        epoch, training = self.standing.epoch, self.run.training
        return epoch % training.validate_every == 0 or epoch == training.epochs

    def validate(self) -> Metrics:
        """Validate, keep the best checkpoint, and return the metrics."""
        run, epoch = self.run, self.standing.epoch
        metrics = validate(
            self.detector,
            run.validation_data,
            run.settings.data,
            run.settings.selection,
            per_level=run.settings.export.candidates_per_level,
        )
        self.log(
            {"epoch": epoch, "validation": {"mean_ap": metrics.mean_ap, "ap50": metrics.ap50, "ap75": metrics.ap75}}
        )
        if metrics.mean_ap > self.standing.best:
            self.standing.best = metrics.mean_ap
            save_checkpoint(run.folder / BEST, self.detector, run.meta)
        return metrics

    def save(self) -> None:
        """Write the last checkpoint and what a resumed run needs."""
        save_checkpoint(self.run.folder / LAST, self.detector, self.run.meta)
        with atomic_path(self.run.folder / STATE) as temporary:
            torch.save(
                {
                    "standing": [
                        self.standing.epoch,
                        self.standing.iteration,
                        self.standing.best,
                        self.standing.seconds,
                    ],
                    "detector": self.detector.state_dict(),
                    "method": self.method.state_dict() if self.method is not None else {},
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                },
                temporary,
            )

    def resume(self) -> None:
        """Load the state an interrupted run left, if there is one."""
        path = self.run.folder / STATE
        if not path.is_file():
            (self.run.folder / LOG).unlink(missing_ok=True)
            return
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:
            raise OutputError(
                f"{path} cannot be read ({error})", mend="Delete the run's folder to begin anew."
            ) from error
        self.standing = _Standing(*state["standing"])
        self.detector.load_state_dict(state["detector"])
        if self.method is not None:
            self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.forget_later_lines()

    def forget_later_lines(self) -> None:
        """Take out of metrics.jsonl what was logged after the state was saved; those steps are taken again."""
        path = self.run.folder / LOG
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        kept = []
        for line in lines:
            if not line.endswith("\n"):
                break
            entry = json.loads(line)
            if entry.get("iteration", -1) < self.standing.iteration and entry.get("epoch", 0) <= self.standing.epoch:
                kept.append(line)
        write_text(path, "".join(kept))

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with (self.run.folder / LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")

    def _views(self, images: Tensor, pixels: Tensor, targets: list[Targets], output: DetectorOutput) -> Views:
        assert self.knowledge is not None
        taught: Taught = self.knowledge(images, pixels)
        return Views(
            student=output,
            teacher=taught.teacher,
            embedding=taught.embedding,
            targets=targets,
            iteration=self.standing.iteration,
        )

    def _not_finite(self, batch: Batch, losses: dict[str, float]) -> TrainingError:
        path = self.run.folder / "nonfinite_batch.safetensors"
        save_file({"pixels": batch.pixels.contiguous()}, path)
        return TrainingError(
            f"The loss is not finite at iteration {self.standing.iteration}",
            got=", ".join(f"{name} {value:.4g}" for name, value in losses.items()),
            mend=f"The images {batch.image_ids} are in {path}; lower the learning rate or set training.grad_clip.",
        )


def rate_factor(training: recipe.Training, iteration: int, epoch_length: int) -> float:
    """Return the share of the full learning rate at an iteration: linear warm-up, then the schedule."""
    if training.schedule == "step":
        factor = 0.1 ** sum(iteration >= step * epoch_length for step in training.steps)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * iteration / (training.epochs * epoch_length)))
    if iteration < training.warmup_iters:
        share = iteration / training.warmup_iters
        factor *= training.warmup_factor * (1 - share) + share
    return factor


def _optimizer(training: recipe.Training, detector: nn.Module, method: Method | None) -> torch.optim.Optimizer:
    rate = training.learning_rate * training.batch_size / training.learning_rate_batch
    learning = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": learning, "weight_decay": training.weight_decay}]
    if method is not None:
        groups += method.parameter_groups(training.weight_decay)
    for group in groups:
        group["base_lr"] = rate
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate, momentum=training.momentum)


def _autocast(training: recipe.Training, device: torch.device) -> torch.autocast:
    """Return the context of a training step's forward passes."""
    choice = training.amp
    if choice == "auto":
        on_cpu = torch.ops.mkldnn._is_mkldnn_bf16_supported  # noqa: SLF001
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else on_cpu()
        choice = "bf16" if native else "none"
    if choice == "fp16" and device.type == "cpu":
        raise TrainingError('training.amp = "fp16" needs a GPU', mend='Use "bf16", "auto" or "none".')
    dtype = torch.float16 if choice == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=choice != "none")


def _claim(run: Run) -> None:
    """Take the folder for this run, or find that it holds this very run."""
    text = f"# {run.label}\n{dump(run.meta)}"
    path = make_folder(run.folder) / "config.toml"
    if not path.is_file():
        write_text(path, text)
    elif difference := _difference(path.read_text(encoding="utf-8"), text):
        raise OutputError(
            f"{run.folder} holds a run of other settings: {difference}",
            mend="Choose another folder, or begin anew with --restart.",
        )


def _difference(older: str, newer: str) -> str:
    """Return the first settings that decide the weights in which two TOML texts differ, with the values of both."""
    try:
        there, here = (dict(_flat(tomllib.loads(text))) for text in (older, newer))
    except tomllib.TOMLDecodeError as error:
        return f"its config.toml is not TOML ({error})"
    decisive = (key for key in sorted(there.keys() | here.keys()) if not key.startswith(INDECISIVE))
    keys = [key for key in decisive if there.get(key) != here.get(key)]
    told = [
        f"{key.removeprefix('provenance.')} is {there.get(key, 'absent')} there and {here.get(key, 'absent')} here"
        for key in keys
    ]
    return "; ".join(told[:DIFFERENCES_SHOWN]) + ("; …" if len(told) > DIFFERENCES_SHOWN else "")


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
