"""Options of the IFKD method and their presets."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, model_validator

from ifkd.core.config import Schema
from ifkd.recipe.levels import LevelChoice
from ifkd.recipe.value_types import EncoderSide, FilterGrid, Fraction, NonNegativeFloat, NonNegativeRange, PositiveFloat


class AdapterOptions(Schema):
    """Convolution that maps student features to the teacher's feature space (section 3.1, phi)."""

    kernel: Literal[1, 3] = 3
    shared: bool = False
    """Use one convolution for all levels instead of one per level."""
    bias: bool = True


class EdeOptions(Schema):
    """EDE: MobileSAM features added to the teacher's (section 3.1)."""

    enabled: bool = True
    weight: NonNegativeFloat = 1.0
    """Lambda of eq. 12."""
    source: Literal["embedding", "mask"] = "embedding"
    """MobileSAM output: the image embedding, or the mask predicted without a prompt."""
    form: Literal["add", "gate"] = "add"
    """Add it to the target, or multiply the features by it and apply two learned convolutions."""
    residual: bool = True
    """Add the input of the gate to its output, as the released code for one-stage detectors does."""
    levels: LevelChoice = "all"
    interp: Literal["bilinear", "area"] = "bilinear"
    center: bool = False
    """Subtract 0.5, the mean of a sigmoid."""
    order: Literal["add_to_target", "ede_then_fdr"] = "add_to_target"
    input_px: EncoderSide | Literal["native"] = 1024
    """Longer side of the encoder's input, a multiple of 16; `native` uses the size of the training images."""
    weights: str = "mobile_sam"
    """`mobile_sam` (the published checkpoint in the cache folder), `random` (seeded), or a path."""
    fall_back_to_random: bool = False
    """Use `random` weights with a warning, instead of an error, when the published checkpoint is not installed."""
    cache: bool = False
    """Cache MobileSAM's outputs on disk by the digest of the pixels; needs tiles that are complete images."""


class FdrOptions(Schema):
    """FDR: frequency-domain reconstruction of the features (section 3.2)."""

    enabled: bool = True
    r: Fraction = 0.1
    """Half side of the low-pass window as a fraction of the half map."""
    r_range: NonNegativeRange | None = None
    """Range from which r is drawn uniformly at each call; replaces `r`."""
    p: Fraction = 1.0
    """Probability of applying the mask in a training step."""
    levels: LevelChoice = "all"
    apply_to: Literal["teacher", "both"] = "both"
    filter: Literal["grid", "channel", "none"] = "none"
    grid: FilterGrid = (16, 9)
    """Rows and columns of the base grid; the number of rows is even."""
    filter_complex: bool = False
    filter_init: Literal["ones", "gfnet"] = "ones"
    filter_norm: Literal["energy", "rms", "none"] = "energy"
    """Divide the filter so that the filtered teacher keeps the energy of each channel, or by its own root mean square,
    which keeps the energy of white noise only."""
    filter_trainable: bool = True


class HsmOptions(Schema):
    """HSM: locations weighted by the hyperbolic distance of student and teacher (section 3.3)."""

    enabled: bool = True
    reference: Literal["target", "raw"] = "target"
    """Compare the two sides of eq. 12, which FDR and EDE have changed, or the features before them: a student that has
    reached its target has a mask of 0 only with `target`."""
    map: Literal["expmap0", "project", "raw"] = "expmap0"
    scale: Literal["auto", "inv_sqrt_channels", "none"] = "auto"
    target_radius: PositiveFloat = 1.0
    curvature: PositiveFloat = 1.0
    clip: Annotated[PositiveFloat, Field(le=20.0)] | None = None
    """Largest norm of a scaled feature times the root of the curvature; by default 2.3 times `target_radius`."""
    power: PositiveFloat = 1.0
    """Power of the mask; 2 increases its contrast."""
    formula: Literal["asinh", "mobius"] = "asinh"
    detach: bool = True

    @property
    def largest_norm(self) -> float:
        """`clip`, or its default."""
        return 2.3 * self.target_radius if self.clip is None else self.clip


