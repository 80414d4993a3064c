"""The plain training loop of ReuseViT: fit an add-on to a frozen tower so that it reuses and stays close to dense.

The teacher is the dense tower's own embeddings, computed beforehand: no second tower is kept. Only add-on weights have
gradients; whatever no gradient needs (the dense frame of a clip, the first layer) is run without recording.

Shapes: C clips, F frames of a clip in computing order, T codec steps, P patches a side, E embedding width.
Source: paper, section on training; METHODS 2, 3 and 5.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor

from reuse_models.addon import Addon, addon_shape
from reuse_models.frame_order import Order, training_pattern
from reuse_models.gate import Decision, Gate, HardGate, Numbers, SoftGate, StraightGate
from reuse_models.loss import Loss, LossConfig, Teacher, reuse_loss
from reuse_models.masked import Clips, Wanted, masked_forward
from reuse_models.recorded import Fused
from reuse_models.rules import Rules
from reuse_models.token_memory import Semantics
from reuse_models.vit import Vit


class NotFiniteError(RuntimeError):
    """The loss or a gradient is no number any more: weights before this step are the last good ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How an add-on is trained, apart from its loss. The learning rates are the published ones."""

    codec_learning_rate: float = 2.5e-3
    restoration_learning_rate: float = 5e-4
    decision_learning_rate: float = 2.5e-3
    decay: float = 0.95
    """Of all learning rates, after each epoch."""
    clip_norm: float = 0.5
    """Longest gradient over all weights."""
    clips_per_step: int = 16
    gate: Literal["straight", "gumbel"] = "straight"
    """What mixes computed and restored in training: ours, or the published Gumbel-softmax."""
    dropout: float = 0.0
    """In the decisions; the published value is 0.25."""
    semantics: Semantics = "anchor"
    order: Order = "nested"
    """In which order frames are computed, in training and in use."""
    codec: bool = True
    """Whether decisions read the codec grid."""
    decision_hidden: int | None = None
    """In proportion to the tower unless given."""
    restoration_rank: int | None = None
    """In proportion to the tower unless given; 0 for no restoration."""
    numbers: Numbers = "log"
    """How importance and similarity enter the decisions: `plain` is the published way."""
    seed: int = 0

    def __post_init__(self) -> None:
        training_pattern(self.order)
        rates = (self.codec_learning_rate, self.restoration_learning_rate, self.decision_learning_rate)
        if not (min(rates) >= 0 and 0 < self.decay <= 1 and self.clip_norm > 0 and self.clips_per_step >= 1):
            raise ValueError(
                f"fit: got {self}, expected positive rates and counts and a decay in 0..1; check the values"
            )


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips of one step, frames in computing order (`training_pattern`)."""

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


@dataclass(frozen=True, slots=True)
class Report:
    """Numbers of one step or of a validation pass."""

    loss: float
    rate: float
    """As the loss counts it."""
    embedding_error: float
    rate_per_boundary: tuple[float, ...]
    """Reused / N over the counted frames, of each boundary."""


