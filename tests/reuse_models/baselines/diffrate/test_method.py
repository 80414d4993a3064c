"""DiffRate against a plain loop over tokens and against golden numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from reuse_models.baselines.diffrate.method import DiffRateConfig, schedule_work, uniform_schedule
from reuse_models.flops import dense_flops, flops_per_frame
from reuse_models.method import Encoded
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.vit import Vit

Run = Callable[..., Encoded]
CONFIG = DiffRateConfig(prune_kept=(14, 9, 5), merge_kept=(11, 6, 4))


@torch.no_grad()
def oracle(vit: Vit, config: DiffRateConfig, frame_3HW: Tensor) -> Tensor:
    """One frame, every layer whole, token by token."""
    h_ND = vit.embed(frame_3HW[None])[0]
    sizes = [1.0] * len(h_ND)
    for layer in range(vit.shape.num_layers):
        q, k, v = (x[0] for x in vit.split_heads(vit.qkv(layer, h_ND[None])))
        scores_hNN = q @ k.mT * vit.shape.head_dim**-0.5
        if config.size_aware:
            scores_hNN += torch.tensor(sizes).log()
        attention_hNN = scores_hNN.softmax(-1)
        h_ND = vit.project(layer, h_ND, (attention_hNN @ v).transpose(0, 1).flatten(1))
        from_cls_N = attention_hNN[:, 0].mean(0)
        order = [0, *sorted(range(1, len(h_ND)), key=lambda n: -float(from_cls_N[n]))]
        kept, beyond = order[: config.merge_kept[layer]], order[config.merge_kept[layer] : config.prune_kept[layer]]
        groups: dict[int, list[int]] = {n: [n] for n in kept}
        for n in beyond:
            nearest = max(kept[1:], key=lambda m: float(F.cosine_similarity(h_ND[n], h_ND[m], dim=0)))
            groups[nearest].append(n)
        weight = sizes if config.size_aware else [1.0] * len(sizes)
        merged = [sum(weight[n] * h_ND[n] for n in g) / sum(weight[n] for n in g) for g in groups.values()]
        sizes = [sum(sizes[n] for n in group) for group in groups.values()]
        h_ND = vit.mlp(layer, torch.stack([torch.as_tensor(x) for x in merged]))
    return vit.head(h_ND[None])[0]


@pytest.mark.parametrize("size_aware", [False, True])
@pytest.mark.parametrize("frames_per_call", [None, 3])
def test_ragged_streams_equal_the_plain_loop(
    clip_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run, size_aware: bool, frames_per_call: int | None
) -> None:
    config = replace(CONFIG, size_aware=size_aware)
    encoded = run(config.build(clip_vit), ragged_clips, frames_per_call)
    for stream, clip in enumerate(ragged_clips):
        for frame, embedding_E in zip(clip, encoded.embeddings[stream], strict=True):
            torch.testing.assert_close(embedding_E, oracle(clip_vit, config, frame), atol=1e-5, rtol=1e-5)
        assert not encoded.reuse[stream].any()


def test_the_artifact_gives_the_same(golden_dir: Path, golden_vit: Vit, golden_pixels: Tensor, run: Run) -> None:
    golden = load_file(golden_dir / "diffrate.safetensors")
    config = DiffRateConfig(
        prune_kept=tuple(golden["prune_kept"].tolist()), merge_kept=tuple(golden["merge_kept"].tolist())
    )
    encoded = run(config.build(golden_vit), (golden_pixels,))
    torch.testing.assert_close(encoded.embeddings[0], golden["image_embeds"], atol=1e-4, rtol=0)


def test_keeping_every_token_is_dense(clip_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run) -> None:
    encoded = run(DiffRateConfig(prune_kept=(17,) * 3, merge_kept=(17,) * 3).build(clip_vit), ragged_clips)
    with torch.no_grad():
        torch.testing.assert_close(encoded.embeddings[0], clip_vit(ragged_clips[0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 1.0])
def test_a_uniform_schedule_costs_the_share_asked_for(name: str, share: float) -> None:
    shape = KNOWN_SHAPES[name]
    prune_kept, merge_kept = uniform_schedule(shape, share)
    DiffRateConfig(prune_kept=prune_kept, merge_kept=merge_kept)
    cost = float(flops_per_frame(shape, schedule_work(shape, prune_kept, merge_kept))[0]) / dense_flops(shape)
    assert share - 0.02 < cost <= share


def test_a_share_that_no_schedule_reaches_is_refused() -> None:
    shape = KNOWN_SHAPES["openai/clip-vit-base-patch16"]
    for share in (0.01, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"flops_share: got .* expected 0\.\d+\.\.1"):
            uniform_schedule(shape, share)


def test_a_schedule_that_does_not_fit_is_refused(clip_vit: Vit) -> None:
    with pytest.raises(ValueError, match="schedule of layer 1: got 12 kept"):
        DiffRateConfig(prune_kept=(14, 12), merge_kept=(11, 6))
    with pytest.raises(ValueError, match="2 or more where there is something to merge"):
        DiffRateConfig(prune_kept=(14, 6), merge_kept=(11, 1))
    with pytest.raises(ValueError, match="expected 3 layers and at most 17 tokens"):
        DiffRateConfig(prune_kept=(14, 9), merge_kept=(11, 6)).build(clip_vit)
    with pytest.raises(ValueError, match="expected 3 layers and at most 17 tokens"):
        DiffRateConfig(prune_kept=(18, 9, 5), merge_kept=(11, 6, 4)).build(clip_vit)
    with_registers = Vit.random(replace(clip_vit.shape, num_registers=4))
    with pytest.raises(
        ValueError, match="schedule of layer 1: got 9 kept and 5 after merging, expected at least the 5"
    ):
        DiffRateConfig(prune_kept=(14, 9, 5), merge_kept=(11, 5, 5)).build(with_registers)


def test_the_setting_is_short_where_it_has_a_name() -> None:
    assert CONFIG.setting == "kept=14>11,9>6,5>4"
    assert replace(CONFIG, label="f=38.5", size_aware=True).setting == "f=38.5 sized"
