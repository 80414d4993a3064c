"""What a run has in hand between its stages."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from dejavu.backbones.load import Backbone
from dejavu.cluster import cluster
from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.stored import clips_identity
from dejavu.embedding.texts import embed_texts
from dejavu.experiment import Experiment, Stage
from dejavu.observability.tracking import Run, Tracking
from dejavu.records import Dataset, Question, Split, Transcoded
from dejavu.stages.frontier import git_commit
from dejavu.stages.score import EvalSet, build_class_eval_set, build_eval_set
from dejavu.stages.temp_clip import TrainedHead
from dejavu.storage.failed import check_failures, write_failures_csv
from dejavu.storage.setting import Setting, name_setting
from dejavu.storage.store import Store, identity
from dejavu.storage.store_path import StorePath
from dejavu.tasks.class_readers import ClassReaders
from reuse_models.baselines.original import OriginalConfig
from reuse_models.method import MethodConfig


@dataclass
class Job:
    """What a run has in hand between its stages."""

    experiment: Experiment
    results: StorePath
    store: Store
    tracking: Tracking
    backbone: Backbone
    dataset: Dataset
    embedding: EmbedContext
    clips: dict[str, Transcoded] = field(default_factory=dict)
    head: TrainedHead | None = None
    """Answers the questions, where that is not left to CLIP's text tower."""
    readers: ClassReaders | None = None
    """Tell the class of a clip, where clips have classes."""
    tried: list[Run] = field(default_factory=list)
    """On validation clips, in this run's sweep."""
    started: float = field(default_factory=time.monotonic)

    def runs(self, *stages: Stage) -> bool:
        """Whether one of these stages was asked for."""
        return not set(stages).isdisjoint(self.experiment.stages)

    @cached_property
    def original(self) -> Setting:
        """The dense tower: the teacher, and what all others are compared with."""
        return self.name(OriginalConfig())

    def of_split(self, split: Split) -> list[Transcoded]:
        """Transcoded clips of one split."""
        names = [clip.clip_id for clip in self.dataset.clips if clip.split == split]
        return [self.clips[name] for name in names if name in self.clips]

    def questions(self, split: Split) -> list[Question]:
        """Questions of one split."""
        return [question for question in self.dataset.questions if question.split == split]

    def eval_set(self, split: Split, clips: Sequence[Transcoded]) -> EvalSet:
        """What is asked about these clips of one split."""
        if self.readers is not None:
            return build_class_eval_set(clips, self.questions(split), self.readers)
        embed = partial(embed_texts, backbone=self.backbone, store=self.store)
        return build_eval_set(clips, self.questions(split), embed, self.experiment.prompt, self.head)

    def name(self, config: MethodConfig) -> Setting:
        """Name a method's config on this backbone."""
        return name_setting(config, self.backbone.identity, self.experiment.embed.shaping())

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)

    def check(self) -> None:
        """Write failures.csv, and end the run where too much failed."""
        failures = write_failures_csv(self.store, self.results / "failures.csv")
        limit = self.experiment.max_failed_fraction
        check_failures(failures, len(self.dataset.clips), len(self.of_split("test")), limit)


def tags(job: Job) -> dict[str, str]:
    """Return what names this run in MLflow."""
    config = (job.results / "config.yaml").read_text(encoding="utf-8")
    return {
        "recipe": job.experiment.recipe,
        "git_commit": git_commit(os.environ.get("DEJAVU_GIT_COMMIT")),
        "config_hash": identity({"config": config}),
        "data_hash": clips_identity(job.clips.values()),
        "backbone": f"{job.backbone.name} {job.backbone.identity[:12]}",
        "hardware": cluster.hardware(),
        "precision": job.experiment.embed.precision,
    }
