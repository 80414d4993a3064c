"""Fit a TempCLIP head on the stored embeddings of Original with Ray Train, or read one from a checkpoint.

The worker reads the embeddings of all clips from Parquet once, part by part, and keeps the 32 frames of each that the
head sees: 98 KB a clip at ViT-L/14's width. What memory it needs is known beforehand, and refused where no machine has
it. A fit that was interrupted goes on from its last checkpoint; one that is finished is not done again.

    <store>/train/<run id>/                             Ray Train's checkpoints: weights, optimiser, progress
    <store>/heads/<head id>/temp_clip.safetensors, .json    the weights of the best epoch on validation clips
    <store>/heads/<head id>/fit.json                    how it went; written last
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray
import torch
from ray import train
from ray.train import Checkpoint

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.backbones.sentences import BACKBONE, Sentences, load_sentences, trained_mean_hidden
from dejavu.cluster.cluster import PROCESS_BYTES, grows, memory_per_machine
from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.stored import clips_identity, read_beside
from dejavu.embedding.worker_memory import head_fit_bytes
from dejavu.records import Question, TaskScore, Transcoded
from dejavu.stages.run_fit import FitRun, quieten, run_fit
from dejavu.stages.train_task import TrainError
from dejavu.storage.setting import Setting
from dejavu.storage.store import atomic, fetch, file_sha256, identity, local_copy, write_json
from dejavu.storage.store_path import StorePath, is_file
from dejavu.tasks.grounded_qa import score
from dejavu.tasks.temp_clip import fit as temp_clip_fit
from dejavu.tasks.temp_clip import head as temp_clip
from dejavu.tasks.temp_clip.answers import SpanKind, answer_questions, embed_candidates, see_clip
from dejavu.tasks.temp_clip.fit import NotFiniteError, TempClipFit, TempClipFitConfig, TrainingSet, remembered
from dejavu.tasks.temp_clip.head import NUM_FRAMES, TempClip, TempClipShape
from dejavu.tasks.temp_clip.weights import (
    PUBLISHED_HEADS,
    TempClipWeights,
    check_widths,
    load_temp_clip,
    read_weights,
    save_temp_clip,
)

WEIGHTS = "temp_clip.safetensors"
PAIRED_PROMPT = "{question} </s> {answer}"
"""What a published RoBERTa was trained on: its own separator between both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """Who answers the questions."""

    head: Literal["zero_shot", "temp_clip"] = "zero_shot"
    """zero_shot compares CLIP's text with frames; temp_clip is a trained head (NExT-GQA's TempCLIP NG+)."""
    temp_clip_checkpoint: Path | None = None
    """A published TempCLIP NG+ (.pth) or one that this platform trained (.safetensors); unless given, one is trained on
    Original's embeddings of the training clips."""
    text_encoder: str = BACKBONE
    """A RoBERTa: a directory written by save_pretrained or a name on the hub (roberta-base for the published
    checkpoint); or `backbone`, the backbone's own text tower, which is not trained."""
    num_heads: int | None = None
    """Of the head's transformer; unless given, as the checkpoint's JSON says, else 8 as published."""
    span: SpanKind = "combined"
    """Which span the plot and pareto.csv are about; task_scores.csv has all three."""
    prompt: str | None = None
    """How question and answer become the text of a candidate; unless given, both with </s> between them for a RoBERTa,
    the experiment's prompt for the backbone's text tower."""
    fit: TempClipFitConfig = field(default_factory=TempClipFitConfig)
    max_failures: int = 2
    """Times that a dead training worker is replaced."""

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            ValueError: A checkpoint is given without the head, the number of heads is below 1, or a prompt has other
                names in braces.
        """
        if self.temp_clip_checkpoint is not None and self.head != "temp_clip":
            raise ValueError(
                f"--task.temp-clip-checkpoint: got {self.temp_clip_checkpoint} with head {self.head}, expected "
                "temp_clip; add --task.head temp_clip"
            )
        if self.num_heads is not None and self.num_heads < 1:
            raise ValueError(f"task.num_heads: got {self.num_heads}, expected 1 or more; leave it at its default")
        try:
            (self.prompt or "").format(question="", answer="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"task.prompt: got {self.prompt!r} ({error}), expected {{question}} and {{answer}} alone in braces; "
                "mend it"
            ) from None

    @property
    def trains(self) -> bool:
        """Whether a head is fitted here."""
        return self.head == "temp_clip" and self.temp_clip_checkpoint is None


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A head that answers, and how its candidates become vectors."""

    head: TempClip
    sentences: Sentences
    prompt: str
    span: SpanKind


