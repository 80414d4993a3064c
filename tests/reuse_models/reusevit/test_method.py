"""Streaming, compacted inference against the masked forward, which computes every token of every frame."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Dinov2Model

from reuse_models.flops import flops_per_frame
from reuse_models.method import Chunk, Encoded
from reuse_models.reusevit.addon import Addon, ReusePolicy, addon_shape, save_addon
from reuse_models.reusevit.anchors import state_bytes_per_stream
from reuse_models.reusevit.codec_net import codec_history
from reuse_models.reusevit.engines import workspace
from reuse_models.reusevit.engines.masked import Clips, MaskedOutput, masked_forward
from reuse_models.reusevit.engines.token_memory import ENGINE_STATES, EngineState
from reuse_models.reusevit.frame_order import schedule
from reuse_models.reusevit.gate import Features, ForcedChoice, ForcedGate, HardGate
from reuse_models.reusevit.method import ReuseVit, ReuseVitConfig
from reuse_models.tower.hugging_face import from_hf
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from reuse_models.verify.counting import ExecutedFlops

SHAPE = VitShape(image_px=48, patch_px=8, width=32, num_heads=2, num_layers=4, mlp_width=64, embed_dim=16, has_cls=True)


@pytest.fixture(scope="module")
def vit() -> Vit:
    return Vit.random(SHAPE, seed=1).double()


def streams_of(lengths: list[int], seed: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    pixels, codec = [], []
    for length in lengths:
        still = torch.randn(3, 48, 48, generator=generator).double()
        pixels.append(still + 0.3 * torch.randn(length, 3, 48, 48, generator=generator))
        codec.append(torch.randint(0, 7, (length, 4, 6, 6), generator=generator).double())
    return pixels, codec


def oracle(
    vit: Vit,
    policy: ReusePolicy,
    stream: tuple[int, Tensor, Tensor],
    refresh: int | None,
) -> MaskedOutput:
    number, pixels_F3HW, codec_F4PP = stream
    order = schedule(len(pixels_F3HW), refresh)
    frames = torch.tensor([step.frame for step in order])
    scores = policy.addon.codec_net(codec_history(codec_F4PP.new_zeros(3, 4, 6, 6), codec_F4PP))
    clips = Clips(pixels_F3HW[frames][None], scores[frames][None], order)

    def of_stream(boundary: int, features: Features) -> Tensor:
        ids = [(number, frame) for _, frame in features.frames]
        return policy.gate(boundary, dataclasses.replace(features, frames=ids))

    with torch.no_grad():
        output = masked_forward(vit, ReusePolicy(policy.addon, of_stream, policy.reference_state), clips)
    back = frames.argsort()
    return MaskedOutput(output.embeddings_CFE[:, back], output.reuse_CFbN[:, back], output.second_last_CFND, None)


def encode_in_chunks(method: ReuseVit, pixels: list[Tensor], codec: list[Tensor], cuts: list[int]) -> list[Encoded]:
    memory = method.start(len(pixels))
    encoded, start = [], 0
    for size in cuts:
        stop = start + size
        chunk = Chunk(
            tuple(x[start:stop] for x in pixels),
            tuple(x[start:stop] for x in codec),
            tuple(stop >= len(x) for x in pixels),
        )
        encoded.append(method.encode(chunk, memory))
        memory = encoded[-1].memory
        start = stop
    return encoded


def of_stream(encoded: list[Encoded], stream: int) -> tuple[Tensor, Tensor]:
    return (
        torch.cat([one.embeddings[stream] for one in encoded]),
        torch.cat([one.reuse[stream] for one in encoded]),
    )


@pytest.mark.parametrize("reference_state", ENGINE_STATES)
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.45, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("choice", ["random", "similar"])
def test_compacted_inference_equals_computing_every_token(
    vit: Vit, addon: Addon, reference_state: EngineState, rate: float, choice: ForcedChoice
) -> None:
    lengths = [19, 1, 12, 7, 22]
    pixels, codec = streams_of(lengths)
    gate = ForcedGate(rate, choice, SHAPE)
    method = ReuseVit(ReuseVitConfig(reference_state=reference_state), vit, addon, gate)
    encoded = encode_in_chunks(method, pixels, codec, [3, 9, 1, 10])
    for stream in range(len(lengths)):
        expected = oracle(vit, ReusePolicy(addon, gate, reference_state), (stream, pixels[stream], codec[stream]), None)
        embeddings, reuse = of_stream(encoded, stream)
        assert torch.equal(reuse, expected.reuse_CFbN[0] > 0.5)
        torch.testing.assert_close(embeddings, expected.embeddings_CFE[0].float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("reference_state", ENGINE_STATES)
@pytest.mark.parametrize("frames_at_once", [1, 3, 4, 5, 9, 64])
def test_blocks_of_any_size_give_the_same(
    vit: Vit, addon: Addon, reference_state: EngineState, frames_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame_bytes = 3 * SHAPE.num_tokens * SHAPE.width * vit.position.element_size()
    monkeypatch.setattr(workspace, "BLOCK_BYTES", frames_at_once * frame_bytes)
    lengths = [9, 3, 14, 8, 6]
    pixels, codec = streams_of(lengths)
    for rate in (0.3, 0.8):  # few rows are restored one by one, many all together
        gate = ForcedGate(rate, "random", SHAPE)
        method = ReuseVit(ReuseVitConfig(reference_state=reference_state), vit, addon, gate)
        encoded = encode_in_chunks(method, pixels, codec, [3, 9, 2])
        policy = ReusePolicy(addon, gate, reference_state)
        for stream in range(len(lengths)):
            expected = oracle(vit, policy, (stream, pixels[stream], codec[stream]), None)
            embeddings, _ = of_stream(encoded, stream)
            torch.testing.assert_close(embeddings, expected.embeddings_CFE[0].float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("refresh", [1, 4, 6])
def test_segments_begin_again_with_a_dense_frame(vit: Vit, addon: Addon, refresh: int) -> None:
    pixels, codec = streams_of([17, 8])
    gate = ForcedGate(0.6, "random", SHAPE)
    method = ReuseVit(ReuseVitConfig(refresh=refresh), vit, addon, gate)
    encoded = encode_in_chunks(method, pixels, codec, [5, 20])
    for stream in range(2):
        expected = oracle(vit, ReusePolicy(addon, gate), (stream, pixels[stream], codec[stream]), refresh)
        embeddings, reuse = of_stream(encoded, stream)
        dense = [index for index, one in enumerate(reuse) if not one.any()]
        assert dense == list(range(0, len(reuse), refresh + 1))
        torch.testing.assert_close(embeddings, expected.embeddings_CFE[0].float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("reference_state", ENGINE_STATES)
def test_decisions_feed_back_alike_in_both_forms(vit: Vit, addon: Addon, reference_state: EngineState) -> None:
    pixels, codec = streams_of([13, 5])
    for bias in (-1.0, 0.0, 1.0):
        gate = HardGate(addon.decisions, bias)
        method = ReuseVit(ReuseVitConfig(reference_state=reference_state, decision_bias=bias), vit, addon)
        encoded = encode_in_chunks(method, pixels, codec, [4, 9])
        for stream in range(2):
            expected = oracle(
                vit, ReusePolicy(addon, gate, reference_state), (stream, pixels[stream], codec[stream]), None
            )
            embeddings, reuse = of_stream(encoded, stream)
            assert torch.equal(reuse, expected.reuse_CFbN[0] > 0.5)
            torch.testing.assert_close(embeddings, expected.embeddings_CFE[0].float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_an_addon_without_codec_net_and_restoration_is_the_same_in_both_forms(vit: Vit, rate: float) -> None:
    pixels, codec = streams_of([9, 6])
    bare = Addon(dataclasses.replace(addon_shape(vit.shape, restoration_rank=0), codec=False)).double()
    gate = ForcedGate(rate, "similar", SHAPE)
    encoded = encode_in_chunks(ReuseVit(ReuseVitConfig(), vit, bare, gate), pixels, codec, [4, 9])
    for stream in range(2):
        expected = oracle(vit, ReusePolicy(bare, gate), (stream, pixels[stream], codec[stream]), None)
        torch.testing.assert_close(
            of_stream(encoded, stream)[0], expected.embeddings_CFE[0].float(), atol=1e-6, rtol=1e-6
        )


def test_work_that_is_not_there_is_not_reported() -> None:
    shape = VitShape(
        image_px=96, patch_px=16, width=128, num_heads=2, num_layers=4, mlp_width=512, embed_dim=64, has_cls=True
    )
    vit = Vit.random(shape, seed=1)
    bare = Addon(dataclasses.replace(addon_shape(shape, restoration_rank=0), codec=False)).requires_grad_(False)
    method = ReuseVit(ReuseVitConfig(refresh=8), vit, bare)
    generator = torch.Generator().manual_seed(0)
    chunk = Chunk(
        (torch.randn(11, 3, 96, 96, generator=generator),), (torch.rand(11, 4, 6, 6, generator=generator),), (True,)
    )
    with ExecutedFlops() as executed:
        (work,) = method.encode(chunk, method.start(1)).work
    assert not work.parts["codec_net"].any()
    assert not work.parts["restoration"].any()
    assert float(flops_per_frame(shape, work).sum()) == pytest.approx(executed.total, rel=0.01)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.6, 0.9, None])
def test_reported_work_is_what_is_executed(rate: float | None) -> None:
    shape = VitShape(
        image_px=96, patch_px=16, width=128, num_heads=2, num_layers=4, mlp_width=512, embed_dim=64, has_cls=True
    )
    vit = Vit.random(shape, seed=1)
    method = ReuseVitConfig(forced_rate=rate, refresh=8).build(vit)
    generator = torch.Generator().manual_seed(0)
    pixels = tuple(torch.randn(length, 3, 96, 96, generator=generator) for length in (11, 6))
    codec = tuple(torch.rand(length, 4, 6, 6, generator=generator) for length in (11, 6))
    with ExecutedFlops() as executed:
        encoded = method.encode(Chunk(pixels, codec, (True, True)), method.start(2))
    counted = sum(float(flops_per_frame(shape, work).sum()) for work in encoded.work)
    assert counted == pytest.approx(executed.total, rel=0.01)
    reuse = torch.cat(encoded.reuse).float().mean()
    if rate is not None:
        assert reuse == pytest.approx(rate * 14 / 17, abs=0.02)  # of 17 frames 3 are dense


def test_scores_that_are_given_up_are_reported() -> None:
    """As in DINOv2's published weights, whose scores reach hundreds."""
    shape = VitShape(
        image_px=112, patch_px=8, width=64, num_heads=8, num_layers=3, mlp_width=64, embed_dim=16, has_cls=True
    )
    vit = Vit.random(shape, seed=0)
    method = ReuseVitConfig(forced_rate=0.9).build(vit)
    generator = torch.Generator().manual_seed(0)
    chunk = Chunk(
        (torch.randn(9, 3, 112, 112, generator=generator),), (torch.rand(9, 4, 14, 14, generator=generator),), (True,)
    )
    given_up = []
    for bias in (0.0, 20.0):
        vit.layer(1).qkv_bias[: 2 * shape.width] += bias
        with ExecutedFlops() as executed:
            (work,) = method.encode(chunk, method.start(1)).work
        assert float(flops_per_frame(shape, work).sum()) == pytest.approx(executed.total, rel=0.005)
        given_up.append(int(work.parts["importance"].sum()))
    assert given_up[0] == 0
    assert given_up[1] > shape.num_tokens**2


