"""What the frozen networks of a distillation know of its images, computed once and kept."""

from ifkd.knowledge.frozen import Knowledge, measure_feature_rms
from ifkd.knowledge.views import Taught, Views

__all__ = ["Knowledge", "Taught", "Views", "measure_feature_rms"]
