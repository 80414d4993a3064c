"""Fit ReuseViT at each target reuse rate with Ray Train, from streamed decode and the store's dense embeddings.

All targets are fitted in one run: workers decode a batch once and every target learns from it, since starting workers
costs more than a fit on a small tower. With several workers each takes its share of the clips, and gradients are
averaged. A fit that was interrupted goes on from its last checkpoint; one that is finished is not done again.

    <store>/train/<run id>/                      Ray Train's checkpoints: weights, optimiser, progress
    <store>/addons/<addon id>/target=<r>.safetensors, .json    finished weights and their shape
    <store>/addons/<addon id>/fit.json           how it went; written last
    <store>/addons/latest.json                   those of the last training, for stages that run by themselves
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import ray
import torch
import tyro
from ray import train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.backbones.shared import Arrays, BackboneOutline, from_arrays, outline, to_arrays
from dejavu.cluster.cluster import grows
from dejavu.embedding.batch import Embedding, cut, decode_batch
from dejavu.embedding.calibrate import PROBED_BIASES, bias_for, rate_curve
from dejavu.embedding.encode import load_encoder
from dejavu.embedding.stored import clips_identity, read_embeddings
from dejavu.embedding.windows import (
    SHUFFLED_WINDOWS,
    STAGE,
    Window,
    WindowStream,
    in_parts,
    num_windows,
    to_batch,
)
from dejavu.observability.live_curves import See, following
from dejavu.observability.metrics import Step, failed, first_line, metered
from dejavu.records import Failure, Transcoded
from dejavu.stages.fit_plan import FitPlan, Machine, plan_fit
from dejavu.storage.place import Place, is_file, ray_storage
from dejavu.storage.setting import Setting, kernel_version
from dejavu.storage.store import atomic, identity, patiently, write_json
from reuse_models.reusevit.addon import addon_shape, load_addon, save_addon
from reuse_models.reusevit.engines.token_memory import Semantics
from reuse_models.reusevit.frame_order import PATTERN_SPAN, Order, training_pattern
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.training.fit import Batch, Fit, FitConfig, NotFiniteError, Report
from reuse_models.training.held_out import Batches, best_share, pays, scaled, shift, to_target
from reuse_models.training.loss import LossConfig
from reuse_models.training.memory import TrainingMemory
from reuse_models.training.warm_up import WarmUpConfig, gather_pairs, warm_up

_log = logging.getLogger(__name__)

MIN_WINDOWS = 8
"""What is learned from less holds for nothing else; steps that are made for less are taken at their word."""
SHOWN = ("loss", "rate", "embedding_error", "val_loss", "val_rate", "val_embedding_error")
"""Of an epoch's numbers, those that are printed."""


Watch = Callable[[Mapping[str, Place]], See]
"""Begins to show fits, given the folder of each by target."""


