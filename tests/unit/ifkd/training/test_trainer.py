"""The training loop: what it leaves in its folder, how it goes on, and when it stops."""

import copy
import json
import math
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
from ifkd.distillation.method_checkpoint import load_method_checkpoint
from ifkd.distillation.methods import IfkdMethod
from ifkd.models import build_detector
from ifkd.models.checkpoint import CheckpointMeta, build_from, load_checkpoint, save_checkpoint
from ifkd.recipe import Recipe
from ifkd.training import pipelines, train_state, trainer
from ifkd.training.dataset import Batch

World = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., dict[str, Any]]) -> World:
    """A folder with data and an untrained teacher, and the recipe's values; tests read it and change nothing."""
    folder = tmp_path_factory.mktemp("world")
    values = make_recipe(folder)
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
def plain_run(world: World) -> Path:
    """The folder of a finished plain run; tests change nothing in it."""
    train(world, world[0] / "plain")
    return world[0] / "plain"


@pytest.fixture(scope="module")
def distilled_run(world: World) -> Path:
    """The folder of a finished distillation; tests change nothing in it."""
    distill(world, world[0] / "distilled")
    return world[0] / "distilled"


def settings(world: World, change: Callable[[dict[str, Any]], None] | None = None) -> Recipe:
    values = copy.deepcopy(world[1])
    if change is not None:
        change(values)
    return parse(values, Recipe, source="values")


