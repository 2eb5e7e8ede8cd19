"""All figures of a study: their data, and the reasons for skipped figures."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from fakes.study_records import comparison_record, sweep_record
from PIL import Image
from scipy.spatial.distance import pdist, squareform

from deploy.cli.main import main
from ifkd.data.coco import CocoDataset, read_coco
from ifkd.distillation.hsm import in_ball
from ifkd.distillation.method_checkpoint import load_method_checkpoint
from ifkd.recipe import HsmOptions
from ifkd.study.figures import embeddings
from ifkd.study.figures.example_intermediates import example_intermediates
from ifkd.study.figures.examples import Example, select_examples
from ifkd.study.figures.trained_runs import find_runs

Rows = Callable[[Path], list[dict[str, str]]]

FIGURES = (
    "figure3-disturbance",
    "figure4-embeddings",
    "figure6-detections",
    "fdr-frequencies",
    "masks",
    "fdr-filters",
)
FILES = (
    "figure3-disturbance-p3",
    "figure4-embeddings",
    "figure6-detections",
    "fdr-frequencies-p3",
    "masks-p3",
    "fdr-filters",
)


@pytest.fixture(scope="module")
def figures(study_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study's figures."""
    folder = tmp_path_factory.mktemp("drawn")
    command = ["study", "figures", str(study_folder), "--images", "100", "val_002", "--out", str(folder), "--json"]
    assert main(command) == 0
    return folder


def validation_data(study_folder: Path) -> CocoDataset:
    return read_coco(study_folder.parent / "data" / "val.json")


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def test_all_figures_are_written(figures: Path, check_figure: Callable[[Path, str], None]) -> None:
    record = json.loads((figures / "figures.json").read_text())
    assert record["schema_version"] == 2
    assert set(record["figures"]) == set(FIGURES)
    assert set(record["skipped"]) == {"figure5-sensitivity", "comparison"}
    assert record["images"] == ["val_000", "val_002"]
    assert set(record["checkpoints"]) == {"teacher", "student", "at", "ifkd"}
    for name in FILES:
        check_figure(figures, name)


@pytest.mark.slow
def test_equal_studies_have_equal_figures(
    study_folder: Path, figures: Path, tmp_path: Path, check_figure: Callable[[Path, str], None]
) -> None:
    (tmp_path / "study.json").write_text(sweep_record("beta").model_dump_json())
    for run in study_folder.iterdir():
        (tmp_path / run.name).symlink_to(run)
    again = tmp_path / "again"
    command = ["study", "figures", str(tmp_path), "--images", "100", "val_002", "--out", str(again)]
    assert main(command) == 0
    for path in figures.glob("figure*.svg"):
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    check_figure(again, "figure5-sensitivity-beta")
    assert not (again / "comparison.png").exists()


def test_maps_in_the_csv_are_those_of_the_method(study_folder: Path, figures: Path, read_rows: Rows) -> None:
    runs = find_runs(study_folder)
    assert runs.ifkd is not None
    examples = select_examples(validation_data(study_folder), runs.teacher.recipe.data, names=["100", "102"])
    maps = example_intermediates(runs.teacher, runs.ifkd, examples)
    assert (maps.no_ede, maps.encoder) == (None, "random weights")
    second = maps.at_level("p3")[1]
    with torch.inference_mode():
        pyramid = runs.teacher.detector(normalized(examples[1])).pyramid
    assert torch.allclose(second.teacher / second.teacher.norm(), pyramid[0] / pyramid[0].norm(), atol=1e-6)
    assert second.disturbance is not None
    expected = {
        ("figure3-disturbance-p3", "teacher"): second.teacher.abs().mean(1),
        ("figure3-disturbance-p3", "disturbed"): (second.teacher + second.disturbance).abs().mean(1),
        ("figure3-disturbance-p3", "disturbance"): second.disturbance.mean(1),
        ("masks-p3", "m_frs"): second.richness,
        ("masks-p3", "m_hsm"): second.similarity,
        ("fdr-frequencies-p3", "low"): second.low.abs().mean(1),
        ("fdr-frequencies-p3", "high"): (second.teacher - second.low).abs().mean(1),
    }
    for (name, panel), values in expected.items():
        rows = [row for row in read_rows(figures / f"{name}.csv") if (row["image"], row["panel"]) == ("val_002", panel)]
        assert column(rows, "value") == pytest.approx(values.flatten().tolist(), rel=1e-4, abs=1e-6), (name, panel)


def normalized(example: Example) -> torch.Tensor:
    """Return an example as a detector's input, with torchvision's normalization."""
    from torchvision.transforms.v2 import functional

    pixels = torch.from_numpy(example.padded.transpose(2, 0, 1).copy())[None].float() / 255
    return functional.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_filters_in_the_csv_are_the_learned_ones(study_folder: Path, figures: Path, read_rows: Rows) -> None:
    """Tiles of 64 px have maps of 4x4 at P4."""
    method: Any = load_method_checkpoint(study_folder / "ifkd-5" / "method.safetensors")
    rows = [row for row in read_rows(figures / "fdr-filters.csv") if row["level"] == "p4"]
    factors = method.filters["p4"].factors(4, 4).detach().numpy()
    by_frequency = {(row["vertical_frequency"], row["horizontal_frequency"]): row for row in rows}
    assert len(by_frequency) == 4 * 3
    assert float(by_frequency["0", "0"]["mean"]) == pytest.approx(factors[:, 0, 0].mean(), rel=1e-5)
    assert float(by_frequency["-0.25", "0.5"]["mean"]) == pytest.approx(factors[:, 3, 2].mean(), rel=1e-5)
    assert float(by_frequency["-0.5", "0"]["std_over_channels"]) == pytest.approx(factors[:, 2, 0].std(), abs=1e-6)


