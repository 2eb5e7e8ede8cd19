"""Training loop: optimizer steps, validation, checkpoints and resuming; independent of the distillation method.

No random state is kept between steps: each random draw depends only on the seed, the epoch, the image and the
iteration. A run that is interrupted and resumed ends with the same weights as an uninterrupted run.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from ifkd.compute.device import best_device
from ifkd.compute.distributed import broadcast_buffers, broadcast_from_first, rank, world_size
from ifkd.core.environment import machine_summary
from ifkd.core.errors import DataError
from ifkd.core.files import file_lock, write_json
from ifkd.core.progress import progress
from ifkd.data.metrics import Metrics
from ifkd.distillation import FrozenModels
from ifkd.distillation.method_checkpoint import save_method_checkpoint
from ifkd.distillation.methods import Method, Term
from ifkd.models import Detector, TaskNetwork, normalize
from ifkd.models.checkpoint import save_checkpoint
from ifkd.training.dataset import Batch, BatchDataset, EpochSampler, TileDataset
from ifkd.training.loss_balance import LossBalance
from ifkd.training.metrics_logger import MetricsLogger, memory_mb
from ifkd.training.optim import (
    build_autocast,
    build_ema,
    build_optimizer,
    clip_gradients,
    lr_factor,
    prepare_detector,
)
from ifkd.training.prediction import validate
from ifkd.training.run_folder import BEST, TrainingResult, TrainingRun
from ifkd.training.train_state import TrainState, read_state, restore_state, save_state
from ifkd.training.train_step import TrainStep, not_finite_error, summarize_losses, total_loss


def train(
    run: TrainingRun, detector: TaskNetwork, *, method: Method | None = None, frozen_models: FrozenModels | None = None
) -> TrainingResult:
    """Train a detector, or resume an interrupted run with the same settings; a finished run returns its result.

    The run's folder contains `config.toml`, `metrics.jsonl`, `events/` for TensorBoard, `last.safetensors`,
    `best.safetensors`, `method.safetensors` (the method's own layers, if it has any), `state.pt` until the run is
    finished, and then `result.json`. Under torchrun each process calls this function, and only rank 0 writes.

    Raises:
        DataError: A training image cannot be read.
        OutputError: The folder contains a run with other settings, another process uses it, or it is not writable.
        TrainingError: A loss or gradient is not finite.
    """
    if rank() == 0:
        run.folder.claim(run.meta, run.label)
    with file_lock(run.folder.lock) if rank() == 0 else nullcontext():
        if rank() == 0:
            run.folder.remove_temporary_files()
        finished = broadcast_from_first(run.folder.read_result() if run.folder.is_finished else None)
        return finished or Trainer(run, detector, method, frozen_models).run_to_end()


class Trainer:
    """The modules and the state of a training run."""

    def __init__(
        self, run: TrainingRun, detector: TaskNetwork, method: Method | None, frozen_models: FrozenModels | None
    ) -> None:
        training, workers, seed = run.training, run.recipe.data.workers, run.recipe.seed
        batch_size, steps = training.batch_size, training.accumulation_steps
        self.run = run
        self.device = best_device()
        self.detector = prepare_detector(detector, training, self.device)
        self.method = method.to(self.device) if method is not None else None
        self.frozen_models = frozen_models.to(self.device) if frozen_models is not None else None
        self.ema = build_ema(training, self.detector)
        self.state = TrainState()
        self.sampler = EpochSampler(
            len(run.train_data), batch_size, seed=seed, accumulation_steps=steps, rank=rank(), ranks=world_size()
        )
        oriented = isinstance(detector, Detector) and detector.config.oriented
        tiles = BatchDataset(TileDataset(run.train_data, run.recipe.data, seed=seed, oriented=oriented))
        self.loader: DataLoader[Any] = DataLoader(
            tiles, batch_size=None, sampler=self.sampler, num_workers=workers, persistent_workers=workers > 0
        )
        self.optimizer = build_optimizer(training, self.detector, self.method)
        self.autocast = build_autocast(training, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=training.compute.amp == "fp16")
        self.balance: LossBalance | None = None
        if method is not None:
            options, scale = run.recipe.distillation.balance, self.scaler.get_scale
            self.balance = LossBalance(options, by_term=method.balanced_by_term, loss_scale=scale)
        self.model = TrainStep(self.detector, self.method, self.autocast, self.balance)
        self.parallel_model: nn.Module = self.model
        if world_size() > 1:
            unused = method is not None and method.can_have_unused_layers
            self.parallel_model = DistributedDataParallel(self.model, find_unused_parameters=unused)
        # Ratios count when the learning rate and the method's weights have their full values, and after a quarter of
        # the run: the loss of a method whose own layers have not learned yet says nothing about its weight.
        method_warmup = getattr(getattr(method, "config", None), "warmup_iters", 0)
        warn_after = max(training.schedule.warmup_iters, method_warmup, training.epochs * len(self.sampler) // 4)
        self.logger = MetricsLogger(run.folder.path, warn_after=warn_after)
        self.saved_at = time.monotonic()

    def run_to_end(self) -> TrainingResult:
        """Resume an interrupted run, train, and write and return the result."""
        try:
            self.resume()
            metrics = self.fit()
        finally:
            self.logger.close()
        state, folder = self.state, self.run.folder
        result = TrainingResult(
            label=self.run.label,
            checkpoint=BEST,
            best_validation_map=None if metrics.mean_ap is None else state.best_map,
            last_validation=metrics,
            epochs=state.epoch,
            iterations=state.iteration,
            train_seconds=round(state.train_seconds, 1),
            machine=machine_summary(),
            gradient_ratios=self.logger.gradient_ratios,
        )
        if rank() == 0:
            write_json(folder.result, result.model_dump(mode="json"))
            folder.state.unlink(missing_ok=True)
        return broadcast_from_first(result)

    def fit(self) -> Metrics:
        """Train the remaining epochs, and return the metrics of the last validation."""
        run, state, epochs = self.run, self.state, self.run.training.epochs
        patience = run.training.patience or math.inf
        metrics: Metrics | None = None
        self.model.train()
        if self.method is not None and state.iteration == 0:
            self.log_validation(self.evaluate())
        total = epochs * len(self.sampler)
        with progress(total, run.label, unit="step", initial=state.iteration, silent=rank() > 0) as bar:
            while state.epoch < epochs and state.validations_since_best < patience:
                self.train_epoch(bar)
                state.epoch += 1
                if state.epoch % run.training.validate_every == 0 or state.epoch == epochs:
                    metrics = self.validate()
                self.save()
        return metrics or self.evaluate()

    def train_epoch(self, bar: "tqdm[Any]") -> None:
        """Run the remaining steps of the current epoch."""
        state, training = self.state, self.run.training
        self.sampler.epoch = state.epoch
        self.sampler.start = state.iteration - state.epoch * len(self.sampler)
        for parts in self.batches():
            started = time.perf_counter()
            terms, norms = self.train_step(parts)
            logged = state.iteration % training.log_every == 0
            losses = summarize_losses(terms) if logged else {}
            if logged and self.balance is not None:
                losses |= self.balance.summarize(terms[0])
            state.train_seconds += (seconds := time.perf_counter() - started)
            if logged:
                speed = {"images_per_s": training.batch_size / seconds, "memory_mb": memory_mb(self.device)}
                if rank() == 0:
                    step = {"grad_norm": norms[0].item(), "lr": self.optimizer.param_groups[0]["lr"]}
                    if self.method is not None:
                        step["method_grad_norm"] = norms[1].item()
                    self.logger.log_step(state.iteration, losses | step, speed=speed)
                shown = f"{losses['total']:.3f}, {speed['images_per_s']:.1f} images/s, {speed['memory_mb']:.0f} MB"
                bar.set_postfix_str(f"loss {shown}", refresh=False)
            state.iteration += 1
            bar.update()
            if rank() == 0 and time.monotonic() - self.saved_at > 60 * training.save_every_minutes:
                self.save()

    def batches(self) -> Iterator[list[Batch]]:
        """Yield this rank's part of each batch, as a list of the parts to accumulate."""
        parts: list[Batch] = []
        for part in self.loader:
            if isinstance(part, DataError):
                raise part
            parts.append(part)
            if len(parts) == self.run.training.accumulation_steps:
                yield parts
                parts = []

    def train_step(self, parts: list[Batch]) -> tuple[list[dict[str, Term]], list[Tensor]]:
        """Run one optimizer step; return the detached loss terms of each part, and the norms of `clip_gradients`."""
        training = self.run.training
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_factor(training, self.state.iteration, len(self.sampler))
        self.optimizer.zero_grad(set_to_none=True)
        terms = []
        for index, part in enumerate(parts):
            key = (self.run.recipe.seed, self.state.iteration, index, rank())
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
            accumulates = isinstance(self.parallel_model, DistributedDataParallel) and index < len(parts) - 1
            with self.parallel_model.no_sync() if accumulates else nullcontext():  # type: ignore[operator]
                terms.append(self.backward(part, loss_scale=1 / len(parts)))
        self.scaler.unscale_(self.optimizer)
        norms = clip_gradients(self.optimizer, training.optimizer.grad_clip)
        if not self.scaler.is_enabled() and not all(math.isfinite(norm.item()) for norm in norms):
            raise not_finite_error("gradient", self.run.folder.path, self.state.iteration, parts, terms)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.detector)
        return terms, norms

    def backward(self, part: Batch, *, loss_scale: float) -> dict[str, Term]:
        """Add the gradient of a part's loss times `loss_scale`, and return the detached loss terms."""
        pixels, targets = part.pixels.to(self.device), [one.to(self.device) for one in part.targets]
        images = normalize(pixels)
        if self.run.training.compute.channels_last:
            images = images.to(memory_format=torch.channels_last)
        teacher_outputs = None
        if self.method is not None and self.frozen_models is not None:
            with self.autocast:
                teacher_outputs = self.frozen_models(images, pixels)
        terms: dict[str, Term] = self.parallel_model(images, targets, teacher_outputs, self.state.iteration)
        loss = total_loss(terms)
        if not math.isfinite(loss.item()):
            raise not_finite_error("loss", self.run.folder.path, self.state.iteration, [part], [terms])
        self.scaler.scale(loss * loss_scale).backward()  # type: ignore[no-untyped-call]
        return {name: replace(term, value=term.value.detach()) for name, term in terms.items()}

    def saved_model(self) -> TaskNetwork:
        """Return the detector that is validated and saved: the averaged one if there is one."""
        return self.detector if self.ema is None or self.state.iteration == 0 else cast("TaskNetwork", self.ema.module)

    def evaluate(self) -> Metrics:
        """Return the current validation metrics."""
        model, run = self.saved_model(), self.run
        broadcast_buffers(model)  # each rank's own batches have changed them in its last step
        if run.validate is not None:
            return run.validate(model, run.validation_data, run.recipe)
        return validate(cast("Detector", model), run.validation_data, run.recipe)

    def validate(self) -> Metrics:
        """Validate, save the checkpoint if it is the best, and return the metrics."""
        metrics, state, folder = self.evaluate(), self.state, self.run.folder
        self.log_validation(metrics)
        state.validations_since_best += 1
        if metrics.mean_ap is None or metrics.mean_ap > state.best_map:  # without objects, the last one is the best
            state.best_map = state.best_map if metrics.mean_ap is None else metrics.mean_ap
            state.validations_since_best = 0
            if rank() == 0:
                save_checkpoint(folder.best, self.saved_model(), self.run.meta)
                if self.method is not None:
                    save_method_checkpoint(folder.method, self.method)
        return metrics

    def log_validation(self, metrics: Metrics) -> None:
        """Log the metrics of a validation."""
        if rank() == 0:
            values = metrics.model_dump(include={"mean_ap", "ap50", "ap75"})
            self.logger.log_validation(self.state.epoch, self.state.iteration, values)

    def stateful_parts(self) -> dict[str, Stateful]:
        """Return the parts whose state state.pt contains."""
        names = ("detector", "optimizer", "scaler", "method", "balance", "ema")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def save(self) -> None:
        """Write last.safetensors and state.pt."""
        if rank() == 0:
            save_checkpoint(self.run.folder.last, self.saved_model(), self.run.meta)
            save_state(self.run.folder.state, self.state, self.stateful_parts())
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Load the state of an interrupted run, if there is one; rank 0 reads it for all ranks."""
        state = broadcast_from_first(read_state(self.run.folder.state) if rank() == 0 else None)
        if state is not None:
            self.state = restore_state(state, self.stateful_parts())
        if rank() == 0:
            self.logger.resume(epoch=self.state.epoch, iteration=self.state.iteration)