@dataclass(frozen=True, slots=True)
class HeadFit:
    """What training a head leaves."""

    weights: StorePath
    curve: tuple[Mapping[str, float], ...]
    """One entry per epoch."""
    is_new: bool
    """Fitted now, or found finished in the store."""


@dataclass(frozen=True, slots=True)
class _Task:
    """All that the worker needs; small enough to travel."""

    embedding: EmbedContext
    config: TaskConfig
    prompt: str
    clips: tuple[Transcoded, ...]
    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    original: Setting


def open_head(config: TaskConfig, backbone: Backbone, prompt: str, weights: StorePath | None = None) -> TrainedHead:
    """Read a head and its text encoder; everything that could not be used is refused here, before any work.

    Args:
        config: Names the checkpoint and the text encoder.
        backbone: Whose frame embeddings it will see.
        prompt: The experiment's, for the backbone's text tower.
        weights: A head that was trained here, instead of the checkpoint.

    Raises:
        BackboneError: The text encoder is not there, is no RoBERTa, or is another than the checkpoint's.
        ValueError: The checkpoint is not there, broken, malicious, or of other widths.
    """
    path = weights or config.temp_clip_checkpoint
    assert path is not None, "a head that is to be trained has no weights to open"
    found = _load(path, config.num_heads)
    if bool(found.text) != (config.text_encoder != BACKBONE):
        expected = f"the RoBERTa that it was trained from ({found.text_encoder or 'roberta-base as published'})"
        raise ValueError(
            f"--task.text-encoder: got {config.text_encoder} for the head in {path.name}, expected "
            f"{expected if found.text else BACKBONE}: widths may agree, what the head learned does not; give that one"
        )
    sentences = load_sentences(config.text_encoder, backbone, found.text)
    check_widths(found.head.shape, backbone.vit.shape.embed_dim, sentences.width)
    if sentences.encoder is not None and torch.cuda.is_available():
        sentences.encoder.to("cuda")
    return TrainedHead(found.head, sentences, prompt_of(config, prompt), config.span)


def _load(path: StorePath, num_heads: int | None) -> TempClipWeights:
    if isinstance(path, Path):
        return load_temp_clip(path, num_heads)
    with local_copy(path) as here:
        beside = path.with_suffix(".json")  # as a published checkpoint does not have
        if is_file(beside):
            fetch(beside, here.with_suffix(".json"))
        return load_temp_clip(here, num_heads)


def check_head(config: TaskConfig, backbone: Backbone, prompt: str) -> None:
    """Refuse at start what would fail after hours: a checkpoint, a text encoder or sizes that cannot be used.

    Raises:
        BackboneError: As `open_head`.
        ValueError: As `open_head`, or the sizes of a head to be trained do not fit together.
    """
    if config.head == "temp_clip" and not config.trains:
        open_head(config, backbone, prompt)
    elif config.trains:
        _new_shape(config, backbone, load_sentences(config.text_encoder, backbone).width)


def check_training_set(config: TaskConfig, questions: Sequence[Question]) -> None:
    """Refuse to begin where a head is to be trained and nothing is asked about training clips.

    Raises:
        TrainError: That is so.
    """
    if config.trains and not any(question.split == "train" for question in questions):
        raise TrainError(
            f"temp_clip: got {len(questions)} questions, none about a training clip, expected some to train on; give "
            "the videos and the CSV of the train split, or a trained head by --task.temp-clip-checkpoint"
        )


def _new_shape(config: TaskConfig, backbone: Backbone, sentence_width: int) -> TempClipShape:
    return TempClipShape(
        feature_width=backbone.vit.shape.embed_dim,
        sentence_width=sentence_width,
        width=config.fit.width,
        ffn_width=config.fit.ffn_width,
        num_heads=config.num_heads or PUBLISHED_HEADS,
    )


def prompt_of(config: TaskConfig, prompt: str) -> str:
    """Return how question and answer become a text."""
    return config.prompt or (prompt if config.text_encoder == BACKBONE else PAIRED_PROMPT)


