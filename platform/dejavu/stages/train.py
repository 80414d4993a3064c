"""Fit ReuseViT at each target reuse rate with Ray Train, from streamed decode and the store's dense embeddings.

All targets are fitted in one run: workers decode a batch once and every target learns from it, since starting workers
costs more than a fit on a small tower. With several workers each takes its share of the clips, and gradients are
averaged. A fit that was interrupted goes on from its last checkpoint; one that is finished is not done again.

    <store>/train/<run id>/                      Ray Train's checkpoints: weights, optimiser, progress
    <store>/addons/<addon id>/target=<r>.safetensors, .json    finished weights and their shape
    <store>/addons/<addon id>/fit.json           how it went; written last
    <store>/addons/latest-<backbone>.json        those of its last training, for stages that run by themselves
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from dejavu.backbones.load import load_backbone
from dejavu.backbones.shared import Arrays, BackboneOutline, outline, to_arrays
from dejavu.cluster.cluster import grows
from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.stored import clips_identity, complete_clips
from dejavu.embedding.windows import STAGE, num_windows
from dejavu.observability.live_curves import See, following
from dejavu.observability.metrics import failed, first_line
from dejavu.records import Failure, Transcoded
from dejavu.stages.fit_plan import Machine, plan_fit
from dejavu.stages.run_fit import FitRun, run_fit
from dejavu.stages.train_task import FitTask, FitTower, TrainConfig, TrainError
from dejavu.stages.train_worker import curves_of, fit_worker
from dejavu.storage.setting import Setting, kernel_version
from dejavu.storage.store import atomic, identity, retry_io, write_json
from dejavu.storage.store_path import StorePath, is_file
from reuse_models.reusevit.frame_order import PATTERN_SPAN
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.training.fit import Fit
from reuse_models.training.held_out import best_share
from reuse_models.training.warm_up import warm_up

_log = logging.getLogger(__name__)

MIN_WINDOWS = 8
"""What is learned from less holds for nothing else; steps that are made for less are taken at their word."""

Watch = Callable[[Mapping[str, StorePath]], See]
"""Begins to show fits, given the folder of each by target."""


@dataclass(frozen=True, slots=True)
class TrainedAddon:
    """One finished fit."""

    target: float
    weights: StorePath
    curve: tuple[Mapping[str, float], ...]
    """One entry per epoch: step, loss and rate on training and validation clips."""
    biases: Mapping[float, float]
    """Requested reuse rate -> bias of the decisions that gives it on validation clips; empty without any."""
    achieved_rate: float | None
    """On validation clips, at bias 0; None without any."""

    @property
    def config(self) -> ReuseVitConfig:
        """ReuseViT as it was trained, under the name that tables give it."""
        return ReuseVitConfig(weights=str(self.weights), name=f"target={self.target:g}")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What the stage leaves."""

    addons: tuple[TrainedAddon, ...]
    num_trained: int
    """Fitted now; 0 where all were there."""
    failures: tuple[Failure, ...] = ()


def train_addons(
    clips: Mapping[str, Sequence[Transcoded]],
    original: Setting,
    embedding: EmbedContext,
    config: TrainConfig,
    watch: Watch | None = None,
) -> TrainResult:
    """Fit what the store lacks.

    Clips are by split, `train` and `val`; the dense embeddings of both must be in the store. `watch`, given the folder
    of each add-on that will be fitted, returns what is called with the curves so far, by target, whenever they have
    grown.

    Raises:
        TrainError: The clips do not do, the teacher's embeddings are not those of this backbone and transcode, or the
            loss is no number any more.
    """
    long, validation = long_enough(clips["train"]), long_enough(clips.get("val", ()))
    ids = {target: _addon_id(target, long, validation, original, config) for target in config.targets}
    pending = tuple(target for target in config.targets if _read(embedding, ids[target], target) is None)
    failures: tuple[Failure, ...] = ()
    if pending:
        wanted = min(MIN_WINDOWS, config.fit.clips_per_step)
        if num_windows(long) < wanted:
            raise TrainError(
                f"training clips: got {len(clips['train'])}, of which {len(long)} have {PATTERN_SPAN} frames or more "
                f"and give {num_windows(long)} windows, expected {wanted} or more; give more or longer videos"
            )
        for name, some in (("training", long), ("validation", validation)):
            if some and not complete_clips(embedding, original, some):
                raise TrainError(
                    f"teacher: got no dense embedding of {len(some)} {name} clips under this backbone, transcode and "
                    "code, expected those of the embed stage; run it with this very configuration first"
                )
        task = FitTask(embedding, config, pending, long, validation, original)
        see = watch({f"{target:g}": _folder(embedding, ids[target]) for target in pending}) if watch else None
        failures = _fit(task, ids, see)
    addons = tuple(addon for target in config.targets if (addon := _read(embedding, ids[target], target)))
    write_json(_latest(embedding, original), {f"{target:g}": ids[target] for target in config.targets})
    return TrainResult(addons, len(pending), failures)


def long_enough(clips: Sequence[Transcoded]) -> tuple[Transcoded, ...]:
    """Return the clips that a training window fits into."""
    return tuple(clip for clip in clips if clip.num_frames >= PATTERN_SPAN)


