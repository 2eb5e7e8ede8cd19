"""Detectors: images -> feature pyramid -> head outputs -> task losses, and candidates for deployment."""

import logging

from ifkd import recipe
from ifkd.models.detector import Detector, DetectorOutput, SampledRois, Targets, TaskNetwork, normalize
from ifkd.models.faster_rcnn import FasterRcnn
from ifkd.models.pretrained import load_detector_weights
from ifkd.models.retinanet import RetinaNet

__all__ = [
    "Detector",
    "DetectorOutput",
    "FasterRcnn",
    "SampledRois",
    "Targets",
    "TaskNetwork",
    "build_detector",
    "normalize",
]

logger = logging.getLogger(__name__)

FAMILIES: dict[recipe.Family, type[RetinaNet | FasterRcnn]] = {"retinanet": RetinaNet, "faster_rcnn": FasterRcnn}


def build_detector(config: recipe.DetectorOptions, num_classes: int) -> Detector:
    """Return a detector with the pretrained weights that its configuration names; log what was loaded.

    Initialization draws from torch's global generator.

    Raises:
        CheckpointError: The pretrained weights are missing or belong to another network.
    """
    detector = FAMILIES[config.family](config, num_classes)
    reports = (detector.backbone.body.report, load_detector_weights(detector, config))
    detector.load_reports = tuple(filter(None, reports))
    for report in detector.load_reports:
        logger.info("%s", report)
    return detector
