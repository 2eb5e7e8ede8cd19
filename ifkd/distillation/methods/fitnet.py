"""FitNet's hint (Romero et al. 2015) on every level of a pyramid, without a stage of its own."""

import torch

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.adapters import Adapters, in_float
from ifkd.distillation.methods.method import Method, NetworkPair, Term, weighted


class FitNet(Method):
    """The mean squared difference of the teacher's features and the student's through a 1x1 convolution."""

    def __init__(self, config: recipe.FitNetOptions, student: NetworkPair) -> None:
        super().__init__()
        self.config = config
        self.adapters = Adapters(student, kernel=1, shared=config.shared, bias=config.bias)

    def losses(self, views: DistillationBatch) -> dict[str, Term]:
        """Return the sum over levels of the mean over all elements, or its mean over levels."""
        pairs = zip(self.adapters(views.student.pyramid), in_float(views.teacher.pyramid), strict=True)
        errors = torch.stack([(student - teacher).square().mean() for student, teacher in pairs])
        return {"feature": weighted(errors.mean() if self.config.level_mean else errors.sum(), self.config.weight)}
