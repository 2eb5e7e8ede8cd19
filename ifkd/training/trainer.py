"""The training loop: steps, validation, checkpoints, resume. It knows nothing of any one method.

Nothing random is kept between steps: every draw depends on the seed, the epoch, the image or the iteration, so a
run that is stopped and resumed ends with the same weights as one that was not.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import psutil
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from ifkd import recipe
from ifkd.compute.device import best_device
from ifkd.compute.distributed import broadcast_from_first, mean_over_ranks, rank, world_size
from ifkd.core.environment import machine
from ifkd.core.errors import DataError, TrainingError
from ifkd.core.files import atomic_path, remove_temporary_files, file_lock, write_json
from ifkd.core.progress import progress
from ifkd.data.metrics import Metrics
from ifkd.distillation import FrozenModels
from ifkd.distillation.method_checkpoint import save_method_checkpoint
from ifkd.distillation.methods import Method, Term
from ifkd.models import Detector, normalize
from ifkd.models.checkpoint import save_checkpoint
from ifkd.training.dataset import Batch, BatchDataset, EpochSampler, TileDataset
from ifkd.training.metrics_logger import MetricsLogger
from ifkd.training.optim import build_autocast, build_average, build_optimizer, lr_factor, place
from ifkd.training.prediction import validate
from ifkd.training.run_folder import BEST, LAST, LEARNED, LOCK, RESULT, STATE, RunFolder, claim
from ifkd.training.train_state import TrainState, read_state, restore, save_state
from ifkd.training.train_step import TrainStep


def fit(
    run: RunFolder, detector: Detector, *, method: Method | None = None, knowledge: FrozenModels | None = None
) -> dict[str, Any]:
    """Train a detector, going on where an earlier call with the same settings stopped.

    The folder gets `best.safetensors` (highest validation mAP) and, where the method itself learns something, what
    that was by then as `method.safetensors`; `last.safetensors`, `state.pt` (for resume),
    `metrics.jsonl`, `events/` for TensorBoard, `config.toml` and, at the end, `result.json`, whose content is
    returned. A finished run returns at once. Under torchrun every process calls this, and rank 0 writes.

    Raises:
        OutputError: The folder holds a run of other settings, another process trains in it, or it cannot be written.
        TrainingError: A loss or a gradient is not finite (the batch is saved for inspection), or the batch cannot
            be shared out.
    """
    if rank() > 0:
        return _fit(run, detector, method, knowledge)
    claim(run)
    with file_lock(run.folder / LOCK):
        for name in (BEST, LAST, LEARNED, STATE):
            remove_temporary_files(run.folder / name)
        return _fit(run, detector, method, knowledge)


def _fit(run: RunFolder, detector: Detector, method: Method | None, knowledge: FrozenModels | None) -> dict[str, Any]:
    result_path = run.folder / RESULT
    finished = json.loads(result_path.read_text(encoding="utf-8")) if result_path.is_file() else None
    finished = broadcast_from_first(finished)
    if finished is not None:
        return dict(finished)
    loop = _Loop(run, detector, method, knowledge)
    try:
        loop.resume()
        metrics = loop.train()
    finally:
        loop.record.close()
    standing = loop.standing
    result = {
        "label": run.label,
        "checkpoint": BEST,
        "best_validation_map": standing.best,
        "last_validation": metrics.model_dump(mode="json"),
        "epochs": standing.epoch,
        "iterations": standing.iteration,
        "seconds": round(standing.seconds, 1),
        "machine": machine(),
    }
    if rank() == 0:
        write_json(result_path, result)
        (run.folder / STATE).unlink(missing_ok=True)
    return broadcast_from_first(result)


class _Loop:
    """The moving parts of a run."""

    def __init__(
        self, run: RunFolder, detector: Detector, method: Method | None, knowledge: FrozenModels | None
    ) -> None:
        training, seed = run.training, run.settings.seed
        self.run = run
        self.device = best_device()
        self.detector = place(detector, training, self.device)
        self.method = method.to(self.device) if method is not None else None
        self.knowledge = knowledge.to(self.device) if knowledge is not None else None
        self.average = build_average(training, self.detector)
        self.standing = TrainState()
        _check_shares(training)
        self.sampler = EpochSampler(
            len(run.train_data),
            training.batch_size,
            seed=seed,
            accumulation=training.accumulation_steps,
            rank=rank(),
            ranks=world_size(),
        )
        self.loader: DataLoader[Any] = DataLoader(
            BatchDataset(TileDataset(run.train_data, run.settings.data, seed=seed)),
            batch_size=None,
            sampler=self.sampler,
            num_workers=run.settings.data.workers,
            persistent_workers=run.settings.data.workers > 0,
        )
        self.optimizer = build_optimizer(training, self.detector, self.method)
        self.autocast = build_autocast(training, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=training.compute.amp == "fp16")
        self.step_module = TrainStep(self.detector, self.method, self.autocast)
        self.parallel = DistributedDataParallel(self.step_module) if world_size() > 1 else self.step_module
        self.record = MetricsLogger(run.folder, warm_after=_warm_after(run, method))
        self.saved_at = time.monotonic()

    # --- going through the epochs -----------------------------------------------------------------------------------

    def train(self) -> Metrics:
        """Run the remaining epochs and return the last validation's metrics."""
        run, standing = self.run, self.standing
        metrics: Metrics | None = None
        self.step_module.train()
        if self.method is not None and standing.iteration == 0:
            self.tell_validation(self.judge())
        total = run.training.epochs * len(self.sampler)
        with progress(total, run.label, unit="step", initial=standing.iteration, silent=rank() > 0) as bar:
            while standing.epoch < run.training.epochs and not self.is_exhausted():
                self.run_epoch(bar)
                standing.epoch += 1
                if self.validation_is_due():
                    metrics = self.validate()
                self.save()
        return metrics or self.judge()

    def run_epoch(self, bar: "tqdm[Any]") -> None:
        """Take the steps of the current epoch that are not taken yet."""
        standing = self.standing
        self.sampler.epoch = standing.epoch
        self.sampler.start = standing.iteration - standing.epoch * len(self.sampler)
        for parts in self.batches():
            started = time.perf_counter()
            terms, norm = self.step(parts)
            logged = standing.iteration % self.run.training.log_every == 0
            losses = self.losses(terms, norm) if logged else {}
            standing.seconds += (seconds := time.perf_counter() - started)
            if logged:
                pace = {"images_per_s": self.run.training.batch_size / seconds, "memory_mb": _memory_mb(self.device)}
                if rank() == 0:
                    self.record.step(standing.iteration, losses, pace=pace)
                shown = f"{losses['total']:.3f}, {pace['images_per_s']:.1f} images/s, {pace['memory_mb']:.0f} MB"
                bar.set_postfix_str(f"loss {shown}", refresh=False)
            standing.iteration += 1
            bar.update()
            if self.a_state_is_due():
                self.save()

    def batches(self) -> Iterator[list[Batch]]:
        """Yield this process's share of each batch, in its accumulated parts."""
        parts: list[Batch] = []
        for part in self.loader:
            if isinstance(part, DataError):
                raise part
            parts.append(part)
            if len(parts) == self.run.training.accumulation_steps:
                yield parts
                parts = []

    # --- one step ---------------------------------------------------------------------------------------------------

    def step(self, parts: list[Batch]) -> tuple[list[dict[str, Term]], Tensor]:
        """Take one optimizer step; return the loss terms of each part, without graph, and the gradient's norm."""
        training, iteration = self.run.training, self.standing.iteration
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_factor(training, iteration, len(self.sampler))
        self.optimizer.zero_grad(set_to_none=True)
        told = []
        for number, part in enumerate(parts):
            torch.manual_seed(self.seed_of_draws(number))
            last = number == len(parts) - 1
            waits = isinstance(self.parallel, DistributedDataParallel) and not last
            with self.parallel.no_sync() if waits else nullcontext():  # type: ignore[operator]
                told.append(self.backward(part, share=1 / len(parts)))
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not self.scaler.is_enabled() and not math.isfinite(norm.item()):
            raise self.not_finite("gradient", parts, told)
        if training.optimizer.grad_clip is not None:
            parameters = [p for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
            nn.utils.clip_grads_with_norm_(parameters, training.optimizer.grad_clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.detector)
        return told, norm

    def backward(self, part: Batch, *, share: float) -> dict[str, Term]:
        """Add the gradient of `share` of a part's loss, and return its terms."""
        pixels, targets = part.pixels.to(self.device), [one.to(self.device) for one in part.targets]
        images = normalize(pixels)
        if self.run.training.compute.channels_last:
            images = images.to(memory_format=torch.channels_last)
        taught = None
        if self.method is not None and self.knowledge is not None:
            with self.autocast:
                taught = self.knowledge(images, pixels)
        terms: dict[str, Term] = self.parallel(images, targets, taught, self.standing.iteration)
        total = torch.stack([term.weight * term.value for term in terms.values()]).sum()
        if not math.isfinite(total.item()):
            raise self.not_finite("loss", [part], [terms])
        self.scaler.scale(total * share).backward()  # type: ignore[no-untyped-call]
        return {name: replace(term, value=term.value.detach()) for name, term in terms.items()}

    def seed_of_draws(self, part: int) -> int:
        """Return the seed of whatever detectors and methods draw in this part of this step on this rank."""
        place = (self.run.settings.seed, self.standing.iteration, part, rank())
        return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)

    def losses(self, parts: list[dict[str, Term]], norm: Tensor) -> dict[str, float]:
        """Return each weighted term, each raw value of the method's, their ratios, over all parts and ranks."""
        names = list(parts[0])
        raw = torch.stack([torch.stack([part[name].value.float() for part in parts]).mean() for name in names])
        values = mean_over_ranks(raw).tolist()
        shares = {name: parts[0][name].weight * value for name, value in zip(names, values, strict=True)}
        task = sum(share for name, share in shares.items() if name.startswith("task/"))
        found = dict(shares)
        for name, value in zip(names, values, strict=True):
            kind, _, term = name.partition("/")
            if kind == "method":
                found[f"raw/{term}"] = value
                found[f"ratio/{term}"] = shares[name] / max(task, 1e-12)
        rate = self.optimizer.param_groups[0]["lr"]
        return {**found, "total": sum(shares.values()), "gradient_norm": norm.item(), "rate": rate}

    def not_finite(self, what: str, parts: list[Batch], terms: list[dict[str, Term]]) -> TrainingError:
        """Save the batch for inspection and return what to say."""
        path = self.run.folder / f"nonfinite_batch{f'_rank{rank()}' if world_size() > 1 else ''}.safetensors"
        with atomic_path(path) as temporary:
            temporary.write_bytes(save({f"pixels.{number}": part.pixels for number, part in enumerate(parts)}))
        found = {name: term.weight * term.value.item() for part in terms for name, term in part.items()}
        return TrainingError(
            f"The {what} is not finite at iteration {self.standing.iteration}",
            got=", ".join(f"{name} {value:.4g}" for name, value in found.items()),
            hint=f"The images {[identity for part in parts for identity in part.image_ids]} are in {path}; lower the "
            "learning rate, set training.optimizer.grad_clip, or choose another training.compute.amp.",
        )

    # --- validation -------------------------------------------------------------------------------------------------

    def validation_is_due(self) -> bool:
        """Return whether the epoch just done is one to validate after."""
        epoch, training = self.standing.epoch, self.run.training
        return epoch % training.validate_every == 0 or epoch == training.epochs

    def is_exhausted(self) -> bool:
        """Return whether the run has waited for a better mAP as long as it may."""
        patience = self.run.training.patience
        return patience is not None and self.standing.waited >= patience

    def kept(self) -> Detector:
        """Return the detector that is validated and kept: the mean of the weights when there is one."""
        if self.average is None or self.standing.iteration == 0:
            return self.detector
        return cast("Detector", self.average.module)

    def judge(self) -> Metrics:
        """Return the metrics of the detector as it stands."""
        run = self.run
        return validate(
            self.kept(),
            run.validation_data,
            run.settings.data,
            run.settings.postprocess,
            per_level=run.settings.export.candidates_per_level,
        )

    def validate(self) -> Metrics:
        """Validate, keep the best checkpoint, and return the metrics."""
        metrics, standing = self.judge(), self.standing
        self.tell_validation(metrics)
        standing.waited += 1
        if metrics.mean_ap > standing.best:
            standing.best, standing.waited = metrics.mean_ap, 0
            if rank() == 0:
                save_checkpoint(self.run.folder / BEST, self.kept(), self.run.meta)
                if self.method is not None:
                    save_method_checkpoint(self.run.folder / LEARNED, self.method)
        return metrics

    def tell_validation(self, metrics: Metrics) -> None:
        """Record the metrics of a validation."""
        if rank() == 0:
            told = {"mean_ap": metrics.mean_ap, "ap50": metrics.ap50, "ap75": metrics.ap75}
            self.record.validation(self.standing.epoch, self.standing.iteration, told)

    # --- state ------------------------------------------------------------------------------------------------------

    def stateful(self) -> dict[str, Stateful]:
        """Return the parts whose state a resumed run needs."""
        parts: dict[str, Stateful] = {
            "detector": self.detector,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
        }
        if self.method is not None:
            parts["method"] = self.method
        if self.average is not None:
            parts["average"] = self.average
        return parts

    def a_state_is_due(self) -> bool:
        """Return whether the last state is older than it may be, by rank 0's clock."""
        return rank() == 0 and time.monotonic() - self.saved_at > 60 * self.run.training.save_every_minutes

    def save(self) -> None:
        """Write the last checkpoint and what a resumed run needs."""
        if rank() == 0:
            save_checkpoint(self.run.folder / LAST, self.kept(), self.run.meta)
            save_state(self.run.folder / STATE, self.standing, self.stateful())
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Go on from the state that an interrupted run left, if there is one; rank 0 reads it for all."""
        state = broadcast_from_first(read_state(self.run.folder / STATE) if rank() == 0 else None)
        if state is not None:
            self.standing = restore(state, self.stateful())
        if rank() == 0:
            self.record.begin(epoch=self.standing.epoch, iteration=self.standing.iteration)


def _check_shares(training: recipe.TrainingOptions) -> None:
    """Refuse a batch that cannot be shared out evenly."""
    parts = world_size() * training.accumulation_steps
    if training.batch_size % parts:
        raise TrainingError(
            "training.batch_size cannot be shared out evenly",
            got=f"{training.batch_size} images",
            expected=f"a multiple of {parts} ({world_size()} processes x {training.accumulation_steps} accumulation steps)",
        )


def _warm_after(run: RunFolder, method: Method | None) -> int:
    """Return the iteration after which the method's weights are whole and the rate is full."""
    own = getattr(getattr(method, "config", None), "warmup_iters", 0)
    return max(run.training.schedule.warmup_iters, int(own))


def _memory_mb(device: torch.device) -> float:
    """Return the largest memory allocated on a GPU, or the resident memory of the process, megabytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return float(psutil.Process().memory_info().rss) / 1e6
