"""study.json and its statistics over seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from fakes.study_records import comparison_record

from ifkd.core.errors import DataError
from ifkd.study.study_record import map_difference, read_study_record, seed_spread


def test_spreads_equal_those_of_numpy() -> None:
    values = [0.31, 0.35, 0.30]
    assert seed_spread(values).mean == pytest.approx(100 * np.mean(values))
    assert seed_spread(values).std == pytest.approx(100 * np.std(values, ddof=1))
    assert seed_spread([0.5]).std is None
    assert f"{seed_spread([0.5])}" == "50.0"


def test_gains_are_paired_by_seed() -> None:
    gain = map_difference(comparison_record(), "ifkd")
    assert gain is not None
    assert (gain.mean, gain.std) == (pytest.approx(6.5), pytest.approx(np.std([6.0, 7.0], ddof=1)))
    lead = map_difference(comparison_record(), "ifkd", "fgd")
    assert lead is not None
    assert lead.mean == pytest.approx(np.mean([3.0, 6.0]))


@pytest.mark.parametrize("seeds", [2, 3, 8, 20])
def test_intervals_equal_those_of_scipy(seeds: int) -> None:
    points = np.random.default_rng(seeds).normal(30.0, 2.0, seeds)
    expected = scipy.stats.t.interval(0.95, seeds - 1, points.mean(), scipy.stats.sem(points))
    assert seed_spread(points / 100).interval == pytest.approx(expected, rel=1e-3)


def test_a_single_seed_has_no_interval() -> None:
    assert seed_spread([0.5]).interval == (-np.inf, np.inf)


def test_a_record_is_read_as_written(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(comparison_record().model_dump_json())
    assert read_study_record(tmp_path / "study.json") == comparison_record()


HINT = r"Write it again: run the study's command with --report-only\."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"title": "of the first version"}', rf"has another schema version: got none, expected 2\. {HINT}"),
        ('{"schema_version": 2}', rf"is invalid at title \(Field required\)\. {HINT}"),
        ("torn {", rf"is not a JSON file .*\. {HINT}"),
    ],
)
def test_an_invalid_record_is_refused_with_the_way_out(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(DataError, match=rf"study\.json {message}") as caught:
        read_study_record(tmp_path / "study.json")
    assert "\n" not in str(caught.value)


def test_a_missing_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file .*absent\.json"):
        read_study_record(tmp_path / "absent.json")


def test_the_record_states_its_schema_version() -> None:
    assert json.loads(comparison_record().model_dump_json())["schema_version"] == 2
