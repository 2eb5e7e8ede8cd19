"""Figures of a study: the numbers behind them, and files that open and do not change from day to day."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from defusedxml import ElementTree
from ifkd.study.figures.drawing import Numbers
from PIL import Image
from scipy.spatial.distance import cdist, pdist, squareform

from deploy.cli.main import main
from ifkd import recipe
from ifkd.core.config import parse
from ifkd.core.detections import Detections
from ifkd.core.errors import MissingExtraError, UsageError
from ifkd.data.coco import CocoDataset, read_coco
from ifkd.data.metrics import Metrics
from ifkd.distillation.method_checkpoint import load_method_checkpoint
from ifkd.recipe import Recipe
from ifkd.study.figures import drawing, embeddings, fdr_filters
from ifkd.study.figures.comparison import draw_comparison
from ifkd.study.figures.detections import detection_numbers, draw_detections, found_by
from ifkd.study.figures.example_intermediates import example_intermediates
from ifkd.study.figures.examples import Example, examples
from ifkd.study.figures.sensitivity import draw_sensitivity
from ifkd.study.figures.trained_runs import find_runs
from ifkd.study.study_record import Outcome, StudyRecord
from ifkd.training.pipelines import distill_student, train_role
from ifkd.training.prediction import predict

SVG = "{http://www.w3.org/2000/svg}"
FIGURES = ("figure3-disturbance", "figure4-embeddings", "figure6-detections", "frequency-bands", "masks", "filters")
DRAWN = (
    "figure3-disturbance-p3",
    "figure4-embeddings",
    "figure6-detections",
    "frequency-bands-p3",
    "masks-p3",
    "filters",
)


def reached(mean_ap: float) -> Outcome:
    metrics = Metrics(mean_ap=mean_ap, ap50=mean_ap, ap75=mean_ap, images=1, objects=1, per_class={})
    return Outcome(metrics=metrics, seconds=1.0, checkpoint_sha256="0" * 64)


def sweep() -> StudyRecord:
    """Return a sweep of beta over two seeds."""
    students = {
        "student": (reached(0.30), reached(0.34)),
        "beta=0.1": (reached(0.35), reached(0.37)),
        "beta=0.5": (reached(0.36), None),
    }
    return StudyRecord(
        title="Sweep", recipe="r", recipe_toml="", seeds=(1, 2), teacher=reached(0.4), students=students,
        parameter="beta", values={"beta=0.1": 0.1, "beta=0.5": 0.5},
    )  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def column(found: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in found]


def assert_opens(folder: Path, name: str) -> None:
    """Open a figure's files as others do: Pillow, an XML parser, and a PDF's own words."""
    with Image.open(folder / f"{name}.png") as picture:
        picture.load()
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    root = ElementTree.parse(folder / f"{name}.svg").getroot()
    assert root.tag == f"{SVG}svg"
    assert next(root.iter(f"{SVG}path"), None) is not None
    content = (folder / f"{name}.pdf").read_bytes()
    assert content.startswith(b"%PDF-1.")
    assert content.rstrip().endswith(b"%%EOF")
    assert content.count(b"/Type /Page ") == 1
    assert rows(folder / f"{name}.csv")


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_sweep_is_drawn_with_the_numbers_behind_it(tmp_path: Path) -> None:
    paths = draw_sensitivity(sweep(), tmp_path / "a")
    assert [path.name for path in paths] == [
        f"figure5-sensitivity-beta.{form}" for form in ("png", "svg", "pdf", "csv")
    ]
    assert_opens(tmp_path / "a", "figure5-sensitivity-beta")
    told = [(row["series"], row["value"], row["seed"], float(row["map_points"])) for row in rows(paths[-1])]
    assert told == [
        ("teacher", "", "1", 40.0),
        ("student", "", "1", 30.0),
        ("student", "", "2", 34.0),
        ("beta", "0.1", "1", 35.0),
        ("beta", "0.1", "2", 37.0),
        ("beta", "0.5", "1", 36.0),
    ]
    for one, other in zip(paths, draw_sensitivity(sweep(), tmp_path / "b"), strict=True):
        assert one.read_bytes() == other.read_bytes(), one.suffix


def test_a_comparison_is_drawn_in_the_order_of_its_means(tmp_path: Path) -> None:
    record = sweep().model_copy(update={"parameter": None, "values": {}})
    record.students["ifkd"] = (reached(0.41), reached(0.29))
    record.students["absent"] = (None, None)
    paths = draw_comparison(record, tmp_path)
    assert_opens(tmp_path, "comparison")
    told = [(row["variant"], row["seed"], float(row["map_points"])) for row in rows(paths[-1])]
    assert told == [
        ("teacher", "1", 40.0),
        ("beta=0.1", "1", 35.0),
        ("beta=0.1", "2", 37.0),
        ("beta=0.5", "1", 36.0),
        ("ifkd", "1", 41.0),
        ("ifkd", "2", 29.0),
        ("student", "1", 30.0),
        ("student", "2", 34.0),
    ]
    alone = record.model_copy(update={"students": {"ifkd": record.students["ifkd"]}})
    assert len(draw_comparison(alone, tmp_path / "without_the_plain_student")) == 4


def test_numbers_keep_what_float32_tells_apart() -> None:
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    lines = Numbers(("a",), [(float(value),) for value in values]).csv().splitlines()[1:]
    assert (np.array(lines, np.float32) == values).all()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"ifkd\[figures\]"):
        drawing.need_matplotlib()


# --- embeddings -----------------------------------------------------------------------------------------------------


def points(count: int, channels: int, *, within: float | None = None) -> torch.Tensor:
    """Return points; `within` a radius when it is given."""
    made = torch.randn(count, channels, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return made if within is None else made / made.norm(dim=1, keepdim=True) * within * torch.rand(
        count, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )  # fmt: skip


def test_separation_is_scipys_mean_over_pairs() -> None:
    found, labels = points(30, 6), np.arange(30) % 3
    apart = embeddings.separation(embeddings.euclidean_distances(found), labels)
    pairs = [
        (float(np.linalg.norm(found[i].numpy() - found[j].numpy())), labels[i] == labels[j])
        for i in range(30)
        for j in range(i)
    ]
    assert apart.intra == pytest.approx(np.mean([distance for distance, alike in pairs if alike]))
    assert apart.inter == pytest.approx(np.mean([distance for distance, alike in pairs if not alike]))
    assert squareform(pdist(found.numpy())) == pytest.approx(embeddings.euclidean_distances(found).numpy())
    assert np.isnan(embeddings.separation(embeddings.euclidean_distances(found), np.zeros(30, int)).inter)


@pytest.mark.parametrize("curvature", [1.0, 0.25])
def test_distances_in_the_ball_are_its_metrics(curvature: float) -> None:
    """arcosh(1 + 2c|p - q|²/((1 - c|p|²)(1 - c|q|²)))/sqrt(c), as textbooks have it, by scipy's distances."""
    found = points(25, 5, within=0.95 / curvature**0.5)
    inner = 1 - curvature * (found.numpy() ** 2).sum(1)
    gaps = cdist(found.numpy(), found.numpy(), "sqeuclidean")
    expected = np.arccosh(1 + 2 * curvature * gaps / np.outer(inner, inner)) / curvature**0.5
    assert embeddings.ball_distances(found, curvature=curvature).numpy() == pytest.approx(expected, abs=1e-7)
    if curvature == 1.0:
        tangents = torch.atanh(found.norm(dim=1, keepdim=True)) * found / found.norm(dim=1, keepdim=True)
        flat = embeddings.disk_distances(tangents[:, :2])
        radius = tangents[:, :2].norm(dim=1, keepdim=True)
        disk = radius.tanh() * tangents[:, :2] / radius
        assert flat.numpy() == pytest.approx(embeddings.ball_distances(disk, curvature=1.0).numpy(), abs=1e-9)


