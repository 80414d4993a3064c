"""What a method's grid may depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from reuse_models.baselines.diffrate.method import DiffRateConfig
from reuse_models.baselines.residual_vit.method import ResidualVitConfig
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.shape import VitShape

Density = Literal["paper", "demo", "tiny"]
"""How many points a grid has: the paper's, a handful, or two."""

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
class Tower:
    """The backbone that a sweep runs on."""

    shape: VitShape
    distance_quantiles: Callable[[Sequence[float]], list[float]]
    """Quantiles of CMC's distance between consecutive frames of validation clips."""
    skip_thresholds: Callable[[Sequence[float]], list[float]]
    """AdaptiveSkip's thresholds at which these shares of the frames of validation clips are computed."""
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
