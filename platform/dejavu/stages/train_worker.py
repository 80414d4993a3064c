"""What a worker of Ray Train does: it fits all targets side by side, on the same batches of its share of the clips."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray import train
from ray.train import Checkpoint

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.backbones.shared import from_arrays
from dejavu.embedding.batch import EmbedContext, Segment, cut, decode_batch
from dejavu.embedding.encode import load_backbone_for
from dejavu.embedding.windows import STAGE, Window, in_parts, num_windows, open_windows, to_batch
from dejavu.observability.metrics import Step, first_line, metered
from dejavu.records import Failure
from dejavu.stages.fit_plan import FitPlan
from dejavu.stages.run_fit import quieten
from dejavu.stages.target_fit import PROBED_BIASES, TargetFit, rate_curve, validated
from dejavu.stages.train_task import FitTask, FitTower
from dejavu.storage.store import write_json
from dejavu.storage.store_path import StorePath
from reuse_models.reusevit.addon import save_addon
from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.reusevit.gate import bias_for
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.training.fit import Batch, Fit, NotFiniteError
from reuse_models.training.held_out import Batches, begin, pays
from reuse_models.training.warm_up import gather_pairs, warm_up

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

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
        self.stream = open_windows(task.embedding, task.original, by_content[rank::world])
        self.fits: list[TargetFit] = []
        for target in task.targets:
            fit = Fit(
                backbone.vit,
                config.loss(target),
                config.fit,
                compiled=config.compile,
                clips_at_once=plan.clips_at_once,
            )
            fit.gather = self._gather
            self.fits.append(TargetFit(target, fit, fit.addon))
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
        windows = self.stream.shuffled((self.task.config.fit.seed, self.rank, self.step))
        validation = self._validation()
        if resumed is None:
            self._warm_up(windows)
            self._start_from(validation)
        began = self.step
        while self.step < self.num_steps and not all(one.stopped for one in self.fits) and not self.broken:
            with metered(Step(stage=STAGE, step="decode")) as done:
                batch = to_batch([next(windows) for _ in range(self.per_rank)], self.backbone)
                done.num_frames = batch.num_frames
            for one in self.fits:
                if not one.stopped:
                    self._take_step(one, batch)
            self.step += 1
            if self.step % self.steps_per_epoch == 0 or self.step == self.num_steps or self.broken:
                self._end_epoch(validation, began)
        self._finish(validation)
        if validation is not None and not self.broken:
            self._calibrate()
        self._report()

    def _start_from(self, validation: Sequence[Window] | None) -> None:
        """Begin as held-out clips say, all workers alike; what comes of training must be better than this start."""
        held_out = self._held_out(validation)
        for one in self.fits:
            share = 1.0
            if self.task.config.warm_up.steps:
                one.fit, share = begin(one.fit, held_out, self._same)
            if held_out is not None:
                report = one.fit.validate(held_out())
                one.judge(report.loss)
                one.curve.append({"step": 0.0, **validated(report)})
                rank = one.fit.addon.shape.restoration_rank
                said = f"{share:.0%} of a restoration of rank {rank}" if rank else "no restoration"
                self._say(one, f"begins with {said}, val_loss {report.loss:.4g}")

    def _say(self, one: TargetFit, words: str) -> None:
        """Print a line of one fit, once for all workers."""
        if not self.rank:
            one.say(words)

    def _same(self, number: float) -> float:
        """Return the first worker's number."""
        if self.world == 1:
            return number
        shared = torch.tensor([number], dtype=torch.float64, device=self.backbone.vit.position.device)
        torch.distributed.broadcast(shared, 0)
        return float(shared)

    def _finish(self, validation: Sequence[Window] | None) -> None:
        """Leave restoration out of what is kept where it does not pay."""
        held_out = self._held_out(validation)
        for one in self.fits:
            if held_out is None or self.broken or not one.best.shape.restoration_rank:
                continue
            pay = pays(one.fit.validate(held_out(), one.best), one.fit, one.best, held_out)
            if not self._same(float(pay)):
                one.best = one.best.without_restoration()
                self._say(one, "restoration does not pay and is left out")

    def _held_out(self, validation: Sequence[Window] | None) -> Batches | None:
        """Return what gives these windows again and again; None where no worker has any."""
        if validation is None:
            return None
        return lambda: in_parts(validation, self.plan.validated_at_once, self.backbone)

    def _calibrate(self) -> None:
        """Find the bias for each wanted rate, on whole validation clips, of which each worker takes its share."""
        config = self.task.config
        clips = sorted(self.task.validation, key=lambda clip: clip.content_id)[: config.calibration_clips]
        # Cut first: of clips with equal contents, which may come to different workers, one counts.
        segments = [part for part in cut(clips, self.task.embedding.config.segment_frames) if not part.start]
        found = self._gather(self._rate_curves(segments[self.rank :: self.world]))
        if not found:
            return
        num_frames = [count for count, _ in found]
        for one, *curves in zip(self.fits, *(rates for _, rates in found), strict=True):
            rates = [float(rate) for rate in np.average(curves, axis=0, weights=num_frames)]
            one.biases = {f"{rate:g}": bias_for(rate, PROBED_BIASES, rates) for rate in config.calibrated_rates}
            one.achieved = rates[PROBED_BIASES.index(0.0)]
            self._say(one, f"reuses {one.achieved:.3f} on validation clips")

    def _rate_curves(self, segments: Sequence[Segment]) -> list[tuple[int, list[list[float]]]]:
        """Return, of some segments at a time, how many frames they have and each fit's rate at each bias."""
        backbone = self.backbone
        if segments and backbone.vit.position.dtype != getattr(torch, self.task.embedding.config.precision):
            # Biases are for the tower that embeds.
            backbone = load_backbone_for(self.task.embedding, str(backbone.vit.position.device))
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for first in range(0, len(segments), self.plan.calibrated_at_once):
                some = segments[first : first + self.plan.calibrated_at_once]
                frames = decode_batch(some, self.task.embedding).frames
                if not frames:
                    continue
                num_frames = sum(len(part.seconds_F) for part in frames)
                curves = []
                for one in self.fits:
                    weights = Path(folder) / f"{one.name}.safetensors"
                    save_addon(one.best, weights)
                    with metered(Step(stage=STAGE, step="calibrate")) as done:
                        curves.append(rate_curve(ReuseVitConfig(weights=str(weights)), backbone, frames))
                        done.num_frames = len(PROBED_BIASES) * num_frames
                found.append((num_frames, curves))
        return found

    def _take_step(self, one: TargetFit, batch: Batch) -> None:
        try:
            with metered(Step(stage=STAGE, step="fit")) as done:
                one.reports.append(one.fit.step(batch, self._average if self.world > 1 else None))
                done.num_frames = batch.num_frames
        except NotFiniteError as error:
            self.broken = f"target {one.target:g}, step {self.step}: {error}"

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
            warm_up({one.target: one.fit.addon for one in self.fits}, pairs_b, config)
        if self.world > 1:
            for one in self.fits:
                for value in one.fit.addon.state_dict().values():
                    torch.distributed.broadcast(value, 0)

    def _validation(self) -> list[Window] | None:
        """Return this worker's share of the windows of validation clips, the same after each epoch.

        It may be empty; None where there are none for any worker.
        """
        clips = sorted(self.task.validation, key=lambda clip: clip.content_id)
        if not clips:
            return None
        stream = open_windows(self.task.embedding, self.task.original, clips)
        if not stream.clips:
            return None
        return stream.first(self.task.config.validation_windows, self.rank, self.world)

    def _gather(self, own: list[_T]) -> list[_T]:
        """Return what all workers have, the first one's first."""
        if self.world == 1:
            return own
        gathered: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(gathered, own)
        return [one for of_worker in gathered for one in of_worker]

    def _end_epoch(self, validation: Sequence[Window] | None, began: int) -> None:
        """End an epoch of every fit that goes on, then report."""
        held_out = self._held_out(validation)
        for one in self.fits:
            if not one.stopped:
                with metered(Step(stage=STAGE, step="validate")) as done:
                    one.end_epoch(self.step, held_out)
                    done.num_frames = sum(len(window.rgb_FHWC) for window in validation or ())
        for one in self.fits:
            one.stopped |= bool(self._same(float(one.stale >= self.task.config.patience)))
        if not self.rank:
            spent = time.monotonic() - self.started
            left = spent / max(1, self.step - began) * (self.num_steps - self.step)
            for one in self.fits:
                shown = ", ".join(f"{name} {one.curve[-1][name]:.4g}" for name in SHOWN if name in one.curve[-1])
                one.say(f"step {self.step} of {self.num_steps}, {shown}")
            print(f"  train: {spent:.0f} s, about {left:.0f} s left", flush=True)
        self._report()
        if not self.rank:
            self._show({"progress": self.step / self.num_steps, "seconds_left": left})

    def _show(self, progress: Mapping[str, float]) -> None:
        """Write the curves so far for the driver to log; the last entry of each carries the progress."""
        curves = {f"{one.target:g}": [dict(entry) for entry in one.curve] for one in self.fits}
        for one in self.fits:
            if not one.stopped:
                curves[f"{one.target:g}"][-1] |= progress
        with contextlib.suppress(OSError):  # a picture of the fit is not worth the fit
            write_json(curves_of(self.task.embedding, train.get_context().get_experiment_name()), curves)

    def _report(self) -> None:
        metrics: dict[str, Any] = {"step": self.step, "broken": self.broken}
        # After a resume, all workers know those of before.
        known = self._gather([asdict(failure) for failure in self.stream.failures.values()])
        failures = list({failure["clip_id"]: failure for failure in known}.values())
        if self.rank:
            train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), failures)
            train.report(metrics, checkpoint=Checkpoint.from_directory(folder))

    def _save(self, folder: Path, failures: list[dict[str, Any]]) -> None:
        """Write weights, optimisers and progress: safetensors and JSON alone."""
        progress = {
            "step": self.step,
            "broken": self.broken,
            "failures": failures,
            "targets": {f"{one.target:g}": one.save(folder) for one in self.fits},
        }
        (folder / "progress.json").write_text(json.dumps(progress), encoding="utf-8")

    def _load(self, folder: Path) -> None:
        progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        self.step = progress["step"]
        for failure in progress["failures"]:
            self.stream.failures[failure["clip_id"]] = Failure(**failure)
        for one in self.fits:
            one.load(folder, progress["targets"][f"{one.target:g}"])
