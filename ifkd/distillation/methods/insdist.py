"""InsDist (Li et al., TGRS 2023): features by instance, and how instances relate to each other.

The part on relations is derived from the paper's abstract, as its code is not published; results should say so.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.adapters import Adapters, in_float
from ifkd.distillation.box_masks import image_size, in_cells
from ifkd.distillation.methods.method import Method, NetworkPair, Term, weighted
from ifkd.distillation.pixelwise_losses import squared_distance
from ifkd.models import Targets

WEIGHTS: dict[recipe.Family, dict[str, float]] = {
    "retinanet": {"foreground": 4.2e-4, "background": 2.1e-4},
    "faster_rcnn": {"foreground": 7e-5, "background": 3.5e-5},
}
MASK_LEVEL: recipe.Level = "p5"
"""The level, of stride 32, on which instances are outlined."""
EPSILON = 1e-8
"""Below a root, whose gradient at 0 would be infinite."""
ROI_SIDE = 7
CANONICAL_PX, CANONICAL_LEVEL = 224, 4
"""An instance of this side is pooled from this level, one of twice the side from the next."""


class InsDist(Method):
    """Instance-wise distillation. Its roots are of whole batches: of a process's own images."""

    def __init__(self, config: recipe.InsDistOptions, student: NetworkPair) -> None:
        super().__init__()
        self.config = config
        self.names = student.levels
        self.adapters = Adapters(student, kernel=1)
        family = student.family
        self._weights = WEIGHTS[family] | config.model_dump(include=set(WEIGHTS[family]), exclude_none=True)

    def losses(self, views: DistillationBatch) -> dict[str, Term]:
        """Return the terms of instances, of the rest, and of relations."""
        adapted, teacher = self.adapters(views.student.pyramid), in_float(views.teacher.pyramid)
        size = image_size(views.student, self.names)
        mask = instance_mask(
            teacher[self.names.index(MASK_LEVEL)], views.targets, size, threshold=self.config.threshold
        )
        foreground, background = [], []
        for t, s in zip(teacher, adapted, strict=True):
            inside = functional.interpolate(mask, t.shape[2:], mode="nearest")
            errors = squared_distance(t, s)
            foreground.append(((errors * inside).sum() + EPSILON).sqrt())
            background.append(((errors * (1 - inside)).sum() + EPSILON).sqrt())
        relation = relation_loss(self._instances(adapted, views.targets), self._instances(teacher, views.targets),
                                 torch.cat([target.labels for target in views.targets]))  # fmt: skip
        return {
            "foreground": weighted(torch.stack(foreground).sum(), self._weights["foreground"]),
            "background": weighted(torch.stack(background).sum(), self._weights["background"]),
            "relation": weighted(relation, self.config.relation),
        }

    def _instances(self, pyramid: list[Tensor], targets: list[Targets]) -> Float[Tensor, "instances values"]:
        """Return unit vectors of what lies in each object's box, image after image."""
        numbers = [int(name[1:]) for name in self.names]
        boxes = torch.cat([target.boxes for target in targets])
        images = torch.cat([torch.full((len(target.boxes),), n) for n, target in enumerate(targets)]).to(boxes)
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0.0).prod(dim=1).sqrt()
        wanted = (CANONICAL_LEVEL + torch.log2(sides / CANONICAL_PX + 1e-6)).floor().clamp(numbers[0], numbers[-1])
        found = boxes.new_zeros((len(boxes), pyramid[0].shape[1] * ROI_SIDE**2))
        for number, features in zip(numbers, pyramid, strict=True):
            rows = (wanted == number).nonzero()[:, 0]
            regions = torch.cat([images[rows, None], boxes[rows]], dim=1)
            pooled = roi_align(features, regions, ROI_SIDE, 1 / 2**number, 2).flatten(1)
            found = found.index_copy(0, rows, pooled)
        return functional.normalize(found, dim=1)


@torch.no_grad()
def instance_mask(
    features: Float[Tensor, "batch channels height width"],
    targets: list[Targets],
    size: tuple[int, int],
    *,
    threshold: float,
) -> Float[Tensor, "batch 1 height width"]:
    """Return 1 where a cell resembles the mean cell of some object of its image, 0 elsewhere.

    Args:
        features: The teacher's, of one level.
        targets: The objects of each image.
        size: The images' (height, width), pixels.
        threshold: Energy above which a cell belongs to an object.
    """
    mask = torch.zeros_like(features[:, :1])
    shape = (features.shape[2], features.shape[3])
    limit = torch.tensor([shape[1] - 1, shape[0] - 1] * 2, device=features.device)
    for of_image, cells, target in zip(mask[:, 0], features, targets, strict=True):
        ends = in_cells(target.boxes, shape, size).long().clamp(max=limit)
        for left, top, right, bottom in ends.tolist():
            own = slice(top, bottom + 1), slice(left, right + 1)
            prototype = cells[:, own[0], own[1]].mean(dim=(1, 2))
            energy = torch.einsum("chw,c->hw", cells, prototype)
            if left == right or top == bottom or energy.amax() <= 0:
                of_image[own] = 1.0
            else:
                of_image[(energy - energy.amin()) / energy.amax() > threshold] = 1.0
    return mask


def relation_loss(
    student: Float[Tensor, "instances values"],
    teacher: Float[Tensor, "instances values"],
    labels: Int64[Tensor, " instances"],
) -> Float[Tensor, ""]:
    """Return how far cosines between instances differ: half the mean over pairs of a class, half over other pairs."""
    apart = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = labels[:, None] == labels[None, :]
    differences = (student @ student.T - teacher.detach() @ teacher.detach().T).square()
    total = differences.new_zeros(())
    for pairs in (same & apart, ~same):
        total = total + (differences * pairs).sum() / pairs.sum().clamp_min(1) / 2
    return total