def read_addons(embedding: EmbedContext, original: Setting) -> tuple[TrainedAddon, ...]:
    """Return what the last training of this backbone in this results folder left; nothing where there was none."""
    latest = _latest(embedding, original)
    if not is_file(latest):
        return ()
    ids = json.loads(latest.read_text(encoding="utf-8"))
    found = [_read(embedding, addon_id, float(target)) for target, addon_id in ids.items()]
    return tuple(addon for addon in found if addon)


def _latest(embedding: EmbedContext, original: Setting) -> StorePath:
    return embedding.store.root / "addons" / f"latest-{original.backbone_identity[:12]}.json"


def _addon_id(
    target: float,
    clips: Sequence[Transcoded],
    validation: Sequence[Transcoded],
    original: Setting,
    config: TrainConfig,
) -> str:
    """Name an add-on by everything that it follows from; Original's setting names backbone, decoder and code."""
    settings = asdict(config)
    for name in ("targets", "num_workers", "windows_at_once", "max_failures", "compile"):
        settings.pop(name)
    parts = {"target": target, "clips": clips_identity(clips), "teacher": original.setting_id, "config": settings}
    parts["judges"] = clips_identity(validation)
    return identity({**parts, "code": kernel_version(Fit.__module__, warm_up.__module__, best_share.__module__)})


def _folder(embedding: EmbedContext, addon_id: str) -> StorePath:
    return embedding.store.root.resolve() / "addons" / addon_id


def _read(embedding: EmbedContext, addon_id: str, target: float) -> TrainedAddon | None:
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
    )


def _fit(task: FitTask, ids: Mapping[float, str], see: See | None) -> tuple[Failure, ...]:
    """Run Ray Train, showing its curves, and keep what it leaves."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    fitting = gpus or min(2, max(1, int(resources.get("CPU", 1))))
    wanted = min(task.config.num_workers or fitting, len(task.train))
    tower = _tower(task, on_gpu=bool(gpus))
    try:
        plan = plan_fit(
            lambda workers: task.memory_of(workers, tower.outline, shared=tower.loaded is not None, on_gpu=bool(gpus)),
            [Machine(1, ray.get(_gpu_bytes.remote()))] if gpus else _machines(),
            wanted,
            task.config.windows_at_once,
            refuses=not grows(),
        )
    except ValueError as error:
        raise TrainError(str(error)) from error
    print(f"  train: {plan}", flush=True)
    # Not by the number of workers: on what is left of a cluster, the same command goes on from the last checkpoint.
    run_id = identity({"addons": sorted(ids[target] for target in task.targets)})
    run = FitRun(run_id, task.embedding.store.root / "train", plan.num_workers, bool(gpus), task.config.max_failures)
    shown = following(curves_of(task.embedding, run_id), see) if see else contextlib.nullcontext()
    with shown, run_fit(fit_worker, {"task": task, "plan": plan, "tower": tower}, run) as (folder, progress):
        for target in task.targets:
            note = progress["targets"][f"{target:g}"]
            retry_io(partial(_keep, folder, _folder(task.embedding, ids[target]), target, note))
    failures = tuple(Failure(**row) for row in progress["failures"])
    task.embedding.store.write_failures(STAGE, failures)
    failed(failures)
    return failures


def _tower(task: FitTask, *, on_gpu: bool) -> FitTower:
    """Load the backbone once, apart, so that what loading takes is given back."""
    which = task.embedding.backbone, task.embedding.image_px
    if not on_gpu and task.config.tower_dtype("cpu") == torch.float32:
        loaded = _load.remote(*which, True)
        try:
            return FitTower(ray.get(loaded)[0], loaded)
        except ray.exceptions.RayError as error:  # the backbone's own faults come up again below
            _log.warning("tower: got %s, expected it in the object store; each worker loads its own", first_line(error))
    return FitTower(ray.get(_load.remote(*which, False))[0], None)


@ray.remote(num_cpus=1, max_calls=1)
def _load(name: str, image_px: int | None, whole: bool) -> tuple[BackboneOutline, Arrays]:
    backbone = load_backbone(name, image_px)
    return outline(backbone), to_arrays(backbone.vit) if whole else {}


def _machines() -> list[Machine]:
    """List machines with CPUs, and what Ray has for tasks on each."""
    every = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(int(one["CPU"]), int(one["memory"])) for one in every if one.get("CPU") and one.get("memory")]


@ray.remote(num_cpus=0, num_gpus=1, max_calls=1)
def _gpu_bytes() -> int:
    return int(torch.cuda.get_device_properties(0).total_memory)


def _keep(checkpoint: Path, folder: StorePath, target: float, progress: Mapping[str, Any]) -> None:
    """Copy one target's weights out of a checkpoint; the note that makes them count comes last."""
    for suffix in ("json", "safetensors"):
        with atomic(folder / f"target={target:g}.{suffix}") as temporary:
            shutil.copyfile(checkpoint / f"target={target:g}.{suffix}", temporary)
    write_json(folder / "fit.json", progress)
