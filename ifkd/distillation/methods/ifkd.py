"""IFKD: information fusion with knowledge distillation (Zhang and Yang, ACM MM 2024)."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks, world_size
from ifkd.distillation import DistillationBatch
from ifkd.distillation.adapters import Adapters, in_float
from ifkd.distillation.ede import EdeGate, activation, resized, width_projection
from ifkd.distillation.fdr import FrequencyFilter, feature_richness, reconstruct
from ifkd.distillation.hsm import similarity_mask
from ifkd.distillation.methods.attention_transfer import attention_transfer
from ifkd.distillation.methods.method import Method, NetworkPair, Term, warmup_factor, weighted
from ifkd.distillation.methods.roi_distillation import roi_divergence
from ifkd.distillation.pixelwise_losses import cross_entropy, entropy, squared_distance

REFERENCE_CHANNELS = 256
"""The width that alpha was chosen for; with `feature_scale = auto` a narrower channel sum counts as this many."""
SMALLEST_NORMALIZER = 1e-6
Maps = list[Tensor]
"""One map for each level."""


class IfkdMethod(Method):
    """L_feat and L_head, weighted by HSM; the feature target is the teacher's features through FDR plus EDE."""

    config: recipe.IfkdOptions

    def __init__(self, config: recipe.IfkdOptions, student: NetworkPair) -> None:
        super().__init__()
        self.config = config
        self.levels = student.levels
        self._second_stage = student.second_stage
        self._dense_head = config.head.enabled and config.head.frcnn_head != "roi"
        self._region_head = config.head.enabled and config.head.frcnn_head != "rpn"
        width = student.teacher_channels
        self.adapters = Adapters(
            student, kernel=config.adapter.kernel, shared=config.adapter.shared, bias=config.adapter.bias
        )
        self.filters = nn.ModuleDict()
        if config.fdr.enabled and config.fdr.filter != "none":
            chosen = recipe.select_levels(config.fdr.levels, student.levels)
            self.filters.update({level: FrequencyFilter(width, config.fdr) for level in chosen})
        gated = config.ede.enabled and config.ede.form == "gate"
        self.gate = EdeGate(width, residual=config.ede.residual) if gated else None
        self.projection: Tensor | None
        self.register_buffer("projection", width_projection(width), persistent=False)
        automatic = config.feature_scale == "auto"
        self._scales = [config.reference_rms / max(rms, 1e-12) if automatic else 1.0 for rms in student.feature_rms]
        self._seed = int(torch.randint(1 << 40, ()))
        self._channel_factor = 1 / width
        if config.channel_reduction == "sum":
            self._channel_factor = REFERENCE_CHANNELS / width if automatic else 1.0

    def losses(self, views: DistillationBatch) -> dict[str, Term]:
        """Return alpha L_feat and beta L_head (eq. 14) with their warm-up; and AT's term when it is asked for."""
        teacher = self.scaled(views.teacher.pyramid)
        adapted = self.adapters(views.student.pyramid)
        weights = self._weights(teacher, adapted)
        feature = self._feature_loss(views, teacher, adapted, weights)
        warm = warmup_factor(views.iteration, self.config.warmup_iters)
        terms = {
            "feature": weighted(feature, self.config.alpha, warm=warm),
            "head": weighted(self._head_loss(views, weights), self.config.beta, warm=warm),
        }
        if self._region_head:
            assert self._second_stage is not None, "recipes ask for the regions of two-stage detectors alone"
            divergence = roi_divergence(views.student.sampled[0], views.teacher, self._second_stage)
            terms["regions"] = weighted(divergence, self.config.beta, warm=warm)
        if self.config.with_at:
            difference = attention_transfer(views.student.pyramid, views.teacher.pyramid)
            terms["attention"] = weighted(difference, recipe.AttentionTransferOptions().weight)
        return terms

    def scaled(self, pyramid: tuple[Tensor, ...]) -> Maps:
        """Return the teacher's maps in float32, at the scale that the losses work at."""
        return [level * scale for level, scale in zip(in_float(pyramid), self._scales, strict=True)]

    def _feature_loss(self, views: DistillationBatch, teacher: Maps, adapted: Maps, weights: Maps) -> Tensor:
        """Return L_feat (eq. 12)."""
        # Draws of FDR depend on seed and iteration alone, so that a resumed run repeats them.
        generator = torch.Generator().manual_seed(self._seed + views.iteration)
        active = self.active(views.embedding)
        total = teacher[0].new_zeros(())
        for level, name in enumerate(self.levels):
            target, student = self.reconstructed(
                name, teacher[level], adapted[level], views.teacher.logits[level], active, generator
            )
            total = total + (weights[level] * squared_distance(target, student)).sum()
        return total * self._channel_factor

    def _head_loss(self, views: DistillationBatch, weights: Maps) -> Tensor:
        """Return L_head (eq. 13)."""
        total = weights[0].new_zeros(())
        if self._dense_head:
            for weight, student, teacher in zip(weights, views.student.logits, views.teacher.logits, strict=True):
                errors = cross_entropy(student, teacher)
                if self.config.head.kind == "kl":
                    errors = errors - entropy(teacher)
                total = total + (weight * errors).sum()
        return total

    def _weights(self, teacher: Maps, adapted: Maps) -> Maps:
        """Return M_HSM/N_l of each level, whose sum over a batch is 1 on average over the ranks.

        N_l is a constant, and under data-parallel training its mean over the ranks; so is the norm that HSM's
        automatic scale goes by. Gradients that are averaged over ranks are then those of all images in one process.
        """
        if not self.config.hsm.enabled:
            return [level.new_full((1, 1, 1, 1), 1 / level[:, 0].numel()).expand_as(level[:, :1]) for level in teacher]
        masks = self.masks(teacher, adapted)
        match self.config.norm:
            case "mask":
                sums = mean_over_ranks(torch.stack([mask.detach().sum() for mask in masks]))
                return [mask / total for mask, total in zip(masks, sums.clamp_min(SMALLEST_NORMALIZER), strict=True)]
            case "image":
                sums_by_image = [mask.detach().sum((1, 2, 3), keepdim=True) for mask in masks]
                return [
                    mask / (total.clamp_min(SMALLEST_NORMALIZER) * len(mask))
                    for mask, total in zip(masks, sums_by_image, strict=True)
                ]
            case _:
                return [mask / mask.numel() for mask in masks]

    def masks(self, teacher: Maps, adapted: Maps) -> Maps:
        """Return M_HSM of each level (eq. 11), before it is divided by N_l."""
        norms: list[Tensor | None] = [None] * len(teacher)
        if world_size() > 1:
            means = [torch.linalg.vector_norm(level, dim=1).mean() for level in teacher]
            norms = list(mean_over_ranks(torch.stack(means)))
        return [
            similarity_mask(t, s, self.config.hsm, mean_norm=norm)
            for t, s, norm in zip(teacher, adapted, norms, strict=True)
        ]

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Return the convolutions, and apart the filters, which decay would shrink toward a trivial target."""
        learning = [*self.adapters.parameters(), *(self.gate.parameters() if self.gate is not None else ())]
        groups: list[dict[str, object]] = [{"params": learning, "weight_decay": weight_decay}]
        filters = [parameter for parameter in self.filters.parameters() if parameter.requires_grad]
        return [*groups, {"params": filters, "weight_decay": 0.0}] if filters else groups

    def active(self, embedding: Tensor | None) -> Tensor | None:
        """Return what EDE resizes to each level: the sigmoid of the embedding, projected to the pyramid's width."""
        if embedding is None or not self.config.ede.enabled:
            return None
        if self.projection is not None and self.config.ede.source == "embedding":
            embedding = functional.conv2d(embedding, self.projection)
        return activation(embedding, center=self.config.ede.center)

    def reconstructed(
        self,
        name: recipe.Level,
        teacher: Float[Tensor, "b c h w"],
        adapted: Float[Tensor, "b c h w"],
        teacher_logits: Tensor,
        active: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Return T_l of eq. 12 and the student's side of it."""
        ede, fdr = self.config.ede, self.config.fdr
        if ede.order == "ede_then_fdr":
            teacher = self.disturbed(name, teacher, active)
        if fdr.enabled and name in recipe.select_levels(fdr.levels, self.levels):
            r = fdr.r if fdr.r_range is None else _uniform(*fdr.r_range, generator)
            applies = not self.training or _uniform(0.0, 1.0, generator) < fdr.p
            mask = feature_richness(teacher_logits) if applies else None
            filter_ = cast("FrequencyFilter", self.filters[name]) if fdr.filter != "none" else None
            teacher = reconstruct(teacher, mask, r=r, frequency_filter=filter_)
            if fdr.apply_to == "both":
                adapted = reconstruct(adapted, mask, r=r, frequency_filter=filter_)
        if ede.order == "add_to_target":
            teacher = self.disturbed(name, teacher, active)
        return teacher, adapted

    def share(self, name: recipe.Level, shape: tuple[int, int], active: Tensor | None) -> Tensor | None:
        """Return phi_EDE at a level's size (eq. 2); None where EDE is off."""
        if active is None or name not in recipe.select_levels(self.config.ede.levels, self.levels):
            return None
        return resized(active, shape, interp=self.config.ede.interp)

    def disturbed(self, name: recipe.Level, features: Tensor, active: Tensor | None) -> Tensor:
        """Return a level's features with EDE, where it is on (eq. 1)."""
        ede = self.config.ede
        share = self.share(name, (features.shape[2], features.shape[3]), active)
        if share is None:
            return features
        if self.gate is not None:
            gated: Tensor = self.gate(features, ede.weight * share)
            return gated
        return torch.add(features, share, alpha=ede.weight)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
