"""The task's head, TempCLIP NG+: its configuration, and how one is opened or refused before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from dejavu.backbones.load import Backbone
from dejavu.backbones.sentences import BACKBONE, Sentences, load_sentences
from dejavu.records import Question
from dejavu.stages.train_task import TrainError
from dejavu.storage.store import fetch, local_copy
from dejavu.storage.store_path import StorePath, is_file
from dejavu.tasks.temp_clip.answers import SpanKind
from dejavu.tasks.temp_clip.fit import TempClipFitConfig
from dejavu.tasks.temp_clip.head import TempClip, TempClipShape
from dejavu.tasks.temp_clip.weights import PUBLISHED_HEADS, TempClipWeights, check_widths, load_temp_clip

PAIRED_PROMPT = "{question} </s> {answer}"
"""What a published RoBERTa was trained on: its own separator between both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """How questions are answered, in recipes that have questions."""

    head: Literal["zero_shot", "temp_clip"] = "zero_shot"
    """What answers questions: `zero_shot` compares CLIP's text with frames, `temp_clip` is a trained head (NExT-GQA's
    TempCLIP NG+)."""
    temp_clip_checkpoint: Path | None = None
    """Checkpoint of TempCLIP NG+, published (.pth) or trained by this platform (.safetensors). If not given, a head is
    trained on Original's embeddings of the training clips."""
    text_encoder: str = BACKBONE
    """Text encoder of the head: a RoBERTa, as a directory written by save_pretrained or a name on the hub (roberta-base
    for the published checkpoint), or `backbone`, the backbone's own text tower, which is not trained."""
    num_heads: int | None = None
    """Number of heads of the head's transformer. If not given, as in the checkpoint's JSON, else the published 8."""
    span: SpanKind = "combined"
    """Kind of span that the plot and pareto.csv show; task_scores.csv has all three."""
    prompt: str | None = None
    """Template that makes {question} and {answer} into the text of a candidate. If not given, both with </s> between
    them for a RoBERTa, and the experiment's --prompt for the backbone's text tower."""
    fit: TempClipFitConfig = field(default_factory=TempClipFitConfig)
    max_failures: int = 2
    """Maximum number of times that a dead training worker is replaced."""

    def __post_init__(self) -> None:
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


def open_head(config: TaskConfig, backbone: Backbone, prompt: str, weights: StorePath | None = None) -> TrainedHead:
    """Read a head and its text encoder; everything that could not be used is refused here, before any work.

    `prompt` is the experiment's, for the backbone's text tower; `weights` are those of a head that was trained here,
    instead of the checkpoint.

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
        new_shape(config, backbone, load_sentences(config.text_encoder, backbone).width)


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


def new_shape(config: TaskConfig, backbone: Backbone, sentence_width: int) -> TempClipShape:
    """Return the sizes of a head to be fitted on a backbone whose texts are so wide."""
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
