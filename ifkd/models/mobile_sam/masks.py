"""MobileSAM's mask without a prompt: its encoder, and SAM's prompt encoder and mask decoder on top, all frozen."""

import importlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ifkd.core.errors import MissingExtraError
from ifkd.models.mobile_sam.encoder import (
    EMBEDDING_CHANNELS,
    RANDOM_SEED,
    InputSize,
    MobileSamEncoder,
    build_mobile_sam,
    input_size,
    load_part,
    read_weights,
)

MASK_STRIDE = 4


class MobileSamMasks(nn.Module):
    """Images to the logits of the one mask that SAM draws when nothing is asked for, of stride 4. It never learns."""

    def __init__(self, encoder: MobileSamEncoder) -> None:
        """Put SAM's decoder on an encoder.

        Raises:
            MissingExtraError: The package segment-anything is absent.
        """
        super().__init__()
        try:
            sam: Any = importlib.import_module("segment_anything.modeling")
        except ModuleNotFoundError as error:
            raise MissingExtraError("segment-anything", extra="train", need='ede.source = "mask"') from error
        self.encoder = encoder
        grid = (64, 64)
        self.prompt_encoder = sam.PromptEncoder(
            embed_dim=EMBEDDING_CHANNELS, image_embedding_size=grid, input_image_size=(1024, 1024), mask_in_chans=16
        )
        self.mask_decoder = sam.MaskDecoder(
            num_multimask_outputs=3,
            transformer=sam.TwoWayTransformer(depth=2, embedding_dim=EMBEDDING_CHANNELS, mlp_dim=2048, num_heads=8),
            transformer_dim=EMBEDDING_CHANNELS,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        )
        self.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> "MobileSamMasks":  # noqa: ARG002, FBT001, FBT002
        """Stay in eval mode, whatever is asked."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch 3 height width"], *, input_px: InputSize
    ) -> Float[Tensor, "batch 1 rows columns"]:
        """Return mask logits of normalized images, cut to the part that shows them.

        The decoder gets no point or box and the learned embedding of "no mask"; it answers for one image at a time.
        """
        embedding = self.encoder.padded(images, input_px=input_px)
        masks = torch.cat([self.decode(embedding[row : row + 1]) for row in range(len(embedding))])
        height, width = input_size((images.shape[2], images.shape[3]), input_px)
        return masks[:, :, : -(-height // MASK_STRIDE), : -(-width // MASK_STRIDE)]

    def decode(self, embedding: Float[Tensor, "1 256 rows columns"]) -> Float[Tensor, "1 1 fine_rows fine_columns"]:
        """Return the logits of the mask of an embedding of any size, at four times its resolution."""
        size = (embedding.shape[2], embedding.shape[3])
        place = self.prompt_encoder.pe_layer(size).unsqueeze(0)
        no_mask = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(1, -1, *size)
        logits, _ = self.mask_decoder(
            image_embeddings=embedding,
            image_pe=place,
            sparse_prompt_embeddings=embedding.new_zeros(1, 0, EMBEDDING_CHANNELS),
            dense_prompt_embeddings=no_mask,
            multimask_output=False,
        )
        mask: Tensor = logits
        return mask


def build_mobile_sam_masks(weights: str) -> MobileSamMasks:
    """Return encoder and decoder with the weights of one checkpoint (see `build_mobile_sam`).

    Raises:
        CheckpointError: The checkpoint is absent, or does not hold them.
        MissingExtraError: The package segment-anything is absent.
    """
    encoder = build_mobile_sam(weights)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED + 1)
            return MobileSamMasks(encoder)
    masks = MobileSamMasks(encoder)
    path, state = read_weights(weights)
    for part in ("prompt_encoder", "mask_decoder"):
        own = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
        load_part(getattr(masks, part), own, path, part.replace("_", " "))
    return masks
