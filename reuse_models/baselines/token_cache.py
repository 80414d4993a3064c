"""Reuse from the frame before: what Eventful and CMC share, everything but which tokens are computed.

At each boundary l-1 -> l a token keeps what it had when it was last computed there, its anchor: pre_proj of layer l-1
and h, q, k, v of layer l. A reused token stands for its anchor as it is. So the state of a stream *is* the input of
its next attention, and a frame overwrites the rows that it computes.

Shapes: B streams, S of them at a step, T packed tokens of all of these, N tokens (prefix first: CLS where there is one,
then registers), A patches, which alone may be reused, L layers, D width, C channels of a projection.
Source: docs/methods.md; Eventful Transformers (arXiv:2308.13494) and CMC (ASPLOS 2024) as the artifact runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_models.flops import dense_work
from reuse_models.method import Chunk, Encoded, Work
from reuse_models.streams import Record, Step, check_chunk, steps
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

Choose = Callable[[Tensor, Tensor], Tensor]
"""(pre_proj_SAD, anchor_SAD) -> bool [S, A]: patches to compute. The prefix is not among them: it always is."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """The anchors of all streams at one boundary, overwritten in place."""

    pre_proj_BND: Tensor
    h_BND: Tensor | None
    """None before the last layer of a tower with CLS: only CLS's is needed there, and CLS is always computed."""
    projected_BNC: Tensor
    """q, k, v side by side, C = 3D; k, v alone before the last layer of a tower with CLS."""


@dataclass(slots=True)
class Anchors:
    """The memory: one Boundary into each of the layers 1..L-1, and which streams have begun."""

    boundaries: tuple[Boundary, ...]
    begun_B: Tensor

    @property
    def bytes_per_stream(self) -> int:
        """Bytes of 5 (L - 1) N D values; with CLS, of 2 N D fewer."""
        tensors = [x for b in self.boundaries for x in (b.pre_proj_BND, b.h_BND, b.projected_BNC) if x is not None]
        return sum(x[0].numel() * x.element_size() for x in tensors)


class TokenCache:
    """A method that computes, at every boundary, the prefix and the patches that `choose` names."""

    def __init__(self, vit: Vit, choose: Choose) -> None:
        self.vit, self.choose = vit, choose

    def start(self, num_streams: int) -> Anchors:
        shape = self.vit.shape

        def zeros(channels: int) -> Tensor:
            return self.vit.position.new_zeros(num_streams, shape.num_tokens, channels)

        boundaries = []
        for layer in range(1, shape.num_layers):
            ends_in_cls = shape.has_cls and layer == shape.num_layers - 1
            boundaries.append(
                Boundary(
                    pre_proj_BND=zeros(shape.width),
                    h_BND=None if ends_in_cls else zeros(shape.width),
                    projected_BNC=zeros((2 if ends_in_cls else 3) * shape.width),
                )
            )
        return Anchors(tuple(boundaries), self.vit.position.new_zeros(num_streams, dtype=torch.bool))

    @torch.no_grad()
    def encode(self, chunk: Chunk, memory: Anchors) -> Encoded:
        check_chunk(chunk, self.vit, len(memory.begun_B))
        record = Record(self.vit.shape, chunk, self.vit.position.device)
        record.add_dense(_fixed_work(self.vit.shape), slice(None))
        for step in steps(chunk, self.vit.position.device):
            _encode_step(self.vit, self.choose, step, memory, record)
            # Not in place: it may have been made in inference mode.
            memory.begun_B = memory.begun_B.index_fill(0, step.streams_S, True)
        return record.encoded(memory)


