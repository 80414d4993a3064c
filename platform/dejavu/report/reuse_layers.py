"""How much is reused at each boundary between layers: a heat map with a row per setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dejavu.report.style import INK, MUTED, styles_of
from dejavu.storage.store import atomic
from dejavu.storage.store_path import StorePath

CELL_TEXT_LIMIT = 16
"""Boundaries up to which each cell holds its number."""


@dataclass(frozen=True, slots=True)
class LayerRates:
    """One setting."""

    method: str
    setting: str
    rate_L: NDArray[np.float64]
    """[L - 1]: share of patches reused at the boundary into layers 1..L-1, counted from 0."""


def layer_rates(reuse_FLN: NDArray[np.bool_], num_prefix: int) -> NDArray[np.float64]:
    """Return [L], the share of patches reused at each boundary over all frames; the prefix is left out."""
    rate_L: NDArray[np.float64] = reuse_FLN[:, :, num_prefix:].mean(axis=(0, 2), dtype=np.float64)
    return rate_L


def plot_layer_rates(settings: Sequence[LayerRates], path: StorePath) -> None:
    """Draw settings in the order given, bright where everything is computed and dark where everything is reused.

    Raises:
        ValueError: There is no setting, or they are of different towers.
    """
    widths = {len(one.rate_L) for one in settings}
    if len(widths) != 1 or widths == {0}:
        raise ValueError(
            f"layer rates: got {len(settings)} settings with {sorted(widths)} boundaries, expected one or more of one "
            "tower; observe them on one backbone"
        )
    num_layers = widths.pop()
    rate_SL = np.stack([one.rate_L for one in settings])
    figure = Figure(figsize=(9.6, 0.9 + 0.3 * len(settings)), dpi=130, facecolor="white")
    axes = figure.add_subplot()
    picture = axes.imshow(rate_SL, aspect="auto", cmap="YlGnBu", vmin=0, vmax=1)
    styles = styles_of(one.method for one in settings)
    axes.set_yticks(range(len(settings)), [f"{styles[one.method].name}  {one.setting}" for one in settings])
    for label, one in zip(axes.get_yticklabels(), settings, strict=True):
        label.set_color(styles[one.method].colour)
    if num_layers <= CELL_TEXT_LIMIT:
        axes.set_xticks(range(num_layers), [f"{layer} → {layer + 1}" for layer in range(1, num_layers + 1)])
        for (row, column), rate in np.ndenumerate(rate_SL):
            colour = "white" if rate > 0.55 else INK
            axes.text(column, row, f"{100 * rate:.0f}", ha="center", va="center", fontsize=8, color=colour)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value + 1:.0f} → {value + 2:.0f}")
    axes.set_xlabel("from layer → into layer", fontsize=9, color=INK)
    axes.tick_params(length=0, labelsize=8.5)
    axes.tick_params(axis="x", colors=MUTED)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=axes, pad=0.015, fraction=0.03, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["computed", "half", "reused"], fontsize=8, color=MUTED)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    figure.tight_layout(pad=0.8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
