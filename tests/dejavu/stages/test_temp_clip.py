"""What a run with a trained head refuses at start, and how it scores stored embeddings.

Training itself runs in tests/jobs/test_task_head.py.
"""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ray.train import Checkpoint
from safetensors.torch import load_file

from dejavu.backbones.load import BackboneError, load_backbone
from dejavu.backbones.sentences import load_sentences, mean_hidden
from dejavu.embedding.batch import EmbedConfig, EmbedContext, cut
from dejavu.embedding.encode import EncodedSegment, to_table
from dejavu.records import Question, Transcoded
from dejavu.stages import fit_head as fitting
from dejavu.stages import train_task
from dejavu.stages.fit_head import check_fit_memory, fit_head
from dejavu.stages.score import build_eval_set, score_settings, write_task_scores
from dejavu.stages.temp_clip import (
    TaskConfig,
    check_head,
    check_training_set,
    open_head,
    prompt_of,
)
from dejavu.stages.train_task import TrainError
from dejavu.storage.setting import Setting, name_setting
from dejavu.storage.store import Store
from dejavu.tasks.temp_clip.answers import answer_questions, embed_candidates, see_clip
from dejavu.tasks.temp_clip.fit import TempClipFit, TempClipFitConfig, TrainingSet
from dejavu.tasks.temp_clip.head import TempClip, TempClipShape
from dejavu.tasks.temp_clip.weights import save_temp_clip
from dejavu.video.decode import DecodedFrames
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.original import OriginalConfig

SHAPE = TempClipShape(feature_width=128, sentence_width=128, width=16, ffn_width=16)
SMALL = TempClipFitConfig(width=16, ffn_width=16)


def question(name: str, clip_id: str, kind: str = "CW", duration_s: float = 10.0) -> Question:
    return Question(
        question_id=f"{clip_id}_{name}",
        clip_id=clip_id,
        split="test",
        kind=kind,
        text="what",
        answers=("a red circle", "a blue square", "a green ring", "a red square", "a pink cross"),
        correct=1,
        spans_s=((1.0, 9.0),),
        duration_s=duration_s,
    )


def clip(name: str) -> Transcoded:
    return Transcoded(
        clip_id=name,
        content_id=name,
        path=f"mp4/{name}.mp4",
        num_frames=20,
        frame_px=128,
        fps=2.0,
        duration_s=10.0,
        codec_metadata=True,
    )


