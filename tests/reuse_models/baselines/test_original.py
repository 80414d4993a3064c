"""Original and FrameSkip against the tower itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.method import Chunk, Encoded
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


@pytest.mark.parametrize("every", [1, 2, 3, 10])
@pytest.mark.parametrize("frames_per_call", [None, 1, 2, 4])
def test_interpolation_blends_what_lies_between_computed_frames(
    any_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run, every: int, frames_per_call: int | None
) -> None:
    encoded = run(FrameSkipConfig(every=every, interpolate=True).build(any_vit), ragged_clips, frames_per_call)
    repeated = run(FrameSkipConfig(every=every).build(any_vit), ragged_clips, frames_per_call)
    for stream, clip in enumerate(ragged_clips):
        with torch.no_grad():
            dense_FE = any_vit(clip)
        last = len(clip) - 1 - (len(clip) - 1) % every
        expected = [_between(dense_FE, min(frame, last), every) for frame in range(len(clip))]
        torch.testing.assert_close(encoded.embeddings[stream], torch.stack(expected), atol=1e-5, rtol=1e-5)
        assert torch.equal(encoded.reuse[stream], repeated.reuse[stream])
        assert encoded.work[stream].parts.keys() == repeated.work[stream].parts.keys()
        for part, units_FK in repeated.work[stream].parts.items():
            assert torch.equal(encoded.work[stream].parts[part], units_FK)


def _between(dense_FE: Tensor, frame: int, every: int) -> Tensor:
    """Blend a frame from the computed ones around it."""
    share = frame % every / every
    before = frame - frame % every
    return dense_FE[before] if not share else (1 - share) * dense_FE[before] + share * dense_FE[before + every]


@pytest.mark.parametrize("config", [FrameSkipConfig(every=3), FrameSkipConfig(every=3, interpolate=True)])
@pytest.mark.parametrize("seed", range(8))
def test_streams_may_begin_late_pause_and_end_late(
    clip_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run, config: FrameSkipConfig, seed: int
) -> None:
    method = config.build(clip_vit)
    expected = run(method, ragged_clips)
    generator = torch.Generator().manual_seed(seed)
    memory, at = method.start(len(ragged_clips)), [0] * len(ragged_clips)
    found: list[list[Tensor]] = [[] for _ in ragged_clips]
    ended = [False] * len(ragged_clips)
    while not all(ended):
        pixels = []
        for stream, clip in enumerate(ragged_clips):
            ended[stream] = at[stream] == len(clip)  # said a call later than the last frame came
            count = int(torch.randint(0, 3, (), generator=generator))
            pixels.append(clip[at[stream] : at[stream] + count])
            at[stream] += len(pixels[-1])
        encoded = method.encode(Chunk(tuple(pixels), None, tuple(ended)), memory)
        memory = encoded.memory
        for of_stream, embeddings_GE in zip(found, encoded.embeddings, strict=True):
            of_stream.append(embeddings_GE)
    for of_stream, expected_FE in zip(found, expected.embeddings, strict=True):
        torch.testing.assert_close(torch.cat(of_stream), expected_FE, atol=1e-5, rtol=1e-5)


def test_a_frame_waits_for_its_later_neighbour(clip_vit: Vit, ragged_clips: tuple[Tensor, ...]) -> None:
    method = FrameSkipConfig(every=3, interpolate=True).build(clip_vit)
    frames = ragged_clips[0][:1].expand(4, -1, -1, -1)
    memory = method.start(1)
    completed = []
    for start, stop in ((0, 2), (2, 3), (3, 4)):
        encoded = method.encode(Chunk((frames[start:stop],), None, (False,)), memory)
        memory = encoded.memory
        completed.append(len(encoded.embeddings[0]))
    assert completed == [1, 0, 3]


def test_skipping_every_zeroth_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="every: got 0"):
        FrameSkipConfig(every=0)
