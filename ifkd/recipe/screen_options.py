"""Options of a screen: the small network that finds the tiles of a scene that are worth searching."""

from typing import Annotated

from pydantic import Field, PositiveInt

from ifkd.core.config import Schema
from ifkd.recipe.training_options import OptimizerOptions, ScheduleOptions, TrainingOptions
from ifkd.recipe.value_types import FractionBelowOne, PositiveFloat


class ScreenOptions(Schema):
    """Size, training and calibration of the screen; the defaults suit objects from about 12 px after scaling."""

    scale: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    """Factor from the detector's pixels to the screen's, after `data.scale`."""
    channels: Annotated[int, Field(ge=8, le=80, multiple_of=4)] = 64
    """Channels of the last layers; 64 make 0.18 million parameters, and 80 make 0.28 million."""
    epochs: PositiveInt = 30
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 0.002
    """Full learning rate of AdamW; it decays along a cosine."""
    teacher_score: FractionBelowOne = 0.5
    """Least score of the detections of `ifkd train --role screen --teacher` that are learned as objects; best the score
    threshold for scenes, because the screen also learns the false detections above it."""
    max_lost_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.005
    """Largest acceptable fraction of a scene's detections that the screen loses, in expectation; sets the threshold."""
    confidence: FractionBelowOne = 0.9
    """Probability, over draws of the calibration's scenes, that the expected fraction is within the limit; 0 requires
    this only on average over such draws (conformal risk control), for which fewer scenes are enough."""

    @property
    def training(self) -> TrainingOptions:
        """The options of the training run."""
        optimizer = OptimizerOptions(
            name="adamw", learning_rate=self.learning_rate, base_batch_size=self.batch_size, grad_clip=10.0
        )
        return TrainingOptions(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=optimizer,
            schedule=ScheduleOptions(name="cosine", warmup_iters=0),
        )