class TrainError(RuntimeError):
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
class TrainedAddon:
    """One finished fit."""

    target: float
    weights: Place
    curve: tuple[Mapping[str, float], ...]
    """One entry per epoch: step, loss and rate on training and validation clips."""
    biases: Mapping[float, float]
    """Requested reuse rate -> bias of the decisions that gives it on validation clips; empty without any."""
    achieved_rate: float | None
    """On validation clips, at bias 0; None without any."""
    semantics: Semantics
    """It was trained under."""
    order: Order
    """It was trained in."""

    @property
    def config(self) -> ReuseVitConfig:
        """ReuseViT as it was trained, under the name that tables give it."""
        name = f"target={self.target:g}"
        return ReuseVitConfig(weights=str(self.weights), name=name, semantics=self.semantics, order=self.order)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What the stage leaves."""

    addons: tuple[TrainedAddon, ...]
    num_trained: int
    """Fitted now; 0 where all were there."""
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class _Task:
    """All that a worker needs; small enough to travel."""

    embedding: Embedding
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


def train_addons(
    clips: Mapping[str, Sequence[Transcoded]],
    original: Setting,
    embedding: Embedding,
    config: TrainConfig,
    watch: Watch | None = None,
) -> TrainResult:
    """Fit what the store lacks.

    Args:
        clips: By split, `train` and `val`; the dense embeddings of both must be in the store.
        original: Dense: the teacher.
        embedding: Backbone, store and how videos are read.
        config: Targets and schedule.
        watch: Given the folder of each add-on that will be fitted, returns what is called with the curves so far, by
            target, whenever they have grown.

    Raises:
        TrainError: The clips do not do, the teacher's embeddings are not those of this backbone and transcode, or the
            loss is no number any more.
    """
    long, validation = long_enough(clips["train"]), long_enough(clips.get("val", ()))
    ids = {target: _addon_id(target, long, original, config) for target in config.targets}
    pending = tuple(target for target in config.targets if _read(embedding, ids[target], target) is None)
    failures: tuple[Failure, ...] = ()
    if pending:
        _check(long, validation, original, embedding, config, len(clips["train"]))
        task = _Task(embedding, config, pending, long, validation, original)
        see = watch({f"{target:g}": _folder(embedding, ids[target]) for target in pending}) if watch else None
        failures = _fit(task, ids, see)
    addons = tuple(addon for target in config.targets if (addon := _read(embedding, ids[target], target)))
    write_json(_latest(embedding), {f"{target:g}": ids[target] for target in config.targets})
    return TrainResult(addons, len(pending), failures)


def long_enough(clips: Sequence[Transcoded]) -> tuple[Transcoded, ...]:
    """Return the clips that a training window fits into."""
    return tuple(clip for clip in clips if clip.num_frames >= PATTERN_SPAN)


def read_addons(embedding: Embedding) -> tuple[TrainedAddon, ...]:
    """Return what the last training in this results folder left; nothing where there was none."""
    if not is_file(_latest(embedding)):
        return ()
    ids = json.loads(_latest(embedding).read_text(encoding="utf-8"))
    found = [_read(embedding, addon_id, float(target)) for target, addon_id in ids.items()]
    return tuple(addon for addon in found if addon)


def _latest(embedding: Embedding) -> Place:
    return embedding.store.root / "addons" / "latest.json"


def _addon_id(target: float, clips: Sequence[Transcoded], original: Setting, config: TrainConfig) -> str:
    """Name an add-on by everything that it follows from; Original's setting names backbone, decoder and code."""
    settings = asdict(config)
    for name in ("targets", "num_workers", "windows_at_once", "max_failures", "compile"):
        settings.pop(name)
    parts = {"target": target, "clips": clips_identity(clips), "teacher": original.setting_id, "config": settings}
    return identity({**parts, "code": kernel_version(Fit.__module__, warm_up.__module__, best_share.__module__)})


def _folder(embedding: Embedding, addon_id: str) -> Place:
    return embedding.store.root.resolve() / "addons" / addon_id


def _read(embedding: Embedding, addon_id: str, target: float) -> TrainedAddon | None:
    folder = _folder(embedding, addon_id)
    note = folder / "fit.json"
    if not is_file(note):
        return None
    found = json.loads(note.read_text(encoding="utf-8"))
    return TrainedAddon(
        target,
        folder / f"target={target:g}.safetensors",
        tuple(found["curve"]),
        {float(rate): bias for rate, bias in found["biases"].items()},
        found["achieved_rate"],
        found["semantics"],
        found["order"],
    )


def _check(  # noqa: PLR0913, PLR0917  one call, in one place
    long: Sequence[Transcoded],
    validation: Sequence[Transcoded],
    original: Setting,
    embedding: Embedding,
    config: TrainConfig,
    num_given: int,
) -> None:
    """Refuse at start what would fail later."""
    wanted = min(MIN_WINDOWS, config.fit.clips_per_step)
    if num_windows(long) < wanted:
        raise TrainError(
            f"training clips: got {num_given}, of which {len(long)} have {PATTERN_SPAN} frames or more and give "
            f"{num_windows(long)} windows, expected {wanted} or more; give more or longer videos"
        )
    for name, some in (("training", long), ("validation", validation)):
        found = read_embeddings(embedding, original, some)
        lacking = [clip.clip_id for clip in some if clip.clip_id not in found]
        if len(lacking) == len(some) and some:
            raise TrainError(
                f"teacher: got no dense embedding of {len(some)} {name} clips under this backbone, transcode and code, "
                "expected those of the embed stage; run it with this very configuration first"
            )


