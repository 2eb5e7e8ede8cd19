"""What a study's differences prove."""

import math

import pytest
from fakes.study_records import comparison_record, evaluated_run

from ifkd.study.study_record import StudyRecord
from ifkd.study.study_verdict import study_verdict


def record(**maps: tuple[float | None, ...]) -> StudyRecord:
    """Return a record of variants with these mAPs, points by seed."""
    seeds = tuple(range(len(next(iter(maps.values())))))
    students = {
        label: tuple(None if value is None else evaluated_run(value / 100) for value in values)
        for label, values in maps.items()
    }
    return comparison_record(students=students, seeds=seeds)


def test_a_variant_clearly_below_the_plain_student_is_named_with_its_interval() -> None:
    """The differences -7, -8 and -9 have a standard error of 1 / sqrt(3); 4.303 is the quantile for two degrees."""
    half = 4.303 / math.sqrt(3)
    below, advice, first = study_verdict(record(student=(37.0, 36.0, 38.0), ifkd=(30.0, 28.0, 29.0)))
    interval = f"95 % interval {-8 - half:+.1f} to {-8 + half:+.1f}, 3 paired seeds"
    assert below == f"ifkd is clearly below the plain student: -8.0 points of mAP, {interval}."
    assert 'distillation.balance.form = "gradient"' in advice
    assert first.startswith("No variant is clearly first")


@pytest.mark.parametrize("values", [(36.0, 37.0, 30.0), (39.0, 37.0, 39.0)])
def test_a_difference_whose_interval_contains_0_is_not_called_a_loss(values: tuple[float, ...]) -> None:
    found = study_verdict(record(student=(37.0, 36.0, 38.0), ifkd=values))
    assert len(found) == 1
    assert found[0].startswith("No variant is clearly first (ifkd against student: ")


def test_the_first_place_needs_a_clear_lead_over_every_other_variant() -> None:
    clear = record(student=(30.0, 31.0, 32.0), cwd=(40.0, 41.0, 42.0), ifkd=(42.0, 43.1, 44.0))
    assert study_verdict(clear)[0].startswith("ifkd is clearly first (ifkd against cwd: +2.0 points of mAP, ")
    close = record(student=(30.0, 31.0, 32.0), cwd=(40.0, 41.0, 42.0), at=(39.0, 47.0, 37.0), ifkd=(42.0, 43.1, 44.0))
    assert study_verdict(close)[0].startswith("No variant is clearly first (ifkd against at: ")


def test_a_teacher_that_a_plain_student_reaches_is_named() -> None:
    """The teacher of the record has 40 points."""
    weak = study_verdict(record(student=(39.0, 41.0), ifkd=(37.0, 41.0)))
    assert weak[0].startswith("A plain student reaches the teacher (40.0 against 40.0 points of mAP), so")
    assert study_verdict(record(student=(41.0,), ifkd=(37.0,)))[0].startswith("A plain student reaches the teacher")
    assert len(study_verdict(record(student=(38.0, 41.9), ifkd=(37.0, 44.0)))) == 1


def test_unfinished_runs_do_not_decide() -> None:
    found = study_verdict(record(student=(30.0, None), cwd=(None, 40.0), ifkd=(42.0, None)))
    assert found == ("No variant is clearly first (ifkd, cwd: no pair).",)


def test_a_tuned_row_is_no_rival_of_its_method() -> None:
    tuned = {"fgd": (33.0, 34.0, 32.0), "ifkd": (40.5, 41.5, 40.0), "ifkd+weight=3": (40.6, 41.4, 40.1)}
    found = study_verdict(record(student=(30.0, 31.0, 29.0), **tuned))
    assert found[0].startswith("ifkd+weight=3 is clearly first (ifkd+weight=3 against fgd: ")
    others = study_verdict(record(student=(30.0, 31.0, 29.0), **tuned, **{"fgd+weight=10": (40.4, 41.6, 39.9)}))
    assert others[0].startswith("No variant is clearly first (ifkd+weight=3 against fgd+weight=10: ")


def test_a_rival_without_a_finished_run_leaves_the_first_place_open() -> None:
    found = study_verdict(record(student=(30.0, 31.0), fgd=(None, None), ifkd=(40.0, 41.0)))
    assert found == ("No variant is clearly first (ifkd, fgd: no pair).",)


def test_nothing_is_proved_without_seeds_or_a_plain_student() -> None:
    assert study_verdict(record(student=(30.0,), ifkd=(42.0,))) == (
        "One seed has no interval, so no difference is proved.",
    )
    assert study_verdict(record(ifkd=(42.0, 43.0))) == ()
    assert study_verdict(record(student=(42.0, 43.0))) == ()
