"""ToMe against a plain loop over tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.tome import ToMeConfig
from reuse_models.method import Encoded
from reuse_models.tower.vit import Vit

Run = Callable[..., Encoded]


@torch.no_grad()
def oracle(vit: Vit, merged_per_layer: int, frame_3HW: Tensor) -> Tensor:
    """One frame; tokens are (value, size) in a list; the last layer is whole."""
    tokens = [(h_D, 1.0) for h_D in vit.embed(frame_3HW[None])[0]]
    for layer in range(vit.shape.num_layers):
        h_ND = torch.stack([h_D for h_D, _ in tokens])
        log_size_N = torch.tensor([size for _, size in tokens]).log()
        q, k, v = (x[0] for x in vit.split_heads(vit.qkv(layer, h_ND[None])))
        attention_hNN = (q @ k.mT * vit.shape.head_dim**-0.5 + log_size_N).softmax(-1)
        h_ND = vit.project(layer, h_ND, (attention_hNN @ v).transpose(0, 1).flatten(1))
        key_Nd = k.mean(0)
        even, odd = list(range(0, len(tokens), 2)), list(range(1, len(tokens), 2))
        proposals = []
        for n in even[1:]:
            similarity, best = max((float(F.cosine_similarity(key_Nd[n], key_Nd[m], dim=0)), m) for m in odd)
            proposals.append((similarity, n, best))
        carried = sorted(proposals, reverse=True)[: min(merged_per_layer, (len(tokens) - 1) // 2)]
        gone = {n for _, n, _ in carried}
        sizes = [size for _, size in tokens]
        after = [(h_ND[n], sizes[n]) for n in even if n not in gone]
        for m in odd:
            group = [m, *(n for _, n, best in carried if best == m)]
            size = sum(sizes[n] for n in group)
            after.append((torch.stack([h_ND[n] * sizes[n] for n in group]).sum(0) / size, size))
        tokens = [(vit.mlp(layer, h_D), size) for h_D, size in after]
    assert sum(size for _, size in tokens) == vit.shape.num_tokens
    return vit.head(tokens[0][0][None, None])[0]


@pytest.mark.parametrize("merged_per_layer", [0, 1, 3, 100])
@pytest.mark.parametrize("frames_per_call", [None, 3])
def test_ragged_streams_equal_the_plain_loop(
    clip_vit: Vit, ragged_clips: tuple[Tensor, ...], run: Run, merged_per_layer: int, frames_per_call: int | None
) -> None:
    encoded = run(ToMeConfig(merged_per_layer=merged_per_layer).build(clip_vit), ragged_clips, frames_per_call)
    for stream, clip in enumerate(ragged_clips):
        for frame, embedding_E in zip(clip, encoded.embeddings[stream], strict=True):
            torch.testing.assert_close(embedding_E, oracle(clip_vit, merged_per_layer, frame), atol=1e-5, rtol=1e-5)


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="merged_per_layer: got -1"):
        ToMeConfig(merged_per_layer=-1)