def _fit(task: _Task, ids: Mapping[float, str], see: See | None) -> tuple[Failure, ...]:
    """Run Ray Train, showing its curves, and keep what it leaves."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    fitting = gpus or min(2, max(1, int(resources.get("CPU", 1))))
    wanted = min(task.config.num_workers or fitting, len(task.train))
    tower = _tower(task, on_gpu=bool(gpus))
    try:
        plan = plan_fit(
            lambda workers: task.memory_of(workers, tower.outline, shared=tower.loaded is not None, on_gpu=bool(gpus)),
            _gpus() if gpus else _machines(),
            wanted,
            task.config.windows_at_once,
            refuses=not grows(),
        )
    except ValueError as error:
        raise TrainError(str(error)) from error
    print(f"  train: {plan}", flush=True)
    # Not by the number of workers: on what is left of a cluster, the same command goes on from the last checkpoint.
    run_id = identity({"addons": sorted(ids[target] for target in task.targets)})
    storage = ray_storage(task.embedding.store.root / "train")
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"task": task, "plan": plan, "tower": tower},
        scaling_config=ScalingConfig(
            num_workers=plan.num_workers, use_gpu=bool(gpus), resources_per_worker=None if gpus else {"CPU": 1}
        ),
        run_config=RunConfig(
            name=run_id,
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            failure_config=FailureConfig(max_failures=task.config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        with following(_curves(task.embedding, run_id), see) if see else contextlib.nullcontext():
            result = trainer.fit()
    except TrainingFailedError as error:
        raise TrainError(lost_workers(error, task.config.max_failures)) from error
    if result.checkpoint is None or result.metrics is None:
        raise TrainError(f"training: got no checkpoint ({result.error}), expected one; see Ray's log of the workers")
    with result.checkpoint.as_directory() as folder:
        progress = json.loads((Path(folder) / "progress.json").read_text(encoding="utf-8"))
        if broken := progress.get("broken"):
            raise TrainError(f"{broken}; the last good checkpoint is {result.checkpoint.path}")
        for target in task.targets:
            note = progress["targets"][f"{target:g}"]
            patiently(partial(_keep, Path(folder), _folder(task.embedding, ids[target]), target, note))
    failures = tuple(Failure(**row) for row in progress["failures"])
    task.embedding.store.write_failures(STAGE, failures)
    failed(failures)
    return failures


@dataclass(frozen=True, slots=True)
class _Tower:
    """The frozen tower as it travels: its weights lie in the object store of each machine, once for all its workers."""

    outline: BackboneOutline
    loaded: ray.ObjectRef[tuple[BackboneOutline, Arrays]] | None
    """None where each worker loads its own: on a GPU, in 16 bits, or where the object store has no room."""


def _tower(task: _Task, *, on_gpu: bool) -> _Tower:
    """Load the backbone once, apart, so that what loading takes is given back."""
    which = task.embedding.backbone, task.embedding.image_px
    if not on_gpu and task.config.tower_dtype("cpu") == torch.float32:
        loaded = _load.remote(*which, True)
        try:
            return _Tower(ray.get(loaded)[0], loaded)
        except ray.exceptions.RayError as error:  # the backbone's own faults come up again below
            _log.warning("tower: got %s, expected it in the object store; each worker loads its own", first_line(error))
    return _Tower(ray.get(_load.remote(*which, False))[0], None)


@ray.remote(num_cpus=1, max_calls=1)
def _load(name: str, image_px: int | None, whole: bool) -> tuple[BackboneOutline, Arrays]:
    backbone = load_backbone(name, image_px)
    return outline(backbone), to_arrays(backbone.vit) if whole else {}


def _machines() -> list[Machine]:
    """List machines with CPUs, and what Ray has for tasks on each."""
    every = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(int(one["CPU"]), int(one["memory"])) for one in every if one.get("CPU") and one.get("memory")]


def _gpus() -> list[Machine]:
    """Ask a worker with a GPU for its memory."""
    return [Machine(1, ray.get(_gpu_bytes.remote()))]


@ray.remote(num_cpus=0, num_gpus=1, max_calls=1)
def _gpu_bytes() -> int:
    return int(torch.cuda.get_device_properties(0).total_memory)


def _curves(embedding: Embedding, run_id: str) -> Place:
    """Where workers write the curves so far."""
    return embedding.store.root.resolve() / "train" / run_id / "curves.json"


def lost_workers(error: TrainingFailedError, max_failures: int) -> str:
    """Say in one line why Ray Train gave up, and how to go on."""
    reason = str(error).strip().splitlines()[-1]
    return (
        f"training: got workers that failed more than {max_failures} times ({reason}), expected them to come back; run "
        "the same command again: it goes on from the last checkpoint"
    )


def _keep(checkpoint: Path, folder: Place, target: float, progress: Mapping[str, Any]) -> None:
    """Copy one target's weights out of a checkpoint; the note that makes them count comes last."""
    for suffix in ("json", "safetensors"):
        with atomic(folder / f"target={target:g}.{suffix}") as temporary:
            shutil.copyfile(checkpoint / f"target={target:g}.{suffix}", temporary)
    write_json(folder / "fit.json", progress)


