"""Noise: independence of the grid, a reference spline, and statistics."""

import numpy as np
import pytest

from ifkd.data.synthetic.noise import Noise, hashed, pixel_noise, spline, uniform

AXIS = (np.arange(-40, 90) + 0.5) * 2.0


@pytest.mark.parametrize("field", [Noise(5, 17.0), Noise(5, 300.0, 5), Noise(3, 200.0, 7, 0.8)])
def test_a_part_of_a_grid_is_that_part(field):
    whole = field.grid(AXIS, AXIS)
    np.testing.assert_array_equal(whole[13:90, 31:32], field.grid(AXIS[13:90], AXIS[31:32]))


def test_grid_and_places_agree():
    field = Noise(9, 130.0, 4)
    y, x = np.meshgrid(AXIS, AXIS, indexing="ij")
    np.testing.assert_allclose(field.grid(AXIS, AXIS), field.at(y, x), atol=1e-4)


def test_spline_agrees_with_scipy():
    interpolate = pytest.importorskip("scipy.interpolate")
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 12))
    places = np.linspace(20.0, 70.0, 23)
    found = spline(lambda rows, columns: values[rows, columns], 10.0, places, places)
    knots = np.arange(-2.0, 14.0) * 10.0  # uniform cubic B-splines centered on multiples of the step
    surface = interpolate.NdBSpline((knots, knots), values, 3)
    y, x = np.meshgrid(places, places, indexing="ij")
    np.testing.assert_allclose(found, surface(np.stack([y, x], axis=-1)), atol=1e-5)


def test_fields_are_about_standard_normal():
    axis = np.arange(0.0, 4000.0, 7.0)
    for field in (Noise(1, 20.0), Noise(2, 60.0, 4)):
        values = field.grid(axis, axis)
        assert abs(float(values.mean())) < 0.05
        assert float(values.std()) == pytest.approx(1.0, abs=0.08)


def test_pixel_noise_is_normal_and_white():
    numbers = np.arange(1000)
    values = pixel_noise(4, numbers[:, None], numbers[None, :])
    assert abs(float(values.mean())) < 0.01
    assert float(values.std()) == pytest.approx(1.0, abs=0.01)
    for shifted in (values[1:, :] * values[:-1, :], values[:, 1:] * values[:, :-1]):
        assert abs(float(shifted.mean())) < 0.01


def test_hashes_differ_by_seed_row_and_column():
    rows, columns = np.meshgrid(np.arange(-200, 200), np.arange(-200, 200), indexing="ij")
    values = hashed(1, rows, columns)
    assert len(np.unique(values)) > 0.9999 * values.size
    assert (values == hashed(2, rows, columns)).mean() < 1e-3
    assert (values == hashed(2, rows - 1, columns)).mean() < 1e-3
    assert float(uniform(1, rows, columns).mean()) == pytest.approx(0.5, abs=0.005)
