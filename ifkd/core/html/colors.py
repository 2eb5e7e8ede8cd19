"""Colors of classes in images and HTML pages."""

import colorsys

ORANGE, LIGHT_BLUE, GREEN, YELLOW = (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)
VERMILION, PINK, BLUE, WHITE = (213, 94, 0), (204, 121, 167), (120, 160, 255), (255, 255, 255)
COLORS = (ORANGE, LIGHT_BLUE, GREEN, YELLOW, VERMILION, PINK, BLUE, WHITE)
"""Palette of Okabe and Ito for all types of color vision; the blue is lighter, to be visible on dark water."""
GOLDEN_RATIO = 0.618034


def class_color(label: int) -> tuple[int, int, int]:
    """Return the RGB color of a class; classes beyond the palette have hues that are spread evenly."""
    if label < len(COLORS):
        return COLORS[label]
    red, green, blue = colorsys.hls_to_rgb(label * GOLDEN_RATIO % 1.0, 0.66, 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)


def hex_color(color: tuple[int, int, int]) -> str:
    """Return a color as `#rrggbb`."""
    red, green, blue = color
    return f"#{red:02x}{green:02x}{blue:02x}"
