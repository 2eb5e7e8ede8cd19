"""Distances and projections of object features."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist, squareform

from ifkd.data.coco import read_coco
from ifkd.recipe import HsmOptions
from ifkd.study.figures import embeddings, plotting
from ifkd.study.figures.trained_runs import find_runs


def random_points(count: int, channels: int, *, max_norm: float | None = None) -> torch.Tensor:
    """Return random points, float64 [count, channels]."""
    points = torch.randn(count, channels, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    if max_norm is None:
        return points
    norms = torch.rand(count, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return points / points.norm(dim=1, keepdim=True) * max_norm * norms


def test_class_distances_are_means_over_pairs() -> None:
    points, labels = random_points(30, 6), np.arange(30) % 3
    mean = embeddings.class_distances(embeddings.euclidean_distances(points), labels)
    pairs = [
        (float(np.linalg.norm(points[i].numpy() - points[j].numpy())), labels[i] == labels[j])
        for i in range(30)
        for j in range(i)
    ]
    assert mean.intra_class == pytest.approx(np.mean([distance for distance, same in pairs if same]))
    assert mean.inter_class == pytest.approx(np.mean([distance for distance, same in pairs if not same]))
    assert squareform(pdist(points.numpy())) == pytest.approx(embeddings.euclidean_distances(points).numpy())
    one_class = np.zeros(30, int)
    assert np.isnan(embeddings.class_distances(embeddings.euclidean_distances(points), one_class).inter_class)


@pytest.mark.parametrize("curvature", [1.0, 0.25])
def test_hyperbolic_distances_follow_the_textbook_formula(curvature: float) -> None:
    """arcosh(1 + 2c|p - q|²/((1 - c|p|²)(1 - c|q|²)))/sqrt(c), with Euclidean distances by scipy."""
    points = random_points(25, 5, max_norm=0.95 / curvature**0.5)
    conformal = 1 - curvature * (points.numpy() ** 2).sum(1)
    squared = cdist(points.numpy(), points.numpy(), "sqeuclidean")
    expected = np.arccosh(1 + 2 * curvature * squared / np.outer(conformal, conformal)) / curvature**0.5
    assert embeddings.ball_distances(points, curvature=curvature).numpy() == pytest.approx(expected, abs=1e-7)
    if curvature == 1.0:
        tangents = torch.atanh(points.norm(dim=1, keepdim=True)) * points / points.norm(dim=1, keepdim=True)
        distances = embeddings.disk_distances(tangents[:, :2])
        radius = tangents[:, :2].norm(dim=1, keepdim=True)
        disk = radius.tanh() * tangents[:, :2] / radius
        assert distances.numpy() == pytest.approx(embeddings.ball_distances(disk, curvature=1.0).numpy(), abs=1e-9)


def test_principal_components_have_most_variance_and_a_fixed_sign() -> None:
    points = random_points(40, 5) @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1], dtype=torch.float64))
    plane = embeddings.principal_components(points)
    eigenvalues = np.linalg.eigvalsh(np.cov(points.numpy().T))[::-1]
    assert plane.var(0, ddof=1) == pytest.approx(eigenvalues[:2])
    assert embeddings.principal_components(points + 7) == pytest.approx(plane)
    assert embeddings.principal_components(random_points(3, 1)).shape == (3, 2)


def test_points_on_a_disk_are_recovered_from_their_distances() -> None:
    tangents = random_points(20, 2)
    distances = embeddings.disk_distances(tangents)
    start = tangents.numpy() + 0.3 * np.random.default_rng(0).normal(size=(20, 2))
    disk = embeddings.embed_on_disk(distances, start)
    assert np.linalg.norm(disk, axis=1).max() < 1
    recovered = embeddings.ball_distances(torch.from_numpy(disk), curvature=1.0)
    assert recovered.numpy() == pytest.approx(distances.numpy(), abs=0.05)
    assert (embeddings.embed_on_disk(distances, start) == disk).all()


def test_titles_stay_inside_their_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of a teacher trained from scratch have large distances, with many digits."""
    boxes = []

    def measure(figure: Any, *_: Any) -> list[Path]:
        figure.draw_without_rendering()
        boxes.extend([axes.title.get_window_extent() for axes in figure.axes])
        return []

    monkeypatch.setattr(plotting, "save_figure", measure)
    labels = np.arange(12) % 3
    networks = {
        name: embeddings.ObjectFeatures(90 * random_points(12, 4), labels, torch.tensor(90.0)) for name in "abc"
    }
    embeddings.draw_embeddings(networks, ("x", "y", "z"), HsmOptions(), tmp_path)
    assert all(left.x1 < right.x0 for row in (boxes[:3], boxes[3:]) for left, right in pairwise(row))


def test_a_split_without_objects_has_no_points(
    study_folder: Path, write_data_set: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_data_set(tmp_path, images=2)
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    run = find_runs(study_folder).teacher
    images = embeddings.select_images(read_coco(path))
    objects = embeddings.object_features(run.detector, images, run.recipe.data, "p3")
    assert objects.features.shape == (0, 16)
    assert len(objects.labels) == 0