class HeadLossOptions(Schema):
    """L_head: distillation of class logits (eq. 13)."""

    enabled: bool = True
    kind: Literal["bce", "kl"] = "bce"
    norm: Literal["locations", "positives"] = "locations"
    """Weighted mean over the locations of each level, or weighted sum over the number of positive anchors, as in the
    focal loss."""
    frcnn_head: Literal["rpn", "roi", "both"] = "rpn"
    """Logits that Faster R-CNN distills: objectness of the RPN, classes of the student's sampled regions (always a KL
    divergence, without HSM), or both."""


class AttentionOptions(Schema):
    """Spatial attention transfer."""

    weight: NonNegativeFloat = 1000.0
    levels: LevelChoice = "all"
    level_weights: Literal["cells", "equal"] = "cells"
    """Weights of the levels: every cell of every level has the same influence, or the mean over levels as published,
    in which the coarsest maps have nearly all of it."""


Preset = Literal["ifkd", "ifkd_paper_literal", "ifkd_released"]
PRESETS: dict[Preset, dict[str, Any]] = {
    "ifkd": {},
    "ifkd_paper_literal": {
        "warmup_iters": 0,
        "feature_scale": "none",
        "adapter": {"shared": True},
        "at": {"level_weights": "equal"},
        "fdr": {"apply_to": "teacher", "filter": "grid", "filter_norm": "none", "r_range": (0.0, 1.0)},
        "hsm": {"reference": "raw"},
    },
    "ifkd_released": {
        "alpha": 1e-4,
        "beta": 1e-3,
        "warmup_iters": 0,
        "feature_scale": "none",
        "adapter": {"shared": True},
        "at": {"level_weights": "equal"},
        "ede": {"source": "mask", "form": "gate", "levels": "three_coarsest"},
        "fdr": {
            "p": 0.5,
            "apply_to": "both",
            "levels": "two_finest",
            "filter": "channel",
            "filter_complex": True,
            "filter_init": "gfnet",
            "filter_norm": "none",
        },
        "hsm": {"reference": "raw"},
    },
}
"""Values of each preset; docs/method.md explains their origin."""


BALANCED: dict[str, Any] = {"alpha": 3.0, "beta": 0.5, "at": {"weight": 0.5}}
"""Default weights with `distillation.balance.form = "gradient"`, as multiples of the task's gradient."""


def merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return `defaults` updated by `values`, recursively."""
    result = dict(defaults)
    for key, value in values.items():
        default = result.get(key)
        result[key] = merged(default, value) if isinstance(default, dict) and isinstance(value, dict) else value
    return result


class IfkdOptions(Schema):
    """Options of IFKD, named as in docs/method.md."""

    name: Literal["ifkd"] = "ifkd"
    preset: Preset = "ifkd"
    """Default values of all other options: this implementation, the literal paper, or the released code."""
    alpha: NonNegativeFloat = 0.06
    beta: NonNegativeFloat = 0.5
    warmup_iters: NonNegativeInt = 500
    adapter: AdapterOptions = AdapterOptions()
    norm: Literal["mask", "image", "hw"] = "mask"
    channel_reduction: Literal["sum", "mean"] = "sum"
    with_at: bool = False
    """Add attention transfer, as in every row of Table 4 of the paper."""
    at: AttentionOptions = AttentionOptions()
    feature_scale: Literal["auto", "none"] = "auto"
    reference_rms: PositiveFloat = 1.0
    """Root mean square to which `auto` scales the teacher's features, per level."""
    ede: EdeOptions = EdeOptions()
    fdr: FdrOptions = FdrOptions()
    hsm: HsmOptions = HsmOptions()
    head: HeadLossOptions = HeadLossOptions()

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        preset = values.get("preset") if isinstance(values, dict) else None
        return merged(PRESETS[preset], values) if preset in PRESETS else values
