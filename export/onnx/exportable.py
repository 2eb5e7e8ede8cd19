"""The deployed form of a detector: uint8 tiles in, a fixed number of candidates out.

Normalization, box decoding and the top-k of each level are part of the model. Non-maximum suppression is not, so that
no engine needs a plug-in or an output of unknown size, and runtimes differ only in rounding.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from export.onnx import faster_rcnn_candidates, retinanet_candidates
from export.onnx.topk import LevelTopK, level_topk
from ifkd.core.errors import ConfigError
from ifkd.core.input_shapes import STEP_PX, InputShapes
from ifkd.models import Detector, FasterRcnn, normalize, retinanet, rpn
from ifkd.models.detector import CandidateTensors
from ifkd.recipe.value_types import MAX_TOP_K

OUTPUT_NAMES, ORIENTED_NAME = ("boxes", "scores", "labels"), "oriented"
"""Outputs, and the one that only an oriented detector has, in the order of the fields of `Candidates`."""


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

        `tile_px` is (height, width) in multiples of 32; `tile_sides_px` is the minimum and maximum side of a model for
        tiles of several sizes.

        Raises:
            ConfigError: The number of candidates exceeds TensorRT's limit, or the tile size does not fit the pyramid.
        """
        super().__init__()
        if not 1 <= candidates_per_level <= MAX_TOP_K:
            problem, hint = "export.candidates_per_level is out of range for TensorRT's TopK layer", "Lower it."
            raise ConfigError(problem, got=candidates_per_level, expected=f"1 to {MAX_TOP_K}", hint=hint)
        if any(side < STEP_PX or side % STEP_PX for side in tile_px):
            got = f"{tile_px[0]} x {tile_px[1]} pixels (height x width)"
            problem, hint = "The tile size does not fit the feature pyramid", "Change data.tile_px."
            raise ConfigError(problem, got=got, expected=f"multiples of {STEP_PX}", hint=hint)
        self.sizes = InputShapes(tile_px, tile_sides_px)
        """Tile sizes that the model accepts."""
        if not self.sizes.accepts(tile_px):
            problem, hint = "export.tile_sides_px does not include data.tile_px", "Change export.tile_sides_px."
            expected = f"a minimum and a maximum side with {max(tile_px)} between them"
            raise ConfigError(problem, got=tile_sides_px, expected=expected, hint=hint)
        self.output_names = (*OUTPUT_NAMES, ORIENTED_NAME) if detector.config.oriented else OUTPUT_NAMES
        self.detector, self.tile_px, self.candidates_per_level = detector, tile_px, candidates_per_level
        self.eval()

    def forward(self, tiles: UInt8[Tensor, "batch 3 height width"]) -> CandidateTensors:
        """Return the candidates of RGB tiles: boxes (pixels of the tile), scores (0 to 1), labels, oriented boxes."""
        detector, topk, per_level = self.detector, self._level_topk(), self.candidates_per_level
        output = detector(normalize(tiles))
        size = self.tile_px if self.sizes.side_range is None else (tiles.shape[2], tiles.shape[3])
        if isinstance(detector, FasterRcnn):
            return faster_rcnn_candidates.candidates(detector, output, size=size, max_candidates=per_level, topk=topk)
        if isinstance(detector, retinanet.RetinaNet) and self.sizes.side_range is not None:
            return retinanet_candidates.candidates(detector, output, size=size, topk=topk)
        return detector.candidates(output, size=self.tile_px, per_level=per_level)

    def candidate_groups(self) -> tuple[tuple[int, bool], ...]:
        """Return (number of candidates, whether top-k dropped others) of each group, in the order of the output.

        A model for several tile sizes has the group sizes of the largest tile; the second value is that of `tile_px`.
        """
        blank = torch.zeros((1, 3, *self.tile_px), dtype=torch.uint8, device=next(self.parameters()).device)
        with torch.inference_mode():
            output = self.detector(normalize(blank))
        groups = self.detector.candidate_groups(output, per_level=self.candidates_per_level)
        if isinstance(self.detector, FasterRcnn):
            return groups
        return tuple((level.k, dropped) for level, (_, dropped) in zip(self._level_topk(), groups, strict=True))

    def count_candidates(self) -> int:
        """Return k, the number of candidates of one tile."""
        return sum(size for size, _ in self.candidate_groups())

    def _level_topk(self) -> tuple[LevelTopK, ...]:
        """Return the top-k of each level, over anchor-class pairs or, in a two-stage detector, over anchors."""
        if isinstance(self.detector, FasterRcnn):
            anchors, values, max_k = rpn.ANCHORS_PER_CELL, 1, self.detector.config.proposals
        else:
            anchors, values, max_k = retinanet.ANCHORS_PER_CELL, self.detector.num_classes, self.candidates_per_level
        strides = self.detector.strides
        return level_topk(strides, self.sizes, anchors_per_cell=anchors, values_per_anchor=values, max_k=max_k)