def fit_head(  # noqa: PLR0913, PLR0917  one call, in one place
    clips: Sequence[Transcoded],
    questions: Sequence[Question],
    original: Setting,
    embedding: EmbedContext,
    config: TaskConfig,
    prompt: str,
) -> HeadFit:
    """Fit a head unless the store has it.

    Args:
        clips: Of the training and the validation split; Original's embeddings of both must be in the store.
        questions: About them.
        original: The setting whose embeddings are learned from.
        embedding: Backbone, store and how videos are cut.
        config: The head's sizes, schedule and text encoder.
        prompt: The experiment's.

    Raises:
        TrainError: There is nothing to learn from, or the loss is no number any more.
    """
    names = {clip.clip_id for clip in clips}
    asked = [question for question in questions if question.clip_id in names]
    check_training_set(config, asked)
    by_split = {split: tuple(question for question in asked if question.split == split) for split in ("train", "val")}
    ours = prompt_of(config, prompt)
    head_id = identity(
        {
            "clips": clips_identity(clips),
            "questions": [asdict(question) for some in by_split.values() for question in some],
            "original": original.setting_id,
            "fit": asdict(config.fit),
            "heads": config.num_heads,
            "span": config.span,
            "encoder": config.text_encoder,
            "prompt": ours,
            "code": [file_sha256(Path(str(module.__file__))) for module in (temp_clip, temp_clip_fit)],
        }
    )
    folder = embedding.store.root.resolve() / "heads" / head_id
    is_new = not is_file(folder / "fit.json")
    if is_new:
        _run_fit(_Task(embedding, config, ours, tuple(clips), by_split["train"], by_split["val"], original), folder)
    note = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
    return HeadFit(folder / WEIGHTS, tuple(note["curve"]), is_new)


def check_fit_memory(config: TaskConfig, backbone: Backbone, num_clips: int) -> None:
    """Refuse to begin what no machine has the memory for.

    Raises:
        BackboneError: As `open_head`.
        TrainError: The worker would need more than the largest machine has.
    """
    sentences = load_sentences(config.text_encoder, backbone)
    shape = _new_shape(config, backbone, sentences.width)
    with torch.device("meta"):
        head = TempClip(shape)
    needed = PROCESS_BYTES + head_fit_bytes(backbone.vit, head, sentences.encoder, num_clips)
    if not grows() and needed > (there := max(memory_per_machine())):
        have, want = there / 2**30, needed / 2**30
        raise TrainError(
            f"temp_clip: got machines of {have:.1f} GiB at most, expected {want:.1f} GiB to train the head on "
            f"{num_clips} clips; give --task.text-encoder backbone, which is not trained, or fewer clips"
        )


def _run_fit(task: _Task, folder: StorePath) -> None:
    on_gpu = bool(ray.cluster_resources().get("GPU", 0))
    # One worker: a head of this size learns faster than several would agree on its gradients.
    run = FitRun(f"head-{folder.name}", task.embedding.store.root / "train", 1, on_gpu, task.config.max_failures)
    with run_fit(_worker, {"task": task}, run) as (found, progress):
        for suffix in ("json", "safetensors"):
            with atomic((folder / WEIGHTS).with_suffix(f".{suffix}")) as temporary:
                shutil.copyfile(found / f"best.{suffix}", temporary)
    write_json(folder / "fit.json", progress)