def test_principal_components_keep_most_variance_and_their_sign() -> None:
    found = points(40, 5) @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1], dtype=torch.float64))
    plane = embeddings.principal(found)
    eigenvalues = np.linalg.eigvalsh(np.cov(found.numpy().T))[::-1]
    assert plane.var(0, ddof=1) == pytest.approx(eigenvalues[:2])
    assert embeddings.principal(found + 7) == pytest.approx(plane)
    assert embeddings.principal(points(3, 1)).shape == (3, 2)


def test_a_flat_disk_is_found_again() -> None:
    """Points that lie on a disk have distances that a disk can show without error."""
    tangents = points(20, 2)
    wanted = embeddings.disk_distances(tangents)
    start = tangents.numpy() + 0.3 * np.random.default_rng(0).normal(size=(20, 2))
    laid = embeddings.on_disk(wanted, start)
    assert np.linalg.norm(laid, axis=1).max() < 1
    again = embeddings.ball_distances(torch.from_numpy(laid), curvature=1.0)
    assert again.numpy() == pytest.approx(wanted.numpy(), abs=0.05)
    assert (embeddings.on_disk(wanted, start) == laid).all()


def test_titles_of_embeddings_keep_to_their_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of a teacher trained from scratch lie tens apart, so that distances have many digits."""
    boxes = []

    def keep(figure: Any, *_: Any) -> list[Path]:
        figure.draw_without_rendering()
        boxes.extend([axes.title.get_window_extent() for axes in figure.axes])
        return []

    monkeypatch.setattr(embeddings, "save", keep)
    labels = np.arange(12) % 3
    seen = {name: embeddings.Objects(90 * points(12, 4), labels, torch.tensor(90.0)) for name in ("a", "b", "c")}
    embeddings.draw_embeddings(seen, ("x", "y", "z"), recipe.HsmOptions(), tmp_path)
    rows = boxes[:3], boxes[3:]
    assert all(left.x1 < right.x0 for row in rows for left, right in pairwise(row))


# --- examples -------------------------------------------------------------------------------------------------------


def data_set(folder: Path, name: str = "val") -> CocoDataset:
    return read_coco(folder / f"{name}.json")


def test_examples_are_windows_with_their_objects(data_folder: Path, write_data_set: Callable[..., Path]) -> None:
    write_data_set(data_folder, "large", images=2, size=(200, 150))
    dataset = data_set(data_folder, "large")
    settings = recipe.DataOptions(train="t.json", validation=0.5, test="t.json", tile_px=64)  # type: ignore[arg-type]
    for image, example in zip(dataset.images, examples(dataset, settings, names=["100", "large_001.png"]), strict=True):
        assert example.name == image.path.stem
        assert example.size == (64, 64)
        whole = np.asarray(Image.open(image.path))
        assert len(example.boxes) >= 1
        for box, label in zip(example.boxes, example.labels, strict=True):
            x1, y1, x2, y2 = box.round().astype(int)
            shown = example.pixels[(y1 + y2) // 2, (x1 + x2) // 2]
            row = np.flatnonzero(image.labels == label)
            colors = [whole[int(b[1] + b[3]) // 2, int(b[0] + b[2]) // 2] for b in image.boxes[row]]
            assert any((shown == color).all() for color in colors)


def test_chosen_examples_show_many_classes(data_folder: Path) -> None:
    settings = recipe.DataOptions(train="t.json", validation=0.5, test="t.json", tile_px=64)  # type: ignore[arg-type]
    chosen = examples(data_set(data_folder, "train"), settings, count=2)
    assert {label for example in chosen for label in example.labels.tolist()} == {0, 1, 2}


def test_an_unknown_image_is_refused_with_a_hint(data_folder: Path) -> None:
    settings = recipe.DataOptions(train="t.json", validation=0.5, test="t.json", tile_px=64)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"no image 'val_01'.*Did you mean 'val_001'\? .*100 \(val_000\)"):
        examples(data_set(data_folder), settings, names=["val_01"])


def test_boxes_lie_on_the_pixels_they_enclose(tmp_path: Path) -> None:
    """A green block with its true box, seen by its colors in the finished PNG."""
    pixels = np.full((20, 24, 3), 255, np.uint8)
    pixels[5:15, 4:12] = (0, 255, 0)
    example = Example("a", pixels, np.array([[4, 5, 12, 15]], np.float32), np.array([0]))
    draw_detections({"teacher": [Detections.empty()]}, [example], ("ferry",), tmp_path)
    drawn = np.asarray(Image.open(tmp_path / "figure6-detections.png").convert("RGB")).astype(int)
    drawn = drawn[: int(0.85 * len(drawn))]  # without the legend
    green = np.argwhere((np.abs(drawn - (0, 255, 0)) < 9).all(2))
    blue = np.argwhere((np.abs(drawn - (0, 0x72, 0xB2)) < 9).all(2))
    scale = (green.max(0) - green.min(0)) / (10, 8)
    assert np.abs(blue.min(0) - green.min(0)).max() < 0.2 * scale.min()
    assert np.abs(blue.max(0) - green.max(0)).max() < 0.2 * scale.min()


def test_numbers_of_detections_are_the_boxes_drawn() -> None:
    example = Example("a", np.zeros((8, 8, 3), np.uint8), np.array([[1, 2, 3, 4]], np.float32), np.array([1]))
    found = Detections(np.array([[0, 0, 5, 6.5]], np.float32), np.array([0.75], np.float32), np.array([0]))
    told = detection_numbers({"teacher": [found]}, [example], ("ferry", "tug")).rows
    assert told == [
        ("a", "truth", "tug", "", 1.0, 2.0, 3.0, 4.0),
        ("a", "teacher", "ferry", 0.75, 0.0, 0.0, 5.0, 6.5),
    ]


# --- a whole study --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[[Path], dict[str, Any]]) -> Path:
    """A folder with a teacher, a plain student, AT and IFKD of one epoch; tests change nothing in it."""
    folder = tmp_path_factory.mktemp("figures")
    values = make_recipe(folder / "data")
    values["data"]["train"] = "val.json"
    for part in (values["teacher"], values["student"], values["distillation"]):
        part["training"]["epochs"] = 1
    made = folder / "study"
    train_role(parse(values, Recipe, source="values"), "teacher", made / "teacher")
    for name, method in (("student", {"name": "none"}), ("at", {"name": "at"}), ("ifkd", None)):
        own = values["distillation"]["method"] if method is None else method
        changed = {**values, "distillation": {**values["distillation"], "method": own}}
        settings = parse(changed, Recipe, source="values")
        distill_student(settings, made / "teacher" / "best.safetensors", made / f"{name}-5")
    return made


@pytest.fixture(scope="module")
def figures(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its figures."""
    folder = tmp_path_factory.mktemp("drawn")
    assert main(["study", "figures", str(study), "--images", "100", "val_002", "--out", str(folder), "--json"]) == 0
    return folder


