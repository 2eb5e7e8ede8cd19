"""AT, attention transfer (Zagoruyko and Komodakis 2017): spatial attention maps, independent of channels."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.method import Method, NetworkPair, Term, make_term
from ifkd.models.detector import FeatureMap, Scalar


class AttentionTransfer(Method):
    """Mean squared difference of attention maps. It has no parameters, and the numbers of channels may differ."""

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return the squared difference of attention maps."""
        difference = attention_transfer(batch, self.config, self.networks)
        return {"attention": make_term(difference, self.config.weight)}


def attention(features: FeatureMap) -> Float[Tensor, "batch cells"]:
    """Return the mean square over channels of each cell, normalized to a unit vector for each image."""
    return functional.normalize(features.float().square().mean(dim=1).flatten(1), dim=1)


def attention_transfer(batch: DistillationBatch, config: recipe.AttentionOptions, networks: NetworkPair) -> Scalar:
    """Return the weighted mean over levels of the mean squared difference of attention maps.

    The difference of one cell of n decreases with n, and so does its weight in the mean over cells. Weights
    proportional to n squared (`cells`) therefore give every cell of every level the same influence.
    """
    levels = networks.level_indices(config.levels)
    pairs = [(attention(batch.student.pyramid[n]), attention(batch.teacher.pyramid[n])) for n in levels]
    differences = torch.stack([(student - teacher).square().mean() for student, teacher in pairs])
    cells = differences.new_tensor([float(student.shape[1]) for student, _ in pairs])
    weights = cells.square() if config.level_weights == "cells" else torch.ones_like(cells)
    return (weights * differences).sum() / weights.sum()
