"""Options of the methods that IFKD is compared with.

A weight of None stands for the published one of the detector's family, as Faster R-CNN often takes a smaller one.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from ifkd.core.config import Schema
from ifkd.recipe.ifkd_options import IfkdOptions
from ifkd.recipe.levels import LevelChoice
from ifkd.recipe.validators import Fraction, NonNegative


class NoMethodOptions(Schema):
    """Plain training."""

    name: Literal["none"] = "none"


class FitNetOptions(Schema):
    """FitNet: the student's features equal the teacher's."""

    name: Literal["fitnet"] = "fitnet"
    weight: NonNegative = 1.0
    shared: bool = False
    """One convolution for all levels instead of one each."""
    bias: bool = True
    level_mean: bool = False
    """Divide the sum over levels by their number."""


class AttentionTransferOptions(Schema):
    """AT: the student is active where the teacher is."""

    name: Literal["at"] = "at"
    weight: NonNegative = 1000.0


class FkdOptions(Schema):
    """FKD: features under attention, attention itself, and relations between places."""

    name: Literal["fkd"] = "fkd"
    feature: NonNegative | None = None
    """4.2e-4, or 7e-5 for Faster R-CNN."""
    attention: NonNegative | None = None
    """2.4e-2, or 4e-3 for Faster R-CNN."""
    non_local: NonNegative | None = None
    """4.2e-4, or 7e-5 for Faster R-CNN."""
    temperature: PositiveFloat | None = None
    """Of the attentions' softmax: 0.1, or 0.5 for Faster R-CNN."""
    channel_mask: bool | None = None
    """Weight channels as well as places; by default in RetinaNet alone."""


class FgdOptions(Schema):
    """FGD: objects and background apart, and the context of the whole image."""

    name: Literal["fgd"] = "fgd"
    foreground: NonNegative | None = None
    """1e-3, or 5e-5 for Faster R-CNN."""
    background: NonNegative | None = None
    """5e-4, or 2.5e-5 for Faster R-CNN."""
    attention: NonNegative | None = None
    """5e-4, or 5e-5 for Faster R-CNN."""
    context: NonNegative | None = None
    """5e-6, or 5e-7 for Faster R-CNN."""
    temperature: PositiveFloat = 0.5
    inherit: bool = True
    """The student's pyramid and head begin with the teacher's weights where names and shapes are equal."""
    levels: LevelChoice | None = None
    """All levels, or the four finest for Faster R-CNN."""


class FrsOptions(Schema):
    """FRS: features and logits where the teacher finds any class likely."""

    name: Literal["frs"] = "frs"
    feature: NonNegative | None = None
    """0.005, or 0.002 for Faster R-CNN."""
    head: NonNegative | None = None
    """0.02, or 0.1 for Faster R-CNN."""
    warmup_iters: Annotated[int, Field(ge=0)] = 500


class ArsdOptions(Schema):
    """ARSD: core features of each object on one level, and boxes where the teacher's are better."""

    name: Literal["arsd"] = "arsd"
    feature: NonNegative = 0.01
    head: NonNegative = 0.01
    boxes: NonNegative = 0.1
    binary_mask: bool = False
    """Weigh all cells of objects alike, as the published code does, instead of small objects more."""
    centerness: bool = False
    """Weigh an anchor's box by how central the anchor is in its object."""


class InsDistOptions(Schema):
    """InsDist: features by instance, and relations between instances."""

    name: Literal["insdist"] = "insdist"
    foreground: NonNegative | None = None
    """4.2e-4, or 7e-5 for Faster R-CNN."""
    background: NonNegative | None = None
    """2.1e-4, or 3.5e-5 for Faster R-CNN."""
    relation: NonNegative = 1.0
    threshold: Fraction = 0.5
    """Energy above which a cell belongs to an instance."""


class PkdOptions(Schema):
    """PKD: features equal but for each channel's mean and deviation."""

    name: Literal["pkd"] = "pkd"
    weight: NonNegative | None = None
    """10, or 6 for Faster R-CNN."""
    levels: LevelChoice = "four_finest"


class CwdOptions(Schema):
    """CWD: where each channel is active."""

    name: Literal["cwd"] = "cwd"
    weight: NonNegative = 10.0
    temperature: PositiveFloat = 1.0
    levels: LevelChoice = "all"


class CrossKdOptions(Schema):
    """CrossKD, for RetinaNet: the student's features through the teacher's head."""

    name: Literal["crosskd"] = "crosskd"
    classes: NonNegative = 1.0
    boxes: NonNegative = 1.0
    own_layers: Annotated[PositiveInt, Field(le=3)] = 3
    """Convolutions of a tower, of four, that are the student's."""


MethodOptions = Annotated[
    IfkdOptions
    | NoMethodOptions
    | FitNetOptions
    | AttentionTransferOptions
    | FkdOptions
    | FgdOptions
    | FrsOptions
    | ArsdOptions
    | InsDistOptions
    | PkdOptions
    | CwdOptions
    | CrossKdOptions,
    Field(discriminator="name"),
]
"""The options of one method, told apart by its name."""
