"""IFKD: information fusion with knowledge distillation (Zhang and Yang, ACM MM 2024)."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks, world_size
from ifkd.distillation import DistillationBatch
from ifkd.distillation.ede import EdeGate, activate, resize, width_projection
from ifkd.distillation.fdr import FrequencyFilter, feature_richness, reconstruct
from ifkd.distillation.hsm import similarity_mask
from ifkd.distillation.methods.attention_transfer import attention_transfer
from ifkd.distillation.methods.method import (
    Adapters,
    Method,
    NetworkPair,
    Term,
    feature_scales,
    in_float,
    make_term,
    warmup_factor,
)
from ifkd.distillation.pixelwise_losses import cross_entropy, entropy, squared_distance, weighted_sum
from ifkd.models.detector import DetectorOutput, FeatureMap, SampledRois, Scalar, SecondStage

REFERENCE_CHANNELS = 256
"""Number of channels for which alpha was chosen; `feature_scale = "auto"` scales the sum over channels to it."""
SMALLEST_NORMALIZER = 1e-6
Maps = list[Tensor]
"""One map for each level."""
Pair = tuple[Maps, Maps]
"""Maps of the teacher and of the student."""


class IfkdMethod(Method):
    """L_feat and L_head, weighted by HSM. The feature target is FDR of the teacher's features plus EDE."""

    balanced_by_term = True
    config: recipe.IfkdOptions

    def __init__(self, config: recipe.IfkdOptions, networks: NetworkPair) -> None:
        super().__init__(config, networks)
        self._dense_head = config.head.enabled and config.head.frcnn_head != "roi"
        self._roi_head = config.head.enabled and config.head.frcnn_head != "rpn"
        width = networks.teacher_channels
        adapter = config.adapter
        self.adapters = Adapters(networks, kernel=adapter.kernel, shared=adapter.shared, bias=adapter.bias)
        self.filters = nn.ModuleDict()
        if config.fdr.enabled and config.fdr.filter != "none":
            chosen = recipe.select_levels(config.fdr.levels, networks.levels)
            self.filters.update({level: FrequencyFilter(width, config.fdr) for level in chosen})
        gated = config.ede.enabled and config.ede.form == "gate"
        self.gate = EdeGate(width, residual=config.ede.residual) if gated else None
        self.projection: Tensor | None
        self.register_buffer("projection", width_projection(width), persistent=False)
        self._scales = feature_scales(networks, config)
        self._seed = int(torch.randint(1 << 40, ()))
        self._channel_factor = 1 / width
        if config.channel_reduction == "sum":
            self._channel_factor = REFERENCE_CHANNELS / width if config.feature_scale == "auto" else 1.0

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return alpha L_feat and beta L_head (eq. 14) with their warm-up, and AT's term with `with_at`."""
        teacher = self.scale_teacher(batch.teacher.pyramid)
        adapted = self.adapters(batch.student.pyramid)
        # FDR's random draws depend only on seed and iteration, so that a resumed run repeats them.
        generator = torch.Generator().manual_seed(self._seed + batch.iteration)
        pairs = self.feature_pairs(batch, teacher, adapted, generator)
        weights = self._location_weights(*self.compared(pairs, (teacher, adapted)))
        feature = weighted_sum(weights, map(squared_distance, *pairs)) * self._channel_factor
        head, minimum = self._head_loss(batch, weights)
        warmup = warmup_factor(batch.iteration, self.config.warmup_iters)
        terms = {
            "feature": make_term(feature, self.config.alpha, warmup=warmup),
            "head": make_term(head, self.config.beta, warmup=warmup, minimum=minimum),
        }
        if self._roi_head:
            second_stage = self.networks.second_stage
            assert second_stage is not None, "recipes allow `frcnn_head` for two-stage detectors only"
            divergence = roi_divergence(batch.student.sampled[0], batch.teacher, second_stage)
            terms["regions"] = make_term(divergence, self.config.beta, warmup=warmup)
        if self.config.with_at:
            difference = attention_transfer(batch, self.config.at, self.networks)
            terms["attention"] = make_term(difference, self.config.at.weight)
        return terms

    def scale_teacher(self, pyramid: tuple[Tensor, ...]) -> Maps:
        """Return the teacher's maps in float32, scaled to `reference_rms` with `feature_scale = "auto"`."""
        return [level * scale for level, scale in zip(in_float(pyramid), self._scales, strict=True)]

    def feature_pairs(self, batch: DistillationBatch, teacher: Maps, adapted: Maps, generator: torch.Generator) -> Pair:
        """Return T and S of eq. 12 of every level."""
        activation = self.ede_activation(batch.embedding)
        levels = zip(self.networks.levels, teacher, adapted, batch.teacher.logits, strict=True)
        pairs = [self.feature_pair(*level, activation, generator) for level in levels]
        return [target for target, _ in pairs], [student for _, student in pairs]

    def compared(self, pairs: Pair, raw: Pair) -> Pair:
        """Return the teacher's and the student's maps that HSM compares: those of eq. 12, or the raw ones."""
        return pairs if self.config.hsm.reference == "target" else raw

    def _head_loss(self, batch: DistillationBatch, weights: Maps) -> tuple[Tensor, Tensor]:
        """Return L_head (eq. 13) and its minimum: the teacher's entropy, or 0 with `kl`."""
        total, minimum = weights[0].new_zeros(()), weights[0].new_zeros(())
        if self._dense_head:
            positives = self.networks.count_positives(batch) if self.config.head.norm == "positives" else None
            for of_level, student, teacher in zip(weights, batch.student.logits, batch.teacher.logits, strict=True):
                weight = of_level if positives is None else of_level * (of_level.numel() / positives)
                errors, smallest = cross_entropy(student, teacher), entropy(teacher)
                if self.config.head.kind == "kl":
                    errors = errors - smallest
                else:
                    minimum = minimum + (weight.detach() * smallest).sum()
                total = total + (weight * errors).sum()
        return total, minimum

    def _location_weights(self, teacher: Maps, adapted: Maps) -> Maps:
        """Return M_HSM/N_l of each level.

        N_l and the norm of HSM's automatic scale are constants for gradients and means over the ranks, so that
        data-parallel training has the gradients of one process with all images.
        """
        if not self.config.hsm.enabled:
            return [level.new_full((1, 1, 1, 1), 1 / level[:, 0].numel()).expand_as(level[:, :1]) for level in teacher]
        masks = self.similarity_masks(teacher, adapted)
        match self.config.norm:
            case "mask":
                sums = mean_over_ranks(torch.stack([mask.detach().sum() for mask in masks]))
                return [mask / total for mask, total in zip(masks, sums.clamp_min(SMALLEST_NORMALIZER), strict=True)]
            case "image":
                by_image = [mask.detach().sum((1, 2, 3), keepdim=True).clamp_min(SMALLEST_NORMALIZER) for mask in masks]
                return [mask / (total * len(mask)) for mask, total in zip(masks, by_image, strict=True)]
            case _:
                return [mask / mask.numel() for mask in masks]

    def similarity_masks(self, teacher: Maps, adapted: Maps) -> Maps:
        """Return M_HSM of each level (eq. 11), before division by N_l."""
        norms: list[Tensor | None] = [None] * len(teacher)
        if world_size() > 1:
            means = [torch.linalg.vector_norm(level, dim=1).mean() for level in teacher]
            norms = list(mean_over_ranks(torch.stack(means)))
        levels = zip(teacher, adapted, norms, strict=True)
        return [similarity_mask(t, s, self.config.hsm, mean_norm=norm) for t, s, norm in levels]

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Return the convolutions, and the filters without weight decay, which would shrink the feature target."""
        convolutions = [*self.adapters.parameters(), *(self.gate.parameters() if self.gate is not None else ())]
        groups: list[dict[str, object]] = [{"params": convolutions, "weight_decay": weight_decay}]
        filters = [parameter for parameter in self.filters.parameters() if parameter.requires_grad]
        return [*groups, {"params": filters, "weight_decay": 0.0}] if filters else groups

    def feature_pair(
        self,
        name: recipe.Level,
        teacher: FeatureMap,
        adapted: FeatureMap,
        teacher_logits: Tensor,
        activation: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[FeatureMap, FeatureMap]:
        """Return T_l and S_l of eq. 12: the target and the student's side."""
        ede, fdr = self.config.ede, self.config.fdr
        if ede.order == "ede_then_fdr":
            teacher = self.add_disturbance(name, teacher, activation)
        if fdr.enabled and name in recipe.select_levels(fdr.levels, self.networks.levels):
            r = fdr.r if fdr.r_range is None else _uniform(*fdr.r_range, generator)
            applies = not self.training or _uniform(0.0, 1.0, generator) < fdr.p
            mask = feature_richness(teacher_logits) if applies else None
            teacher = masked = reconstruct(teacher, mask, r=r)
            both = fdr.apply_to == "both"
            if both:
                adapted = reconstruct(adapted, mask, r=r)
            if fdr.filter != "none":
                frequency_filter = cast("FrequencyFilter", self.filters[name])
                teacher = frequency_filter(masked)
                adapted = frequency_filter(adapted, like=masked) if both else adapted
        if ede.order == "add_to_target":
            teacher = self.add_disturbance(name, teacher, activation)
        return teacher, adapted

    def ede_activation(self, embedding: Tensor | None) -> Tensor | None:
        """Return the sigmoid of the embedding, projected to the pyramid's width; None if EDE is off."""
        if embedding is None or not self.config.ede.enabled:
            return None
        if self.projection is not None and self.config.ede.source == "embedding":
            embedding = functional.conv2d(embedding, self.projection)
        return activate(embedding, center=self.config.ede.center)

    def disturbance(self, name: recipe.Level, shape: tuple[int, int], activation: Tensor | None) -> Tensor | None:
        """Return phi_EDE at a level's (height, width) (eq. 2); None if EDE is off there."""
        if activation is None or name not in recipe.select_levels(self.config.ede.levels, self.networks.levels):
            return None
        return resize(activation, shape, interp=self.config.ede.interp)

    def add_disturbance(self, name: recipe.Level, features: Tensor, activation: Tensor | None) -> Tensor:
        """Return a level's features with EDE (eq. 1), or unchanged if EDE is off there."""
        ede = self.config.ede
        disturbance = self.disturbance(name, (features.shape[2], features.shape[3]), activation)
        if disturbance is None:
            return features
        if self.gate is not None:
            gated: Tensor = self.gate(features, ede.weight * disturbance)
            return gated
        return torch.add(features, disturbance, alpha=ede.weight)


def roi_divergence(sampled: SampledRois, teacher: DetectorOutput, second_stage: SecondStage) -> Scalar:
    """Return KL(teacher || student) of the classes of the student's sampled RoIs, mean over RoIs (eq. 13 on RoIs).

    The student's logits were computed with its task losses; the teacher's head runs here on the teacher's pyramid.
    """
    with torch.no_grad():
        teacher_log = second_stage(teacher, sampled.boxes).float().log_softmax(dim=1)
    student_log = sampled.class_logits.float().log_softmax(dim=1)
    total = functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return total / mean_over_ranks(total.new_tensor(float(len(student_log)))).clamp_min(1 / world_size())


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
