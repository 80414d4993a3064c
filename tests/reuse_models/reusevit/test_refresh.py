"""Adaptive refresh: the rule by its definition, and streams that refresh at times of their own against `masked`."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor

from reuse_models.flops import dense_flops, flops_per_frame
from reuse_models.method import Chunk
from reuse_models.reusevit.addon import Addon
from reuse_models.reusevit.codec_net import codec_history
from reuse_models.reusevit.engines.masked import Clips, masked_forward
from reuse_models.reusevit.frame_order import gop_frames, gop_steps
from reuse_models.reusevit.gate import Features, HardGate
from reuse_models.reusevit.method import ReuseVit, ReuseVitConfig
from reuse_models.reusevit.refresh import AdaptiveRefresh
from reuse_models.reusevit.reuse_policy import ReusePolicy
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

SHAPE = VitShape(image_px=32, patch_px=8, width=32, num_heads=2, num_layers=3, mlp_width=64, embed_dim=16, has_cls=True)
GROUP = 4


@pytest.fixture(scope="module")
def vit() -> Vit:
    return Vit.random(SHAPE, seed=1).double()


def streams() -> tuple[list[Tensor], list[Tensor]]:
    """Three streams that move more or less, the second with two cuts."""
    generator = torch.Generator().manual_seed(3)
    pixels, codec = [], []
    for length, motion in ((23, 0.02), (17, 0.1), (6, 0.4)):
        still = torch.randn(3, 32, 32, generator=generator).double()
        drift = torch.randn(length, 3, 32, 32, generator=generator).double().cumsum(0)
        pixels.append(still + motion * drift)
        codec.append(torch.randint(1, 3, (length, 4, 4, 4), generator=generator).double())
    for frame in (3, 11):
        codec[1][frame, 0, :3] = 6.0
    codec[1][8, 0, :2] = 6.0  # half of it: no cut
    return pixels, codec


def by_definition(vit: Vit, policy: ReusePolicy, stream: tuple[Tensor, Tensor], rule: ReuseVitConfig) -> list[range]:
    """Find the GOPs one by one with the masked forward, which runs on past the end and is cut there."""
    pixels_F3HW, codec_F4PP = stream
    num_frames = len(pixels_F3HW)
    scores = policy.addon.codec_net(codec_history(codec_F4PP.new_zeros(3, 4, 4, 4), codec_F4PP))
    cuts = [frame for frame in range(num_frames) if (codec_F4PP[frame, 0] == 6).double().mean() >= 0.7]
    gops: list[range] = []
    while not gops or gops[-1].stop < num_frames:
        start = gops[-1].stop if gops else 0
        stop = min([num_frames, *(frame for frame in cuts if frame > start and rule.refresh_cut)])
        if rule.refresh is not None:
            stop = min(stop, start + 1 + rule.refresh)
        steps = gop_steps([range(stop - start)])
        frames = [start + step.frame for step in steps]
        error: dict[int, float] = defaultdict(float)

        def noting(boundary: int, features: Features) -> Tensor:
            g_CA = policy.gate(boundary, features)
            neglected = ((1 - features.similarity_XA) * (g_CA > 0.5)).mean() / (SHAPE.num_layers - 1)
            error[features.frames[0][1]] += float(neglected)  # noqa: B023  called before the loop goes on
            return g_CA

        masked_forward(
            vit,
            ReusePolicy(policy.addon, noting, policy.reference_state),
            Clips(pixels_F3HW[frames][None], scores[frames][None], steps),
        )
        total = 0.0
        for first in range(1, stop - start, GROUP):
            group = range(first, min(first + GROUP, stop - start))
            mean = sum(error[frame] for frame in group) / len(group)
            total += mean * len(group)
            judged = total if rule.refresh_over == "gop" else mean
            if rule.refresh_error is not None and judged >= rule.refresh_error:
                stop = start + group.stop
                break
        gops.append(range(start, stop))
    return gops


@pytest.mark.parametrize(
    "rule",
    [
        ReuseVitConfig(refresh_error=0.02),
        ReuseVitConfig(refresh_error=0.002, refresh_over="group"),
        ReuseVitConfig(refresh_cut=0.7),
        ReuseVitConfig(refresh=9, refresh_error=0.02, refresh_cut=0.7),
    ],
)
@pytest.mark.parametrize("chunks", [[23], [2, 3, 1, 7, 10]])
def test_streams_refresh_each_at_its_own_time_and_equal_the_masked_forward(
    vit: Vit, addon: Addon, rule: ReuseVitConfig, chunks: list[int]
) -> None:
    pixels, codec = streams()
    method = ReuseVit(rule, vit, addon)
    memory, start = method.start(3), 0
    embeddings: list[list[Tensor]] = [[], [], []]
    flops: list[list[Tensor]] = [[], [], []]
    for size in chunks:
        stop = start + size
        ended = tuple(stop >= len(one) for one in pixels)
        chunk = Chunk(tuple(x[start:stop] for x in pixels), tuple(x[start:stop] for x in codec), ended)
        encoded = method.encode(chunk, memory)
        memory, start = encoded.memory, stop
        for stream in range(3):
            embeddings[stream].append(encoded.embeddings[stream])
            flops[stream].append(flops_per_frame(SHAPE, encoded.work[stream]))
    policy = ReusePolicy(addon, HardGate(addon.decisions))
    found = [by_definition(vit, policy, stream, rule) for stream in zip(pixels, codec, strict=True)]
    fixed = [list(gop_frames(len(one), rule.refresh)) for one in pixels]
    assert found != fixed, "the rule never applied: the test would show nothing"
    for stream, gops in enumerate(found):
        flops_F = torch.cat(flops[stream])
        dense = [frame for frame, count in enumerate(flops_F.tolist()) if count == dense_flops(SHAPE)]
        assert dense == [gop.start for gop in gops]
        steps = gop_steps(gops)
        frames = torch.tensor([step.frame for step in steps])
        scores = addon.codec_net(codec_history(codec[stream].new_zeros(3, 4, 4, 4), codec[stream]))
        clips = Clips(pixels[stream][frames][None], scores[frames][None], steps)
        expected_FE = masked_forward(vit, policy, clips).embeddings_CFE[0, frames.argsort()]
        torch.testing.assert_close(torch.cat(embeddings[stream]), expected_FE.float(), atol=1e-6, rtol=1e-6)


def test_streams_did_refresh_at_different_times(vit: Vit, addon: Addon) -> None:
    pixels, codec = streams()
    policy = ReusePolicy(addon, HardGate(addon.decisions))
    rule = ReuseVitConfig(refresh_error=0.02)
    starts = [
        [gop.start for gop in by_definition(vit, policy, stream, rule)] for stream in zip(pixels, codec, strict=True)
    ]
    assert len({tuple(one) for one in starts}) == 3
    assert max(len(one) for one in starts) > 2


def test_a_segment_sums_and_a_group_forgets() -> None:
    gop, group = AdaptiveRefresh(error=0.5), AdaptiveRefresh(error=0.5, over="group")
    assert gop.ends(gop.estimate(0.3, [0.1, 0.1]))
    assert not group.ends(group.estimate(0.3, [0.1, 0.1]))
    assert not AdaptiveRefresh(cut=0.5).ends(10.0)


@pytest.mark.parametrize(
    ("field", "value"), [("refresh_error", 0.0), ("refresh_cut", 1.5), ("refresh_over", "clip"), ("order", "backwards")]
)
def test_an_impossible_rule_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field.removeprefix('refresh_')}: got {value!r}"):
        ReuseVitConfig(**{field: value})  # type: ignore[arg-type]
