"""KeyFrames against a search through all choices, ReuseViT on key frames alone, and thresholds for a share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from reuse_models.baselines import key_frames
from reuse_models.baselines.key_frames import KeyFramesConfig, key_thresholds
from reuse_models.method import Chunk, Encoded, Method, MethodConfig
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.vit import Vit

Run = Callable[..., Encoded]


@pytest.fixture(params=[None, (6, 2)], ids=["whole clips", "short windows"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """A window's length, and how far apart key frames are at most."""
    if request.param is not None:
        length, ahead = request.param
        monkeypatch.setattr(key_frames, "WINDOW", length)
        monkeypatch.setattr(key_frames, "LOOK_AHEAD", ahead)
        monkeypatch.setattr(key_frames, "MOST_APART", length - ahead)
    return key_frames.WINDOW, key_frames.MOST_APART


def thumbnail(frame_3HW: Tensor) -> list[float]:
    px = frame_3HW.shape[-1] // 8
    return [
        float(frame_3HW[channel, top : top + px, left : left + px].double().mean())
        for channel in range(3)
        for top in range(0, 8 * px, px)
        for left in range(0, 8 * px, px)
    ]


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def choices(num_frames: int, most_apart: int) -> Iterator[list[int]]:
    """Yield all sets of key frames that begin with the first frame and are no further apart."""
    for count in range(num_frames):
        for others in combinations(range(1, num_frames), count):
            keys = [0, *others]
            if all(b - a <= most_apart for a, b in zip(keys, [*others, num_frames], strict=True)):
                yield keys


def cheapest(frames: Sequence[Sequence[float]], threshold: float, most_apart: int) -> list[int]:
    """Return the best set of key frames by trying all."""

    def cost(keys: list[int]) -> float:
        total = threshold * (len(keys) - 1)
        for frame in range(len(frames)):
            before = max(key for key in keys if key <= frame)
            behind = [key for key in keys if key > frame][:1]
            total += min(distance(frames[frame], frames[key]) for key in [before, *behind])
        return total

    # Of a window's last two frames either may stand for the other: the later one does.
    return min(choices(len(frames), most_apart), key=lambda keys: (round(cost(keys), 9), [-key for key in keys[::-1]]))


def chosen(frames: Sequence[Sequence[float]], threshold: float, length: int, most_apart: int) -> list[int]:
    """Return a clip's key frames: whole windows first, then what is left."""
    keys: list[int] = []
    start = 0
    while len(frames) - start >= length:
        found = [start + key for key in cheapest(frames[start : start + length], threshold, most_apart)]
        keys += [key for key in found if start <= key <= start + most_apart]
        start = keys[-1]
    keys += [start + key for key in cheapest(frames[start:], threshold, most_apart)]
    return sorted(set(keys))


@torch.no_grad()
def shown(vit: Vit, clip_F3HW: Tensor, keys: Sequence[int]) -> Tensor:
    """Return each frame's embedding: a key frame's own, or a blend by the squares of distances."""
    frames = [thumbnail(frame_3HW) for frame_3HW in clip_F3HW]
    embeddings = []
    for frame in range(len(frames)):
        before = max(key for key in keys if key <= frame)
        behind = [key for key in keys if key > frame][:1]
        near = [key for key in [before, *behind] if frame not in keys] or [frame]
        weights = [1 / distance(frames[frame], frames[key]) ** 2 if len(near) > 1 else 1.0 for key in near]
        parts = [weight * vit(clip_F3HW[key][None])[0] for weight, key in zip(weights, near, strict=True)]
        embeddings.append(torch.stack(parts).sum(0) / sum(weights))
    return torch.stack(embeddings)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 100.0])
@pytest.mark.parametrize("frames_per_call", [None, 1, 4])
def test_ragged_streams_equal_a_search_through_all_choices(
    any_vit: Vit,
    ragged_clips: tuple[Tensor, ...],
    run: Run,
    window: tuple[int, int],
    threshold: float,
    frames_per_call: int | None,
) -> None:
    encoded = run(KeyFramesConfig(threshold=threshold).build(any_vit), ragged_clips, frames_per_call)
    num_computed = 0
    for stream, clip in enumerate(ragged_clips):
        keys = chosen([thumbnail(frame_3HW) for frame_3HW in clip], threshold, *window)
        computed = encoded.work[stream].parts["head"][:, 0].nonzero()[:, 0].tolist()
        assert computed == keys
        torch.testing.assert_close(encoded.embeddings[stream], shown(any_vit, clip, keys), atol=1e-4, rtol=1e-4)
        blended = [frame not in keys for frame in range(len(clip))]
        assert encoded.reuse[stream][:, :, -1].all(1).tolist() == blended
        num_computed += len(keys)
    num_frames = sum(map(len, ragged_clips))
    if threshold == 0:
        assert num_computed == num_frames
    elif window[0] > num_frames:
        assert (num_computed == len(ragged_clips)) == (threshold == 100)


