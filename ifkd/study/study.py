"""Train and evaluate the runs of a study: one teacher, and each variant of the student with each seed."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean

from pydantic import ValidationError

from ifkd.compute.device import best_device
from ifkd.core.config import differences, dump
from ifkd.core.config import load as load_config
from ifkd.core.errors import DataError, OutputError
from ifkd.core.files import file_lock, make_folder, sha256_of, write_json, write_text
from ifkd.data.coco import CocoDataset, align_classes
from ifkd.data.splits import read_split, resolve_path
from ifkd.models.checkpoint import build_from, load_checkpoint
from ifkd.recipe import Recipe
from ifkd.study.paper_tables import PaperDataset
from ifkd.study.run_launcher import RunLauncher
from ifkd.study.study_record import TEACHER, EvaluatedRun, StudyRecord, run_name
from ifkd.study.study_verdict import study_verdict
from ifkd.study.variants import Variant
from ifkd.training.optim import scaled_lr
from ifkd.training.prediction import validate
from ifkd.training.run_folder import RESULT, RunFolder

logger = logging.getLogger(__name__)

RECIPE, TEST_METRICS = "recipe.toml", "test.json"
NOT_COMPARED = (
    "name", "data.root", "data.images", "data.test", "data.workers", "data.cache_mb",
    "distillation.cache_teacher", "distillation.cache_scope", "distillation.rebuild_cache", "postprocess", "export",
)  # fmt: skip
"""Keys of a recipe that may differ between the runs of a study, or that do not affect the weights."""


@dataclass(frozen=True)
class Study:
    """The plan of a study."""

    folder: Path
    recipe_path: Path
    overrides: tuple[str, ...]
    """KEY=VALUE overrides of the recipe for all runs."""
    variants: tuple[Variant, ...]
    seeds: int
    """Number of seeds; the recipe's seed is the first."""
    title: str = ""
    dataset: PaperDataset | None = None
    """The paper's data set to compare with."""
    jobs: int = 1
    """Number of runs at once."""
    processes: int = 1
    """Number of processes of one run, started by torchrun."""
    notes: dict[str, str] = field(default_factory=dict)
    """Further conditions in words."""

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe with the overrides for all runs."""
        return load_config(self.recipe_path, Recipe, self.overrides)

    def run(self) -> StudyRecord:
        """Train and evaluate the teacher once and each variant with each seed; finished runs are not repeated.

        Raises:
            ConfigError: A variant does not fit the recipe. Nothing is trained.
            DataError: The test split cannot be read or has no labeled object. Nothing is trained.
            OutputError: The folder contains a study of another recipe.
            TrainingError: Some runs failed; the others are finished.
        """
        self._test_split()
        with self.prepared(self.variants):
            teacher = self._evaluate(TEACHER, self.recipe)
            self.train(self.variants)
            return self._record(teacher)

    @contextmanager
    def prepared(self, variants: Sequence[Variant]) -> Iterator[None]:
        """Hold the lock of the folder, which has a trained teacher and no finished run of another recipe.

        Raises:
            ConfigError: A variant does not fit the recipe. Nothing is trained.
            OutputError: The folder contains a study of another recipe.
            TrainingError: The training of the teacher failed.
        """
        if note := self._student_training_note():
            logger.warning("The plain student is trained with %s", note)
        for variant in variants:
            self.recipe_of(variant)
        with file_lock(make_folder(self.folder) / "lock"):
            self._claim_folder()
            if not self._run_folder(TEACHER).is_finished:
                self._launcher.launch({TEACHER: ["train", str(self.recipe_path), *self.overrides, "--role", "teacher"]})
            yield

    def train(self, variants: Sequence[Variant]) -> None:
        """Train each variant with each seed; finished runs are not repeated.

        Raises:
            OutputError: A finished run has another recipe.
            TrainingError: Some runs failed; the others are finished.
        """
        self._check_recipes(variants)
        checkpoint = str(self._run_folder(TEACHER).best)
        runs = {run_name(one.label, seed): (one, seed) for seed in self.seed_range for one in variants}
        commands = {
            name: ("distill", str(self.recipe_path), *self.overrides, *variant.overrides, f"seed={seed}", "--teacher",
                   checkpoint)
            for name, (variant, seed) in runs.items()
        }  # fmt: skip
        self._launcher.launch(commands)

    def report(self) -> StudyRecord:
        """Evaluate the finished runs; train nothing.

        Raises:
            OutputError: The folder contains no study, a study of another recipe, or an unfinished teacher.
        """
        has_recipe, has_teacher = (self.folder / RECIPE).is_file(), self._run_folder(TEACHER).is_finished
        if not has_recipe and not has_teacher:
            hint = "Start one: run the command without --report-only."
            raise OutputError(f"{self.folder} contains no study", hint=hint)
        if has_recipe:
            self._claim_folder()
        if not has_teacher:
            raise OutputError(f"The teacher of {self.folder} is not finished, so there is nothing to report")
        teacher = self._evaluate(TEACHER, self.recipe)
        self._check_run(TEACHER, self.recipe)
        self._check_recipes(self.variants)
        return self._record(teacher)

    def finished_folders(self, label: str) -> list[Path]:
        """Return the folders of a variant's finished runs in the order of seeds, or the teacher's folder."""
        names = [TEACHER] if label == TEACHER else [run_name(label, seed) for seed in self.seed_range]
        return [self.folder / name for name in names if self._run_folder(name).is_finished]

    @property
    def seed_range(self) -> range:
        """The seeds of each variant."""
        return range(self.recipe.seed, self.recipe.seed + self.seeds)

    @property
    def _launcher(self) -> RunLauncher:
        return RunLauncher(self.folder, self.jobs, self.processes)

    def recipe_of(self, variant: Variant) -> Recipe:
        """Return the recipe of a variant.

        Raises:
            ConfigError: The variant does not fit the recipe.
        """
        return load_config(self.recipe_path, Recipe, (*self.overrides, *variant.overrides))

    def _run_folder(self, name: str) -> RunFolder:
        return RunFolder(self.folder / name)

    def _record(self, teacher: EvaluatedRun) -> StudyRecord:
        def evaluated(name: str, recipe: Recipe) -> EvaluatedRun | None:
            return self._evaluate(name, recipe) if self._run_folder(name).is_finished else None

        recipes = {variant.label: self.recipe_of(variant) for variant in self.variants}
        students = {
            label: tuple(evaluated(run_name(label, seed), recipe) for seed in self.seed_range)
            for label, recipe in recipes.items()
        }
        finished = [run for runs in students.values() for run in runs if run is not None]
        machines = [RunFolder(path.parent).read_result().machine for path in sorted(self.folder.glob(f"*/{RESULT}"))]
        record = StudyRecord(
            title=self.title,
            recipe=self.recipe.name,
            recipe_toml=dump(self.recipe),
            dataset=self.dataset,
            seeds=tuple(self.seed_range),
            teacher=teacher,
            students=students,
            parameter=next((one.parameter for one in self.variants if one.parameter is not None), None),
            parameter_values={one.label: one.value for one in self.variants if one.value is not None},
            conditions=self._conditions(teacher, finished),
            machines=dict(Counter(machines)),
        )
        return record.model_copy(update={"verdict": study_verdict(record)})

    def _claim_folder(self) -> None:
        """Write the recipe into an empty folder; compare it with the recipe of an existing study."""
        text, path = dump(self.recipe), self.folder / RECIPE
        if not path.is_file():
            write_text(path, text)
        # The existing recipe is loaded, so that keys added since then have their defaults.
        elif difference := differences(load_config(path, Recipe).model_dump(), self.recipe.model_dump()):
            problem = f"{self.folder} contains a study of another recipe: {difference}"
            raise OutputError(problem, hint="Choose another folder.")

    def _check_recipes(self, variants: Sequence[Variant]) -> None:
        """Refuse finished runs of other recipes, seeds or teachers than those of their variants."""
        for variant in variants:
            recipe = self.recipe_of(variant)
            for seed in self.seed_range:
                if self._run_folder(name := run_name(variant.label, seed)).is_finished:
                    self._check_run(name, recipe.model_copy(update={"seed": seed}))

    def _check_run(self, name: str, recipe: Recipe) -> None:
        """Refuse a finished run of another recipe or teacher; keys that do not affect the weights may differ."""
        folder = self._run_folder(name)
        meta = load_checkpoint(folder.best).meta
        other_parts = ("seed", "student", "distillation") if name == TEACHER else ("teacher", "student.training")
        if difference := differences(
            meta.recipe.model_dump(), recipe.model_dump(), ignore=(*NOT_COMPARED, *other_parts)
        ):
            hint = "Use the recipe and the --set values of the training."
            raise OutputError(f"{folder.path} was trained with another recipe: {difference}", hint=hint)
        taught_by = meta.provenance.get("teacher_sha256", self._teacher_sha256)
        if name != TEACHER and taught_by != self._teacher_sha256:
            raise OutputError(
                f"{folder.path} was distilled from another teacher than {self._run_folder(TEACHER).best}",
                got=f"SHA-256 {str(taught_by)[:12]}…",
                expected=f"{self._teacher_sha256[:12]}…",
                hint="Move the run away, so that it is trained again, or put its teacher back.",
            )

    @cached_property
    def _teacher_sha256(self) -> str:
        return sha256_of(self._run_folder(TEACHER).best)

    def _evaluate(self, name: str, recipe: Recipe) -> EvaluatedRun:
        """Return the metrics of a run's best checkpoint on the test split; they are cached in test.json.

        `recipe` is that of the run's variant, which may detect at another scale or with other thresholds.
        """
        folder = self._run_folder(name)
        digest, test_digest = sha256_of(folder.best), self._test_digest(recipe)
        cached = _read_test_metrics(folder.path / TEST_METRICS)
        if cached is not None and cached.checkpoint_sha256 == digest and test_digest in (None, cached.test_sha256):
            return cached
        checkpoint = load_checkpoint(folder.best)
        detector = build_from(checkpoint).to(best_device())
        run = EvaluatedRun(
            metrics=validate(detector, align_classes(self._test_split(), checkpoint.meta.classes), recipe),
            train_seconds=folder.read_result().train_seconds,
            checkpoint_sha256=digest,
            test_sha256=test_digest or "",
        )
        write_json(folder.path / TEST_METRICS, run.model_dump(mode="json"))
        return run

    def _test_digest(self, recipe: Recipe) -> str | None:
        """Return the digest of the test labels and of a recipe's settings of detection; None without the labels."""
        labels = resolve_path(self.recipe.data, self.recipe.data.test)
        if not labels.is_file():
            return None
        settings = {
            "labels": sha256_of(labels),
            "data": recipe.data.model_dump(mode="json", include={"merge_classes", "scale", "tile_px", "imagery"}),
            "postprocess": recipe.postprocess.model_dump(mode="json"),
            "candidates_per_level": recipe.export.candidates_per_level,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def _test_split(self) -> CocoDataset:
        """Return the test split; without labeled objects it cannot compare runs."""
        dataset = read_split(self.recipe.data, "test")
        dataset.require_images()
        if not sum(dataset.objects_per_class().values()):
            raise DataError(f"{dataset.path} has no labeled object, so runs cannot be compared on it")
        return dataset

    def _conditions(self, teacher: EvaluatedRun, students: list[EvaluatedRun]) -> dict[str, str]:
        """Return networks, data and schedule in words."""
        recipe, data, training = self.recipe, self.recipe.data, self.recipe.distillation.training
        teacher_network, student_network = recipe.teacher.detector, recipe.student.detector
        hours = sum(run.train_seconds for run in (teacher, *students)) / 3600
        held_out = data.validation if isinstance(data.validation, Path) else f"{data.validation:.0%} of its scenes"
        note = self._student_training_note()
        return {
            "networks": f"{student_network.family}, teacher {teacher_network.backbone}, student "
            f"{student_network.backbone}, {student_network.channels} pyramid channels",
            "data": f"{data.root or '.'}: trained on {data.train}, best checkpoint by mAP on {held_out}",
            "test split": f"{data.test}: {teacher.metrics.images} images, {teacher.metrics.objects} objects",
            "images": f"scaled by {data.scale:g}, cropped to {data.tile_px} px",
            "schedule": f"{training.epochs} epochs, batch size {training.batch_size}, {training.optimizer.name}, "
            f"learning rate {scaled_lr(training):g}, {training.schedule.name}",
            **({"plain student": f"trained with {note}"} if note else {}),
            "training time": f"{hours:.1f} hours in total, {1 + len(students)} runs",
            **self._gradient_ratios(),
            **self.notes,
        }

    def _gradient_ratios(self) -> dict[str, str]:
        """Return in words how large the gradients of each variant's terms were at the end, compared with the task's."""
        texts = []
        for label in (variant.label for variant in self.variants):
            runs = [RunFolder(folder).read_result().gradient_ratios for folder in self.finished_folders(label)]
            terms = dict.fromkeys(term for run in runs for term in run)
            means = {term: fmean(run[term] for run in runs if term in run) for term in terms}
            texts += [f"{label} {', '.join(f'{term} {mean:.2g}' for term, mean in means.items())}"] if means else []
        return {"gradients of the terms over the task's, at the end": "; ".join(texts)} if texts else {}

    def _student_training_note(self) -> str:
        """Return a note where `ifkd train` would train the plain student with other settings; empty otherwise."""
        student, distillation = self.recipe.student.training, self.recipe.distillation.training
        difference = differences(student.model_dump(), distillation.model_dump())
        return difference and f"distillation.training, as all students; student.training differs: {difference}"


def _read_test_metrics(path: Path) -> EvaluatedRun | None:
    """Return the content of a test.json; None where it is absent or damaged, because it can be computed again."""
    if not path.is_file():
        return None
    try:
        return EvaluatedRun.model_validate_json(path.read_bytes())
    except ValidationError as error:
        logger.warning("%s is invalid and is computed again (%s)", path, error.errors()[0]["msg"])
        return None
