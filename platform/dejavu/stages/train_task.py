"""What a fit of ReuseViT is told: its configuration, its clips, and the frozen tower as it travels to workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import ray
import torch
import tyro

from dejavu.backbones.shared import Arrays, BackboneOutline
from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.windows import SHUFFLED_WINDOWS, num_windows
from dejavu.records import Transcoded
from dejavu.storage.one_line import OneLineError
from dejavu.storage.setting import Setting
from reuse_models.reusevit.addon import addon_shape
from reuse_models.training.fit import FitConfig
from reuse_models.training.loss import LossConfig
from reuse_models.training.memory import TrainingMemory
from reuse_models.training.warm_up import WarmUpConfig


class TrainError(OneLineError):
    """Training cannot begin, or broke off; one line says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """What is fitted, and for how long."""

    targets: tuple[float, ...] = (0.9, 0.8)
    """Reuse rates, 0..1; one add-on is fitted for each."""
    epochs: int = 5
    """Visits to each training clip, at least."""
    min_steps: int = 400
    """Where there is little video, steps have fewer clips, and then there are more epochs, until there are so many."""
    max_steps: int | None = None
    """Ends the fit earlier."""
    patience: int = 7
    """Epochs without a better loss on validation clips after which a target stops."""
    second_last_weight: float = 0.0
    """Of the second-to-last layer's hidden states in the loss; needs a dense pass beside each step."""
    rate_weight: float = 0.35
    validation_windows: int = 32
    """Windows of validation clips looked at after each epoch."""
    calibrated_rates: tuple[float, ...] = (0.6, 0.7, 0.8, 0.85, 0.9, 0.93)
    """Reuse rates for which the bias of the decisions is sought on validation clips."""
    calibration_clips: int = 8
    num_workers: int | None = None
    """A GPU each where there are any, else a CPU each; as many as there are, up to two on CPUs; fewer where there is no
    memory for all of them."""
    windows_at_once: int | None = None
    """Of a step's, those run forward and backward together; their gradients add up to the step's. As many as there
    is memory for unless given (docs/training.md)."""
    max_failures: int = 2
    """Times that dead workers are replaced."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen tower while it trains: bfloat16 on GPUs and float32 on CPUs unless given. What is trained, and what
    is measured afterwards, is float32."""
    compile: Annotated[bool, tyro.conf.arg(aliases=["--compile"])] = False
    """Whether steps go through torch.compile, which takes minutes before the first one (docs/training.md)."""
    fit: FitConfig = field(default_factory=FitConfig)
    warm_up: WarmUpConfig = field(default_factory=WarmUpConfig)

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            ValueError: A target is outside 0..1 or stands twice, or a count is below 1.
        """
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"train.targets: got {self.targets}, expected different rates; name each once")
        for target in self.targets:
            LossConfig(target_rate=target)
        optional = (self.num_workers, self.max_steps, self.windows_at_once)
        counts = [
            self.epochs,
            self.min_steps,
            self.patience,
            self.validation_windows,
            *(1 if n is None else n for n in optional),
        ]
        if min(counts) < 1:
            raise ValueError(f"train: got {self}, expected counts of 1 or more; leave them at their defaults")

    def tower_dtype(self, device: str) -> torch.dtype:
        """Return the type of the tower's weights on this kind of device."""
        halves = self.precision == "bfloat16" or (self.precision == "auto" and device == "cuda")
        return torch.bfloat16 if halves else torch.float32

    def course(self, windows: int, workers: int = 1) -> tuple[int, int]:
        """Return how many windows a step takes of this many in all, as many for each worker, and how many steps."""
        wanted = min(self.fit.clips_per_step, windows * self.epochs // self.min_steps)
        a_step = max(1, wanted // workers) * workers
        steps = max(self.epochs * max(1, windows // a_step), self.min_steps)
        return a_step, min(steps, self.max_steps or steps)

    def visits(self, windows: int) -> int:
        """Return the epochs that this comes to."""
        a_step, steps = self.course(windows)
        return -(-steps * a_step // max(1, windows))

    def loss(self, target: float) -> LossConfig:
        """Return the loss of one target."""
        return LossConfig(target_rate=target, second_last_weight=self.second_last_weight, rate_weight=self.rate_weight)


@dataclass(frozen=True, slots=True)
class FitTask:
    """All that a worker needs; small enough to travel."""

    embedding: EmbedContext
    config: TrainConfig
    targets: tuple[float, ...]
    train: tuple[Transcoded, ...]
    validation: tuple[Transcoded, ...]
    original: Setting

    def memory_of(self, num_workers: int, found: BackboneOutline, *, shared: bool, on_gpu: bool) -> TrainingMemory:
        """Return what a worker's memory follows from, the first worker's, which validates."""
        config = self.config
        per_rank = config.course(num_windows(self.train), num_workers)[0] // num_workers
        held = SHUFFLED_WINDOWS + (config.validation_windows if self.validation else 0)
        longest = max((clip.num_frames for clip in self.validation), default=0)
        return TrainingMemory(
            shape=found.shape,
            addon=addon_shape(found.shape, config.fit.decision_hidden, config.fit.restoration_rank),
            num_addons=len(self.targets),
            clips_per_step=per_rank,
            held_clips=held,
            warm_up=config.warm_up,
            hidden_terms=bool(config.second_last_weight),
            calibration_frames=min(longest, self.embedding.config.segment_frames),
            dtype=config.tower_dtype("cuda" if on_gpu else "cpu"),
            on_gpu=on_gpu,
            shares_tower=shared,
        )


@dataclass(frozen=True, slots=True)
class FitTower:
    """The frozen tower as it travels: its weights lie in the object store of each machine, once for all its workers."""

    outline: BackboneOutline
    loaded: ray.ObjectRef[tuple[BackboneOutline, Arrays]] | None
    """None where each worker loads its own: on a GPU, in 16 bits, or where the object store has no room."""
