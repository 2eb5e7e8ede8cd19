"""What the frozen networks of a distillation know of its images, computed once and kept."""

from ifkd.distillation.cache_spec import Draws, Keeping, keeping_of
from ifkd.distillation.distillation_batch import Taught, Views
from ifkd.distillation.frozen_models import Knowledge, measure_feature_rms

__all__ = ["Draws", "Keeping", "Knowledge", "Taught", "Views", "keeping_of", "measure_feature_rms"]
