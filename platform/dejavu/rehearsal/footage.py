"""Videos and questions of a rehearsal: shapes on a moving background, in NExT-QA's layout and formats.

    <root>/videos/<split>/<video id>.mp4
    <root>/annotations/     what `next_qa.load_next_qa` reads

Lengths and sizes are those of real clips, so that transcoding and reading take what they take; what is asked about
them cannot be answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dejavu.datasets.next_qa_write import Known, write_next_qa
from dejavu.records import Split
from dejavu.synthetic.world import COLOURS, KINDS, SHAPES, Sprite, draw, texture
from dejavu.video.write import write_video

KINDS_OF_QUESTION = ("CW", "CH", "TC", "TN", "TP")
ASKED = "what does the {} do after it leaves the {} near the end of the clip"
WORDS = tuple(dict.fromkeys([*ASKED.replace("{}", "").split(), "a", "an", *COLOURS, *SHAPES]))
"""All that questions and answers are made of."""
NUM_ANSWERS = 5
NUM_SPRITES = 6
FASTEST_PX = 6
"""Of a sprite, in a frame."""
NOISE = 5.0
"""Of a pixel, in grey levels."""
CRF = 23


@dataclass(frozen=True, kw_only=True, slots=True)
class FootageConfig:
    """Number, length and format of the clips that are drawn; the lengths in a split are evenly spaced."""

    num_train: int = 3
    """Number of training clips."""
    num_val: int = 2
    """Number of validation clips."""
    num_test: int = 3
    """Number of test clips."""
    min_s: float = 4
    """Minimum length in seconds."""
    max_s: float = 10
    """Maximum length in seconds. NExT-QA's clips have 10 to 180 s, 40 s on average; a frame costs the same."""
    width_px: int = 640
    """Width in pixels, an even number of 64 or more."""
    height_px: int = 360
    """Height in pixels, an even number of 64 or more."""
    fps: int = 30
    """Frames per second of the drawn files."""
    questions_per_clip: int = 6
    """Number of questions per clip; the default is NExT-GQA's average."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_val, self.num_test, self.questions_per_clip, self.fps) < 1:
            raise ValueError(f"clips: got {self}, expected counts of 1 or more of each split; raise them")
        if not 0 < self.min_s <= self.max_s:
            raise ValueError(
                f"clips' lengths: got {self.min_s:g}..{self.max_s:g} s, expected more than 0, the shorter first; "
                "correct them"
            )
        if min(self.width_px, self.height_px) < 64 or self.width_px % 2 or self.height_px % 2:
            raise ValueError(
                f"clips' size: got {self.width_px}x{self.height_px} px, expected even sides of 64 or more; correct them"
            )

    def lengths(self, split: Split) -> list[int]:
        """Return the frames of each clip of a split."""
        count = {"train": self.num_train, "val": self.num_val, "test": self.num_test}[split]
        spread = np.linspace(self.min_s, self.max_s, count) if count > 1 else [(self.min_s + self.max_s) / 2]
        return [max(1, round(seconds * self.fps)) for seconds in spread]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A video file, and what its annotations say of it."""

    path: Path
    num_frames: int
    width_px: int
    height_px: int
    fps: float

    @property
    def duration_s(self) -> float:
        """As NExT-GQA counts it."""
        return self.num_frames / self.fps


def draw_footage(root: Path, config: FootageConfig) -> None:
    """Draw all clips of all splits, and write the annotations."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    clips: dict[Split, dict[str, Clip]] = {split: {} for split in splits}
    for place, split in enumerate(splits, 1):
        for index, num_frames in enumerate(config.lengths(split)):
            name = f"{place}{index:05d}"
            clips[split][name] = draw_clip(root / "videos" / split / f"{name}.mp4", num_frames, config)
    annotate(root, clips, config.questions_per_clip, config.seed)


def draw_clip(path: Path, num_frames: int, config: FootageConfig) -> Clip:
    """Draw one clip; its name and the seed decide what is seen."""
    rng = np.random.default_rng([config.seed, int.from_bytes(path.stem.encode(), "big")])
    write_video(path, _frames(rng, num_frames, config), config.fps, CRF)
    sizes = {"width_px": config.width_px, "height_px": config.height_px, "fps": config.fps}
    return Clip(path=path, num_frames=num_frames, **sizes)


def annotate(root: Path, clips: Mapping[Split, Mapping[str, Clip]], questions_per_clip: int = 6, seed: int = 0) -> None:
    """Write `<root>/annotations` for clips in `<root>/videos`: questions of five answers, and spans, drawn by lot."""
    rng = np.random.default_rng(seed)
    known: dict[Split, dict[str, Known]] = {
        split: {name: _known(rng, clip, questions_per_clip) for name, clip in some.items()}
        for split, some in clips.items()
    }
    all_clips = [(name, clip.path) for some in clips.values() for name, clip in some.items()]
    places = {name: path.relative_to(root / "videos").with_suffix("").as_posix() for name, path in all_clips}
    write_next_qa(root / "annotations", places, known)


def _known(rng: np.random.Generator, clip: Clip, num_questions: int) -> Known:
    questions, spans = [], []
    for _ in range(num_questions):
        asked, other, *kinds = (KINDS[index] for index in rng.choice(len(KINDS), NUM_ANSWERS + 2, replace=False))
        answers = [kind.phrase for kind in kinds]
        kind, answer = str(rng.choice(KINDS_OF_QUESTION)), answers[int(rng.integers(NUM_ANSWERS))]
        questions.append({"type": kind, "text": ASKED.format(asked, other), "answer": answer, "answers": answers})
        spans.append([np.sort(rng.uniform(0, clip.duration_s, 2)).round(1).tolist()])
    return {
        "frame_count": clip.num_frames,
        "width": clip.width_px,
        "height": clip.height_px,
        "fps": clip.fps,
        "duration": clip.duration_s,
        "questions": questions,
        "spans": spans,
    }


def _frames(rng: np.random.Generator, num_frames: int, config: FootageConfig) -> Iterator[NDArray[np.uint8]]:
    """Yield frames [H, W, 3]: a background that pans, shapes that bounce, and a sensor's noise."""
    height, width = config.height_px, config.width_px
    background = texture(rng, height + 64, width + 64)
    noise = rng.normal(0, NOISE, (height + 16, width + 16, 3)).astype(np.float32)
    at = rng.uniform(0, 1, (NUM_SPRITES, 2)) * (width, height)
    speed = rng.uniform(-FASTEST_PX, FASTEST_PX, (NUM_SPRITES, 2))
    kinds = [KINDS[index] for index in rng.choice(len(KINDS), NUM_SPRITES, replace=False)]
    size_px = rng.integers(height // 8, height // 3, NUM_SPRITES)
    for index in range(num_frames):
        pan_x, pan_y = (int(32 * (1 + np.sin(index / period))) for period in (90, 140))
        dx, dy = rng.integers(0, 16, 2)
        sprites = [
            Sprite(kind.shape, COLOURS[kind.colour], int(size), 0, float(x), float(y))
            for kind, size, (x, y) in zip(kinds, size_px, at, strict=True)
        ]
        window = background[pan_y : pan_y + height, pan_x : pan_x + width]
        yield draw(sprites, window, 1.0, noise[dy : dy + height, dx : dx + width]).rgb
        at += speed
        speed = np.where((at < 0) | (at > (width, height)), -speed, speed)
