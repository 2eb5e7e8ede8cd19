"""IFKD: information fusion with knowledge distillation (Zhang and Yang, ACM MM 2024)."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ifkd import recipe
from ifkd.fusion.disturbance import disturbance, width_projection
from ifkd.fusion.frequency import FrequencyFilter, reconstruct, richness
from ifkd.fusion.hyperbolic import similarity_mask
from ifkd.knowledge import Views
from ifkd.methods.attention import WEIGHT as AT_WEIGHT
from ifkd.methods.attention import attention_transfer
from ifkd.methods.method import Method, Student, Term
from ifkd.methods.regions import region_divergence

REFERENCE_CHANNELS = 256
"""The width that alpha was chosen for; with `feature_scale = auto` a narrower channel sum counts as this many."""
SMALLEST_NORMALISER = 1e-6


class IfkdMethod(Method):
    """L_feat and L_head, weighted by HSM; the feature target is the teacher's features through FDR plus EDE."""

    def __init__(self, config: recipe.Ifkd, student: Student) -> None:
        super().__init__()
        self.config = config
        self.levels = student.levels
        self._second_stage = student.second_stage
        self._dense_head = config.head.enabled and config.head.frcnn_head != "roi"
        self._region_head = config.head.enabled and config.head.frcnn_head != "rpn"
        width = student.teacher_channels
        count = 1 if config.adapter.shared else len(student.levels)
        kernel = config.adapter.kernel
        self.adapters = nn.ModuleList(
            nn.Conv2d(student.channels, width, kernel, padding=kernel // 2, bias=config.adapter.bias)
            for _ in range(count)
        )
        self.filters = nn.ModuleDict()
        if config.fdr.enabled and config.fdr.filter != "none":
            chosen = recipe.chosen_levels(config.fdr.levels, student.levels)
            self.filters.update({level: FrequencyFilter(width, config.fdr) for level in chosen})
        self.projection: Tensor | None
        self.register_buffer("projection", width_projection(width), persistent=False)
        automatic = config.feature_scale == "auto"
        self._scales = [config.reference_rms / max(rms, 1e-12) if automatic else 1.0 for rms in student.feature_rms]
        self._seed = int(torch.randint(1 << 40, ()))
        counts_channels = automatic and config.channel_reduction == "sum"
        self._channel_factor = REFERENCE_CHANNELS / width if counts_channels else 1.0

    def losses(self, views: Views) -> dict[str, Term]:
        """Return alpha L_feat and beta L_head (eq. 14) with their warm-up; and AT's term when it is asked for."""
        embedding = self._projected(views.embedding)
        # Draws of FDR depend on seed and iteration alone, so that a resumed run repeats them.
        generator = torch.Generator().manual_seed(self._seed + views.iteration)
        feature, head = views.student.logits[0].new_zeros(()), views.student.logits[0].new_zeros(())
        entropy = head.clone()
        for level, name in enumerate(self.levels):
            teacher = views.teacher.pyramid[level].float() * self._scales[level]
            adapted = self.adapters[level % len(self.adapters)](views.student.pyramid[level])
            mask = similarity_mask(teacher, adapted, self.config.hsm) if self.config.hsm.enabled else None
            target, adapted = self._reconstructed(
                name, teacher, adapted, views.teacher.logits[level], embedding, generator
            )
            error = (target - adapted.float()).square().sum(dim=1, keepdim=True)
            feature = feature + self._masked_mean(error, mask) * self._channel_factor
            if self._dense_head:
                divergence, level_entropy = _head_errors(views.student.logits[level], views.teacher.logits[level])
                head = head + self._masked_mean(divergence + level_entropy, mask)
                entropy = entropy + self._masked_mean(level_entropy, mask)
        if self.config.channel_reduction == "mean":
            feature = feature / adapted.shape[1]
        warm = 1.0 if self.config.warmup_iters == 0 else min(1.0, views.iteration / self.config.warmup_iters)
        if self.config.head.kind == "kl":
            head = head - entropy
        terms = {"feature": Term(feature, warm * self.config.alpha), "head": Term(head, warm * self.config.beta)}
        if self._region_head:
            assert self._second_stage is not None, "recipes ask for the regions of two-stage detectors alone"
            divergence = region_divergence(views.student.sampled[0], views.teacher, self._second_stage)
            terms["regions"] = Term(divergence, warm * self.config.beta)
        if self.config.with_at:
            terms["attention"] = Term(attention_transfer(views.student.pyramid, views.teacher.pyramid), AT_WEIGHT)
        return terms

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Return the adapters, and apart from them the filters, which decay would shrink towards a trivial target."""
        groups: list[dict[str, object]] = [{"params": list(self.adapters.parameters()), "weight_decay": weight_decay}]
        filters = [parameter for parameter in self.filters.parameters() if parameter.requires_grad]
        return [*groups, {"params": filters, "weight_decay": 0.0}] if filters else groups

    def _projected(self, embedding: Tensor | None) -> Tensor | None:
        if embedding is None or self.projection is None or self.config.ede.source == "mask":
            return embedding
        return functional.conv2d(embedding, self.projection)

    def _reconstructed(
        self,
        name: recipe.Level,
        teacher: Float[Tensor, "b c h w"],
        adapted: Float[Tensor, "b c h w"],
        teacher_logits: Tensor,
        embedding: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Return T_l of eq. 12 and the student's side of it."""
        ede, fdr = self.config.ede, self.config.fdr
        added: Tensor | float = 0.0
        if ede.enabled and name in recipe.chosen_levels(ede.levels, self.levels) and embedding is not None:
            shape = (teacher.shape[2], teacher.shape[3])
            added = ede.weight * disturbance(embedding, shape, interp=ede.interp, center=ede.center)
        if ede.order == "ede_then_fdr":
            teacher, added = teacher + added, 0.0
        if fdr.enabled and name in recipe.chosen_levels(fdr.levels, self.levels):
            r = fdr.r if fdr.r_range is None else _uniform(*fdr.r_range, generator)
            applies = not self.training or _uniform(0.0, 1.0, generator) < fdr.p
            mask = richness(teacher_logits) if applies else None
            filter_ = cast("FrequencyFilter", self.filters[name]) if fdr.filter != "none" else None
            teacher = reconstruct(teacher, mask, r=r, frequency_filter=filter_)
            if fdr.apply_to == "both":
                adapted = reconstruct(adapted, mask, r=r, frequency_filter=filter_)
        return teacher + added, adapted

    def _masked_mean(self, values: Float[Tensor, "b 1 h w"], mask: Float[Tensor, "b 1 h w"] | None) -> Tensor:
        """Return sum(mask·values)/N_l, with N_l as the recipe's `norm` says; a plain mean without a mask."""
        if mask is None:
            return values.mean()
        weighted = mask * values
        match self.config.norm:
            case "mask":
                return weighted.sum() / mask.sum().clamp_min(SMALLEST_NORMALISER)
            case "image":
                return (weighted.sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(SMALLEST_NORMALISER)).mean()
            case _:
                return weighted.mean()


def _head_errors(student: Tensor, teacher: Tensor) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"]]:
    """Return KL(teacher || student) and the teacher's entropy, summed over channels; their sum is the cross-entropy."""
    soft = teacher.detach().float().sigmoid()
    cross = functional.binary_cross_entropy_with_logits(student.float(), soft, reduction="none").sum(1, keepdim=True)
    entropy = functional.binary_cross_entropy_with_logits(teacher.detach().float(), soft, reduction="none").sum(
        1, keepdim=True
    )
    return cross - entropy, entropy


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
