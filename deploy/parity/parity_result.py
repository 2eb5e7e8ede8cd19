"""The result of `ifkd parity`: parity.json."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from deploy.accuracy.provenance import BundleRecord, DataRecord, EngineRecord
from deploy.parity.drift_crops import DriftCrop
from deploy.parity.drift_source import DriftSource
from deploy.parity.matching import PairingCriteria
from deploy.parity.scene_parity import SceneParity
from deploy.parity.tolerances import EngineComparison, failed_fields
from deploy.scene.screen_search import ScreenSearch
from export.bundle.manifest import FileRecord, Precision
from ifkd.core.config import Schema
from ifkd.core.postprocess import PostprocessConfig
from ifkd.data.metrics import Metrics


class UnmatchedRecord(Schema):
    """A detection without a match and without a tie."""

    image: str
    missing_in: Literal["reference", "engine"]
    class_name: str
    changed_to: str | None
    """Class of the same box on the other side, where there is one."""
    score: float
    box_px: tuple[float, float, float, float]
    """x1, y1, x2, y2."""


class ClassParity(Schema):
    """Detections of one class on both sides."""

    reference: int
    engine: int
    tied: int
    """Detections of both sides that are ties."""
    matched_fraction: float | None
    """None without detections."""
    mean_ap_change: float | None


class ParityCell(EngineComparison):
    """Comparison of one engine with the reference on labeled images."""

    engine: EngineRecord | None = None
    """None when the engine failed."""
    pairing: PairingCriteria | None = None
    unmatched: tuple[UnmatchedRecord, ...] = ()
    """The first hundred, highest scores first."""
    unmatched_count: int = 0
    per_class: dict[str, ClassParity] = {}
    metrics: Metrics | None = None
    symptoms: tuple[str, ...] = ()
    """Patterns of the drift in words, where a tolerance is exceeded."""
    drift_source: DriftSource | None = None
    crops: tuple[DriftCrop, ...] = ()
    """The largest differences as pictures."""


class Parity(Schema):
    """The result of `ifkd parity`."""

    schema_version: Literal[2] = 2
    kind: Literal["parity"] = "parity"
    created: str
    """UTC, ISO 8601."""
    bundle: BundleRecord
    data: DataRecord
    postprocess: PostprocessConfig
    reference: EngineRecord
    reference_metrics: Metrics
    cells: tuple[ParityCell, ...]
    scenes: tuple[SceneParity, ...] = ()
    """The same engines on a scene, tiled and merged; empty without a scene."""
    screens: tuple[ScreenSearch, ...] = ()
    """The same engines on the scene with the screen of the bundle; empty without a scene or a screen."""
    partial: bool = False
    """The comparison was interrupted."""
    passed: bool
    rule: str = "every engine passes all tolerances of its precision"
    verdict: str


def failed_cell(backend: str, precision: Precision, error: Exception) -> ParityCell:
    """Return the cell of an engine that failed."""
    return ParityCell(**failed_fields(backend, precision, error))


def differences_from(parity: Parity, files: Mapping[str, FileRecord]) -> Iterator[str]:
    """Yield the reasons why a parity does not show that the `files` of a bundle agree with torch."""
    compared = [parity.reference, *(cell.engine for cell in parity.cells if cell.engine is not None)]
    for engine in dict.fromkeys((one.file, one.sha256) for one in compared):
        name, digest = engine
        expected = files[name].sha256 if name in files else "no such file"
        if digest != expected:
            yield f"{name} of another bundle was compared: got sha256 {digest}, expected {expected}."
    if not parity.passed:
        yield f"The parity did not pass: {parity.verdict}."


def overall_verdict(
    cells: Sequence[ParityCell], scenes: Sequence[SceneParity] = (), *, partial: bool = False
) -> tuple[bool, str]:
    """Return whether all engines pass, and the verdict in words; an interrupted comparison does not pass."""
    if not cells and not partial:
        return False, "failed: there is no engine to compare"
    problems = [f"{cell.name} {cell.verdict}" for cell in cells if not cell.passed]
    passed_on_images = {cell.name for cell in cells if cell.passed}
    for scene in (one for one in scenes if not one.passed):
        agrees = ", but agrees on images: the drift starts at tiling or merging"
        source = agrees if scene.name in passed_on_images else ""
        problems.append(f"{scene.name} failed on the scene {scene.scene}{source}: {scene.verdict}")
    if partial:
        problems.append(f"interrupted after {len(cells)} engines on images and {len(scenes)} on the scene")
    if problems:
        return False, "; ".join(problems)
    names = ", ".join(cell.name for cell in cells)
    return True, f"passed: {names} agree with torch fp32 within their tolerances"
