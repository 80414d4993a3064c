"""Scores are of the clips that every setting has, and are read part by part."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dejavu.embedding import stored as read
from dejavu.embedding.batch import EmbedConfig, Embedding, cut
from dejavu.embedding.stored import ClipEmbeddings
from dejavu.records import Question, Transcoded
from dejavu.stages.score import Exam, score_settings
from dejavu.storage.setting import Setting, name_setting
from dejavu.storage.store import Store
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.original import OriginalConfig

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
def embedding(tmp_path: Path) -> Embedding:
    return Embedding("embedded", Store(tmp_path), EmbedConfig())


def write(embedding: Embedding, setting: Setting, clips: Sequence[Transcoded], turn: float) -> None:
    """Every frame of every clip is turned by so many radians from the first axis."""
    rows = NUM_FRAMES * len(clips)
    flat = np.tile(np.array([np.cos(turn), np.sin(turn), 0], np.float16), rows)
    table = pa.table(
        {
            "content_id": [clip.content_id for clip in clips for _ in range(NUM_FRAMES)],
            "frame": pa.array(list(range(NUM_FRAMES)) * len(clips), pa.int32()),
            "seconds": pa.array([frame / 2 for frame in range(NUM_FRAMES)] * len(clips)),
            "reuse_rate": pa.array(np.full(rows, turn, np.float32)),
            "flops": pa.array(np.full(rows, 1e9)),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), WIDTH),
        }
    )
    embedding.store.write_embeddings(setting.setting_id, table, [piece.unit_id for piece in cut(clips, 512)])


@pytest.mark.parametrize("part_frames", [1, NUM_FRAMES, 2**16])
def test_a_part_of_one_setting_is_in_memory_beside_original(
    embedding: Embedding, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part_frames: int
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
    exam = Exam(CLIPS, questions, {one.question_id: answers_AE for one in questions})
    scores = score_settings([original, *others], original, exam, embedding)

    # While one is read: Original's, and what was read before it.
    assert len(seen) == (4 if part_frames > NUM_FRAMES else 8)
    assert max(map(len, held)) == 2
    assert part_frames > NUM_FRAMES or {size for sizes in held for size in sizes} == {1}
    assert "1 questions about clips that failed are left out" in capsys.readouterr().out
    assert [one.num_clips for one in scores] == [2, 2, 2, 2]
    assert [one.reuse_rate for one in scores] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-6)
    assert [one.fidelity.mean for one in scores] == pytest.approx(np.cos([0, 0.1, 0.2, 0.3]), abs=1e-3)
    assert [[row.clip_id for row in one.rows] for one in scores] == [["b", "c"]] * 4
    assert [one.accuracy for one in scores] == [1, 1, 1, 1]


def test_without_a_clip_that_all_have_it_is_said(embedding: Embedding) -> None:
    original, other = name_setting(OriginalConfig(), "tower", {}), name_setting(FrameSkipConfig(every=2), "tower", {})
    write(embedding, original, CLIPS[:1], 0.0)
    write(embedding, other, CLIPS[1:], 0.1)
    with pytest.raises(ValueError, match="got no clip with embeddings under all 2 settings"):
        score_settings([other], original, Exam(CLIPS, (), {}), embedding)
