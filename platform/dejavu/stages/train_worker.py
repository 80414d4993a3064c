"""What a worker of Ray Train does: it fits all targets side by side, on the same batches of its share of the clips."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import train
from ray.train import Checkpoint

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.backbones.shared import from_arrays
from dejavu.embedding.batch import EmbedContext, cut, decode_batch
from dejavu.embedding.calibrate import PROBED_BIASES, rate_curve
from dejavu.embedding.encode import load_encoder
from dejavu.embedding.stored import read_embeddings
from dejavu.embedding.windows import STAGE, Window, WindowStream, in_parts, num_windows, to_batch
from dejavu.observability.metrics import Step, first_line, metered
from dejavu.records import Failure
from dejavu.stages.fit_plan import FitPlan
from dejavu.stages.run_fit import quieten
from dejavu.stages.train_task import FitTask, FitTower
from dejavu.storage.store import write_json
from dejavu.storage.store_path import StorePath
from reuse_models.reusevit.addon import load_addon, save_addon
from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.reusevit.gate import bias_for
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.training.fit import Batch, Fit, NotFiniteError, Report
from reuse_models.training.held_out import Batches, best_share, pays, scaled, shift, to_target
from reuse_models.training.warm_up import gather_pairs, warm_up

_log = logging.getLogger(__name__)

SHOWN = ("loss", "rate", "embedding_error", "val_loss", "val_rate", "val_embedding_error")
"""Of an epoch's numbers, those that are printed."""


def curves_of(embedding: EmbedContext, run_id: str) -> StorePath:
    """Return where the curves so far lie while a fit runs."""
    return embedding.store.root.resolve() / "train" / run_id / "curves.json"


def fit_worker(config: dict[str, Any]) -> None:
    """Fit all targets on this worker's share of the clips."""
    quieten()
    task: FitTask = config["task"]
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and world > 1:
        torch.set_num_threads(1)
    AddonTrainer(task, _backbone(task, config["tower"], device), config["plan"], rank, world).run()


def _backbone(task: FitTask, tower: FitTower, device: str) -> Backbone:
    """Map the tower's weights where they lie on this machine, else load them."""
    if tower.loaded is not None:
        try:
            return from_arrays(*ray.get(tower.loaded))
        except ray.exceptions.RayError as error:
            _log.warning("tower: got %s, expected its weights in the object store; loading them", first_line(error))
    return load_backbone(
        task.embedding.backbone, task.embedding.image_px, device=device, dtype=task.config.tower_dtype(device)
    )


class AddonTrainer:
    """The fits of one worker, side by side on the same batches."""

    def __init__(self, task: FitTask, backbone: Backbone, plan: FitPlan, rank: int, world: int) -> None:
        self.task, self.backbone, self.plan, self.rank, self.world = task, backbone, plan, rank, world
        config = task.config
        by_content = sorted(task.train, key=lambda clip: clip.content_id)
        mine = by_content[rank::world]
        stored = read_embeddings(task.embedding, task.original, mine)
        teacher = {name: found.embeddings_FE for name, found in stored.items()}
        readable = [clip for clip in mine if clip.clip_id in teacher]
        self.stream = WindowStream(readable, teacher, task.embedding)
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
                    setting = ReuseVitConfig(weights=str(weights))
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
            pairs_b = gather_pairs(self.backbone.vit, pixels, PUBLISHED_PATTERN, config)
            done.num_frames = -(-config.num_clips // size) * size * len(PUBLISHED_PATTERN)
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
        stream = WindowStream(clips, dense, self.task.embedding)
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
            write_json(curves_of(self.task.embedding, train.get_context().get_experiment_name()), curves)

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