class Fit:
    """One add-on under training: weights, optimiser and random state, all of it in `state_dict`.

    Args:
        vit: The frozen tower.
        loss: What is minimised.
        config: How.
        compiled: Whether steps go through torch.compile, one graph each; validation does not.
    """

    def __init__(self, vit: Vit, loss: LossConfig, config: FitConfig, *, compiled: bool = False) -> None:
        self.vit, self.loss, self.config = vit, loss, config
        self._forward = Fused(self.forward, compiled=compiled)
        device = vit.position.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            shape = addon_shape(vit.shape, config.decision_hidden, config.restoration_rank)
            self.addon = Addon(replace(shape, numbers=config.numbers, codec=config.codec)).to(device)
        for decision in self.addon.decisions:
            assert isinstance(decision, Decision)
            decision.dropout.p = config.dropout
        self.optimizer = torch.optim.AdamW(
            self.addon.parameter_groups(
                config.codec_learning_rate, config.restoration_learning_rate, config.decision_learning_rate
            ),
            weight_decay=0.0,
        )
        self.num_epochs = 0
        self.num_steps = 0
        """Steps taken; noise and dropout of a step follow from its number and the seed, so that a resumed fit goes on
        as if nothing had happened."""

    def forward(self, batch: Batch, gate: Gate) -> tuple[Loss, Tensor]:
        """Return the loss, and [b], the rate at each boundary."""
        codec_XPP = self.addon.codec_net(batch.codec_CF4TPP.flatten(0, 1))
        clips = Clips(
            pixels_CF3HW=batch.pixels_CF3HW,
            codec_CFPP=codec_XPP.unflatten(0, batch.codec_CF4TPP.shape[:2]),
            steps=training_pattern(self.config.order),
        )
        wanted: list[Wanted] = ["last"] if self.loss.last_weight else []
        if self.loss.residual_weight:
            wanted.append("inputs")
        output = masked_forward(self.vit, Rules(self.addon, gate, self.config.semantics), clips, wanted)
        teacher = batch.teacher
        if self.loss.second_last_weight and teacher.second_last_CFND is None:
            teacher = replace(teacher, second_last_CFND=dense_second_last(self.vit, batch.pixels_CF3HW))
        if self.loss.residual_weight and teacher.inputs_CFLND is None:
            teacher = replace(teacher, inputs_CFLND=dense_inputs(self.vit, batch.pixels_CF3HW))
        rates_b = output.reuse_CFbN[:, -3:].detach().float().mean(dim=(0, 1, 3))
        return reuse_loss(output, teacher, self.loss), rates_b

    def step(self, batch: Batch, average: Callable[[Sequence[Tensor]], None] | None = None) -> Report:
        """Take one optimiser step.

        Args:
            batch: This worker's clips.
            average: Averages gradients over workers, in place; None where there is one worker.

        Raises:
            NotFiniteError: Loss or gradient is not finite; nothing was changed.
        """
        self.addon.train()
        device = self.vit.position.device
        seed = self.config.seed * 1_000_003 + self.num_steps
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)  # dropout draws from the global generator
            loss, rates_b = self._forward(batch, self._gate(seed))
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        if average is not None:
            average([weight.grad for weight in self.addon.parameters() if weight.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(self.addon.parameters(), self.config.clip_norm)
        if not math.isfinite(float(loss.total.detach())) or not math.isfinite(float(norm)):
            raise NotFiniteError(
                f"training loss: got {float(loss.total.detach())} with a gradient of length {float(norm)}, expected "
                "finite numbers; lower the learning rates, and go on from the last checkpoint"
            )
        self.optimizer.step()
        self.num_steps += 1
        return _report(loss, rates_b)

    def _gate(self, seed: int) -> Gate:
        if self.config.gate == "straight":
            return StraightGate(self.addon.decisions)
        noise = torch.Generator(device=self.vit.position.device).manual_seed(seed)
        return SoftGate(self.addon.decisions, noise)

    def end_epoch(self) -> None:
        """Lower the learning rates."""
        for group in self.optimizer.param_groups:
            group["lr"] *= self.config.decay
        self.num_epochs += 1

    @torch.no_grad()
    def validate(self, batch: Batch) -> Report:
        """Return the loss with the hard gate of inference."""
        self.addon.eval()
        loss, rates_b = self.forward(batch, HardGate(self.addon.decisions))
        return _report(loss, rates_b)

    def save_optimizer(self, path: Path) -> None:
        """Write what the optimiser remembers to `path` (.safetensors) and the counts beside it, as JSON."""
        moments = {
            f"{index}.{name}": value.detach().cpu().contiguous()
            for index, entries in self.optimizer.state_dict()["state"].items()
            for name, value in entries.items()
        }
        path.with_suffix(".json").write_text(json.dumps({"steps": self.num_steps, "epochs": self.num_epochs}))
        safetensors.torch.save_file(moments, path)

    def load_optimizer(self, path: Path) -> None:
        """Go on where `save_optimizer` was called; the add-on's weights are loaded apart."""
        counts = json.loads(path.with_suffix(".json").read_text())
        self.num_epochs, self.num_steps = counts["epochs"], counts["steps"]
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
    last_CFND: Tensor = dense_inputs(vit, pixels_CF3HW)[:, :, -1]
    return last_CFND


@torch.no_grad()
def dense_inputs(vit: Vit, pixels_CF3HW: Tensor) -> Tensor:
    """Return [C, F, L, N, D], the input of each of the dense tower's layers: made only where the loss wants it."""
    inputs = [vit.embed(pixels_CF3HW.flatten(0, 1))]
    for layer in range(vit.shape.num_layers - 1):
        inputs.append(vit.run_layer(layer, inputs[-1]))
    inputs_CFLND: Tensor = torch.stack(inputs, 1).unflatten(0, pixels_CF3HW.shape[:2])
    return inputs_CFLND


def _report(loss: Loss, rates_b: Tensor) -> Report:
    return Report(
        float(loss.total.detach()),
        float(loss.rate.detach()),
        float(loss.embedding_error.detach()),
        tuple(float(rate) for rate in rates_b),
    )
