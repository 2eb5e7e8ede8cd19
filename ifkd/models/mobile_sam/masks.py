"""MobileSAM's mask without a prompt, frozen: its image encoder, SAM's prompt encoder and mask decoder."""

import importlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ifkd.core.errors import MissingExtraError
from ifkd.models.detector import Images
from ifkd.models.mobile_sam.encoder import (
    EMBEDDING_CHANNELS,
    RANDOM_SEED,
    InputSize,
    MobileSamEncoder,
    build_mobile_sam,
    load_part,
    read_mobile_sam,
    resized_size,
)

MASK_STRIDE = 4


class MobileSamMasks(nn.Module):
    """Images to the logits of SAM's single mask without a prompt, stride 4. Always in eval mode, without gradient."""

    def __init__(self, encoder: MobileSamEncoder) -> None:
        """Add SAM's decoder to an encoder.

        Raises:
            MissingExtraError: The package segment-anything is not installed.
        """
        super().__init__()
        try:
            sam: Any = importlib.import_module("segment_anything.modeling")
        except ModuleNotFoundError as error:
            raise MissingExtraError("segment-anything", extra="train", need='ede.source = "mask"') from error
        self.encoder = encoder
        self.prompt_encoder = sam.PromptEncoder(
            embed_dim=EMBEDDING_CHANNELS, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16
        )
        transformer = sam.TwoWayTransformer(depth=2, embedding_dim=EMBEDDING_CHANNELS, mlp_dim=2048, num_heads=8)
        self.mask_decoder = sam.MaskDecoder(transformer_dim=EMBEDDING_CHANNELS, transformer=transformer)
        self.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> "MobileSamMasks":  # noqa: ARG002, FBT001, FBT002
        """Stay in eval mode."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, images: Images, *, input_px: InputSize) -> Float[Tensor, "batch 1 rows columns"]:
        """Return mask logits of normalized images without the padding.

        The decoder gets no point or box and the learned embedding of "no mask", one image at a time.
        """
        embedding = self.encoder.embed_padded(images, input_px=input_px)
        masks = torch.cat([self.decode(embedding[row : row + 1]) for row in range(len(embedding))])
        height, width = resized_size((images.shape[2], images.shape[3]), input_px)
        return masks[:, :, : -(-height // MASK_STRIDE), : -(-width // MASK_STRIDE)]

    def decode(self, embedding: Float[Tensor, "1 256 rows columns"]) -> Float[Tensor, "1 1 fine_rows fine_columns"]:
        """Return the mask logits of an embedding of any size, at four times its resolution."""
        size = (embedding.shape[2], embedding.shape[3])
        no_mask = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(1, -1, *size)
        mask: Tensor = self.mask_decoder(
            image_embeddings=embedding,
            image_pe=self.prompt_encoder.pe_layer(size).unsqueeze(0),
            sparse_prompt_embeddings=embedding.new_zeros(1, 0, EMBEDDING_CHANNELS),
            dense_prompt_embeddings=no_mask,
            multimask_output=False,
        )[0]
        return mask


def build_mobile_sam_masks(weights: str) -> MobileSamMasks:
    """Return encoder and decoder with the weights of one checkpoint (see `build_mobile_sam`).

    Raises:
        CheckpointError: The checkpoint is missing or incomplete.
        MissingExtraError: The package segment-anything is not installed.
    """
    encoder = build_mobile_sam(weights)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED + 1)
            return MobileSamMasks(encoder)
    masks = MobileSamMasks(encoder)
    path, state = read_mobile_sam(weights)
    for part in ("prompt_encoder", "mask_decoder"):
        own = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
        load_part(getattr(masks, part), own, path, part.replace("_", " "))
    return masks
