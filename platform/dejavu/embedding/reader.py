"""What a reader does: a task of Ray Data that decodes batches.

In a module of its own, since to import torch, which encoders need, would be most of a reader's start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np

from dejavu.cluster.ray_map import Row
from dejavu.embedding.batch import (
    STAGE,
    Batch,
    DecodedBatch,
    EmbedContext,
    Segment,
    cut,
    decode_batch,
    fill,
    segments_of,
)
from dejavu.observability.metrics import Step, metered
from dejavu.records import Transcoded
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


class DecodeMade:
    """A row of clips is transcoded, and as many as advance together become rows of frames."""

    def __init__(
        self, setting: Setting, embedding: EmbedContext, wanted: frozenset[str], make: Callable[[Row], Row]
    ) -> None:
        self.setting, self.config, self.wanted, self.make = setting, embedding.config, wanted, make
        self.decode = DecodeRow(embedding, decode_batch)

    def __call__(self, row: Row) -> Iterator[Row]:
        """Yield batch after batch, with the first one what the kernel returned for each clip, in `made`."""
        made = [self.make(one) for one in json.loads(str(row["rows"]))]
        records = [Transcoded(**json.loads(one["record"])) for one in made if one["record"]]
        segments = cut((one for one in records if one.clip_id in self.wanted), self.config.segment_frames)
        for group in list(fill(segments, self.config.streams, self.config.batch_frames)) or [[]]:
            yield {**self.decode(Batch(tuple(group), (self.setting,)).to_row()), "made": json.dumps(made)}
            made = []


def step_on(
    step: Literal["decode", "encode"], segments: Sequence[Segment], setting: Setting | None = None, stage: str = STAGE
) -> Step:
    """Name a step on these segments, for `metered`."""
    clip_ids = [segment.clip_id for segment in segments]
    names = {"method": setting.method, "setting_id": setting.setting_id} if setting else {}
    return Step(stage=stage, step=step, clip_ids=clip_ids, **names)
