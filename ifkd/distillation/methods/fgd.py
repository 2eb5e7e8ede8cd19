"""FGD (Yang et al., CVPR 2022): objects and background apart under the teacher's attention, and global context."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.box_masks import image_size, touched_cells
from ifkd.distillation.methods.method import Method, NetworkPair, Term, weighted
from ifkd.models import Detector, Targets

WEIGHTS: dict[recipe.Family, dict[str, float]] = {
    "retinanet": {"foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "context": 5e-6},
    "faster_rcnn": {"foreground": 5e-5, "background": 2.5e-5, "attention": 5e-5, "context": 5e-7},
}
LEVELS: dict[recipe.Family, recipe.LevelChoice] = {"retinanet": "all", "faster_rcnn": "four_finest"}


class Fgd(Method):
    """Focal and global distillation. Sums run over channels and places, means over images."""

    def __init__(self, config: recipe.FgdOptions, student: NetworkPair) -> None:
        super().__init__()
        self.config = config
        self.names = student.levels
        given = config.model_dump(include=set(WEIGHTS[student.family]), exclude_none=True)
        self._weights = WEIGHTS[student.family] | given
        chosen = recipe.select_levels(config.levels or LEVELS[student.family], student.levels)
        self._levels = [student.levels.index(level) for level in chosen]
        width = student.teacher_channels
        same = student.channels == width
        self.adapters = nn.ModuleList(nn.Identity() if same else nn.Conv2d(student.channels, width, 1) for _ in chosen)
        self.of_teacher = nn.ModuleList(GlobalContext(width) for _ in chosen)
        self.of_student = nn.ModuleList(GlobalContext(width) for _ in chosen)

    def losses(self, views: DistillationBatch) -> dict[str, Term]:
        """Return the four terms, summed over levels."""
        sums = {name: views.student.pyramid[0].new_zeros((), dtype=torch.float32) for name in self._weights}
        size = image_size(views.student, self.names)
        for place, level in enumerate(self._levels):
            student = self.adapters[place](views.student.pyramid[level]).float()
            teacher = views.teacher.pyramid[level].float()
            found = self._of_level(place, student, teacher, views.targets, size)
            sums = {name: sums[name] + value for name, value in found.items()}
        return {name: weighted(value, self._weights[name]) for name, value in sums.items()}

    def _of_level(
        self, place: int, student: Tensor, teacher: Tensor, targets: list[Targets], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        temperature = self.config.temperature
        foreground, background = object_masks(targets, (student.shape[2], student.shape[3]), size)
        spatial, channel = spatial_attention(teacher, temperature), channel_attention(teacher, temperature)
        errors = ((teacher - student).square() * channel).sum(dim=1) * spatial[:, 0]
        own_spatial, own_channel = spatial_attention(student, temperature), channel_attention(student, temperature)
        context = (self.of_teacher[place](teacher) - self.of_student[place](student)).square().sum()
        sums = {
            "foreground": (errors * foreground).sum(),
            "background": (errors * background).sum(),
            "attention": (channel - own_channel).abs().sum() + (spatial - own_spatial).abs().sum(),
            "context": context,
        }
        return {name: value / len(student) for name, value in sums.items()}


@torch.no_grad()
def inherit(student: Detector, teacher: Detector) -> list[str]:
    """Let a student's pyramid and head begin with the teacher's weights, where names and shapes are equal.

    Returns:
        The names of what was taken over.
    """
    given = teacher.state_dict()
    taken = []
    for name, own in student.state_dict().items():
        beyond_backbone = not name.startswith("backbone.") or name.startswith("backbone.fpn.")
        if beyond_backbone and name in given and given[name].shape == own.shape:
            own.copy_(given[name])
            taken.append(name)
    return taken


class GlobalContext(nn.Module):
    """A map with what its whole image says added to every place (Cao et al. 2019); at first it adds nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key = nn.Conv2d(channels, 1, 1)
        nn.init.kaiming_normal_(self.key.weight, mode="fan_in")
        inner = max(1, channels // 2)
        last = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.change = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.LayerNorm([inner, 1, 1]), nn.ReLU(inplace=True), last
        )

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the map with its context."""
        share = self.key(features).flatten(2).softmax(dim=2)
        context = torch.einsum("bcp,bop->bc", features.flatten(2), share)[:, :, None, None]
        return features + self.change(context)


def spatial_attention(
    features: Float[Tensor, "batch channels height width"], temperature: float
) -> Float[Tensor, "batch 1 height width"]:
    """Return the softmax over places of the channels' mean magnitude, times the number of places."""
    magnitude = features.abs().mean(dim=1, keepdim=True)
    share = functional.softmax(magnitude.flatten(2) / temperature, dim=2)
    return magnitude[0].numel() * share.view_as(magnitude)


def channel_attention(
    features: Float[Tensor, "batch channels height width"], temperature: float
) -> Float[Tensor, "batch channels 1 1"]:
    """Return the softmax over channels of the places' mean magnitude, times the number of channels."""
    magnitude = features.abs().mean(dim=(2, 3), keepdim=True)
    return features.shape[1] * functional.softmax(magnitude / temperature, dim=1)


def object_masks(
    targets: list[Targets], shape: tuple[int, int], size: tuple[int, int]
) -> tuple[Float[Tensor, "batch height width"], Float[Tensor, "batch height width"]]:
    """Return the masks of objects and of background on a map of `shape`, for images of `size` (height, width).

    A cell of an object counts one over the object's number of cells, that of several objects their largest share;
    a cell of the background one over the number of such cells in its image.
    """
    foreground = targets[0].boxes.new_zeros((len(targets), *shape))
    for mask, target in zip(foreground, targets, strict=True):
        for left, top, right, bottom in touched_cells(target.boxes, shape, size).tolist():
            part = mask[top : bottom + 1, left : right + 1]
            part.clamp_(min=1.0 / part.numel())
    background = (foreground == 0).float()
    return foreground, background / background.sum(dim=(1, 2), keepdim=True).clamp_min(1.0)