def test_distances_in_the_csv_are_those_of_the_features(study_folder: Path, figures: Path, read_rows: Rows) -> None:
    teacher = find_runs(study_folder).teacher
    dataset = validation_data(study_folder)
    objects = embeddings.object_features(teacher.detector, dataset, teacher.recipe.data, "p3")
    assert len(objects.labels) == sum(len(image.labels) for image in dataset.images)
    means = read_rows(figures / "figure4-embeddings-distances.csv")
    assert [(row["network"], row["space"]) for row in means] == [
        (network, space) for network in ("teacher", "student", "IFKD") for space in ("Euclidean", "Poincaré")
    ]
    distances = squareform(pdist(objects.features.numpy()))
    same_class = objects.labels[:, None] == objects.labels[None]
    upper = np.triu(np.ones_like(same_class), 1)
    assert float(means[0]["mean_intra_class_distance"]) == pytest.approx(distances[upper & same_class].mean(), rel=1e-6)
    assert float(means[0]["mean_inter_class_distance"]) == pytest.approx(
        distances[upper & ~same_class].mean(), rel=1e-6
    )
    rows = [row for row in read_rows(figures / "figure4-embeddings.csv") if row["network"] == "student"]
    disk = [row for row in rows if row["space"] == "Poincaré"]
    assert len(disk) == len(objects.labels)
    assert max(np.hypot(column(disk, "x"), column(disk, "y"))) < 1
    assert in_ball(objects.features, HsmOptions(), mean_norm=objects.mean_norm).norm(dim=1).max() < 1


@pytest.fixture(scope="module")
def moved(study_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a study without an AT run and with a comparison, drawn with white images, and what was printed."""
    folder = tmp_path_factory.mktemp("moved")
    for name in ("teacher", "student-5", "ifkd-5"):
        shutil.copytree(study_folder / name, folder / name)
    (folder / "study.json").write_text(comparison_record().model_dump_json())
    shutil.copytree(study_folder.parent / "data", folder / "data")
    for image in (folder / "data" / "images").iterdir():  # to distinguish them from the images of the recipe's folder
        Image.new("RGB", (64, 64), "white").save(image)
    options = ["--count", "1", "--level", "p4", "--data-root", str(folder / "data")]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(["study", "figures", str(folder), *options]) == 0
    return folder, output.getvalue()


def test_skipped_figures_are_listed_with_the_reason(
    moved: tuple[Path, str],
    study_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    check_figure: Callable[[Path, str], None],
) -> None:
    folder, output = moved
    assert "skipped figure6-detections: AT: the study has no finished run with seed 5" in output
    check_figure(folder / "figures", "figure3-disturbance-p4")
    check_figure(folder / "figures", "comparison")
    for name in ("teacher", "ifkd-5"):
        shutil.copytree(study_folder / name, tmp_path / name)
    (tmp_path / "ifkd-5" / "method.safetensors").unlink()
    assert main(["study", "figures", str(tmp_path), "--count", "1", "--level", "p4"]) == 2
    assert f"no method checkpoint {tmp_path / 'ifkd-5' / 'method.safetensors'}" in capsys.readouterr().err


def white_fraction(path: Path) -> float:
    with Image.open(path) as image:
        return float(np.mean(np.asarray(image.convert("L")) > 250))


@pytest.mark.slow
def test_the_data_set_may_have_another_folder_than_in_training(
    moved: tuple[Path, str], figures: Path, study_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = moved[0] / "figures"
    assert set(json.loads((drawn / "figures.json").read_text())["figures"]) == {*FIGURES, "comparison"}
    white, colored = (white_fraction(folder / "figure6-detections.png") for folder in (drawn, figures))
    assert white > colored + 0.2
    command = ["study", "figures", str(study_folder), "--out", str(tmp_path), "--data-root", str(tmp_path / "absent")]
    assert main(command) == 2
    assert str(tmp_path / "absent" / "val.json") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "val_01"], "Did you mean 'val_001'?"),
        (["--seed", "8"], "no finished run with seed 8: expected 5"),
        (
            ["--variant", "ifdk"],
            "no finished run of 'ifdk'.\nhint: Did you mean 'ifkd'? Finished runs: at, ifkd, student",
        ),
        (["--level", "p2"], "no pyramid level p2: expected p3, p4, p5, p6, p7"),
        (["--count", "0"], "--count: must be an integer of at least 1"),
        (["--score-threshold", "2"], "--score-threshold must be between 0 and 1"),
    ],
)
def test_invalid_options_are_refused(
    study_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["study", "figures", str(study_folder), *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps({"name": "x"}))
    assert main(["study", "figures", str(tmp_path)]) == 2
    assert f"{tmp_path} contains no study with a finished teacher" in capsys.readouterr().err
    assert main(["study", "figures", str(tmp_path / "nowhere")]) == 2
