"""MobileSAM's mask without a prompt, against the classes of segment-anything."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from ifkd.core.errors import CheckpointError, MissingExtraError
from ifkd.models.mobile_sam.encoder import MobileSamEncoder
from ifkd.models.mobile_sam.masks import MobileSamMasks, build_mobile_sam_masks


@pytest.fixture(scope="module")
def masks() -> MobileSamMasks:
    return build_mobile_sam_masks("random")


def images(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


def published_form(masks: MobileSamMasks) -> dict[str, Tensor]:
    """Return tensors of the package's decoder and prompt encoder with the names of mobile_sam.pt."""
    prompts = PromptEncoder(256, (64, 64), (1024, 1024), 16)
    decoder = MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048))
    parts: dict[str, nn.Module] = {"prompt_encoder": prompts, "mask_decoder": decoder}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


def test_the_decoder_equals_the_packages(masks: MobileSamMasks) -> None:
    """Compare with SAM's prompt encoder without a prompt, on its 64x64 grid."""
    embedding = torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sparse, dense = masks.prompt_encoder(points=None, boxes=None, masks=None)
        expected, _ = masks.mask_decoder(
            image_embeddings=embedding,
            image_pe=masks.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        found = masks.decode(embedding)
    assert found.shape == (1, 1, 256, 256)
    assert torch.equal(found, expected)
    assert found.std() > 0


def test_each_image_has_its_own_mask_without_padding(masks: MobileSamMasks) -> None:
    seen = images()
    both = masks(seen, input_px="native")
    assert both.shape == (2, 1, 16, 24)
    assert not both.requires_grad
    for row in range(2):
        torch.testing.assert_close(masks(seen[row : row + 1], input_px="native"), both[row : row + 1])
    assert masks(seen, input_px=128).shape == (2, 1, 22, 32)
    with torch.no_grad():
        padded = masks.decode(masks.encoder.embed_padded(seen[:1], input_px=128))
    assert padded.shape == (1, 1, 32, 32)
    torch.testing.assert_close(masks(seen[:1], input_px=128), padded[:, :, :22])


def test_the_model_is_frozen(masks: MobileSamMasks) -> None:
    assert not any(parameter.requires_grad for parameter in masks.parameters())
    assert not any(module.training for module in masks.train().modules())


def test_the_published_names_load(tmp_path: Path, masks: MobileSamMasks, monkeypatch: pytest.MonkeyPatch) -> None:
    state = published_form(masks)
    assert len([name for name in state if name.startswith("prompt_encoder.")]) == 17
    assert len([name for name in state if name.startswith("mask_decoder.")]) == 120
    torch.save(state, tmp_path / "sam.pt")
    monkeypatch.setattr("ifkd.models.mobile_sam.masks.build_mobile_sam", lambda _: MobileSamEncoder())
    loaded = build_mobile_sam_masks(str(tmp_path / "sam.pt"))
    for part in ("prompt_encoder", "mask_decoder"):
        for name, value in getattr(loaded, part).state_dict().items():
            assert torch.equal(value, state[f"{part}.{name}"]), name
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, tmp_path / "sam.pt")
    with pytest.raises(CheckpointError, match="does not contain MobileSAM's mask decoder"):
        build_mobile_sam_masks(str(tmp_path / "sam.pt"))


def test_the_error_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def absent(name: str, *given: Any) -> Any:
        if name.startswith("segment_anything"):
            raise ModuleNotFoundError(name)
        return real(name, *given)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match="segment-anything"):
        MobileSamMasks(MobileSamEncoder())
