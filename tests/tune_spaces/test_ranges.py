from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from tests.tune_spaces.towers import fake_tower
from tune_spaces.grid_inputs import BASE, AddonCurve, GridInputs, Trained
from tune_spaces.grids import GRIDS, RANGES

SMALL = VitShape(
    image_px=128, patch_px=16, width=24, num_heads=2, num_layers=2, mlp_width=48, embed_dim=8, has_cls=True
)
TOWERS = {
    "small": SMALL,
    "paper": KNOWN_SHAPES["openai/clip-vit-large-patch14"],
}
ADDONS = Trained(
    (
        AddonCurve(ReuseVitConfig(name="target=0.8", weights="a/addon", reference_state="grouped"), (-1.8, 0.9)),
        AddonCurve(ReuseVitConfig(name="target=0.9", weights="b/addon"), (-2.5, 1.25)),
    )
)


def tower(name: str) -> GridInputs:
    return fake_tower(TOWERS[name])


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("method", RANGES)
def test_a_range_holds_the_grid(method: str, name: str) -> None:
    ranges = RANGES[method](tower(name))
    grid = GRIDS[method](tower(name), "paper")
    assert [ranges.config(ranges.values(config) or {}) for config in grid] == list(grid)


@pytest.mark.parametrize("method", RANGES)
def test_the_ends_of_a_range_can_be_built(method: str) -> None:
    vit = Vit.random(SMALL)
    ranges = RANGES[method](tower("small"))
    ends = [{field: getattr(limits, end) for field, limits in ranges.fields.items()} for end in ("low", "high")]
    for values in ends:
        ranges.config(values).build(vit)


def test_a_trained_addon_is_taken_with_a_bias() -> None:
    trained = replace(tower("small"), trained=ADDONS)
    ranges = RANGES["reusevit"](trained)
    config: Any = ranges.config({BASE: 1, "decision_bias": -0.123456, "skip": 0.0})
    assert (config.name, config.weights, config.decision_bias) == ("target=0.9", "b/addon", -0.123)
    grid = GRIDS["reusevit"](trained, "demo")
    assert [ranges.config(ranges.values(one) or {}) for one in grid] == list(grid)
    assert {(one.name, one.reference_state) for one in grid} == {("target=0.8", "grouped"), ("target=0.9", "anchor")}  # type: ignore[attr-defined]


def test_a_setting_outside_a_range_has_no_values() -> None:
    ranges = RANGES["frame_skip"](tower("small"))
    (config, *_) = GRIDS["frame_skip"](tower("small"), "demo")
    (stranger, *_) = GRIDS["eventful"](tower("small"), "demo")
    assert ranges.values(replace(config, every=1000)) is None  # type: ignore[type-var]
    assert ranges.values(stranger) is None
