"""Eventful and CMC against a plain loop over frames, layers and tokens, and against golden numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reuse_models.baselines import cmc
from reuse_models.baselines.cmc import CmcConfig, distance_quantiles
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.method import Chunk, Encoded, MethodConfig
from reuse_models.tower.vit import Vit

Run = Callable[..., Encoded]
CONFIGS: tuple[EventfulConfig | CmcConfig, ...] = (
    EventfulConfig(refreshed_tokens=5),
    EventfulConfig(refreshed_tokens=0),
    EventfulConfig(refreshed_tokens=16),
    CmcConfig(threshold=3.0),
    CmcConfig(threshold=0.0),
    CmcConfig(threshold=1e9),
)


@torch.no_grad()
def oracle(vit: Vit, config: EventfulConfig | CmcConfig, clip_F3HW: Tensor) -> tuple[Tensor, Tensor]:
    """One stream, one token at a time, every layer whole, nothing in place: docs/methods.md read aloud."""
    shape, first = vit.shape, int(vit.shape.has_cls)
    last = shape.num_layers - 1
    anchor: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
    embeddings, maps = [], []
    for frame in clip_F3HW:
        h_ND = vit.embed(frame[None])[0]
        qkv_NC = vit.qkv(0, h_ND)
        reused_LN = torch.zeros(last, shape.num_tokens, dtype=torch.bool)
        for layer in range(1, shape.num_layers):
            q, k, v = vit.split_heads(qkv_NC[None])
            pre_proj_ND = vit.attend(q, k, v)[0]
            candidates = range(first, shape.num_tokens)
            if (layer, 0) not in anchor:
                chosen = set(range(shape.num_tokens))
            elif isinstance(config, EventfulConfig):
                moved = {n: float((pre_proj_ND[n] - anchor[layer, n][0]).norm()) for n in candidates}
                chosen = set(range(first)) | set(sorted(moved, key=lambda n: -moved[n])[: config.refreshed_tokens])
            else:
                sums = {n: float((pre_proj_ND[n] - anchor[layer, n][0]).abs().sum()) for n in candidates}
                chosen = set(range(first)) | {n for n in candidates if sums[n] >= config.threshold}
            for n in range(shape.num_tokens):
                if n in chosen:
                    h_D = vit.close(layer - 1, h_ND[n], pre_proj_ND[n])
                    anchor[layer, n] = (pre_proj_ND[n].clone(), h_D, vit.qkv(layer, h_D))
                else:
                    reused_LN[layer - 1, n] = True
            h_ND = torch.stack([anchor[layer, n][1] for n in range(shape.num_tokens)])
            qkv_NC = torch.stack([anchor[layer, n][2] for n in range(shape.num_tokens)])
        q, k, v = vit.split_heads(qkv_NC[None])
        embeddings.append(vit.head(vit.close(last, h_ND[None], vit.attend(q, k, v)))[0])
        maps.append(reused_LN)
    return torch.stack(embeddings), torch.stack(maps)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.setting)
@pytest.mark.parametrize("frames_per_call", [None, 1, 3])
def test_ragged_streams_equal_the_plain_loop(
    any_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run, config: MethodConfig, frames_per_call: int | None
) -> None:
    encoded = run(config.build(any_vit), ragged_clips, frames_per_call)
    assert isinstance(config, EventfulConfig | CmcConfig)
    for stream, clip in enumerate(ragged_clips):
        embeddings_FE, reuse_FLN = oracle(any_vit, config, clip)
        assert torch.equal(encoded.reuse[stream], reuse_FLN)
        torch.testing.assert_close(encoded.embeddings[stream], embeddings_FE, atol=1e-5, rtol=1e-5)


def test_the_settings_tested_reuse_some_tokens_and_compute_some(
    any_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run
) -> None:
    for config in (EventfulConfig(refreshed_tokens=5), CmcConfig(threshold=3.0)):
        rate = run(config.build(any_vit), ragged_clips).reuse[0][1:].float().mean()
        assert 0.1 < rate < 0.9


def test_a_stream_that_begins_late_is_dense_on_its_first_frame(clip_vit: Vit, ragged_clips: tuple[Tensor, ...]) -> None:
    method = EventfulConfig(refreshed_tokens=2).build(clip_vit)
    memory = method.start(2)
    nothing = ragged_clips[1][:0]
    memory = method.encode(Chunk((ragged_clips[0][:3], nothing), None, (False, False)), memory).memory
    encoded = method.encode(Chunk((ragged_clips[0][3:5], ragged_clips[1]), None, (False, True)), memory)
    with torch.no_grad():
        dense_FE = clip_vit(ragged_clips[1])
    assert not encoded.reuse[1][0].any()
    torch.testing.assert_close(encoded.embeddings[1][0], dense_FE[0])
    assert encoded.reuse[0][0].any()


def test_computing_every_token_is_dense(any_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run) -> None:
    encoded = run(EventfulConfig(refreshed_tokens=16).build(any_vit), ragged_clips)
    with torch.no_grad():
        torch.testing.assert_close(encoded.embeddings[0], any_vit(ragged_clips[0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["eventful", "cmc"])
def test_the_artifact_gives_the_same(
    golden_dir: Path, golden_vit: Vit, golden_pixels: Tensor, run: Run, name: str
) -> None:
    golden = load_file(golden_dir / f"{name}.safetensors")
    knob = float(golden["knob"])
    config = EventfulConfig(refreshed_tokens=int(knob)) if name == "eventful" else CmcConfig(threshold=-knob)
    encoded = run(config.build(golden_vit), (golden_pixels,))
    # Group 0 is frame 0 repeated; groups 1.. are the frames after it, in order.
    expected = torch.cat([golden["image_embeds"][0, :1], golden["image_embeds"][1:].flatten(0, 1)])
    reuse = torch.cat([golden["reuse_map"][0, :1], golden["reuse_map"][1:].flatten(0, 1)])
    torch.testing.assert_close(encoded.embeddings[0], expected, atol=1e-4, rtol=0)
    assert torch.equal(encoded.reuse[0], reuse.bool())


def test_memory_does_not_grow_and_its_size_is_the_formula(any_vit: Vit, ragged_clips: tuple[Tensor, ...]) -> None:
    method = CmcConfig(threshold=3.0).build(any_vit)
    memory = method.start(1)
    shape = any_vit.shape
    blocks = 5 * (shape.num_layers - 1) - 2 * int(shape.has_cls)
    for _ in range(3):
        memory = method.encode(Chunk(ragged_clips[:1], None, (False,)), memory).memory
        assert memory.bytes_per_stream == blocks * shape.num_tokens * shape.width * 4


def test_a_chunk_that_does_not_fit_is_refused_before_any_work(clip_vit: Vit) -> None:
    method = EventfulConfig(refreshed_tokens=2).build(clip_vit)
    good, bad = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 40, 32)
    memory = method.start(2)
    with pytest.raises(ValueError, match="frames: got"):
        method.encode(Chunk((good, bad), None, (False, False)), memory)
    with pytest.raises(ValueError, match="codec grid: got"):
        method.encode(Chunk((good, good), (torch.zeros(1, 4, 3, 3),) * 2, (False, False)), memory)
    with pytest.raises(ValueError, match="chunk: got 1 streams"):
        method.encode(Chunk((good,), None, (False,)), memory)
    assert not memory.begun_B.any()


def test_more_tokens_than_the_tower_has_are_refused(clip_vit: Vit) -> None:
    with pytest.raises(ValueError, match=r"refreshed_tokens: got 17, expected 0\.\.16"):
        EventfulConfig(refreshed_tokens=17).build(clip_vit)
    with pytest.raises(ValueError, match="threshold: got nan"):
        CmcConfig(threshold=float("nan"))


def test_distances_of_a_clip_are_those_of_its_neighbours_however_many_are_computed_at_once(
    any_vit: Vit, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = any_vit.shape.image_px
    clip = torch.randn(7, 3, side, side)
    shares = (0.0, 0.3, 0.6, 1.0)
    pairs = distance_quantiles(any_vit, [clip[start : start + 2] for start in range(6)], shares)
    for at_once in (1, 3, 7):
        monkeypatch.setattr(cmc, "FRAMES_PER_BATCH", at_once)
        assert distance_quantiles(any_vit, [clip], shares) == pytest.approx(pairs, rel=1e-4)


def test_a_threshold_at_a_distance_quantile_reuses_about_that_share(
    any_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run
) -> None:
    pairs = tuple(clip[:2] for clip in ragged_clips)
    for share, threshold in zip((0.25, 0.75), distance_quantiles(any_vit, pairs, (0.25, 0.75)), strict=True):
        first = int(any_vit.shape.has_cls)
        encoded = run(CmcConfig(threshold=threshold).build(any_vit), pairs)
        reused = torch.stack([reuse[1, :, first:] for reuse in encoded.reuse]).float().mean()
        assert abs(float(reused) - share) < 0.15  # the second boundary sees reused tokens, so not exactly
