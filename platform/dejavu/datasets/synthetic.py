"""The synthetic videos, drawn once and kept, with annotations in NExT-GQA's own file formats.

    <root>/videos/<map folder>/<video id>.mp4
    <root>/annotations/            as `next_qa_write` writes them
    <root>/truth/<video id>.json   one per video, written after its mp4: what the annotations are joined from

`next_qa.load_next_qa` reads the first two.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dejavu.datasets.next_qa_write import write_next_qa
from dejavu.records import Split
from dejavu.storage.store import write_json
from dejavu.storage.store_path import StorePath, is_file, side_by_side
from dejavu.synthetic.play import draw_frames, seen_spans
from dejavu.synthetic.script import Script, Target, write_script, wrong_answers
from dejavu.video.write import write_video

WORLD_VERSION = 2
"""Goes up when the same seed draws something else, so that kept videos are drawn again."""

SPLIT_CODES: dict[Split, int] = {"train": 1, "val": 2, "test": 3}
"""First digit of a video's id, and part of its seed."""

MIN_SEEN_S = 0.9
"""Every target is really seen for so long, or the clip is invented again."""

MAX_ATTEMPTS = 200
CRF = 22


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """Number and length of the videos that are drawn (recipes demo and tiny)."""

    num_train: int = 120
    """Number of training videos."""
    num_val: int = 40
    """Number of validation videos."""
    num_test: int = 60
    """Number of test videos."""
    seed: int = 0
    """Random seed of the drawn world."""
    min_duration_s: int = 12
    """Minimum length of a video in seconds, 4 or more."""
    max_duration_s: int = 24
    """Maximum length of a video in seconds."""
    questions_per_video: int = 6
    """Number of questions per video, 1..12."""

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_val, self.num_test) < 0:
            raise ValueError(
                f"synthetic videos: got {self.num_train}/{self.num_val}/{self.num_test}, expected no negative number; "
                "give the number of train, validation and test videos"
            )
        if not 4 <= self.min_duration_s <= self.max_duration_s:
            raise ValueError(
                f"synthetic durations: got {self.min_duration_s}..{self.max_duration_s} s, expected 4 s or more, the "
                "shorter first; choose others"
            )
        if not 1 <= self.questions_per_video <= 12:
            raise ValueError(
                f"questions per video: got {self.questions_per_video}, expected 1..12; a clip has no room for more"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSpec:
    """All that decides one video. Small, so that it travels to any worker."""

    video_id: str
    folder: str
    split: Split
    seed: tuple[int, ...]
    duration_s: tuple[int, int]
    num_questions: int

    @property
    def content_hash(self) -> str:
        """Names what this spec draws."""
        text = json.dumps([asdict(self), WORLD_VERSION, CRF], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def list_videos(config: SyntheticConfig) -> tuple[VideoSpec, ...]:
    """List the videos of a world: train, then validation, then test."""
    counts: dict[Split, int] = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    return tuple(
        VideoSpec(
            video_id=f"{SPLIT_CODES[split]}{index:07d}",
            folder=f"{SPLIT_CODES[split]}{index // 20:03d}",
            split=split,
            seed=(config.seed, SPLIT_CODES[split], index),
            duration_s=(config.min_duration_s, config.max_duration_s),
            num_questions=config.questions_per_video,
        )
        for split, count in counts.items()
        for index in range(count)
    )


def invent(spec: VideoSpec) -> tuple[Script, list[list[tuple[float, float]]]]:
    """Write scripts until every target of one can really be seen; return it, and each target's spans in seconds.

    Raises:
        ValueError: No script will do.
    """
    for attempt in range(MAX_ATTEMPTS):
        script = write_script(np.random.default_rng([*spec.seed, attempt]), spec.num_questions, spec.duration_s)
        spans = seen_spans(script)
        if all(sum(end - start for start, end in seen) >= MIN_SEEN_S for seen in spans):
            return script, spans
    raise ValueError(
        f"synthetic video {spec.video_id}: got {MAX_ATTEMPTS} scripts with a hidden answer, expected one without; "
        "ask fewer questions per video or allow longer ones"
    )


def draw_video(spec: VideoSpec, path: StorePath) -> dict[str, Any]:
    """Draw and encode one video; return its truth: sizes, spans and questions, as plain JSON types."""
    script, spans = invent(spec)
    write_video(path, (drawing.rgb for drawing in draw_frames(script)), script.fps, CRF)
    rng = np.random.default_rng([*spec.seed, MAX_ATTEMPTS])
    return {
        "hash": spec.content_hash,
        "frame_count": script.num_frames,
        "width": script.width_px,
        "height": script.height_px,
        "fps": script.fps,
        "duration": script.duration_s,
        "questions": [_question(rng, script, index) for index in range(len(script.targets))],
        "spans": [[[round(start, 1), round(end, 1)] for start, end in seen] for seen in spans],
    }


def make_one(spec: VideoSpec, root: StorePath) -> bool:
    """Draw one video and note its truth, and return True; False where both were there. A kill at any moment is safe."""
    if is_made(spec, root):
        return False
    write_json(_note_path(root, spec), draw_video(spec, video_path(root, spec)))
    return True


def is_made(spec: VideoSpec, root: StorePath) -> bool:
    """Whether a video and its truth are there, drawn from this very spec."""
    note = _note_path(root, spec)
    if not is_file(note) or not is_file(video_path(root, spec)):
        return False
    made: bool = json.loads(note.read_text())["hash"] == spec.content_hash
    return made


def _note_path(root: StorePath, spec: VideoSpec) -> StorePath:
    return root / "truth" / f"{spec.video_id}.json"


def video_path(root: StorePath, spec: VideoSpec) -> StorePath:
    """Where a video lies."""
    return root / "videos" / spec.folder / f"{spec.video_id}.mp4"


def make_world(root: Path, config: SyntheticConfig) -> Path:
    """Draw what is not there yet, and write the annotations; return root, a folder for this config alone."""
    for spec in list_videos(config):
        make_one(spec, root)
    write_annotations(root, config)
    return root


def write_annotations(root: StorePath, config: SyntheticConfig) -> None:
    """Join the truth of all videos into NExT-GQA's files. Every video must have been made."""
    folder = root / "annotations"
    specs = list_videos(config)
    notes = side_by_side(root, lambda spec: _note_path(root, spec).read_text(), specs)
    truth = {spec.video_id: json.loads(note) for spec, note in zip(specs, notes, strict=True)}
    places = {spec.video_id: f"{spec.folder}/{spec.video_id}" for spec in specs}
    known: dict[Split, dict[str, Any]] = {
        split: {spec.video_id: truth[spec.video_id] for spec in specs if spec.split == split} for split in SPLIT_CODES
    }
    write_next_qa(folder, places, known)


def _question(rng: np.random.Generator, script: Script, index: int) -> dict[str, Any]:
    """Ask for one target in words that are true of the clip."""
    target = script.targets[index]
    kind, text = _ask(rng, script, target)
    answers = [wrong.phrase for wrong in wrong_answers(rng, script, target)]
    answers.insert(int(rng.integers(0, len(answers) + 1)), target.kind.phrase)
    return {"type": kind, "text": text, "answer": target.kind.phrase, "answers": answers}


def _ask(rng: np.random.Generator, script: Script, target: Target) -> tuple[str, str]:
    """Return NExT-GQA's type and the question."""
    if target.how == "changes":
        return "CH", f"how does the {target.other} look after it changes its colour"
    if target.how == "hides":
        return "CW", f"why can the {target.other} not be seen well for a moment"
    others = [other for other in script.targets if other.how == "appears" and other != target]
    before = [other for other in others if other.end_s <= target.start_s]
    after = [other for other in others if other.start_s >= target.end_s]
    choice = rng.integers(3)
    if choice == 0 and before:
        return "TN", f"what appears after the {max(before, key=lambda other: other.end_s).kind} leaves"
    if choice == 1 and after:
        return "TP", f"what can be seen before the {min(after, key=lambda other: other.start_s).kind} appears"
    middle_s = (target.start_s + target.end_s) / 2
    third = ("beginning", "middle", "end")[min(int(3 * middle_s / script.duration_s), 2)]
    return "TC", f"what comes and goes {'in' if third == 'middle' else 'at'} the {third} of the clip"
