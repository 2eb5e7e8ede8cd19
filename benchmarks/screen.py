"""Compare detection in scenes with and without the screen of a bundle: time, lost detections, and what is lost first.

    python benchmarks/screen.py --bundle BUNDLE --data configs/demo_data.toml [--size 16384] [--screen auto]
    python benchmarks/screen.py --bundle BUNDLE --scene SCENE …

With --data, scenes of the generator are written into --out: open sea with some fractions of the tiles occupied, and
harbors; of a radar configuration, open country and airfields. The full and the screened search by the same engine take
turns; the speed-up is the median of the turns. With --rival, SAHI takes a turn with the same engine, too (the extra
`benchmark`). A detection of the full search is lost if the screened search has none of its class with an IoU of 0.5; so
is a labeled object, of any class, that the full search finds. Labels are those of the JSON file beside the scene.
Each value is printed with its goal; exit code 1 if a goal is missed. The scenes must not be those of the calibration.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from figure import Figure
from PIL import Image

from deploy.engines import open_engine
from deploy.scene.read.scene import Scene
from deploy.scene.result import SceneResult
from deploy.scene.run.executor import LocalExecutor
from deploy.scene.run.pipeline import detect_scene
from deploy.scene.screen.screen_network import ScreenNetwork
from deploy.scene.settings import DetectionSettings, grid_for, settings_for
from export.bundle.bundle import Bundle, open_bundle
from export.bundle.screen_record import EXCHANGEABLE
from ifkd.core.detections import Array, Detections, pairwise_iou
from ifkd.core.tiling import TileGrid, Window
from ifkd.data.coco import read_coco
from ifkd.data.synthetic.config import AircraftDatasetConfig, AnySynthetic
from ifkd.data.synthetic.dataset import make_dataset
from ifkd.data.synthetic.painters import load_synthetic
from ifkd.data.synthetic.scene import scene_labels

OCCUPIED = (0.01, 0.05, 0.2)
SPEEDUP_GOALS = {0.01: 5.0, 0.05: 3.0}
HARBOR_GOAL, LOST_GOAL = 0.95, 0.005
HARBOR_PER_KM2 = 20.0
SEARCHES, TOLERANCE = 12, 0.1
"""Attempts to find the density of objects of a fraction of occupied tiles, and the relative error to accept."""
SHOWN, MARGIN_PX = 24, 24
"""Number of pictures of lost detections, and pixels around them."""
MATCH_IOU = 0.5


@dataclass(frozen=True, slots=True)
class NamedScene:
    """A scene and the speed-up that is wanted on it."""

    name: str
    path: Path
    goal: float | None = None


def generated_scenes(
    bundle: Bundle, data: Path, out: Path, *, size: int, occupied: list[float], tile_px: int | None, harbors: bool
) -> Iterator[NamedScene]:
    """Yield scenes of the generator, written block by block."""
    none = ["images.train=0", "images.validation=0", "images.test=0"]
    config = load_synthetic(data, [*none, "scenes.count=1", f"scenes.size_px=[{size}, {size}]"])
    is_radar = isinstance(config, AircraftDatasetConfig)
    open_config = config if is_radar else changed(config, "conditions", land_fraction=0.0)
    settings = settings_for(bundle.manifest, tile_px=tile_px)
    grid = grid_for((size, size), settings.tile_px or bundle.manifest.input.tile_px, settings)
    for fraction in occupied:
        chosen, measured = with_occupied(open_config, grid, fraction)
        name = f"open, {measured:.1%} of tiles occupied"
        yield NamedScene(name, written(chosen, out / f"open-{fraction:g}-{size}"), SPEEDUP_GOALS.get(fraction))
    if not harbors:
        return
    dense = with_density(config, HARBOR_PER_KM2)
    name = f"{'airfields' if is_radar else 'harbors'}, {occupied_fraction(dense, grid):.1%} of tiles occupied"
    yield NamedScene(name, written(dense, out / f"dense-{size}"), HARBOR_GOAL)


def changed(config: Any, section: str, **values: Any) -> Any:
    """Return a configuration with other values in a section."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def with_density(config: AnySynthetic, per_km2: float) -> AnySynthetic:
    """Return a configuration with another number of objects in a scene."""
    key = "aircraft_per_km2" if isinstance(config, AircraftDatasetConfig) else "ships_per_km2"
    changed_config: AnySynthetic = changed(config, "scenes", **{key: per_km2})
    return changed_config


