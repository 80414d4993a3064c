"""Search DiffRate's schedule for one tower under a FLOP target: the gradient of an embedding's error through the rates.

Rates are logits: of what enters a layer, the part that stays after pruning, and of that the part that stays after
merging. FLOPs are held at the target throughout: the part of the gradient that changes them is taken out, and after
each step a common shift of all logits restores them. The loss is the distance of the relaxed embedding to the dense
tower's; no label is read, and only the logits have a gradient.

A gradient cannot leave a layer that prunes a little for one that prunes nothing: the first tokens that go may be those
that others rely on, and the loss is paid once. So the search begins with the best of several schedules: the same rate
in all layers, or nearly everything taken away in one.

Memory has a bound that follows from shapes (`relaxed.plan_turns`). The loss is a mean over frames, so that a step's
frames go through in as many turns as `SearchConfig.kept_mib` takes and their gradients add up to the step's own.

Shapes: F frames, B of them in a step, E embedding; l the L - 1 layers before the last.
Source: DiffRate (arXiv:2305.17997), section 3.3, whose FLOP loss is a penalty; ours is a constraint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.diffrate.method import DiffRate, DiffRateConfig, fewest_kept, relaxed_work, uniform_schedule
from reuse_models.baselines.diffrate.relaxed import DENSE_BATCH, RelaxedCounts, plan_turns, relaxed_embed
from reuse_models.baselines.diffrate.schedule import Schedule, cost_share
from reuse_models.flops import dense_flops, flops_per_frame
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

UNIFORM_LOGIT = 2.5
WHOLE_LOGIT = 6.0
"""Of a layer that a start leaves alone: all of 257 tokens stay."""
FARTHEST_LOGIT = 8.0
REACH = 20.0
"""In logits: far enough to keep nothing or all."""
BISECTIONS = 30
JUDGED_FRAMES = 96


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How a schedule is searched."""

    steps: int = 16
    """Number of gradient steps."""
    frames_per_step: int = 24
    """Number of frames per step."""
    kept_mib: int = 1024
    """Maximum memory in MiB that the backward pass keeps. If a step's frames need more, they take turns; if one frame
    does, its layers are computed twice."""
    learning_rate: float = 0.2
    """Initial learning rate of Adam, in logits; falls linearly to 0."""
    first_window: float = 0.3
    """Width of the masks' soft edge at the first step, as a share of the tokens that a layer removes."""
    last_window: float = 0.02
    """Width, as the same share, to which the edge shrinks by the last step."""
    judged_every: int = 4
    """Number of steps between trials of the rounded schedule on frames that no step sees; the best is the result."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.frames_per_step, self.kept_mib, self.judged_every) < 1 or self.learning_rate <= 0:
            raise ValueError(f"schedule search: got {self}, expected counts and a rate above 0; use the defaults")
        if not 0 < self.last_window <= self.first_window <= 1:
            raise ValueError(
                f"schedule search: got windows {self.first_window}..{self.last_window}, expected numbers in 0..1 that "
                "fall; use the defaults"
            )


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The schedule found, and what it is worth on the judged frames."""

    schedule: Schedule
    cosine: float
    """Mean cosine to the dense embedding."""
    uniform_cosine: float
    """Of `uniform_schedule` at the same share."""


Prepare = Callable[[Tensor], Tensor]
"""Frames as they are kept to what the tower takes, [B, 3, H, W]."""


def search_schedule(
    vit: Vit,
    frames_F: Tensor,
    flops_share: float,
    config: SearchConfig | None = None,
    prepare: Prepare | None = None,
) -> SearchResult:
    """Search the schedule of one FLOP target; the same frames, config and threads give the same one.

    Args:
        vit: The tower, frozen.
        frames_F: In no particular order; two steps' worth or more. Normalised for the tower, [F, 3, H, W], or whatever
            `prepare` takes, such as bytes, which need a quarter of the memory.
        flops_share: FLOPs as a share of `dense_flops`; the result costs at most this.
        config: The search's own settings.
        prepare: Applied to some frames whenever they are needed.

    Raises:
        ValueError: Too few frames, or a share that no schedule reaches.
    """
    config = config or SearchConfig()
    if len(frames_F) < 2 * config.frames_per_step:
        raise ValueError(
            f"schedule search: got {len(frames_F)} frames, expected {2 * config.frames_per_step} or more; "
            "give more videos or fewer frames a step"
        )
    prune_kept, merge_kept = uniform_schedule(vit.shape, flops_share)
    uniform = DiffRateConfig(prune_kept=prune_kept, merge_kept=merge_kept)
    return _Search(vit, frames_F, flops_share, config, prepare or (lambda frames: frames)).run(uniform)


