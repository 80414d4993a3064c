"""A tower for grids and ranges, whose validation clips nobody has to decode."""

from __future__ import annotations

from collections.abc import Sequence

from reuse_models.baselines.cmc import distance_quantiles
from reuse_models.tower.shape import VitShape
from tune_spaces.grid_inputs import GridInputs, Statistic, Trained


def fake_tower(shape: VitShape, trained: Trained | None = None) -> GridInputs:
    """Return a tower on whose clips distances grow with their quantile, and thresholds fall with what is computed."""

    def probe(statistic: Statistic, shares: Sequence[float]) -> list[float]:
        return [10 * share if statistic is distance_quantiles else 1 - share for share in shares]

    return GridInputs(shape, probe, trained or Trained())
