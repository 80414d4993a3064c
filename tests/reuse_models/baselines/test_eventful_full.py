"""The faithful Eventful against a plain loop that keeps references and computes whole products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.eventful_full import EventfulFullConfig
from reuse_models.method import Chunk, Encoded
from reuse_models.tower.vit import Vit

Run = Callable[..., Encoded]


class Gate:
    """A gate and its buffer for one token-wise function, token by token."""

    def __init__(self, function: Callable[[Tensor], Tensor], refreshed: int, num_cls: int) -> None:
        self.function, self.refreshed, self.num_cls = function, refreshed, num_cls
        self.last_input: dict[int, Tensor] = {}
        self.last_output: dict[int, Tensor] = {}

    def __call__(self, x_ND: Tensor) -> tuple[Tensor, list[int]]:
        tokens = range(len(x_ND))
        if not self.last_input:
            passing = list(tokens)
        else:
            moved = sorted(tokens[self.num_cls :], key=lambda n: -float((x_ND[n] - self.last_input[n]).norm()))
            passing = [*range(self.num_cls), *moved[: self.refreshed]]
        for n in passing:
            self.last_input[n], self.last_output[n] = x_ND[n].clone(), self.function(x_ND[n])
        return torch.stack([self.last_output[n] for n in tokens]), passing


@torch.no_grad()
def oracle(vit: Vit, refreshed: int, clip_F3HW: Tensor) -> tuple[Tensor, Tensor]:
    shape, num_cls = vit.shape, int(vit.shape.has_cls)
    layers: list[dict[str, Any]] = []
    for index in range(shape.num_layers):
        w = vit.layer(index)
        functions: list[Callable[[Tensor], Tensor]] = [
            lambda x, w=w: F.linear(x, w.qkv_weight, w.qkv_bias),  # type: ignore[misc]
            lambda x, w=w: F.linear(x, w.out_weight, w.out_bias),  # type: ignore[misc]
            lambda x, index=index: vit.feed_forward(index, x),  # type: ignore[misc]
        ]
        layers.append({"gates": [Gate(function, refreshed, num_cls) for function in functions], "attention": None})
    embeddings, maps = [], []
    for frame in clip_F3HW:
        h_ND = vit.embed(frame[None])[0]
        reused_LN = torch.ones(shape.num_layers, shape.num_tokens, dtype=torch.bool)
        for index, layer in enumerate(layers):
            qkv_gate, projection_gate, mlp_gate = layer["gates"]
            qkv_NC, passing = qkv_gate(vit.norm1(index, h_ND))
            reused_LN[index, passing] = False
            q, k, v = (x[0] for x in vit.split_heads(qkv_NC[None]))
            now_hNN = (q @ k.mT * shape.head_dim**-0.5).softmax(-1)
            if layer["attention"] is None:
                layer["attention"] = now_hNN
            for n in passing:
                layer["attention"][:, :, n] = now_hNN[:, :, n]
            pre_proj_ND = (layer["attention"] @ v).transpose(0, 1).flatten(1)
            h_ND = h_ND + projection_gate(pre_proj_ND)[0]
            h_ND = h_ND + mlp_gate(vit.norm2(index, h_ND))[0]
        embeddings.append(vit.head(h_ND[None])[0])
        maps.append(reused_LN[1:])
    return torch.stack(embeddings), torch.stack(maps)


@pytest.mark.parametrize("refreshed", [0, 3, 9, 16])
@pytest.mark.parametrize("frames_per_call", [None, 3])
def test_ragged_streams_equal_the_plain_loop(
    any_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run, refreshed: int, frames_per_call: int | None
) -> None:
    encoded = run(EventfulFullConfig(refreshed_tokens=refreshed).build(any_vit), ragged_clips, frames_per_call)
    for stream, clip in enumerate(ragged_clips):
        embeddings_FE, reuse_FLN = oracle(any_vit, refreshed, clip)
        assert torch.equal(encoded.reuse[stream], reuse_FLN)
        torch.testing.assert_close(encoded.embeddings[stream], embeddings_FE, atol=1e-5, rtol=1e-5)


def test_a_stream_that_begins_late_joins_the_others(any_vit: Vit, ragged_clips: tuple[Tensor, ...]) -> None:
    method = EventfulFullConfig(refreshed_tokens=3).build(any_vit)
    memory = method.start(2)
    memory = method.encode(Chunk((ragged_clips[0][:3], ragged_clips[1][:0]), None, (False, False)), memory).memory
    encoded = method.encode(Chunk((ragged_clips[0][3:], ragged_clips[1]), None, (True, True)), memory)
    for stream, first in ((0, 3), (1, 0)):
        embeddings_FE, reuse_FLN = oracle(any_vit, 3, ragged_clips[stream])
        assert torch.equal(encoded.reuse[stream], reuse_FLN[first:])
        torch.testing.assert_close(encoded.embeddings[stream], embeddings_FE[first:], atol=1e-5, rtol=1e-5)


def test_passing_every_token_is_dense(any_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run) -> None:
    encoded = run(EventfulFullConfig(refreshed_tokens=16).build(any_vit), ragged_clips)
    with torch.no_grad():
        torch.testing.assert_close(encoded.embeddings[0], any_vit(ragged_clips[0]), atol=1e-5, rtol=1e-5)


def test_more_tokens_than_the_tower_has_are_refused(clip_vit: Vit) -> None:
    with pytest.raises(ValueError, match=r"refreshed_tokens: got 17, expected 0\.\.16"):
        EventfulFullConfig(refreshed_tokens=17).build(clip_vit)
    with pytest.raises(ValueError, match="refreshed_tokens: got -1"):
        EventfulFullConfig(refreshed_tokens=-1)
