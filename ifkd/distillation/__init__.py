"""Knowledge distillation: EDE, FDR and HSM of the paper, the frozen models, and the cache of their outputs."""

from ifkd.distillation.cache_spec import CacheSpec, TileSampling, make_cache_spec
from ifkd.distillation.distillation_batch import DistillationBatch, TeacherOutputs
from ifkd.distillation.frozen_models import FrozenModels, measure_feature_rms

__all__ = [
    "CacheSpec",
    "DistillationBatch",
    "FrozenModels",
    "TeacherOutputs",
    "TileSampling",
    "make_cache_spec",
    "measure_feature_rms",
]
