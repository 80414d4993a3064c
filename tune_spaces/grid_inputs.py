"""What a method's grid may depend on, and what a search may set of its config beside the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution
from torch import Tensor

from reuse_models.baselines.diffrate.method import DiffRateConfig
from reuse_models.baselines.residual_vit.method import ResidualVitConfig
from reuse_models.method import MethodConfig
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

Density = Literal["paper", "demo", "tiny"]
"""How many points a grid has: the paper's, a handful, or two."""

Statistic = Callable[[Vit, Iterable[Tensor], Sequence[float]], list[float]]
"""From the tower, clips of two frames or more ([F, 3, H, W], normalised for it) and shares, 0..1: a number each."""

PAPER_WIDTHS = (768, 1024)
"""Widths of CLIP ViT-B/16 and ViT-L/14, the towers that the paper's knobs were written for."""

BASE = "base"
"""The value that says which of several configs is taken."""


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


@dataclass(frozen=True, slots=True)
class Ranges:
    """One or more configs, and the fields that a search sets of the one that it takes."""

    bases: tuple[MethodConfig, ...]
    """Such as one for each trained add-on."""
    fields: Mapping[str, BaseDistribution]
    """By the config's field names; limits included."""

    @property
    def space(self) -> dict[str, BaseDistribution]:
        """As Optuna takes it."""
        several = {BASE: CategoricalDistribution(range(len(self.bases)))} if len(self.bases) > 1 else {}
        return {**several, **self.fields}

    def config(self, values: Mapping[str, Any]) -> MethodConfig:
        """Return the config that sampled values stand for; three digits are enough, and keep its name readable."""
        index: int = values.get(BASE, 0)
        rounded = {name: three_digits(values[name]) for name in self.fields}
        return replace(self.bases[index], **rounded)  # type: ignore[type-var]  # every config is a dataclass

    def values(self, config: MethodConfig) -> dict[str, Any] | None:
        """Return the values that stand for a config; None for one that lies outside."""
        for index, base in enumerate(self.bases):
            if type(base) is not type(config):
                continue
            fields = {name: getattr(config, name) for name in self.fields}
            if any(value is None or not self._holds(name, value) for name, value in fields.items()):
                continue
            if replace(base, **fields) == config:  # type: ignore[type-var]
                return {**({BASE: index} if len(self.bases) > 1 else {}), **fields}
        return None

    def _holds(self, name: str, value: float) -> bool:
        limits: Any = self.fields[name]
        return bool(limits.low <= value <= limits.high)


def three_digits(value: float) -> float:
    """Round to what is enough, and keeps a setting's name readable; whole numbers stay as they are."""
    return value if isinstance(value, int) else float(f"{value:.3g}")
