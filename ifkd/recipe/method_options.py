"""Options of the methods that IFKD is compared with; a weight of None is the published one of the detector family."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from ifkd.core.config import Schema
from ifkd.recipe.ifkd_options import AttentionOptions, IfkdOptions
from ifkd.recipe.levels import LevelChoice
from ifkd.recipe.value_types import Fraction, NonNegativeFloat, PositiveFloat


class NoDistillationOptions(Schema):
    """Plain training."""

    name: Literal["none"] = "none"


class ScaledFeatureOptions(Schema):
    """Scale of the features of a method whose terms depend on it: published weights are for pretrained pyramids."""

    feature_scale: Literal["auto", "none"] = "auto"
    """`auto` multiplies the features of both networks by one factor per level."""
    reference_rms: PositiveFloat = 0.3
    """Root mean square to which `auto` scales the teacher's features, per level; a pretrained pyramid has 0.3."""


class FitNetOptions(ScaledFeatureOptions):
    """FitNet: regression of the teacher's features."""

    name: Literal["fitnet"] = "fitnet"
    weight: NonNegativeFloat = 1.0


class AttentionTransferOptions(AttentionOptions):
    """AT: spatial attention maps."""

    name: Literal["at"] = "at"


class FkdOptions(ScaledFeatureOptions):
    """FKD: attention-weighted features, attention maps and non-local relations."""

    name: Literal["fkd"] = "fkd"
    feature: NonNegativeFloat | None = None
    """4.2e-4, or 7e-5 for Faster R-CNN."""
    attention: NonNegativeFloat | None = None
    """2.4e-2, or 4e-3 for Faster R-CNN."""
    non_local: NonNegativeFloat | None = None
    """4.2e-4, or 7e-5 for Faster R-CNN."""
    temperature: PositiveFloat | None = None
    """Temperature of the attention softmax: 0.1, or 0.5 for Faster R-CNN."""
    channel_mask: bool | None = None
    """Weight channels as well as locations; by default only for RetinaNet."""


class FgdOptions(ScaledFeatureOptions):
    """FGD: separate foreground and background features, and global context."""

    name: Literal["fgd"] = "fgd"
    foreground: NonNegativeFloat | None = None
    """1e-3, or 5e-5 for Faster R-CNN."""
    background: NonNegativeFloat | None = None
    """5e-4, or 2.5e-5 for Faster R-CNN."""
    attention: NonNegativeFloat | None = None
    """5e-4, or 5e-5 for Faster R-CNN."""
    context: NonNegativeFloat | None = None
    """5e-6, or 5e-7 for Faster R-CNN."""
    temperature: PositiveFloat = 0.5
    inherit: bool = True
    """Initialize the student's FPN and head with the teacher's weights where names and shapes match."""
    levels: LevelChoice | None = None
    """All levels, or the four finest for Faster R-CNN."""


class FrsOptions(ScaledFeatureOptions):
    """FRS: features and logits weighted by the teacher's feature richness score."""

    name: Literal["frs"] = "frs"
    feature: NonNegativeFloat | None = None
    """0.005, or 0.002 for Faster R-CNN."""
    head: NonNegativeFloat | None = None
    """0.02, or 0.1 for Faster R-CNN."""
    warmup_iters: NonNegativeInt = 500


class ArsdOptions(ScaledFeatureOptions):
    """ARSD: core features of each object, and boxes where the teacher's are better."""

    name: Literal["arsd"] = "arsd"
    feature: NonNegativeFloat = 0.01
    head: NonNegativeFloat = 0.01
    boxes: NonNegativeFloat = 0.1
    binary_mask: bool = False
    """Weight all object cells equally, as the published code does, instead of emphasizing small objects."""


class InsDistOptions(ScaledFeatureOptions):
    """InsDist: instance features and relations between instances."""

    name: Literal["insdist"] = "insdist"
    foreground: NonNegativeFloat | None = None
    """4.2e-4, or 7e-5 for Faster R-CNN."""
    background: NonNegativeFloat | None = None
    """2.1e-4, or 3.5e-5 for Faster R-CNN."""
    relation: NonNegativeFloat = 1.0
    threshold: Fraction = 0.5
    """Energy above which a cell belongs to an instance."""


class PkdOptions(Schema):
    """PKD: features standardized per channel (Pearson correlation)."""

    name: Literal["pkd"] = "pkd"
    weight: NonNegativeFloat | None = None
    """10, or 6 for Faster R-CNN."""
    levels: LevelChoice = "four_finest"


class CwdOptions(ScaledFeatureOptions):
    """CWD: spatial distribution of each channel."""

    name: Literal["cwd"] = "cwd"
    feature_scale: Literal["auto", "none"] = "none"
    """As in other methods, but `none` by default: here the scale only changes the temperature."""
    weight: NonNegativeFloat = 10.0
    temperature: PositiveFloat = 1.0
    levels: LevelChoice = "all"


class CrossKdOptions(Schema):
    """CrossKD, for RetinaNet: student features passed through the teacher's head."""

    name: Literal["crosskd"] = "crosskd"
    classes: NonNegativeFloat = 1.0
    boxes: NonNegativeFloat = 1.0
    own_layers: Annotated[PositiveInt, Field(le=3)] = 3
    """Number of convolutions of a tower (of four) that are the student's."""


EQUAL_WIDTHS = (PkdOptions, CrossKdOptions)
"""Methods that have no layer between pyramids of different widths, as in their authors' code."""
_FirstMethods = FitNetOptions | AttentionTransferOptions | FkdOptions | FgdOptions | FrsOptions | ArsdOptions
_OtherMethods = InsDistOptions | PkdOptions | CwdOptions | CrossKdOptions
MethodOptions = Annotated[
    IfkdOptions | NoDistillationOptions | _FirstMethods | _OtherMethods, Field(discriminator="name")
]
"""Options of one method, selected by `name`."""
