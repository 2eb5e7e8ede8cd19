"""Records of studies with made-up metrics."""

from typing import Any

from ifkd.data.metrics import ClassMetrics, Metrics
from ifkd.study.learning_curves import LearningCurves, average_runs
from ifkd.study.study_record import EvaluatedRun, StudyRecord


def evaluated_run(mean_ap: float, ap50: float = 0.5, ap75: float = 0.3) -> EvaluatedRun:
    """Return a run of one minute; the test split has the classes ferry and tug, and no tug in it."""
    per_class = {
        "ferry": ClassMetrics(mean_ap=mean_ap, ap50=ap50, ap75=ap75, objects=3),
        "tug": ClassMetrics(mean_ap=None, ap50=None, ap75=None, objects=0),
    }
    metrics = Metrics(mean_ap=mean_ap, ap50=ap50, ap75=ap75, images=2, objects=3, per_class=per_class)
    return EvaluatedRun(metrics=metrics, train_seconds=60.0, checkpoint_sha256="0" * 64)


def comparison_record(**changes: Any) -> StudyRecord:
    """Return a comparison of two methods with two seeds."""
    values: dict[str, Any] = {
        "title": "Methods <compared>",
        "recipe": "harbor",
        "recipe_toml": 'name = "harbor"',
        "seeds": (4, 5),
        "teacher": evaluated_run(0.40, 0.61, 0.40),
        "students": {
            "student": (evaluated_run(0.30, 0.50, 0.31), evaluated_run(0.34, 0.56, 0.33)),
            "fgd": (evaluated_run(0.33, 0.55, 0.35), evaluated_run(0.35, 0.57, 0.34)),
            "ifkd": (evaluated_run(0.36, 0.60, 0.38), evaluated_run(0.41, 0.62, 0.41)),
        },
    }
    return StudyRecord(**(values | changes))


def sweep_record(parameter: str = "alpha") -> StudyRecord:
    """Return a sweep of two values with two seeds; the last run is not finished."""
    labels = f"{parameter}=0.02", f"{parameter}=0.06"
    students = {
        "student": (evaluated_run(0.30), evaluated_run(0.34)),
        labels[0]: (evaluated_run(0.35), evaluated_run(0.37)),
        labels[1]: (evaluated_run(0.38), None),
    }
    values = {labels[0]: 0.02, labels[1]: 0.06}
    return comparison_record(students=students, parameter=parameter, parameter_values=values)


def learning_curves() -> dict[str, LearningCurves]:
    """Return learning curves of the teacher and of the students of `comparison_record`."""
    validation = average_runs([{1.0: 10.0, 2.0: 20.0}, {1.0: 14.0, 2.0: 26.0}])
    loss = average_runs([{0.0: 2.0, 10.0: 0.5}])
    labels = ("teacher", *comparison_record().students)
    return {label: LearningCurves(validation, {"task": loss, "feature": loss}) for label in labels}
