"""The runs of a study: one teacher, then every variant with every seed; what is done is not done again."""

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

from pydantic import ValidationError

from ifkd.compute.device import best_device, gpu_groups
from ifkd.core.config import differences, dump
from ifkd.core.config import load as load_config
from ifkd.core.environment import usable_cores
from ifkd.core.errors import OutputError, TrainingError
from ifkd.core.files import make_folder, sha256_of, sole_user, write_json, write_text
from ifkd.data.splits import read_split
from ifkd.models.checkpoint import build_from, load_checkpoint
from ifkd.recipe import Recipe
from ifkd.study.paper_tables import DataSet
from ifkd.study.study_record import TEACHER, Outcome, StudyRecord, run_name
from ifkd.study.variant import Variant
from ifkd.training.prediction import validate
from ifkd.training.run_folder import BEST, RESULT

logger = logging.getLogger(__name__)

RECIPE, TESTED = "recipe.toml", "test.json"
NOT_TRAINED_BY = (
    "name", "seed", "data.root", "data.images", "data.test", "data.workers", "data.memory_mb", "distillation.method",
    "distillation.cache_teacher", "distillation.cache_for", "distillation.rebuild_cache", "selection", "export",
)  # fmt: skip
"""Parts of a recipe that may differ between a study's runs, or that weights do not depend on."""
OMP_THREADS = "OMP_NUM_THREADS"
UNTOLD = "machines that the runs do not tell"


@dataclass(frozen=True, slots=True)
class StudyFindings:
    """What a study's runs reached."""

    teacher: Outcome
    students: dict[str, list[Outcome | None]]
    """By variant, one for each seed in order; None where a run is not finished."""


