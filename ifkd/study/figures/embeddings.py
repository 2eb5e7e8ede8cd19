"""Figure 4 of the paper: objects as points, colored by class, before and after the map into the Poincaré ball."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from ifkd import recipe
from ifkd.core.detections import Array
from ifkd.core.progress import track
from ifkd.data.coco import CocoDataset
from ifkd.distillation.hsm import expmap0, in_ball, mobius_distance, tangent_distance
from ifkd.imagery.image_files import pad
from ifkd.models import Detector, normalize
from ifkd.study.figures.drawing import MARKERS, OKABE_ITO, Numbers, Row, panel_widths, save, sheet
from ifkd.training.dataset import scaled
from ifkd.training.prediction import as_batch, padded_size

NAME = "figure4-embeddings"
MOST_OF_A_CLASS, MOST_OBJECTS = 40, 400
"""Objects that are drawn; beyond, points hide each other, and pairs become many."""
POOLED_SIDE, SAMPLING_RATIO = 7, 2
"""Cells of a pooled object along a side, as Faster R-CNN pools, and samples of a cell along a side."""
STEPS = 60
"""Of the descent that lays points on the disk."""


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """Objects of a data set as one network sees them."""

    features: Tensor
    """float64 [n, channels]: its pyramid at one level, pooled over the object's box."""
    labels: Array
    mean_norm: Tensor
    """Mean norm of that level's features over all places, which HSM's automatic scale goes by."""

    def in_ball(self, config: recipe.HsmOptions) -> Tensor:
        """Return the objects where HSM sees features."""
        return in_ball(self.features, config, mean_norm=self.mean_norm)


@dataclass(frozen=True, slots=True)
class Separation:
    """How far objects lie from each other: mean distances of pairs."""

    intra: float
    """Of one class."""
    inter: float
    """Of two classes."""


def chosen(dataset: CocoDataset) -> CocoDataset:
    """Return the images, from the first on, that give enough objects of every class; others are left out."""
    counts: dict[int, int] = {}
    images = []
    for image in dataset.images:
        labels = image.labels[~image.ignore].tolist()
        if sum(counts.values()) < MOST_OBJECTS and any(counts.get(label, 0) < MOST_OF_A_CLASS for label in labels):
            images.append(image)
            for label in labels:
                counts[label] = counts.get(label, 0) + 1
    return CocoDataset(dataset.path, dataset.classes, dataset.category_ids, tuple(images))


@torch.inference_mode()
def objects_of(detector: Detector, dataset: CocoDataset, data: recipe.DataOptions, level: recipe.Level) -> Objects:
    """Return the objects of a data set, at most `MOST_OF_A_CLASS` of each class, as a detector's level sees them.

    Raises:
        DataError: An image cannot be read.
    """
    device, index = next(detector.parameters()).device, detector.config.levels.index(level)
    features, labels, norms, cells = [], list[int](), 0.0, 0
    counts: dict[int, int] = {}
    for image in track(dataset.images, "objects", total=len(dataset), unit="image"):
        pixels, boxes = scaled(image, data.scale, imagery=data.imagery)
        kept = []
        for row in np.flatnonzero(~image.ignore).tolist():
            label = int(image.labels[row])
            if counts.get(label, 0) < MOST_OF_A_CLASS:
                counts[label] = counts.get(label, 0) + 1
                kept.append(row)
        tiles = as_batch([pad(pixels, padded_size((pixels.shape[0], pixels.shape[1])))]).to(device)
        found = detector(normalize(tiles)).pyramid[index].float()
        pooled = roi_align(
            found,
            [torch.from_numpy(boxes[kept]).to(device)],
            POOLED_SIDE,
            spatial_scale=1 / detector.strides[index],
            sampling_ratio=SAMPLING_RATIO,
            aligned=True,
        )
        features.append(pooled.mean(dim=(2, 3)).double().cpu())
        labels += image.labels[kept].tolist()
        norms += float(torch.linalg.vector_norm(found, dim=1).sum())
        cells += found[0, 0].numel()
    none = torch.zeros(0, detector.config.channels, dtype=torch.float64)
    return Objects(
        torch.cat([none, *features]), np.array(labels, np.int64), torch.tensor(norms / max(1, cells)).double()
    )


