"""SAR images of airfields: any window of a world, and the labels of the aircraft in it."""

import math

import numpy as np

from ifkd.core.detections import Array
from ifkd.core.tiling import Window
from ifkd.data.synthetic.config import AircraftDatasetConfig
from ifkd.data.synthetic.geometry import PixelGrid, bounds_of, enlarged, overlap, window_around
from ifkd.data.synthetic.labels import LabelSource
from ifkd.data.synthetic.noise import Noise, filtered, hashed, smoothstep
from ifkd.data.synthetic.sar.airfield import Airfields

GRASS_DN = {8: 45.0, 16: 400.0}  # Mean amplitude of grass, by the bits of a pixel: one scale for all images
REACH_PX = 5  # Distance from its middle at which an echo is cut off
SPECKLE_SEED = 500  # Relative to the seed of the world


class SarPainter(LabelSource):
    """Paints windows of airfields; the pixels do not depend on how the world is cut into windows."""

    def __init__(self, world: Airfields, config: AircraftDatasetConfig) -> None:
        super().__init__(world.aircraft, config.gsd_m)
        self.world, self._config = world, config
        self._strip_bounds = np.array([strip.bounds for strip in world.ground]).reshape(-1, 4)
        self._echo_bounds = np.array([bounds_of(one.positions) for one in world.aircraft]).reshape(-1, 4)

    def paint(self, window: Window) -> Array:
        """Return a window's amplitudes as uint8 or uint16 [height, width, 1]."""
        radar, grid = self._config.radar, PixelGrid(enlarged(window, REACH_PX), self._config.gsd_m)
        intensity = self._mean_intensity(grid)
        field = np.zeros((window.height, window.width), np.complex64)
        for index in grid.touching(self._echo_bounds, room_px=REACH_PX + 2):
            one = self.world.aircraft[index]
            covered, echo = coherent_sum(one.positions / grid.gsd_m, one.echoes, resolution_px=radar.resolution_px)
            here, there = overlap(window, covered)
            field[here] += echo[there]
        power = np.zeros(field.shape, np.float32)
        for look in range(radar.looks):
            seed = self.world.seed + SPECKLE_SEED + look
            ground = speckled(intensity, *grid.rows_columns, resolution_px=radar.resolution_px, seed=seed)
            power += np.abs(ground + field) ** 2
        # A Rayleigh amplitude's mean is sqrt(pi / 4) of the root of its mean intensity.
        level = GRASS_DN[radar.bits] / math.sqrt(math.pi / 4)
        amplitude = np.sqrt(power / radar.looks) * np.float32(level)
        return np.rint(amplitude.clip(0, 2**radar.bits - 1)).astype(f"uint{radar.bits}")[..., None]

    def _mean_intensity(self, grid: PixelGrid) -> Array:
        """Return the mean intensity of ground and buildings, float32 [rows, columns]."""
        growth = Noise(self.world.seed, 160.0, 6, 0.7).grid(*grid.axes)
        intensity = np.exp(0.3 * growth) * (1.0 + 2.5 * smoothstep(2.0 * growth - 2.2))
        for index in grid.touching(self._strip_bounds):
            strip = self.world.ground[index]
            u, v = grid.local(strip.frame)
            along = np.clip((strip.half_length - np.abs(u)) / grid.gsd_m + 0.5, 0.0, 1.0)
            across = np.clip((strip.half_width - np.abs(v)) / grid.gsd_m + 0.5, 0.0, 1.0)
            intensity += (strip.intensity * np.exp(0.12 * growth) - intensity) * along * across
        return np.asarray(intensity, np.float32)


def point_response(offsets: Array, resolution_px: float) -> Array:
    """Return the amplitude, 1 in the middle, of a point's echo along one axis: a sinc under a Hamming window."""
    window = np.where(np.abs(offsets) < REACH_PX, 0.54 + 0.46 * np.cos(np.pi * offsets / REACH_PX), 0.0)
    return np.asarray(np.sinc(offsets / resolution_px) * window)


def coherent_sum(positions_px: Array, echoes: Array, *, resolution_px: float) -> tuple[Window, Array]:
    """Return the pixels of the coherent sum of echoes, complex64 [n], from x, y [n, 2], and the sum, complex64."""
    window = window_around(bounds_of(positions_px), margin=REACH_PX + 1)
    pixels = np.floor(positions_px)[..., None] + np.arange(-REACH_PX, REACH_PX + 1)
    along_x, along_y = np.moveaxis(point_response(pixels + 0.5 - positions_px[..., None], resolution_px), 1, 0)
    columns, rows = np.moveaxis(pixels.astype(int) - np.array([[window.left], [window.top]]), 1, 0)
    field = np.zeros((window.height, window.width), np.complex64)
    responses = echoes[:, None, None] * (along_y[:, :, None] * along_x[:, None, :])
    np.add.at(field, (rows[:, :, None], columns[:, None, :]), responses.astype(np.complex64))
    return window, field


def speckled(intensity: Array, rows: Array, columns: Array, *, resolution_px: float, seed: int) -> Array:
    """Return one look of ground with a mean intensity: circular Gaussian, complex64, without a margin of `REACH_PX`."""
    bits = hashed(seed, rows, columns)
    radius = np.sqrt(-np.log((bits >> np.uint32(16)).astype(np.float32) / 65536.0 + np.float32(2.0**-17)))
    phase = (bits & np.uint32(0xFFFF)).astype(np.float32) * np.float32(2 * math.pi / 65536.0)
    scale = np.sqrt(intensity) * radius
    taps = point_response(np.arange(-REACH_PX, REACH_PX + 1), resolution_px)
    taps = (taps / np.sqrt((taps**2).sum())).astype(np.float32)
    real, imaginary = (filtered(scale * wave(phase), taps) for wave in (np.cos, np.sin))
    return np.asarray(real + 1j * imaginary, np.complex64)
