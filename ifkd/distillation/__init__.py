"""Knowledge distillation: EDE, FDR and HSM of the paper, the frozen models, and the cache of their outputs."""

from ifkd.distillation.frozen_models import DistillationBatch, FrozenModels, TeacherOutputs
from ifkd.distillation.output_cache import CacheSpec, TileSampling, make_cache_spec

__all__ = ["CacheSpec", "DistillationBatch", "FrozenModels", "TeacherOutputs", "TileSampling", "make_cache_spec"]
