"""What flows between the stages: ids and scalars; arrays lie in the store or stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One source video."""

    clip_id: str
    """Unique within a dataset; never a path."""
    path: str
    """Where the source lies."""
    split: Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One multiple-choice question about a clip, with the spans that show its answer."""

    question_id: str
    """Unique within a dataset: `<clip_id>_<qid>`."""
    clip_id: str
    split: Split
    kind: str
    """NExT-QA's type: CW, CH, TN, TP, TC."""
    text: str
    answers: tuple[str, ...]
    correct: int
    """Index into answers."""
    spans_s: tuple[tuple[float, float], ...]
    """Annotated (start, end) in seconds; any of them counts."""
    duration_s: float
    """The annotation's own duration of the clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Clips and questions of one source, and what an annotation named but the folder lacks."""

    name: str
    clips: tuple[Clip, ...]
    questions: tuple[Question, ...]
    """Empty where there are no answers: the score is then fidelity to Original."""
    missing: tuple[str, ...] = ()
    """Clip ids that annotations name and the folder lacks: left out for all methods alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcoded:
    """What transcoding made of one clip. Written beside the mp4 as JSON."""

    clip_id: str
    content_id: str
    """SHA-256 of the source file's bytes and the transcode config."""
    path: str
    """The mp4, relative to the store."""
    num_frames: int
    frame_px: int
    fps: float
    duration_s: float
    codec_metadata: bool
    """False where the declared fallback stands in for macroblock class, motion and quantiser."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One clip that a stage could not do."""

    clip_id: str
    stage: str
    reason: str
    """First line of the error."""