def with_occupied(config: AnySynthetic, grid: TileGrid, fraction: float) -> tuple[AnySynthetic, float]:
    """Return a configuration of a scene with about this fraction of its tiles occupied, and the fraction it has."""
    best, best_measured, density = config, 0.0, 4.0 * fraction
    for _ in range(SEARCHES):
        candidate = with_density(config, density)
        measured = occupied_fraction(candidate, grid)
        if abs(measured - fraction) < abs(best_measured - fraction):
            best, best_measured = candidate, measured
        if abs(measured - fraction) <= TOLERANCE * fraction:
            break
        density *= min(4.0, max(0.25, fraction / max(measured, 1e-6)))
    return best, best_measured


def occupied_fraction(config: AnySynthetic, grid: TileGrid) -> float:
    """Return the fraction of the tiles that a labeled object touches."""
    if not isinstance(config, AircraftDatasetConfig):  # boats are placed after ships, which do not depend on them
        config = changed(config, "conditions", small_boats=0.0)
    boxes = np.array([one.box for one in scene_labels(config, 0)], np.float64).reshape(-1, 4)
    touched = np.zeros(len(grid), bool)
    for index, window in enumerate(grid):
        inside = (boxes[:, :2] < (window.right, window.bottom)) & (boxes[:, 2:] > (window.left, window.top))
        touched[index] = inside.all(axis=1).any()
    return float(touched.mean())


def written(config: AnySynthetic, folder: Path) -> Path:
    """Return the scene of a configuration, which is generated if it is not there."""
    make_dataset(config, folder)
    return next(path for path in folder.rglob("*.tif"))


def compare(bundle: Bundle, scene: NamedScene, arguments: argparse.Namespace) -> list[Figure]:
    """Return the speed-up and the lost detections in a scene, and print what is lost."""
    choice = arguments.screen if arguments.screen == "auto" else float(arguments.screen)
    full = settings_for(bundle.manifest, tile_px=arguments.tile)
    screened = settings_for(bundle.manifest, tile_px=arguments.tile, screen=choice, audit=0.0)
    with open_engine(bundle, threads=arguments.threads) as engine:
        executor = LocalExecutor(engine, lambda: ScreenNetwork(bundle, threads=arguments.threads))

        def run(settings: DetectionSettings) -> SceneResult:
            with Scene(scene.path, imagery=bundle.manifest.input.imagery) as raster:
                return detect_scene(executor, raster, settings)

        calls: dict[str, Callable[[], Any]] = {"full": lambda: run(full), "screened": lambda: run(screened)}
        if arguments.rival:
            from scene_rivals import detect_with_sahi  # noqa: PLC0415 - it needs SAHI

            with Scene(scene.path) as raster:
                grid = grid_for(raster.size, full.tile_px or engine.info.tile_px, full)
            calls["SAHI"] = lambda: detect_with_sahi(engine, scene.path, full, grid)
        seconds, results = in_turns(calls, arguments.rounds)
    complete, kept = results["full"], results["screened"]
    lost = ~shown_by(kept.detections, complete.detections.boxes, complete.detections.labels)
    report_losses(scene, complete, lost, arguments.out)
    searched = kept.processed / max(1, complete.processed)
    ratios = [one / other for one, other in zip(seconds["full"], seconds["screened"], strict=True)]
    total = len(complete.detections)
    figures = [
        Figure(scene.name, "tiles searched", 100 * searched, "%"),
        Figure(scene.name, "speed-up by the screen", statistics.median(ratios), "x", at_least=scene.goal),
        Figure(scene.name, f"lost of {total} detections", 100 * float(lost.mean()) if total else 0.0, "%",
               at_most=100 * LOST_GOAL),
    ]  # fmt: skip
    if (labels := scene.path.with_suffix(".json")).exists():
        (image,) = read_coco(labels).images
        boxes = image.boxes[shown_by(complete.detections, image.boxes)]
        share = 100 * float((~shown_by(kept.detections, boxes)).mean()) if len(boxes) else 0.0
        name = f"lost of {len(boxes)} labeled objects that are found"
        figures.append(Figure(scene.name, name, share, "%", at_most=100 * LOST_GOAL))
    if "SAHI" in seconds:
        ratios = [one / other for one, other in zip(seconds["SAHI"], seconds["screened"], strict=True)]
        figures.append(Figure(scene.name, "speed-up over SAHI with our engine", statistics.median(ratios), "x"))
    return figures


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the CPU seconds of each call in each round, all threads together, and the last results."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            results[name] = call()
            seconds[name].append(time.process_time() - start)
    return seconds, results


