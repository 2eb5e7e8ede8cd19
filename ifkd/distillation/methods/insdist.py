"""InsDist (Li et al., TGRS 2023): features by instance, and relations between instances.

The relation loss is derived from the paper's abstract, because its code is not published; results should say so.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.fgd import boxes_in_cells
from ifkd.distillation.methods.method import Adapters, Method, NetworkPair, Term, in_float, make_term
from ifkd.distillation.pixelwise_losses import squared_distance
from ifkd.models.detector import FeatureMap, LocationMap, Scalar, Targets

WEIGHTS: dict[recipe.Family, dict[str, float]] = {
    "retinanet": {"foreground": 4.2e-4, "background": 2.1e-4},
    "faster_rcnn": {"foreground": 7e-5, "background": 3.5e-5},
}
MASK_LEVEL: recipe.Level = "p5"
"""Level of the instance mask; its stride is 32."""
EPSILON = 1e-8
"""Added under a root, whose gradient at 0 is infinite."""
ROI_SIDE, SAMPLING_RATIO = 7, 2
CANONICAL_PX, CANONICAL_LEVEL = 224, 4
"""An instance of this size is pooled from this level, one of twice the size from the next."""


class InsDist(Method):
    """Instance-wise distillation. Roots are over the batch: of this process's images."""

    def __init__(self, config: recipe.InsDistOptions, networks: NetworkPair) -> None:
        super().__init__(config, networks)
        self.adapters = Adapters(networks, kernel=1)
        self._weights = networks.weights(WEIGHTS, config)

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return the terms of instances, of background and of relations."""
        batch = self.scaled(batch)
        adapted, teacher = self.adapters(batch.student.pyramid), in_float(batch.teacher.pyramid)
        size = self.networks.image_size(batch.student)
        features = teacher[self.networks.levels.index(MASK_LEVEL)]
        mask = instance_mask(features, batch.targets, size, threshold=self.config.threshold)
        foreground, background = [], []
        for t, s in zip(teacher, adapted, strict=True):
            inside = functional.interpolate(mask, t.shape[2:], mode="nearest")
            errors = squared_distance(t, s)
            foreground.append(((errors * inside).sum() + EPSILON).sqrt())
            background.append(((errors * (1 - inside)).sum() + EPSILON).sqrt())
        labels = torch.cat([target.labels for target in batch.targets])
        own, of_teacher = (self._instance_vectors(pyramid, batch.targets) for pyramid in (adapted, teacher))
        relation = relation_loss(own, of_teacher, labels)
        return {
            "foreground": make_term(torch.stack(foreground).sum(), self._weights["foreground"]),
            "background": make_term(torch.stack(background).sum(), self._weights["background"]),
            "relation": make_term(relation, self.config.relation),
        }

    def _instance_vectors(self, pyramid: list[Tensor], targets: list[Targets]) -> Float[Tensor, "instances values"]:
        """Return the features pooled from each object's box as unit vectors, image after image."""
        levels = [int(name[1:]) for name in self.networks.levels]
        boxes = torch.cat([target.boxes for target in targets])
        images = torch.cat([torch.full((len(target.boxes),), n) for n, target in enumerate(targets)]).to(boxes)
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0.0).prod(dim=1).sqrt()
        level_of = (CANONICAL_LEVEL + torch.log2(sides / CANONICAL_PX + 1e-6)).floor().clamp(levels[0], levels[-1])
        vectors = boxes.new_zeros((len(boxes), pyramid[0].shape[1] * ROI_SIDE**2))
        for level, features in zip(levels, pyramid, strict=True):
            rows = (level_of == level).nonzero()[:, 0]
            rois = torch.cat([images[rows, None], boxes[rows]], dim=1)
            pooled = roi_align(features, rois, ROI_SIDE, 1 / 2**level, SAMPLING_RATIO).flatten(1)
            vectors = vectors.index_copy(0, rows, pooled)
        return functional.normalize(vectors, dim=1)


@torch.no_grad()
def instance_mask(
    features: FeatureMap, targets: list[Targets], size: tuple[int, int], *, threshold: float
) -> LocationMap:
    """Return 1 for cells whose energy is above `threshold` for any object's mean cell, 0 elsewhere."""
    mask = torch.zeros_like(features[:, :1])
    shape = (features.shape[2], features.shape[3])
    limit = torch.tensor([shape[1] - 1, shape[0] - 1] * 2, device=features.device)
    for of_image, cells, target in zip(mask[:, 0], features, targets, strict=True):
        ends = boxes_in_cells(target.boxes, shape, size).long().clamp(max=limit)
        for left, top, right, bottom in ends.tolist():
            box = slice(top, bottom + 1), slice(left, right + 1)
            prototype = cells[:, box[0], box[1]].mean(dim=(1, 2))
            energy = torch.einsum("chw,c->hw", cells, prototype)
            if left == right or top == bottom or energy.amax() <= 0:
                of_image[box] = 1.0
            else:
                of_image[(energy - energy.amin()) / energy.amax() > threshold] = 1.0
    return mask


def relation_loss(
    student: Float[Tensor, "instances values"],
    teacher: Float[Tensor, "instances values"],
    labels: Int64[Tensor, " instances"],
) -> Scalar:
    """Return half the mean squared difference of cosines over pairs of one class, plus half that over other pairs."""
    distinct = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same_class = labels[:, None] == labels[None, :]
    differences = (student @ student.T - teacher.detach() @ teacher.detach().T).square()
    total = differences.new_zeros(())
    for pairs in (same_class & distinct, ~same_class):
        total = total + (differences * pairs).sum() / pairs.sum().clamp_min(1) / 2
    return total
