"""Compare the values of a scene with those of the images that a bundle was trained on."""

from deploy.scene.read.scene import SceneInfo
from export.bundle.manifest import Manifest
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.image_values import ImageValues


def training_remarks(scene: SceneInfo, manifest: Manifest, imagery: ImageryOptions) -> list[str]:
    """Return remarks for the user on a scene whose values may not look like those of the training images.

    `imagery` are the bundle's options with the user's overrides: limits that the user gives are not questioned.
    """
    trained = ImageValues.of_provenance(manifest.provenance)
    remarks = []
    low, high = scene.stretch.low, scene.stretch.high
    used = " and ".join(f"{start:g} to {stop:g}" for start, stop in dict.fromkeys(zip(low, high, strict=True)))
    scaling = f"Its values {used} become black to white ({scene.stretch.rule})."
    way_out = "Give the values that correspond to black and white in the training images with --scale-range."
    own_limits = imagery.limits != manifest.input.imagery.limits
    if trained is None:
        if not own_limits and scene.stretch.rule.startswith("percentiles"):
            remarks.append(
                f"{scene.name} has pixels of type {scene.dtype}, and the bundle does not state which type and range "
                f"its training images had. {scaling} {way_out}"
            )
        return remarks
    if not own_limits and scene.dtype not in trained.dtypes:
        remarks.append(
            f"{scene.name} has pixels of type {scene.dtype}, but training saw {trained.described}. {scaling} {way_out}"
        )
    if (channels := len(set(scene.bands))) not in trained.channels:
        seen = " or ".join(map(str, trained.channels))
        remarks.append(
            f"{scene.name} is read as {_bands(channels)}, but training saw images of {seen}. Choose bands with --bands."
        )
    return remarks


def _bands(count: int) -> str:
    return "1 band" if count == 1 else f"{count} bands"
