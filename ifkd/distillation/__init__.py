"""What the frozen networks of a distillation know of its images, computed once and kept."""

from ifkd.distillation.cache_spec import CacheSpec, Draws, cache_spec_of
from ifkd.distillation.distillation_batch import DistillationBatch, TeacherOutputs
from ifkd.distillation.frozen_models import FrozenModels, measure_feature_rms

__all__ = [
    "CacheSpec",
    "DistillationBatch",
    "Draws",
    "FrozenModels",
    "TeacherOutputs",
    "cache_spec_of",
    "measure_feature_rms",
]
