"""FKD (Zhang and Ma, ICLR 2021): features under both networks' attention, attention, and non-local relations."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.fgd import channel_attention, spatial_attention
from ifkd.distillation.methods.method import Method, NetworkPair, Term, make_term
from ifkd.models.detector import FeatureMap, Scalar

WEIGHTS: dict[recipe.Family, dict[str, float]] = {
    "retinanet": {"feature": 4.2e-4, "attention": 2.4e-2, "non_local": 4.2e-4},
    "faster_rcnn": {"feature": 7e-5, "attention": 4e-3, "non_local": 7e-5},
}
TEMPERATURES: dict[recipe.Family, float] = {"retinanet": 0.1, "faster_rcnn": 0.5}
INNER_CHANNELS, POOL_SIZES = (64, 64, 128, 128, 128), (8, 4, 2, 2, 2)
"""Of the non-local blocks, by level, finest first."""
AnyMap = Float[Tensor, "batch _ height width"]
EPSILON = 1e-12
"""Added under a root, whose gradient at 0 is infinite."""


class Fkd(Method):
    """Feature-based knowledge distillation. Norms are over the batch, as published: of this process's images."""

    def __init__(self, config: recipe.FkdOptions, networks: NetworkPair) -> None:
        super().__init__(config, networks)
        family = networks.family
        self._weights = networks.weights(WEIGHTS, config)
        self._temperature = config.temperature or TEMPERATURES[family]
        self._channel_mask = family == "retinanet" if config.channel_mask is None else config.channel_mask
        self.of_levels = nn.ModuleList(
            FkdLevel(networks.channels, networks.teacher_channels, inner=inner, pool=pool)
            for inner, pool in zip(INNER_CHANNELS, POOL_SIZES, strict=True)
        )

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return the three terms, summed over levels."""
        batch = self.scaled(batch)
        sums = {name: batch.student.pyramid[0].new_zeros((), dtype=torch.float32) for name in self._weights}
        for layers, student, teacher in zip(self.of_levels, batch.student.pyramid, batch.teacher.pyramid, strict=True):
            values = layers(student, teacher, temperature=self._temperature, channel_mask=self._channel_mask)
            sums = {name: sums[name] + value for name, value in zip(sums, values, strict=True)}
        return {name: make_term(value, self._weights[name]) for name, value in sums.items()}


class FkdLevel(nn.Module):
    """Learned layers of one level: four adapters of the student, and a non-local block for each network."""

    def __init__(self, channels: int, teacher_channels: int, *, inner: int, pool: int) -> None:
        super().__init__()
        self.feature = nn.Conv2d(channels, teacher_channels, 1)
        self.channels = nn.Linear(channels, teacher_channels)
        self.places = nn.Conv2d(1, 1, 3, padding=1)
        self.of_student = NonLocal(channels, inner=inner, pool=pool)
        self.of_teacher = NonLocal(teacher_channels, inner=inner, pool=pool)
        self.relations = nn.Conv2d(channels, teacher_channels, 1)

    def forward(
        self, student: AnyMap, teacher: AnyMap, *, temperature: float, channel_mask: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the terms of features, attention and relations."""
        student, teacher = student.float(), teacher.float()
        adapted = self.feature(student)
        with torch.no_grad():
            mask = (spatial_attention(teacher, temperature) + spatial_attention(student, temperature)) / 2
            if channel_mask:
                own = student if student.shape[1] == teacher.shape[1] else adapted
                channels = channel_attention(teacher, temperature) + channel_attention(own, temperature)
                mask = mask * (channels / 2)
        feature = root_of_sum((teacher - adapted).square() * mask)
        channel_means = teacher.mean(dim=(2, 3)) - self.channels(student.mean(dim=(2, 3)))
        spatial_means = teacher.mean(dim=1, keepdim=True) - self.places(student.mean(dim=1, keepdim=True))
        relations = self.of_teacher(teacher) - self.relations(self.of_student(student))
        attention = root_of_sum(channel_means.square()) + root_of_sum(spatial_means.square())
        return feature, attention, root_of_sum(relations.square())


class NonLocal(nn.Module):
    """Non-local block (Wang et al. 2018, dot product), initialized as the identity."""

    def __init__(self, channels: int, *, inner: int, pool: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        last = BatchNorm(channels)
        nn.init.zeros_(last.weight)
        self.back = nn.Sequential(nn.Conv2d(inner, channels, 1), last)
        self._pool = pool

    def forward(self, features: FeatureMap) -> FeatureMap:
        """Return the map with its non-local relations added."""
        kernel = [min(self._pool, side) for side in features.shape[2:]]
        theta = self.theta(features).flatten(2)
        phi = functional.max_pool2d(self.phi(features), kernel).flatten(2)
        g = functional.max_pool2d(self.g(features), kernel).flatten(2)
        # (θᵀφ) g, in the order that needs no matrix of all pairs of locations.
        phi_g = torch.einsum("bip,bjp->bij", phi, g) / phi.shape[2]
        relations = torch.einsum("bip,bij->bjp", theta, phi_g)
        output: Tensor = self.back(relations.view(len(features), -1, *features.shape[2:]))
        return features + output


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization that uses its running statistics where a channel has a single value."""

    def forward(self, features: FeatureMap) -> FeatureMap:
        """Return the normalized map."""
        if self.training and features[:, 0].numel() == 1:
            return functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(features)


def root_of_sum(squares: Tensor) -> Scalar:
    """Return the square root of the sum of all elements."""
    return (squares.sum() + EPSILON).sqrt()