# -------------------------------------------------------------------------------------------------------- in the worker
def _worker(config: dict[str, Any]) -> None:
    quieten()
    task: _Task = config["task"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _Trainer(task, load_backbone(task.embedding.backbone, task.embedding.image_px), device).run()


class _Trainer:
    """One fit, with what is looked at after each epoch."""

    def __init__(self, task: _Task, backbone: Backbone, device: str) -> None:
        self.task = task
        self.sentences = load_sentences(task.config.text_encoder, backbone)
        encoder = self.sentences.encoder
        if encoder is not None:
            encoder.to(device)
        self.clips = {
            name: see_clip(clip.embeddings_FE, clip.seconds_F, NUM_FRAMES)
            for _, part, _ in read_beside(task.embedding, [task.original], task.original, task.clips)
            for name, clip in part.items()
        }
        training_set = TrainingSet(self._about_stored(task.train), self.clips, task.prompt)
        self.validation = self._about_stored(task.validation)
        shape = _new_shape(task.config, backbone, self.sentences.width)
        self.fit = TempClipFit(shape, encoder, training_set, task.config.fit)
        self.frozen = remembered(self.sentences.embed)
        self.curve: list[dict[str, float]] = []
        self.broken = ""
        self.started = time.monotonic()

    def _about_stored(self, questions: Sequence[Question]) -> tuple[Question, ...]:
        kept = tuple(question for question in questions if question.clip_id in self.clips)
        if len(kept) < len(questions):
            print(f"  temp_clip: {len(questions) - len(kept)} questions about clips without embeddings are left out")
        if questions and not kept:
            raise TrainError("temp_clip: got no stored embedding of Original, expected some; run the embed stage first")
        return kept

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Turn texts into vectors, with gradients where the encoder is trained."""
        if self.sentences.encoder is None:
            return self.frozen(texts)
        device = next(self.sentences.encoder.parameters()).device
        return trained_mean_hidden(self.sentences.encoder, self.sentences.tokens(texts).to(device))

    def run(self) -> None:
        """Train to the end, reporting after each epoch."""
        resumed = train.get_checkpoint()
        with tempfile.TemporaryDirectory() as best:
            if resumed is not None:
                with resumed.as_directory() as folder:
                    self._load(Path(folder), Path(best))
            while self.fit.num_epochs < self.task.config.fit.epochs and not self.broken:
                self._epoch(Path(best))
                self._report(Path(best))
            self._report(Path(best))

    def _epoch(self, best: Path) -> None:
        try:
            entry = {"epoch": float(self.fit.num_epochs + 1), **self.fit.run_epoch(self.encode)}
        except NotFiniteError as error:
            self.broken = str(error)
        else:
            judged = self._validate()
            if judged is not None:
                entry |= {"val_acc_qa": judged.acc_qa, "val_acc_gqa": judged.acc_gqa}
            self.curve.append(entry)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in entry.items())
            spent = time.monotonic() - self.started
            print(f"  train temp_clip: {shown}, of {self.task.config.fit.epochs} epochs, {spent:.0f} s", flush=True)
        if not (best / "best.safetensors").is_file() or (not self.broken and self._is_best()):
            self._save_weights(best / "best.safetensors")

    def _report(self, best: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), best)
            train.report({"epoch": self.fit.num_epochs}, checkpoint=Checkpoint.from_directory(folder))

    def _is_best(self) -> bool:
        """Whether the last epoch answers most on validation clips; without any, the last one is."""
        quality = [(entry.get("val_acc_gqa", 0.0), entry.get("val_acc_qa", 0.0)) for entry in self.curve]
        return quality[-1] > max(quality[:-1], default=(-1.0, -1.0)) or "val_acc_qa" not in self.curve[-1]

    def _validate(self) -> TaskScore | None:
        located = [question for question in self.validation if question.spans_s]
        if not located:
            return None
        embed = self.frozen if self.sentences.encoder is None else self.sentences.embed
        sentences = embed_candidates(located, embed, self.task.prompt)
        predictions = answer_questions(self.fit.head, self.clips, located, sentences)
        return score(located, predictions[self.task.config.span])

    def _save_weights(self, path: Path) -> None:
        save_temp_clip(self.fit.head, self.fit.trained_text(), self.task.config.text_encoder, path)

    def _save(self, folder: Path, best: Path) -> None:
        """Write weights, optimiser and progress: safetensors and JSON alone."""
        for suffix in ("json", "safetensors"):
            shutil.copyfile(best / f"best.{suffix}", folder / f"best.{suffix}")
        self._save_weights(folder / "last.safetensors")
        self.fit.save_optimizer(folder / "optimizer.safetensors")
        write_json(folder / "progress.json", {"curve": self.curve, "broken": self.broken})

    def _load(self, folder: Path, best: Path) -> None:
        self.curve = json.loads((folder / "progress.json").read_text(encoding="utf-8"))["curve"]
        self.fit.load_weights(read_weights(folder / "last.safetensors"))
        self.fit.load_optimizer(folder / "optimizer.safetensors")
        for suffix in ("json", "safetensors"):
            shutil.copyfile(folder / f"best.{suffix}", best / f"best.{suffix}")
