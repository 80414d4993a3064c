"""Fit a TempCLIP head on the stored embeddings of Original with Ray Train.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.train import Checkpoint

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.backbones.sentences import load_sentences, trained_mean_hidden
from dejavu.cluster.cluster import PROCESS_BYTES
from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.stored import clips_identity, read_beside
from dejavu.embedding.worker_memory import head_fit_bytes
from dejavu.records import Question, TaskScore, Transcoded
from dejavu.stages.run_fit import FitRun, quieten, run_fit
from dejavu.stages.temp_clip import TaskConfig, check_training_set, new_shape, prompt_of
from dejavu.stages.train_task import TrainError, within_memory
from dejavu.storage.setting import Setting
from dejavu.storage.store import atomic, file_sha256, identity, write_json
from dejavu.storage.store_path import StorePath, is_file
from dejavu.tasks.grounded_qa import score
from dejavu.tasks.temp_clip import fit as temp_clip_fit
from dejavu.tasks.temp_clip import head as temp_clip
from dejavu.tasks.temp_clip.answers import answer_questions, embed_candidates, see_clip
from dejavu.tasks.temp_clip.fit import NotFiniteError, TempClipFit, TrainingSet, remembered
from dejavu.tasks.temp_clip.head import NUM_FRAMES, TempClip
from dejavu.tasks.temp_clip.weights import read_weights, save_temp_clip
from reuse_models.tower.without_weights import without_weights

WEIGHTS = "temp_clip.safetensors"


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


def fit_head(  # noqa: PLR0913, PLR0917  one call, in one place
    clips: Sequence[Transcoded],
    questions: Sequence[Question],
    original: Setting,
    embedding: EmbedContext,
    config: TaskConfig,
    prompt: str,
) -> HeadFit:
    """Fit a head unless the store has it.

    Clips are those of training and validation; Original's embeddings of both must be in the store. `prompt` is the
    experiment's.

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
        task = _Task(embedding, config, ours, tuple(clips), by_split["train"], by_split["val"], original)
        on_gpu = bool(ray.cluster_resources().get("GPU", 0))
        # One worker: a head of this size learns faster than several would agree on its gradients.
        run = FitRun(f"head-{head_id}", embedding.store.root / "train", 1, on_gpu, config.max_failures)
        with run_fit(_worker, {"task": task}, run) as (found, progress):
            for suffix in ("json", "safetensors"):
                with atomic((folder / WEIGHTS).with_suffix(f".{suffix}")) as temporary:
                    shutil.copyfile(found / f"best.{suffix}", temporary)
        write_json(folder / "fit.json", progress)
    note = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
    return HeadFit(folder / WEIGHTS, tuple(note["curve"]), is_new)


def check_fit_memory(config: TaskConfig, backbone: Backbone, num_clips: int) -> None:
    """Refuse to begin what no machine has the memory for.

    Raises:
        BackboneError: As `open_head`.
        TrainError: The worker would need more than the largest machine has.
    """
    sentences = load_sentences(config.text_encoder, backbone)
    shape = new_shape(config, backbone, sentences.width)
    with without_weights():
        head = TempClip(shape)
    needed = PROCESS_BYTES + head_fit_bytes(backbone.vit, head, sentences.encoder, num_clips)
    advice = "give --task.text-encoder backbone, which is not trained, or fewer clips"
    within_memory(needed, "temp_clip", f" to train the head on {num_clips} clips", advice)


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
        shape = new_shape(task.config, backbone, self.sentences.width)
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