def test_the_whole_method_is_found_in_every_kind_of_study(study: Path, tmp_path: Path) -> None:
    """Of an ablation the row with all parts; of a sweep the first that is IFKD; of two seeds the one that has it."""

    def linked(name: str, runs: dict[str, str]) -> Path:
        (tmp_path / name).mkdir()
        for label, run in {"teacher": "teacher", **runs}.items():
            (tmp_path / name / label).symlink_to(study / run)
        return tmp_path / name

    ablation = linked("ablation", {"student-5": "student-5", "at-5": "at-5", "at+ede+fdr+hsm-5": "ifkd-5"})
    assert find_runs(ablation).whole == "at+ede+fdr+hsm"
    two = find_runs(linked("sweep", {"student-4": "student-5", "student-7": "student-5", "alpha=0.06-7": "ifkd-5"}))
    assert (two.seed, two.whole, two.attention) == (7, "alpha=0.06", None)
    assert find_runs(tmp_path / "sweep", seed=4).whole is None
    with pytest.raises(UsageError, match=r"no finished run alpha=0\.06-4\. There are student"):
        find_runs(tmp_path / "sweep", seed=4, label="alpha=0.06")
    alone = find_runs(linked("alone", {}))
    assert (alone.students, alone.ifkd) == ({}, None)


