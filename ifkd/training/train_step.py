"""The forward pass of a training step, and summaries of its loss terms."""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ifkd.compute.distributed import mean_over_ranks, rank, world_size
from ifkd.core.errors import TrainingError
from ifkd.core.files import atomic_path
from ifkd.distillation import DistillationBatch, TeacherOutputs
from ifkd.distillation.methods import Method, Term
from ifkd.models import Targets, TaskNetwork
from ifkd.models.detector import Images
from ifkd.training.dataset import Batch
from ifkd.training.loss_balance import LossBalance
from ifkd.training.run_folder import DIVERGED


class TrainStep(nn.Module):
    """All trainable modules with one forward pass, as DistributedDataParallel needs them."""

    def __init__(
        self,
        detector: TaskNetwork,
        method: Method | None,
        autocast: torch.autocast,
        balance: LossBalance | None = None,
    ) -> None:
        super().__init__()
        self.detector, self.method, self._autocast, self._balance = detector, method, autocast, balance

    def forward(
        self, images: Images, targets: list[Targets], teacher_outputs: TeacherOutputs | None, iteration: int
    ) -> dict[str, Term]:
        """Return the loss terms: `task/…` of the detector and, with a teacher, `method/…` of the method."""
        balance = self._balance if self.method is not None and teacher_outputs is not None else None
        measured = balance is not None and balance.is_due(iteration)
        with self._autocast:
            # A compiled forward pass has no gradient from the head to the pyramid, because it returns both.
            output = self.detector.forward(images) if measured else self.detector(images)
            losses = self.detector.task_losses(output, targets)
        terms = {f"task/{name}": Term(value, 1.0) for name, value in losses.items()}
        if self.method is not None and teacher_outputs is not None:
            batch = DistillationBatch(output, teacher_outputs.teacher, teacher_outputs.embedding, targets, iteration)
            with self._autocast:
                method_losses = self.method.losses(batch)
            terms |= {f"method/{name}": term for name, term in method_losses.items()}
            if balance is not None and method_losses:
                if measured:
                    balance.measure(terms, output.pyramid, iteration)
                terms = balance.weigh(terms)
        return terms


def total_loss(terms: dict[str, Term]) -> Tensor:
    """Return the weighted sum of loss terms, a scalar."""
    return torch.stack([term.weight * term.value for term in terms.values()]).sum()


def summarize_losses(parts: list[dict[str, Term]]) -> dict[str, float]:
    """Return each weighted term, the method's raw and reducible values and ratios to the task loss, and the total.

    Values are means over the accumulated parts and over all ranks. A ratio is that of the weighted reducible value.
    """
    names = list(parts[0])
    scalars = [[part[name].value for part in parts] for name in names]
    scalars += [[part[name].reducible for part in parts] for name in names]
    local = torch.stack([torch.stack(of_parts).float().mean() for of_parts in scalars])
    means = mean_over_ranks(local).tolist()
    values, reducible = (dict(zip(names, half, strict=True)) for half in (means[: len(names)], means[len(names) :]))
    weighted = {name: parts[0][name].weight * value for name, value in values.items()}
    task = sum(value for name, value in weighted.items() if name.startswith("task/"))
    summary = dict(weighted)
    for name in (name for name in names if name.startswith("method/")):
        term = name.removeprefix("method/")
        summary[f"raw/{term}"] = values[name]
        if parts[0][name].minimum is not None:
            summary[f"reducible/{term}"] = reducible[name]
        summary[f"ratio/{term}"] = parts[0][name].weight * reducible[name] / max(task, 1e-12)
    return {**summary, "total": sum(weighted.values())}


def not_finite_error(
    name: str, folder: Path, iteration: int, parts: list[Batch], terms: list[dict[str, Term]]
) -> TrainingError:
    """Save a batch whose loss or gradient is not finite into `folder`, and return the error to raise."""
    suffix = f"_rank{rank()}" if world_size() > 1 else ""
    path = folder / f"{DIVERGED}{suffix}.safetensors"
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({f"pixels.{index}": part.pixels for index, part in enumerate(parts)}))
    values = {key: term.weight * term.value.item() for part in terms for key, term in part.items()}
    image_ids = [image_id for part in parts for image_id in part.image_ids]
    return TrainingError(
        f"The {name} is not finite at iteration {iteration}",
        got=", ".join(f"{key} {value:.4g}" for key, value in values.items()),
        hint=f"The images {image_ids} are saved in {path}. Lower training.optimizer.learning_rate, set "
        "training.optimizer.grad_clip, or change training.compute.amp.",
    )