@dataclass(frozen=True, slots=True)
class Study:
    """Where a study runs, and of what recipe."""

    folder: Path
    recipe_path: Path
    overrides: tuple[str, ...]
    seeds: int
    jobs: int = 1
    """Runs at once."""
    processes: int = 1
    """Of one run, by torchrun."""

    @property
    def recipe(self) -> Recipe:
        """The recipe with the overrides that all runs share."""
        return load_config(self.recipe_path, Recipe, self.overrides)

    def run(self, variants: Sequence[Variant]) -> StudyFindings:
        """Train and test the teacher once and every variant with every seed; return what they reached.

        Raises:
            ConfigError: A variant does not fit the recipe; nothing is trained then.
            OutputError: The folder holds a study of another recipe.
            TrainingError: Runs failed; the others are finished first.
        """
        settings = self.recipe
        if told := _plain_training(settings):
            logger.warning("The plain student learns by %s", told)
        for variant in variants:
            load_config(self.recipe_path, Recipe, (*self.overrides, *variant.overrides))
        with sole_user(make_folder(self.folder) / "lock"):
            self._claim(settings)
            teacher = self._teacher(settings)
            self._all_at_once(
                {
                    run_name(variant.label, seed): self._distilling(variant, seed)
                    for seed in self._seeds(settings)
                    for variant in variants
                }
            )
            return self._findings(variants, settings, teacher)

    def finished(self, variants: Sequence[Variant]) -> StudyFindings:
        """Return what the finished runs reached, tested now where they were not; nothing is trained.

        Raises:
            OutputError: The folder holds no study, one of another recipe, or one whose teacher is not finished.
        """
        settings = self.recipe
        known = self.folder / RECIPE, self.folder / TEACHER / RESULT
        if not any(path.is_file() for path in known):
            raise OutputError(
                f"{self.folder} holds no study", hint="Begin one with the same command without --report-only."
            )
        if known[0].is_file():
            self._claim(settings)
        teacher = self._tested_if_finished(TEACHER, settings)
        if teacher is None:
            raise OutputError(f"The teacher of {self.folder} is not finished, and nothing can be told before it is")
        names = [TEACHER, *(run_name(variant.label, seed) for variant in variants for seed in self._seeds(settings))]
        for name in names:
            self._check_trained(name, settings)
        return self._findings(variants, settings, teacher)

    def _findings(self, variants: Sequence[Variant], settings: Recipe, teacher: Outcome) -> StudyFindings:
        students = {
            variant.label: [
                self._tested_if_finished(run_name(variant.label, seed), settings) for seed in self._seeds(settings)
            ]
            for variant in variants
        }
        return StudyFindings(teacher, students)

    def record(
        self, found: StudyFindings, variants: Sequence[Variant], *, title: str, data_set: DataSet | None = None
    ) -> StudyRecord:
        """Return what study.json holds of the study."""
        settings = self.recipe
        return StudyRecord(
            title=title,
            recipe=settings.name,
            recipe_toml=dump(settings),
            data_set=data_set,
            seeds=tuple(self._seeds(settings)),
            teacher=found.teacher,
            students={label: tuple(runs) for label, runs in found.students.items()},
            parameter=next((one.parameter for one in variants if one.parameter is not None), None),
            values={one.label: one.value for one in variants if one.value is not None},
            conditions=_conditions(settings, found),
            machines=self.machines(),
        )

    def folders(self, label: str) -> list[Path]:
        """Return the folders of a variant's finished runs, in the order of seeds; the teacher has one."""
        settings = self.recipe
        names = [TEACHER] if label == TEACHER else [run_name(label, seed) for seed in self._seeds(settings)]
        return [self.folder / name for name in names if (self.folder / name / RESULT).is_file()]

    def machines(self) -> dict[str, int]:
        """Return where the finished runs were trained, and how many each machine did."""
        results = sorted(self.folder.glob(f"*/{RESULT}"))
        return dict(Counter(_read_json(path).get("machine", UNTOLD) for path in results))

    def _seeds(self, settings: Recipe) -> range:
        return range(settings.seed, settings.seed + self.seeds)

    def _claim(self, settings: Recipe) -> None:
        text, path = dump(settings), self.folder / RECIPE
        if not path.is_file():
            write_text(path, text)
        elif difference := differences(dump(load_config(path, Recipe)), text):  # what is newer has its default there
            raise OutputError(
                f"{self.folder} holds a study of another recipe: {difference}", hint="Choose another folder."
            )

    def _check_trained(self, name: str, settings: Recipe) -> None:
        """Refuse a finished run of another recipe, as far as its weights depend on it and the method does not."""
        if not (self.folder / name / RESULT).is_file():
            return
        known = load_checkpoint(self.folder / name / BEST).meta.recipe
        others = ("student", "distillation") if name == TEACHER else ("teacher", "student.training")
        if difference := differences(dump(known), dump(settings), besides=(*NOT_TRAINED_BY, *others)):
            raise OutputError(
                f"{self.folder / name} was trained by another recipe: {difference}",
                hint="Give the recipe and the --set values that it was trained by.",
            )

    def _teacher(self, settings: Recipe) -> Outcome:
        if not (self.folder / TEACHER / RESULT).is_file():
            self._all_at_once({TEACHER: ["train", str(self.recipe_path), *self.overrides, "--role", "teacher"]})
        return self._tested(TEACHER, settings)

    def _distilling(self, variant: Variant, seed: int) -> list[str]:
        overrides = (*self.overrides, *variant.overrides, f"seed={seed}")
        teacher = self.folder / TEACHER / BEST
        return ["distill", str(self.recipe_path), *overrides, "--teacher", str(teacher)]

    def _all_at_once(self, runs: dict[str, list[str]]) -> None:
        """Run verbs whose folders hold no result yet, `jobs` at a time, each on GPUs of its own as far as they go."""
        waiting = {name: words for name, words in runs.items() if not (self.folder / name / RESULT).is_file()}
        if len(runs) > len(waiting):
            logger.info("%d of %d runs are done already", len(runs) - len(waiting), len(runs))
        groups: list[str] = gpu_groups(self.processes)
        places: SimpleQueue[str | None] = SimpleQueue()
        for number in range(self.jobs):
            places.put(groups[number % len(groups)] if groups else None)

        def run(name: str) -> int:
            place = places.get()
            try:
                return self._verb(name, waiting[name], gpus=place)
            finally:
                places.put(place)

        with ThreadPoolExecutor(self.jobs) as pool:
            codes = dict(zip(waiting, pool.map(run, waiting), strict=True))
        failed = [name for name, code in codes.items() if code]
        if failed:
            raise TrainingError(
                f"{len(failed)} of {len(waiting)} runs failed: {', '.join(failed)}",
                hint=f"{self._log(failed[0])} tells why; the same command goes on with what is missing.",
            )

    def _verb(self, name: str, words: list[str], *, gpus: str | None) -> int:
        """Run one verb of ours in a process of its own, its output in a file, and return its exit code."""
        command = [sys.executable, "-m", "ifkd"]
        if self.processes > 1:
            command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(self.processes)]
            command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "ifkd"]
        logger.info("%s begins", name)
        make_folder(self._log(name).parent)
        visible = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
        with self._log(name).open("a", encoding="utf-8") as log:
            done = subprocess.run(  # noqa: S603 - our own verbs
                [*command, *words, "--out", str(self.folder / name)],
                stdout=log,
                stderr=log,
                check=False,
                env=os.environ | visible | self._threads(),
            )
        return done.returncode

    def _threads(self) -> dict[str, str]:
        """Return what keeps processes that run at once from each claiming every core; the user's own word stands."""
        at_once = self.jobs * self.processes
        if at_once == 1 or OMP_THREADS in os.environ:
            return {}
        return {OMP_THREADS: str(max(1, usable_cores() // at_once))}

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.txt"

    def _tested_if_finished(self, name: str, settings: Recipe) -> Outcome | None:
        return self._tested(name, settings) if (self.folder / name / RESULT).is_file() else None

    def _tested(self, name: str, settings: Recipe) -> Outcome:
        """Return what a run's best checkpoint reaches on the test split, computed once."""
        checkpoint, path = self.folder / name / BEST, self.folder / name / TESTED
        digest = sha256_of(checkpoint)
        known = _outcome_at(path)
        if known is not None and known.checkpoint_sha256 == digest:
            return known
        detector = build_from(load_checkpoint(checkpoint)).to(best_device())
        metrics = validate(
            detector,
            read_split(settings.data, "test"),
            settings.data,
            settings.selection,
            per_level=settings.export.candidates_per_level,
        )
        result = _read_json(self.folder / name / RESULT)
        tested = Outcome(metrics=metrics, seconds=result["seconds"], checkpoint_sha256=digest)
        write_json(path, tested.model_dump(mode="json"))
        return tested


def _outcome_at(path: Path) -> Outcome | None:
    """Return what a file of a test says; None when it is absent, or damaged, as it can be made again."""
    if not path.is_file():
        return None
    try:
        return Outcome.model_validate_json(path.read_bytes())
    except ValidationError as error:
        logger.warning("%s is damaged and is made again (%s)", path, error.errors()[0]["msg"])
        return None


def _conditions(settings: Recipe, found: StudyFindings) -> dict[str, str]:
    """Return what was run, in words."""
    teacher, student, data = settings.teacher.detector, settings.student.detector, settings.data
    training, tested = settings.distillation.training, found.teacher.metrics
    runs = [run for runs in found.students.values() for run in runs if run is not None]
    hours = (found.teacher.seconds + sum(run.seconds for run in runs)) / 3600
    held_out = data.validation if isinstance(data.validation, Path) else f"{data.validation:.0%} of it, by place"
    rate = training.learning_rate * training.batch_size / training.learning_rate_batch
    told = _plain_training(settings)
    return {
        "networks": f"{student.family}: {teacher.backbone} teaches {student.backbone}, pyramid {student.channels} wide",
        "data": f"{data.root or '.'}: trained on {data.train}, checkpoints chosen on {held_out}",
        "test split": f"{data.test}: {tested.images} images, {tested.objects} objects",
        "images": f"scaled by {data.scale:g}, cut to {data.tile_px} px",
        "schedule": f"{training.epochs} epochs, {training.batch_size} images a step, {training.optimizer}, "
        f"rate {rate:g}, {training.schedule}",
        **({"plain student": f"learned by {told}"} if told else {}),
        "training time": f"{hours:.1f} hours in all, {1 + len(runs)} runs",
    }


def _plain_training(settings: Recipe) -> str:
    """Return how the plain student of a study is trained if `ifkd train` would train it otherwise, in words."""
    difference = differences(dump(settings.student.training), dump(settings.distillation.training))
    return difference and f"distillation.training, as all students do; student.training is another: {difference}"


def _read_json(path: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
