"""What the frozen networks of a distillation know of its images, computed once and kept."""

from ifkd.knowledge.frozen import Knowledge, measure_feature_rms
from ifkd.knowledge.keeping import Draws, Keeping, keeping_of
from ifkd.knowledge.views import Taught, Views

__all__ = ["Draws", "Keeping", "Knowledge", "Taught", "Views", "keeping_of", "measure_feature_rms"]
