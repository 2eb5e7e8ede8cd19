"""Detectors: images -> pyramid -> head outputs -> task losses, and candidates for deployment."""

import logging

from ifkd import recipe
from ifkd.models.detector import Detector, DetectorOutput, SampledRois, Targets, normalize
from ifkd.models.faster_rcnn import FasterRcnn
from ifkd.models.pretrained import LoadReport, load_detector_weights
from ifkd.models.retinanet import RetinaNet

__all__ = [
    "Detector",
    "DetectorOutput",
    "FasterRcnn",
    "LoadReport",
    "SampledRois",
    "Targets",
    "build_detector",
    "normalize",
]

logger = logging.getLogger(__name__)

FAMILIES: dict[recipe.Family, type[RetinaNet | FasterRcnn]] = {"retinanet": RetinaNet, "faster_rcnn": FasterRcnn}


def build_detector(config: recipe.DetectorOptions, num_classes: int) -> Detector:
    """Return a detector, fresh but for the weights its configuration names; what of them did not fit is logged.

    Initialization draws from torch's global generator.

    Raises:
        CheckpointError: `config` names weights that are absent or of another network.
    """
    detector = FAMILIES[config.family](config, num_classes)
    reports = (detector.backbone.body.report, load_detector_weights(detector, config))
    detector.loaded = tuple(report for report in reports if report is not None)
    for report in detector.loaded:
        logger.info("%s", report)
    return detector
