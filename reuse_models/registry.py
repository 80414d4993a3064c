"""The methods by name, and their configs to and from plain dictionaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from reuse_models.baselines.adaptive_skip import AdaptiveSkipConfig
from reuse_models.baselines.cmc import CmcConfig
from reuse_models.baselines.diffrate.method import DiffRateConfig
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.eventful_full import EventfulFullConfig
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.key_frames import KeyFramesConfig
from reuse_models.baselines.low_resolution import LowResolutionConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.baselines.residual_vit.method import ResidualVitConfig
from reuse_models.baselines.tome import ToMeConfig
from reuse_models.method import MethodConfig
from reuse_models.reusevit.method import ReuseVitConfig

METHODS: dict[str, type[MethodConfig]] = {
    config.method: config
    for config in (
        OriginalConfig,
        FrameSkipConfig,
        AdaptiveSkipConfig,
        KeyFramesConfig,
        LowResolutionConfig,
        EventfulConfig,
        EventfulFullConfig,
        CmcConfig,
        DiffRateConfig,
        ToMeConfig,
        ResidualVitConfig,
        ReuseVitConfig,
    )
}
"""Config class by method name. Adding a method: CONTRIBUTING.md."""


def config_from_dict(values: Mapping[str, Any]) -> MethodConfig:
    """Build the config that `config_to_dict` wrote; lists become tuples, as JSON has none.

    Raises:
        ValueError: The method or a field is unknown, or the config refuses a value.
    """
    fields = dict(values)
    name = fields.pop("method", None)
    if name not in METHODS:
        raise ValueError(f"method: got {name!r}, expected one of {', '.join(METHODS)}; check the name")
    config = METHODS[name]
    known = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    if unknown := sorted(fields.keys() - known.keys()):
        raise ValueError(
            f"{name}: got unknown {', '.join(unknown)}, expected {', '.join(sorted(known)) or 'no fields'}; "
            "check the names"
        )
    required = {key for key, field in known.items() if field.default is dataclasses.MISSING}
    if lacking := sorted(required - fields.keys()):
        raise ValueError(f"{name}: lacks {', '.join(lacking)}, expected a value; give one")
    return config(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def config_to_dict(config: MethodConfig) -> dict[str, Any]:
    """Return the config as JSON can hold it, with its method's name."""
    values = dataclasses.asdict(config)  # type: ignore[call-overload]
    return {"method": config.method} | {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