# ------------------------------------------------------------------------------------------------------- in the workers
def _worker(config: dict[str, Any]) -> None:
    """Fit all targets on this worker's share of the clips."""
    by_file = [name for name in logging.root.manager.loggerDict if Path(train.__file__).parent in Path(name).parents]
    for name in ("ray.train", "botocore", "aiobotocore", *by_file):  # some lines a checkpoint otherwise
        logging.getLogger(name).setLevel(logging.WARNING)
    task: _Task = config["task"]
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and world > 1:
        torch.set_num_threads(1)
    _Course(task, _backbone(task, config["tower"], device), config["plan"], rank, world).run()


def _backbone(task: _Task, tower: _Tower, device: str) -> Backbone:
    """Map the tower's weights where they lie on this machine, else load them."""
    if tower.loaded is not None:
        try:
            return from_arrays(*ray.get(tower.loaded))
        except ray.exceptions.RayError as error:
            _log.warning("tower: got %s, expected its weights in the object store; loading them", first_line(error))
    return load_backbone(
        task.embedding.backbone, task.embedding.image_px, device=device, dtype=task.config.tower_dtype(device)
    )


class _Course:
    """The fits of one worker, side by side on the same batches."""

    def __init__(self, task: _Task, backbone: Backbone, plan: FitPlan, rank: int, world: int) -> None:
        self.task, self.backbone, self.plan, self.rank, self.world = task, backbone, plan, rank, world
        config = task.config
        by_content = sorted(task.train, key=lambda clip: clip.content_id)
        mine = by_content[rank::world]
        teacher = read_embeddings(task.embedding, task.original, mine)
        readable = [clip for clip in mine if clip.clip_id in teacher]
        self.stream = WindowStream(
            readable, {name: found.embeddings_FE for name, found in teacher.items()}, task.embedding, config.fit.order
        )
        self.fits = {
            target: Fit(
                backbone.vit,
                config.loss(target),
                config.fit,
                compiled=config.compile,
                clips_at_once=plan.clips_at_once,
            )
            for target in task.targets
        }
        self.curves: dict[float, list[dict[str, float]]] = {target: [] for target in task.targets}
        self.biases: dict[float, dict[str, float]] = {target: {} for target in task.targets}
        self.achieved: dict[float, float | None] = dict.fromkeys(task.targets)
        self.best = {target: (float("inf"), fit.addon) for target, fit in self.fits.items()}
        """Per target, the lowest loss on validation clips so far and the weights of that epoch: what is kept."""
        self.stopped: set[float] = set()
        clips_per_step, self.num_steps = config.course(num_windows(task.train), world)
        self.per_rank = clips_per_step // world
        self.steps_per_epoch = max(1, num_windows(task.train) // clips_per_step)
        self.step, self.broken = 0, ""
        self.started = time.monotonic()

    def run(self) -> None:
        """Train to the end, reporting after each epoch."""
        resumed = train.get_checkpoint()
        if resumed is not None:
            with resumed.as_directory() as folder:
                self._load(Path(folder))
        # Another stretch of the stream after each resume: what was seen is not decoded again.
        windows = self.stream.shuffled(self.rank + 1000 * self.step)
        validation = self._validation()
        if resumed is None:
            self._warm_up(windows)
            self._start_from(validation)
        began, sums = self.step, {target: _Means() for target in self.fits}
        while self.step < self.num_steps and len(self.stopped) < len(self.fits) and not self.broken:
            with metered(Step(stage=STAGE, step="decode")) as done:
                batch = to_batch([next(windows) for _ in range(self.per_rank)], self.backbone)
                done.num_frames = batch.num_frames
            for target, fit in self.fits.items():
                if target not in self.stopped:
                    self._take_step(target, fit, batch, sums[target])
            self.step += 1
            if self.step % self.steps_per_epoch == 0 or self.step == self.num_steps or self.broken:
                self._end_epoch(sums, validation, began)
                sums = {target: _Means() for target in self.fits}
        self._finish(validation)
        self._calibrate()
        self._report()

    def _start_from(self, validation: Sequence[Window]) -> None:
        """Take as much of restoration as held-out clips say; what comes of training must be better than this start."""
        for target in self.fits:
            share = self._take_share(target, validation)
            self._take_rate(target, validation)
            if validation:
                fit = self.fits[target]
                report = fit.validate(self._held_out(validation)())
                self.best[target] = report.loss, copy.deepcopy(fit.addon)
                self.curves[target].append({"step": 0.0, **_validated(report)})
                rank = fit.addon.shape.restoration_rank
                said = f"{share:.0%} of a restoration of rank {rank}" if rank else "no restoration"
                print(f"  train target={target:g}: begins with {said}, val_loss {report.loss:.4g}", flush=True)

    def _take_share(self, target: float, validation: Sequence[Window]) -> float:
        """Shrink what the warm-up regressed, all workers alike, and return to what share."""
        fit = self.fits[target]
        if not self.task.config.warm_up.steps:
            return 1.0
        share = torch.tensor([best_share(fit, self._held_out(validation)) if validation else 1.0])
        if self.world > 1:
            torch.distributed.broadcast(share, 0)
        if share[0]:
            fit.addon.load_state_dict(scaled(fit.addon, float(share)).state_dict())
        else:
            self.fits[target] = fit.without_restoration()
        return float(share)

    def _take_rate(self, target: float, validation: Sequence[Window]) -> None:
        """Begin a fit that holds its rate at about that rate, all workers alike."""
        fit = self.fits[target]
        if self.task.config.fit.rate != "held" or not self.task.config.warm_up.steps:
            return
        bias = torch.tensor([to_target(fit, self._held_out(validation)) if validation else 0.0])
        if self.world > 1:
            torch.distributed.broadcast(bias, 0)
            if self.rank:
                shift(fit.addon, float(bias))

    def _finish(self, validation: Sequence[Window]) -> None:
        """Leave restoration out of what is kept where it does not pay; the first worker alone keeps anything."""
        for target, (loss, addon) in self.best.items():
            if not validation or self.broken or not addon.shape.restoration_rank:
                continue
            fit, held_out = self.fits[target], self._held_out(validation)
            if not pays(fit.validate(held_out(), addon), fit, addon, held_out):
                self.best[target] = loss, addon.without_restoration()
                print(f"  train target={target:g}: restoration does not pay and is left out", flush=True)

    def _held_out(self, validation: Sequence[Window]) -> Batches:
        return lambda: in_parts(validation, self.plan.validated_at_once, self.backbone)

    def _calibrate(self) -> None:
        """Find the bias for each wanted rate; the first worker alone, on whole validation clips."""
        config = self.task.config
        clips = sorted(self.task.validation, key=lambda clip: clip.content_id)[: config.calibration_clips]
        if self.rank or not clips or self.broken:
            return
        segments = [part for part in cut(clips, self.task.embedding.config.segment_frames) if not part.start]
        backbone = self.backbone
        if backbone.vit.position.dtype != getattr(torch, self.task.embedding.config.precision):
            # Biases are for the tower that embeds.
            backbone = load_encoder(self.task.embedding, str(backbone.vit.position.device))
        curves: dict[float, list[list[float]]] = {target: [] for target in self.best}
        num_frames: list[int] = []
        with tempfile.TemporaryDirectory() as folder:
            for first in range(0, len(segments), self.plan.calibrated_at_once):
                some = segments[first : first + self.plan.calibrated_at_once]
                frames = decode_batch(some, self.task.embedding).frames
                if not frames:
                    continue
                num_frames.append(sum(len(part.seconds_F) for part in frames))
                for target, (_, addon) in self.best.items():
                    weights = Path(folder) / f"target={target:g}.safetensors"
                    save_addon(addon, weights)
                    fit = config.fit
                    setting = ReuseVitConfig(weights=str(weights), semantics=fit.semantics, order=fit.order)
                    with metered(Step(stage=STAGE, step="calibrate")) as done:
                        curves[target].append(rate_curve(setting, backbone, frames))
                        done.num_frames = len(PROBED_BIASES) * num_frames[-1]
        if not num_frames:
            return
        for target, found in curves.items():
            rates = [float(rate) for rate in np.average(found, axis=0, weights=num_frames)]
            self.biases[target] = {
                f"{rate:g}": bias_for(rate, PROBED_BIASES, rates) for rate in config.calibrated_rates
            }
            self.achieved[target] = rates[PROBED_BIASES.index(0.0)]
            print(f"  train target={target:g}: reuses {self.achieved[target]:.3f} on validation clips", flush=True)

    def _take_step(self, target: float, fit: Fit, batch: Batch, means: _Means) -> None:
        try:
            with metered(Step(stage=STAGE, step="fit")) as done:
                means.add(fit.step(batch, self._average if self.world > 1 else None))
                done.num_frames = batch.num_frames
        except NotFiniteError as error:
            self.broken = f"target {target:g}, step {self.step}: {error}"

    def _average(self, gradients: Sequence[torch.Tensor]) -> None:
        """Average over workers: one message for all weights."""
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        for gradient, new in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(new.view_as(gradient))

    def _warm_up(self, windows: Any) -> None:
        """Start from what the dense tower shows; every worker sees its own clips, the first one's start is taken."""
        config = self.task.config.warm_up
        if not config.steps:
            return
        size = min(self.per_rank, self.plan.clips_at_once)
        some = ([next(windows) for _ in range(size)] for _ in range(-(-config.num_clips // size)))
        pixels = (to_batch(part, self.backbone).pixels_CF3HW for part in some)
        with metered(Step(stage=STAGE, step="gather")) as done:
            pairs_b = gather_pairs(self.backbone.vit, pixels, training_pattern(self.task.config.fit.order), config)
            done.num_frames = -(-config.num_clips // size) * size * len(training_pattern(self.task.config.fit.order))
        with metered(Step(stage=STAGE, step="warm_up")):
            warm_up({target: fit.addon for target, fit in self.fits.items()}, pairs_b, config)
        if self.world > 1:
            for fit in self.fits.values():
                for value in fit.addon.state_dict().values():
                    torch.distributed.broadcast(value, 0)

    def _validation(self) -> list[Window]:
        """Return windows of validation clips, the same after each epoch; on the first worker alone."""
        clips = sorted(self.task.validation, key=lambda clip: clip.content_id)
        if self.rank or not clips:
            return []
        teacher = read_embeddings(self.task.embedding, self.task.original, clips)
        clips = [clip for clip in clips if clip.clip_id in teacher]
        dense = {name: found.embeddings_FE for name, found in teacher.items()}
        stream = WindowStream(clips, dense, self.task.embedding, self.task.config.fit.order)
        windows = stream.windows(0, per_visit=1)
        wanted = min(self.task.config.validation_windows, num_windows(clips))
        return [next(windows) for _ in range(wanted)]

    def _end_epoch(self, sums: Mapping[float, _Means], validation: Sequence[Window], began: int) -> None:
        """Lower learning rates, look at validation clips, report."""
        for target, fit in self.fits.items():
            if target in self.stopped:
                continue
            fit.end_epoch()
            entry = {"step": float(self.step), **sums[target].values()}
            if validation:
                with metered(Step(stage=STAGE, step="validate")) as done:
                    entry |= _validated(fit.validate(self._held_out(validation)()))
                    done.num_frames = sum(len(window.rgb_FHWC) for window in validation)
            self.curves[target].append(entry)
            judged = entry.get("val_loss", entry.get("loss", float("inf")))
            if judged < self.best[target][0]:
                self.best[target] = judged, copy.deepcopy(fit.addon)
        self._stop_early()
        if not self.rank:
            spent = time.monotonic() - self.started
            left = spent / max(1, self.step - began) * (self.num_steps - self.step)
            for target, curve in self.curves.items():
                shown = ", ".join(f"{name} {curve[-1][name]:.4g}" for name in SHOWN if name in curve[-1])
                print(f"  train target={target:g}: step {self.step} of {self.num_steps}, {shown}", flush=True)
            print(f"  train: {spent:.0f} s, about {left:.0f} s left", flush=True)
        self._report()
        if not self.rank:
            self._show({"progress": self.step / self.num_steps, "seconds_left": left})

    def _show(self, progress: Mapping[str, float]) -> None:
        """Write the curves so far for the driver to log; the last entry of each carries the progress."""
        curves = {f"{target:g}": [dict(entry) for entry in curve] for target, curve in self.curves.items()}
        for target in self.fits.keys() - self.stopped:
            curves[f"{target:g}"][-1] |= progress
        with contextlib.suppress(OSError):  # a picture of the fit is not worth the fit
            write_json(_curves(self.task.embedding, train.get_context().get_experiment_name()), curves)

    def _stop_early(self) -> None:
        """Stop what has not got better for `patience` epochs; the first worker decides for all."""
        patience = self.task.config.patience
        for index, target in enumerate(self.fits):
            losses = [entry.get("val_loss", entry.get("loss", float("inf"))) for entry in self.curves[target]]
            stale = len(losses) - 1 - losses.index(min(losses)) if losses else 0
            decided = torch.tensor([float(stale >= patience), float(index)])
            if self.world > 1:
                torch.distributed.broadcast(decided, 0)
            if decided[0]:
                self.stopped.add(target)

    def _report(self) -> None:
        metrics: dict[str, Any] = {"step": self.step, "broken": self.broken}
        failures: list[Any] = [asdict(failure) for failure in self.stream.failures.values()]
        if self.world > 1:
            gathered: list[Any] = [None] * self.world
            torch.distributed.all_gather_object(gathered, failures)
            failures = [row for rows in gathered for row in rows]
        if self.rank:
            train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), failures)
            train.report(metrics, checkpoint=Checkpoint.from_directory(folder))

    def _save(self, folder: Path, failures: list[dict[str, Any]]) -> None:
        """Write weights, optimisers and progress: safetensors and JSON alone."""
        for target, fit in self.fits.items():
            save_addon(self.best[target][1], folder / f"target={target:g}.safetensors")
            save_addon(fit.addon, folder / f"target={target:g}.last.safetensors")
            fit.save_optimizer(folder / f"target={target:g}.optimizer.safetensors")
        progress = {
            "step": self.step,
            "broken": self.broken,
            "stopped": sorted(self.stopped),
            "failures": failures,
            "best": {f"{target:g}": loss for target, (loss, _) in self.best.items()},
            "targets": {
                f"{target:g}": {
                    "target": target,
                    "achieved_rate": self.achieved[target],
                    "biases": self.biases[target],
                    "semantics": self.task.config.fit.semantics,
                    "order": self.task.config.fit.order,
                    "curve": curve,
                }
                for target, curve in self.curves.items()
            },
        }
        (folder / "progress.json").write_text(json.dumps(progress), encoding="utf-8")

    def _load(self, folder: Path) -> None:
        progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        self.step, self.stopped = progress["step"], set(progress["stopped"])
        for failure in progress["failures"]:
            self.stream.failures[failure["clip_id"]] = Failure(**failure)
        for target in self.fits:
            best = load_addon(folder / f"target={target:g}.safetensors").to(self.backbone.vit.position.device)
            self.best[target] = progress["best"][f"{target:g}"], best
            last = load_addon(folder / f"target={target:g}.last.safetensors")
            if not last.shape.restoration_rank:
                self.fits[target] = self.fits[target].without_restoration()
            fit = self.fits[target]
            fit.addon.load_state_dict(last.state_dict())
            fit.load_optimizer(folder / f"target={target:g}.optimizer.safetensors")
            self.curves[target] = progress["targets"][f"{target:g}"]["curve"]


class _Means:
    """Means of the reports since the last epoch."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def add(self, report: Report) -> None:
        self.reports.append(report)

    def values(self) -> dict[str, float]:
        if not self.reports:
            return {}
        rows = [_numbers(report) for report in self.reports]
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _validated(report: Report) -> dict[str, float]:
    return {f"val_{name}": value for name, value in _numbers(report).items()}


def _numbers(report: Report) -> dict[str, float]:
    layers = {f"rate_layer_{layer}": rate for layer, rate in enumerate(report.rate_per_boundary, 1)}
    return {"loss": report.loss, "rate": report.rate, "embedding_error": report.embedding_error, **layers}
