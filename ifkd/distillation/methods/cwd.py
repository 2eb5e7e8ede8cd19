"""CWD, channel-wise distillation (Shu et al., ICCV 2021): spatial distribution of each channel."""

import torch
from torch.nn import functional

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.method import Method, NetworkPair, Term, make_term, width_adapters
from ifkd.models.detector import FeatureMap, Scalar


class Cwd(Method):
    """KL divergence of each channel's softmax over locations."""

    def __init__(self, config: recipe.CwdOptions, networks: NetworkPair) -> None:
        super().__init__(config, networks)
        self._levels = networks.level_indices(config.levels)
        self.adapters = width_adapters(networks, len(self._levels))

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return the sum over levels of `channel_divergence`."""
        batch = self.scaled(batch)
        pyramids = zip(batch.student.pyramid, batch.teacher.pyramid, strict=True)
        pairs = [pair for level, pair in enumerate(pyramids) if level in self._levels]
        divergences = [
            channel_divergence(adapter(student), teacher, self.config.temperature)
            for adapter, (student, teacher) in zip(self.adapters, pairs, strict=True)
        ]
        return {"feature": make_term(torch.stack(divergences).sum(), self.config.weight)}


def channel_divergence(student: FeatureMap, teacher: FeatureMap, temperature: float) -> Scalar:
    """Return T² times KL(teacher || student) of the softmax over locations, mean over images and channels."""
    student_log = (student.float().flatten(2) / temperature).log_softmax(dim=2)
    teacher_log = (teacher.float().flatten(2) / temperature).log_softmax(dim=2)
    total = functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return temperature**2 * total / student_log[:, :, 0].numel()