def test_every_figure_is_there_and_opens(study: Path, figures: Path, tmp_path: Path) -> None:
    record = json.loads((figures / "figures.json").read_text())
    assert set(record["figures"]) == set(FIGURES)
    assert set(record["left_out"]) == {"figure5-sensitivity", "comparison"}
    assert record["images"] == ["val_000", "val_002"]
    assert set(record["checkpoints"]) == {"teacher", "student", "at", "ifkd"}
    for name in DRAWN:
        assert_opens(figures, name)
    (tmp_path / "study.json").write_text(sweep().model_dump_json())
    for run in study.iterdir():
        (tmp_path / run.name).symlink_to(run)
    again = tmp_path / "again"
    words = ["study", "figures", str(tmp_path), "--images", "100", "val_002", "--out", str(again)]
    assert main(words) == 0
    for path in figures.glob("figure*.svg"):
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    assert_opens(again, "figure5-sensitivity-beta")
    assert not (again / "comparison.png").exists()
    compared = sweep().model_copy(update={"parameter": None, "values": {}})
    (tmp_path / "study.json").write_text(compared.model_dump_json())
    assert main([*words[:-1], str(tmp_path / "third")]) == 0
    assert_opens(tmp_path / "third", "comparison")


def test_maps_in_the_csv_are_those_of_the_method(study: Path, figures: Path) -> None:
    runs = find_runs(study)
    assert runs.ifkd is not None
    shown = examples(data_set(study.parent / "data"), runs.teacher.recipe.data, names=["100", "102"])
    insight = example_intermediates(runs.teacher, runs.ifkd, shown)
    assert (insight.unlearned, insight.undisturbed, insight.encoder) == (None, None, "random weights")
    second = insight.at("p3")[1]
    with torch.inference_mode():
        pyramid = runs.teacher.detector(drawing_batch(shown[1])).pyramid
    assert torch.allclose(second.teacher / second.teacher.norm(), pyramid[0] / pyramid[0].norm(), atol=1e-6)
    assert second.disturbance is not None
    expected = {
        ("figure3-disturbance-p3", "teacher"): second.teacher.abs().mean(1),
        ("figure3-disturbance-p3", "disturbed"): (second.teacher + second.disturbance).abs().mean(1),
        ("figure3-disturbance-p3", "disturbance"): second.disturbance.mean(1),
        ("masks-p3", "m_frs"): second.richness,
        ("masks-p3", "m_hsm"): second.similarity,
        ("frequency-bands-p3", "low"): second.low.abs().mean(1),
        ("frequency-bands-p3", "high"): (second.teacher - second.low).abs().mean(1),
    }
    for (name, panel), values in expected.items():
        told = [row for row in rows(figures / f"{name}.csv") if (row["image"], row["panel"]) == ("val_002", panel)]
        assert column(told, "value") == pytest.approx(values.flatten().tolist(), rel=1e-4, abs=1e-6), (name, panel)