class _Search:
    """One target's logits, and the frames that they are fitted and judged on."""

    def __init__(self, vit: Vit, frames_F: Tensor, flops_share: float, config: SearchConfig, prepare: Prepare) -> None:
        self.vit, self.share, self.config, self.prepare = vit, flops_share, config, prepare
        self.turns = plan_turns(vit.shape, config.frames_per_step, config.kept_mib)
        self.draws = torch.Generator().manual_seed(config.seed)
        shuffled_F = torch.randperm(len(frames_F), generator=self.draws)
        num_judged = min(JUDGED_FRAMES, len(frames_F) // 2)
        self.frames_F = frames_F
        self.dense_FE = self._dense()
        self.judged_J, self.learned_F = shuffled_F[:num_judged], shuffled_F[num_judged:]

    def run(self, uniform: DiffRateConfig) -> SearchResult:
        """Step down from the best start; return the best rounded schedule on the way."""
        config = self.config
        uniform_cosine = self._judge(uniform)
        best = uniform_cosine, uniform
        few_B = self.judged_J[: config.frames_per_step]
        best_start_2l = max(self._starts(), key=lambda start_2l: self._judge(self._rounded(start_2l), few_B))
        logits_2l = best_start_2l.requires_grad_()
        optimizer = torch.optim.Adam([logits_2l], lr=config.learning_rate, betas=(0.9, 0.99))
        for step in range(config.steps + 1):
            if step % config.judged_every == 0 or step == config.steps:
                rounded = self._rounded(logits_2l.detach())
                best = max(best, (self._judge(rounded), rounded), key=lambda entry: entry[0])
            if step < config.steps:
                self._step(logits_2l, optimizer, step / config.steps)
        cosine, found = best
        return SearchResult(
            Schedule(
                flops_share=self.share,
                achieved_share=round(cost_share(self.vit.shape, found.prune_kept, found.merge_kept), 6),
                num_tokens=self.vit.shape.num_tokens,
                prune_kept=found.prune_kept,
                merge_kept=found.merge_kept,
            ),
            cosine,
            uniform_cosine,
        )

    def _step(self, logits_2l: Tensor, optimizer: torch.optim.Optimizer, done: float) -> None:
        config = self.config
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - done)
        window = config.first_window * (config.last_window / config.first_window) ** done
        drawn_B = self.learned_F[torch.randint(len(self.learned_F), (config.frames_per_step,), generator=self.draws)]
        with torch.enable_grad():
            counts = relaxed_counts(self.vit.shape, logits_2l)
            (towards_cost_2l,) = torch.autograd.grad(_share(self.vit.shape, counts), logits_2l, retain_graph=True)
            towards_error = self._error_gradient(counts, drawn_B, window)
            (gradient_2l,) = torch.autograd.grad((counts.pruned_l, counts.merged_l), logits_2l, towards_error)
        along_cost = (gradient_2l * towards_cost_2l).sum() / (towards_cost_2l**2).sum()
        logits_2l.grad = gradient_2l - along_cost * towards_cost_2l
        optimizer.step()
        with torch.no_grad():
            near_2l = logits_2l.clamp(-FARTHEST_LOGIT, FARTHEST_LOGIT)
            logits_2l.copy_(hold_cost(self.vit.shape, near_2l, torch.ones_like(near_2l), self.share))

    def _error_gradient(self, counts: RelaxedCounts, drawn_B: Tensor, window: float) -> tuple[Tensor, Tensor]:
        """Return the gradient of the mean error over these frames by the counts: a sum over turns."""
        like = self.vit.position
        there = RelaxedCounts(*(x_l.detach().to(like).requires_grad_() for x_l in (counts.pruned_l, counts.merged_l)))
        sums = [torch.zeros_like(counts.pruned_l), torch.zeros_like(counts.merged_l)]
        for some_B in drawn_B.split(self.turns.num_frames):
            embedding_BE = relaxed_embed(self.vit, self._frames(some_B), there, window, recompute=self.turns.recompute)
            cosine_B = F.cosine_similarity(embedding_BE, self.dense_FE[some_B], dim=-1)
            error = (1 - cosine_B).sum() / len(drawn_B)
            for total_l, part_l in zip(sums, torch.autograd.grad(error, (there.pruned_l, there.merged_l)), strict=True):
                total_l.add_(part_l.to(total_l))
        return sums[0], sums[1]

    def _starts(self) -> list[Tensor]:
        """Return the same rate everywhere, and for each layer that can: all that must go pruned, or merged, there."""
        last = self.vit.shape.num_layers - 1
        everywhere_2l = torch.ones(2, last, dtype=torch.float64)
        starts = [hold_cost(self.vit.shape, everywhere_2l * UNIFORM_LOGIT, everywhere_2l, self.share)]
        for place in range(2 * last):
            there_2l = torch.zeros(2 * last, dtype=torch.float64)
            there_2l[place] = 1
            held_2l = hold_cost(self.vit.shape, everywhere_2l * WHOLE_LOGIT, there_2l.view(2, last), self.share)
            if float(_share(self.vit.shape, relaxed_counts(self.vit.shape, held_2l))) <= self.share:
                starts.append(held_2l)
        return starts

    def _rounded(self, logits_2l: Tensor) -> DiffRateConfig:
        """Return the nearest schedule of whole tokens that costs at most the target."""
        shape = self.vit.shape
        counts = relaxed_counts(shape, hold_cost(shape, logits_2l, torch.ones_like(logits_2l), self.share, whole=True))
        pruned, merged = (tuple(int(kept) for kept in x_l.round()) for x_l in (counts.pruned_l, counts.merged_l))
        # The last layer's numbers change nothing.
        return DiffRateConfig(prune_kept=(*pruned, merged[-1]), merge_kept=(*merged, merged[-1]))

    @torch.no_grad()
    def _judge(self, config: DiffRateConfig, chosen_X: Tensor | None = None) -> float:
        """Return the mean cosine to dense of the method itself, on judged frames."""
        chosen_X = self.judged_J if chosen_X is None else chosen_X
        method = DiffRate(config, self.vit)
        cosines = [
            F.cosine_similarity(method.embed(self._frames(some_B)), self.dense_FE[some_B], dim=-1)
            for some_B in chosen_X.split(DENSE_BATCH)
        ]
        return float(torch.cat(cosines).mean())

    def _frames(self, chosen_B: Tensor) -> Tensor:
        return self.prepare(self.frames_F[chosen_B]).to(self.vit.position.device)

    @torch.no_grad()
    def _dense(self) -> Tensor:
        """Return the dense tower's embeddings of all frames, on its device."""
        batches = torch.arange(len(self.frames_F)).split(DENSE_BATCH)
        return torch.cat([self.vit(self._frames(some_B)) for some_B in batches])


