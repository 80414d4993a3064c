"""ReuseViT on moved frames alone, against ReuseViT on a clip that has no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reuse_models.baselines.adaptive_skip import AdaptiveSkipConfig
from reuse_models.method import Chunk, Encoded, Method
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.vit import Vit

CONFIG = ReuseVitConfig(forced_rate=0.6, forced_choice="similar", restoration_rank=0)


def clip(num_frames: int, seed: int) -> Tensor:
    """Frames of which some stand still and some move."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num_frames, 3, 32, 32, generator=generator)
    still = torch.rand(num_frames, generator=generator) < 0.5
    return (steps * torch.where(still, 0.02, 0.6)[:, None, None, None]).cumsum(0)


def grids(num_frames: int, seed: int) -> Tensor:
    return torch.rand(num_frames, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def encoded(method: Method, clips: list[Tensor], codec: list[Tensor], size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return each stream's embeddings, reuse and units of the MLP, given `size` frames at a time."""
    memory = method.start(len(clips))
    parts: list[Encoded] = []
    for start in range(0, max(map(len, clips)), size):
        stop = start + size
        chunk = Chunk(
            tuple(x[start:stop] for x in clips),
            tuple(x[start:stop] for x in codec),
            tuple(stop >= len(x) for x in clips),
        )
        parts.append(method.encode(chunk, memory))
        memory = parts[-1].memory
    return [
        (
            torch.cat([part.embeddings[stream] for part in parts]),
            torch.cat([part.reuse[stream] for part in parts]),
            torch.cat([part.work[stream].parts["mlp"] for part in parts]),
        )
        for stream in range(len(clips))
    ]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_moved_frames_are_as_in_a_clip_of_their_own_and_the_others_repeat_them(any_vit: Vit, size: int) -> None:
    lengths = (23, 2, 14)
    clips, codec = [clip(n, n) for n in lengths], [grids(n, n) for n in lengths]
    threshold = 0.08
    skipping = encoded(replace(CONFIG, skip=threshold).build(any_vit), clips, codec, size)
    alone = AdaptiveSkipConfig(threshold=threshold).build(any_vit)
    for stream, frames in enumerate(clips):
        chunk = Chunk((frames,), None, (True,))
        moved = alone.encode(chunk, alone.start(1)).work[0].parts["head"][:, 0].bool()
        assert moved[0]
        ((embeddings, reuse, mlp),) = encoded(
            CONFIG.build(any_vit), [frames[moved]], [codec[stream][moved]], len(frames)
        )
        shown = moved.cumsum(0) - 1
        torch.testing.assert_close(skipping[stream][0], embeddings[shown], atol=1e-5, rtol=1e-5)
        assert torch.equal(skipping[stream][1][moved], reuse)
        assert skipping[stream][1][~moved][:, :, any_vit.shape.num_prefix :].all()
        assert torch.equal(skipping[stream][2], torch.where(moved[:, None], mlp[shown], 0))
    assert any(len(one[0]) > 4 for one in skipping)


def test_some_frames_move_and_some_do_not_in_these_clips(any_vit: Vit) -> None:
    method = AdaptiveSkipConfig(threshold=0.08).build(any_vit)
    work = method.encode(Chunk((clip(23, 23),), None, (True,)), method.start(1)).work[0]
    assert 5 < int(work.parts["head"].sum()) < 18


def test_a_threshold_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"skip: got -1, expected 0 or more"):
        replace(CONFIG, skip=-1)


def test_the_name_says_it() -> None:
    assert replace(CONFIG, skip=0.25).setting.endswith("skip=0.25")
