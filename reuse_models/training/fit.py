"""The plain training loop of ReuseViT: fit an add-on to a frozen tower so that it reuses and stays close to dense.

The teacher is the dense tower's own embeddings, computed beforehand: no second tower is kept. Only add-on weights have
gradients; whatever no gradient needs (the dense frame of a clip, the first layer) is run without recording.

A step of many clips runs over as many at a time as there is memory for, and adds up their gradients. All terms of the
loss are means over clips but one, rate_weight * relu(target - mean rate): its gradient is that of the mean rate, or
nothing, by the side of the target on which the mean rate of all clips lies. That is asked first, without recording;
gradients are then those of the whole step, to rounding.

Shapes: C clips, F frames of a clip in computing order, T codec steps, P patches a side, E embedding width.
Source: paper, section on training; docs/methods.md.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from reuse_models.reusevit.addon import Addon, ReusePolicy, addon_shape
from reuse_models.reusevit.engines.cuda_graphs import Fused
from reuse_models.reusevit.engines.masked import Clips, MaskedOutput, masked_forward
from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.reusevit.gate import Decision, Gate, HardGate, Numbers, SoftGate, StraightGate
from reuse_models.tower.vit import Vit
from reuse_models.training.loss import Loss, LossConfig, Teacher, counted_rate, mean_over_clips, reuse_loss, whole_loss

RATE_WINDOWS = 16
"""Over so many windows, those of a published step, goes the mean rate that is held."""
RATE_BAND = 0.05
"""So far from its target, or further, the mean is pushed with all of rate_weight; less when it is closer. At full force
up to the target it arrives too fast: a fit was seen to go from 0.95 to 0.71, some layers to 0, others to 1."""
PART_SEEDS = 100_000_007
"""Between the seeds of a step's parts: far beyond the steps of any fit, and within the 32 bits that torch takes."""


