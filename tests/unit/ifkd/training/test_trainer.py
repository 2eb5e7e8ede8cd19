"""Training loop: files of a run, resuming, and errors."""

import copy
import json
import math
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ifkd.core.config import parse
from ifkd.core.errors import OutputError, TrainingError
from ifkd.data.metrics import Metrics
from ifkd.distillation.method_checkpoint import load_method_checkpoint
from ifkd.distillation.methods import IfkdMethod
from ifkd.models import build_detector
from ifkd.models.checkpoint import CheckpointMeta, build_from, load_checkpoint, save_checkpoint
from ifkd.recipe import Recipe
from ifkd.training import pipelines, train_state, trainer
from ifkd.training.dataset import Batch
from ifkd.training.run_folder import RunFolder, TrainingResult

Setup = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., dict[str, Any]]) -> Setup:
    """A folder with data and an untrained teacher, and the values of a recipe without MobileSAM. Read only."""
    folder = tmp_path_factory.mktemp("setup")
    values = make_recipe(folder)
    values["distillation"]["method"]["ede"] = {"enabled": False}
    settings = parse(values, Recipe, source="values")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        teacher = build_detector(settings.teacher.detector, 3)
    meta = CheckpointMeta(
        detector=settings.teacher.detector,
        classes=("barge", "ferry", "tug"),
        category_ids=(3, 7, 9),
        recipe=settings,
        provenance={"role": "teacher"},
    )
    save_checkpoint(folder / "teacher.safetensors", teacher, meta)
    return folder, values


@pytest.fixture(scope="module")
def plain_run(setup: Setup) -> Path:
    """The folder of a finished plain run. Read only."""
    train(setup, setup[0] / "plain")
    return setup[0] / "plain"


def constant(values: dict[str, Any]) -> None:
    """Change a recipe to constant weights."""
    values["distillation"]["balance"] = {"form": "constant"}


@pytest.fixture(scope="module")
def distilled_run(setup: Setup) -> Path:
    """The folder of a finished distillation with constant weights. Read only."""
    distill(setup, setup[0] / "distilled", constant)
    return setup[0] / "distilled"


def settings(setup: Setup, change: Callable[[dict[str, Any]], None] | None = None) -> Recipe:
    values = copy.deepcopy(setup[1])
    if change is not None:
        change(values)
    return parse(values, Recipe, source="values")