def moving(num_frames: int, seed: int) -> Tensor:
    """Frames of which some stand still and some move."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num_frames, 3, 32, 32, generator=generator)
    still = torch.rand(num_frames, generator=generator) < 0.5
    return (steps * torch.where(still, 0.02, 0.6)[:, None, None, None]).cumsum(0)


def encode(method: Method, clips: list[Tensor], codec: list[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    """Return each stream's embeddings, reuse, and units of the head and the MLP, given `size` frames at a time."""
    memory = method.start(len(clips))
    parts: list[Encoded] = []
    for start in range(0, max(map(len, clips)), size):
        stop = start + size
        grids = tuple(x[start:stop] for x in codec)
        ended = tuple(stop >= len(x) for x in clips)
        parts.append(method.encode(Chunk(tuple(x[start:stop] for x in clips), grids, ended), memory))
        memory = parts[-1].memory
    return [
        (
            torch.cat([part.embeddings[stream] for part in parts]),
            torch.cat([part.reuse[stream] for part in parts]),
            torch.cat([part.work[stream].parts["head"][:, 0] for part in parts]),
            torch.cat([part.work[stream].parts["mlp"] for part in parts]),
        )
        for stream in range(len(clips))
    ]


def grids(num_frames: int) -> Tensor:
    return torch.rand(num_frames, 4, 4, 4, generator=torch.Generator().manual_seed(num_frames))


@pytest.mark.parametrize("config", [KeyFramesConfig(threshold=0.1), ReuseVitConfig(forced_rate=0.6, skip=0.1)])
def test_how_frames_arrive_changes_nothing(any_vit: Vit, config: MethodConfig) -> None:
    """Also where a clip ends with a whole window, and where many windows follow each other."""
    lengths = (key_frames.WINDOW, 3 * key_frames.WINDOW + 5, 1)
    clips, codec = [moving(n, n) for n in lengths], [grids(n) for n in lengths]
    whole = encode(config.build(any_vit), clips, codec, 1000)
    for size in (1, 7, key_frames.WINDOW):
        for one, other in zip(encode(config.build(any_vit), clips, codec, size), whole, strict=True):
            torch.testing.assert_close(one[0], other[0], atol=1e-5, rtol=1e-5)
            assert all(torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))
    keys = whole[1][2].nonzero()[:, 0]
    assert key_frames.WINDOW < len(keys) < 2 * key_frames.WINDOW


@pytest.mark.parametrize("size", [1, 3, 100])
def test_reusevit_sees_key_frames_as_a_clip_of_their_own(any_vit: Vit, size: int) -> None:
    reusing = ReuseVitConfig(forced_rate=0.6, forced_choice="similar", restoration_rank=0)
    lengths, threshold = (43, 2, 14), 0.1
    clips, codec = [moving(n, n) for n in lengths], [grids(n) for n in lengths]
    found = encode(replace(reusing, skip=threshold).build(any_vit), clips, codec, size)
    alone = encode(KeyFramesConfig(threshold=threshold).build(any_vit), clips, codec, 1000)
    for stream, frames in enumerate(clips):
        is_key = alone[stream][2] > 0
        assert is_key[0]
        ((embeddings, reuse, _, mlp),) = encode(
            reusing.build(any_vit), [frames[is_key]], [codec[stream][is_key]], len(frames)
        )
        torch.testing.assert_close(found[stream][0][is_key], embeddings, atol=1e-5, rtol=1e-5)
        assert torch.equal(found[stream][1][is_key], reuse)
        assert found[stream][1][~is_key][:, :, any_vit.shape.num_prefix :].all()
        assert torch.equal(found[stream][3][is_key], mlp)
        assert not found[stream][3][~is_key].any()
    assert 10 < int((alone[0][2] > 0).sum()) < 35


