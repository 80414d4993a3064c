"""The unit of embedding: up to `streams` segments that advance in lockstep, decoded together.

A segment is a clip, or a piece of a long one; each starts with a dense frame, so pieces are independent, no actor ever
waits for another, and memory is bounded by one batch whatever the length of a video. Batches are composed by content
id (by manifest where clips are embedded as they are made), so two runs over the same clips compute bit-equal results.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any, Literal, Protocol, TypeVar

from dejavu.cluster.ray_map import Row
from dejavu.observability.metrics import first_line
from dejavu.records import Failure, Transcoded
from dejavu.storage.setting import Setting
from dejavu.storage.store import Store, local_copy
from dejavu.video.codec_grid import MotionBinning
from dejavu.video.decode import DecodedFrames, decode, join

STAGE = "embed"
Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
DECODE_LIMIT_S = 600.0
"""For one segment of a transcoded clip, which takes a second or so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """How clips are cut into batches and encoded. Streams and chunks change results only by rounding."""

    streams: int = 8
    """Number of segments that advance in lockstep, 1 or more."""
    segment_frames: int = 512
    """Maximum number of frames per segment; longer clips are cut. Each segment begins with a dense frame."""
    batch_frames: int = 1024
    """Maximum number of frames decoded at once, at least segment_frames; bounds the size of a row sent to an actor."""
    chunk_frames: int = 16
    """Number of frames of each stream that a method gets at once."""
    motion_binning: MotionBinning = "destination"
    """Macroblock that gets a motion vector: the one it predicts (`destination`), or the one that the artifact computes
    from its source (`published`)."""
    precision: Literal["auto"] | Precision = "float32"
    """Precision of the tower; `auto` measures once which makes dense and reuse faster on the machines that embed."""

    def __post_init__(self) -> None:
        for name in ("streams", "segment_frames", "chunk_frames"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"embed.{name}: got {getattr(self, name)}, expected 1 or more; leave it at its default"
                )
        if self.batch_frames < self.segment_frames:
            raise ValueError(
                f"embed.batch_frames: got {self.batch_frames}, expected at least segment_frames "
                f"({self.segment_frames}); raise it or cut shorter segments"
            )

    def shaping(self) -> dict[str, Any]:
        """Return what belongs to a result's identity.

        Raises:
            ValueError: The precision is still to be chosen.
        """
        if self.precision == "auto":
            raise ValueError("embed.precision: got auto, expected what it came to; see choose_precision")
        shaping = {"segment_frames": self.segment_frames, "motion_binning": self.motion_binning}
        # Results of float32 keep the names that they had before there was a choice.
        return shaping if self.precision == "float32" else {**shaping, "precision": self.precision}


@dataclass(frozen=True, slots=True)
class EmbedContext:
    """What an embedding is made with and where it goes: small enough to travel to any worker."""

    backbone: str
    """As `load_backbone` takes it."""
    store: Store
    config: EmbedConfig
    image_px: int | None = None
    """Side of the frames that the tower sees; its image processor's unless given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A clip, or a piece of a long one."""

    clip_id: str
    content_id: str
    path: str
    start: int
    num_frames: int

    @property
    def unit_id(self) -> str:
        """Names this piece of content under any setting."""
        return f"{self.content_id}:{self.start}+{self.num_frames}"


@dataclass(frozen=True, slots=True)
class Batch:
    """Segments that are decoded together, and the settings that lack them."""

    segments: tuple[Segment, ...]
    settings: tuple[Setting, ...]

    def to_row(self) -> Row:
        """Return plain values for a worker."""
        return {
            "segments": json.dumps([asdict(segment) for segment in self.segments]),
            "settings": json.dumps([setting.to_row() for setting in self.settings]),
        }

    @staticmethod
    def from_row(row: Row) -> Batch:
        """Read what `to_row` wrote."""
        return Batch(segments_of(row), tuple(Setting.from_row(setting) for setting in json.loads(str(row["settings"]))))


def segments_of(row: Row) -> tuple[Segment, ...]:
    """Read the segments alone of what `Batch.to_row` wrote."""
    return tuple(Segment(**segment) for segment in json.loads(str(row["segments"])))