def euclidean_distances(points: Tensor) -> Tensor:
    """Return the distances of all pairs of points [n, channels]."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def ball_distances(points: Tensor, *, curvature: float) -> Tensor:
    """Return the hyperbolic distances of all pairs of points [n, channels] of the ball."""
    rows = [mobius_distance(one.expand_as(points), points, curvature=curvature)[:, 0] for one in points]
    return torch.stack(rows)


def separation(distances: Tensor, labels: Array) -> Separation:
    """Return the mean distance of pairs of one class and of two; not a number where there is no such pair."""
    alike = torch.from_numpy(labels[:, None] == labels[None])
    pairs = torch.ones_like(distances, dtype=torch.bool).triu(diagonal=1)
    return Separation(float(distances[pairs & alike].mean()), float(distances[pairs & ~alike].mean()))


def principal(points: Tensor) -> Array:
    """Return points [n, channels] along their two directions of most variance, whose largest shares are positive."""
    centerd = (points - points.mean(dim=0)).numpy()
    _, _, directions = np.linalg.svd(centerd, full_matrices=False)
    two = np.zeros((2, centerd.shape[1]))
    two[: len(directions[:2])] = directions[:2]
    signs = np.sign(two[np.arange(2), np.abs(two).argmax(1)])
    found: Array = centerd @ (two * np.where(signs == 0, 1, signs)[:, None]).T
    return found


def on_disk(distances: Tensor, start: Array) -> Array:
    """Return points of the unit disk whose hyperbolic distances are as near to `distances` as can be.

    They begin at `start` [n, 2], scaled to the mean distance, and go down the squared differences of all pairs.
    """
    wanted = distances.double()
    tangents = torch.from_numpy(start).double()
    spread = float(euclidean_distances(tangents).mean())
    tangents = tangents * (float(wanted.mean()) / 2 / max(spread, 1e-12))
    tangents.requires_grad_()
    optimizer = torch.optim.LBFGS([tangents], max_iter=STEPS, line_search_fn="strong_wolfe")
    upper = torch.ones_like(wanted, dtype=torch.bool).triu(diagonal=1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        stress = (disk_distances(tangents)[upper] - wanted[upper]).square().mean()
        stress.backward()  # type: ignore[no-untyped-call]
        return stress

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found: Array = expmap0(tangents.detach(), curvature=1.0).numpy()
    return found


def disk_distances(tangents: Tensor) -> Tensor:
    """Return the hyperbolic distances of all pairs of points of the unit disk, by their tangent vectors [n, 2]."""
    shape = (len(tangents), 2, len(tangents))
    rows, columns = tangents[:, :, None].expand(shape), tangents.T[None].expand(shape)
    return tangent_distance(rows, columns, curvature=1.0)[:, 0]


def draw_embeddings(
    seen: Mapping[str, Objects], classes: Sequence[str], config: recipe.HsmOptions, folder: Path
) -> list[Path]:
    """Write a column for each network: its objects by principal components above, on the Poincaré disk below.

    Args:
        seen: By the network's name, the same objects as each sees them.
        classes: Names by label.
        config: HSM's settings.
        folder: Where.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        OutputError: The folder cannot be written.
    """
    points: list[Row] = []
    distances: list[Row] = []
    width, side = panel_widths(len(seen))
    with sheet(width, 2 * side + 1.2, rows=2, columns=len(seen)) as (figure, grid):
        for column, (name, objects) in enumerate(seen.items()):
            ball = objects.in_ball(config)
            flat, bent = euclidean_distances(objects.features), ball_distances(ball, curvature=config.curvature)
            plane = principal(objects.features)
            disk = on_disk(bent * config.curvature**0.5, principal(ball))
            for row, (space, places, between) in enumerate((("Euclidean", plane, flat), ("Poincaré", disk, bent))):
                apart = separation(between, objects.labels)
                _scatter(grid[row, column], places, objects.labels, f"{name}, {space}", _words(apart))
                points += [
                    (name, space, index, classes[label], float(x), float(y))
                    for index, (label, (x, y)) in enumerate(zip(objects.labels, places, strict=True))
                ]
                distances.append((name, space, apart.intra, apart.inter))
            _circle(grid[1, column])
        occurring = sorted({int(label) for objects in seen.values() for label in objects.labels})
        handles = [_handle(label, classes[label]) for label in occurring]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), handletextpad=0.2)
        paths = save(figure, Numbers(("network", "space", "object", "class", "x", "y"), points), folder, NAME)
    told = Numbers(("network", "space", "mean_intra_class_distance", "mean_inter_class_distance"), distances)
    return [*paths, told.write(folder / f"{NAME}-distances.csv")]


def _words(apart: Separation) -> str:
    inter = "no second class" if np.isnan(apart.inter) else f"between classes {apart.inter:.2f}"
    return f"within a class {apart.intra:.2f}\n{inter}"


def _scatter(axes: Any, places: Array, labels: Array, title: str, words: str) -> None:
    axes.set_title(f"{title}\n{words}", pad=4)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color="0.85")
    for label in sorted(set(labels.tolist())):
        mine = places[labels == label]
        axes.scatter(mine[:, 0], mine[:, 1], s=9, marker=_marker(label), color=_color(label), linewidths=0, alpha=0.8)
    axes.set_aspect("equal", adjustable="datalim")


def _circle(axes: Any) -> None:
    """Draw the disk's border, which lies infinitely far away."""
    from matplotlib.patches import Circle  # noqa: PLC0415 - an optional package

    axes.set_axis_off()
    axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor="0.4", linewidth=0.8))
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlim(-1.03, 1.03)
    axes.set_ylim(-1.03, 1.03)


def _color(label: int) -> str:
    return OKABE_ITO[label % len(OKABE_ITO)]


def _marker(label: int) -> str:
    return MARKERS[label // len(OKABE_ITO) % len(MARKERS)]


def _handle(label: int, name: str) -> Any:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - an optional package

    return Line2D([], [], linestyle="", marker=_marker(label), color=_color(label), markersize=4, label=name)