def store_embeddings(embedding: EmbedContext, setting: Setting, clips: list[Transcoded], seed: int) -> None:
    segments = cut(clips, embedding.config.segment_frames)
    rng = np.random.default_rng(seed)
    frames = [
        DecodedFrames(np.zeros((20, 1, 1, 3), np.uint8), np.zeros((20, 4, 1, 1)), np.arange(20) / 2, "I" * 20, True)
        for _ in segments
    ]
    encoded = [
        EncodedSegment(rng.normal(size=(20, 128)).astype(np.float32), np.zeros(20, np.float32), np.full(20, 1e9))
        for _ in segments
    ]
    table = to_table(segments, frames, encoded)
    embedding.store.write_embeddings(setting.setting_id, table, [segment.unit_id for segment in segments])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_temp_clip(TempClip(SHAPE), {}, "backbone", tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


def test_every_setting_is_scored_by_the_head_under_three_spans_and_read_once(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = EmbedContext("embedded", Store(tmp_path), EmbedConfig())
    names = [name_setting(config, "tower", {}) for config in (OriginalConfig(), FrameSkipConfig(every=4))]
    clips = [clip("a"), clip("b")]
    for seed, setting in enumerate(names):
        store_embeddings(embedding, setting, clips, seed)
    questions = [question("0", "a"), question("1", "a", "TN"), question("2", "b", duration_s=3.0)]
    backbone = load_backbone()
    trained = open_head(TaskConfig(head="temp_clip", temp_clip_checkpoint=saved), backbone, "{answer}")
    eval_set = build_eval_set(clips, questions, backbone.embed_texts, "{answer}", trained)
    opened: list[str] = []
    read_table = pq.read_table

    def read(file: Any, **rest: Any) -> Any:
        opened.append(file.name)
        return read_table(file, **rest)

    monkeypatch.setattr(pq, "read_table", read)
    scores = score_settings(names, names[0], eval_set, embedding)
    shards = [name for name in opened if Path(name).is_relative_to(tmp_path / "embeddings")]
    assert len(shards) == len(set(shards)) == 2  # one shard a setting, whatever the number of questions

    from dejavu.embedding.stored import read_embeddings

    for setting, found in zip(names, scores, strict=True):
        assert found.task is found.by_span["combined"]
        stored = read_embeddings(embedding, setting, clips)
        seen = {name: see_clip(one.embeddings_FE, one.seconds_F, 32) for name, one in stored.items()}
        sentences = embed_candidates(questions, trained.sentences.embed, "{answer}")
        wanted = answer_questions(trained.head, seen, questions, sentences)["gauss"]
        assert found.by_span["gauss"].acc_qa == np.mean([one.answer == 1 for one in wanted])
    # Clip b is 10 s long and its annotation says 3: attention may point behind that, a Gaussian never does.
    assert scores[0].by_span["gauss"].num_beyond_video == 0
    write_task_scores(tmp_path / "task_scores.csv", scores)
    with (tmp_path / "task_scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["span"]) for row in rows[:3]] == [
        ("original", s) for s in ("gauss", "posthoc", "combined")
    ]
    assert rows[1]["num_beyond_video"] == str(scores[0].by_span["posthoc"].num_beyond_video)
    assert rows[0]["acc_qa_TC"] == ""
    assert float(rows[0]["acc_qa_CW"]) == scores[0].by_span["gauss"].by_type["CW"]


def test_a_checkpoint_of_other_widths_is_refused_at_start(tmp_path: Path) -> None:
    save_temp_clip(TempClip(replace(SHAPE, feature_width=768)), {}, "backbone", tmp_path / "wide.safetensors")
    config = TaskConfig(head="temp_clip", temp_clip_checkpoint=tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match="frame embeddings of width 768, expected 128"):
        check_head(config, load_backbone(), "{answer}")


def test_a_head_of_a_roberta_is_not_given_the_backbones_text_even_where_widths_agree(tmp_path: Path) -> None:
    text = {"embeddings.word_embeddings.weight": torch.zeros(3, 128)}
    save_temp_clip(TempClip(SHAPE), text, "roberta-base", tmp_path / "head.safetensors")
    config = TaskConfig(head="temp_clip", temp_clip_checkpoint=tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=r"got backbone .* expected the RoBERTa .*roberta-base"):
        check_head(config, load_backbone(), "{answer}")


def test_a_missing_text_encoder_is_refused_at_start(tmp_path: Path) -> None:
    config = TaskConfig(head="temp_clip", text_encoder=str(tmp_path / "none"), fit=SMALL)
    with pytest.raises(BackboneError, match=r"text encoder: got .*none, which is no directory"):
        check_head(config, load_backbone(), "{answer}")


def test_sizes_that_do_not_fit_are_refused_at_start() -> None:
    with pytest.raises(ValueError, match="heads divide"):
        check_head(TaskConfig(head="temp_clip", num_heads=3, fit=SMALL), load_backbone(), "{answer}")


def test_a_fit_that_no_machine_has_the_memory_for_is_refused(roberta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone()
    monkeypatch.setattr(train_task, "grows", lambda: False)
    monkeypatch.setattr(train_task, "memory_per_machine", lambda: [2**29, 2**30])
    config = TaskConfig(head="temp_clip", text_encoder=str(roberta), fit=SMALL)
    check_fit_memory(config, backbone, 100)
    with pytest.raises(
        TrainError, match=r"got machines of 1\.0 GiB at most, expected \d+\.\d GiB to train the head on"
    ):
        check_fit_memory(config, backbone, 10**6)
    monkeypatch.setattr(train_task, "grows", lambda: True)
    check_fit_memory(config, backbone, 10**6)


def test_no_training_question_is_refused_at_start(tmp_path: Path) -> None:
    config = TaskConfig(head="temp_clip", fit=SMALL)
    with pytest.raises(TrainError, match="got 1 questions, none about a training clip"):
        check_training_set(config, [question("0", "a")])
    check_training_set(TaskConfig(), [])
    embedding = EmbedContext("embedded", Store(tmp_path), EmbedConfig())
    training_set = replace(question("0", "gone"), split="train")
    with pytest.raises(TrainError, match="got 0 questions"):
        fit_head(
            [clip("a")], [training_set], name_setting(OriginalConfig(), "tower", {}), embedding, config, "{answer}"
        )


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"temp_clip_checkpoint": Path("x.pth")}, "add --task.head temp_clip"),
        ({"num_heads": 0}, "expected 1 or more"),
        ({"prompt": "{clip}"}, "alone in braces"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TaskConfig(**wrong)  # type: ignore[arg-type]


def test_a_roberta_reads_question_and_answer_with_its_separator_between_them() -> None:
    assert prompt_of(TaskConfig(), "{answer}") == "{answer}"
    assert prompt_of(TaskConfig(text_encoder="roberta-base"), "{answer}") == "{question} </s> {answer}"
    assert prompt_of(TaskConfig(prompt="{question}"), "{answer}") == "{question}"


def test_a_roberta_is_trained_with_the_head_and_both_come_back_from_the_file(tmp_path: Path, roberta: Path) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    asked = [
        replace(question(str(index), str(index)), split="train", answers=("dog", "wet", "why", "the", "is"), text="why")
        for index in range(8)
    ]
    clips = {one.clip_id: see_clip(rng.normal(size=(32, 128)).astype("f4"), np.arange(32) / 2, 32) for one in asked}
    sentences = load_sentences(str(roberta), None)
    before = {name: weight.clone() for name, weight in sentences.encoder.state_dict().items()}
    fit = TempClipFit(
        TempClipShape(feature_width=128, sentence_width=16, width=16, ffn_width=16),
        sentences.encoder,
        TrainingSet(tuple(asked), clips, "{question} </s> {answer}"),
        replace(SMALL, epochs=2, learning_rate=1e-3),
    )
    fit.run_epoch(lambda texts: mean_hidden(sentences.encoder, sentences.tokens(texts)))
    trained = fit.trained_text()
    assert not torch.equal(trained["embeddings.word_embeddings.weight"], before["embeddings.word_embeddings.weight"])
    save_temp_clip(fit.head, trained, str(roberta), tmp_path / "head.safetensors")

    config = TaskConfig(
        head="temp_clip", temp_clip_checkpoint=tmp_path / "head.safetensors", text_encoder=str(roberta), fit=SMALL
    )
    found = open_head(config, load_backbone(), "{answer}")
    assert found.prompt == "{question} </s> {answer}"
    questions = asked[:3]
    for embed in (sentences.embed, found.sentences.embed):
        vectors = embed_candidates(questions, embed, found.prompt)
        answers = answer_questions(fit.head.eval(), clips, questions, vectors)
        assert answers == answer_questions(found.head, clips, questions, vectors)
    torch.testing.assert_close(sentences.embed(["why dog"]), found.sentences.embed(["why dog"]))


class Recorder:
    """Stands for Ray Train in the worker: keeps every checkpoint, and begins from one of them."""

    def __init__(self, folder: Path, start: Path | None = None) -> None:
        self.folder, self.start, self.kept = folder, start, list[Path]()

    def get_checkpoint(self) -> Checkpoint | None:
        return None if self.start is None else Checkpoint.from_directory(str(self.start))

    def report(self, metrics: dict[str, object], checkpoint: Checkpoint) -> None:
        self.kept.append(self.folder / str(len(self.kept)))
        with checkpoint.as_directory() as found:
            shutil.copytree(found, self.kept[-1])


def course(root: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder, fit: TempClipFitConfig) -> list[Path]:
    """Run the worker's part of a fit; return its checkpoints in order."""
    torch.set_num_threads(1)
    embedding = EmbedContext("embedded", Store(root), EmbedConfig())
    original = name_setting(OriginalConfig(), "tower", {})
    clips = [clip(name) for name in "abcd"]
    if not embedding.store.done(original.setting_id):
        store_embeddings(embedding, original, clips, 0)
    training_set = tuple(replace(question(str(index), name), split="train") for name in "abc" for index in range(4))
    eval_set = tuple(replace(question(str(index), "d"), split="val") for index in range(4))
    config = TaskConfig(head="temp_clip", fit=fit)
    monkeypatch.setattr(fitting, "train", recorder)
    task = fitting._Task(embedding, config, "{answer}", tuple(clips), training_set, eval_set, original)
    fitting._Trainer(task, load_backbone(), "cpu").run()
    return recorder.kept


def test_a_worker_that_died_goes_on_from_its_checkpoint_to_the_same_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = replace(SMALL, epochs=3, questions_per_step=4, learning_rate=1e-3)
    whole = course(tmp_path, monkeypatch, Recorder(tmp_path / "whole"), fit)
    assert len(whole) == 4  # one an epoch, and one at the end
    resumed = course(tmp_path, monkeypatch, Recorder(tmp_path / "resumed", whole[0]), fit)
    assert len(resumed) == 3
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = load_file(resumed[-1] / name), load_file(whole[-1] / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    ours, theirs = (json.loads((some[-1] / "progress.json").read_text())["curve"] for some in (resumed, whole))
    assert ours == theirs
    assert [entry["epoch"] for entry in ours] == [1, 2, 3]
    assert {"val_acc_qa", "val_acc_gqa", "grounding_loss"} <= ours[0].keys()


def test_a_loss_that_is_no_number_is_written_down_and_ends_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = replace(SMALL, epochs=3, questions_per_step=4, learning_rate=1e20)
    kept = course(tmp_path, monkeypatch, Recorder(tmp_path / "broken"), fit)
    broken = json.loads((kept[-1] / "progress.json").read_text())["broken"]
    assert broken.startswith("temp_clip loss: got ")
    assert "lower --task.fit.learning-rate" in broken
    assert len(kept) == 2
