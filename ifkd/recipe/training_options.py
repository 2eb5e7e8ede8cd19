"""Options of a training run: optimizer, schedule and compute."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from ifkd.core.config import Schema
from ifkd.recipe.value_types import FractionBelowOne, NonNegativeFloat, PositiveFloat


class OptimizerOptions(Schema):
    """Options of the optimizer."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    """Learning rate for batches of `base_batch_size` images; scaled linearly to `batch_size`."""
    base_batch_size: PositiveInt = 16
    momentum: FractionBelowOne = 0.9
    """Momentum of SGD."""
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.999)
    """Decays of AdamW's running means of the gradient and of its square; with 0.98 as the second, the large gradients
    of the first steps are forgotten sooner."""
    weight_decay: NonNegativeFloat = 1e-4
    grad_clip: PositiveFloat | None = None
    """Maximum norm of the detector's gradient, and of that of the method's own layers; None does not clip."""


class BalanceOptions(Schema):
    """Weights of a distillation method's loss terms beside the task losses."""

    form: Literal["constant", "gradient"] = "constant"
    """By default `gradient` for IFKD, and `constant` for other methods and the presets of the paper and the released
    code. `constant` multiplies the method's weights by `multiple`. `gradient` changes them during training, so that the
    gradient of the terms at the student's pyramid is `multiple` times as large as that of the task losses. The weights
    of a method then only divide it among its terms; but IFKD's alpha and beta (by default 3 and 0.5 here) are multiples
    of their own."""
    multiple: PositiveFloat = 1.0


SCHEDULES = {"1x": (12, (8, 11)), "paper_100e": (100, (80, 90))}
"""Epochs and milestones of named step schedules; values given beside the name take precedence."""


class ScheduleOptions(Schema):
    """Options of the learning rate schedule."""

    name: Literal["step", "cosine"] = "step"
    """Decay of the learning rate. `1x` (12 epochs, milestones 8 and 11) and `paper_100e` (100 epochs, milestones 80
    and 90) set `step`, the milestones and `epochs` of the run."""
    milestones: tuple[PositiveInt, ...] = (8, 11)
    """Epochs after which the step schedule divides the learning rate by ten."""
    warmup_iters: NonNegativeInt = 500
    """Iterations of linear warm-up."""
    warmup_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.001
    """Fraction of the learning rate at iteration 0."""

    @field_validator("name", mode="before")
    @classmethod
    def _known_name(cls, value: Any) -> Any:
        if value not in ("step", "cosine"):
            raise ValueError(f"must be step, cosine, {' or '.join(SCHEDULES)}")
        return value


class ComputeOptions(Schema):
    """Options of how the networks are computed."""

    amp: Literal["none", "auto", "bf16", "fp16"] = "none"
    """Mixed precision of forward and backward passes; losses stay in float32. `auto` selects bf16 where the
    processor supports it natively, and float32 elsewhere; fp16 needs CUDA."""
    channels_last: bool = True
    """Use the channels-last memory format, which is faster on most processors."""
    compile: bool = False
    """Compile the forward pass with torch.compile."""
    sync_batch_norm: bool = False
    """Compute batch-norm statistics over all processes; needs GPUs."""


class TrainingOptions(Schema):
    """Options of one training run."""

    epochs: PositiveInt = 12
    batch_size: PositiveInt = 8
    """Images per optimizer step, over all processes and accumulation steps."""
    accumulation_steps: PositiveInt = 1
    """Parts into which each process splits its batch to save memory; gradients are those of the mean loss."""
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    compute: ComputeOptions = ComputeOptions()
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of the exponential moving average of the weights, for example 0.9998. When set, the averaged weights are
    validated and saved."""
    validate_every: PositiveInt = 1
    """Epochs between validations; the last epoch is always validated."""
    patience: PositiveInt | None = None
    """Validations without a better mAP after which training stops."""
    log_every: PositiveInt = 10
    """Steps between lines of metrics.jsonl."""
    save_every_minutes: NonNegativeFloat = 10.0
    """Minutes between saved states within an epoch; a state is also saved after every epoch."""

    @model_validator(mode="after")
    def _batch_can_be_split(self) -> "TrainingOptions":
        if self.batch_size % self.accumulation_steps:
            sizes = f"{self.batch_size} and {self.accumulation_steps}"
            raise ValueError(f"batch_size must be a multiple of accumulation_steps, got {sizes}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _named_schedule(cls, values: Any) -> Any:
        """Replace the name of a schedule by its values."""
        schedule = values.get("schedule") if isinstance(values, dict) else None
        name = schedule.get("name") if isinstance(schedule, dict) else None
        if not isinstance(schedule, dict) or not isinstance(name, str) or name not in SCHEDULES:
            return values
        epochs, milestones = SCHEDULES[name]
        return {"epochs": epochs, **values, "schedule": {"milestones": milestones, **schedule, "name": "step"}}
