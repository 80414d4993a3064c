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

from reuse_models.method import Chunk, Encoded
from reuse_models.streams import Record, Step, check_chunk, steps
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
    begun: list[bool]

    @property
    def bytes_per_stream(self) -> int:
        """Bytes of 5 (L - 1) N D values; with CLS, of 2 N D fewer."""
        tensors = [x for b in self.boundaries for x in (b.pre_proj_BND, b.h_BND, b.projected_BNC) if x is not None]
        return sum(x[0].numel() * x.element_size() for x in tensors)


def start_anchors(vit: Vit, num_streams: int) -> Anchors:
    """Return the memory of streams of which nothing has been seen."""
    shape = vit.shape

    def zeros(channels: int) -> Tensor:
        return vit.position.new_zeros(num_streams, shape.num_tokens, channels)

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
    return Anchors(tuple(boundaries), [False] * num_streams)


@torch.no_grad()
def encode_sequential(vit: Vit, choose: Choose, chunk: Chunk, memory: Anchors) -> Encoded:
    """Embed a chunk, computing at every boundary the prefix and the patches that `choose` names.

    Raises:
        ValueError: The chunk does not fit the tower or the memory.
    """
    check_chunk(chunk, vit, len(memory.begun))
    record = Record(vit.shape, chunk, vit.position.device)
    for step in steps(chunk, vit.position.device):
        _encode_step(vit, choose, step, memory, record)
        for stream in step.streams_S.tolist():
            memory.begun[stream] = True
    return record.encoded(memory)


def _encode_step(vit: Vit, choose: Choose, step: Step, memory: Anchors, record: Record) -> None:
    shape, num_streams = vit.shape, len(step.streams_S)
    fresh_S1 = torch.tensor([[not memory.begun[stream]] for stream in step.streams_S.tolist()])
    has_old = not bool(fresh_S1.all())
    fresh_S1 = fresh_S1.to(step.streams_S.device)
    _record_fixed_work(vit, step, record)

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
    if last.h_BND is None:
        h_S1D = h_TD[:num_streams, None]  # CLS rows lead the packed tokens
        (q_Sh1d,) = vit.split_heads(vit.query(shape.num_layers - 1, h_S1D))
        k_ShNd, v_ShNd = vit.split_heads(projected_SNC)
        embeddings_SE = vit.finish(q_Sh1d, k_ShNd, v_ShNd, h_S1D)
    else:
        q_ShNd, k_ShNd, v_ShNd = vit.split_heads(projected_SNC)
        embeddings_SE = vit.finish(q_ShNd, k_ShNd, v_ShNd, _of_step(last.h_BND, step))
    record.embeddings_RE[step.rows_S] = embeddings_SE.float()


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


def _record_fixed_work(vit: Vit, step: Step, record: Record) -> None:
    """What does not depend on the choice: the ends of the tower, and attention, which runs over all tokens."""
    shape, rows_S = vit.shape, step.rows_S
    last, num_tokens = shape.num_layers - 1, shape.num_tokens
    num_queries = shape.num_last_queries
    record.add_work("patch_embedding", rows_S, shape.num_patches)
    record.add_work("query", rows_S, num_tokens if last else num_queries)
    record.add_work("key_value", rows_S, num_tokens)
    for layer in range(last):
        record.add_work("attention", rows_S, num_tokens**2, layer)
    record.add_work("attention", rows_S, num_queries * num_tokens, last)
    record.add_work("projection", rows_S, num_queries, last)
    record.add_work("mlp", rows_S, num_queries, last)
    record.add_work("pooling", rows_S, num_queries)
    record.add_work("head", rows_S, 1)