def drawing_batch(example: Example) -> torch.Tensor:
    """Return an example as a detector takes it, by torchvision's own arithmetic."""
    from torchvision.transforms.v2 import functional

    pixels = torch.from_numpy(example.padded.transpose(2, 0, 1).copy())[None].float() / 255
    return functional.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_filters_in_the_csv_are_the_learned_ones(study: Path, figures: Path) -> None:
    """Tiles of 64 px have maps of 4x4 at P4."""
    learned: Any = load_method_checkpoint(study / "ifkd-5" / "method.safetensors")
    told = [row for row in rows(figures / "filters.csv") if row["level"] == "p4"]
    factors = learned.filters["p4"].factors(4, 4).detach().numpy()
    by_place = {(row["vertical_frequency"], row["horizontal_frequency"]): row for row in told}
    assert len(by_place) == 4 * 3
    assert float(by_place["0", "0"]["mean"]) == pytest.approx(factors[:, 0, 0].mean(), rel=1e-5)
    assert float(by_place["-0.25", "0.5"]["mean"]) == pytest.approx(factors[:, 3, 2].mean(), rel=1e-5)
    assert float(by_place["-0.5", "0"]["deviation_over_channels"]) == pytest.approx(factors[:, 2, 0].std(), abs=1e-6)


def test_radial_frequencies_are_means_over_rings() -> None:
    factors = np.random.default_rng(0).normal(1, 0.1, (3, 8, 5))
    radius, mean = fdr_filters.Spectrum(8, factors).by_radius()
    assert radius == pytest.approx(np.arange(5) / 8)
    vertical, horizontal = np.meshgrid(np.arange(-4, 4), np.arange(5), indexing="ij")
    for waves in range(5):
        ring = np.abs(np.hypot(vertical, horizontal) - waves) < 0.5
        assert mean[waves] == pytest.approx(factors[:, ring].mean())


def test_distances_in_the_csv_are_those_of_the_objects(study: Path, figures: Path) -> None:
    runs = find_runs(study)
    dataset, settings = data_set(study.parent / "data"), runs.teacher.recipe
    seen = embeddings.objects_of(runs.teacher.detector, dataset, settings.data, "p3")
    assert len(seen.labels) == sum(len(image.labels) for image in dataset.images)
    told = rows(figures / "figure4-embeddings-distances.csv")
    assert [(row["network"], row["space"]) for row in told] == [
        (network, space) for network in ("teacher", "student", "IFKD") for space in ("Euclidean", "Poincaré")
    ]
    flat = squareform(pdist(seen.features.numpy()))
    alike = seen.labels[:, None] == seen.labels[None]
    upper = np.triu(np.ones_like(alike), 1)
    assert float(told[0]["mean_intra_class_distance"]) == pytest.approx(flat[upper & alike].mean(), rel=1e-6)
    assert float(told[0]["mean_inter_class_distance"]) == pytest.approx(flat[upper & ~alike].mean(), rel=1e-6)
    places = [row for row in rows(figures / "figure4-embeddings.csv") if row["network"] == "student"]
    disk = [row for row in places if row["space"] == "Poincaré"]
    assert len(disk) == len(seen.labels)
    assert max(np.hypot(column(disk, "x"), column(disk, "y"))) < 1
    ball = seen.in_ball(recipe.HsmOptions()).norm(dim=1)
    assert ball.max() < 1


