"""Streaming, compacted inference against the masked forward, which computes every token of every frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reuse_models.addon import Addon, addon_shape
from reuse_models.codec_net import codec_history
from reuse_models.frame_order import schedule
from reuse_models.gate import Choice, ForcedGate, Gate
from reuse_models.masked import Clips, MaskedOutput, masked_forward
from reuse_models.method import Chunk, Encoded
from reuse_models.reusevit import ReuseVit, ReuseVitConfig
from reuse_models.token_memory import SEMANTICS, Semantics
from reuse_models.vit import Vit, VitShape

SHAPE = VitShape(image_px=48, patch_px=8, width=32, num_heads=2, num_layers=4, mlp_width=64, embed_dim=16, has_cls=True)


@pytest.fixture(scope="module")
def vit() -> Vit:
    return Vit.random(SHAPE, seed=1).double()


@pytest.fixture(scope="module")
def addon(vit: Vit) -> Addon:
    torch.manual_seed(2)
    addon = Addon(addon_shape(vit.shape))
    with torch.no_grad():
        for weight in addon.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return addon.double().requires_grad_(False)


def streams_of(lengths: list[int], seed: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    pixels, codec = [], []
    for length in lengths:
        still = torch.randn(3, 48, 48, generator=generator).double()
        pixels.append(still + 0.3 * torch.randn(length, 3, 48, 48, generator=generator))
        codec.append(torch.randint(0, 7, (length, 4, 6, 6), generator=generator).double())
    return pixels, codec


def oracle(
    vit: Vit, addon: Addon, gate: Gate, semantics: Semantics, stream: tuple[int, Tensor, Tensor], refresh: int | None
) -> MaskedOutput:
    number, pixels_F3HW, codec_F4PP = stream
    order = schedule(len(pixels_F3HW), refresh)
    frames = torch.tensor([step.frame for step in order])
    scores = addon.codec_net(codec_history(codec_F4PP.new_zeros(3, 4, 6, 6), codec_F4PP))
    clips = Clips(pixels_F3HW[frames][None], scores[frames][None], order)

    def of_stream(boundary: int, features):  # type: ignore[no-untyped-def]
        import dataclasses

        ids = [(number, frame) for _, frame in features.frames]
        return gate(boundary, dataclasses.replace(features, frames=ids))

    with torch.no_grad():
        output = masked_forward(vit, addon, clips, of_stream, semantics)
    back = frames.argsort()
    return MaskedOutput(output.embeddings_CFE[:, back], output.reuse_CFbN[:, back], output.second_last_CFND, None)


def encode_in_chunks(method: ReuseVit, pixels: list[Tensor], codec: list[Tensor], cuts: list[int]) -> list[Encoded]:
    memory = method.start(len(pixels))
    encoded, start = [], 0
    for index, size in enumerate(cuts):
        stop = start + size
        chunk = Chunk(
            tuple(x[start:stop] for x in pixels),
            tuple(x[start:stop] for x in codec),
            tuple((stop >= len(x) and index == len(cuts) - 1) or stop >= len(x) for x in pixels),
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


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.45, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("choice", ["random", "similar"])
def test_compacted_inference_equals_computing_every_token(
    vit: Vit, addon: Addon, semantics: Semantics, rate: float, choice: Choice
) -> None:
    lengths = [19, 1, 12, 7, 22]
    pixels, codec = streams_of(lengths)
    gate = ForcedGate(rate, choice, SHAPE.num_patches, SHAPE.num_layers - 1)
    method = ReuseVit(ReuseVitConfig(semantics=semantics), vit, addon, gate)
    encoded = encode_in_chunks(method, pixels, codec, [3, 9, 1, 10])
    for stream in range(len(lengths)):
        expected = oracle(vit, addon, gate, semantics, (stream, pixels[stream], codec[stream]), None)
        embeddings, reuse = of_stream(encoded, stream)
        assert torch.equal(reuse, expected.reuse_CFbN[0] > 0.5)
        torch.testing.assert_close(embeddings, expected.embeddings_CFE[0].float(), atol=1e-6, rtol=1e-6)
