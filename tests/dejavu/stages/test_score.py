"""Scores are of the clips that every setting has, and are read part by part."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from dejavu.embedding import stored as read
from dejavu.embedding.batch import EmbedConfig, EmbedContext, cut
from dejavu.embedding.stored import ClipEmbeddings
from dejavu.records import Question, Transcoded
from dejavu.report.frontier import quality_of
from dejavu.stages.frontier import Evidence, gather_points
from dejavu.stages.score import EvalSet, build_class_eval_set, score_settings
from dejavu.storage.setting import Setting, name_setting
from dejavu.storage.store import Store
from dejavu.tasks import neighbours
from dejavu.tasks.class_readers import ClassReaders, Pooled, Reader
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.tower.known_shapes import KNOWN_SHAPES

NUM_FRAMES, WIDTH = 4, 3
CLIPS = tuple(
    Transcoded(
        clip_id=name, content_id=f"content-{name}", path=f"mp4/{name}.mp4", num_frames=NUM_FRAMES, frame_px=128,
        fps=2.0, duration_s=2.0, codec_metadata=True,
    )
    for name in ("a", "b", "c")
)  # fmt: skip


class Kept(dict[str, ClipEmbeddings]):
    """What one setting has of a part of the clips, watched while anyone holds it."""


@pytest.fixture
def embedding(tmp_path: Path) -> EmbedContext:
    return EmbedContext("embedded", Store(tmp_path), EmbedConfig())


def write(embedding: EmbedContext, setting: Setting, clips: Sequence[Transcoded], turn: float) -> None:
    """Every frame of every clip is turned by so many radians from the first axis."""
    for clip in clips:
        vectors_FE = np.tile(np.array([np.cos(turn), np.sin(turn), 0]), (NUM_FRAMES, 1))
        write_vectors(embedding, setting, clip, vectors_FE, turn)


def write_vectors(
    embedding: EmbedContext, setting: Setting, clip: Transcoded, vectors_FE: NDArray[np.float64], rate: float = 0.0
) -> None:
    num_frames = len(vectors_FE)
    table = pa.table(
        {
            "content_id": [clip.content_id] * num_frames,
            "frame": pa.array(range(num_frames), pa.int32()),
            "seconds": pa.array([frame / 2 for frame in range(num_frames)]),
            "reuse_rate": pa.array(np.full(num_frames, rate, np.float32)),
            "flops": pa.array(np.full(num_frames, 0.0 if rate == 1 else 1e9)),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors_FE.astype(np.float16).ravel()), WIDTH),
        }
    )
    embedding.store.write_embeddings(setting.setting_id, table, [piece.unit_id for piece in cut([clip], 512)])


@pytest.mark.parametrize("part_frames", [1, NUM_FRAMES, 2**16])
def test_a_part_of_one_setting_is_in_memory_beside_original(
    embedding: EmbedContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part_frames: int
) -> None:
    original = name_setting(OriginalConfig(), "tower", {})
    others = [name_setting(FrameSkipConfig(every=every), "tower", {}) for every in (2, 3, 4)]
    write(embedding, original, CLIPS, 0.0)
    for setting, turn in zip(others, (0.1, 0.2, 0.3), strict=True):
        write(embedding, setting, CLIPS if turn != 0.2 else CLIPS[1:], turn)  # clip a failed under one
    seen: list[weakref.ref[Kept]] = []
    held: list[list[int]] = []
    read_part = read._read

    def watched(*arguments: Any) -> Kept:
        held.append([len(kept) for found in seen if (kept := found()) is not None])
        found = Kept(read_part(*arguments))
        seen.append(weakref.ref(found))
        return found

    monkeypatch.setattr(read, "_read", watched)
    monkeypatch.setattr(read, "PART_FRAMES", part_frames)
    questions = tuple(
        Question(
            question_id=f"{clip.clip_id}_1", clip_id=clip.clip_id, split="test", kind="MC", text="?",
            answers=("x", "y"), correct=0, spans_s=(), duration_s=2.0,
        )
        for clip in CLIPS
    )  # fmt: skip
    answers_AE = np.eye(2, WIDTH, dtype=np.float32)
    eval_set = EvalSet(CLIPS, questions, {one.question_id: answers_AE for one in questions})
    scores = score_settings([original, *others], original, eval_set, embedding)

    # While one is read: Original's, and what was read before it.
    assert len(seen) == (4 if part_frames > NUM_FRAMES else 8)
    assert max(map(len, held)) == 2
    assert part_frames > NUM_FRAMES or {size for sizes in held for size in sizes} == {1}
    assert "1 questions about clips that failed are left out" in capsys.readouterr().out
    assert [one.num_clips for one in scores] == [2, 2, 2, 2]
    assert [one.reuse_rate for one in scores] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-6)
    assert [one.cosine_to_dense for one in scores] == pytest.approx(np.cos([0, 0.1, 0.2, 0.3]), abs=1e-3)
    assert [[row.clip_id for row in one.rows] for one in scores] == [["b", "c"]] * 4
    assert [one.accuracy for one in scores] == [1, 1, 1, 1]


def test_every_frame_weighs_the_same(embedding: EmbedContext) -> None:
    original, other = name_setting(OriginalConfig(), "tower", {}), name_setting(FrameSkipConfig(every=2), "tower", {})
    clips = (replace(CLIPS[0], num_frames=1), replace(CLIPS[1], num_frames=3))
    for clip, cosines in zip(clips, ([1.0], [0.5, 0.5, 0.8]), strict=True):
        dense_FE = np.tile(np.eye(WIDTH)[0], (clip.num_frames, 1))
        ours_FE = np.array([[cosine, np.sqrt(1 - cosine**2), 0] for cosine in cosines])
        write_vectors(embedding, original, clip, dense_FE)
        write_vectors(embedding, other, clip, ours_FE, rate=clip.num_frames == 3)
    (found,) = score_settings([other], original, EvalSet(clips, (), {}), embedding)
    assert (found.num_frames, found.cosine_to_dense) == (4, pytest.approx(0.7, abs=1e-3))
    assert (found.computed_share, found.gflops_per_frame) == (0.25, 0.25)


def test_classes_are_told_by_what_was_made_on_dense_embeddings(embedding: EmbedContext) -> None:
    """Original looks along the first axis, as class x does; the other setting along the second, as class y."""
    original, other = name_setting(OriginalConfig(), "tower", {}), name_setting(FrameSkipConfig(every=2), "tower", {})
    write(embedding, original, CLIPS, 0.0)
    write(embedding, other, CLIPS, np.pi / 2)
    questions = tuple(
        Question(
            question_id=f"{clip.clip_id}_class", clip_id=clip.clip_id, split="test", kind="xy"[label], text="",
            answers=("x", "y"), correct=label, spans_s=(), duration_s=0.0,
        )
        for clip, label in zip(CLIPS, (0, 0, 1), strict=True)
    )  # fmt: skip
    axes_CE = np.eye(2, WIDTH, dtype=np.float32)
    readers = ClassReaders(axes_CE, np.zeros(2, np.float32), Pooled(axes_CE, np.arange(2)), axes_CE[::-1])
    scores = score_settings([original, other], original, build_class_eval_set(CLIPS, questions, readers), embedding)
    assert [one.accuracy for one in scores] == pytest.approx([2 / 3, 1 / 3])
    found = {reader: [one.by_reader[reader].accuracy for one in scores] for reader in get_args(Reader)}
    assert found["nearest"] == found["linear_probe"] == pytest.approx([2 / 3, 1 / 3])
    assert found["zero_shot"] == pytest.approx([1 / 3, 2 / 3])  # its names are the wrong way round
    assert [row.correct for row in scores[0].rows] == [True, True, False]
    points = gather_points(Evidence(scores, {}, next(iter(KNOWN_SHAPES.values())), 0))
    assert [point.knn_accuracy for point in points] == pytest.approx([2 / 3, 1 / 3])
    low, high = points[1].zero_shot_accuracy_loss_ci_low, points[1].zero_shot_accuracy_loss_ci_high
    assert low is not None
    assert high is not None
    assert low < 1 / 3 < high
    assert points[0].acc_gqa is None
    assert quality_of(points) == "accuracy"


@pytest.mark.parametrize("part_frames", [1, 2**16])
def test_neighbours_are_looked_for_among_all_parts(
    embedding: EmbedContext, monkeypatch: pytest.MonkeyPatch, part_frames: int
) -> None:
    """A copy of a clip is no other clip; what Original has is whole; what turns all alike keeps everything."""
    monkeypatch.setattr(read, "PART_FRAMES", part_frames)
    monkeypatch.setattr(neighbours, "MIN_OTHERS", 2 * NUM_FRAMES)
    monkeypatch.setattr(neighbours, "NUM_NEIGHBOURS", 3)
    copy = replace(CLIPS[0], clip_id="copy of a")
    original, turned, blind = (name_setting(FrameSkipConfig(every=every), "tower", {}) for every in (1, 2, 3))
    rng = np.random.default_rng(0)
    clean = {clip.content_id: rng.standard_normal((NUM_FRAMES, WIDTH)) for clip in CLIPS}
    for setting, change in ((original, None), (turned, -1.0), (blind, "noise")):
        for clip in CLIPS:
            vectors_FE = clean[clip.content_id]
            vectors_FE = rng.standard_normal(vectors_FE.shape) if change == "noise" else vectors_FE * (change or 1)
            write_vectors(embedding, setting, clip, vectors_FE)
    eval_set = EvalSet((*CLIPS, copy), (), {})
    scores = score_settings([original, turned, blind], original, eval_set, embedding)
    whole, same, lost = (one.agreement for one in scores)
    assert whole is not None
    assert same is not None
    assert lost is not None
    assert (whole.mean, same.mean) == (1, 1)
    assert 0.1 < lost.mean < 0.8
    assert list(lost.by_clip) == ["copy of a", "b", "c"]  # one of two that are equal stands for both
    assert [len(shares) for shares in lost.by_clip.values()] == [NUM_FRAMES] * 3
    alone = score_settings([blind], original, eval_set, embedding)[0].agreement  # as a trial of a sweep asks
    assert alone == lost
    assert score_settings([blind], original, EvalSet(CLIPS[:1], (), {}), embedding)[0].agreement is None


def test_without_a_clip_that_all_have_it_is_said(embedding: EmbedContext) -> None:
    original, other = name_setting(OriginalConfig(), "tower", {}), name_setting(FrameSkipConfig(every=2), "tower", {})
    write(embedding, original, CLIPS[:1], 0.0)
    write(embedding, other, CLIPS[1:], 0.1)
    with pytest.raises(ValueError, match="got no clip with embeddings under all 2 settings"):
        score_settings([other], original, EvalSet(CLIPS, (), {}), embedding)