def test_where_nothing_moves_key_frames_are_as_far_apart_as_they_may_be(any_vit: Vit, run: Run) -> None:
    still = torch.ones(100, 3, 32, 32)
    for frames_per_call in (None, 1):
        encoded = run(KeyFramesConfig(threshold=0.01).build(any_vit), (still,), frames_per_call)
        computed = encoded.work[0].parts["head"][:, 0].nonzero()[:, 0].tolist()
        assert computed == list(range(0, 100, key_frames.MOST_APART))


def test_across_a_cut_neither_side_shows_the_other(any_vit: Vit, run: Run) -> None:
    levels = torch.tensor([0.0, 0.01, 0.02, 3.0, 3.01, 3.02, 3.03])
    clip = levels[:, None, None, None].expand(-1, 3, 32, 32)
    encoded = run(KeyFramesConfig(threshold=1.0).build(any_vit), (clip,))
    computed = encoded.work[0].parts["head"][:, 0].nonzero()[:, 0].tolist()
    assert computed == [0, 5]  # the frame that is nearest to all behind the cut, not the first of them
    embeddings = encoded.embeddings[0]
    torch.testing.assert_close(embeddings[2], embeddings[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(embeddings[3], embeddings[5], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(embeddings[6], embeddings[5])


def test_what_is_no_number_is_computed_and_not_blended(any_vit: Vit, run: Run) -> None:
    clip = torch.zeros(4, 3, 32, 32)
    clip[1, 0, 0, 0] = torch.nan
    encoded = run(KeyFramesConfig(threshold=1.0).build(any_vit), (clip,))
    assert encoded.work[0].parts["head"][:, 0].tolist() == [1, 1, 0, 1]
    assert encoded.embeddings[0].isfinite().all(1).tolist() == [True, False, True, True]


def test_thresholds_compute_the_shares_that_were_asked_for(any_vit: Vit, run: Run) -> None:
    generator = torch.Generator().manual_seed(3)
    clips = tuple(0.3 * torch.randn(length, 3, 32, 32, generator=generator).cumsum(0) for length in (40, 1, 59))
    shares = (0.9, 0.5, 0.25, 0.1)
    for share, threshold in zip(shares, key_thresholds(any_vit, clips, shares), strict=True):
        encoded = run(KeyFramesConfig(threshold=threshold).build(any_vit), clips)
        computed = sum(int(work.parts["head"].sum()) for work in encoded.work)
        assert 100 * share - 3 <= computed <= 100 * share


def test_where_as_few_are_not_possible_as_few_as_possible_are_computed(any_vit: Vit, run: Run) -> None:
    moving_clip = torch.arange(4.0)[:, None, None, None].expand(-1, 3, 32, 32)
    still = torch.ones(4, 3, 32, 32)
    for clips in ((moving_clip, moving_clip), (still, still)):
        for threshold in key_thresholds(any_vit, clips, (0.1, 0.01)):
            encoded = run(KeyFramesConfig(threshold=threshold).build(any_vit), clips)
            assert [int(work.parts["head"].sum()) for work in encoded.work] == [1, 1]


def test_distances_are_of_what_is_no_number_infinite() -> None:
    thumbnails_FT = np.array([[0.0, 0.0], [1.0, 3.0], [np.nan, 0.0]], np.float32)
    expected = np.array([[0, 2, np.inf], [2, 0, np.inf], [np.inf, np.inf, np.inf]])
    np.testing.assert_array_equal(key_frames.distances(thumbnails_FT), expected)


def test_bad_values_are_refused(any_vit: Vit) -> None:
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"threshold: got {bad}, expected a number from 0 on"):
            KeyFramesConfig(threshold=bad)
        with pytest.raises(ValueError, match=rf"skip: got {bad}, expected a number from 0 on"):
            ReuseVitConfig(skip=bad)
    with pytest.raises(ValueError, match="clips: got none of two frames or more"):
        key_thresholds(any_vit, [torch.zeros(1, 3, 32, 32), torch.zeros(0, 3, 32, 32)], (0.5,))
    with pytest.raises(ValueError, match=r"shares: got \[50\]"):
        key_thresholds(any_vit, [torch.zeros(2, 3, 32, 32)], (50,))


def test_the_name_says_it() -> None:
    assert KeyFramesConfig(threshold=0.25).setting == "t=0.25"
    assert ReuseVitConfig(skip=0.25).setting.endswith("skip=0.25")
