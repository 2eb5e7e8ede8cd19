"""How much a detector computes for one tile, counted by torch while it runs."""

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from export.onnx.exportable import ExportableDetector
from ifkd.models import normalize
from ifkd.models.checkpoint import build_from, load_checkpoint


def gflops_of(weights: Path, *, tile_px: tuple[int, int], per_level: int) -> float:
    """Return the floating point operations of one tile, 10^9, multiplications and additions counted apiece.

    Convolutions and matrix products are counted, as torch's counter does; normalization, activations, decoding and
    top-k are small beside them and are not.

    Args:
        weights: A checkpoint, or a bundle's weights.
        tile_px: (height, width).
        per_level: Candidates of each pyramid level.

    Raises:
        CheckpointError: The weights are absent or damaged.
    """
    graph = ExportableDetector(build_from(load_checkpoint(weights)), tile_px=tile_px, per_level=per_level)
    blank = torch.zeros((1, 3, *tile_px), dtype=torch.uint8)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        output = graph.detector(normalize(blank))
        graph.detector.candidates(output, size=tile_px, per_level=per_level)
    return counter.get_total_flops() / 1e9
