"""Eventful as its own paper has it: a gate before each of QKV, projection and MLP, and products updated by deltas.

A gate keeps, per token, the input that was last put through what follows it; the k tokens whose input moved furthest
from that go through again, and a buffer holds everyone's last output. q, k and v change for gated tokens alone, so only
their rows and columns of the scores are computed again (exact), and the attention-value product is corrected by the
changed values and the changed columns of attention (the other columns keep what they were: approximate).

Shapes: B streams, S of them at a step, N tokens (CLS first where there is one), M of them with a query, K gated,
h heads, d head width, D width, C channels.
Source: Eventful Transformers (arXiv:2308.13494), sections 4.1 to 4.3, gates after the norm. Ours: CLS and
registers pass every gate beside the k, in the last layer only CLS has a query where there is one, and a product is
computed whole where its update would cost more.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.eventful import check_refreshed_tokens
from reuse_models.baselines.merging import take_tokens
from reuse_models.method import Chunk, Encoded, Method
from reuse_models.streams import Record, Step, check_chunk, steps
from reuse_models.tower.vit import Vit


@dataclass(frozen=True, kw_only=True, slots=True)
class EventfulFullConfig:
    """Refresh, at each of a layer's three gates, the tokens whose input changed most."""

    method: ClassVar[str] = "eventful_full"
    refreshed_tokens: int = 64
    """Patches through each gate per frame beside CLS and registers: 0..patches."""

    def __post_init__(self) -> None:
        if self.refreshed_tokens < 0:
            raise ValueError(f"refreshed_tokens: got {self.refreshed_tokens}, expected 0 or more; raise it")

    @property
    def setting(self) -> str:
        return f"k={self.refreshed_tokens}"

    def build(self, vit: Vit) -> Method:
        check_refreshed_tokens(self.refreshed_tokens, vit)
        return EventfulFull(self, vit)


@dataclass(slots=True)
class LayerState:
    """What one layer keeps of all streams: inputs last gated, outputs last computed, products as they stand."""

    qkv_in_BND: Tensor
    qkv_BNC: Tensor
    """q, k, v side by side; k, v alone in the last layer of a tower with CLS, whose one query is always computed."""
    scores_BhMN: Tensor
    attention_BhMN: Tensor
    """Its columns as they were when their token last passed the QKV gate."""
    pre_proj_BhMd: Tensor
    """attention_BhMN times the values, kept up to date by deltas."""
    projection_in_BMD: Tensor
    projection_out_BMD: Tensor
    mlp_in_BMD: Tensor
    mlp_out_BMD: Tensor

    def of(self, streams_S: Tensor) -> LayerState:
        """Copy some streams out."""
        return LayerState(*(getattr(self, field.name)[streams_S] for field in fields(self)))

    def put(self, streams_S: Tensor, part: LayerState) -> None:
        """Write some streams back."""
        for field in fields(self):
            getattr(self, field.name)[streams_S] = getattr(part, field.name)


@dataclass(slots=True)
class GateMemory:
    """The memory: every layer's state, and which streams have begun."""

    layers: list[LayerState]
    begun_B: Tensor

    @property
    def bytes_per_stream(self) -> int:
        """Bytes; the two [h, N, N] of each layer dominate."""
        tensors = [getattr(layer, field.name) for layer in self.layers for field in fields(layer)]
        return sum(x[0].numel() * x.element_size() for x in tensors)