def train(setup: Setup, folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> TrainingResult:
    return pipelines.train_role(settings(setup, change), "student", folder)


def distill(setup: Setup, folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> TrainingResult:
    return pipelines.distill_student(settings(setup, change), setup[0] / "teacher.safetensors", folder)


START = {"train": train, "balanced": distill}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def interrupted_in(monkeypatch: pytest.MonkeyPatch, iteration: int) -> Iterator[None]:
    """Interrupt the step at an iteration."""
    step = trainer.Trainer.train_step

    def broken(self: Any, parts: list[Batch]) -> Any:
        if self.state.iteration == iteration:
            raise KeyboardInterrupt
        return step(self, parts)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", broken)
        yield


# --- results --------------------------------------------------------------------------------------------------------


def test_a_run_writes_its_files_only(plain_run: Path) -> None:
    assert {path.name for path in plain_run.iterdir()} == {
        "best.safetensors",
        "last.safetensors",
        "config.toml",
        "metrics.jsonl",
        "events",
        "result.json",
    }
    result = RunFolder(plain_run).read_result()
    assert f"torch {torch.__version__.split('+')[0]}" in result.machine
    assert (result.epochs, result.iterations, result.checkpoint) == (2, 4, "best.safetensors")
    entries = lines(plain_run)
    assert [entry["iteration"] for entry in entries if "iteration" in entry] == [0, 1, 2, 3]
    assert [entry["epoch"] for entry in entries if "epoch" in entry] == [1, 2]
    step = entries[0]
    assert step["total"] == pytest.approx(step["task/classification"] + step["task/boxes"], rel=1e-6)


def test_the_last_checkpoint_is_the_trained_student(setup: Setup, plain_run: Path) -> None:
    last = load_checkpoint(plain_run / "last.safetensors")
    assert last.meta.classes == ("barge", "ferry", "tug")
    assert last.meta.provenance["seed"] == 5
    started = pipelines._build_untrained(settings(setup), last.meta.detector, 3).state_dict()
    moved = [name for name, value in build_from(last).state_dict().items() if not torch.equal(value, started[name])]
    assert len(moved) > 0.9 * len(started)


def test_training_learns_the_training_images(setup: Setup, tmp_path: Path) -> None:
    """The tiny student overfits: its loss falls far below that of the first epochs."""

    def longer(values: dict[str, Any]) -> None:
        values["student"]["training"].update(epochs=10, validate_every=10)
        values["student"]["training"]["optimizer"]["learning_rate"] = 0.003
        values["data"]["augmentation"] = {"flip": False, "quarter_turns": False}

    train(setup, tmp_path / "run", longer)
    totals = [entry["total"] for entry in lines(tmp_path / "run") if "total" in entry]
    assert len(totals) == 20
    assert sum(totals[-4:]) < 0.8 * sum(totals[:4])
    assert [entry["epoch"] for entry in lines(tmp_path / "run") if "epoch" in entry] == [10]


def test_a_finished_run_returns_at_once(
    setup: Setup, plain_run: Path, distilled_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "Trainer", None)
    for start, folder, change in ((train, plain_run, None), (distill, distilled_run, constant)):
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert start(setup, folder, change) == RunFolder(folder).read_result()
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_loading_processes_do_not_change_the_weights(setup: Setup, plain_run: Path, tmp_path: Path) -> None:
    train(setup, tmp_path, lambda values: values["data"].update(workers=1))
    alone, helped = (load_file(folder / "last.safetensors") for folder in (plain_run, tmp_path))
    assert all(torch.equal(alone[name], helped[name]) for name in alone)


def test_another_seed_gives_other_weights(setup: Setup, plain_run: Path, tmp_path: Path) -> None:
    train(setup, tmp_path, lambda values: values.update(seed=6))
    first, second = (load_file(folder / "last.safetensors") for folder in (plain_run, tmp_path))
    assert not torch.equal(
        first["backbone.fpn.inner_blocks.0.0.weight"], second["backbone.fpn.inner_blocks.0.0.weight"]
    )


def test_each_epoch_has_other_tiles_in_another_order(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer.Trainer.train_step
    seen: list[Batch] = []
    monkeypatch.setattr(trainer.Trainer, "train_step", lambda self, parts: seen.extend(parts) or step(self, parts))
    train(setup, tmp_path)
    first, second = seen[:2], seen[2:]
    ids = [[identity for batch in epoch for identity in batch.image_ids] for epoch in (first, second)]
    assert sorted(ids[0]) == sorted(ids[1]) == list(range(100, 108))
    assert ids[0] != ids[1]
    tiles = [{tile.numpy().tobytes() for batch in epoch for tile in batch.pixels} for epoch in (first, second)]
    assert len(tiles[1] - tiles[0]) >= 4  # one image in eight has the same symmetry again


def test_half_precision_trains(setup: Setup, tmp_path: Path) -> None:
    def half(values: dict[str, Any]) -> None:
        values["distillation"]["training"].update(compute={"amp": "bf16"}, epochs=1)

    distill(setup, tmp_path / "run", half)
    assert all(math.isfinite(entry["total"]) for entry in lines(tmp_path / "run") if "total" in entry)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can compute in fp16")
def test_fp16_needs_a_gpu(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="needs a GPU"):
        train(setup, tmp_path / "run", lambda values: values["student"]["training"].update(compute={"amp": "fp16"}))


# --- weights of zero ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "form"), [("sgd", "gradient"), ("adamw", "constant")])
def test_distillation_with_weights_of_zero_is_plain_training(
    setup: Setup, tmp_path: Path, optimizer: str, form: str
) -> None:
    def change(values: dict[str, Any]) -> None:
        values["student"]["training"]["optimizer"]["name"] = optimizer
        values["distillation"]["training"]["optimizer"]["name"] = optimizer
        values["distillation"]["method"].update(alpha=0.0, beta=0.0)
        values["distillation"]["balance"] = {"form": form}

    train(setup, tmp_path / "plain", change)
    distill(setup, tmp_path / "zero", change)
    plain, zero = ([entry for entry in lines(tmp_path / name) if "total" in entry] for name in ("plain", "zero"))
    assert len(plain) == len(zero) == 4
    for one, other in zip(plain, zero, strict=True):
        assert {name: other[name] for name in one} == one
        assert other["method/feature"] == other["method/head"] == 0.0
        assert other["raw/feature"] > 0
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("plain", "zero"))
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_layers_of_the_method_are_saved_with_the_best_checkpoint(distilled_run: Path) -> None:
    learned = load_method_checkpoint(distilled_run / "method.safetensors")
    assert isinstance(learned, IfkdMethod)
    assert len(learned.networks.feature_rms) == 5
    assert min(learned.networks.feature_rms) > 0
    weights = load_file(distilled_run / "method.safetensors")
    assert {name.partition(".")[0] for name in weights} == {"adapters", "filters"}
    assert not weights.keys() & load_file(distilled_run / "best.safetensors").keys()
    assert any(float((weights[name] - 1).abs().max()) > 0 for name in weights if name.startswith("filters."))


def test_distillation_changes_the_student_and_not_its_names(plain_run: Path, distilled_run: Path) -> None:
    first, second = (load_file(folder / "last.safetensors") for folder in (plain_run, distilled_run))
    assert list(first) == list(second)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    steps = [entry for entry in lines(distilled_run) if "total" in entry]
    assert all(entry["method/feature"] == pytest.approx(0.06 * entry["raw/feature"]) for entry in steps)
    assert all(entry["method/head"] == pytest.approx(0.5 * entry["raw/head"]) for entry in steps)


def test_a_balanced_run_logs_the_ratio_of_gradients(setup: Setup, tmp_path: Path, distilled_run: Path) -> None:
    """The first step is measured: its gradient is alpha times that of the task. Other weights change other weights."""

    def balanced(values: dict[str, Any]) -> None:
        values["distillation"]["balance"] = {"form": "gradient", "multiple": 2.0}
        values["student"]["detector"]["head_init"] = "kaiming"  # other logits than the teacher's
        values["distillation"]["method"].update(alpha=0.8, beta=0.1)

    distill(setup, tmp_path / "run", balanced)
    first = lines(tmp_path / "run")[1]
    assert first["gradient/feature"] == pytest.approx(1.6, rel=1e-3)
    assert first["gradient/head"] == pytest.approx(0.2, rel=1e-3)
    assert first["method/feature"] == pytest.approx(0.8 * first["factor/feature"] * first["raw/feature"], rel=1e-4)
    config = (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    assert "multiple = 2.0" in config
    constant = lines(distilled_run)[1]
    assert constant["gradient/feature"] > 0
    assert set(RunFolder(distilled_run).read_result().gradient_ratios) == {"feature", "head"}
    assert "factor/feature" not in constant


@pytest.mark.parametrize(("epochs", "warmup", "expected"), [(2, 0, 1), (8, 0, 4), (8, 11, 11)])
def test_ratios_count_after_the_warm_up_and_a_quarter_of_the_run(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, warmup: int, expected: int
) -> None:
    """At first a method's own layers have not learned, so that its loss says nothing about its weight."""
    seen = []

    class Stopped(Exception):  # noqa: N818
        pass

    def logger(_: Path, *, warn_after: int) -> None:
        seen.append(warn_after)
        raise Stopped

    def change(values: dict[str, Any]) -> None:
        values["distillation"]["training"]["epochs"] = epochs
        values["distillation"]["method"]["warmup_iters"] = warmup

    monkeypatch.setattr(trainer, "MetricsLogger", logger)
    with pytest.raises(Stopped):
        distill(setup, tmp_path / "run", change)
    assert seen == [expected]


def test_a_state_without_a_part_is_refused(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in interrupted_in(monkeypatch, 2):
        with pytest.raises(KeyboardInterrupt):
            distill(setup, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    del state["balance"]
    torch.save(state, tmp_path / "run" / "state.pt")
    with pytest.raises(OutputError, match=r"has no balance; it is from another version of ifkd.*--no-resume"):
        distill(setup, tmp_path / "run")


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "iteration"), [("train", 1), ("train", 2), ("balanced", 3)])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, iteration: int
) -> None:
    """A run interrupted in the first epoch starts again; in the second epoch, it resumes there."""

    def changing(values: dict[str, Any]) -> None:
        values["data"]["augmentation"] = {"photometric": 0.3, "scale_jitter": [0.8, 1.2]}
        values["student"]["training"]["optimizer"].update(name="sgd", grad_clip=10.0)
        values["student"]["training"]["schedule"] = {"name": "step", "milestones": [1], "warmup_iters": 3}
        if kind == "balanced":  # the weights of the second epoch follow from norms that were measured in the first
            values["distillation"]["balance"] = {"form": "gradient"}

    uninterrupted = tmp_path.parent / f"uninterrupted-{kind}"
    if not uninterrupted.is_dir():
        START[kind](setup, uninterrupted, changing)
    for _ in interrupted_in(monkeypatch, iteration):
        with pytest.raises(KeyboardInterrupt):
            START[kind](setup, tmp_path / "run", changing)
    assert (tmp_path / "run" / "state.pt").is_file() == (iteration >= 2)
    iterations = []
    step = trainer.Trainer.train_step

    def counted(self: Any, parts: list[Batch]) -> Any:
        iterations.append(self.state.iteration)
        return step(self, parts)

    monkeypatch.setattr(trainer.Trainer, "train_step", counted)
    torch.manual_seed(99)  # the global random state does not affect a run
    START[kind](setup, tmp_path / "run", changing)
    assert iterations == ([0, 1, 2, 3] if iteration < 2 else [2, 3])
    learned = () if kind == "train" else ("method.safetensors",)
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl", *learned):
        assert (tmp_path / "run" / name).read_bytes() == (uninterrupted / name).read_bytes(), name


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from ifkd import recipe
from ifkd.core.config import parse
from ifkd.training import pipelines

values, teacher, folder, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
write, written = Path.write_bytes, []

def killing(path, content):
    global written
    written += [path] if path.suffix == ".pt" else []
    if len(written) == 2:
        write(path, bytes(content)[:1000])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, content)

Path.write_bytes = killing
pipelines.distill_student(parse(values, recipe.Recipe, source="values"), Path(teacher), Path(folder))
"""


@pytest.mark.slow
def test_a_run_killed_while_it_saves_resumes_from_the_previous_state(
    setup: Setup, distilled_run: Path, tmp_path: Path
) -> None:
    """SIGKILL while the second state is written: an incomplete temporary file is left."""
    killed = tmp_path / "killed"
    values, teacher = settings(setup, constant).model_dump(mode="json"), setup[0] / "teacher.safetensors"
    arguments = json.dumps([values, str(teacher), str(killed), torch.get_num_threads()])
    done = subprocess.run([sys.executable, "-c", KILLED, arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert (killed / "state.pt").is_file()
    assert not (killed / "result.json").exists()
    assert torch.load(killed / "state.pt", weights_only=True)["progress"]["iteration"] == 2
    (killed / "last.safetensors").unlink()  # it was complete already, and has to be trained again
    distill(setup, killed, constant)
    for name in ("last.safetensors", "metrics.jsonl"):
        assert (killed / name).read_bytes() == (distilled_run / name).read_bytes(), name
    assert not list(killed.glob(".*")), "the temporary file is removed"


def test_a_run_stopped_before_its_result_writes_it_without_training(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(setup, tmp_path / "run")
    monkeypatch.setattr(trainer.Trainer, "train_step", None)
    result = train(setup, tmp_path / "run")
    assert result.iterations == 4
    assert (tmp_path / "run" / "result.json").is_file()


def test_an_unreadable_state_is_refused(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in interrupted_in(monkeypatch, 3):
        with pytest.raises(KeyboardInterrupt):
            train(setup, tmp_path / "run")
    (tmp_path / "run" / "state.pt").write_bytes(b"broken")
    with pytest.raises(OutputError, match=r"state\.pt cannot be read"):
        train(setup, tmp_path / "run")


def test_settings_without_effect_on_the_weights_may_change(setup: Setup, plain_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain_run, tmp_path / "run")

    def other_export(values: dict[str, Any]) -> None:
        values["export"] = {"overlap_px": 8}

    assert train(setup, folder, other_export) == RunFolder(plain_run).read_result()


def test_a_folder_with_other_settings_is_refused_with_the_difference(
    setup: Setup, plain_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(plain_run, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def slower(values: dict[str, Any]) -> None:
        values["student"]["training"]["epochs"] = 1
        values["student"]["training"]["optimizer"]["learning_rate"] = 0.5

    with pytest.raises(OutputError, match="contains a run with other settings") as caught:
        train(setup, folder, slower)
    assert "training.optimizer.learning_rate was 0.001, is 0.5" in str(caught.value)
    assert "training.epochs was 2, is 1" in str(caught.value)
    assert "--no-resume" in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    result = pipelines.train_role(settings(setup, slower), "student", folder, resume=False)
    assert result.iterations == 2


# --- errors -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(setup: Setup, tmp_path: Path) -> None:
    def wild(values: dict[str, Any]) -> None:
        values["student"]["training"]["optimizer"].update(name="sgd", learning_rate=1e20)

    with pytest.raises(TrainingError, match="The loss is not finite at iteration") as caught:
        train(setup, tmp_path / "run", wild)
    assert "task/classification" in str(caught.value)
    saved = load_file(tmp_path / "run" / "nonfinite_batch.safetensors")["pixels.0"]
    assert saved.shape == (4, 3, 64, 64)
    assert saved.dtype == torch.uint8
    assert not (tmp_path / "run" / "result.json").exists()


def test_gradients_are_clipped_together(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    sizes: list[int] = []
    clip = torch.nn.utils.clip_grads_with_norm_

    def watched(parameters: Any, largest: float, norm: torch.Tensor) -> None:
        clip(parameters, largest, norm)
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)))
        sizes.append(len(parameters))

    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", watched)

    def clipped(values: dict[str, Any]) -> None:
        values["distillation"]["training"]["epochs"] = 1
        values["distillation"]["training"]["optimizer"]["grad_clip"] = 0.01

    distill(setup, tmp_path / "run", clipped)
    assert len(norms) == 4
    assert max(norms) <= 0.01001
    assert sizes[0] == sizes[2] > 130  # the student's
    assert sizes[1] == sizes[3] == 15  # the adapters' and the filters'


# --- frozen models ------------------------------------------------------------------------------------------------


def test_teacher_and_encoder_are_untouched_by_training(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Watched(pipelines.FrozenModels):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append((self, {name: value.clone() for name, value in self.state_dict().items()}))

    monkeypatch.setattr(pipelines, "FrozenModels", Watched)

    def with_mobile_sam(values: dict[str, Any]) -> None:
        values["distillation"]["method"]["ede"] = {"weights": "random", "input_px": "native"}

    distill(setup, tmp_path / "run", with_mobile_sam)
    ((frozen_models, before),) = made
    assert any(name.startswith("sam.trunk") for name in before)
    assert any(name.endswith("running_mean") for name in before)
    for name, value in frozen_models.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in frozen_models.parameters())
    assert not any(parameter.requires_grad for parameter in frozen_models.parameters())


def test_the_learning_rate_scales_with_the_batch_size(setup: Setup, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["student"]["training"]["optimizer"].update(learning_rate=0.004, base_batch_size=16)
        values["student"]["training"]["schedule"].update(name="step", milestones=[2])

    train(setup, tmp_path / "run", change)
    assert lines(tmp_path / "run")[0]["lr"] == pytest.approx(0.004 * 4 / 16)


# --- options --------------------------------------------------------------------------------------------


def test_the_student_is_validated_before_the_first_step(plain_run: Path, distilled_run: Path) -> None:
    assert lines(distilled_run)[0]["epoch"] == 0
    assert set(lines(distilled_run)[0]["validation"]) == {"mean_ap", "ap50", "ap75"}
    assert "iteration" in lines(plain_run)[0]


def test_a_run_interrupted_within_an_epoch_resumes_at_that_step(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optimizer, schedule, averaged weights, random draws and the position in the epoch are restored."""

    def changing(values: dict[str, Any]) -> None:
        values["data"]["augmentation"] = {"photometric": 0.3, "scale_jitter": [0.8, 1.2]}
        values["distillation"]["training"].update(
            batch_size=2, ema_decay=0.9, accumulation_steps=2, save_every_minutes=0
        )
        values["distillation"]["training"]["schedule"]["warmup_iters"] = 3

    distill(setup, tmp_path / "uninterrupted", changing)
    for _ in interrupted_in(monkeypatch, 2):
        with pytest.raises(KeyboardInterrupt):
            distill(setup, tmp_path / "run", changing)
    for _ in interrupted_in(monkeypatch, 5):
        with pytest.raises(KeyboardInterrupt):
            distill(setup, tmp_path / "run", changing)
    assert train_state.read_state(tmp_path / "run" / "state.pt")["progress"]["iteration"] == 5
    distill(setup, tmp_path / "run", changing)
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes(), name


def test_accumulated_gradients_are_the_mean_of_the_parts(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with autograd of the mean of the losses."""
    found: dict[str, torch.Tensor] = {}
    expected: dict[str, torch.Tensor] = {}
    step, backward = trainer.Trainer.train_step, trainer.Trainer.backward

    def watched_step(self: Any, parts: list[Batch]) -> Any:
        assert [len(part.targets) for part in parts] == [2, 2]
        step(self, parts)
        found.update({name: p.grad.clone() for name, p in self.detector.named_parameters() if p.grad is not None})
        raise KeyboardInterrupt

    def watched_backward(self: Any, part: Batch, *, loss_scale: float) -> Any:
        output = self.detector(trainer.normalize(part.pixels))
        total = sum(self.detector.task_losses(output, part.targets).values())
        named = dict(self.detector.named_parameters())
        gradients = torch.autograd.grad(total, list(named.values()))
        for name, gradient in zip(named, gradients, strict=True):
            expected[name] = expected.get(name, 0) + gradient / 2
        return backward(self, part, loss_scale=loss_scale)

    monkeypatch.setattr(trainer.Trainer, "train_step", watched_step)
    monkeypatch.setattr(trainer.Trainer, "backward", watched_backward)

    def in_two_parts(values: dict[str, Any]) -> None:
        values["student"]["training"].update(accumulation_steps=2, compute={"channels_last": False})
        values["student"]["detector"]["norm"] = "frozen"

    with pytest.raises(KeyboardInterrupt):
        train(setup, tmp_path / "run", in_two_parts)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_averaged_weights_are_validated_and_kept(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint has the mean of the weights after each step, by the recursion."""
    name = "head.classification_head.cls_logits.weight"
    seen: list[torch.Tensor] = []
    step = trainer.Trainer.train_step

    def watched(self: Any, parts: list[Batch]) -> Any:
        result = step(self, parts)
        seen.append(self.detector.state_dict()[name].clone())
        return result

    monkeypatch.setattr(trainer.Trainer, "train_step", watched)
    train(setup, tmp_path / "run", lambda values: values["student"]["training"].update(ema_decay=0.15))
    mean = seen[0]
    for done, weights in enumerate(seen[1:], start=1):
        past = min(0.15, (1 + done) / (10 + done))
        mean = past * mean + (1 - past) * weights
    kept = load_file(tmp_path / "run" / "last.safetensors")[name]
    torch.testing.assert_close(kept, mean)
    assert not torch.equal(kept, seen[-1])


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_every_rank_validates_with_the_buffers_of_rank_0(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema_decay: float | None
) -> None:
    validated = []

    def validate(detector: Any, *_: Any) -> Metrics:
        validated.extend(buffer for name, buffer in detector.named_buffers() if name.endswith("running_mean"))
        return original(detector, *_)

    def broadcast(detector: Any) -> None:
        for buffer in detector.buffers():
            buffer.fill_(7)

    original = trainer.validate
    monkeypatch.setattr(trainer, "validate", validate)
    monkeypatch.setattr(trainer, "broadcast_buffers", broadcast, raising=False)
    train(setup, tmp_path, lambda values: values["student"]["training"].update(epochs=1, ema_decay=ema_decay))
    assert validated
    assert all((buffer == 7).all() for buffer in validated)


def test_the_last_checkpoint_is_the_best_without_labeled_objects(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.validate

    def unlabeled(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **options).model_copy(update={"mean_ap": None, "ap50": None, "ap75": None})

    monkeypatch.setattr(trainer, "validate", unlabeled)
    result = train(setup, tmp_path / "run", lambda values: values["student"]["training"].update(epochs=3, patience=1))
    assert (result.epochs, result.best_validation_map) == (3, None)
    best, last = (load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(tensor, last[name]) for name, tensor in best.items())
    assert lines(tmp_path / "run")[-1]["validation"]["mean_ap"] is None


def test_a_run_stops_when_map_does_not_improve(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.3, 0.1, 0.3, 0.9])
    real = trainer.validate

    def scored(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **options).model_copy(update={"mean_ap": next(scores)})

    monkeypatch.setattr(trainer, "validate", scored)
    result = train(setup, tmp_path / "run", lambda values: values["student"]["training"].update(epochs=6, patience=2))
    assert (result.epochs, result.best_validation_map) == (4, 0.3)
    assert [entry["epoch"] for entry in lines(tmp_path / "run") if "epoch" in entry] == [1, 2, 3, 4]


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_update(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer.Trainer.train_step
    before: dict[str, torch.Tensor] = {}

    def with_nan(self: Any, parts: list[Batch]) -> Any:
        before.update({name: value.clone() for name, value in self.detector.named_parameters()})
        weight = self.detector.head.classification_head.cls_logits.weight
        weight.register_hook(lambda gradient: gradient * math.nan)
        try:
            return step(self, parts)
        finally:
            assert all(torch.equal(value, before[name]) for name, value in self.detector.named_parameters())

    monkeypatch.setattr(trainer.Trainer, "train_step", with_nan)
    with pytest.raises(TrainingError, match="The gradient is not finite at iteration 0"):
        train(setup, tmp_path / "run")
    assert (tmp_path / "run" / "nonfinite_batch.safetensors").is_file()


COMPILED = """
import json, sys
from pathlib import Path
import torch
from ifkd import recipe
from ifkd.core.config import parse
from ifkd.training import pipelines

values, folder, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
compiled_by, traced = torch.nn.Module.compile, []
torch.nn.Module.compile = lambda module: traced.append(module) or compiled_by(module, backend="eager")
pipelines.train_role(parse(values, recipe.Recipe, source="values"), "student", Path(folder))
assert len(traced) == 1
"""


@pytest.mark.slow
def test_a_compiled_detector_learns_the_same_weights(setup: Setup, plain_run: Path, tmp_path: Path) -> None:
    """torch.compile runs with the eager backend, because inductor compiles for a minute."""

    def compiled(values: dict[str, Any]) -> None:
        values["student"]["training"]["compute"] = {"compile": True}

    arguments = json.dumps([settings(setup, compiled).model_dump(mode="json"), str(tmp_path), torch.get_num_threads()])
    done = subprocess.run([sys.executable, "-c", COMPILED, arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone, traced = (load_file(folder / "last.safetensors") for folder in (plain_run, tmp_path))
    assert list(alone) == list(traced)
    for name, value in alone.items():
        torch.testing.assert_close(traced[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs have synchronized batch norm")
def test_synchronized_batch_norm_needs_gpus(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="sync_batch_norm needs GPUs"):
        train(
            setup,
            tmp_path / "run",
            lambda values: values["student"]["training"].update(compute={"sync_batch_norm": True}),
        )


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    setup: Setup, plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of 100 kB per file from the second epoch on causes the errors of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    step = trainer.Trainer.train_step

    def filling(self: Any, parts: list[Batch]) -> Any:
        if self.state.iteration == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        return step(self, parts)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", filling)
        try:
            with pytest.raises(OutputError, match="Cannot write") as caught:
                train(setup, tmp_path / "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 2
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").meta.classes == ("barge", "ferry", "tug")
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["progress"]["iteration"] == 2
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    train(setup, tmp_path / "run")
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == (plain_run / "last.safetensors").read_bytes()


def test_student_and_teacher_get_the_same_batch(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher_forward, student_forward = pipelines.FrozenModels.forward, trainer.TrainStep.forward
    seen_by_teacher: list[torch.Tensor] = []
    seen_by_student: list[torch.Tensor] = []

    def watched_teacher(self: Any, images: torch.Tensor, pixels: torch.Tensor) -> Any:
        seen_by_teacher.append(images)
        return teacher_forward(self, images, pixels)

    def watched_step(self: Any, images: torch.Tensor, *given: Any) -> Any:
        seen_by_student.append(images)
        return student_forward(self, images, *given)

    monkeypatch.setattr(pipelines.FrozenModels, "forward", watched_teacher)
    monkeypatch.setattr(trainer.TrainStep, "forward", watched_step)
    distill(setup, tmp_path / "run", lambda values: values["distillation"]["training"].update(epochs=1))
    assert len(seen_by_teacher) == len(seen_by_student) == 2
    assert all(one is other for one, other in zip(seen_by_teacher, seen_by_student, strict=True))


def test_alpha_scales_the_logged_term_and_warm_up_starts_at_zero(
    setup: Setup, distilled_run: Path, tmp_path: Path
) -> None:
    def change(**options: Any) -> Any:
        def changing(values: dict[str, Any]) -> None:
            constant(values)
            values["distillation"]["training"]["epochs"] = 1
            values["distillation"]["method"].update(options)

        return changing

    distill(setup, tmp_path / "doubled", change(alpha=0.12))
    distill(setup, tmp_path / "warm", change(warmup_iters=2))
    once, doubled, warm = (
        [entry for entry in lines(folder) if "total" in entry]
        for folder in (distilled_run, tmp_path / "doubled", tmp_path / "warm")
    )
    assert doubled[0]["method/feature"] == pytest.approx(2 * once[0]["method/feature"])
    assert doubled[0]["method/head"] == pytest.approx(once[0]["method/head"])
    assert warm[0]["method/feature"] == warm[0]["method/head"] == 0.0
    assert warm[0]["raw/feature"] == pytest.approx(once[0]["raw/feature"])
    assert warm[0]["total"] == pytest.approx(warm[0]["task/classification"] + warm[0]["task/boxes"], rel=1e-6)
    assert warm[1]["method/feature"] == pytest.approx(0.03 * warm[1]["raw/feature"])


def test_the_saved_student_predicts_like_the_trained_one_without_the_layers_of_the_method(
    setup: Setup, plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters and filters are trained with the student, and are not part of its checkpoint."""
    made = []
    original = pipelines.train

    def watched(run: Any, student: Any, **given: Any) -> TrainingResult:
        made.append((student, given["method"]))
        return original(run, student, **given)

    monkeypatch.setattr(pipelines, "train", watched)
    distill(setup, tmp_path / "run")
    ((student, method),) = made
    assert {name.split(".")[0] for name, _ in method.named_parameters()} == {"adapters", "filters"}
    checkpoint = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert checkpoint.weights.keys() == load_file(plain_run / "last.safetensors").keys()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        kept, learned = build_from(checkpoint)(images), student.cpu().eval()(images)
    for ours, theirs in zip((*kept.logits, *kept.deltas), (*learned.logits, *learned.deltas), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
