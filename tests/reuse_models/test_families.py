"""Every method on every family of towers: exact, and at the cost that is counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.adaptive_skip import AdaptiveSkipConfig
from reuse_models.baselines.cmc import CmcConfig
from reuse_models.baselines.diffrate.method import DiffRateConfig
from reuse_models.baselines.diffrate.relaxed import RelaxedCounts, relaxed_embed
from reuse_models.baselines.diffrate.search import SearchConfig, search_schedule
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.eventful_full import EventfulFullConfig
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.baselines.tome import ToMeConfig
from reuse_models.flops import dense_flops, flops_per_frame
from reuse_models.method import Chunk, Encoded
from reuse_models.reusevit.addon import Addon, ReusePolicy, addon_shape
from reuse_models.reusevit.engines.token_memory import ENGINE_STATES, EngineState
from reuse_models.reusevit.gate import ForcedGate, HardGate
from reuse_models.reusevit.method import ReuseVit, ReuseVitConfig
from reuse_models.tower.vit import Vit
from reuse_models.verify.counting import ExecutedFlops
from tests.reuse_models.examples import example_configs
from tests.reuse_models.families import FAMILIES
from tests.reuse_models.reusevit.test_method import encode_in_chunks, of_stream, oracle, streams_of

Run = Callable[..., Encoded]


@pytest.fixture(scope="module", params=list(FAMILIES))
def vit(request: pytest.FixtureRequest) -> Vit:
    return Vit.random(FAMILIES[request.param], seed=1).double()


def clips(lengths: tuple[int, ...] = (5, 1, 3)) -> tuple[Tensor, ...]:
    return tuple(streams_of(list(lengths))[0])


@pytest.mark.parametrize("reference_state", ENGINE_STATES)
def test_both_engines_equal_computing_every_token(vit: Vit, addon: Addon, reference_state: EngineState) -> None:
    lengths = [13, 1, 6]
    pixels, codec = streams_of(lengths)
    gates = [
        ForcedGate(0.35, "similar", vit.shape),
        ForcedGate(0.85, "random", vit.shape),
        ForcedGate(1.0, "random", vit.shape),
    ]
    for gate in (*gates, HardGate(addon.decisions)):
        expected = [
            oracle(vit, ReusePolicy(addon, gate, reference_state), (stream, pixels[stream], codec[stream]), None)
            for stream in range(len(lengths))
        ]
        for inference in ("compacted", "fixed"):
            method = ReuseVit(ReuseVitConfig(reference_state=reference_state, inference=inference), vit, addon, gate)
            encoded = encode_in_chunks(method, pixels, codec, [3, 5, 5])
            for stream, one in enumerate(expected):
                embeddings, reuse = of_stream(encoded, stream)
                assert torch.equal(reuse, one.reuse_CFbN[0] > 0.5)
                assert not reuse[..., : vit.shape.num_prefix].any()
                torch.testing.assert_close(embeddings, one.embeddings_CFE[0].float(), atol=1e-6, rtol=1e-6)


def test_what_is_executed_is_what_is_counted(vit: Vit) -> None:
    pixels, codec = streams_of([9, 4])
    vit = Vit.random(vit.shape, seed=2)
    chunk = Chunk(tuple(x.float() for x in pixels), tuple(x.float() for x in codec), (True, True))
    for name, config in example_configs(vit, chunk.pixels).items():
        method = config.build(vit)
        memory = method.start(2)
        with ExecutedFlops() as executed:
            works = method.encode(chunk, memory).work
        counted = sum(float(flops_per_frame(vit.shape, work).sum()) for work in works)
        assert executed.total == pytest.approx(counted, rel=0.01), name
        if name != "original" and "reusevit" not in name:  # a tower this narrow pays more for an add-on than it saves
            assert counted < 0.9 * 13 * dense_flops(vit.shape), name


def test_methods_that_drop_nothing_are_dense(vit: Vit, run: Run) -> None:
    everything = vit.shape.num_patches
    whole = (vit.shape.num_tokens,) * vit.shape.num_layers
    some = clips()
    dense = [vit(clip).float() for clip in some]
    for config in (
        OriginalConfig(),
        EventfulConfig(refreshed_tokens=everything),
        EventfulFullConfig(refreshed_tokens=everything),
        CmcConfig(threshold=0.0),
        ToMeConfig(merged_per_layer=0),
        DiffRateConfig(prune_kept=whole, merge_kept=whole),
        FrameSkipConfig(every=1),
        FrameSkipConfig(every=1, interpolate=True),
        AdaptiveSkipConfig(threshold=0.0),
    ):
        for embeddings, expected in zip(run(config.build(vit), some).embeddings, dense, strict=True):
            torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def sequential_oracle(vit: Vit, frames_F3HW: Tensor, refreshed: int) -> Tensor:
    """Eventful by its definition: one state a boundary, whole tensors, no packing."""
    shape, embeddings = vit.shape, []
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for frame_3HW in frames_F3HW:
        h_1ND = vit.embed(frame_3HW[None])
        qkv_1NC = vit.qkv(0, h_1ND)
        for layer in range(shape.num_layers - 1):
            pre_proj_1ND = vit.attend(*vit.split_heads(qkv_1NC))
            new_h_1ND = vit.close(layer, h_1ND, pre_proj_1ND)
            new = (pre_proj_1ND, new_h_1ND, vit.qkv(layer + 1, new_h_1ND))
            if len(kept) > layer:
                moved_A = (pre_proj_1ND - kept[layer][0])[0, shape.num_prefix :].norm(dim=-1)
                taken_N = torch.zeros(shape.num_tokens, dtype=torch.bool)
                taken_N[: shape.num_prefix] = True
                taken_N[moved_A.topk(refreshed).indices + shape.num_prefix] = True
                new = tuple(torch.where(taken_N[:, None], a, b) for a, b in zip(new, kept[layer], strict=True))  # type: ignore[assignment]
                kept[layer] = new
            else:
                kept.append(new)
            h_1ND, qkv_1NC = new[1], new[2]
        pre_proj_1ND = vit.attend(*vit.split_heads(qkv_1NC))
        embeddings.append(vit.head(vit.close(shape.num_layers - 1, h_1ND, pre_proj_1ND)))
    return torch.cat(embeddings).float()


def test_eventful_equals_its_definition(vit: Vit, run: Run) -> None:
    some = clips((6, 2, 4))
    for refreshed in (0, 5, 20):
        encoded = run(EventfulConfig(refreshed_tokens=refreshed).build(vit), some, 3)
        for stream, clip in enumerate(some):
            expected = sequential_oracle(vit, clip, refreshed)
            torch.testing.assert_close(encoded.embeddings[stream], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def merging_oracle(vit: Vit, frame_3HW: Tensor, merged_per_layer: int) -> Tensor:
    """ToMe of one frame in plain loops: tokens are (value, size, place in the tower)."""
    shape = vit.shape
    tokens = [(h_D, 1.0, place) for place, h_D in enumerate(vit.embed(frame_3HW[None])[0])]
    for layer in range(shape.num_layers):
        h_ND = torch.stack([h_D for h_D, _, _ in tokens])
        log_size_N = torch.tensor([size for _, size, _ in tokens], dtype=h_ND.dtype).log()
        place_1N = torch.tensor([[place for _, _, place in tokens]])
        q, k, v = (x[0] for x in vit.split_heads(vit.qkv(layer, h_ND[None]), place_1N))
        attention_hNN = (q @ k.mT * shape.head_dim**-0.5 + log_size_N).softmax(-1)
        h_ND = vit.close(layer, h_ND, (attention_hNN @ v).transpose(0, 1).flatten(1))
        if layer == shape.num_layers - 1:
            return vit.head(h_ND[None], log_size_N[None])[0].float()
        # As `close` has gone through the MLP: merging comes between attention and MLP, so go back to before it.
        before_ND = vit.project(
            layer, torch.stack([h_D for h_D, _, _ in tokens]), (attention_hNN @ v).transpose(0, 1).flatten(1)
        )
        key_Nd = F.normalize(k.mean(0), dim=-1)
        behind = list(range(shape.num_prefix, len(tokens)))
        proposers = behind[1::2] if shape.num_prefix else behind[::2]
        receivers = behind[::2] if shape.num_prefix else behind[1::2]
        proposals = sorted(
            ((*max((float(key_Nd[n] @ key_Nd[m]), m) for m in receivers), n) for n in proposers), reverse=True
        )
        carried = proposals[: min(merged_per_layer, len(behind) // 2)]
        into = {n: m for _, m, n in carried}
        after = []
        for n in [*range(shape.num_prefix), *(n for n in proposers if n not in into), *receivers]:
            group = [n, *(one for one, other in into.items() if other == n)]
            size = sum(tokens[one][1] for one in group)
            value_D = sum(before_ND[one] * tokens[one][1] for one in group) / size
            after.append((vit.mlp(layer, value_D), size, tokens[n][2]))
        tokens = after
    raise AssertionError


def test_tome_equals_its_definition(vit: Vit, run: Run) -> None:
    some = clips((2, 1))
    for merged in (3, 40):
        encoded = run(ToMeConfig(merged_per_layer=merged).build(vit), some)
        for stream, clip in enumerate(some):
            for frame, embedding_E in zip(clip, encoded.embeddings[stream], strict=True):
                torch.testing.assert_close(embedding_E, merging_oracle(vit, frame, merged), atol=1e-5, rtol=1e-5)


def test_a_narrow_window_makes_the_relaxed_tower_diffrate(vit: Vit, run: Run) -> None:
    """Where nothing merges, and where much does: the same embedding as the method's under the same whole counts."""
    last = vit.shape.num_layers - 1
    for pruned, merged in (((30, 22, 16), (30, 22, 16)), ((34, 25, 18), (28, 20, 12))):
        config = DiffRateConfig(prune_kept=(*pruned, merged[-1]), merge_kept=(*merged, merged[-1]))
        counts = RelaxedCounts(torch.tensor(pruned).double(), torch.tensor(merged).double())
        assert len(pruned) == last
        (frames,) = clips((3,))
        with torch.no_grad():
            relaxed_BE = relaxed_embed(vit, frames, counts, 0.0)
        (hard_BE,) = run(config.build(vit), (frames,)).embeddings
        torch.testing.assert_close(relaxed_BE.float(), hard_BE, atol=1e-4, rtol=1e-4)


