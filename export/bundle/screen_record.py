"""Record of a bundle's screen: the small network that finds the tiles of a scene that are worth searching.

Input `tiles`, uint8 [batch, 3, height, width], multiples of `stride`: the scene as the engine sees it, resized by
`scale` with antialiasing. Output `objectness`, float32 [batch, 1, height / stride, width / stride], from 0 to 1. A
tile is searched if a cell that it touches, or that is within `margin_px` of it, is at least the threshold, so a
threshold of 0 searches all.
"""

from pydantic import PositiveFloat, PositiveInt

from ifkd.core.config import Schema
from ifkd.recipe.value_types import Fraction, FractionBelowOne

EXCHANGEABLE = (
    "This holds for scenes that are exchangeable with those of the calibration: places of the same kinds, seen by the "
    "same sensor and processed in the same way."
)
"""The assumption behind a screen's threshold, to be stated beside every number that rests on it."""


class ScreenPoint(Schema):
    """One threshold of a screen and its effect in the scenes of the calibration."""

    threshold: Fraction
    lost_fraction: Fraction
    """Mean over the scenes of the fraction of a scene's detections that are lost."""
    passed_fraction: Fraction
    """Fraction of the tiles that are searched."""


class ScreenCalibration(Schema):
    """Choice of a screen's threshold by the detections that it loses in held-out scenes.

    A detection of the full search counts as lost if it, or one of any tile that overlaps with it in a chain, has a
    point without a cell within the margin that is at least the threshold. If none has, all tiles that they touch are
    searched, and the search with the screen gives the same detection. Otherwise these tiles may still be searched
    because of other cells, so this is an upper limit.
    """

    source: str
    """The held-out images."""
    images: int
    scenes: int
    """Number of places that have detections; the guarantee is about such places."""
    objects: int
    """Number of detections of the full search."""
    score_threshold: float
    """Least score of these detections."""
    max_lost_fraction: FractionBelowOne
    """Largest acceptable fraction of a scene's detections that are lost, in expectation."""
    confidence: FractionBelowOne | None
    """Probability, over draws of the calibration's scenes, that the expected fraction is within its limit; None where
    it is within the limit on average over such draws (conformal risk control)."""
    scenes_needed: int
    """Smallest number of scenes with which any threshold above 0 can satisfy the limit."""
    bound: Fraction | None
    """Upper bound of the expected lost fraction at the threshold; None without a threshold."""
    reason: str
    """The choice in words, or the reason why there is no threshold."""
    curve: tuple[ScreenPoint, ...] = ()
    """By ascending threshold."""


class ScreenParity(Schema):
    """Largest difference between the objectness of a screen's ONNX file and of its reference on the same images."""

    reference: str = "torch"
    """The torch network, or the name of the FP32 file."""
    images: int
    cells: int
    max_difference: float
    tolerance: float
    passed: bool
    onnx_sha256: str
    float_layers: int = 0
    """Number of layers of an INT8 file that compute in float, so that it is within the tolerance."""

    @property
    def in_words(self) -> str:
        """The difference as text."""
        kept = f", {self.float_layers} layers in float" if self.float_layers else ""
        return f"{self.cells} cells within {self.max_difference:.1g}{kept}"


class ScreenRecord(Schema):
    """The screen of a bundle; its ONNX files are those of the kind `screen-onnx`."""

    file: str = "screen.onnx"
    """The FP32 file, with which scenes are screened."""
    scale: PositiveFloat
    """Factor from the engine's pixels to the screen's; the engine's own scale applies before."""
    stride: PositiveInt
    """Side of a cell, pixels of the screen."""
    context_px: int
    """Pixels of the screen around a cell that affect its value."""
    parameters: int
    margin_px: PositiveFloat | None = None
    """A tile is searched if a cell within this distance of it is at least the threshold, pixels of the engine; None in
    bundles of earlier versions, whose margin is the overlap of tiles, or a cell where that is more."""
    threshold: Fraction | None
    """Least objectness of a tile that is searched; None if no threshold is known to satisfy the calibration's limit, so
    that the screen is off unless the user states a threshold."""
    calibration: ScreenCalibration | None = None
    """None for a screen that was not calibrated."""
    checks: dict[str, ScreenParity] = {}
    """Parity by ONNX file."""
    sha256: str | None = None
    """Digest of the checkpoint that was exported."""

    @property
    def cell_px(self) -> float:
        """Side of a cell, pixels of the engine."""
        return self.stride / self.scale