def _encode_step(vit: Vit, choose: Choose, step: Step, memory: Anchors, record: Record) -> None:
    shape, num_streams = vit.shape, len(step.streams_S)
    fresh_S1 = ~memory.begun_B[step.streams_S, None]
    has_old = not bool(fresh_S1.all())

    if shape.num_layers == 1:  # no boundary, so nothing to reuse
        record.embeddings_RE[step.rows_S] = vit(step.frames_S3HW).float()
        return
    h_SND = vit.embed(step.frames_S3HW)
    projected_SNC = vit.qkv(0, h_SND)
    h_before_XD, h_here = h_SND.flatten(0, 1), True
    for layer in range(1, shape.num_layers):
        anchor = memory.boundaries[layer - 1]
        q_ShNd, k_ShNd, v_ShNd = vit.split_heads(projected_SNC)
        pre_proj_SND = vit.attend(q_ShNd, k_ShNd, v_ShNd)
        first = shape.num_prefix
        computed_SA = fresh_S1.expand(-1, shape.num_patches)
        if has_old:
            known_SND = _of_step(anchor.pre_proj_BND, step)
            computed_SA = computed_SA | choose(pre_proj_SND[:, first:], known_SND[:, first:])
        here_T, kept_T = _packed_rows(computed_SA, step, shape.num_tokens)

        pre_proj_TD = pre_proj_SND.flatten(0, 1).index_select(0, here_T)
        h_TD = vit.close(layer - 1, h_before_XD.index_select(0, here_T if h_here else kept_T), pre_proj_TD)
        anchor.pre_proj_BND.flatten(0, 1).index_copy_(0, kept_T, pre_proj_TD)
        if anchor.h_BND is None:
            projected_TC = vit.key_value(layer, h_TD)
        else:
            projected_TC = vit.qkv(layer, h_TD)
            h_before_XD, h_here = anchor.h_BND.flatten(0, 1), False
            h_before_XD.index_copy_(0, kept_T, h_TD)
        anchor.projected_BNC.flatten(0, 1).index_copy_(0, kept_T, projected_TC)
        projected_SNC = _of_step(anchor.projected_BNC, step)

        record.reuse_RLN[step.rows_S, layer - 1, first:] = ~computed_SA
        num_computed_S = computed_SA.sum(1) + first
        record.add_work("projection", step.rows_S, num_computed_S, layer - 1)
        record.add_work("mlp", step.rows_S, num_computed_S, layer - 1)
        record.add_work("key_value", step.rows_S, num_computed_S, layer)
        record.add_work("query", step.rows_S, 1 if anchor.h_BND is None else num_computed_S, layer)

    last = memory.boundaries[-1]
    # CLS rows lead the packed tokens.
    h_SMD = h_TD[:num_streams, None] if last.h_BND is None else _of_step(last.h_BND, step)
    record.embeddings_RE[step.rows_S] = vit.finish(projected_SNC, h_SMD).float()


def _of_step(state_BNC: Tensor, step: Step) -> Tensor:
    return state_BNC if step.whole else state_BNC.index_select(0, step.streams_S)


def _packed_rows(computed_SA: Tensor, step: Step, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Return rows of the tokens to compute, in the step's [S * N] and in the memory's [B * N]: all CLS first."""
    prefix = num_tokens - computed_SA.shape[1]
    num_streams, device = len(step.streams_S), computed_SA.device
    stream_X, token_X = computed_SA.nonzero(as_tuple=True)
    if prefix:
        stream_X = torch.cat([torch.arange(num_streams, device=device).repeat(prefix), stream_X])
        token_X = torch.cat([torch.arange(prefix, device=device).repeat_interleave(num_streams), token_X + prefix])
    here_T = stream_X * num_tokens + token_X
    return here_T, here_T if step.whole else step.streams_S[stream_X] * num_tokens + token_X


def _fixed_work(shape: VitShape) -> Work:
    """What does not depend on the choice: the ends of the tower, and attention, which runs over all tokens."""
    work = dense_work(shape)
    for part in ("query", "key_value"):
        work.parts[part][:, 1:] = 0
    for part in ("projection", "mlp"):
        work.parts[part][:, :-1] = 0
    return work