class NotFiniteError(RuntimeError):
    """The loss or a gradient is no number any more: weights before this step are the last good ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How an add-on is trained, apart from its loss. Published learning rates except in demo, tiny, folder, classes."""

    codec_learning_rate: float = 2.5e-3
    """Learning rate of the codec net."""
    restoration_learning_rate: float = 5e-4
    """Learning rate of restoration."""
    decision_learning_rate: float = 2.5e-3
    """Learning rate of the decisions."""
    decay: float = 0.95
    """Factor on all learning rates after each epoch."""
    clip_norm: float = 0.5
    """Maximum norm of the gradient over all weights."""
    clips_per_step: int = 16
    """Number of windows per step over all workers; fewer if there is little video."""
    gate: Literal["straight", "gumbel"] = "straight"
    """What mixes computed and restored patches in training: ours (`straight`) or the published Gumbel-softmax."""
    dropout: float = 0.0
    """Dropout rate in the decisions; the published value is 0.25."""
    codec: bool = True
    """Whether decisions read the codec grid."""
    decision_hidden: int | None = None
    """Number of hidden units of a decision; None means in proportion to the tower."""
    restoration_rank: int | None = None
    """Rank of restoration; 0 means no restoration, None in proportion to the tower."""
    numbers: Numbers = "log"
    """How importance and similarity enter the decisions: as logarithms (`log`), or as published (`plain`)."""
    rate: Literal["at_least", "held"] = "at_least"
    """How the target rate is enforced. `at_least` (published) pushes the rate of each step's windows up to it; with few
    windows per step, this raises moving ones and lowers none until everything is reused and computing a single patch no
    longer pays. `held` (ours) holds a mean over the last steps at the target from both sides."""
    seed: int = 0

    def __post_init__(self) -> None:
        rates = (self.codec_learning_rate, self.restoration_learning_rate, self.decision_learning_rate)
        if not (min(rates) >= 0 and 0 < self.decay <= 1 and self.clip_norm > 0 and self.clips_per_step >= 1):
            raise ValueError(
                f"fit: got {self}, expected positive rates and counts and a decay in 0..1; check the values"
            )


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips of one step, frames in computing order (`PUBLISHED_PATTERN`)."""

    pixels_CF3HW: Tensor
    codec_CF4TPP: Tensor
    """Codec history of each frame, oldest step first."""
    teacher: Teacher

    @property
    def num_clips(self) -> int:
        """C."""
        return len(self.pixels_CF3HW)

    @property
    def num_frames(self) -> int:
        """C * F."""
        return self.pixels_CF3HW.shape[:2].numel()

    def parts(self, clips_at_once: int | None) -> list[Batch]:
        """Return views of some clips each, at most so many, sizes as equal as they can be; itself for None."""
        if clips_at_once is None or clips_at_once >= self.num_clips:
            return [self]
        count = -(-self.num_clips // clips_at_once)
        bounds = [self.num_clips * index // count for index in range(count + 1)]
        return [self._cut(slice(*pair)) for pair in pairwise(bounds)]

    def _cut(self, chosen: slice) -> Batch:
        hidden_CFND = self.teacher.second_last_CFND
        teacher = Teacher(self.teacher.embeddings_CFE[chosen], None if hidden_CFND is None else hidden_CFND[chosen])
        return Batch(self.pixels_CF3HW[chosen], self.codec_CF4TPP[chosen], teacher)


@dataclass(frozen=True, slots=True)
class Report:
    """Numbers of one step or of a validation pass."""

    loss: float
    rate: float
    """As the loss counts it."""
    embedding_error: float
    rate_per_boundary: tuple[float, ...]
    """Reused / N over the counted frames, of each boundary."""


Validated = tuple[Loss, Tensor]
"""The loss of some clips, and [b], the rate at each boundary."""


class Fit:
    """One add-on under training: weights, optimiser and random state.

    Args:
        vit: The frozen tower.
        loss: What is minimised.
        config: How.
        compiled: Whether steps go through torch.compile, one graph each; validation does not.
        clips_at_once: Clips of a step whose forward pass is kept at a time: bounds memory. None for all. Dropout (the
            codec net always has some) and the noise of the published gate are drawn anew for each such part, so that
            they depend on it; else only rounding does.
    """

    def __init__(
        self,
        vit: Vit,
        loss: LossConfig,
        config: FitConfig,
        *,
        compiled: bool = False,
        clips_at_once: int | None = None,
    ) -> None:
        self.vit, self.loss, self.config, self.clips_at_once = vit, loss, config, clips_at_once
        self.compiled = compiled
        self.gather: Callable[[list[Validated]], list[Validated]] = list
        """Brings together what a validation gave on all workers, alike on each. To be set where there are several."""
        self._forward = Fused(self.forward, compiled=compiled)
        device = vit.position.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            shape = addon_shape(vit.shape, config.decision_hidden, config.restoration_rank)
            self.addon = Addon(replace(shape, numbers=config.numbers, codec=config.codec)).to(device)
        for decision in self.addon.decisions:
            assert isinstance(decision, Decision)
            decision.dropout.p = config.dropout
        self._forget()
        self.num_epochs = 0
        self.mean_rate: float | None = None
        """Of the last steps, where the rate is held."""
        self.num_steps = 0
        """Steps taken; noise and dropout of a step follow from its number and the seed, so that a resumed fit goes on
        as if nothing had happened."""

    def forward(self, batch: Batch, gate: Gate) -> Validated:
        """Return the loss, and the rates."""
        output = self._run(batch, gate)
        teacher = batch.teacher
        if self.loss.second_last_weight and teacher.second_last_CFND is None:
            teacher = replace(teacher, second_last_CFND=dense_second_last(self.vit, batch.pixels_CF3HW))
        rates_b = output.reuse_CFbN[:, -3:].detach().float().mean(dim=(0, 1, 3))
        return reuse_loss(output, teacher, self.loss), rates_b

    def _run(self, batch: Batch, gate: Gate) -> MaskedOutput:
        codec_XPP = self.addon.codec_net(batch.codec_CF4TPP.flatten(0, 1))
        clips = Clips(
            pixels_CF3HW=batch.pixels_CF3HW,
            codec_CFPP=codec_XPP.unflatten(0, batch.codec_CF4TPP.shape[:2]),
            steps=PUBLISHED_PATTERN,
        )
        return masked_forward(self.vit, ReusePolicy(self.addon, gate), clips)

    def step(self, batch: Batch, average: Callable[[Sequence[Tensor]], None] | None = None) -> Report:
        """Take one optimiser step.

        Args:
            batch: This worker's clips.
            average: Averages gradients over workers, in place; None where there is one worker.

        Raises:
            NotFiniteError: Loss or gradient is not finite; nothing was changed.
        """
        self.addon.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss, rates_b = self._differentiate(batch.parts(self.clips_at_once))
        if average is not None:
            average([weight.grad for weight in self.addon.parameters() if weight.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(self.addon.parameters(), self.config.clip_norm)
        if not math.isfinite(float(loss.total)) or not math.isfinite(float(norm)):
            raise NotFiniteError(
                f"training loss: got {float(loss.total)} with a gradient of length {float(norm)}, expected "
                "finite numbers; lower the learning rates, and go on from the last checkpoint"
            )
        self.optimizer.step()
        self.num_steps += 1
        return _report(loss, rates_b)

    def _differentiate(self, parts: Sequence[Batch]) -> tuple[Loss, Tensor]:
        """Add the gradients of the loss of all parts together; return it, and the rates at each boundary."""
        clips_M = [part.num_clips for part in parts]
        rates_M = [self._rate(index, part) for index, part in enumerate(parts[:-1])]
        losses: list[Loss] = []
        rates_Mb: list[Tensor] = []
        # The last part first: what was asked of the others is told of it by the pass that is kept.
        for index in reversed(range(len(parts))):
            with self._noise(index) as gate:
                loss, rates_b = self._forward(parts[index], gate)
            if not losses:
                rate = mean_over_clips([*rates_M, loss.rate.detach()], clips_M)
                slope = self._slope(rate, sum(clips_M))
            ((loss.quality + slope * loss.rate) * (clips_M[index] / sum(clips_M))).backward()
            losses.insert(0, Loss._make(x.detach() for x in loss))
            rates_Mb.insert(0, rates_b)
            del loss  # and with it what the backward pass has left
        return whole_loss(losses, self.loss), mean_over_clips(rates_Mb, clips_M)

    def _slope(self, rate: Tensor | float, num_clips: int) -> Tensor | float:
        """Return the gradient of the loss by the rate, given that of a step of so many windows."""
        if self.config.rate == "at_least":
            return -self.loss.rate_weight * (rate < self.loss.target_rate)  # of the relu
        rate = float(rate)
        before = rate if self.mean_rate is None else self.mean_rate
        self.mean_rate = before + min(1.0, num_clips / RATE_WINDOWS) * (rate - before)
        return self.loss.rate_weight * max(-1.0, min(1.0, (self.mean_rate - self.loss.target_rate) / RATE_BAND))

    @torch.no_grad()
    def _rate(self, index: int, part: Batch) -> Tensor:
        """Return the rate of a part, as the loss counts it."""
        with self._noise(index) as gate:
            return counted_rate(self._run(part, gate).reuse_CFbN)[0]

    @contextlib.contextmanager
    def _noise(self, index: int) -> Iterator[Gate]:
        """Give part `index` of the coming step the gate, and dropout, that it has whenever it is run."""
        device = self.vit.position.device
        seed = self.config.seed * 1_000_003 + self.num_steps + index * PART_SEEDS
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)  # dropout draws from the global generator
            yield self._gate(seed)

    def _gate(self, seed: int) -> Gate:
        if self.config.gate == "straight":
            return StraightGate(self.addon.decisions)
        noise = torch.Generator(device=self.vit.position.device).manual_seed(seed)
        return SoftGate(self.addon.decisions, noise)

    def end_epoch(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] *= self.config.decay
        self.num_epochs += 1

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch], addon: Addon | None = None, bias: float = 0.0) -> Report:
        """Return the loss of all clips together with the hard gate of inference; one batch is in memory at a time.

        Clips are those of all workers, which call this together with their own, of which there may be none. An add-on
        given is judged in place of the one under training; the bias is that of run time.
        """
        own, self.addon = self.addon, addon or self.addon
        self.addon.eval()
        try:
            found = [self.forward(batch, HardGate(self.addon.decisions, bias)) for batch in batches]
        finally:
            self.addon = own
        found = self.gather([(Loss._make(x.cpu() for x in loss), rates_b.cpu()) for loss, rates_b in found])
        losses = [loss for loss, _ in found]
        clips_M = [len(loss.rate_per_frame_CK) for loss in losses]
        return _report(whole_loss(losses, self.loss), mean_over_clips([rates_b for _, rates_b in found], clips_M))

    def without_restoration(self) -> Fit:
        """Return a fit that begins with these decisions and corrects nothing: what is reused is used as it is."""
        config = replace(self.config, restoration_rank=0)
        other = Fit(self.vit, self.loss, config, compiled=self.compiled, clips_at_once=self.clips_at_once)
        other.gather = self.gather
        other.addon = self.addon.without_restoration()
        other.num_steps, other.mean_rate = self.num_steps, self.mean_rate
        other._forget()
        for _ in range(self.num_epochs):
            other.end_epoch()
        return other

    def _forget(self) -> None:
        """Begin the optimiser anew, on the weights that there are."""
        addon, config = self.addon, self.config
        groups: list[dict[str, Any]] = [
            {"params": list(addon.codec_net.parameters()), "lr": config.codec_learning_rate},
            {"params": list(addon.restorations.parameters()), "lr": config.restoration_learning_rate},
            {"params": list(addon.decisions.parameters()), "lr": config.decision_learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    def save_optimizer(self, path: Path) -> None:
        """Write what the optimiser remembers to `path` (.safetensors) and the counts beside it, as JSON."""
        moments = {
            f"{index}.{name}": value.detach().cpu().contiguous()
            for index, entries in self.optimizer.state_dict()["state"].items()
            for name, value in entries.items()
        }
        path.with_suffix(".json").write_text(
            json.dumps({"steps": self.num_steps, "epochs": self.num_epochs, "rate": self.mean_rate})
        )
        safetensors.torch.save_file(moments, path)

    def load_optimizer(self, path: Path) -> None:
        """Go on where `save_optimizer` was called; the add-on's weights are loaded apart."""
        counts = json.loads(path.with_suffix(".json").read_text())
        self.num_epochs, self.num_steps, self.mean_rate = counts["epochs"], counts["steps"], counts["rate"]
        state = self.optimizer.state_dict()
        for name, value in safetensors.torch.load_file(path).items():
            index, _, entry = name.partition(".")
            state["state"].setdefault(int(index), {})[entry] = value
        for group in state["param_groups"]:
            group["lr"] *= self.config.decay**self.num_epochs
        self.optimizer.load_state_dict(state)


@torch.no_grad()
def dense_second_last(vit: Vit, pixels_CF3HW: Tensor) -> Tensor:
    """Return [C, F, N, D], the dense tower's output of layer L-2: made only where the loss wants it."""
    h_XND = vit.embed(pixels_CF3HW.flatten(0, 1))
    for layer in range(vit.shape.num_layers - 1):
        h_XND = vit.run_layer(layer, h_XND)
    h_CFND: Tensor = h_XND.unflatten(0, pixels_CF3HW.shape[:2])
    return h_CFND


def _report(loss: Loss, rates_b: Tensor) -> Report:
    return Report(float(loss.total), float(loss.rate), float(loss.embedding_error), tuple(rates_b.tolist()))
