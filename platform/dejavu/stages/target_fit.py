"""The fit of one target rate, with what came of it so far: what a worker keeps one of for each target."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dejavu.backbones.load import Backbone
from dejavu.embedding.encode import encode_batch
from dejavu.video.decode import DecodedFrames
from reuse_models.reusevit.addon import Addon, load_addon, save_addon
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.training.fit import Fit, Report
from reuse_models.training.held_out import Batches

PROBED_BIASES = (-8.0, -5.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
"""On reuse decisions: the rate grows with the bias, so that these few, interpolated (`bias_for`), answer for any."""
CHUNK_FRAMES = 16


@dataclass(slots=True)
class TargetFit:
    """The fit of one target, and what came of it so far."""

    target: float
    fit: Fit
    best: Addon
    """The weights of `best_loss`: what is kept."""
    best_loss: float = math.inf
    """The lowest on validation clips so far."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """An entry an epoch."""
    reports: list[Report] = field(default_factory=list)
    """Of the steps since the last epoch."""
    stopped: bool = False
    """It has not got better for `patience` epochs."""
    biases: dict[str, float] = field(default_factory=dict)
    """By the rate that each gives on validation clips."""
    achieved: float | None = None
    """The rate of no bias there."""

    @property
    def name(self) -> str:
        """Of its files, without what they hold."""
        return f"target={self.target:g}"

    def say(self, words: str) -> None:
        """Print a line."""
        print(f"  train {self.name}: {words}", flush=True)

    def judge(self, loss: float) -> None:
        """Keep the weights if they are the best so far."""
        if loss < self.best_loss:
            self.best_loss, self.best = loss, copy.deepcopy(self.fit.addon)

    def end_epoch(self, step: int, held_out: Batches | None) -> None:
        """Lower learning rates, judge by held-out clips, or by the steps where there are none, and note it."""
        self.fit.end_epoch()
        entry = {"step": float(step), **_mean(self.reports)}
        if held_out is not None:
            entry |= validated(self.fit.validate(held_out()))
        self.reports = []
        self.curve.append(entry)
        self.judge(_judged(entry))

    @property
    def stale(self) -> int:
        """Epochs since the best one."""
        losses = [_judged(entry) for entry in self.curve]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def save(self, folder: Path) -> dict[str, Any]:
        """Write weights and optimiser, safetensors and JSON alone; return what else `load` needs."""
        save_addon(self.best, folder / f"{self.name}.safetensors")
        save_addon(self.fit.addon, folder / f"{self.name}.last.safetensors")
        self.fit.save_optimizer(folder / f"{self.name}.optimizer.safetensors")
        return {
            "target": self.target,
            "achieved_rate": self.achieved,
            "biases": self.biases,
            "curve": self.curve,
            "best_loss": self.best_loss,
            "stopped": self.stopped,
        }

    def load(self, folder: Path, saved: Mapping[str, Any]) -> None:
        """Go on where `save` was called."""
        self.best = load_addon(folder / f"{self.name}.safetensors").to(self.fit.vit.position.device)
        last = load_addon(folder / f"{self.name}.last.safetensors")
        if not last.shape.restoration_rank:
            self.fit = self.fit.without_restoration()
        self.fit.addon.load_state_dict(last.state_dict())
        self.fit.load_optimizer(folder / f"{self.name}.optimizer.safetensors")
        self.curve, self.best_loss, self.stopped = saved["curve"], saved["best_loss"], saved["stopped"]


def rate_curve(config: ReuseVitConfig, backbone: Backbone, frames: Sequence[DecodedFrames]) -> list[float]:
    """Return the reuse rate that is really reached on these clips at each of PROBED_BIASES, dense frames counted in."""
    rates = []
    for bias in PROBED_BIASES:
        method = replace(config, decision_bias=bias).build(backbone.vit)
        encoded = encode_batch(method, backbone, frames, CHUNK_FRAMES)
        rates.append(float(np.concatenate([segment.reuse_rate_F for segment in encoded]).mean()))
    return rates


def _judged(entry: Mapping[str, float]) -> float:
    """Return what an epoch is judged by: the loss on validation clips, or on its own where there are none."""
    return entry.get("val_loss", entry.get("loss", math.inf))


def _mean(reports: Sequence[Report]) -> dict[str, float]:
    rows = [_numbers(report) for report in reports]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


def validated(report: Report) -> dict[str, float]:
    """Return a report on validation clips as an entry of a curve."""
    return {f"val_{name}": value for name, value in _numbers(report).items()}


def _numbers(report: Report) -> dict[str, float]:
    layers = {f"rate_layer_{layer}": rate for layer, rate in enumerate(report.rate_per_boundary, 1)}
    return {"loss": report.loss, "rate": report.rate, "embedding_error": report.embedding_error, **layers}
