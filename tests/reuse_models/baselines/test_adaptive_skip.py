"""AdaptiveSkip against a plain loop over frames, and thresholds that compute what was asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reuse_models.baselines.adaptive_skip import AdaptiveSkipConfig, thresholds_for
from reuse_models.method import Encoded
from reuse_models.tower.vit import Vit

Run = Callable[..., Encoded]


@torch.no_grad()
def oracle(vit: Vit, threshold: float, clip_F3HW: Tensor) -> tuple[list[Tensor], list[bool]]:
    """Return each frame's embedding and whether it was computed."""
    px = vit.shape.image_px // 8
    embeddings: list[Tensor] = []
    computed: list[bool] = []
    last: list[Tensor] = []
    for frame_3HW in clip_F3HW:
        means = [
            frame_3HW[channel, top : top + px, left : left + px].mean()
            for channel in range(3)
            for top in range(0, vit.shape.image_px, px)
            for left in range(0, vit.shape.image_px, px)
        ]
        moved = sum(abs(float(a - b)) for a, b in zip(means, last or means, strict=True)) / len(means)
        computed.append(not last or moved >= threshold)
        if computed[-1]:
            last = means
        embeddings.append(vit(frame_3HW[None])[0] if computed[-1] else embeddings[-1])
    return embeddings, computed


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.1, 100.0])
@pytest.mark.parametrize("frames_per_call", [None, 1, 4])
def test_ragged_streams_equal_the_plain_loop(
    any_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run, threshold: float, frames_per_call: int | None
) -> None:
    encoded = run(AdaptiveSkipConfig(threshold=threshold).build(any_vit), ragged_clips, frames_per_call)
    num_computed = 0
    for stream, clip in enumerate(ragged_clips):
        embeddings, computed = oracle(any_vit, threshold, clip)
        torch.testing.assert_close(encoded.embeddings[stream], torch.stack(embeddings), atol=1e-5, rtol=1e-5)
        assert encoded.work[stream].parts["head"][:, 0].tolist() == [int(one) for one in computed]
        assert encoded.reuse[stream][:, :, -1].all(1).tolist() == [not one for one in computed]
        num_computed += sum(computed)
    assert {0.0: num_computed == 14, 100.0: num_computed == 3}.get(threshold, 3 < num_computed < 14)


def test_a_frame_is_held_against_the_last_computed_one_not_the_one_before(any_vit: Vit, run: Run) -> None:
    """So a slow drift is followed in steps, and a picture that comes back to it costs nothing."""
    levels = torch.tensor([0.0, 0.4, 0.8, 1.2, 1.6, 1.3, 1.2])
    clip = levels[:, None, None, None].expand(-1, 3, 32, 32)
    encoded = run(AdaptiveSkipConfig(threshold=1.0).build(any_vit), (clip,))
    assert encoded.work[0].parts["head"][:, 0].tolist() == [1, 0, 0, 1, 0, 0, 0]


def test_what_is_no_number_is_computed(any_vit: Vit, run: Run) -> None:
    clip = torch.zeros(3, 3, 32, 32)
    clip[1, 0, 0, 0] = torch.nan
    encoded = run(AdaptiveSkipConfig(threshold=1.0).build(any_vit), (clip,))
    assert encoded.work[0].parts["head"][:, 0].tolist() == [1, 1, 1]


def test_thresholds_compute_the_shares_that_were_asked_for(any_vit: Vit, run: Run) -> None:
    generator = torch.Generator().manual_seed(3)
    clips = tuple(0.3 * torch.randn(length, 3, 32, 32, generator=generator).cumsum(0) for length in (40, 1, 59))
    shares = (0.9, 0.5, 0.25, 0.1)
    for share, threshold in zip(shares, thresholds_for(clips, shares), strict=True):
        encoded = run(AdaptiveSkipConfig(threshold=threshold).build(any_vit), clips)
        computed = sum(int(work.parts["head"].sum()) for work in encoded.work)
        assert 100 * share - 3 <= computed <= 100 * share


def test_where_the_first_frames_are_more_than_the_share_nothing_else_is_computed(any_vit: Vit, run: Run) -> None:
    moving = torch.arange(4.0)[:, None, None, None].expand(-1, 3, 32, 32)
    still = torch.ones(4, 3, 32, 32)
    for clips in ((moving, moving), (still, still)):
        few, fewer = thresholds_for(clips, (0.1, 0.01))
        assert few == fewer
        encoded = run(AdaptiveSkipConfig(threshold=few).build(any_vit), clips)
        assert [int(work.parts["head"].sum()) for work in encoded.work] == [1, 1]


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold: got -0\.1, expected 0 or more"):
        AdaptiveSkipConfig(threshold=-0.1)
    with pytest.raises(ValueError, match="threshold: got nan"):
        AdaptiveSkipConfig(threshold=float("nan"))
    with pytest.raises(ValueError, match="clips: got none of two frames or more"):
        thresholds_for([torch.zeros(1, 3, 32, 32), torch.zeros(0, 3, 32, 32)], (0.5,))
    with pytest.raises(ValueError, match=r"shares: got \[50\]"):
        thresholds_for([torch.zeros(2, 3, 32, 32)], (50,))
