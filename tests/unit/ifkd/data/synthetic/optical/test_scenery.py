"""The sensor of generated images: its response to bright surfaces."""

import numpy as np

from ifkd.core.tiling import Window
from ifkd.data.synthetic.config import Conditions
from ifkd.data.synthetic.geometry import PixelGrid
from ifkd.data.synthetic.optical.scenery import capture


def captured(color, conditions):
    size = color.shape[:2]
    return capture(PixelGrid(Window(0, 0, *size), 2.0), color, conditions, 7)


def test_the_response_is_linear_up_to_bright_surfaces_and_increases_beyond_them():
    levels = np.arange(0, 340, 4, dtype=np.float32)
    color = np.repeat(levels[None, :, None], 3, axis=2)
    seen = captured(color, Conditions(noise_dn=0.0))[0, :, 0].astype(int)
    np.testing.assert_array_equal(seen[levels <= 208], levels[levels <= 208])
    assert (np.diff(seen[levels <= 264]) > 0).all()
    assert (np.diff(seen) >= 0).all()
    assert seen.max() < 250


def test_the_brightest_surface_is_not_cut_off_at_255():
    image = captured(np.full((256, 256, 3), 320.0, np.float32), Conditions())
    assert (image == 255).all(axis=2).mean() < 1e-4
    assert image.std() > 1.0  # the noise of the sensor is there
