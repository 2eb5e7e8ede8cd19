"""The deployable twin of a detector: uint8 tiles in, a fixed number of candidates out, nothing else to know.

Normalization, decoding and the top-k of each level are inside, non-maximum suppression is outside, so runtimes
differ in arithmetic alone and no engine needs a plug-in or an output of unknown size.
"""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from export.onnx import faster_rcnn_candidates, retinanet_candidates
from export.onnx.topk import LevelTopK, level_topk
from ifkd.core.errors import ConfigError
from ifkd.core.input_shapes import STEP_PX, InputShapes
from ifkd.models import Detector, FasterRcnn, normalize, retinanet, rpn

LARGEST_TOP_K = 3840
"""What TensorRT's TopK layer takes."""


class ExportableDetector(nn.Module):
    """A detector as it is deployed; it borrows the trained modules and changes none."""

    def __init__(
        self,
        detector: Detector,
        *,
        tile_px: tuple[int, int],
        per_level: int,
        sides_px: tuple[int, int] | None = None,
    ) -> None:
        """Wrap a detector.

        Args:
            detector: Trained; it is set to eval mode.
            tile_px: (height, width) of the tiles, multiples of 32.
            per_level: Candidates of each pyramid level.
            sides_px: Least and largest height and width, multiples of 32, of a graph for tiles of several sizes.

        Raises:
            ConfigError: TensorRT could not take so many candidates, or tiles of that size do not fit the pyramid.
        """
        super().__init__()
        if not 1 <= per_level <= LARGEST_TOP_K:
            raise ConfigError(
                "export.candidates_per_level does not fit TensorRT's top-k",
                got=per_level,
                expected=f"1 to {LARGEST_TOP_K}",
                hint="Set export.candidates_per_level lower; 1000 is plenty for most tiles.",
            )
        if isinstance(detector, FasterRcnn) and detector.config.proposals > LARGEST_TOP_K:
            raise ConfigError(
                "detector.proposals does not fit TensorRT's top-k",
                got=detector.config.proposals,
                expected=f"1 to {LARGEST_TOP_K}",
                hint="Set proposals of the recipe's detector lower; 1000 is what it was made for.",
            )
        if any(side < STEP_PX or side % STEP_PX for side in tile_px):
            raise ConfigError(
                "Tiles of this size do not fit the feature pyramid",
                got=f"{tile_px[0]} x {tile_px[1]} pixels (height x width)",
                expected=f"multiples of {STEP_PX}",
                hint="Change data.tile_px.",
            )
        self.sizes = InputShapes(tile_px, sides_px)
        if not self.sizes.takes(tile_px):
            raise ConfigError(
                "export.tile_sides_px leaves out the tile that the detector was trained on",
                got=sides_px,
                expected=f"a least and a largest side with {max(tile_px)} between them",
                hint="Change export.tile_sides_px.",
            )
        self.detector = detector
        self.tile_px = tile_px
        self.per_level = per_level
        self.eval()

    def forward(
        self, tiles: UInt8[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch k 4"], Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
        """Return boxes (pixels of the tile), scores (0 to 1) and labels of RGB tiles."""
        output, rooms = self.detector(normalize(tiles)), self._rooms()
        size = self.tile_px if self.sizes.sides is None else (tiles.shape[2], tiles.shape[3])
        if isinstance(self.detector, FasterRcnn):
            return faster_rcnn_candidates.candidates(
                self.detector, output, size=size, per_level=self.per_level, rooms=rooms
            )
        if isinstance(self.detector, retinanet.RetinaNet) and self.sizes.sides is not None:
            return retinanet_candidates.candidates(self.detector, output, size=size, rooms=rooms)
        return self.detector.candidates(output, size=self.tile_px, per_level=self.per_level)

    def level_sizes(self) -> tuple[tuple[int, bool], ...]:
        """Return, group by group as candidates follow each other, their number and whether more were cut off.

        A graph for tiles of several sizes has as many as the largest tile; what is cut off is told of the usual one.
        """
        device = next(self.parameters()).device
        blank = torch.zeros((1, 3, *self.tile_px), dtype=torch.uint8, device=device)
        with torch.inference_mode():
            groups = self.detector.candidate_groups(self.detector(normalize(blank)), per_level=self.per_level)
        if isinstance(self.detector, FasterRcnn):
            return groups
        return tuple((room.kept, cut) for room, (_, cut) in zip(self._rooms(), groups, strict=True))

    def count_candidates(self) -> int:
        """Return k, the candidates of one tile."""
        return sum(size for size, _ in self.level_sizes())

    def _rooms(self) -> tuple[LevelTopK, ...]:
        """Return what is looked at of each level: pairs of anchor and class, or the first stage's anchors."""
        detector = self.detector
        if isinstance(detector, FasterRcnn):
            most = detector.config.proposals
            return level_topk(detector.strides, self.sizes, per_cell=rpn.PER_CELL, most=most)
        return level_topk(
            detector.strides,
            self.sizes,
            per_cell=retinanet.PER_CELL,
            values=detector.num_classes,
            most=self.per_level,
        )
