"""Floating-point operations of a detector for one tile, counted by torch."""

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from export.onnx.exportable import ExportableDetector
from ifkd.models import normalize
from ifkd.models.checkpoint import build_from, load_checkpoint


def gflops_of(weights: Path, *, tile_px: tuple[int, int], candidates_per_level: int) -> float:
    """Return the GFLOPs of one tile; a multiplication and an addition count as two operations.

    As in torch's counter, convolutions and matrix products count; normalization, activations, decoding and top-k are
    negligible and do not. `tile_px` is (height, width).

    Raises:
        CheckpointError: The weights are missing or damaged.
    """
    detector = build_from(load_checkpoint(weights))
    model = ExportableDetector(detector, tile_px=tile_px, candidates_per_level=candidates_per_level)
    blank = torch.zeros((1, 3, *tile_px), dtype=torch.uint8)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        output = model.detector(normalize(blank))
        model.detector.candidates(output, size=tile_px, per_level=candidates_per_level)
    return counter.get_total_flops() / 1e9