def relaxed_counts(shape: VitShape, logits_2l: Tensor) -> RelaxedCounts:
    """Return the tokens kept under the rates' logits: first row pruning, second row merging."""
    entering = logits_2l.new_tensor(float(shape.num_tokens))
    fewest = fewest_kept(shape)
    pruned, merged = [], []
    for after_pruning, after_merging in logits_2l.sigmoid().unbind(1):
        pruned.append(fewest + (entering - fewest) * after_pruning)
        entering = fewest + (pruned[-1] - fewest) * after_merging
        merged.append(entering)
    return RelaxedCounts(torch.stack(pruned), torch.stack(merged))


def hold_cost(
    shape: VitShape, logits_2l: Tensor, along_2l: Tensor, flops_share: float, *, whole: bool = False
) -> Tensor:
    """Return logits moved along a direction to where they cost the target, or as little above it as that reaches.

    The direction is nowhere negative, so that FLOPs grow along it. `whole` counts whole tokens.
    """
    low, high = -REACH, REACH
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        counts = relaxed_counts(shape, logits_2l + middle * along_2l)
        if whole:
            counts = RelaxedCounts(counts.pruned_l.round(), counts.merged_l.round())
        low, high = (middle, high) if float(_share(shape, counts)) <= flops_share else (low, middle)
    return logits_2l + low * along_2l


def _share(shape: VitShape, counts: RelaxedCounts) -> Tensor:
    """Return FLOPs as a share of dense, with the gradient of the counts."""
    return flops_per_frame(shape, relaxed_work(shape, counts.pruned_l, counts.merged_l))[0] / dense_flops(shape)