def shown_by(detections: Detections, boxes: Array, labels: Array | None = None) -> Array:
    """Return which boxes [n, 4] a detection shows, bool [n]: of the class `labels` [n], or of any."""
    shown = pairwise_iou(boxes, detections.boxes) >= MATCH_IOU
    if labels is not None:
        shown &= labels[:, None] == detections.labels[None]
    any_of_them: Array = shown.any(axis=1)
    return any_of_them


def report_losses(scene: NamedScene, result: SceneResult, lost: Array, out: Path) -> None:
    """Print the fraction lost by class and by thirds of size, contrast and score, and save pictures of the lost."""
    found = result.detections
    if not lost.any():
        return
    with Scene(scene.path) as raster:
        contrast = np.array([contrast_of(raster, box) for box in found.boxes])
        folder = out / "lost"
        folder.mkdir(parents=True, exist_ok=True)
        for number, box in enumerate(found.boxes[lost][:SHOWN]):
            picture = Image.fromarray(raster.read(window_around(box)).pixels)
            picture.save(folder / f"{scene.path.parent.name}-{number:02d}.png")
    sides = np.sqrt(np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1))
    print(f"{scene.name}: lost detections, pictures in {folder}")
    for label, name in enumerate(result.classes):
        of_class = found.labels == label
        print(f"  {name}: {int(lost[of_class].sum())} of {int(of_class.sum())}")
    for name, values in (("side, px", sides), ("contrast", contrast), ("score", found.scores)):
        edges = np.quantile(values, [0, 1 / 3, 2 / 3, 1])
        for low, high in pairwise(edges.tolist()):
            part = (values >= low) & (values <= high)
            print(f"  {name} {low:.3g} to {high:.3g}: {int(lost[part].sum())} of {int(part.sum())}")


def contrast_of(scene: Scene, box: Array) -> float:
    """Return the difference of the mean gray value in a box and around it, in deviations of the latter."""
    window = window_around(box)
    gray = scene.read(window).pixels.mean(axis=2)
    inside = np.zeros(gray.shape, bool)
    left, top, right, bottom = np.rint(box).astype(int).tolist()
    inside[max(0, top - window.top) : bottom - window.top, max(0, left - window.left) : right - window.left] = True
    if inside.all() or not inside.any():
        return 0.0
    around = gray[~inside]
    return float(abs(gray[inside].mean() - around.mean()) / max(around.std(), 1e-6))


def window_around(box: Array) -> Window:
    """Return the pixels around a box."""
    left, top = (int(max(0, value - MARGIN_PX)) for value in box[:2])
    right, bottom = (int(np.ceil(value)) + MARGIN_PX for value in box[2:])
    return Window(top, left, bottom - top, right - left)


def main() -> int:
    """Print all figures."""
    parser = argparse.ArgumentParser(description="Compare detection with and without a screen.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="configuration of the generator")
    parser.add_argument("--scene", type=Path, action="append", default=[], help="a scene of one's own; repeatable")
    parser.add_argument("--size", type=int, default=16384, help="side of the generated scenes, pixels")
    parser.add_argument("--tile", type=int, help="side of the tiles, engine pixels (default: the bundle's)")
    parser.add_argument("--occupied", type=float, nargs="*", default=list(OCCUPIED), help="fractions of the tiles")
    parser.add_argument("--harbors", action=argparse.BooleanOptionalAction, default=True, help="also a dense scene")
    parser.add_argument("--screen", default="auto", help="auto, or a threshold (default: auto)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rival", action="store_true", help="also time SAHI with the same engine")
    parser.add_argument("--out", type=Path, default=Path("runs/screen_benchmark"))
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    scenes: Iterator[NamedScene] = (NamedScene(path.stem, path) for path in arguments.scene)
    if arguments.data is not None:
        generated = generated_scenes(
            bundle,
            arguments.data,
            arguments.out,
            size=arguments.size,
            occupied=arguments.occupied,
            tile_px=arguments.tile,
            harbors=arguments.harbors,
        )
        scenes = chain(scenes, generated)
    figures: list[Figure] = []
    for scene in scenes:
        figures += (found := compare(bundle, scene, arguments))
        print("\n".join(figure.line() for figure in found), flush=True)
    if bundle.manifest.screen is not None and bundle.manifest.screen.calibration is not None:
        print(f"Calibration: {bundle.manifest.screen.calibration.reason}.\n{EXCHANGEABLE}")
    return 0 if all(figure.passed for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
