"""FitNet hints (Romero et al. 2015) on all levels of a pyramid, in one training stage."""

import torch

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.method import Adapters, Method, NetworkPair, Term, in_float, make_term


class FitNet(Method):
    """Mean squared difference of the teacher's features and the student's, adapted by a 1x1 convolution."""

    def __init__(self, config: recipe.FitNetOptions, networks: NetworkPair) -> None:
        super().__init__(config, networks)
        self.adapters = Adapters(networks, kernel=1)

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return the sum over levels of the mean over elements."""
        batch = self.scaled(batch)
        pairs = zip(self.adapters(batch.student.pyramid), in_float(batch.teacher.pyramid), strict=True)
        errors = torch.stack([(student - teacher).square().mean() for student, teacher in pairs])
        return {"feature": make_term(errors.sum(), self.config.weight)}
