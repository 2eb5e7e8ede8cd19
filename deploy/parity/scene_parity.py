"""Parity after tiling: the same scene searched by the torch network and by an engine, tile by tile and merged."""

from pathlib import Path

import numpy as np

from deploy.accuracy.image_detection import ImageResult
from deploy.engines.engine import Engine
from deploy.parity.drift import Drift, drift_of
from deploy.parity.matching import Pairing, match
from deploy.parity.tolerances import ToleranceCheck, Tolerances, check_tolerances
from deploy.scene.ground_truth import SceneGroundTruth, SceneScore, read_ground_truth
from deploy.scene.read.scene import Scene
from deploy.scene.read.tile_reader import read_tiles
from deploy.scene.run.pipeline import detect_scene
from deploy.scene.settings import DetectionSettings, grid_for, settings_for, tile_for
from export.bundle.bundle import Bundle
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Candidates, Detections
from ifkd.core.input_shapes import InputShapes
from ifkd.core.tiling import Window

SCENE = 0
"""The scene's key among answers."""


class SceneParity(Schema):
    """One engine against the reference on a whole scene."""

    scene: str
    size_px: tuple[int, int]
    """(height, width)."""
    backend: str
    precision: Precision
    failure: str | None = None
    """Why there are no figures."""
    tiles: int = 0
    reference_detections: int = 0
    engine_detections: int = 0
    tied: int = 0
    """Detections of both sides that a tie explains."""
    matched_share: float | None = None
    drift: Drift | None = None
    gates: tuple[ToleranceCheck, ...] = ()
    reference_score: SceneScore | None = None
    """Against labels, where they were given."""
    engine_score: SceneScore | None = None
    passed: bool
    verdict: str


class SceneReference:
    """What the torch network finds in a scene, computed once and compared with any number of engines.

    Args:
        engine: The torch network.
        scene: Opened; it stays open as long as engines are compared.
        settings: How the scene is searched.
        truth: Its labels, where there are some.

    Raises:
        SceneError: The scene cannot be read.
    """

    def __init__(
        self, engine: Engine, scene: Scene, settings: DetectionSettings, *, truth: SceneGroundTruth | None = None
    ) -> None:
        self.scene, self.settings, self.truth = scene, settings, truth
        self._windows = _windows_looked_at(scene, engine.info.sizes, settings)
        self.answer = self._ask(engine)

    def compare(self, engine: Engine, limits: Tolerances) -> SceneParity:
        """Return how an engine's detections of the scene compare with the reference's."""
        answer = self._ask(engine)
        pairing = Pairing(twin_iou=max(0.5, 1 - limits.iou_drift_p99), twin_score=limits.score_p99)
        matching = match({SCENE: self.answer}, {SCENE: answer}, pairing)
        drift = drift_of(matching)
        gates = check_tolerances(matching, drift, None, None, limits)
        ours, theirs = self._score(self.answer), self._score(answer)
        if ours is not None and theirs is not None:
            gates += _accuracy_gates(ours, theirs, limits)
        failed = [gate for gate in gates if not gate.passed]
        return SceneParity(
            scene=self.scene.info.name,
            size_px=self.scene.size,
            backend=engine.info.backend,
            precision=engine.info.precision,
            tiles=len(self._windows),
            reference_detections=len(self.answer.detections),
            engine_detections=len(answer.detections),
            tied=sum(matching.tied_count.values()),
            matched_share=matching.matched_share(),
            drift=drift,
            gates=tuple(gates),
            reference_score=ours,
            engine_score=theirs,
            passed=not failed,
            verdict="; ".join(gate.meaning for gate in failed) or f"all {len(gates)} gates hold",
        )

    def _score(self, answer: ImageResult) -> SceneScore | None:
        if self.truth is None:
            return None
        return self.truth.score(answer.detections, score_threshold=self.settings.selection.score_threshold)

    def _ask(self, engine: Engine) -> ImageResult:
        least = self.settings.selection.score_threshold / 2
        recorder = _Recorder(engine, least)
        found = detect_scene(recorder, self.scene, self.settings, show_progress=True)
        factor = 1.0 / self.settings.scale
        placed = [
            one.scaled(factor).translated(dx=float(window.left), dy=float(window.top)).clipped(self.scene.size)
            for one, window in zip(recorder.seen, self._windows, strict=True)
        ]
        return ImageResult(found.detections, Detections.concatenate(placed) if placed else Detections.empty())


class _Recorder(Engine):
    """An engine that remembers its candidates, tile by tile."""

    def __init__(self, engine: Engine, least_score: float) -> None:
        self.info = engine.info
        self.seen: list[Detections] = []
        self._engine, self._least = engine, least_score

    def _run(self, tiles: Array) -> Candidates:
        answer = self._engine.infer(tiles)
        for boxes, scores, labels in zip(answer.boxes, answer.scores, answer.labels, strict=True):
            kept = np.flatnonzero(scores > self._least)
            self.seen.append(Detections(boxes[kept], scores[kept], labels[kept]))
        return answer

    def close(self) -> None:
        """The engine belongs to another."""


def open_truth(path: Path | None, scene: Scene, classes: tuple[str, ...]) -> SceneGroundTruth | None:
    """Return a scene's labels, or None when no file was named.

    Raises:
        DataError: The file cannot be read or is not of this scene.
    """
    if path is None:
        return None
    info = scene.info
    return read_ground_truth(path, scene=info.name, size=scene.size, classes=classes, georeference=info.georeference)


def settings_of(bundle: Bundle) -> DetectionSettings:
    """Return how a bundle searches scenes."""
    return settings_for(bundle.manifest)


def _windows_looked_at(scene: Scene, sizes: InputShapes, settings: DetectionSettings) -> list[Window]:
    """Return the windows that hold pixels, in the order in which engines see them."""
    return [
        tile.window
        for tile in read_tiles(scene, grid_for(scene.size, tile_for(scene.size, sizes, settings), settings))
        if tile.patch is not None and tile.patch.valid.any()
    ]


def _accuracy_gates(ours: SceneScore, theirs: SceneScore, limits: Tolerances) -> list[ToleranceCheck]:
    """Return a gate for the change of each average precision that both scores have."""
    gates = []
    for name, words in (("mean_ap", "mAP"), ("ap50", "AP50"), ("ap75", "AP75")):
        before, after, limit = getattr(ours, name), getattr(theirs, name), getattr(limits, name)
        if before is not None and after is not None:
            change = abs(after - before)
            meaning = f"change of the scene's {words}: {change:.4g} (≤ {limit:.4g})"
            gates.append(
                ToleranceCheck(
                    name=name, value=change, limit=limit, at_least=False, passed=change <= limit, meaning=meaning
                )
            )
    return gates
