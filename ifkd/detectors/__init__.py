"""Detectors: images -> pyramid -> head outputs -> task losses, and candidates for deployment."""

from ifkd import recipe
from ifkd.detectors.detector import Detector, DetectorOutput, SampledRois, Targets, normalise
from ifkd.detectors.faster_rcnn import FasterRcnn
from ifkd.detectors.retinanet import RetinaNet

__all__ = ["Detector", "DetectorOutput", "FasterRcnn", "SampledRois", "Targets", "build_detector", "normalise"]

FAMILIES: dict[recipe.Family, type[RetinaNet | FasterRcnn]] = {"retinanet": RetinaNet, "faster_rcnn": FasterRcnn}


def build_detector(config: recipe.Detector, num_classes: int) -> Detector:
    """Return a freshly initialised detector; initialisation draws from torch's global generator.

    Raises:
        CheckpointError: `config.backbone_weights` names weights that are absent or do not fit.
    """
    return FAMILIES[config.family](config, num_classes)
