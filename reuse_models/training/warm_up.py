"""Before training: what can be learned from the dense tower alone, without a gradient through it (ours).

One dense pass over a few clips says how patches change between a frame and its reference. From that, at each boundary:

- importance and similarity are centred and scaled, so that a decision starts with numbers of order one;
- the decision starts as a threshold on similarity at the target rate, instead of a coin;
- restoration is regressed on the differences that it has to make up for, of the patches that would be reused.

Seconds instead of the thousands of steps that the training loss needs to find the same.

Memory has a bound: layers are outside and clips inside, so that of all clips only the input of one layer is held (F N D
numbers a clip, `HELD_BYTES` at most), and of pairs the sample of one boundary.

Shapes: C clips, F frames in computing order, A patches, X pairs of a patch and its reference, D width, H hidden units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from reuse_models.reusevit.addon import CORRECTED, Addon, Restoration
from reuse_models.reusevit.engines.token_memory import State, Trace, choose_reference, cosine_dtype
from reuse_models.reusevit.frame_order import FrameStep
from reuse_models.reusevit.gate import Decision, Features
from reuse_models.tower.vit import Vit

HELD_BYTES = 2**30
"""Of layer inputs of all clips looked at; where they would take more, fewer clips are looked at: 170 of ViT-L/14."""
EVALUATED_PAIRS = 2048
"""Restored at once when a fit is judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUpConfig:
    """How an add-on is initialised from the dense tower before training."""

    num_clips: int = 96
    """Maximum number of clips used."""
    num_pairs: int = 12288
    """Maximum number of pairs of a patch and its reference at each boundary."""
    steps: int = 200
    """Number of steps of restoration's regression; 0 leaves the warm-up out."""
    pairs_per_step: int = 768
    """Number of pairs per step of the regression."""
    learning_rate: float = 4e-3
    """Learning rate of the regression."""
    steepness: float = 3.0
    """Initial slope of a decision in logits per standard deviation of similarity; training noise deviates by 1.8."""

    def __post_init__(self) -> None:
        if min(self.num_clips, self.num_pairs, self.pairs_per_step) < 1 or self.steps < 0:
            raise ValueError(f"warm-up: got {self}, expected counts of 1 or more; 0 steps leave it out")


class Pairs(NamedTuple):
    """Patches beside their references at one boundary."""

    difference_XD: Tensor
    """pre_proj minus the reference's."""
    missing_X4D: Tensor
    """What h, q, k and v lack when the reference's are taken instead."""
    importance_X: Tensor
    similarity_X: Tensor


def warm_up(addons: Mapping[float, Addon], pairs_b: Iterable[Pairs], config: WarmUpConfig) -> dict[float, list[float]]:
    """Set the start of add-ons from pairs of every boundary.

    Args:
        addons: By the reuse rate that each is for.
        pairs_b: Of each boundary in turn; taken one by one.
        config: How much is done.

    Returns:
        For each add-on and boundary, the share of the missing variance that restoration explains, over reused patches;
        -inf..1.

    Raises:
        ValueError: There is not one set of pairs for each boundary.
    """
    explained: dict[float, list[float]] = {target: [] for target in addons}
    num_given = 0
    for boundary, pairs in enumerate(pairs_b):
        num_given += 1
        for target, addon in addons.items():
            if boundary < addon.shape.num_boundaries:
                explained[target].append(_start(addon, boundary, pairs, target, config))
        del pairs  # not held beside the next boundary's
    for addon in addons.values():
        if num_given != addon.shape.num_boundaries:
            raise ValueError(
                f"warm-up: got pairs of {num_given} boundaries, expected {addon.shape.num_boundaries}; gather them anew"
            )
    return explained


def _start(addon: Addon, boundary: int, pairs: Pairs, target_rate: float, config: WarmUpConfig) -> float:
    decision = addon.decisions[boundary]
    assert isinstance(decision, Decision)
    if decision.numbers == "log":
        start_decision(decision, pairs, target_rate, config.steepness)
    reused_X = pairs.similarity_X >= pairs.similarity_X.quantile(1 - target_rate)
    return regress(addon.restoration(boundary), pairs.difference_XD[reused_X], pairs.missing_X4D[reused_X], config)


