"""Detectors: images -> pyramid -> head outputs -> task losses, and candidates for deployment."""

from ifkd.detectors.detector import Detector, DetectorOutput, Targets, build_detector, normalise

__all__ = ["Detector", "DetectorOutput", "Targets", "build_detector", "normalise"]
