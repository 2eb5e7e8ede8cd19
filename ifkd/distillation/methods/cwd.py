"""CWD, channel-wise distillation (Shu et al., ICCV 2021): spatial distribution of each channel."""

import torch
from torch.nn import functional

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.method import Method, NetworkPair, Term, make_term
from ifkd.models.detector import FeatureMap, Scalar


class Cwd(Method):
    """KL divergence of each channel's softmax over locations. It has no parameters."""

    def __init__(self, config: recipe.CwdOptions, networks: NetworkPair) -> None:
        super().__init__(config, networks)
        self._levels = networks.level_indices(config.levels)

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return the sum over levels of `channel_divergence`."""
        student, teacher, temperature = batch.student.pyramid, batch.teacher.pyramid, self.config.temperature
        divergences = [channel_divergence(student[level], teacher[level], temperature) for level in self._levels]
        return {"feature": make_term(torch.stack(divergences).sum(), self.config.weight)}


def channel_divergence(student: FeatureMap, teacher: FeatureMap, temperature: float) -> Scalar:
    """Return T² times KL(teacher || student) of the softmax over locations, mean over images and channels."""
    student_log = (student.float().flatten(2) / temperature).log_softmax(dim=2)
    teacher_log = (teacher.float().flatten(2) / temperature).log_softmax(dim=2)
    total = functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return temperature**2 * total / student_log[:, :, 0].numel()
