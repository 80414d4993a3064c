"""The token learns what a key frame has to say, and is never kept worse than its start."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from reuse_models.baselines.residual_vit import fit as module
from reuse_models.baselines.residual_vit.fit import Pairs, TokenFitConfig, fit_tokenizer, judge
from reuse_models.tower.vit import Vit


def window(vit: Vit, seed: int) -> Pairs:
    """Frames that differ little from their key frames: what is dropped is what those showed."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(4, 3, 32, 32, generator=generator)
    frames = keys + 0.1 * torch.randn(4, 3, 32, 32, generator=generator)
    with torch.no_grad():
        return Pairs(frames, keys, vit(keys), vit(frames))


def windows(vit: Vit) -> Iterator[list[Pairs]]:
    return ([window(vit, 2 * step), window(vit, 2 * step + 1)] for step in itertools.count())


def test_a_fit_comes_nearer_to_dense_than_dropping_alone(clip_vit: Vit) -> None:
    held_out = [window(clip_vit, 10_000 + seed) for seed in range(4)]
    config = TokenFitConfig(steps=60, windows_per_step=2, learning_rate=1e-2, keeps=(0.25, 0.5))
    found = fit_tokenizer(clip_vit, windows(clip_vit), held_out, config)
    assert found.cosine == judge(clip_vit, found.tokenizer, held_out, config.keeps)
    assert found.cosine_without == judge(clip_vit, None, held_out, config.keeps)
    assert found.cosine > found.cosine_without + 0.05
    assert all(weight.grad is None for weight in clip_vit.parameters())


def test_what_gets_worse_is_not_kept(clip_vit: Vit) -> None:
    """Taught to go away from dense: judged by other frames, the start is better."""

    def away() -> Iterator[list[Pairs]]:
        for one, _ in windows(clip_vit):
            yield [Pairs(one.frames_X3HW, one.keys_X3HW, one.key_XE, -one.dense_XE)]

    held_out = [window(clip_vit, 10_000)]
    config = TokenFitConfig(steps=20, windows_per_step=1, learning_rate=1e-2)
    spoilt = fit_tokenizer(clip_vit, away(), [], config).tokenizer
    kept = fit_tokenizer(clip_vit, away(), held_out, config)
    assert kept.cosine > judge(clip_vit, spoilt, held_out, config.keeps)
    assert not torch.equal(kept.tokenizer.bias_D, spoilt.bias_D)


def test_without_held_out_frames_the_end_is_kept(clip_vit: Vit) -> None:
    found = fit_tokenizer(clip_vit, windows(clip_vit), [], TokenFitConfig(steps=2, windows_per_step=1))
    assert math.isnan(found.cosine)
    assert math.isnan(found.cosine_without)


def test_a_step_is_that_of_all_its_windows_together(clip_vit: Vit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of windows add up: two of two frames are one of four."""
    whole = window(clip_vit, 0)
    halves = [
        Pairs(whole.frames_X3HW[part], whole.keys_X3HW[part], whole.key_XE[part], whole.dense_XE[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    monkeypatch.setattr(module.torch.optim, "AdamW", lambda weights, lr, weight_decay: torch.optim.SGD(weights, lr))
    config = TokenFitConfig(steps=1, keeps=(0.5,), learning_rate=1.0)
    once, parted = (fit_tokenizer(clip_vit, iter([some]), [], config).tokenizer.weight_DE for some in ([whole], halves))
    torch.testing.assert_close(once, parted, atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_no_number_is_refused(clip_vit: Vit) -> None:
    one = window(clip_vit, 0)
    broken = Pairs(one.frames_X3HW, one.keys_X3HW, one.key_XE * math.nan, one.dense_XE)
    with pytest.raises(ValueError, match=r"residual token: got a loss of nan in step 0"):
        fit_tokenizer(clip_vit, iter([[broken]]), [], TokenFitConfig(steps=1))


@pytest.mark.parametrize("values", [{"steps": 0}, {"learning_rate": 0.0}, {"keeps": ()}, {"keeps": (25.0,)}])
def test_values_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="residual token"):
        TokenFitConfig(**values)  # type: ignore[arg-type]


def test_the_token_reads_directions(clip_vit: Vit) -> None:
    tokenizer = module.ResidualTokenizer(clip_vit.shape)
    key_XE = torch.randn(3, clip_vit.shape.embed_dim)
    torch.testing.assert_close(tokenizer(key_XE), tokenizer(50 * key_XE))
    assert F.cosine_similarity(tokenizer(key_XE)[0], tokenizer(key_XE)[1], dim=-1) < 0.99
