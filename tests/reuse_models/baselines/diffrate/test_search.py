"""The schedule search against the executed operators and against trying every schedule."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.diffrate.method import DiffRate, DiffRateConfig
from reuse_models.baselines.diffrate.schedule import PUBLISHED_SHARES, cost_share
from reuse_models.baselines.diffrate.search import SearchConfig, search_schedule
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from reuse_models.verify.counting import ExecutedFlops

QUICK = SearchConfig(steps=8, frames_per_step=8)


@pytest.fixture
def vit() -> Vit:
    """Three layers, 64 patches and CLS."""
    shape = VitShape(
        image_px=32, patch_px=4, width=32, num_heads=4, num_layers=3, mlp_width=64, embed_dim=24, has_cls=True
    )
    return Vit.random(shape, seed=5)


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def cosine(vit: Vit, config: DiffRateConfig, frames: Tensor) -> float:
    return float(F.cosine_similarity(DiffRate(config, vit).embed(frames), vit(frames)).mean())


@pytest.mark.parametrize("share", PUBLISHED_SHARES)
def test_the_schedule_executes_its_target_within_2_percent(vit: Vit, frames: Tensor, share: float) -> None:
    found = search_schedule(vit, frames, share, QUICK).schedule
    with torch.no_grad():
        with ExecutedFlops() as executed:
            DiffRate(found.config(), vit).embed(frames[:1])
        with ExecutedFlops() as dense:
            vit(frames[:1])
    assert 0.98 * share <= executed.total / dense.total <= share
    assert found.achieved_share == pytest.approx(executed.total / dense.total, abs=1e-4)


def test_it_comes_near_the_best_of_many_schedules_that_prune_alone(vit: Vit, frames: Tensor) -> None:
    share = 0.689
    found = search_schedule(vit, frames, share, QUICK)
    cosines = []
    for first in range(3, 66, 2):
        for second in range(2, first + 1):
            kept = (first, second, second)
            if 0.98 * share <= cost_share(vit.shape, kept, kept) <= share:
                cosines.append(cosine(vit, DiffRateConfig(prune_kept=kept, merge_kept=kept), frames))
    assert len(cosines) > 10
    error = 1 - cosine(vit, found.schedule.config(), frames)
    assert error < 1.2 * (1 - max(cosines))
    assert error < 1 - sorted(cosines)[len(cosines) // 2]


def test_it_never_does_worse_than_the_same_rate_everywhere(vit: Vit, frames: Tensor) -> None:
    found = search_schedule(vit, frames, 0.6, QUICK)
    assert found.cosine >= found.uniform_cosine


def test_the_tower_is_left_as_it_was_and_the_seed_decides(vit: Vit, frames: Tensor) -> None:
    before = {name: weight.clone() for name, weight in vit.state_dict().items()}
    found = [search_schedule(vit, frames, 0.6, QUICK) for _ in range(2)]
    assert found[0] == found[1]
    assert all(torch.equal(weight, before[name]) for name, weight in vit.state_dict().items())
    assert all(weight.grad is None and not weight.requires_grad for weight in vit.parameters())


def test_what_cannot_be_searched_is_refused(vit: Vit, frames: Tensor) -> None:
    with pytest.raises(ValueError, match="got 15 frames, expected 16 or more"):
        search_schedule(vit, frames[:15], 0.6, QUICK)
    with pytest.raises(ValueError, match=r"flops_share: got 0.01, expected 0\.\d+\.\.1"):
        search_schedule(vit, frames, 0.01, QUICK)
    with pytest.raises(ValueError, match="expected counts and a rate above 0"):
        SearchConfig(steps=0)
    with pytest.raises(ValueError, match=r"expected numbers in 0\.\.1 that fall"):
        SearchConfig(first_window=0.1, last_window=0.2)
