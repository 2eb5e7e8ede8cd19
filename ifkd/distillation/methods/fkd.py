"""FKD (Zhang and Ma, ICLR 2021): features under both networks' attention, attention itself, relations of places."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.fgd import channel_attention, spatial_attention
from ifkd.distillation.methods.method import Method, NetworkPair, Term, weighted

WEIGHTS: dict[recipe.Family, dict[str, float]] = {
    "retinanet": {"feature": 4.2e-4, "attention": 2.4e-2, "non_local": 4.2e-4},
    "faster_rcnn": {"feature": 7e-5, "attention": 4e-3, "non_local": 7e-5},
}
TEMPERATURES: dict[recipe.Family, float] = {"retinanet": 0.1, "faster_rcnn": 0.5}
INNER_WIDTHS, POOL_SIDES = (64, 64, 128, 128, 128), (8, 4, 2, 2, 2)
"""Of the non-local blocks, by level, finest first."""
EPSILON = 1e-12
"""Below a root, whose gradient at 0 would be infinite."""


class Fkd(Method):
    """Feature-based knowledge distillation. Its norms are of whole batches, as published: of a process's own images."""

    def __init__(self, config: recipe.FkdOptions, student: NetworkPair) -> None:
        super().__init__()
        self.config = config
        family = student.family
        self._weights = WEIGHTS[family] | config.model_dump(include=set(WEIGHTS[family]), exclude_none=True)
        self._temperature = config.temperature or TEMPERATURES[family]
        self._channel_mask = family == "retinanet" if config.channel_mask is None else config.channel_mask
        self.of_levels = nn.ModuleList(
            FkdLevel(student.channels, student.teacher_channels, inner=inner, pool=pool)
            for inner, pool in zip(INNER_WIDTHS, POOL_SIDES, strict=True)
        )

    def losses(self, views: DistillationBatch) -> dict[str, Term]:
        """Return the three terms, summed over levels."""
        sums = {name: views.student.pyramid[0].new_zeros((), dtype=torch.float32) for name in self._weights}
        for part, student, teacher in zip(self.of_levels, views.student.pyramid, views.teacher.pyramid, strict=True):
            found = part(student.float(), teacher.float(), self._temperature, self._channel_mask)
            sums = {name: sums[name] + value for name, value in zip(sums, found, strict=True)}
        return {name: weighted(value, self._weights[name]) for name, value in sums.items()}


class FkdLevel(nn.Module):
    """What FKD learns on one level: four ways from the student to the teacher, and a non-local block of each."""

    def __init__(self, channels: int, teacher_channels: int, *, inner: int, pool: int) -> None:
        super().__init__()
        self.feature = nn.Conv2d(channels, teacher_channels, 1)
        self.channels = nn.Linear(channels, teacher_channels)
        self.places = nn.Conv2d(1, 1, 3, padding=1)
        self.of_student = NonLocal(channels, inner=inner, pool=pool)
        self.of_teacher = NonLocal(teacher_channels, inner=inner, pool=pool)
        self.relations = nn.Conv2d(channels, teacher_channels, 1)

    def forward(
        self,
        student: Float[Tensor, "batch _ height width"],
        teacher: Float[Tensor, "batch _ height width"],
        temperature: float,
        channel_mask: bool,  # noqa: FBT001
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the terms of features, attention and relations."""
        adapted = self.feature(student)
        with torch.no_grad():
            mask = spatial_attention(teacher, temperature) + spatial_attention(student, temperature)
            mask = mask / 2
            if channel_mask:
                own = student if student.shape[1] == teacher.shape[1] else adapted
                channels = channel_attention(teacher, temperature) + channel_attention(own, temperature)
                mask = mask * (channels / 2)
        feature = root((teacher - adapted).square() * mask)
        by_channel = teacher.mean(dim=(2, 3)) - self.channels(student.mean(dim=(2, 3)))
        by_place = teacher.mean(dim=1, keepdim=True) - self.places(student.mean(dim=1, keepdim=True))
        relations = self.of_teacher(teacher) - self.relations(self.of_student(student))
        return feature, root(by_channel.square()) + root(by_place.square()), root(relations.square())


class NonLocal(nn.Module):
    """A map with the relations of its places added (Wang et al. 2018, dot product); at first it adds nothing."""

    def __init__(self, channels: int, *, inner: int, pool: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        last = nn.BatchNorm2d(channels)
        nn.init.zeros_(last.weight)
        self.back = nn.Sequential(nn.Conv2d(inner, channels, 1), last)
        self._pool = pool

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the map with its relations."""
        sides = [min(self._pool, side) for side in features.shape[2:]]
        asked = self.theta(features).flatten(2)
        known = functional.max_pool2d(self.phi(features), sides).flatten(2)
        said = functional.max_pool2d(self.g(features), sides).flatten(2)
        # (θᵀφ) g, in the order that needs no matrix of all pairs of places.
        gathered = torch.einsum("bip,bjp->bij", known, said) / known.shape[2]
        answer = torch.einsum("bip,bij->bjp", asked, gathered)
        changed: Tensor = self.back(answer.view(len(features), -1, *features.shape[2:]))
        return features + changed


def root(squares: Tensor) -> Float[Tensor, ""]:
    """Return the square root of the sum of all elements."""
    return (squares.sum() + EPSILON).sqrt()