def test_a_schedule_is_searched(vit: Vit) -> None:
    frames = torch.cat(clips((8, 8, 8))).float()
    config = SearchConfig(steps=4, frames_per_step=6, judged_every=2)
    found = search_schedule(Vit.random(vit.shape, seed=1), frames, 0.75, config)
    assert found.schedule.achieved_share <= 0.75
    assert found.cosine >= found.uniform_cosine
    assert min(found.schedule.merge_kept) > vit.shape.num_prefix


def test_a_stream_is_the_same_in_any_company(vit: Vit, run: Run) -> None:
    """Alone or among others of other lengths, whole or in parts: what comes of a clip is its own."""
    some = clips((5, 1, 3))
    for name, config in example_configs(vit, some).items():
        if "reusevit" in name:
            continue  # needs codec grids: see the engines above, which are compared one stream at a time
        together = run(config.build(vit), some, 2)
        for order in itertools.permutations(range(3), 2):
            others = run(config.build(vit), tuple(some[stream] for stream in order))
            for place, stream in enumerate(order):
                torch.testing.assert_close(
                    others.embeddings[place], together.embeddings[stream], atol=1e-5, rtol=1e-5, msg=name
                )


def test_training_goes_through_every_family(vit: Vit) -> None:
    """The soft forward has a gradient for every weight that inference reads."""
    from reuse_models.reusevit.engines.masked import Clips, masked_forward
    from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
    from reuse_models.reusevit.gate import StraightGate

    torch.manual_seed(0)
    addon = Addon(addon_shape(vit.shape)).double()
    with torch.no_grad():
        for weight in addon.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    steps = PUBLISHED_PATTERN
    pixels, codec = streams_of([6])
    scores_FPP = addon.codec_net(codec[0][:, :, None].expand(-1, -1, 4, -1, -1))
    clip = Clips(pixels[0][None], scores_FPP[None], steps)
    output = masked_forward(vit, ReusePolicy(addon, StraightGate(addon.decisions)), clip)
    (1 - F.cosine_similarity(output.embeddings_CFE, vit(pixels[0])[None].roll(1, 1), dim=-1)).sum().backward()
    lacking = [name for name, weight in addon.named_parameters() if weight.grad is None]
    assert not lacking
