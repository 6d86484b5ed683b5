"""Drawn pictures with labels, to try things without data of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_SIZE = 96  # pixels
_COLOURS = {
    "red": (214, 40, 40), "green": (46, 160, 67), "blue": (33, 84, 200), "yellow": (240, 200, 30),
    "black": (20, 20, 20), "white": (245, 245, 245),
}  # fmt: skip
_CORNERS = {"triangle": 3, "square": 4, "pentagon": 5, "circle": 60}


def draw(folder: Path, *, each: int, seed: int = 0) -> list[str]:
    """Writes ``each`` JPEG files of every shape in every colour, a folder for each class.

    Returns:
        The names of the classes, such as "red circle".
    """
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    names = [f"{colour} {shape}" for shape in _CORNERS for colour in _COLOURS]
    for name in names:
        colour, shape = name.split()
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            noise = rng.normal(rng.uniform(90, 170, 3), 12, (_SIZE, _SIZE, 3))
            picture = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
            corners = _polygon(rng, _CORNERS[shape])
            ImageDraw.Draw(picture).polygon(corners, fill=_COLOURS[colour])
            picture.save(folder / name / f"{number:03d}.jpg", quality=90)
    return names


def _polygon(rng: np.random.Generator, corners: int) -> list[tuple[float, float]]:
    """A regular polygon of random place, size and angle, inside the picture."""
    radius = rng.uniform(0.22, 0.42) * _SIZE
    centre = rng.uniform(radius, _SIZE - radius, 2)
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners) / corners
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return [(float(x), float(y)) for x, y in points]
