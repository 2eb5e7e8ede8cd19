"""Colors of classes, on pictures and pages alike."""

import colorsys

COLORS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (120, 160, 255),
    (255, 255, 255),
)
"""Told apart with any color vision (after Okabe and Ito, the dark blue lightened for dark water)."""
GOLDEN_ANGLE = 0.618034


def class_color(label: int) -> tuple[int, int, int]:
    """Return the red, green and blue of a class; those beyond the first few are spread over the hues."""
    if label < len(COLORS):
        return COLORS[label]
    red, green, blue = colorsys.hls_to_rgb(label * GOLDEN_ANGLE % 1.0, 0.66, 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)


def hexadecimal(color: tuple[int, int, int]) -> str:
    """Return a color as `#rrggbb`."""
    red, green, blue = color
    return f"#{red:02x}{green:02x}{blue:02x}"
