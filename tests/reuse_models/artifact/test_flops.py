"""The artifact's formulas against the artifact's own table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reuse_models.artifact import flops as flops_published
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape

SHAPES = {"base": flops_published.BASE, "large": flops_published.LARGE}


def published(row: dict[str, Any], shape: VitShape) -> float:
    match row["method"]:
        case "original":
            return flops_published.original(shape)
        case "cmc":
            return flops_published.cmc(shape, row["reuse_rate"])
        case "reusevit":
            return flops_published.reusevit(shape, row["reuse_rate"])
        case "eventful":
            return flops_published.eventful(shape, row["k"])
        case "diffrate":
            return flops_published.diffrate(shape, row["prune_kept"], row["merge_kept"])
    raise AssertionError(row["method"])


def test_every_row_of_the_table_is_met(golden_dir: Path) -> None:
    rows = json.loads((golden_dir / "flops_published.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"original", "cmc", "reusevit", "eventful", "diffrate"}
    for row in rows:
        assert published(row, SHAPES[row["model"]]) == pytest.approx(row["flops"], rel=1e-6), row


def test_a_tower_that_was_not_published_is_refused() -> None:
    other = KNOWN_SHAPES["openai/clip-vit-base-patch32"]
    assert flops_published.original(other) > flops_published.cmc(other, 0.5) > 0
    with pytest.raises(ValueError, match=r"expected ViT-B/16 or ViT-L/14"):
        flops_published.reusevit(other, 0.5)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="reuse_rate: got 85"):
        flops_published.cmc(flops_published.BASE, 85)
    with pytest.raises(ValueError, match="refreshed_tokens: got 0"):
        flops_published.eventful(flops_published.BASE, 0)
    with pytest.raises(ValueError, match="schedule: got 1 and 1 layers"):
        flops_published.diffrate(flops_published.BASE, [100], [100])