def test_a_split_without_objects_has_no_points(
    study: Path, write_data_set: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_data_set(tmp_path, images=2)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    empty = read_coco(path)
    run = find_runs(study).teacher
    seen = embeddings.objects_of(run.detector, embeddings.chosen(empty), run.recipe.data, "p3")
    assert seen.features.shape == (0, 16)
    assert len(seen.labels) == 0


def test_detections_are_those_of_prediction(study: Path) -> None:
    runs = find_runs(study)
    settings = runs.teacher.recipe
    dataset = data_set(study.parent / "data")
    shown = examples(dataset, settings.data, names=["100"])
    found = found_by(runs.teacher, shown, settings, least_score=0.01)[0]
    low = settings.postprocess.model_copy(update={"score_threshold": 0.01})
    known = dict(predict(runs.teacher.detector, dataset, settings.data, low, per_level=50))[100]
    assert len(found) > 0
    assert found.boxes == pytest.approx(known.boxes, abs=1e-3)
    assert found.scores == pytest.approx(known.scores, abs=1e-5)


def test_what_cannot_be_drawn_is_told(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An older run kept no layers; MobileSAM's weights have gone; AT was not trained."""
    for name in ("teacher", "student-5", "ifkd-5"):
        shutil.copytree(study / name, tmp_path / name)
    (tmp_path / "ifkd-5" / "method.safetensors").unlink()
    assert main(["study", "figures", str(tmp_path), "--count", "1", "--level", "p4"]) == 0
    told = capsys.readouterr().out
    assert "left out: figure6-detections: AT, as the study has no finished run of it with seed 5" in told
    assert "left out: filters, as " in told
    assert "method.safetensors is absent: the run was made before runs kept what the method learned" in told
    masks = rows(tmp_path / "figures" / "masks-p4.csv")
    assert {row["panel"] for row in masks} == {"m_frs"}
    assert_opens(tmp_path / "figures", "figure3-disturbance-p4")


def white_share(path: Path) -> float:
    with Image.open(path) as picture:
        return float(np.mean(np.asarray(picture.convert("L")) > 250))


def test_images_may_have_moved_since_the_training(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when students were trained on one machine and are drawn on another."""
    for name in ("teacher", "student-5", "ifkd-5"):
        shutil.copytree(study / name, tmp_path / name)
    moved = tmp_path / "moved"
    words = ["study", "figures", str(tmp_path), "--count", "1", "--root", str(moved)]
    assert main(words) == 2
    assert f"no annotation file {moved / 'val.json'}" in capsys.readouterr().err
    shutil.copytree(study.parent / "data", moved)
    for image in (moved / "images").iterdir():  # so that none of the first place can have been read
        Image.new("RGB", (64, 64), "white").save(image)
    assert main(words) == 0
    assert set(json.loads((tmp_path / "figures" / "figures.json").read_text())["figures"]) == set(FIGURES)
    assert main([*words[:-2], "--out", str(tmp_path / "unmoved")]) == 0
    white, colored = (white_share(tmp_path / name / "figure6-detections.png") for name in ("figures", "unmoved"))
    assert white > colored + 0.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "val_01"], "Did you mean 'val_001'?"),
        (["--seed", "8"], "no finished run of seed 8: expected 5"),
        (["--ifkd", "ifdk"], "no finished run of 'ifdk'. Did you mean 'ifkd'? There are at, ifkd, student"),
        (["--level", "p2"], "no level p2: expected p3, p4, p5, p6, p7"),
        (["--count", "0"], "--count must be at least 1"),
        (["--threshold", "2"], "--threshold must lie between 0 and 1"),
    ],
)
def test_wrong_wishes_are_told(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["study", "figures", str(study), *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps({"name": "x"}))
    assert main(["study", "figures", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no study whose teacher is trained" in capsys.readouterr().err
    assert main(["study", "figures", str(tmp_path / "nowhere")]) == 2