def train(world: World, folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    return pipelines.train_role(settings(world, change), "student", folder)


def distill(world: World, folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    return pipelines.distill_student(settings(world, change), world[0] / "teacher.safetensors", folder)


START = {"train": train, "distill": distill}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def interrupted_in(monkeypatch: pytest.MonkeyPatch, iteration: int) -> Iterator[None]:
    """Make the step at an iteration end as an interruption does."""
    step = trainer._Loop.step

    def broken(self: Any, parts: list[Batch]) -> Any:
        if self.standing.iteration == iteration:
            raise KeyboardInterrupt
        return step(self, parts)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Loop, "step", broken)
        yield


# --- results --------------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_files_and_nothing_else(plain_run: Path) -> None:
    assert {path.name for path in plain_run.iterdir()} == {
        "best.safetensors",
        "last.safetensors",
        "config.toml",
        "metrics.jsonl",
        "events",
        "result.json",
    }
    result = json.loads((plain_run / "result.json").read_text())
    assert f"torch {torch.__version__.split('+')[0]}" in result["machine"]
    assert (result["epochs"], result["iterations"], result["checkpoint"]) == (2, 4, "best.safetensors")
    told = lines(plain_run)
    assert [entry["iteration"] for entry in told if "iteration" in entry] == [0, 1, 2, 3]
    assert [entry["epoch"] for entry in told if "epoch" in entry] == [1, 2]
    step = told[0]
    assert step["total"] == pytest.approx(step["task/classification"] + step["task/boxes"], rel=1e-6)


def test_the_last_checkpoint_is_the_trained_student(world: World, plain_run: Path) -> None:
    last = load_checkpoint(plain_run / "last.safetensors")
    assert last.meta.classes == ("barge", "ferry", "tug")
    assert last.meta.provenance["seed"] == 5
    started = pipelines._fresh_detector(settings(world), last.meta.detector, 3).state_dict()
    moved = [name for name, value in build_from(last).state_dict().items() if not torch.equal(value, started[name])]
    assert len(moved) > 0.9 * len(started)


def test_training_learns_the_training_images(world: World, tmp_path: Path) -> None:
    """The tiny student overfits: its loss falls well below the first epochs'."""

    def longer(values: dict[str, Any]) -> None:
        values["student"]["training"].update(epochs=10, validate_every=10)
        values["student"]["training"]["optimizer"]["learning_rate"] = 0.003
        values["data"]["augmentation"] = {"flip": False, "quarter_turns": False}

    train(world, tmp_path / "run", longer)
    totals = [entry["total"] for entry in lines(tmp_path / "run") if "total" in entry]
    assert len(totals) == 20
    assert sum(totals[-4:]) < 0.8 * sum(totals[:4])
    assert [entry["epoch"] for entry in lines(tmp_path / "run") if "epoch" in entry] == [10]


def test_a_finished_run_returns_at_once(
    world: World, plain_run: Path, distilled_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_Loop", None)
    for start, folder in ((train, plain_run), (distill, distilled_run)):
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert start(world, folder) == json.loads((folder / "result.json").read_text())
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_loading_processes_change_nothing(world: World, plain_run: Path, tmp_path: Path) -> None:
    train(world, tmp_path, lambda values: values["data"].update(workers=1))
    alone, helped = (load_file(folder / "last.safetensors") for folder in (plain_run, tmp_path))
    assert all(torch.equal(alone[name], helped[name]) for name in alone)


def test_another_seed_gives_other_weights(world: World, plain_run: Path, tmp_path: Path) -> None:
    train(world, tmp_path, lambda values: values.update(seed=6))
    first, second = (load_file(folder / "last.safetensors") for folder in (plain_run, tmp_path))
    assert not torch.equal(
        first["backbone.fpn.inner_blocks.0.0.weight"], second["backbone.fpn.inner_blocks.0.0.weight"]
    )


def test_every_epoch_sees_the_images_anew(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = trainer._Loop.step
    seen: list[Batch] = []
    monkeypatch.setattr(trainer._Loop, "step", lambda self, parts: seen.extend(parts) or step(self, parts))
    train(world, tmp_path)
    first, second = seen[:2], seen[2:]
    ids = [[identity for batch in epoch for identity in batch.image_ids] for epoch in (first, second)]
    assert sorted(ids[0]) == sorted(ids[1]) == list(range(100, 108))
    assert ids[0] != ids[1]
    tiles = [{tile.numpy().tobytes() for batch in epoch for tile in batch.pixels} for epoch in (first, second)]
    assert len(tiles[1] - tiles[0]) >= 4  # an image in eight is turned as before


def test_half_precision_trains(world: World, tmp_path: Path) -> None:
    def half(values: dict[str, Any]) -> None:
        values["distillation"]["training"].update(compute={"amp": "bf16"}, epochs=1)

    distill(world, tmp_path / "run", half)
    assert all(math.isfinite(entry["total"]) for entry in lines(tmp_path / "run") if "total" in entry)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can compute in fp16")
def test_fp16_needs_a_gpu(world: World, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="needs a GPU"):
        train(world, tmp_path / "run", lambda values: values["student"]["training"].update(compute={"amp": "fp16"}))


# --- zero means zero ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_distillation_with_weights_of_zero_is_plain_training(world: World, tmp_path: Path, optimizer: str) -> None:
    def change(values: dict[str, Any]) -> None:
        values["student"]["training"]["optimizer"]["name"] = optimizer
        values["distillation"]["training"]["optimizer"]["name"] = optimizer
        values["distillation"]["method"].update(alpha=0.0, beta=0.0)

    train(world, tmp_path / "plain", change)
    distill(world, tmp_path / "zero", change)
    plain, zero = ([entry for entry in lines(tmp_path / name) if "total" in entry] for name in ("plain", "zero"))
    assert len(plain) == len(zero) == 4
    for one, other in zip(plain, zero, strict=True):
        assert {name: other[name] for name in one} == one
        assert other["method/feature"] == other["method/head"] == 0.0
        assert other["raw/feature"] > 0
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("plain", "zero"))
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_the_method_had_learned_is_kept_with_the_best_checkpoint(distilled_run: Path) -> None:
    learned = load_method_checkpoint(distilled_run / "method.safetensors")
    assert isinstance(learned, IfkdMethod)
    assert len(learned.between.feature_rms) == 5
    assert min(learned.between.feature_rms) > 0
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


# --- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "iteration"), [("train", 1), ("train", 2), ("distill", 3)])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, iteration: int
) -> None:
    """Interrupted in the first epoch nothing is left to go on from; in the second, the first is not done again."""

    def changing(values: dict[str, Any]) -> None:
        values["data"]["augmentation"] = {"photometric": 0.3, "scale_jitter": [0.8, 1.2]}
        values["student"]["training"]["optimizer"].update(name="sgd", grad_clip=10.0)
        values["student"]["training"]["schedule"] = {"name": "step", "milestones": [1], "warmup_iters": 3}

    whole = tmp_path.parent / f"whole-{kind}"
    if not whole.is_dir():
        START[kind](world, whole, changing)
    for _ in interrupted_in(monkeypatch, iteration):
        with pytest.raises(KeyboardInterrupt):
            START[kind](world, tmp_path / "run", changing)
    assert (tmp_path / "run" / "state.pt").is_file() == (iteration >= 2)
    taken = []
    step = trainer._Loop.step

    def counted(self: Any, parts: list[Batch]) -> Any:
        taken.append(self.standing.iteration)
        return step(self, parts)

    monkeypatch.setattr(trainer._Loop, "step", counted)
    torch.manual_seed(99)  # what else the process draws is no part of a run
    START[kind](world, tmp_path / "run", changing)
    assert taken == ([0, 1, 2, 3] if iteration < 2 else [2, 3])
    learned = ("method.safetensors",) if kind == "distill" else ()
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl", *learned):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from ifkd import recipe, runs
from ifkd.config import parse

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
runs.distill_student(parse(values, recipe.Recipe, source="values"), Path(teacher), Path(folder))
"""


def test_a_run_killed_while_it_saves_goes_on_from_the_save_before(world: World, tmp_path: Path) -> None:
    """SIGKILL in the middle of the second state: half of it is on the disk, under another name."""

    def three_epochs(values: dict[str, Any]) -> None:
        values["distillation"]["training"]["epochs"] = 3

    distill(world, tmp_path / "whole", three_epochs)
    values = settings(world, three_epochs).model_dump(mode="json")
    told = json.dumps(
        [values, str(world[0] / "teacher.safetensors"), str(tmp_path / "killed"), torch.get_num_threads()]
    )
    done = subprocess.run([sys.executable, "-c", KILLED, told], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert (tmp_path / "killed" / "state.pt").is_file()
    assert not (tmp_path / "killed" / "result.json").exists()
    train_state = torch.load(tmp_path / "killed" / "state.pt", weights_only=True)
    assert train_state["standing"][:2] == [1, 2]
    distill(world, tmp_path / "killed", three_epochs)
    for name in ("last.safetensors", "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not list((tmp_path / "killed").glob(".*")), "the half is cleared away"


def test_a_run_stopped_before_its_result_only_writes_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(world, tmp_path / "run")
    monkeypatch.setattr(trainer._Loop, "step", None)
    result = train(world, tmp_path / "run")
    assert result["iterations"] == 4
    assert (tmp_path / "run" / "result.json").is_file()


def test_a_state_that_cannot_be_read_is_said_so(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in interrupted_in(monkeypatch, 3):
        with pytest.raises(KeyboardInterrupt):
            train(world, tmp_path / "run")
    (tmp_path / "run" / "state.pt").write_bytes(b"broken")
    with pytest.raises(OutputError, match=r"state\.pt cannot be read"):
        train(world, tmp_path / "run")


def test_settings_that_no_weight_depends_on_may_change(world: World, plain_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain_run, tmp_path / "run")

    def other_export(values: dict[str, Any]) -> None:
        values["export"] = {"overlap_px": 8}

    assert train(world, folder, other_export) == json.loads((plain_run / "result.json").read_text())


def test_a_folder_of_another_recipe_is_refused_with_the_difference(
    world: World, plain_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(plain_run, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def slower(values: dict[str, Any]) -> None:
        values["student"]["training"]["epochs"] = 1
        values["student"]["training"]["optimizer"]["learning_rate"] = 0.5

    with pytest.raises(OutputError, match="holds a run of other settings") as caught:
        train(world, folder, slower)
    assert "training.optimizer.learning_rate was 0.001, is 0.5" in str(caught.value)
    assert "training.epochs was 2, is 1" in str(caught.value)
    assert "--no-resume" in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    result = pipelines.train_role(settings(world, slower), "student", folder, restart=True)
    assert result["iterations"] == 2


# --- stopping -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(world: World, tmp_path: Path) -> None:
    def wild(values: dict[str, Any]) -> None:
        values["student"]["training"]["optimizer"].update(name="sgd", learning_rate=1e20)

    with pytest.raises(TrainingError, match="The loss is not finite at iteration") as caught:
        train(world, tmp_path / "run", wild)
    assert "task/classification" in str(caught.value)
    saved = load_file(tmp_path / "run" / "nonfinite_batch.safetensors")["pixels.0"]
    assert saved.shape == (4, 3, 64, 64)
    assert saved.dtype == torch.uint8
    assert not (tmp_path / "run" / "result.json").exists()


def test_gradients_are_clipped_together(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    clip = torch.nn.utils.clip_grads_with_norm_

    def watched(parameters: Any, largest: float, norm: torch.Tensor) -> None:
        clip(parameters, largest, norm)
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)))
        assert len(parameters) > 150  # the student's, the adapters' and the filters'

    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", watched)

    def clipped(values: dict[str, Any]) -> None:
        values["distillation"]["training"]["epochs"] = 1
        values["distillation"]["training"]["optimizer"]["grad_clip"] = 0.01

    distill(world, tmp_path / "run", clipped)
    assert len(norms) == 2
    assert max(norms) <= 0.01001


# --- the frozen part ------------------------------------------------------------------------------------------------


def test_teacher_and_encoder_are_untouched_by_training(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Watched(pipelines.FrozenModels):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append((self, {name: value.clone() for name, value in self.state_dict().items()}))

    monkeypatch.setattr(pipelines, "Knowledge", Watched)
    distill(world, tmp_path / "run")
    ((knowledge, before),) = made
    assert any(name.startswith("sam.trunk") for name in before)
    assert any(name.endswith("running_mean") for name in before)
    for name, value in knowledge.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in knowledge.parameters())
    assert not any(parameter.requires_grad for parameter in knowledge.parameters())


def test_the_rate_grows_with_the_batch(world: World, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["student"]["training"]["optimizer"].update(learning_rate=0.004, base_batch_size=16)
        values["student"]["training"]["schedule"].update(name="step", milestones=[2])

    train(world, tmp_path / "run", change)
    assert lines(tmp_path / "run")[0]["rate"] == pytest.approx(0.004 * 4 / 16)


# --- options of the loop --------------------------------------------------------------------------------------------


def test_the_student_is_judged_before_the_first_step(plain_run: Path, distilled_run: Path) -> None:
    assert lines(distilled_run)[0]["epoch"] == 0
    assert set(lines(distilled_run)[0]["validation"]) == {"mean_ap", "ap50", "ap75"}
    assert "iteration" in lines(plain_run)[0]


def test_a_run_interrupted_within_an_epoch_goes_on_from_that_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optimizer, schedule, averaged weights, draws and the place in the epoch are all taken up again."""

    def changing(values: dict[str, Any]) -> None:
        values["data"]["augmentation"] = {"photometric": 0.3, "scale_jitter": [0.8, 1.2]}
        values["distillation"]["training"].update(
            batch_size=2, ema_decay=0.9, accumulation_steps=2, save_every_minutes=0
        )
        values["distillation"]["training"]["schedule"]["warmup_iters"] = 3

    distill(world, tmp_path / "whole", changing)
    for _ in interrupted_in(monkeypatch, 2):
        with pytest.raises(KeyboardInterrupt):
            distill(world, tmp_path / "run", changing)
    for _ in interrupted_in(monkeypatch, 5):
        with pytest.raises(KeyboardInterrupt):
            distill(world, tmp_path / "run", changing)
    assert train_state.read_state(tmp_path / "run" / "state.pt")["standing"][:2] == [1, 5]
    distill(world, tmp_path / "run", changing)
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_accumulated_gradients_are_the_mean_of_the_parts(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against autograd on the mean of the parts' losses."""
    found: dict[str, torch.Tensor] = {}
    expected: dict[str, torch.Tensor] = {}
    step, backward = trainer._Loop.step, trainer._Loop.backward

    def watched_step(self: Any, parts: list[Batch]) -> Any:
        assert [len(part) for part in parts] == [2, 2]
        step(self, parts)
        found.update({name: p.grad.clone() for name, p in self.detector.named_parameters() if p.grad is not None})
        raise KeyboardInterrupt

    def watched_backward(self: Any, part: Batch, *, share: float) -> Any:
        output = self.detector(trainer.normalize(part.pixels))
        total = sum(self.detector.task_losses(output, part.targets).values())
        named = dict(self.detector.named_parameters())
        gradients = torch.autograd.grad(total, list(named.values()))
        for name, gradient in zip(named, gradients, strict=True):
            expected[name] = expected.get(name, 0) + gradient / 2
        return backward(self, part, share=share)

    monkeypatch.setattr(trainer._Loop, "step", watched_step)
    monkeypatch.setattr(trainer._Loop, "backward", watched_backward)

    def in_two_parts(values: dict[str, Any]) -> None:
        values["student"]["training"].update(accumulation_steps=2, compute={"channels_last": False})
        values["student"]["detector"]["norm"] = "frozen"

    with pytest.raises(KeyboardInterrupt):
        train(world, tmp_path / "run", in_two_parts)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_batch_that_cannot_be_accumulated_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"shared out evenly: got 4 images, expected a multiple of 3"):
        train(world, tmp_path / "run", lambda values: values["student"]["training"].update(accumulation_steps=3))


def test_the_averaged_weights_are_validated_and_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean follows its recursion over the weights after each step; the checkpoint holds it."""
    name = "head.classification_head.cls_logits.weight"
    seen: list[torch.Tensor] = []
    step = trainer._Loop.step

    def watched(self: Any, parts: list[Batch]) -> Any:
        told = step(self, parts)
        seen.append(self.detector.state_dict()[name].clone())
        return told

    monkeypatch.setattr(trainer._Loop, "step", watched)
    train(world, tmp_path / "run", lambda values: values["student"]["training"].update(ema_decay=0.15))
    mean = seen[0]
    for done, weights in enumerate(seen[1:], start=1):
        past = min(0.15, (1 + done) / (10 + done))
        mean = past * mean + (1 - past) * weights
    kept = load_file(tmp_path / "run" / "last.safetensors")[name]
    torch.testing.assert_close(kept, mean)
    assert not torch.equal(kept, seen[-1])


def test_a_run_ends_early_when_waiting_does_not_help(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.3, 0.1, 0.3, 0.9])
    real = trainer.validate

    def scored(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **options).model_copy(update={"mean_ap": next(scores)})

    monkeypatch.setattr(trainer, "validate", scored)
    result = train(world, tmp_path / "run", lambda values: values["student"]["training"].update(epochs=6, patience=2))
    assert (result["epochs"], result["best_validation_map"]) == (4, 0.3)
    assert [entry["epoch"] for entry in lines(tmp_path / "run") if "epoch" in entry] == [1, 2, 3, 4]


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer._Loop.step
    before: dict[str, torch.Tensor] = {}

    def spoilt(self: Any, parts: list[Batch]) -> Any:
        before.update({name: value.clone() for name, value in self.detector.named_parameters()})
        weight = self.detector.head.classification_head.cls_logits.weight
        weight.register_hook(lambda gradient: gradient * math.nan)
        try:
            return step(self, parts)
        finally:
            assert all(torch.equal(value, before[name]) for name, value in self.detector.named_parameters())

    monkeypatch.setattr(trainer._Loop, "step", spoilt)
    with pytest.raises(TrainingError, match="The gradient is not finite at iteration 0"):
        train(world, tmp_path / "run")
    assert (tmp_path / "run" / "nonfinite_batch.safetensors").is_file()


COMPILED = """
import json, sys
from pathlib import Path
import torch
from ifkd import recipe, runs
from ifkd.config import parse

values, folder, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
compiled_by, traced = torch.nn.Module.compile, []
torch.nn.Module.compile = lambda module: traced.append(module) or compiled_by(module, backend="eager")
runs.train_role(parse(values, recipe.Recipe, source="values"), "student", Path(folder))
assert len(traced) == 1
"""


def test_a_compiled_detector_learns_the_same_under_the_same_names(
    world: World, plain_run: Path, tmp_path: Path
) -> None:
    """Traced by torch.compile in a process without shape checks; building C++ from the trace would take a minute."""

    def compiled(values: dict[str, Any]) -> None:
        values["student"]["training"]["compute"] = {"compile": True}

    told = json.dumps([settings(world, compiled).model_dump(mode="json"), str(tmp_path), torch.get_num_threads()])
    done = subprocess.run([sys.executable, "-c", COMPILED, told], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone, traced = (load_file(folder / "last.safetensors") for folder in (plain_run, tmp_path))
    assert list(alone) == list(traced)
    for name, value in alone.items():
        torch.testing.assert_close(traced[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has batch norm over processes")
def test_batch_norm_over_processes_needs_gpus(world: World, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="sync_batch_norm needs GPUs"):
        train(
            world,
            tmp_path / "run",
            lambda values: values["student"]["training"].update(compute={"sync_batch_norm": True}),
        )


FULL = """
import json, resource, signal, sys
from pathlib import Path
import torch
from ifkd import recipe, runs
from ifkd.config import parse
from ifkd.errors import OutputError
from ifkd.training import loop, state

values, folder, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
step = loop._Loop.step

def filling(self, parts):
    if self.standing.iteration == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    return step(self, parts)

loop._Loop.step = filling
try:
    runs.train_role(parse(values, recipe.Recipe, source="values"), "student", Path(folder))
except OutputError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint_whole(
    world: World, plain_run: Path, tmp_path: Path
) -> None:
    """No file may grow beyond 100 kB from the second epoch on, which is how a full disk looks to a process."""
    told = json.dumps([settings(world).model_dump(mode="json"), str(tmp_path / "run"), torch.get_num_threads()])
    done = subprocess.run([sys.executable, "-c", FULL, told], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Cannot write" in done.stdout
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").meta.classes == ("barge", "ferry", "tug")
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["standing"][:2] == [1, 2]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    train(world, tmp_path / "run")
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == (plain_run / "last.safetensors").read_bytes()


def test_student_and_frozen_networks_see_the_very_same_batch(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know, learn = pipelines.FrozenModels.forward, trainer.TrainStep.forward
    told: list[torch.Tensor] = []
    learned: list[torch.Tensor] = []

    def watched_knowledge(self: Any, images: torch.Tensor, pixels: torch.Tensor) -> Any:
        told.append(images)
        return know(self, images, pixels)

    def watched_step(self: Any, images: torch.Tensor, *given: Any) -> Any:
        learned.append(images)
        return learn(self, images, *given)

    monkeypatch.setattr(pipelines.FrozenModels, "forward", watched_knowledge)
    monkeypatch.setattr(trainer.TrainStep, "forward", watched_step)
    distill(world, tmp_path / "run", lambda values: values["distillation"]["training"].update(epochs=1))
    assert len(told) == len(learned) == 2
    assert all(one is other for one, other in zip(told, learned, strict=True))


def test_alpha_scales_the_logged_term_and_warm_up_begins_at_nothing(
    world: World, distilled_run: Path, tmp_path: Path
) -> None:
    def change(**options: Any) -> Any:
        def changing(values: dict[str, Any]) -> None:
            values["distillation"]["training"]["epochs"] = 1
            values["distillation"]["method"].update(options)

        return changing

    distill(world, tmp_path / "doubled", change(alpha=0.12))
    distill(world, tmp_path / "warm", change(warmup_iters=2))
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


def test_the_kept_student_predicts_as_the_one_that_learned_and_has_a_plain_ones_names(
    world: World, plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters and filters learned beside the student; leaving them behind changes nothing it says."""
    made = []
    fit = pipelines.fit

    def watched(run: Any, student: Any, **given: Any) -> dict[str, Any]:
        made.append((student, given["method"]))
        return fit(run, student, **given)

    monkeypatch.setattr(pipelines, "fit", watched)
    distill(world, tmp_path / "run")
    ((student, method),) = made
    assert {name.split(".")[0] for name, _ in method.named_parameters()} == {"adapters", "filters"}
    checkpoint = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert checkpoint.weights.keys() == load_file(plain_run / "last.safetensors").keys()
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        kept, learned = build_from(checkpoint)(images), student.cpu().eval()(images)
    for ours, theirs in zip((*kept.logits, *kept.deltas), (*learned.logits, *learned.deltas), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
