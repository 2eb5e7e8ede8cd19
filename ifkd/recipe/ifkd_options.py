"""IFKD's options, part by part, and the presets they can come from."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from ifkd.core.config import Schema
from ifkd.recipe.levels import LevelChoice
from ifkd.recipe.validators import Fraction, NonNegative, even_rows, rising


class AdapterOptions(Schema):
    """The convolution that carries student features to the teacher's space (section 3.1, phi)."""

    kernel: Literal[1, 3] = 3
    shared: bool = False
    """One convolution for all levels instead of one each."""
    bias: bool = True


class EdeOptions(Schema):
    """EDE: MobileSAM's knowledge added to the teacher's (section 3.1)."""

    enabled: bool = True
    weight: NonNegative = 1.0
    """Lambda of eq. 12."""
    source: Literal["embedding", "mask"] = "embedding"
    """What of MobileSAM: its image embedding, or the mask it draws without a prompt."""
    form: Literal["add", "gate"] = "add"
    """Added to the target, or multiplied with the features and followed by two convolutions that learn."""
    residual: bool = True
    """Of a gate: add its input to its result, as the released one-stage code does."""
    levels: LevelChoice = "all"
    interp: Literal["bilinear", "area"] = "bilinear"
    center: bool = False
    """Subtract 0.5, the mean of a sigmoid."""
    order: Literal["add_to_target", "ede_then_fdr"] = "add_to_target"
    input_px: PositiveInt | Literal["native"] = 1024
    """Long side of the encoder's input, a multiple of 16; `native` takes the training images as they are."""
    weights: str = "mobile_sam"
    """`mobile_sam` (the published checkpoint, at its place in the cache), `random` (seeded), or a path."""
    fall_back_to_random: bool = False
    """When the published checkpoint is not installed, run with `random` and say so, instead of refusing."""
    cache: bool = False
    """Keep MobileSAM's answers on disk, by the digest of the pixels they belong to; needs whole images as tiles."""


class FdrOptions(Schema):
    """FDR: the teacher's low frequencies are kept where it is confident (section 3.2)."""

    enabled: bool = True
    r: Fraction = 0.1
    """Half-side of the low-pass window as a share of the half map."""
    r_range: Annotated[tuple[NonNegative, NonNegative], AfterValidator(rising)] | None = None
    """When set, r is drawn uniformly for each call."""
    p: Fraction = 1.0
    """Probability of applying the mask in a training step."""
    levels: LevelChoice = "all"
    apply_to: Literal["teacher", "both"] = "teacher"
    filter: Literal["grid", "channel", "none"] = "grid"
    grid: Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(even_rows)] = (16, 9)
    """Rows and columns of the base grid; the rows are even in number."""
    filter_complex: bool = False
    filter_init: Literal["ones", "gfnet"] = "ones"
    filter_norm: Literal["rms", "none"] = "rms"
    filter_trainable: bool = True


class HsmOptions(Schema):
    """HSM: locations are weighted by the hyperbolic distance of student and teacher (section 3.3)."""

    enabled: bool = True
    map: Literal["expmap0", "project", "raw"] = "expmap0"
    scale: Literal["auto", "inv_sqrt_channels", "none"] = "auto"
    target_radius: PositiveFloat = 1.0
    curvature: PositiveFloat = 1.0
    clip: PositiveFloat = 2.3
    formula: Literal["asinh", "mobius"] = "asinh"
    detach: bool = True


class HeadLossOptions(Schema):
    """L_head: the student's class logits follow the teacher's (eq. 13)."""

    enabled: bool = True
    kind: Literal["bce", "kl"] = "bce"
    frcnn_head: Literal["rpn", "roi", "both"] = "rpn"
    """Whose logits, in Faster R-CNN: the dense objectness of its first stage, the classes that its second stage
    gives the student's sampled regions (always a KL divergence, without HSM), or both."""


Preset = Literal["ifkd", "ifkd_paper_literal", "ifkd_released"]
PRESETS: dict[Preset, dict[str, Any]] = {
    "ifkd": {},
    "ifkd_paper_literal": {
        "warmup_iters": 0,
        "adapter": {"shared": True},
        "fdr": {"filter_norm": "none", "r_range": (0.0, 1.0)},
    },
    "ifkd_released": {
        "alpha": 1e-4,
        "beta": 1e-3,
        "warmup_iters": 0,
        "adapter": {"shared": True},
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
    },
}
"""Values that a preset's name stands for; docs/method.md says where they come from."""


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `below` with the values of `above` over it, table by table."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = _overlaid(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return result


class IfkdOptions(Schema):
    """IFKD's options, named as in docs/method.md."""

    name: Literal["ifkd"] = "ifkd"
    preset: Preset = "ifkd"
    """Where options that are not given take their values from: ours, the paper to the letter, or the released code."""
    alpha: NonNegative = 0.06
    beta: NonNegative = 0.5
    warmup_iters: Annotated[int, Field(ge=0)] = 500
    adapter: AdapterOptions = AdapterOptions()
    norm: Literal["mask", "image", "hw"] = "mask"
    channel_reduction: Literal["sum", "mean"] = "sum"
    with_at: bool = False
    """Add attention transfer, as every row of the paper's Table 4 has it."""
    feature_scale: Literal["auto", "none"] = "auto"
    reference_rms: PositiveFloat = 1.0
    """Root mean square to which `auto` brings the teacher's features, per level."""
    ede: EdeOptions = EdeOptions()
    fdr: FdrOptions = FdrOptions()
    hsm: HsmOptions = HsmOptions()
    head: HeadLossOptions = HeadLossOptions()

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        preset = values.get("preset") if isinstance(values, dict) else None
        return _overlaid(PRESETS[preset], values) if preset in PRESETS else values
