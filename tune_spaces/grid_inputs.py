"""What a method's grid may depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from reuse_models.baselines.diffrate.method import DiffRateConfig
from reuse_models.baselines.residual_vit.method import ResidualVitConfig
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

Density = Literal["paper", "demo", "tiny"]
"""How many points a grid has: the paper's, a handful, or two."""

Statistic = Callable[[Vit, Iterable[Tensor], Sequence[float]], list[float]]
"""From the tower, clips of two frames or more ([F, 3, H, W], normalised for it) and shares, 0..1: a number each."""

PAPER_WIDTHS = (768, 1024)
"""Widths of CLIP ViT-B/16 and ViT-L/14, the towers that the paper's knobs were written for."""


@dataclass(frozen=True, slots=True)
class AddonCurve:
    """A trained ReuseViT add-on, and the biases of its decisions that are worth trying."""

    config: ReuseVitConfig
    """As it was trained."""
    biases: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Trained:
    """What training has made for a tower; nothing where nothing was trained."""

    addons: tuple[AddonCurve, ...] = ()
    schedules: tuple[DiffRateConfig, ...] = ()
    """Searched, or given as files."""
    residual: ResidualVitConfig | None = None
    """ResidualViT with the token that was fitted, or without any where that is better."""


@dataclass(frozen=True, slots=True)
class GridInputs:
    """The backbone that a sweep runs on."""

    shape: VitShape
    probe: Callable[[Statistic, Sequence[float]], list[float]]
    """What a statistic of validation clips is at some shares: thresholds follow from it."""
    trained: Trained = field(default_factory=Trained)

    @property
    def in_paper(self) -> bool:
        """Whether the paper's grids apply as they are."""
        is_clip = self.shape.has_cls and self.shape.has_pre_norm
        return is_clip and self.shape.width in PAPER_WIDTHS and self.shape.num_tokens in (197, 257)


def thin(values: Sequence[float], density: Density) -> tuple[float, ...]:
    """Return all values, or for `tiny` the second and the second to last."""
    if density == "tiny" and len(values) > 2:
        return (values[1], values[-2])
    return tuple(values)
