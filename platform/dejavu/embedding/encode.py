"""Encode decoded segments under one method, and lay what comes of it out as a table.

Shapes: F frames of one segment, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.embedding.batch import EmbedContext, Segment
from dejavu.video.decode import DecodedFrames
from reuse_models.flops import flops_per_frame
from reuse_models.method import Chunk, Method, reuse_rate


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """One segment under one setting."""

    embeddings_FE: NDArray[np.float32]
    reuse_rate_F: NDArray[np.float32]
    flops_F: NDArray[np.float64]


@torch.inference_mode()
def encode_batch(
    method: Method, backbone: Backbone, frames: Sequence[DecodedFrames], chunk_frames: int
) -> list[EncodedSegment]:
    """Run one method over decoded segments in lockstep, `chunk_frames` of each at a time."""
    memory = method.start(len(frames))
    longest = max(len(segment.seconds_F) for segment in frames)
    embeddings: list[list[Tensor]] = [[] for _ in frames]
    rates: list[list[Tensor]] = [[] for _ in frames]
    flops: list[list[Tensor]] = [[] for _ in frames]
    for start in range(0, longest, chunk_frames):
        encoded = method.encode(cut_chunk(backbone, frames, start, chunk_frames), memory)
        memory = encoded.memory
        for index, embedding in enumerate(encoded.embeddings):
            embeddings[index].append(embedding)
            rates[index].append(reuse_rate(encoded.reuse[index]))
            flops[index].append(flops_per_frame(method.vit.shape, encoded.work[index]))
    return [
        EncodedSegment(
            torch.cat(embeddings[index]).float().cpu().numpy(),
            torch.cat(rates[index]).float().cpu().numpy(),
            torch.cat(flops[index]).double().cpu().numpy(),
        )
        for index in range(len(frames))
    ]


def load_backbone_for(embedding: EmbedContext, device: str = "auto") -> Backbone:
    """Load what embeds: the backbone in the embedding's precision and at its size."""
    dtype: torch.dtype = getattr(torch, embedding.config.precision)
    return load_backbone(embedding.backbone, embedding.image_px, device=device, dtype=dtype)


def cut_chunk(backbone: Backbone, frames: Sequence[DecodedFrames], start: int, num_frames: int) -> Chunk:
    """Return frames start .. start + num_frames of each segment, ready for the tower; fewer or none past its end."""
    stop = start + num_frames
    device = next(iter(backbone.vit.parameters())).device
    return Chunk(
        pixels=tuple(backbone.preprocess(segment.rgb_FHWC[start:stop]) for segment in frames),
        codec=tuple(torch.from_numpy(segment.codec_F4PP[start:stop]).to(device) for segment in frames),
        ended=tuple(stop >= len(segment.seconds_F) for segment in frames),
    )


def to_table(
    segments: Sequence[Segment], frames: Sequence[DecodedFrames], encoded: Sequence[EncodedSegment]
) -> pa.Table:
    """Return one row per frame in plain Arrow types, which any reader can load."""
    width = encoded[0].embeddings_FE.shape[1]
    flat = np.concatenate([segment.embeddings_FE for segment in encoded]).astype(np.float16).reshape(-1)
    return pa.table(
        {
            "content_id": pa.array([s.content_id for s in segments for _ in range(s.num_frames)]),
            "clip_id": pa.array([s.clip_id for s in segments for _ in range(s.num_frames)]),
            "frame": pa.array(
                np.concatenate([np.arange(s.start, s.start + s.num_frames, dtype=np.int32) for s in segments])
            ),
            "seconds": pa.array(np.concatenate([segment.seconds_F for segment in frames])),
            "reuse_rate": pa.array(np.concatenate([segment.reuse_rate_F for segment in encoded])),
            "flops": pa.array(np.concatenate([segment.flops_F for segment in encoded])),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), width),
        }
    )
