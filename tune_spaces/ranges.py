"""What a search may set of a method's config, beside the grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from reuse_models.method import MethodConfig

BASE = "base"
"""The value that says which of several configs is taken."""


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
        rounded = {name: _three_digits(values[name]) for name in self.fields}
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


def _three_digits(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.3g}")
