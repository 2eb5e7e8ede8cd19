"""Compare an engine with the torch reference on a scene, tiled and merged."""

from pathlib import Path

from deploy.accuracy.image_detection import ImageResult
from deploy.engines.engine import Engine
from deploy.parity.drift import measure_drift
from deploy.parity.matching import match
from deploy.parity.tolerances import (
    DetectionTolerances,
    EngineComparison,
    check_tolerances,
    compared_fields,
    failed_fields,
)
from deploy.scene.read.scene import Scene
from deploy.scene.read.tile_reader import read_tiles
from deploy.scene.run.pipeline import detect_scene
from deploy.scene.scene_score import SceneGroundTruth, SceneScore, read_ground_truth
from deploy.scene.settings import DetectionSettings, grid_for, tile_for
from export.bundle.manifest import Precision
from ifkd.core.detections import Array, Candidates, Detections
from ifkd.core.tiling import Window

SCENE_ID = 0
"""Image id of the scene."""


class SceneParity(EngineComparison):
    """Comparison of one engine with the reference on a scene."""

    scene: str
    size_px: tuple[int, int]
    """(height, width)."""
    tiles: int = 0
    reference_score: SceneScore | None = None
    """Metrics against labels; None without labels."""
    engine_score: SceneScore | None = None


class SceneReference:
    """Detections of the torch network `engine` in a scene, computed once and compared with any number of engines.

    Raises:
        SceneError: The scene cannot be read.
    """

    def __init__(
        self, engine: Engine, scene: Scene, settings: DetectionSettings, *, ground_truth: SceneGroundTruth | None = None
    ) -> None:
        self.scene, self.settings, self.ground_truth = scene, settings, ground_truth
        self._tile_px = tile_for(scene.size, engine.info.sizes, settings)
        self._windows = _windows_with_pixels(scene, self._tile_px, settings)
        self.result = self._detect(engine)

    def compare(self, engine: Engine, tolerances: DetectionTolerances) -> SceneParity:
        """Compare an engine with the reference."""
        result = self._detect(engine)
        matching = match({SCENE_ID: self.result}, {SCENE_ID: result}, tolerances.pairing())
        drift = measure_drift(matching)
        before, after = self._score(self.result), self._score(result)
        checks = check_tolerances(matching, drift, before, after, tolerances, of="the scene's ")
        failed = [one.description for one in checks if not one.passed]
        return SceneParity(
            **compared_fields(engine.info, matching, drift, checks),
            scene=self.scene.info.name,
            size_px=self.scene.size,
            tiles=len(self._windows),
            reference_score=before,
            engine_score=after,
            verdict="; ".join(failed) or f"within all {len(checks)} tolerances",
        )

    def failed(self, backend: str, precision: Precision, error: Exception) -> SceneParity:
        """Return the comparison of an engine that failed."""
        fields = failed_fields(backend, precision, error)
        return SceneParity(**fields, scene=self.scene.info.name, size_px=self.scene.size)

    def _score(self, result: ImageResult) -> SceneScore | None:
        if self.ground_truth is None:
            return None
        threshold = self.settings.postprocess.score_threshold
        return self.ground_truth.score(result.detections, score_threshold=threshold)

    def _detect(self, engine: Engine) -> ImageResult:
        recorder = _Recorder(engine, self.settings.postprocess.score_threshold / 2)
        found = detect_scene(recorder, self.scene, self.settings, show_progress=True)
        candidates = []
        for one, window in zip(recorder.candidates, self._windows, strict=True):
            resized = one.resized(self._tile_px, (window.height, window.width))
            moved = resized.translated(dx=float(window.left), dy=float(window.top))
            candidates.append(moved.clipped(self.scene.size))
        return ImageResult(found.detections, Detections.concatenate(candidates))


class _Recorder(Engine):
    """An engine that records its candidates, tile by tile; closing it does not close the inner engine."""

    def __init__(self, engine: Engine, min_score: float) -> None:
        self.info = engine.info
        self.candidates: list[Detections] = []
        self._engine, self._min_score = engine, min_score

    def _run(self, tiles: Array) -> Candidates:
        candidates = self._engine.infer(tiles)
        for found in candidates.of_each_tile():
            self.candidates.append(found.select(found.scores > self._min_score))
        return candidates

    def close(self) -> None:
        pass


def read_scene_labels(path: Path | None, scene: Scene, classes: tuple[str, ...]) -> SceneGroundTruth | None:
    """Return the labels of a scene, or None without a path.

    Raises:
        DataError: The file cannot be read or is of another scene.
    """
    if path is None:
        return None
    info = scene.info
    return read_ground_truth(
        path,
        scene=info.name,
        size=scene.size,
        classes=classes,
        georeference=info.georeference,
        place_problem=info.place_problem,
    )


def _windows_with_pixels(scene: Scene, tile_px: tuple[int, int], settings: DetectionSettings) -> list[Window]:
    """Return the windows with valid pixels, in the order in which they are run."""
    tiles = read_tiles(scene, grid_for(scene.size, tile_px, settings))
    return [tile.window for tile in tiles if tile.patch is not None and tile.patch.valid.any()]
