"""How many rows a layer's products are given before the host can know how many are computed.

At each boundary the most that recent groups needed, as a share of all rows, with some headroom, rounded up among a few
sizes, so that few recordings serve many groups. Before anything is known, and where it fell short, all rows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

SIZES_PER_HALVING = 8
"""Sizes lie 9 % apart: rounding up costs half of that on average."""
HEADROOM = 1.05
REMEMBERED = 16
"""Groups."""
MULTIPLE = 8
"""Of rows: what products on a GPU like."""


class Capacities:
    """Rows by boundary, learned from what was needed."""

    def __init__(self, num_boundaries: int) -> None:
        self._num_boundaries = num_boundaries
        self._needed: deque[tuple[float, ...]] = deque(maxlen=REMEMBERED)

    @property
    def is_known(self) -> bool:
        """Whether less than all rows may be given, so that it may fall short."""
        return bool(self._needed)

    def rows(self, num_rows: int) -> tuple[int, ...]:
        """Return the rows of each boundary for a pass of `num_rows`."""
        if not self._needed:
            return (num_rows,) * self._num_boundaries
        return tuple(capacity(max(shares), num_rows) for shares in zip(*self._needed, strict=True))

    def note(self, needed: Sequence[int], num_rows: int) -> None:
        """Remember the rows that a pass of `num_rows` needed at each boundary."""
        self._needed.append(tuple(rows / num_rows for rows in needed))

    def forget(self) -> None:
        """Give all rows until something is noted."""
        self._needed.clear()


def capacity(share: float, num_rows: int) -> int:
    """Return the smallest size that holds a share of the rows and the headroom; never more than all rows."""
    needed = min(max(share * HEADROOM, 1 / num_rows), 1.0)
    steps = math.floor(-math.log2(needed) * SIZES_PER_HALVING)
    size = max(math.ceil(num_rows * 2 ** (-steps / SIZES_PER_HALVING)), math.ceil(needed * num_rows))
    return min(-(-size // MULTIPLE) * MULTIPLE, num_rows)
