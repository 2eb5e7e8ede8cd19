"""MobileSAM's image encoder, frozen: timm's TinyViT, SAM's neck and the published weights (arXiv 2306.14289)."""

from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers.norm import LayerNorm2d
from timm.models.tiny_vit import tiny_vit_5m_224
from torch import Tensor, nn
from torch.nn import functional

from ifkd.core.errors import CheckpointError
from ifkd.core.files import cache_folder, sha256_of
from ifkd.models.detector import Images

InputSize = int | Literal["native"]
"""Long side of the encoder's input, pixels; `native` keeps the size of the images."""
STRIDE = 16
EMBEDDING_CHANNELS = 256
CHECKPOINT_NAME = "mobile_sam.pt"
CHECKPOINT_URL = "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt"
CHECKPOINT_BYTES = 40_728_226
CHECKPOINT_SHA256 = "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"
RANDOM_SEED = 20240
"""Seed of random weights, so that they are equal on all machines."""


class MobileSamEncoder(nn.Module):
    """Images to embeddings of stride 16 and 256 channels. Always in eval mode, without gradient."""

    def __init__(self) -> None:
        super().__init__()
        trunk: Any = tiny_vit_5m_224(num_classes=0, global_pool="")
        trunk.head = nn.Identity()
        # SAM keeps stride 16 in the last stage, where TinyViT halves the map.
        trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.trunk = trunk
        self.neck = nn.Sequential(
            nn.Conv2d(320, EMBEDDING_CHANNELS, 1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS, eps=1e-6),
            nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, 3, padding=1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS, eps=1e-6),
        )
        self.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> "MobileSamEncoder":  # noqa: ARG002, FBT001, FBT002
        """Stay in eval mode."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, images: Images, *, input_px: InputSize) -> Float[Tensor, "batch 256 rows columns"]:
        """Return the embedding of normalized images without the padding.

        They are resized to the long side `input_px` (SAM was trained at 1024) and padded with zeros to a square;
        `native` only pads them to a multiple of 16.
        """
        height, width = resized_size((images.shape[2], images.shape[3]), input_px)
        return self.embed_padded(images, input_px=input_px)[:, :, : -(-height // STRIDE), : -(-width // STRIDE)]

    @torch.no_grad()
    def embed_padded(self, images: Images, *, input_px: InputSize) -> Float[Tensor, "batch 256 rows columns"]:
        """Return the embedding of normalized images with the padding, the input of SAM's mask decoder."""
        size = resized_size((images.shape[2], images.shape[3]), input_px)
        if size != images.shape[2:]:
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        height, width = (-(-side // STRIDE) * STRIDE if input_px == "native" else input_px for side in size)
        padded = functional.pad(images, (0, width - size[1], 0, height - size[0]))
        embedding: Tensor = self.neck(self.trunk.forward_features(padded))
        return embedding


def build_mobile_sam(weights: str) -> MobileSamEncoder:
    """Return the image encoder with weights as in `read_mobile_sam`, or seeded `random` ones (never for results).

    Raises:
        CheckpointError: The checkpoint is missing, or is not the published one.
    """
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return MobileSamEncoder()
    path, state = read_mobile_sam(weights)
    encoder = MobileSamEncoder()
    load_part(encoder, encoder_state(state), path, "encoder")
    return encoder


def read_mobile_sam(weights: str) -> tuple[Path, dict[str, Tensor]]:
    """Return the path and the tensors of a MobileSAM checkpoint: `mobile_sam` (the published one) or a path.

    Raises:
        CheckpointError: The file is missing, is not the published one, or is not a checkpoint.
    """
    path = default_checkpoint_path() if weights == "mobile_sam" else Path(weights)
    if not path.is_file():
        raise CheckpointError(
            f"MobileSAM's weights are missing at {path}",
            hint=f"Download {CHECKPOINT_URL} ({CHECKPOINT_BYTES:,} bytes, sha256 {CHECKPOINT_SHA256}) "
            'to that path, or set distillation.method.ede.weights = "random" for a demonstration.',
        )
    if weights == "mobile_sam" and (digest := sha256_of(path)) != CHECKPOINT_SHA256:
        got = f"sha256 {digest}, {path.stat().st_size:,} bytes"
        expected = f"{CHECKPOINT_SHA256}, {CHECKPOINT_BYTES:,} bytes"
        hint = f"Download it again from {CHECKPOINT_URL}"
        raise CheckpointError(f"{path} is not MobileSAM's published checkpoint", got=got, expected=expected, hint=hint)
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} does not contain MobileSAM's weights ({error})") from error
    return path, state


def load_part(module: nn.Module, state: dict[str, Tensor], path: Path, part: str) -> None:
    """Load all tensors of a part of MobileSAM.

    Raises:
        CheckpointError: Names or shapes do not match.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not contain MobileSAM's {part} ({error})") from error


def default_checkpoint_path() -> Path:
    """Return the path of the published checkpoint in $IFKD_CACHE or, if that is not set, in the user's cache folder."""
    return cache_folder() / CHECKPOINT_NAME


def available_weights(weights: str) -> str:
    """Return `weights`, or `random` if it is `mobile_sam` and the published checkpoint is missing."""
    return "random" if weights == "mobile_sam" and not default_checkpoint_path().is_file() else weights


def encoder_state(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's part of MobileSAM's state dict with timm's names, without the unused classifier."""
    prefix = "image_encoder."
    return {
        _timm_name(name.removeprefix(prefix)): value
        for name, value in checkpoint.items()
        if name.startswith(prefix) and not name.startswith((f"{prefix}norm_head.", f"{prefix}head."))
    }


def _timm_name(name: str) -> str:
    """Return timm's name of a tensor of MobileSAM's TinyViT."""
    parts = name.split(".")
    if parts[0] == "neck":
        return name
    if parts[0] == "patch_embed":
        parts = ["patch_embed", {"0": "conv1", "2": "conv2"}[parts[2]], *parts[3:]]
    else:
        stage = int(parts[1])
        # MobileSAM downsamples at the end of a layer, timm at the start of the next stage.
        parts = ["stages", str(stage + 1 if parts[2] == "downsample" else stage), *parts[2:]]
    if parts[-2] == "c":
        parts[-2] = "conv"
    return "trunk." + ".".join(parts)


def resized_size(size: tuple[int, int], input_px: InputSize) -> tuple[int, int]:
    """Return the size to which images of `size` (height, width) are resized before the padding, pixels."""
    if input_px == "native":
        return size
    scale = input_px / max(size)
    return int(scale * size[0] + 0.5), int(scale * size[1] + 0.5)
