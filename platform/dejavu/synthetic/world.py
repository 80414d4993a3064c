"""The synthetic world: coloured shapes on textured backgrounds, and what can really be seen of them.

One renderer draws the training frames of the embedded backbone and the frames of the synthetic videos.
Shapes: H, W the frame in pixels; S a shape's side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "green": (40, 165, 55),
    "blue": (45, 75, 220),
    "yellow": (235, 220, 50),
    "orange": (245, 135, 25),
    "purple": (130, 45, 175),
    "cyan": (50, 205, 215),
    "pink": (245, 130, 190),
}
"""Eight colours that stay apart under every light; white is left out, since dimmed it is the grey occluder."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

GREY = (128, 128, 128)
"""The occluder's colour: no kind has it."""

BLOCK = "block"
"""The occluder's shape."""

SUPERSAMPLING = 4
ANGLE_STEP_DEG = 5


@dataclass(frozen=True, order=True, slots=True)
class Kind:
    """What a question can ask for: one colour and one shape."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def phrase(self) -> str:
        """As an answer reads: `a red circle`, `an orange ring`."""
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self}"


KINDS = tuple(Kind(colour, shape) for colour, shape in product(COLOURS, SHAPES))


@dataclass(frozen=True, slots=True)
class Sprite:
    """One object of one frame, drawn over those before it."""

    shape: str
    rgb: tuple[float, float, float]
    size_px: int
    angle_deg: int
    x_px: float
    """Centre, from the frame's left edge; may lie outside."""
    y_px: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """A frame and the truth about it."""

    rgb: NDArray[np.uint8]
    """[H, W, 3]."""
    owner: NDArray[np.int16]
    """[H, W]: index of the sprite seen there, -1 for the background."""


@lru_cache(maxsize=4096)
def shape_cover(shape: str, size_px: int, angle_deg: int) -> NDArray[np.float32]:
    """Return how much of each pixel of its square a shape (one of SHAPES, or BLOCK) covers, turned clockwise.

    Returns:
        [S, S] in 0..1, smooth at the outline. Shared between calls: do not write into it.

    Raises:
        ValueError: The shape is unknown.
    """
    fine = size_px * SUPERSAMPLING
    axis = (np.arange(fine) + 0.5) / fine * 2 - 1
    x, y = np.meshgrid(axis, axis)
    turn = np.deg2rad(angle_deg)
    u = np.cos(turn) * x + np.sin(turn) * y
    v = -np.sin(turn) * x + np.cos(turn) * y
    radius = np.hypot(u, v)
    if shape == "circle":
        inside = radius < 0.92
    elif shape == "ring":
        inside = (radius < 0.98) & (radius > 0.52)
    elif shape == "square":
        inside = np.maximum(abs(u), abs(v)) < 0.78
    elif shape == "triangle":
        inside = (v < 0.72) & (v > 2 * abs(u) / 1.05 - 0.98)
    elif shape == "cross":
        inside = (np.minimum(abs(u), abs(v)) < 0.27) & (np.maximum(abs(u), abs(v)) < 0.92)
    elif shape == "star":
        # A five-pointed star: between two tips the outline is the straight line from tip to notch.
        sector = np.abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        along, across = radius * np.cos(sector), radius * np.sin(sector)
        notch_x, notch_y = 0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5)
        inside = (along - 1.0) * notch_y - across * (notch_x - 1.0) < 0
    elif shape == BLOCK:
        inside = np.ones_like(u, dtype=bool)
    else:
        raise ValueError(f"shape: got {shape!r}, expected one of {', '.join((*SHAPES, BLOCK))}")
    cells = inside.reshape(size_px, SUPERSAMPLING, size_px, SUPERSAMPLING)
    cover: NDArray[np.float32] = cells.mean(axis=(1, 3), dtype=np.float32)
    return cover


def texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Return a background [H, W, 3]: noise of three octaves between two muted colours."""
    height_map = np.zeros((height, width), dtype=np.float32)
    for cells, weight in ((4, 1.0), (9, 0.6), (22, 0.4)):
        grid = rng.random((cells, cells), dtype=np.float32)
        height_map += weight * (_stretch(height, cells) @ grid @ _stretch(width, cells).T)
    height_map /= 2.0
    low, high = _muted_colour(rng), _muted_colour(rng)
    return low + height_map[:, :, None] * (high - low)


@lru_cache(maxsize=256)
def _stretch(length: int, cells: int) -> NDArray[np.float32]:
    """Return [length, cells]: linear interpolation of a row of cells."""
    position = np.linspace(0, cells - 1, length)
    low = np.minimum(position.astype(int), cells - 2)
    weights = np.zeros((length, cells), dtype=np.float32)
    weights[np.arange(length), low] = 1 - (position - low)
    weights[np.arange(length), low + 1] = position - low
    return weights


def _muted_colour(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return [3]: a colour near a grey, so that no background looks like an object."""
    grey = rng.uniform(30, 210)
    return np.asarray(grey + rng.uniform(-24, 24, size=3), dtype=np.float32)


def noise_bank(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Return unit noise [2H, 2W, 3]; any [H, W] window of it is one frame's noise, at a copy's price."""
    return rng.standard_normal((2 * height, 2 * width, 3), dtype=np.float32)


def own_pixels(sprites: list[Sprite], height: int, width: int) -> NDArray[np.int16]:
    """Return [H, W]: the index of the sprite that is seen at each pixel, -1 for the background."""
    owner = np.full((height, width), -1, dtype=np.int16)
    for index, sprite in enumerate(sprites):
        window = _window(sprite, height, width)
        if window is not None:
            rows, columns, cover = window
            owner[rows, columns][cover > 0.5] = index
    return owner


def draw(sprites: list[Sprite], background: NDArray[np.float32], light: float, noise: NDArray[np.float32]) -> Drawing:
    """Draw one frame.

    Args:
        sprites: From back to front.
        background: [H, W, 3] in 0..255.
        light: Gain on everything drawn; 1 is neutral.
        noise: [H, W, 3], added after the light, in grey levels.
    """
    height, width = background.shape[:2]
    canvas = background.copy()
    for sprite in sprites:
        window = _window(sprite, height, width)
        if window is None:
            continue
        rows, columns, cover = window
        patch = canvas[rows, columns]
        patch += cover[:, :, None] * (np.asarray(sprite.rgb, dtype=np.float32) - patch)
    canvas *= light
    canvas += noise
    np.clip(canvas, 0, 255, out=canvas)
    return Drawing(canvas.astype(np.uint8), own_pixels(sprites, height, width))


def _window(sprite: Sprite, height: int, width: int) -> tuple[slice, slice, NDArray[np.float32]] | None:
    """Return the rows and columns a sprite touches, and its cover there; None where it lies outside."""
    cover = shape_cover(sprite.shape, sprite.size_px, sprite.angle_deg)
    top, left = round(sprite.y_px - sprite.size_px / 2), round(sprite.x_px - sprite.size_px / 2)
    first_row, first_column = max(top, 0), max(left, 0)
    last_row, last_column = min(top + sprite.size_px, height), min(left + sprite.size_px, width)
    if first_row >= last_row or first_column >= last_column:
        return None
    part = cover[first_row - top : last_row - top, first_column - left : last_column - left]
    return slice(first_row, last_row), slice(first_column, last_column), part


def visible_fractions(sprites: list[Sprite], owner: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return, per sprite, the share of its whole area that is seen in `owner` (0..1).

    Pass a window of the frame, such as the centre square, to count only what is seen there.
    """
    seen = np.bincount((owner.ravel() + 1).astype(np.int64), minlength=len(sprites) + 1)[1:]
    whole = [int((shape_cover(s.shape, s.size_px, s.angle_deg) > 0.5).sum()) for s in sprites]
    return seen / np.maximum(np.asarray(whole, dtype=np.float64), 1)
