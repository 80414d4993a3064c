"""Find room for labels in a crowded plot: each takes the free place nearest to what it names.

All positions are display pixels of a drawn figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""[K, 2], x to the right and y up."""


@dataclass(frozen=True, slots=True)
class Box:
    """An upright rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def middle(self) -> tuple[float, float]:
        """Its centre."""
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def nearest(self, point: tuple[float, float]) -> tuple[float, float]:
        """Return the point of the box that is nearest to another."""
        return (
            min(max(point[0], self.left), self.right),
            min(max(point[1], self.bottom), self.top),
        )

    def count(self, points_K2: Points, *, margin: float) -> int:
        """Count the points inside it, or nearer to it than the margin."""
        x, y = points_K2[:, 0], points_K2[:, 1]
        inside = (x > self.left - margin) & (x < self.right + margin)
        inside &= (y > self.bottom - margin) & (y < self.top + margin)
        return int(inside.sum())

    def overlap(self, other: Box) -> float:
        """Return the common area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)


@dataclass(slots=True)
class Room:
    """What is taken already. Marks are never covered, lines only where nothing better is left."""

    frame: Box
    marks: Points
    lines: Points
    labels: list[Box] = field(default_factory=list)

    def cost(self, box: Box) -> float:
        """Return how bad it is to write here; 0 is free."""
        outside = (
            max(0.0, self.frame.left - box.left)
            + max(0.0, box.right - self.frame.right)
            + max(0.0, self.frame.bottom - box.bottom)
            + max(0.0, box.top - self.frame.top)
        )
        covered = sum(box.overlap(label) for label in self.labels)
        return 50 * outside + 2 * covered + 40 * box.count(self.marks, margin=8) + 4 * box.count(self.lines, margin=1)


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a label goes: its box, which of its anchors it names, and how bad the place is."""

    box: Box
    anchor: tuple[float, float]
    cost: float
    distance: float


def place(size: tuple[float, float], anchors: Sequence[tuple[float, float]], room: Room) -> Spot:
    """Take the best place near one of the anchors, the first of which is the most wanted.

    Args:
        size: Width and height of the label.
        anchors: Points that it may stand beside; at least one.
        room: What is taken; the caller adds the box to its labels where the spot is used.
    """
    candidates = (
        (room.cost(box) + 0.6 * distance + 10 * rank, Spot(box, anchor, room.cost(box), distance))
        for rank, anchor in enumerate(anchors)
        for box, distance in _around(size, anchor)
    )
    return min(candidates, key=lambda candidate: candidate[0])[1]


def _around(size: tuple[float, float], anchor: tuple[float, float]) -> Iterator[tuple[Box, float]]:
    """Yield boxes around a point, with the distance of each from it."""
    width, height = size
    for gap in (12.0, 18.0, 26.0, 38.0, 52.0):
        for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
            cos, sin = float(np.cos(angle)), float(np.sin(angle))
            # The box slides along the circle so that its nearest point, not its centre, lies on it.
            x = anchor[0] + gap * cos + (width / 2) * float(np.clip(1.6 * cos, -1, 1))
            y = anchor[1] + gap * sin + (height / 2) * float(np.clip(1.6 * sin, -1, 1))
            yield Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2), gap
