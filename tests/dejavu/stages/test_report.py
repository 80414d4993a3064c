"""From stored embeddings to the page, without a cluster: what needs one is handed in."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dejavu.embedding.batch import EmbedConfig, EmbedContext, Segment, cut
from dejavu.embedding.encode import EncodedSegment, to_table
from dejavu.records import Question, Transcoded
from dejavu.report.page import RunFacts
from dejavu.stages import report
from dejavu.stages.frontier import Evidence, draw_frontier, gather_points
from dejavu.stages.measure import Timing
from dejavu.stages.report import Scored, typical, write_page
from dejavu.stages.score import EvalSet, score_settings
from dejavu.storage.setting import Setting, name_setting
from dejavu.storage.store import Store
from dejavu.video.decode import DecodedFrames
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.method import MethodConfig
from reuse_models.tower.known_shapes import KNOWN_SHAPES

WIDTH, NUM_FRAMES, EVERY = 8, 12, 3
SHAPE = next(iter(KNOWN_SHAPES.values()))


def clip(number: int) -> Transcoded:
    return Transcoded(
        clip_id=f"c{number}",
        content_id=f"content{number}",
        path=f"mp4/{number}.mp4",
        num_frames=NUM_FRAMES,
        frame_px=128,
        fps=2.0,
        duration_s=6.0 + number,
        codec_metadata=False,  # nothing to decode: no clip is in a third by motion
    )


CLIPS = [clip(number) for number in range(6)]


def write(embedding: EmbedContext, setting: Setting, segment: Segment, every: int) -> None:
    """Every frame has a direction of its own; a repeated one has that of the frame computed last."""
    frame_F = np.arange(NUM_FRAMES)
    directions_FE = np.random.default_rng(int(segment.clip_id[1:])).standard_normal((NUM_FRAMES, WIDTH))
    computed_F = frame_F // every * every
    frames = DecodedFrames(
        rgb_FHWC=np.zeros((NUM_FRAMES, 1, 1, 3), np.uint8),
        codec_F4PP=np.zeros((NUM_FRAMES, 4, 1, 1), np.float32),
        seconds_F=frame_F / 2,
        picture_types="P" * NUM_FRAMES,
        codec_metadata=False,
    )
    encoded = EncodedSegment(
        directions_FE[computed_F].astype(np.float32),
        np.where(frame_F == computed_F, 0, 0.9).astype(np.float32),
        np.where(frame_F == computed_F, 3e9, 1.0),
    )
    table = to_table([segment], [frames], [encoded])
    embedding.store.write_embeddings(setting.setting_id, table, [segment.unit_id])


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    embedding = EmbedContext("embedded", Store(tmp_path / "store"), EmbedConfig())
    configs: list[tuple[MethodConfig, int]] = [(OriginalConfig(), 1), (FrameSkipConfig(every=EVERY), EVERY)]
    settings = [name_setting(config, "tower", embedding.config.shaping()) for config, _ in configs]
    for setting, (_, every) in zip(settings, configs, strict=True):
        for segment in cut(CLIPS, embedding.config.segment_frames):
            write(embedding, setting, segment, every)
    questions = tuple(
        Question(
            question_id=f"{one.clip_id}_{kind}", clip_id=one.clip_id, split="test", kind=kind, text="?",
            answers=("a", "b"), correct=0, spans_s=((0.0, 6.0),), duration_s=6.0,
        )
        for one in CLIPS
        for kind in ("CW", "TN")
    )  # fmt: skip
    answers_AE = np.eye(2, WIDTH, dtype=np.float32)
    eval_set = EvalSet(tuple(CLIPS), questions, {one.question_id: answers_AE for one in questions})
    scores = score_settings(settings, settings[0], eval_set, embedding)
    timing = Timing(
        ms_per_frame=1.0, speedup=2.5, decode_ms_per_frame=0.5, codec_ms_per_frame=0.25, peak_memory_mb=1.0,
        hardware="here", gflops_per_frame=0.5, dense="bfloat16", num_clips=4, num_rounds=5,
    )  # fmt: skip
    evidence = Evidence(scores, {settings[1].setting_id: timing}, SHAPE, 0)
    return Scored(gather_points(evidence), evidence, eval_set, embedding)


FACTS = RunFacts(
    recipe="tiny", dataset="synthetic", num_clips=6, num_questions=12, num_without_span=0, missing=(), failures=(),
    num_rounds=3, num_streams=4, tags={"backbone": "b", "hardware": "h"}, config_yaml="recipe: tiny\n",
)  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_lies_in_the_store_becomes_tables_and_a_page(
    scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[list[str]] = []

    def observed(
        settings: Sequence[Setting], clips: Sequence[Transcoded], embedding: EmbedContext
    ) -> dict[Setting, Any]:
        watched.append([one.clip_id for one in clips])
        reuse_FLN: NDArray[np.bool_] = np.ones((4, SHAPE.num_layers - 1, SHAPE.num_tokens), dtype=bool)
        return {setting: [reuse_FLN for _ in clips] for setting in settings}

    monkeypatch.setattr(report, "observe_reuse", observed)
    draw_frontier(scored.points, tmp_path, title="t", published=False)
    page = write_page(scored, FACTS, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.count("<img ") == 4  # the plot, that of agreement, drift, reuse by layer; no ReuseViT, no map
    assert "Agreement of neighbours: " in (tmp_path / "agreement.svg").read_text(encoding="utf-8")
    assert (tmp_path / "agreement.png").stat().st_size > 1000
    draw_frontier([replace(one, agreement=None) for one in scored.points], tmp_path, title="t", published=False)
    assert not list(tmp_path.glob("agreement.*"))  # of another run
    assert 'id="drift"' in text
    assert watched == [["c1", "c3", "c5"]]

    parts = rows(tmp_path / "breakdown.csv")
    assert {row["split_by"] for row in parts} == {"question_type", "duration_s"}
    assert len(parts) == 2 * (2 + 3)
    skipped = [row for row in parts if row["method"] == "frame_skip" and row["split_by"] == "duration_s"]
    assert [int(row["num_questions"]) for row in skipped] == [4, 4, 4]
    point = scored.points[1]
    assert point.acc_gqa is not None
    weighed = np.mean([float(row["acc_gqa"]) for row in skipped])
    assert weighed == pytest.approx(point.acc_gqa)  # thirds of equal size
    assert np.mean([float(row["cosine_to_dense"]) for row in skipped]) == pytest.approx(point.cosine_to_dense)
    assert point.agreement is not None
    assert 0.05 < point.agreement < 0.95
    assert np.mean([float(row["agreement"]) for row in skipped]) == pytest.approx(point.agreement)
    assert point.agreement_ci_low < point.agreement < point.agreement_ci_high  # type: ignore[operator]
    assert point.agreement_loss_ci_low == pytest.approx(point.agreement_ci_low - 1)  # type: ignore[operator]
    assert scored.points[0].agreement == scored.points[0].agreement_ci_low == 1
    by_type = [row["agreement"] for row in parts if row["split_by"] == "question_type"]
    assert by_type == [""] * 4

    curve = rows(tmp_path / "drift.csv")
    assert [(row["method"], int(row["age"]), int(row["num_frames"])) for row in curve] == [
        ("frame_skip", age, 6 * NUM_FRAMES // EVERY) for age in range(EVERY)
    ]
    assert float(curve[0]["cosine"]) == pytest.approx(1)
    assert float(curve[1]["cosine"]) < 0.9


def test_typical_clips_are_the_middle_ones_of_each_part() -> None:
    motion = {one.clip_id: float(number) for number, one in enumerate(reversed(CLIPS))}
    assert [one.clip_id for one in typical(CLIPS, motion)] == ["c4", "c2", "c0"]
    assert [one.clip_id for one in typical(CLIPS[:1], {})] == ["c0"]
