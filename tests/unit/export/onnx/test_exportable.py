"""Detectors in their deployed form."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export.onnx.exportable import ExportableDetector
from export.tiles import structured_noise
from ifkd.core.errors import ConfigError
from ifkd.models import Detector
from ifkd.models.checkpoint import build_from, load_checkpoint


@pytest.fixture(scope="module")
def detector(checkpoint_path: Path) -> Detector:
    return build_from(load_checkpoint(checkpoint_path))


def tiles(count: int = 2) -> torch.Tensor:
    noise = [structured_noise((64, 64), seed=seed).transpose(2, 0, 1) for seed in range(count)]
    return torch.from_numpy(np.ascontiguousarray(np.stack(noise)))


def test_uint8_tiles_are_normalized_by_the_statistics_of_imagenet(detector: Detector) -> None:
    pixels = tiles()
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    by_hand = (pixels.numpy() / 255 - mean[:, None, None]) / deviation[:, None, None]
    with torch.inference_mode():
        boxes, scores, labels = ExportableDetector(detector, tile_px=(64, 64), candidates_per_level=50)(pixels)
        output = detector(torch.from_numpy(by_hand.astype(np.float32)))
        expected = detector.candidates(output, size=(64, 64), per_level=50)
    torch.testing.assert_close(scores.sort().values, expected[1].sort().values, atol=1e-5, rtol=0)
    assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)


def test_candidate_groups_are_the_sizes_of_the_levels(detector: Detector) -> None:
    model = ExportableDetector(detector, tile_px=(64, 64), candidates_per_level=100)
    # The maps have 8, 4, 2, 1 and 1 cells per side, nine anchors per cell and three classes.
    assert model.candidate_groups() == ((100, True), (100, True), (100, True), (27, False), (27, False))
    with torch.inference_mode():
        _, scores, _ = model(tiles(1))
    assert scores.shape[1] == model.count_candidates() == 354


def test_the_model_is_in_eval_mode(detector: Detector) -> None:
    detector.train()
    model = ExportableDetector(detector, tile_px=(64, 64), candidates_per_level=10)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("count", [0, 3841])
def test_a_top_k_above_the_limit_of_tensorrt_is_refused(detector: Detector, count: int) -> None:
    with pytest.raises(ConfigError, match=rf"export\.candidates_per_level.*got {count}.*1 to 3840"):
        ExportableDetector(detector, tile_px=(64, 64), candidates_per_level=count)


@pytest.mark.parametrize("tile_px", [(64, 100), (16, 64), (0, 0)])
def test_tiles_that_do_not_fit_the_pyramid_are_refused(detector: Detector, tile_px: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="multiples of 32"):
        ExportableDetector(detector, tile_px=tile_px, candidates_per_level=10)
