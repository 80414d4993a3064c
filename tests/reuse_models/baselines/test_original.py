"""Original and FrameSkip against the tower itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.method import Encoded
from reuse_models.tower.vit import Vit

Run = Callable[..., Encoded]


@pytest.mark.parametrize("frames_per_call", [None, 2])
def test_original_is_the_tower(
    any_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run, frames_per_call: int | None
) -> None:
    encoded = run(OriginalConfig().build(any_vit), ragged_clips, frames_per_call)
    for stream, clip in enumerate(ragged_clips):
        with torch.no_grad():
            torch.testing.assert_close(encoded.embeddings[stream], any_vit(clip), atol=1e-5, rtol=1e-5)
        assert not encoded.reuse[stream].any()


@pytest.mark.parametrize("every", [1, 2, 3, 10])
@pytest.mark.parametrize("frames_per_call", [None, 1, 4])
def test_frame_skip_repeats_every_nth_frame(
    any_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run, every: int, frames_per_call: int | None
) -> None:
    encoded = run(FrameSkipConfig(every=every).build(any_vit), ragged_clips, frames_per_call)
    for stream, clip in enumerate(ragged_clips):
        shown = [frame - frame % every for frame in range(len(clip))]
        with torch.no_grad():
            torch.testing.assert_close(encoded.embeddings[stream], any_vit(clip)[shown], atol=1e-5, rtol=1e-5)
        computed = [frame % every == 0 for frame in range(len(clip))]
        assert encoded.work[stream].parts["head"][:, 0].tolist() == [int(c) for c in computed]
        assert encoded.reuse[stream][:, :, -1].all(1).tolist() == [not c for c in computed]


def test_skipping_every_zeroth_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="every: got 0"):
        FrameSkipConfig(every=0)
