"""What a reader does: a task of Ray Data that decodes a batch.

In a module of its own, since to import torch, which encoders need, would be most of a reader's start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np

from dejavu.cluster.ray_map import Row
from dejavu.embedding.batch import STAGE, DecodedBatch, EmbedContext, Segment, segments_of
from dejavu.observability.metrics import Step, metered
from dejavu.storage.setting import Setting

Decode = Callable[[Sequence[Segment], EmbedContext], DecodedBatch]


class DecodeRow:
    """A row of ids becomes a row of frames: [F, H, W, 3] of all segments one after the other."""

    def __init__(self, embedding: EmbedContext, decode: Decode) -> None:
        self.embedding, self.decode = embedding, decode

    def __call__(self, row: Row) -> Row:
        segments = segments_of(row)
        with metered(step_on("decode", segments)) as done:
            decoded = self.decode(segments, self.embedding)
            done.num_frames = sum(segment.num_frames for segment in decoded.segments)
        empty = np.zeros((0, 1, 1, 3), np.uint8), np.zeros((0, 4, 1, 1), np.float32)
        return {
            "segments": json.dumps([asdict(segment) for segment in decoded.segments]),
            "settings": row["settings"],
            "clip_ids": json.dumps([segment.clip_id for segment in segments]),
            "failures": json.dumps([asdict(failure) for failure in decoded.failures]),
            "rgb": np.concatenate([f.rgb_FHWC for f in decoded.frames]) if decoded.frames else empty[0],
            "codec": np.concatenate([f.codec_F4PP for f in decoded.frames]) if decoded.frames else empty[1],
            "seconds": np.concatenate([f.seconds_F for f in decoded.frames]) if decoded.frames else np.zeros(0),
        }


def step_on(step: Literal["decode", "encode"], segments: Sequence[Segment], setting: Setting | None = None) -> Step:
    """Name a step on these segments, for `metered`."""
    clip_ids = [segment.clip_id for segment in segments]
    names = {"method": setting.method, "setting_id": setting.setting_id} if setting else {}
    return Step(stage=STAGE, step=step, clip_ids=clip_ids, **names)
