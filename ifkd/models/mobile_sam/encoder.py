"""MobileSAM's image encoder, frozen: timm's TinyViT with SAM's neck, and the published weights (arXiv 2306.14289)."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers.norm import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn
from torch.nn import functional

from ifkd.core.errors import CheckpointError, ConfigError
from ifkd.core.files import sha256_of

InputSize = int | Literal["native"]
"""Long side of the encoder's input, pixels, or the images as they are."""
STRIDE = 16
EMBEDDING_CHANNELS = 256
CHECKPOINT_NAME = "mobile_sam.pt"
CHECKPOINT_URL = "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt"
CHECKPOINT_BYTES = 40_728_226
CHECKPOINT_SHA256 = "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"
RANDOM_SEED = 20240
"""Seed of the stand-in weights, so that two machines have the same stand-in."""


class MobileSamEncoder(nn.Module):
    """Images to embeddings of stride 16 and 256 channels. It never learns: no gradient, always in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        trunk: Any = TinyVit(
            embed_dims=(64, 128, 160, 320),
            depths=(2, 2, 6, 2),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
            num_classes=0,
            global_pool="",
        )
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
        """Stay in eval mode, whatever is asked."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch 3 height width"], *, input_px: InputSize
    ) -> Float[Tensor, "batch 256 rows columns"]:
        """Return the embedding of normalized images, cut to the part that shows them.

        Args:
            images: Normalized with ImageNet's statistics, as the detectors take them.
            input_px: The long side is brought to this (SAM was trained at 1024) and the short side padded with
                zeros to it; `native` leaves the images as they are and pads to a multiple of 16.
        """
        height, width = input_size((images.shape[2], images.shape[3]), input_px)
        return self.padded(images, input_px=input_px)[:, :, : -(-height // STRIDE), : -(-width // STRIDE)]

    @torch.no_grad()
    def padded(
        self, images: Float[Tensor, "batch 3 height width"], *, input_px: InputSize
    ) -> Float[Tensor, "batch 256 rows columns"]:
        """Return the embedding of normalized images with the padding, as SAM's mask decoder takes it."""
        size = input_size((images.shape[2], images.shape[3]), input_px)
        if size != images.shape[2:]:
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        canvas = (_next_multiple(size[0]), _next_multiple(size[1])) if input_px == "native" else (input_px, input_px)
        padded = functional.pad(images, (0, canvas[1] - size[1], 0, canvas[0] - size[0]))
        embedding: Tensor = self.neck(self.trunk.forward_features(padded))
        return embedding


def build_mobile_sam(weights: str) -> MobileSamEncoder:
    """Return the image encoder with its weights.

    Args:
        weights: `mobile_sam` for the published checkpoint at `checkpoint_place()`, `random` for seeded stand-in
            weights of the same network (for tests and demonstrations, never for results), or a path.

    Raises:
        CheckpointError: The checkpoint is absent, or not the published one.
    """
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return MobileSamEncoder()
    path, state = read_weights(weights)
    encoder = MobileSamEncoder()
    load_part(encoder, encoder_state(state), path, "encoder")
    return encoder


def read_weights(weights: str) -> tuple[Path, dict[str, Tensor]]:
    """Return the place and the tensors of MobileSAM's whole checkpoint: `mobile_sam`, the published one, or a path.

    Raises:
        CheckpointError: It is absent, not the published one, or not a checkpoint.
    """
    path = checkpoint_place() if weights == "mobile_sam" else Path(weights)
    if not path.is_file():
        raise CheckpointError(
            f"MobileSAM's weights are not at {path}",
            hint=f"Download {CHECKPOINT_URL} ({CHECKPOINT_BYTES:,} bytes, sha256 {CHECKPOINT_SHA256}) "
            'to that place, or set distillation.method.ede.weights = "random" for a stand-in.',
        )
    if weights == "mobile_sam" and (digest := sha256_of(path)) != CHECKPOINT_SHA256:
        raise CheckpointError(
            f"{path} is not MobileSAM's published checkpoint",
            got=f"sha256 {digest}, {path.stat().st_size:,} bytes",
            expected=f"{CHECKPOINT_SHA256}, {CHECKPOINT_BYTES:,} bytes",
            hint=f"Download it again from {CHECKPOINT_URL}",
        )
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} does not hold MobileSAM's weights ({error})") from error
    return path, state


def load_part(module: nn.Module, state: dict[str, Tensor], path: Path, part: str) -> None:
    """Load a part of MobileSAM, every tensor of it.

    Raises:
        CheckpointError: Names or shapes do not fit.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not hold MobileSAM's {part} ({error})") from error


def checkpoint_place() -> Path:
    """Return where the published checkpoint belongs: the cache folder, or $IFKD_CACHE when it is set."""
    cache = os.environ.get("IFKD_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ifkd")  # noqa: PTH118
    return Path(cache).expanduser() / CHECKPOINT_NAME


def available_weights(weights: str) -> str:
    """Return `weights`, or `random` when the published checkpoint was asked for and is absent."""
    return "random" if weights == "mobile_sam" and not checkpoint_place().is_file() else weights


def encoder_state(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's part of MobileSAM's state dict under our names; the unused classifier is left out."""
    prefix = "image_encoder."
    state = {}
    for name, value in checkpoint.items():
        if name.startswith(prefix) and not name.startswith((f"{prefix}norm_head.", f"{prefix}head.")):
            state[_renamed(name.removeprefix(prefix))] = value
    return state


def _renamed(name: str) -> str:
    """Return timm's name of a tensor of MobileSAM's TinyViT."""
    parts = name.split(".")
    if parts[0] == "neck":
        return name
    if parts[0] == "patch_embed":
        parts = ["patch_embed", {"0": "conv1", "2": "conv2"}[parts[2]], *parts[3:]]
    else:
        stage = int(parts[1])
        # MobileSAM shrinks the map at the end of a layer, timm at the start of the next stage.
        parts = ["stages", str(stage + 1 if parts[2] == "downsample" else stage), *parts[2:]]
    if parts[-2] == "c":
        parts[-2] = "conv"
    return "trunk." + ".".join(parts)


def input_size(size: tuple[int, int], input_px: InputSize) -> tuple[int, int]:
    """Return the size to which images of `size` (height, width) are brought before they are padded, pixels."""
    if input_px == "native":
        return size
    scale = input_px / max(size)
    return int(scale * size[0] + 0.5), int(scale * size[1] + 0.5)


def _next_multiple(length: int) -> int:
    return -(-length // STRIDE) * STRIDE


def check_input_px(input_px: InputSize) -> None:
    """Refuse a size the encoder cannot take.

    Raises:
        ConfigError: It is not a multiple of 16.
    """
    if input_px != "native" and input_px % STRIDE:
        raise ConfigError("distillation.method.ede.input_px must be a multiple of 16", got=input_px)