def cut(clips: Iterable[Transcoded], segment_frames: int) -> list[Segment]:
    """Cut clips into segments, equal contents once, in the order of their content ids."""
    by_content = {clip.content_id: clip for clip in clips}
    return [
        Segment(
            clip_id=clip.clip_id,
            content_id=content_id,
            path=clip.path,
            start=start,
            num_frames=min(segment_frames, clip.num_frames - start),
        )
        for content_id, clip in sorted(by_content.items())
        for start in range(0, clip.num_frames, segment_frames)
    ]


def plan(clips: Iterable[Transcoded], settings: Sequence[Setting], embedding: EmbedContext) -> list[Batch]:
    """Group what is not embedded yet into batches; segments that lack the same settings go together.

    One setting's index is in memory at a time: of the others, a byte for each segment is left.
    """
    config = embedding.config
    segments = cut(clips, config.segment_frames)
    pending = [_lacks(segments, embedding.store.done(setting.setting_id)) for setting in settings]
    lacking: dict[tuple[int, ...], list[Segment]] = defaultdict(list)
    for segment, lacks in zip(segments, zip(*pending, strict=True), strict=False):
        if any(lacks):
            lacking[lacks].append(segment)
    return [
        Batch(tuple(group), tuple(compress(settings, lacks)))
        for lacks, members in lacking.items()
        for group in fill(members, config.streams, config.batch_frames)
    ]


def divide_settings(batches: Sequence[Batch], wanted: int) -> list[Batch]:
    """Divide the settings of batches until there are about so many: few clips under many settings keep actors busy too.

    Each part is decoded by itself. What goes through a method together stays together.
    """
    parts = -(-wanted // max(1, len(batches)))
    return [
        Batch(batch.segments, batch.settings[part::parts])
        for batch in batches
        for part in range(min(parts, len(batch.settings)))
    ]


def _lacks(segments: Sequence[Segment], done: Mapping[str, object]) -> bytes:
    return bytes(segment.unit_id not in done for segment in segments)


class _HasFrames(Protocol):
    @property
    def num_frames(self) -> int: ...


_Framed = TypeVar("_Framed", bound=_HasFrames)


def fill(members: Iterable[_Framed], most: int, batch_frames: int) -> Iterator[list[_Framed]]:
    """Yield groups of at most so many segments or clips, and of no more frames where several share one."""
    group: list[_Framed] = []
    frames = 0
    for member in members:
        if group and (len(group) == most or frames + member.num_frames > batch_frames):
            yield group
            group, frames = [], 0
        group.append(member)
        frames += member.num_frames
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """The segments that could be decoded, and the failures of the others."""

    segments: tuple[Segment, ...]
    frames: tuple[DecodedFrames, ...]
    failures: tuple[Failure, ...]


def decode_batch(segments: Iterable[Segment], embedding: EmbedContext) -> DecodedBatch:
    """Decode segments, frames and codec grids in one pass each."""
    whole, decoded, failures = [], [], []
    for segment in segments:
        try:
            frames = decode_segment(segment, embedding)
        except Exception as error:  # any file may be broken in any way; the run goes on and the table says so
            failures.append(Failure(clip_id=segment.clip_id, stage=STAGE, reason=first_line(error)))
            continue
        whole.append(segment)
        decoded.append(frames)
    return DecodedBatch(tuple(whole), tuple(decoded), tuple(failures))


def decode_segment(segment: Segment, embedding: EmbedContext) -> DecodedFrames:
    """Decode one segment, frames and codec grids in one pass.

    Raises:
        ValueError: The file holds fewer frames.
        VideoError: It cannot be read.
    """
    with local_copy(embedding.store.root / segment.path) as path:
        parts = decode(
            path, start=segment.start, count=segment.num_frames, motion_binning=embedding.config.motion_binning
        )
        pieces = list(_within(DECODE_LIMIT_S, parts, segment))
    num_frames = sum(len(piece.seconds_F) for piece in pieces)
    if num_frames != segment.num_frames:
        raise ValueError(
            f"{segment.clip_id}: got {num_frames} frames, expected {segment.num_frames}; "
            "remove its transcoded file and run again"
        )
    return join(pieces)


def _within(limit_s: float, pieces: Iterable[DecodedFrames], segment: Segment) -> Iterator[DecodedFrames]:
    start = time.monotonic()
    for piece in pieces:
        yield piece
        if time.monotonic() - start > limit_s:
            raise ValueError(
                f"{segment.clip_id}: got more than {limit_s:g} s of decoding, expected {segment.num_frames} frames by "
                "then; remove its transcoded file and run again"
            )