@pytest.mark.skipif("DINOV2_SMALL" not in os.environ, reason="$DINOV2_SMALL names no copy of facebook/dinov2-small")
@pytest.mark.parametrize("rate", [0.2, 0.95])
def test_reported_work_is_what_is_executed_on_published_weights(rate: float) -> None:
    vit = from_hf(Dinov2Model.from_pretrained(os.environ["DINOV2_SMALL"], local_files_only=True).eval(), 224)
    method = ReuseVitConfig(forced_rate=rate).build(vit)
    generator = torch.Generator().manual_seed(0)
    pixels, codec = (torch.randn(9, *size, generator=generator) for size in ((3, 224, 224), (4, 16, 16)))
    with ExecutedFlops() as executed:
        (work,) = method.encode(Chunk((pixels,), (codec,), (True,)), method.start(1)).work
    assert float(flops_per_frame(vit.shape, work).sum()) / executed.total == pytest.approx(1, abs=0.002)


def test_cores_share_streams_without_changing_them(vit: Vit, addon: Addon) -> None:
    pixels, codec = streams_of([9, 6, 9])
    method = ReuseVit(ReuseVitConfig(forced_rate=0.5), vit, addon)
    chunk = Chunk(tuple(pixels), tuple(codec), (True,) * 3)
    alone = method.encode(chunk, method.start(3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        shared = method.encode(chunk, method.start(3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone.embeddings, shared.embeddings, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_state_is_a_third_of_the_artifacts_and_as_its_formula_says(vit: Vit, addon: Addon) -> None:
    method = ReuseVit(ReuseVitConfig(), vit, addon)
    memory = method.start(3)
    assert memory.bytes_per_stream == state_bytes_per_stream(SHAPE, bytes_per_value=8)
    for shape in (KNOWN_SHAPES["openai/clip-vit-base-patch16"], KNOWN_SHAPES["openai/clip-vit-large-patch14"]):
        # Five float32 tensors a layer for each of three reference frames.
        artifact = 3 * shape.num_layers * shape.num_tokens * 5 * shape.width * 4
        assert state_bytes_per_stream(shape) < 0.35 * artifact


def test_a_long_stream_runs_in_constant_memory(vit: Vit, addon: Addon) -> None:
    method = ReuseVit(ReuseVitConfig(forced_rate=0.8), vit, addon)
    memory = method.start(1)
    pixels, codec = streams_of([40])
    held, sizes = [], []
    for start in range(0, 40, 5):
        chunk = Chunk((pixels[0][start : start + 5],), (codec[0][start : start + 5],), (False,))
        memory = method.encode(chunk, memory).memory
        held.append(len(memory.states[0].held))
        sizes.append(sum(workspace.num_bytes for workspace in memory.workspaces.values()))
    assert max(held) < 4
    assert max(sizes) < 2 * min(sizes)


def test_what_does_not_fit_is_refused(vit: Vit, addon: Addon) -> None:
    method = ReuseVit(ReuseVitConfig(), vit, addon)
    pixels, codec = streams_of([4])
    with pytest.raises(ValueError, match=r"frames: got \[4, 3, 48, 40\]"):
        method.encode(Chunk((pixels[0][..., :40],), tuple(codec), (True,)), method.start(1))
    with pytest.raises(ValueError, match="codec grid: got"):
        method.encode(Chunk(tuple(pixels), (codec[0][:, :, :5],), (True,)), method.start(1))
    with pytest.raises(ValueError, match="frames without codec grids"):
        method.encode(Chunk(tuple(pixels), None, (True,)), method.start(1))
    with pytest.raises(ValueError, match="streams"):
        method.encode(Chunk(tuple(pixels), tuple(codec), (True,)), method.start(2))
    with pytest.raises(ValueError, match=r"reuse rate: got 1\.5"):
        ReuseVitConfig(forced_rate=1.5)
    with pytest.raises(ValueError, match="refresh: got 0"):
        ReuseVitConfig(refresh=0)
    with pytest.raises(ValueError, match="reference_state: got 'magic'"):
        ReuseVitConfig(reference_state="magic")  # type: ignore[arg-type]


def test_untrained_weights_say_so() -> None:
    assert ReuseVitConfig().setting == "untrained"
    assert ReuseVitConfig(weights="a/b/r80.safetensors", refresh=8, decision_bias=0.5).setting == "r80 bias=+0.5 R=8"
    assert "untrained" in ReuseVitConfig(name="mine").setting


def test_saved_weights_come_back_and_fit_their_tower_only(vit: Vit, addon: Addon, tmp_path: Path) -> None:
    path = tmp_path / "r80.safetensors"
    save_addon(addon, path)
    loaded = ReuseVitConfig(weights=str(path)).addon(vit)
    for name, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, addon.state_dict()[name], atol=1e-6, rtol=1e-5)
    deeper = Vit.random(dataclasses.replace(SHAPE, num_layers=5), seed=0)
    with pytest.raises(ValueError, match="layers 4, expected 5"):
        ReuseVitConfig(weights=str(path)).build(deeper)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="does not hold them"):
        ReuseVitConfig(weights=str(path)).build(vit)
    with pytest.raises(ValueError, match="got no file"):
        ReuseVitConfig(weights=str(tmp_path / "none.safetensors")).build(vit)
