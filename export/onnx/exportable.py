"""The deployed form of a detector: uint8 tiles in, a fixed number of candidates out.

Normalization, box decoding and the top-k of each level are part of the model. Non-maximum suppression is not, so that
no engine needs a plug-in or an output of unknown size, and runtimes differ only in rounding.
"""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from export.onnx import faster_rcnn_candidates, retinanet_candidates
from export.onnx.topk import LevelTopK, level_topk
from ifkd.core.errors import ConfigError
from ifkd.core.input_shapes import STEP_PX, InputShapes
from ifkd.models import Detector, FasterRcnn, normalize, retinanet, rpn

MAX_TOP_K = 3840
"""Largest k of TensorRT's TopK layer."""


class ExportableDetector(nn.Module):
    """A trained detector with preprocessing and postprocessing, as it is exported; it shares the detector's modules."""

    def __init__(
        self,
        detector: Detector,
        *,
        tile_px: tuple[int, int],
        candidates_per_level: int,
        tile_sides_px: tuple[int, int] | None = None,
    ) -> None:
        """Wrap a detector and set it to eval mode.

        Args:
            detector: The trained detector.
            tile_px: (height, width) of the tiles, multiples of 32.
            candidates_per_level: Candidates of each pyramid level.
            tile_sides_px: Minimum and maximum side, multiples of 32, of a model for tiles of several sizes.

        Raises:
            ConfigError: The number of candidates exceeds TensorRT's limit, or the tile size does not fit the pyramid.
        """
        super().__init__()
        _check_top_k("export.candidates_per_level", candidates_per_level)
        if isinstance(detector, FasterRcnn):
            _check_top_k("detector.proposals", detector.config.proposals)
        if any(side < STEP_PX or side % STEP_PX for side in tile_px):
            raise ConfigError(
                "The tile size does not fit the feature pyramid",
                got=f"{tile_px[0]} x {tile_px[1]} pixels (height x width)",
                expected=f"multiples of {STEP_PX}",
                hint="Change data.tile_px.",
            )
        self.sizes = InputShapes(tile_px, tile_sides_px)
        """Tile sizes that the model accepts."""
        if not self.sizes.accepts(tile_px):
            raise ConfigError(
                "export.tile_sides_px does not include data.tile_px",
                got=tile_sides_px,
                expected=f"a minimum and a maximum side with {max(tile_px)} between them",
                hint="Change export.tile_sides_px.",
            )
        self.detector = detector
        self.tile_px = tile_px
        self.candidates_per_level = candidates_per_level
        self.eval()

    def forward(
        self, tiles: UInt8[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch k 4"], Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
        """Return boxes (pixels of the tile), scores (0 to 1) and labels of RGB tiles."""
        output, topk = self.detector(normalize(tiles)), self._level_topk()
        size = self.tile_px if self.sizes.side_range is None else (tiles.shape[2], tiles.shape[3])
        if isinstance(self.detector, FasterRcnn):
            return faster_rcnn_candidates.candidates(
                self.detector, output, size=size, max_candidates=self.candidates_per_level, topk=topk
            )
        if isinstance(self.detector, retinanet.RetinaNet) and self.sizes.side_range is not None:
            return retinanet_candidates.candidates(self.detector, output, size=size, topk=topk)
        return self.detector.candidates(output, size=self.tile_px, per_level=self.candidates_per_level)

    def candidate_groups(self) -> tuple[tuple[int, bool], ...]:
        """Return (number of candidates, whether top-k dropped others) of each group, in the order of the output.

        A model for several tile sizes has the group sizes of the largest tile; the second value is that of `tile_px`.
        """
        device = next(self.parameters()).device
        blank = torch.zeros((1, 3, *self.tile_px), dtype=torch.uint8, device=device)
        with torch.inference_mode():
            groups = self.detector.candidate_groups(
                self.detector(normalize(blank)), per_level=self.candidates_per_level
            )
        if isinstance(self.detector, FasterRcnn):
            return groups
        return tuple((level.k, dropped) for level, (_, dropped) in zip(self._level_topk(), groups, strict=True))

    def count_candidates(self) -> int:
        """Return k, the number of candidates of one tile."""
        return sum(size for size, _ in self.candidate_groups())

    def _level_topk(self) -> tuple[LevelTopK, ...]:
        """Return the top-k of each level, over anchor-class pairs or, in a two-stage detector, over anchors."""
        detector = self.detector
        if isinstance(detector, FasterRcnn):
            return level_topk(
                detector.strides, self.sizes, anchors_per_cell=rpn.ANCHORS_PER_CELL, max_k=detector.config.proposals
            )
        return level_topk(
            detector.strides,
            self.sizes,
            anchors_per_cell=retinanet.ANCHORS_PER_CELL,
            values_per_anchor=detector.num_classes,
            max_k=self.candidates_per_level,
        )


def _check_top_k(setting: str, k: int) -> None:
    if not 1 <= k <= MAX_TOP_K:
        raise ConfigError(
            f"{setting} is out of range for TensorRT's TopK layer",
            got=k,
            expected=f"1 to {MAX_TOP_K}",
            hint=f"Set {setting} lower; 1000 is enough for most tiles.",
        )