@torch.no_grad()
def gather_pairs(
    vit: Vit, pixels: Iterable[Tensor], steps: Sequence[FrameStep], config: WarmUpConfig
) -> Iterator[Pairs]:
    """Run clips through the dense tower and pair each patch with its most similar reference.

    Args:
        vit: The frozen tower.
        pixels: Batches of clips, [C, F, 3, H, W] each, frames in computing order; a batch is in memory at a time.
        steps: That order.
        config: How many clips and pairs.

    Returns:
        The pairs of each boundary, spread evenly over all clips; the same clips in the same batches give the same ones.
        All clips are taken now, a boundary's layer is run when its pairs are asked for.

    Raises:
        ValueError: There is no clip.
    """
    return _by_boundary(vit, _embed(vit, pixels, config), steps, config.num_pairs)


@torch.no_grad()
def _by_boundary(vit: Vit, h_BXND: list[Tensor], steps: Sequence[FrameStep], num_pairs: int) -> Iterator[Pairs]:
    pairs_in_clip = sum(bool(step.candidates) for step in steps) * vit.shape.num_patches
    ends = list(accumulate(len(h_XND) // len(steps) * pairs_in_clip for h_XND in h_BXND))
    chosen = torch.linspace(0, ends[-1] - 1, min(num_pairs, ends[-1])).long()
    for boundary in range(vit.shape.num_layers - 1):
        sample: Pairs | None = None
        num_taken = 0
        for h_XND, (start, end) in zip(h_BXND, pairwise([0, *ends]), strict=True):
            pairs, output_XND = _layer(vit, boundary, h_XND, steps)
            h_XND.copy_(output_XND)  # where it lies: what is held does not move about in memory
            taken = _take(pairs, chosen[(chosen >= start) & (chosen < end)] - start)
            del pairs, output_XND
            sample = sample or Pairs(*(x.new_empty(len(chosen), *x.shape[1:]) for x in taken))
            for whole, part in zip(sample, taken, strict=True):
                whole[num_taken : num_taken + len(part)] = part
            num_taken += len(taken.similarity_X)
        assert sample is not None
        yield sample


def _embed(vit: Vit, pixels: Iterable[Tensor], config: WarmUpConfig) -> list[Tensor]:
    """Return the first layer's input of each batch of clips, frame after frame."""
    h_BXND: list[Tensor] = []
    num_clips = num_bytes = 0
    for pixels_CF3HW in pixels:
        h_BXND.append(vit.embed(pixels_CF3HW.transpose(0, 1).flatten(0, 1)))
        num_clips += len(pixels_CF3HW)
        num_bytes += h_BXND[-1].nbytes
        if num_clips >= config.num_clips or num_bytes >= HELD_BYTES:
            break
    if not num_clips:
        raise ValueError("warm-up: got no clip, expected one or more; give training clips")
    return h_BXND


def _layer(vit: Vit, boundary: int, h_XND: Tensor, steps: Sequence[FrameStep]) -> tuple[Pairs, Tensor]:
    """Return all pairs of some clips at a boundary, and the next layer's input."""
    q_XhNd, k_XhNd, v_XhNd = vit.split_heads(vit.qkv(boundary, h_XND))
    pre_proj_XND = vit.attend(q_XhNd, k_XhNd, v_XhNd)
    importance_XN = vit.importance(q_XhNd, k_XhNd)
    h_XND = vit.close(boundary, h_XND, pre_proj_XND)
    every = (pre_proj_XND, h_XND, vit.qkv(boundary + 1, h_XND), importance_XN)
    prefix = vit.shape.num_prefix
    return _pair([x.unflatten(0, (len(steps), -1))[:, :, prefix:] for x in every], steps), h_XND


def _pair(split: Sequence[Tensor], steps: Sequence[FrameStep]) -> Pairs:
    pre_proj_FCAD, h_FCAD, qkv_FCAC, importance_FCA = split
    traces: dict[int, Trace] = {}
    parts: list[Pairs] = []
    for index, step in enumerate(steps):
        own = State(h_FCAD[index], qkv_FCAC[index])
        if step.candidates:
            candidates = tuple(traces[frame] for frame in step.candidates)
            reference = choose_reference(pre_proj_FCAD[index], candidates, "anchor", step.group)
            h_CAD = own.h_CAD - reference.state.h_CAD
            qkv_CA3D = (own.qkv_CAC - reference.state.qkv_CAC).unflatten(-1, (3, -1))
            parts.append(
                Pairs(
                    (pre_proj_FCAD[index] - reference.pre_proj_CAD).flatten(0, 1),
                    torch.cat([h_CAD[:, :, None], qkv_CA3D], dim=2).flatten(0, 1),
                    importance_FCA[index].flatten(),
                    reference.similarity_CA.flatten(),
                )
            )
        traces[step.frame] = Trace(pre_proj_FCAD[index], own, own, step.group)
    return Pairs(*map(torch.cat, zip(*parts, strict=True)))


def _take(pairs: Pairs, chosen: Tensor) -> Pairs:
    chosen = chosen.to(pairs.similarity_X.device)
    # Beside a tower of 16 bits too, what is fitted to them has more.
    return Pairs(*(x[chosen].to(cosine_dtype(x)) for x in pairs))


@torch.no_grad()
def start_decision(decision: Decision, pairs: Pairs, target_rate: float, steepness: float) -> None:
    """Make the decision a threshold on similarity that lets the target share of the pairs through.

    All hidden units take part, half of them for each sign, so that dropout weakens the signal and does not cut it.
    """
    no_score_X1 = torch.zeros_like(pairs.importance_X)[:, None]
    unscaled = Features(pairs.importance_X[:, None], pairs.similarity_X[:, None], no_score_X1, 0)
    decision.shift_3.zero_()
    decision.scale_3.fill_(1.0)
    numbers_X3 = decision.enter_numbers(unscaled)[:, 0]
    decision.shift_3[:2] = numbers_X3.mean(0)[:2]
    decision.scale_3[:2] = numbers_X3.std(0)[:2].clamp_min(1e-6)
    similarity_X = decision.enter_numbers(unscaled)[:, 0, 1]
    hidden = decision.enter.out_features
    sign_H = 1.0 - 2.0 * (torch.arange(hidden, device=similarity_X.device) % 2)
    generator = torch.Generator().manual_seed(0)
    decision.enter.weight.copy_(0.3 * torch.randn(decision.enter.weight.shape, generator=generator))
    decision.enter.bias.zero_()
    decision.enter.weight[:, 1] = sign_H
    # relu(z) - relu(-z) = z: half of the units carry each sign, each logit half of the slope.
    decision.leave.weight[0] = sign_H * steepness / hidden
    decision.leave.weight[1] = -decision.leave.weight[0]
    threshold = float(similarity_X.quantile(1 - target_rate))
    decision.leave.bias[0], decision.leave.bias[1] = -steepness * threshold / 2, steepness * threshold / 2


def regress(restoration: Restoration, difference_XD: Tensor, missing_X4D: Tensor, config: WarmUpConfig) -> float:
    """Fit a restoration to what is missing; each of the four counts by the share of its variance."""
    if not restoration.rank:
        return 0.0
    weight_4 = 1 / missing_X4D.square().mean(dim=(0, 2)).clamp_min(1e-12)
    optimizer = torch.optim.Adam(restoration.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.steps, 1))
    generator = torch.Generator().manual_seed(0)
    for _ in range(config.steps):
        rows = torch.randint(len(difference_XD), (config.pairs_per_step,), generator=generator).to(difference_XD.device)
        loss = (
            (_restored(restoration, difference_XD[rows]) - missing_X4D[rows]).square().mean(dim=(0, 2)) * weight_4
        ).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    left_4 = torch.zeros_like(weight_4)
    with torch.no_grad():
        for some_XD, missing in zip(
            difference_XD.split(EVALUATED_PAIRS), missing_X4D.split(EVALUATED_PAIRS), strict=True
        ):
            left_4 += (_restored(restoration, some_XD) - missing).square().mean(dim=2).sum(0)
    return float(1 - (left_4 / len(difference_XD) * weight_4).mean())


def _restored(restoration: Restoration, difference_XD: Tensor) -> Tensor:
    """Return restored_X4D."""
    h_XD, qkv_XC = restoration(difference_XD)
    return torch.cat([h_XD[:, None], qkv_XC.unflatten(-1, (len(CORRECTED) - 1, -1))], dim=1)
