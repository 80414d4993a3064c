"""What a fit of ReuseViT is told: its configuration, its clips, and the frozen tower as it travels to workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import ray
import torch
import tyro

from dejavu.backbones.shared import Arrays, BackboneOutline
from dejavu.cluster.cluster import grows, memory_per_machine
from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.windows import SHUFFLED_WINDOWS, num_windows
from dejavu.records import Transcoded
from dejavu.storage.one_line import OneLineError
from dejavu.storage.setting import Setting
from reuse_models.reusevit.addon import addon_shape
from reuse_models.training.fit import FitConfig
from reuse_models.training.loss import LossConfig
from reuse_models.training.memory import GIB, TrainingMemory
from reuse_models.training.warm_up import WarmUpConfig


class TrainError(OneLineError):
    """Training cannot begin, or broke off; one line says why and what to do."""


def within_memory(needed: int, fit: str, spent_on: str, advice: str) -> int:
    """Return the bytes that a fit needs, if a machine has as many or larger ones may come.

    Raises:
        TrainError: None has.
    """
    if not grows() and needed > (there := max(memory_per_machine())):
        raise TrainError(
            f"{fit}: got machines of {there / GIB:.1f} GiB at most, expected {needed / GIB:.1f} GiB{spent_on}; {advice}"
        )
    return needed


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How ReuseViT's add-ons are fitted, and for how long."""

    targets: tuple[float, ...] = (0.9, 0.8)
    """Target reuse rates, 0..1; one add-on is fitted for each."""
    epochs: int = 5
    """Minimum number of visits to each training clip."""
    min_steps: int = 400
    """Minimum number of steps. With little video, steps use fewer clips, and after that there are more epochs."""
    max_steps: int | None = None
    """Maximum number of steps; None means no limit."""
    patience: int = 7
    """Number of epochs without a better loss on validation clips after which the fit of a target ends."""
    second_last_weight: float = 0.0
    """Weight of the second-to-last layer's hidden states in the loss; above 0, each step needs a dense pass too."""
    rate_weight: float = 0.35
    """Weight of the reuse rate in the loss."""
    validation_windows: int = 32
    """Number of windows of validation clips that are evaluated after each epoch."""
    calibrated_rates: tuple[float, ...] = (0.6, 0.7, 0.8, 0.85, 0.9, 0.93)
    """Reuse rates, 0..1, for which a bias of the decisions is calibrated on validation clips."""
    calibration_clips: int = 8
    """Maximum number of validation clips used for this calibration."""
    num_workers: int | None = None
    """Number of training workers, each with a GPU or, without GPUs, a CPU; fewer start if memory is short. If not
    given, one per GPU, or up to two on CPUs."""
    windows_at_once: int | None = None
    """Number of a step's windows that run forward and backward together; their gradients add up to the step's. If not
    given, as many as fit in memory (docs/training.md)."""
    max_failures: int = 2
    """Maximum number of times that dead workers are replaced."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the frozen tower during training; `auto` means bfloat16 on GPUs and float32 on CPUs. The add-on
    stays in float32, and embedding uses --embed.precision."""
    compile: Annotated[bool, tyro.conf.arg(aliases=["--compile"])] = False
    """Whether steps run through torch.compile, which takes minutes before the first step (docs/training.md)."""
    fit: FitConfig = field(default_factory=FitConfig)
    warm_up: WarmUpConfig = field(default_factory=WarmUpConfig)

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"train.targets: got {self.targets}, expected different rates; name each once")
        for target in self.targets:
            LossConfig(target_rate=target)
        counts = (self.epochs, self.min_steps, self.patience, self.validation_windows)
        optional = (self.num_workers, self.max_steps, self.windows_at_once)
        if any(count is not None and count < 1 for count in counts + optional):
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
        """Return what a worker's memory follows from."""
        config = self.config
        per_rank = config.course(num_windows(self.train), num_workers)[0] // num_workers
        held = SHUFFLED_WINDOWS + (-(-config.validation_windows // num_workers) if self.validation else 0)
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
            embedding_dtype=getattr(torch, self.embedding.config.precision),
            on_gpu=on_gpu,
            shares_tower=shared,
        )


@dataclass(frozen=True, slots=True)
class FitTower:
    """The frozen tower as it travels: its weights lie in the object store of each machine, once for all its workers."""

    outline: BackboneOutline
    loaded: ray.ObjectRef[tuple[BackboneOutline, Arrays]] | None
    """None where each worker loads its own: on a GPU, in 16 bits, or where the object store has no room."""
