"""FGD (Yang et al., CVPR 2022): objects and background separately under the teacher's attention; global context."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.method import Method, NetworkPair, Term, make_term, width_adapters
from ifkd.models.detector import Detector, FeatureMap, LocationMap, Targets

WEIGHTS: dict[recipe.Family, dict[str, float]] = {
    "retinanet": {"foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "context": 5e-6},
    "faster_rcnn": {"foreground": 5e-5, "background": 2.5e-5, "attention": 5e-5, "context": 5e-7},
}
LEVELS: dict[recipe.Family, recipe.LevelChoice] = {"retinanet": "all", "faster_rcnn": "four_finest"}


class Fgd(Method):
    """Focal and global distillation: sums over channels and locations, means over images."""

    def __init__(self, config: recipe.FgdOptions, networks: NetworkPair) -> None:
        super().__init__(config, networks)
        self._weights = networks.weights(WEIGHTS, config)
        self._levels = networks.level_indices(config.levels or LEVELS[networks.family])
        count, width = len(self._levels), networks.teacher_channels
        self.adapters = width_adapters(networks, count)
        self.of_teacher = nn.ModuleList(GlobalContext(width) for _ in range(count))
        self.of_student = nn.ModuleList(GlobalContext(width) for _ in range(count))

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return the four terms, summed over levels."""
        batch = self.scaled(batch)
        sums = {name: batch.student.pyramid[0].new_zeros((), dtype=torch.float32) for name in self._weights}
        size = self.networks.image_size(batch.student)
        for index, level in enumerate(self._levels):
            student = self.adapters[index](batch.student.pyramid[level]).float()
            teacher = batch.teacher.pyramid[level].float()
            values = self._losses_of_level(index, student, teacher, batch.targets, size)
            sums = {name: sums[name] + value for name, value in values.items()}
        return {name: make_term(value, self._weights[name]) for name, value in sums.items()}

    def _losses_of_level(
        self, index: int, student: Tensor, teacher: Tensor, targets: list[Targets], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        temperature = self.config.temperature
        foreground, background = object_masks(targets, (student.shape[2], student.shape[3]), size)
        spatial, channel = spatial_attention(teacher, temperature), channel_attention(teacher, temperature)
        errors = ((teacher - student).square() * channel).sum(dim=1) * spatial[:, 0]
        own_spatial, own_channel = spatial_attention(student, temperature), channel_attention(student, temperature)
        sums = {
            "foreground": (errors * foreground).sum(),
            "background": (errors * background).sum(),
            "attention": (channel - own_channel).abs().sum() + (spatial - own_spatial).abs().sum(),
            "context": (self.of_teacher[index](teacher) - self.of_student[index](student)).square().sum(),
        }
        return {name: value / len(student) for name, value in sums.items()}


@torch.no_grad()
def inherit(student: Detector, teacher: Detector) -> list[str]:
    """Copy the teacher's weights to the student's FPN and head where names and shapes match; return their names."""
    given = teacher.state_dict()
    copied = []
    for name, own in student.state_dict().items():
        if not name.startswith("backbone.body.") and name in given and given[name].shape == own.shape:
            own.copy_(given[name])
            copied.append(name)
    return copied


class GlobalContext(nn.Module):
    """Global context block (Cao et al. 2019), initialized as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, 1, 1)
        nn.init.kaiming_normal_(self.key.weight, mode="fan_in")
        inner = max(1, channels // 2)
        last = nn.Conv2d(inner, channels, 1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.change = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.LayerNorm([inner, 1, 1]), nn.ReLU(inplace=True), last
        )

    def forward(self, features: FeatureMap) -> FeatureMap:
        """Return the map with its context added."""
        weights = self.key(features).flatten(2).softmax(dim=2)
        context = torch.einsum("bcp,bop->bc", features.flatten(2), weights)[:, :, None, None]
        return features + self.change(context)


def spatial_attention(features: FeatureMap, temperature: float) -> LocationMap:
    """Return the softmax over locations of the mean magnitude of channels, times the number of locations."""
    magnitude = features.abs().mean(dim=1, keepdim=True)
    attention = functional.softmax(magnitude.flatten(2) / temperature, dim=2)
    return magnitude[0].numel() * attention.view_as(magnitude)


def channel_attention(features: FeatureMap, temperature: float) -> Float[Tensor, "batch channels 1 1"]:
    """Return the softmax over channels of the mean magnitude of locations, times the number of channels."""
    magnitude = features.abs().mean(dim=(2, 3), keepdim=True)
    return features.shape[1] * functional.softmax(magnitude / temperature, dim=1)


def boxes_in_cells(
    boxes: Float[Tensor, "objects 4"], shape: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "objects 4"]:
    """Return boxes (pixels of images of `size`) in cells of a map of `shape`; both are (height, width)."""
    scale_x, scale_y = shape[1] / size[1], shape[0] / size[0]
    return boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])


def object_masks(
    targets: list[Targets], shape: tuple[int, int], size: tuple[int, int]
) -> tuple[Float[Tensor, "batch height width"], Float[Tensor, "batch height width"]]:
    """Return the masks of objects and of background on a map of `shape`, for images of `size` (height, width).

    A cell of an object has 1 over the object's number of cells, and the largest such value if objects overlap; a
    background cell has 1 over the number of background cells of its image.
    """
    foreground = targets[0].boxes.new_zeros((len(targets), *shape))
    last = torch.tensor([shape[1] - 1, shape[0] - 1] * 2, device=foreground.device)
    for mask, target in zip(foreground, targets, strict=True):
        cells = boxes_in_cells(target.boxes, shape, size)
        ends = torch.cat([cells[:, :2].floor(), cells[:, 2:].ceil()], dim=1).long().clamp(min=0).minimum(last)
        for left, top, right, bottom in ends.tolist():
            part = mask[top : bottom + 1, left : right + 1]
            part.clamp_(min=1.0 / part.numel())
    background = (foreground == 0).float()
    return foreground, background / background.sum(dim=(1, 2), keepdim=True).clamp_min(1.0)
