"""CWD (Shu et al., ICCV 2021): each channel spreads its activity over the image as the teacher's does."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.method import Method, NetworkPair, Term, weighted


class Cwd(Method):
    """The divergence of each channel's softmax over places; nothing in it learns."""

    def __init__(self, config: recipe.CwdOptions, student: NetworkPair) -> None:
        super().__init__()
        self.config = config
        chosen = recipe.select_levels(config.levels, student.levels)
        self._levels = [student.levels.index(level) for level in chosen]

    def losses(self, views: DistillationBatch) -> dict[str, Term]:
        """Return the sum over levels of KL(teacher || student), mean over images and channels, times T²."""
        divergences = [
            channel_divergence(views.student.pyramid[level], views.teacher.pyramid[level], self.config.temperature)
            for level in self._levels
        ]
        return {"feature": weighted(torch.stack(divergences).sum(), self.config.weight)}


def channel_divergence(
    student: Float[Tensor, "batch channels height width"],
    teacher: Float[Tensor, "batch channels height width"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Return T² times the mean over images and channels of the divergence of their softmax over places."""
    answered = (student.float().flatten(2) / temperature).log_softmax(dim=2)
    wanted = (teacher.float().flatten(2) / temperature).log_softmax(dim=2)
    total = functional.kl_div(answered, wanted, reduction="sum", log_target=True)
    return temperature**2 * total / answered[:, :, 0].numel()
