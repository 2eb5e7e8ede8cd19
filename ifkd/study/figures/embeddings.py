"""Figure 4 of the paper: object features in Euclidean space and on the Poincaré disk, colored by class."""

from collections import Counter
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
from ifkd.study.figures import plotting
from ifkd.study.figures.plotting import FigureData, Row
from ifkd.training.dataset import load_scaled
from ifkd.training.prediction import as_batch, padded_size

NAME = "figure4-embeddings"
MAX_PER_CLASS, MAX_OBJECTS = 40, 400
"""Limits of the objects drawn, because points overlap and the number of pairs grows quadratically."""
ROI_SIZE, SAMPLING_RATIO = 7, 2
"""Output size and sampling ratio of RoIAlign, as in Faster R-CNN."""
MAX_ITERATIONS = 60
"""Of the optimization of points on the disk."""


@dataclass(frozen=True, slots=True, eq=False)
class ObjectFeatures:
    """Features of a data set's objects in one network."""

    features: Tensor
    """float64 [n, channels], pyramid features of one level, averaged over each object's box."""
    labels: Array
    """int64 [n]."""
    mean_norm: Tensor
    """Mean norm of the level's features over all cells, which sets HSM's automatic scale."""


@dataclass(frozen=True, slots=True)
class ClassDistances:
    """Mean distances of pairs of objects; nan where there is no such pair."""

    intra_class: float
    inter_class: float


def select_images(dataset: CocoDataset) -> CocoDataset:
    """Return the first images that together contain enough objects of each class."""
    counts, images = Counter[int](), []
    for image in dataset.images:
        labels = image.labels[~image.ignore].tolist()
        if counts.total() < MAX_OBJECTS and any(counts[label] < MAX_PER_CLASS for label in labels):
            images.append(image)
            counts.update(labels)
    return CocoDataset(dataset.path, dataset.classes, dataset.category_ids, tuple(images))


@torch.inference_mode()
def object_features(
    detector: Detector, dataset: CocoDataset, data: recipe.DataOptions, level: recipe.Level
) -> ObjectFeatures:
    """Return a detector's features at a level of the data set's first `MAX_PER_CLASS` objects of each class.

    Raises:
        DataError: An image cannot be read.
    """
    device, index = next(detector.parameters()).device, detector.config.levels.index(level)
    features, labels, norms, cells, counts = [], list[int](), 0.0, 0, Counter[int]()
    scale = 1 / detector.strides[index]
    for image in track(dataset.images, "objects", total=len(dataset), unit="image"):
        pixels, boxes = load_scaled(image, data.scale, imagery=data.imagery)
        rows = []
        for row in np.flatnonzero(~image.ignore).tolist():
            if counts[label := int(image.labels[row])] < MAX_PER_CLASS:
                counts[label] += 1
                rows.append(row)
        images = as_batch([pad(pixels, padded_size((pixels.shape[0], pixels.shape[1])))]).to(device)
        feature_map = detector(normalize(images)).pyramid[index].float()
        rois = [torch.from_numpy(boxes[rows]).to(device)]
        pooled = roi_align(feature_map, rois, ROI_SIZE, scale, sampling_ratio=SAMPLING_RATIO, aligned=True)
        features.append(pooled.mean(dim=(2, 3)).double().cpu())
        labels += image.labels[rows].tolist()
        norms += float(torch.linalg.vector_norm(feature_map, dim=1).sum())
        cells += feature_map[0, 0].numel()
    empty = torch.zeros(0, detector.config.channels, dtype=torch.float64)
    mean_norm = torch.tensor(norms / max(1, cells)).double()
    return ObjectFeatures(torch.cat([empty, *features]), np.array(labels, np.int64), mean_norm)