class EventfulFull:
    """Three gates and two updated products per layer."""

    def __init__(self, config: EventfulFullConfig, vit: Vit) -> None:
        self.config = config
        self.vit = vit

    def start(self, num_streams: int) -> GateMemory:
        shape = self.vit.shape

        def zeros(*size: int) -> Tensor:
            return self.vit.position.new_zeros(num_streams, *size)

        layers = []
        for layer in range(shape.num_layers):
            queries = self._num_queries(layer)
            layers.append(
                LayerState(
                    qkv_in_BND=zeros(shape.num_tokens, shape.width),
                    qkv_BNC=zeros(shape.num_tokens, (3 if queries == shape.num_tokens else 2) * shape.width),
                    scores_BhMN=zeros(shape.num_heads, queries, shape.num_tokens),
                    attention_BhMN=zeros(shape.num_heads, queries, shape.num_tokens),
                    pre_proj_BhMd=zeros(shape.num_heads, queries, shape.head_dim),
                    projection_in_BMD=zeros(queries, shape.width),
                    projection_out_BMD=zeros(queries, shape.width),
                    mlp_in_BMD=zeros(queries, shape.width),
                    mlp_out_BMD=zeros(queries, shape.width),
                )
            )
        return GateMemory(layers, self.vit.position.new_zeros(num_streams, dtype=torch.bool))

    @torch.no_grad()
    def encode(self, chunk: Chunk, memory: GateMemory) -> Encoded:
        check_chunk(chunk, self.vit, len(memory.begun_B))
        record = Record(self.vit.shape, chunk, self.vit.position.device)
        for step in steps(chunk, record.device):
            begun_S = memory.begun_B[step.streams_S]
            # A stream's first frame passes every gate whole; the other streams of the step do not wait for it.
            for group_S, refreshed in ((begun_S, self.config.refreshed_tokens), (~begun_S, self.vit.shape.num_patches)):
                if group_S.any():
                    self._encode_group(_only(step, group_S), refreshed, memory, record)
            memory.begun_B[step.streams_S] = True
        return record.encoded(memory)

    def _encode_group(self, step: Step, refreshed: int, memory: GateMemory, record: Record) -> None:
        vit, rows_S = self.vit, step.rows_S
        record.add_work("patch_embedding", rows_S, vit.shape.num_patches)
        record.add_work("pooling", rows_S, vit.shape.num_last_queries)
        record.add_work("head", rows_S, 1)
        h_SND = vit.embed(step.frames_S3HW)
        for layer, whole_state in enumerate(memory.layers):
            state = whole_state if step.whole else whole_state.of(step.streams_S)
            gated_SK = self._update_qkv(layer, h_SND, state, refreshed)
            if layer:
                reused_SN = torch.ones(h_SND.shape[:2], dtype=torch.bool, device=h_SND.device)
                record.reuse_RLN[rows_S, layer - 1] = reused_SN.scatter_(1, gated_SK, value=False)
            h_SMD = h_SND[:, : self._num_queries(layer)]
            h_SND = self._update_rest(layer, h_SMD, state, refreshed)
            if not step.whole:
                whole_state.put(step.streams_S, state)
            self._record_layer(layer, gated_SK.shape[1], rows_S, record)
        record.embeddings_RE[rows_S] = vit.head(h_SND).float()

    def _update_qkv(self, layer: int, h_SND: Tensor, state: LayerState, refreshed: int) -> Tensor:
        """Bring q, k, v, scores, attention and pre_proj up to date; return the tokens that passed the gate."""
        vit, width = self.vit, self.vit.shape.width
        num_tokens, queries = vit.shape.num_tokens, self._num_queries(layer)
        weights = vit.layer(layer)
        normed_SND = vit.norm1(layer, h_SND)
        gated_SK = self._gate(normed_SND, state.qkv_in_BND, refreshed)
        inputs_SKD = take_tokens(normed_SND, gated_SK)
        first = 3 * width - state.qkv_BNC.shape[2]  # no q in the last layer of a tower with CLS
        projected_SKC = F.linear(inputs_SKD, weights.qkv_weight[first:], weights.qkv_bias[first:])
        old_v_ShKd = vit.split_heads(take_tokens(state.qkv_BNC, gated_SK), gated_SK)[-1]
        *new_q, new_k_ShKd, new_v_ShKd = vit.split_heads(projected_SKC, gated_SK)
        _put_tokens(state.qkv_BNC, gated_SK, projected_SKC)
        *q, k_ShNd, v_ShNd = vit.split_heads(state.qkv_BNC)

        scale = vit.shape.head_dim**-0.5
        whole_is_cheaper = 2 * gated_SK.shape[1] >= num_tokens
        columns_ShMK = gated_SK[:, None, None].expand(-1, vit.shape.num_heads, queries, -1)
        if first:
            # CLS leads the gated tokens; its row is all there is.
            q_SC = F.linear(inputs_SKD[:, :1], weights.qkv_weight[:width], weights.qkv_bias[:width])
            state.scores_BhMN.copy_((vit.split_heads(q_SC)[0] * scale) @ k_ShNd.mT)
        else:
            q_ShNd = q[0] * scale
            if whole_is_cheaper:
                state.scores_BhMN.copy_(q_ShNd @ k_ShNd.mT)
            else:
                rows_ShKN = gated_SK[:, None, :, None].expand(-1, vit.shape.num_heads, -1, num_tokens)
                state.scores_BhMN.scatter_(2, rows_ShKN, (new_q[0] * scale) @ k_ShNd.mT)
                state.scores_BhMN.scatter_(3, columns_ShMK, q_ShNd @ new_k_ShKd.mT)
        new_columns_ShMK = state.scores_BhMN.softmax(-1).gather(3, columns_ShMK)
        old_columns_ShMK = state.attention_BhMN.gather(3, columns_ShMK)
        state.attention_BhMN.scatter_(3, columns_ShMK, new_columns_ShMK)
        if whole_is_cheaper:
            state.pre_proj_BhMd.copy_(state.attention_BhMN @ v_ShNd)
        else:
            state.pre_proj_BhMd += new_columns_ShMK @ (new_v_ShKd - old_v_ShKd)
            state.pre_proj_BhMd += (new_columns_ShMK - old_columns_ShMK) @ old_v_ShKd
        return gated_SK

    def _update_rest(self, layer: int, h_SMD: Tensor, state: LayerState, refreshed: int) -> Tensor:
        """Return the layer's output: projection and MLP of gated tokens, the last output of the others."""
        weights = self.vit.layer(layer)
        pre_proj_SMD = state.pre_proj_BhMd.transpose(1, 2).flatten(2)
        gated_SK = self._gate(pre_proj_SMD, state.projection_in_BMD, refreshed)
        projected_SKD = F.linear(take_tokens(pre_proj_SMD, gated_SK), weights.out_weight, weights.out_bias)
        _put_tokens(state.projection_out_BMD, gated_SK, projected_SKD)
        h_SMD = h_SMD + state.projection_out_BMD

        normed_SMD = self.vit.norm2(layer, h_SMD)
        gated_SK = self._gate(normed_SMD, state.mlp_in_BMD, refreshed)
        _put_tokens(state.mlp_out_BMD, gated_SK, self.vit.feed_forward(layer, take_tokens(normed_SMD, gated_SK)))
        return h_SMD.add_(state.mlp_out_BMD)

    def _gate(self, input_SMD: Tensor, last_SMD: Tensor, refreshed: int) -> Tensor:
        """Return [S, K]: the prefix and the patches whose input moved furthest; their inputs are noted as last."""
        prefix = self.vit.shape.num_prefix
        candidates = input_SMD.shape[1] - prefix
        if refreshed >= candidates:
            everyone_M = torch.arange(input_SMD.shape[1], device=input_SMD.device)
            last_SMD.copy_(input_SMD)
            return everyone_M.expand(len(input_SMD), -1)
        distance_SA = torch.linalg.vector_norm(input_SMD[:, prefix:] - last_SMD[:, prefix:], dim=-1)
        furthest_SK = distance_SA.topk(refreshed, dim=1, sorted=False).indices + prefix
        prefix_S = torch.arange(prefix, device=input_SMD.device).expand(len(input_SMD), -1)
        gated_SK = torch.cat([prefix_S, furthest_SK], dim=1)
        _put_tokens(last_SMD, gated_SK, take_tokens(input_SMD, gated_SK))
        return gated_SK

    def _num_queries(self, layer: int) -> int:
        """M: in the last layer of a tower with CLS nothing but CLS is needed."""
        shape = self.vit.shape
        return shape.num_last_queries if layer == shape.num_layers - 1 else shape.num_tokens

    def _record_layer(self, layer: int, gated: int, rows_S: Tensor, record: Record) -> None:
        num_tokens, queries = self.vit.shape.num_tokens, self._num_queries(layer)
        whole = num_tokens * queries
        updated = 2 * gated * queries
        later_gates = min(gated, queries)
        record.add_work("query", rows_S, later_gates, layer)
        record.add_work("key_value", rows_S, gated, layer)
        record.add_work("scores", rows_S, whole if queries == 1 else min(whole, updated), layer)
        record.add_work("weighted_values", rows_S, min(whole, updated), layer)
        record.add_work("projection", rows_S, later_gates, layer)
        record.add_work("mlp", rows_S, later_gates, layer)


def _only(step: Step, group_S: Tensor) -> Step:
    if bool(group_S.all()):
        return step
    return Step(step.streams_S[group_S], step.rows_S[group_S], step.frames_S3HW[group_S], whole=False)


def _put_tokens(x_BND: Tensor, index_BK: Tensor, values_BKD: Tensor) -> None:
    x_BND.scatter_(1, index_BK[..., None].expand_as(values_BKD), values_BKD)
