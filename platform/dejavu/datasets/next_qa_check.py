"""What a NExT-QA download holds and lacks, found without decoding anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dejavu.datasets.next_qa import ID_MAP, load_frame_times, load_next_qa, load_questions
from dejavu.records import Split

_VIDEO_FOLDERS = ("videos", "NExTVideo", "nextqa_videos", "video")
_ANNOTATION_FOLDERS = ("annotations", "nextgqa", "datasets/nextgqa", ".")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCheck:
    """What one split names, and what of it is there."""

    split: Split
    num_questions: int
    num_without_span: int
    """Questions that do not count, since nothing is annotated for them."""
    num_videos: int
    missing: tuple[str, ...]
    """Videos that are not there: their questions are left out for all methods alike."""
    empty: tuple[str, ...]
    """Videos of zero bytes: each would be a failed clip."""
    without_frame_times: tuple[str, ...]
    """Videos that frame2time lacks: no post-hoc span can be made for them."""
    duration_s: float
    """Of the videos that are there and not empty, as annotated."""
    num_bytes: int
    """Of the same, on disk."""

    @property
    def num_usable(self) -> int:
        """Videos that can be embedded, as far as sizes tell."""
        return self.num_videos - len(self.missing) - len(self.empty)


def find_layout(root: Path, videos: Path | None, annotations: Path | None) -> tuple[Path, Path]:
    """Find the folders of videos and annotations below the one that a download was unpacked into, unless given.

    Raises:
        FileNotFoundError: One of them is not where downloads put it.
    """
    videos = videos or next((root / name for name in _VIDEO_FOLDERS if (root / name).is_dir()), None)
    annotations = annotations or next(
        (
            root / name
            for name in _ANNOTATION_FOLDERS
            for sign in (ID_MAP, "test.csv")
            if (root / name / sign).is_file()
        ),
        None,
    )
    if videos is None:
        raise FileNotFoundError(
            f"videos: got none of {', '.join(_VIDEO_FOLDERS)} in {root}, expected NExT-QA's videos in one of them; "
            "unpack them there, or name their folder with --videos"
        )
    if annotations is None:
        raise FileNotFoundError(
            f"annotations: got no {ID_MAP} or test.csv in {root} or its {', '.join(_ANNOTATION_FOLDERS[:-1])}, "
            "expected NExT-GQA's files in one of them; copy them there, or name their folder with --annotations"
        )
    return videos, annotations


def check_next_qa(videos: Path, annotations: Path, splits: Sequence[Split]) -> tuple[SplitCheck, ...]:
    """Read all annotations of some splits and look at the size of every video that they name.

    Raises:
        FileNotFoundError: A folder or an annotation file is missing.
        ValueError: An annotation file does not read as expected.
    """
    load_next_qa(videos, annotations, splits=splits)  # also what only shows across splits
    return tuple(_check_split(videos, annotations, split) for split in splits)


def _check_split(videos: Path, annotations: Path, split: Split) -> SplitCheck:
    questions = load_questions(annotations, split)
    dataset = load_next_qa(videos, annotations, splits=(split,))
    times = load_frame_times(annotations, split) if split != "train" else None
    durations_s = {question.clip_id: question.duration_s for question in questions}
    sizes = {clip.clip_id: Path(clip.path).stat().st_size for clip in dataset.clips}
    usable = {clip_id: size for clip_id, size in sizes.items() if size}
    return SplitCheck(
        split=split,
        num_questions=len(questions),
        num_without_span=sum(not question.spans_s for question in questions),
        num_videos=len(durations_s),
        missing=dataset.missing,
        empty=tuple(clip_id for clip_id, size in sizes.items() if not size),
        without_frame_times=() if times is None else tuple(clip_id for clip_id in durations_s if clip_id not in times),
        duration_s=sum(durations_s[clip_id] for clip_id in usable),
        num_bytes=sum(usable.values()),
    )