def euclidean_distances(points: Tensor) -> Tensor:
    """Return the Euclidean distances of all pairs of points [n, channels], as [n, n]."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def ball_distances(points: Tensor, *, curvature: float) -> Tensor:
    """Return the hyperbolic distances of all pairs of points [n, channels] in the Poincaré ball, as [n, n]."""
    rows = [mobius_distance(one.expand_as(points), points, curvature=curvature)[:, 0] for one in points]
    return torch.stack(rows)


def class_distances(distances: Tensor, labels: Array) -> ClassDistances:
    """Return the mean distances of pairs within and between classes."""
    same_class = torch.from_numpy(labels[:, None] == labels[None])
    pairs = torch.ones_like(distances, dtype=torch.bool).triu(diagonal=1)
    return ClassDistances(float(distances[pairs & same_class].mean()), float(distances[pairs & ~same_class].mean()))


def principal_components(points: Tensor) -> Array:
    """Return points [n, channels] projected onto their first two principal components, as [n, 2].

    The largest coefficient of each component is positive, so that its sign is reproducible.
    """
    centered = (points - points.mean(dim=0)).numpy()
    _, _, directions = np.linalg.svd(centered, full_matrices=False)
    components = np.zeros((2, centered.shape[1]))
    components[: len(directions[:2])] = directions[:2]
    signs = np.sign(components[np.arange(2), np.abs(components).argmax(1)])
    return centered @ (components * np.where(signs == 0, 1, signs)[:, None]).T


def embed_on_disk(distances: Tensor, start: Array) -> Array:
    """Return points of the unit disk, [n, 2], whose hyperbolic distances approximate `distances` [n, n].

    L-BFGS minimizes the mean squared difference over all pairs, from `start` [n, 2] scaled to the mean distance.
    """
    target = distances.double()
    tangents = torch.from_numpy(start).double()
    spread = float(euclidean_distances(tangents).mean())
    tangents = tangents * (float(target.mean()) / 2 / max(spread, 1e-12))
    tangents.requires_grad_()
    optimizer = torch.optim.LBFGS([tangents], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")
    pairs = torch.ones_like(target, dtype=torch.bool).triu(diagonal=1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        stress = (disk_distances(tangents)[pairs] - target[pairs]).square().mean()
        stress.backward()  # type: ignore[no-untyped-call]
        return stress

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return expmap0(tangents.detach(), curvature=1.0).numpy()


def disk_distances(tangents: Tensor) -> Tensor:
    """Return the hyperbolic distances, [n, n], of all pairs of points of the unit disk, given as tangents [n, 2]."""
    shape = (len(tangents), 2, len(tangents))
    rows, columns = tangents[:, :, None].expand(shape), tangents.T[None].expand(shape)
    return tangent_distance(rows, columns, curvature=1.0)[:, 0]


def draw_embeddings(
    networks: Mapping[str, ObjectFeatures], classes: Sequence[str], config: recipe.HsmOptions, folder: Path
) -> list[Path]:
    """Write a column for each network: principal components of its objects, and the objects on the Poincaré disk.

    `networks` are features of the same objects, by name of the network.
    """
    from matplotlib.lines import Line2D  # noqa: PLC0415 - an optional package

    points, means = list[Row](), list[Row]()
    with plotting.panel_grid(2, len(networks), aspect=1.0, margin=1.2) as (figure, grid):
        for column, (name, objects) in enumerate(networks.items()):
            ball = in_ball(objects.features, config, mean_norm=objects.mean_norm)
            euclidean = euclidean_distances(objects.features)
            hyperbolic = ball_distances(ball, curvature=config.curvature)
            plane = principal_components(objects.features)
            disk = embed_on_disk(hyperbolic * config.curvature**0.5, principal_components(ball))
            spaces = ("Euclidean", plane, euclidean), ("Poincaré", disk, hyperbolic)
            for row, (space, positions, distances) in enumerate(spaces):
                mean = class_distances(distances, objects.labels)
                inter = "one class only" if np.isnan(mean.inter_class) else f"between classes {mean.inter_class:.2f}"
                title = f"{name}, {space}\nwithin a class {mean.intra_class:.2f}\n{inter}"
                _draw_points(grid[row, column], positions, objects.labels, title)
                points += [
                    (name, space, index, classes[label], float(x), float(y))
                    for index, (label, (x, y)) in enumerate(zip(objects.labels, positions, strict=True))
                ]
                means.append((name, space, mean.intra_class, mean.inter_class))
            _draw_disk(grid[1, column])
        present = sorted({int(label) for objects in networks.values() for label in objects.labels})
        marker: dict[str, Any] = {"linestyle": "", "markersize": 4}
        handles = [Line2D([], [], label=classes[label], **marker, **_style(label)) for label in present]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), handletextpad=0.2)
        data = FigureData(("network", "space", "object", "class", "x", "y"), points)
        paths = plotting.save_figure(figure, data, folder, NAME)
    headings = ("network", "space", "mean_intra_class_distance", "mean_inter_class_distance")
    return [*paths, FigureData(headings, means).write(folder / f"{NAME}-distances.csv")]


def _draw_points(axes: Any, positions: Array, labels: Array, title: str) -> None:
    axes.set_title(title, pad=4)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color="0.85")
    for label in sorted(set(labels.tolist())):
        x, y = positions[labels == label].T
        axes.scatter(x, y, s=9, linewidths=0, alpha=0.8, **_style(label))
    axes.set_aspect("equal", adjustable="datalim")


def _draw_disk(axes: Any) -> None:
    """Draw the border of the Poincaré disk."""
    from matplotlib.patches import Circle  # noqa: PLC0415 - an optional package

    axes.set_axis_off()
    axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor="0.4", linewidth=0.8))
    axes.set(adjustable="box", xlim=(-1.03, 1.03), ylim=(-1.03, 1.03))


def _style(label: int) -> dict[str, Any]:
    """Return color and marker of a class; markers change when all colors are used."""
    index, color = divmod(label, len(plotting.OKABE_ITO))
    return {"color": plotting.OKABE_ITO[color], "marker": plotting.MARKERS[index % len(plotting.MARKERS)]}
