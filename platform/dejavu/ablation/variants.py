"""What is compared: each variant changes one thing of the default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from typing import Any

from dejavu.video.codec_grid import MotionBinning
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.training.fit import FitConfig
from reuse_models.training.loss import LossConfig
from reuse_models.training.warm_up import WarmUpConfig

DEFAULT = "default"
DEFAULT_FIT = FitConfig(
    codec_learning_rate=2.5e-3,
    restoration_learning_rate=4e-3,
    decision_learning_rate=5e-3,
    decay=0.65,
    restoration_rank=4,
    clips_per_step=2,
)
"""As the demo's recipe fits."""
DEFAULT_LOSS = LossConfig(target_rate=0.9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One row of the table."""

    name: str
    says: str
    """What is different, for readers of the table."""
    fit: FitConfig = DEFAULT_FIT
    loss: LossConfig = DEFAULT_LOSS
    start: WarmUpConfig = field(default_factory=WarmUpConfig)
    motion: MotionBinning = "destination"
    method: ReuseVitConfig = field(default_factory=ReuseVitConfig)
    """How the add-on is used; its weights are those of the fit."""

    def fit_parts(self) -> dict[str, Any]:
        """Return what names the fit: variants that differ in use alone share it."""
        parts = {"fit": changed(self.fit), "loss": changed(self.loss), "motion": self.motion}
        start = changed(self.start)
        return {**parts, "start": start} if start else parts

    def parts(self) -> dict[str, Any]:
        """Return what names the result, beside data, seed and steps."""
        return {**self.fit_parts(), "method": changed(self.method)}


def changed(config: Any) -> dict[str, Any]:
    """Return the fields of a config that are not at their defaults: a field added later names nothing anew."""
    found = {}
    for one in fields(config):
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if (value := getattr(config, one.name)) != default:
            found[one.name] = value
    return found


def all_variants(fit: FitConfig, loss: LossConfig) -> dict[str, Variant]:
    """Return the variants of a default fit by name."""
    vary = partial(Variant, fit=fit, loss=loss)
    every = (
        vary(name=DEFAULT, says=f"no refresh, target {loss.target_rate:g}, hidden terms 0"),
        *(
            vary(
                name=f"refresh={refresh}",
                says=f"the default's add-ons with a dense frame after every {refresh}",
                method=ReuseVitConfig(refresh=refresh),
            )
            for refresh in (4, 8, 32)
        ),
        *(
            vary(
                name=f"clips={clips}",
                says=f"{clips} windows a step instead of 2, and as many windows in all",
                fit=replace(fit, clips_per_step=clips),
            )
            for clips in (4, 16)
        ),
        vary(
            name="restoration off",
            says="reused patches as they are, in training and use",
            fit=replace(fit, restoration_rank=0),
        ),
        vary(
            name="restoration rank=11",
            says="a restoration of the published width, in proportion to the tower, instead of 4",
            fit=replace(fit, restoration_rank=11),
        ),
        vary(
            name="codec off",
            says="no codec net: decisions from importance, similarity and frame kind",
            fit=replace(fit, codec=False),
        ),
        vary(
            name="hidden=1.5",
            says="weight 1.5 on the second-to-last layer's hidden states",
            loss=replace(loss, second_last_weight=1.5),
        ),
        *(
            vary(
                name=f"target={target:g}",
                says=f"trained for a reuse rate of {target:g} instead of 0.9, trimmed by the same knob",
                loss=replace(loss, target_rate=target),
            )
            for target in (0.95, 0.8, 0.7)
        ),
        vary(
            name="motion=published",
            says="motion vectors filed by their source, as in the artifact",
            motion="published",
        ),
    )
    return {variant.name: variant for variant in every}


VARIANTS: Mapping[str, Variant] = all_variants(DEFAULT_FIT, DEFAULT_LOSS)
