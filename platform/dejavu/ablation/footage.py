"""Clips decoded once and kept whole: what every fit of an ablation reads, so that a fit pays for its steps alone.

Only for worlds of a few hundred short clips: a frame of the demo is 49 kB. The pipeline streams (stages/windows.py).

Shapes: F frames of a clip or of a window in computing order, T codec steps, P patches a side, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from dejavu.backbones.load import Backbone
from dejavu.datasets.next_qa import load_next_qa
from dejavu.datasets.synthetic import SyntheticConfig, make_world
from dejavu.embedding.encode import encode_batch
from dejavu.embedding.windows import Window
from dejavu.records import Clip, Question, Split, Transcoded
from dejavu.stages.prepare import load_videos
from dejavu.stages.transcode import one_after_the_other, transcode_clips
from dejavu.storage.store import Store, atomic, identity, local_copy
from dejavu.video.codec_grid import MotionBinning
from dejavu.video.decode import DecodedFrames, decode_all
from dejavu.video.mp4 import TranscodeConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.reusevit.codec_net import CODEC_STEPS
from reuse_models.reusevit.frame_order import PATTERN_SPAN, FrameStep

CHUNK_FRAMES = 16
MOTIONS: tuple[MotionBinning, ...] = get_args(MotionBinning)


@dataclass(frozen=True, slots=True)
class Footage:
    """One decoded clip."""

    clip: Transcoded
    rgb_FHWC: NDArray[np.uint8]
    seconds_F: NDArray[np.float64]
    codec: Mapping[MotionBinning, NDArray[np.float32]]
    """[F, 4, P, P] for each way to file motion vectors."""
    dense_FE: NDArray[np.float32]
    """Original's embeddings: teacher and yardstick."""

    def frames(self, motion: MotionBinning) -> DecodedFrames:
        """Return the clip as a decoder would."""
        return DecodedFrames(self.rgb_FHWC, self.codec[motion], self.seconds_F, "", codec_metadata=True)

    def window(self, start: int, steps: Sequence[FrameStep], motion: MotionBinning) -> Window:
        """Cut one training clip that begins at frame `start`."""
        codec_F4PP = self.codec[motion]
        missing = np.zeros((CODEC_STEPS - 1, *codec_F4PP.shape[1:]), np.float32)
        padded_F4PP = np.concatenate([missing, codec_F4PP])
        at = [start + step.frame for step in steps]
        history = np.stack([padded_F4PP[place : place + CODEC_STEPS] for place in at])
        return Window(self.rgb_FHWC[at], history.transpose(0, 2, 1, 3, 4), self.dense_FE[at])


@dataclass(frozen=True, slots=True)
class World:
    """Decoded clips by split, and what is asked about those of validation."""

    train: tuple[Footage, ...]
    validation: tuple[Footage, ...]
    questions: tuple[Question, ...]
    """None of a folder of videos: there, the dense tower is all that is compared with."""

    @property
    def data_id(self) -> str:
        """Names the clips by content."""
        return identity({"clips": [clip.clip.content_id for clip in (*self.train, *self.validation)]})


def open_world(folder: Path, config: SyntheticConfig, backbone: Backbone) -> World:
    """Draw, transcode and decode what `folder` lacks; return it decoded."""
    root = make_world(folder / "world", config)
    dataset = load_next_qa(root / "videos", root / "annotations", splits=("train", "val"))
    store = Store.open(folder / "store")
    transcoded = _transcoded(dataset.clips, store, backbone, TranscodeConfig())
    questions = tuple(question for question in dataset.questions if question.split == "val")
    return _decoded(transcoded, store, folder / "footage", backbone, questions)


def open_videos(folder: Path, videos: Path, fps: float, backbone: Backbone) -> World:
    """Transcode and decode what `folder` lacks of the training and validation clips of a folder of videos.

    Videos are divided as `jobs/pipeline.py folder` divides them, and looked at `fps` times a second.

    Raises:
        ValueError: A split is empty, or a video does not transcode.
    """
    store, config = Store.open(folder / "store"), TranscodeConfig(fps=fps)
    clips = [clip for clip in load_videos(videos, None, "auto").clips if clip.split != "test"]
    world = _decoded(_transcoded(clips, store, backbone, config), store, folder / "footage", backbone, ())
    if not world.train or not world.validation:
        raise ValueError(
            f"--videos: got {videos} with {len(world.train)} training clips of {PATTERN_SPAN} frames or more and "
            f"{len(world.validation)} validation clips, expected some of both; take more videos"
        )
    return world


def _decoded(
    clips: Sequence[tuple[Split, Transcoded]],
    store: Store,
    folder: Path,
    backbone: Backbone,
    questions: tuple[Question, ...],
) -> World:
    """Decode clips; those of training only if a window fits in."""
    by_split: dict[Split, list[Footage]] = {"train": [], "val": []}
    for split, clip in sorted(clips, key=lambda one: one[1].clip_id):
        if split == "val" or clip.num_frames >= PATTERN_SPAN:
            by_split[split].append(_footage(clip, store, folder, backbone))
    return World(tuple(by_split["train"]), tuple(by_split["val"]), questions)


def windows(clips: Sequence[Footage], steps: Sequence[FrameStep], motion: MotionBinning, seed: int) -> Iterator[Window]:
    """Draw training clips without end: every video once, anywhere in it, then all again in another order."""
    rng = np.random.default_rng(seed)
    while True:
        for index in rng.permutation(len(clips)):
            clip = clips[index]
            yield clip.window(int(rng.integers(0, clip.clip.num_frames - PATTERN_SPAN + 1)), steps, motion)


def _transcoded(
    clips: Sequence[Clip], store: Store, backbone: Backbone, config: TranscodeConfig
) -> list[tuple[Split, Transcoded]]:
    px, view = backbone.frame_px, backbone.preprocess.view
    made = transcode_clips(clips, store, config, px, view=view, run=one_after_the_other)
    for failure in made.failures:
        raise ValueError(f"clip {failure.clip_id}: got {failure.reason}, expected a video; mend or remove it")
    return [(clip.split, made.clips[clip.clip_id]) for clip in clips]


def _footage(clip: Transcoded, store: Store, folder: Path, backbone: Backbone) -> Footage:
    key = identity({"content": clip.content_id, "backbone": backbone.identity, "motions": MOTIONS})
    path = folder / f"{key}.npz"
    if not path.is_file():
        with local_copy(store.root / clip.path) as video:
            decoded = {motion: decode_all(video, motion_binning=motion) for motion in MOTIONS}
        first = decoded[MOTIONS[0]]
        method = OriginalConfig().build(backbone.vit)
        dense_FE = encode_batch(method, backbone, [first], CHUNK_FRAMES)[0].embeddings_FE
        arrays: dict[str, NDArray[Any]] = {
            "rgb": first.rgb_FHWC,
            "seconds": first.seconds_F,
            "dense": dense_FE,
            **{f"codec {motion}": one.codec_F4PP for motion, one in decoded.items()},
        }
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    with np.load(path) as arrays:
        codec = {motion: arrays[f"codec {motion}"] for motion in MOTIONS}
        return Footage(clip, arrays["rgb"], arrays["seconds"], codec, arrays["dense"])
