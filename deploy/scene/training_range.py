"""Compare the values and the pixel size of a scene with those of the images that a bundle was trained on."""

from deploy.scene.read.scene import SceneInfo
from export.bundle.manifest import Manifest
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.image_values import ImageValues

SIMILAR = 1.25
"""Ratio of two pixel sizes up to which no remark is made."""


def pixel_remarks(scene: SceneInfo, size: tuple[int, int], gsd_m: float | None) -> list[str]:
    """Return a remark on a scene of `size` (height, width) whose pixels are not as large as `gsd_m`, in meters."""
    own = None if scene.georeference is None else scene.georeference.gsd_m(size)
    if own is None or gsd_m is None or 1 / SIMILAR <= own / gsd_m <= SIMILAR:
        return []
    sizes = f"measure {own:.3g} m, but it is processed as if they measured {gsd_m:.3g} m"
    return [
        f"The pixels of {scene.name} {sizes}. State --gsd-m {own:.3g} to resample it, if its coordinates are right."
    ]


def training_remarks(scene: SceneInfo, manifest: Manifest, imagery: ImageryOptions) -> list[str]:
    """Return remarks for the user on a scene whose values may not look like those of the training images.

    `imagery` are the bundle's options with the user's overrides: limits that the user gives are not questioned.
    """
    trained = ImageValues.of_provenance(manifest.provenance)
    remarks, difference = [], ""
    if imagery.limits == manifest.input.imagery.limits:
        if trained is not None and scene.dtype not in trained.dtypes:
            difference = f"but training saw {trained.described}"
        elif trained is None and scene.stretch.rule.startswith("percentiles"):
            difference = "and the bundle does not state which type and range its training images had"
    if difference:
        limits = dict.fromkeys(zip(scene.stretch.low, scene.stretch.high, strict=True))
        used = " and ".join(f"{low:g} to {high:g}" for low, high in limits)
        remarks.append(
            f"{scene.name} has pixels of type {scene.dtype}, {difference}. Its values {used} become black to white "
            f"({scene.stretch.rule}). Give the values that correspond to black and white in the training images with "
            "--scale-range."
        )
    channels = len(set(scene.bands))
    if trained is not None and channels not in trained.channels:
        read, seen = "1 band" if channels == 1 else f"{channels} bands", " or ".join(map(str, trained.channels))
        remarks.append(f"{scene.name} is read as {read}, but training saw images of {seen}. Choose bands with --bands.")
    return remarks
