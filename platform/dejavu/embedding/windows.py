"""Training clips as a stream: decoded when they are wanted, cut into windows of the training pattern, shuffled.

Nothing per frame is ever a file, and no video is held whole: a visit decodes a stretch of a clip in one pass, frames
and codec grid together.

Shapes: C windows of a batch, F frames of a window in computing order, T codec steps, P patches a side, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dejavu.backbones.load import Backbone
from dejavu.embedding.batch import EmbedContext, Segment, decode_segment
from dejavu.embedding.stored import read_embeddings
from dejavu.observability.metrics import first_line
from dejavu.records import Failure, Transcoded
from dejavu.storage.setting import Setting
from reuse_models.reusevit.codec_net import CODEC_STEPS
from reuse_models.reusevit.frame_order import PATTERN_SPAN, PATTERN_STEP, PUBLISHED_PATTERN
from reuse_models.training.fit import Batch
from reuse_models.training.loss import Teacher

STAGE = "train"
WINDOWS_PER_VISIT = 8
"""Bounds what is decoded at once: 97 frames and the codec's history before them."""
SHUFFLED_WINDOWS = 64
"""Windows are drawn from so many, or from an epoch's: those of one clip come apart, and steps are not all of one."""


@dataclass(frozen=True, slots=True)
class Window:
    """One training clip: frames in computing order, codec histories, and the dense tower's embeddings."""

    rgb_FHWC: NDArray[np.uint8]
    codec_F4TPP: NDArray[np.float32]
    teacher_FE: NDArray[np.float32]


@dataclass(slots=True)
class WindowStream:
    """Endless windows of some clips, the same for the same seed."""

    clips: Sequence[Transcoded]
    teacher: Mapping[str, NDArray[np.float32]]
    """Clip id -> [frames, E]."""
    embedding: EmbedContext
    failures: dict[str, Failure] = field(default_factory=dict)
    """Clips that could not be read, each once: they are skipped from then on."""

    def shuffled(self, seed: int | tuple[int, ...]) -> Iterator[Window]:
        """Draw from a store of windows that visits fill.

        Raises:
            ValueError: No clip can be read.
        """
        rng = np.random.default_rng(seed)
        room = min(SHUFFLED_WINDOWS, num_windows(self.clips))
        held: list[Window] = []
        for window in self.windows(seed):
            held.append(window)
            if len(held) >= room:
                yield held.pop(int(rng.integers(len(held))))

    def windows(self, seed: int | tuple[int, ...], per_visit: int = WINDOWS_PER_VISIT) -> Iterator[Window]:
        """Visit clips again and again in a new order, for `per_visit` windows of a clip at most.

        Raises:
            ValueError: No clip can be read.
        """
        rng = np.random.default_rng(seed)
        while True:
            readable = [clip for clip in self.clips if clip.clip_id not in self.failures]
            if not readable:
                raise ValueError(
                    f"training clips: got {len(self.clips)}, none of which can be read, expected one or more; "
                    "see failures.csv"
                )
            for index in rng.permutation(len(readable)):
                clip = readable[index]
                try:
                    yield from self._visit(clip, rng, per_visit)
                except Exception as error:  # any file may be broken in any way; the run goes on and the table says so
                    self.failures[clip.clip_id] = Failure(clip_id=clip.clip_id, stage=STAGE, reason=first_line(error))

    def first(self, count: int, rank: int = 0, world: int = 1) -> list[Window]:
        """Return one window of each clip after the other, an epoch's at most; the same whenever it is asked.

        Of these, worker `rank` of `world` gets every `world`-th.
        """
        return list(islice(self.windows(0, per_visit=1), rank, min(count, num_windows(self.clips)), world))

    def _visit(self, clip: Transcoded, rng: np.random.Generator, per_visit: int) -> Iterator[Window]:
        """Cut a stretch of a clip into windows that overlap by one frame; where it begins is drawn."""
        room = clip.num_frames - PATTERN_SPAN
        num_windows = min(1 + room // PATTERN_STEP, per_visit)
        start = int(rng.integers(0, room - (num_windows - 1) * PATTERN_STEP + 1))
        before = min(start, CODEC_STEPS - 1)
        length = before + (num_windows - 1) * PATTERN_STEP + PATTERN_SPAN
        segment = Segment(
            clip_id=clip.clip_id, content_id=clip.content_id, path=clip.path, start=start - before, num_frames=length
        )
        frames = decode_segment(segment, self.embedding)
        missing = np.zeros((CODEC_STEPS - 1 - before, *frames.codec_F4PP.shape[1:]), np.float32)
        codec_F4PP = np.concatenate([missing, frames.codec_F4PP])
        teacher_FE = self.teacher[clip.clip_id]
        for first in range(0, num_windows * PATTERN_STEP, PATTERN_STEP):
            at = np.array([first + step.frame for step in PUBLISHED_PATTERN])
            history = np.stack([codec_F4PP[place : place + CODEC_STEPS] for place in at])
            yield Window(frames.rgb_FHWC[at + before], history.transpose(0, 2, 1, 3, 4), teacher_FE[at + start])


def open_windows(embedding: EmbedContext, original: Setting, clips: Sequence[Transcoded]) -> WindowStream:
    """Stream the clips whose dense embeddings the store holds."""
    teacher = {name: found.embeddings_FE for name, found in read_embeddings(embedding, original, clips).items()}
    return WindowStream([clip for clip in clips if clip.clip_id in teacher], teacher, embedding)


def to_batch(windows: Sequence[Window], backbone: Backbone) -> Batch:
    """Return tensors on the tower's device."""
    device = backbone.vit.position.device
    num_frames = len(windows[0].rgb_FHWC)
    pixels_X3HW = backbone.preprocess(np.concatenate([window.rgb_FHWC for window in windows]))
    return Batch(
        pixels_CF3HW=pixels_X3HW.unflatten(0, (len(windows), num_frames)),
        codec_CF4TPP=_stack([window.codec_F4TPP for window in windows]).to(device),
        teacher=Teacher(_stack([window.teacher_FE for window in windows]).to(device)),
    )


def in_parts(windows: Sequence[Window], clips_at_once: int, backbone: Backbone) -> Iterator[Batch]:
    """Yield all windows, so many at a time: pixels of the others are not made yet."""
    for start in range(0, len(windows), clips_at_once):
        yield to_batch(windows[start : start + clips_at_once], backbone)


def num_windows(clips: Sequence[Transcoded]) -> int:
    """Return how many windows one visit to each clip gives: an epoch."""
    return sum(min(1 + (clip.num_frames - PATTERN_SPAN) // PATTERN_STEP, WINDOWS_PER_VISIT) for clip in clips)


def _stack(arrays: Sequence[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
