"""Blending between key frames, with a plan that is written down beforehand and a method that holds frames back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from reuse_models.baselines.blending import Blended, BlendedStream, Decision, Shown
from reuse_models.method import Chunk, Encoded, Work
from reuse_models.tower.vit import Vit

LENGTHS = (23, 1, 9)


class Late:
    """Embeds a frame as its brightness, as soon as three wait in its stream or the stream has ended."""

    def __init__(self, vit: Vit) -> None:
        self.vit = vit

    def start(self, num_streams: int) -> list[list[Tensor]]:
        return [[] for _ in range(num_streams)]

    def encode(self, chunk: Chunk, memory: list[list[Tensor]]) -> Encoded:
        shape = self.vit.shape
        embeddings, reuse, work = [], [], []
        for held, pixels, ended in zip(memory, chunk.pixels, chunk.ended, strict=True):
            held.extend(pixels.mean((1, 2, 3)).unbind())
            count = len(held) if ended else len(held) // 3 * 3
            done, held[:] = held[:count], held[count:]
            bright = torch.stack(done) if done else torch.zeros(0)
            embeddings.append(bright[:, None].expand(-1, shape.embed_dim).float())
            reuse.append(torch.zeros(count, shape.num_layers - 1, shape.num_tokens, dtype=torch.bool))
            work.append(Work({"head": torch.ones(count, 1, dtype=torch.int64)}))
        return Encoded(tuple(embeddings), tuple(reuse), tuple(work), memory)


class Written:
    """Every third frame is a key frame; two frames are left open until the stream ends."""

    def __init__(self) -> None:
        self.num_decided, self.num_open = 0, 0

    def decide(self, pixels_F3SS: Tensor, *, ended: bool) -> Decision:
        num_seen = self.num_decided + self.num_open + len(pixels_F3SS)
        stop = num_seen if ended else max(self.num_decided, num_seen - 2)
        frames = range(self.num_decided, stop)
        before = -(-self.num_decided // 3)  # key frames that were decided before
        shown = [Shown(1 + frame / 3 - before, frame % 3 == 0) for frame in frames]
        keys = [frame - self.num_decided for frame in frames if frame % 3 == 0]
        self.num_decided, self.num_open = stop, num_seen - stop
        return Decision(keys, shown)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_frames_lie_on_the_line_between_the_key_frames_around_them(any_vit: Vit, size: int) -> None:
    px, side = any_vit.shape.image_px, any_vit.shape.patches_per_side
    clips = [torch.rand(n, generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
    blended = Blended(Late(any_vit), Written, most_open=2)
    memory = blended.start(len(clips))
    found: list[list[Tensor]] = [[] for _ in clips]
    computed: list[list[Tensor]] = [[] for _ in clips]
    for start in range(0, max(LENGTHS), size):
        parts = [clip[start : start + size] for clip in clips]
        pixels = tuple(part[:, None, None, None].expand(-1, 3, px, px) for part in parts)
        codec = tuple(torch.zeros(len(part), 4, side, side) for part in parts)
        encoded = blended.encode(Chunk(pixels, codec, tuple(start + size >= n for n in LENGTHS)), memory)
        memory = encoded.memory
        for stream in range(len(clips)):
            found[stream].append(encoded.embeddings[stream][:, 0])
            computed[stream].append(encoded.work[stream].parts["head"][:, 0])
            all_reused = encoded.reuse[stream][:, :, -1].all(1)
            assert torch.equal(all_reused, encoded.work[stream].parts["head"][:, 0] == 0)
    for clip, one, units in zip(clips, found, computed, strict=True):
        keys = np.arange(0, len(clip), 3)
        expected = np.interp(np.arange(len(clip)), keys, clip[keys])  # behind the last key frame: its own
        np.testing.assert_allclose(torch.cat(one), expected, atol=1e-5)
        assert torch.cat(units).nonzero()[:, 0].tolist() == keys.tolist()


def test_frames_wait_for_the_key_frame_behind_them() -> None:
    stream = BlendedStream(Written())
    stream.add(Decision([0], [Shown(1, is_key=True), Shown(1.5, is_key=False)]), ended=False)
    assert stream.complete(1) == [(1, True)]
    stream.add(Decision([0], [Shown(1, is_key=True), Shown(1.75, is_key=False)]), ended=False)
    assert stream.complete(0) == []
    assert stream.complete(1) == [(0.5, False), (1, True)]
    stream.add(Decision([], [Shown(0.9, is_key=False)]), ended=True)  # no key frame comes: the last one stands
    assert stream.complete(0) == [(0, False), (0, False)]
