"""Fit ResidualViT's token: the tower is frozen, the dense embedding of each frame is the teacher.

The paper distils through similarities to texts, which towers without words do not have; here the loss is 1 - cosine to
the dense embedding. The token is trained under several shares of patches at once, so that one map serves a whole curve.

Shapes: X frames beside their key frames, E embedding width, D width.
Source: arXiv:2509.13255, distillation; docs/methods.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reuse_models.baselines.residual_vit.method import ResidualTokenizer, embed_some, num_kept
from reuse_models.tower.vit import Vit


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFitConfig:
    """How ResidualViT's token is trained."""

    steps: int = 150
    """Number of gradient steps."""
    windows_per_step: int = 4
    """Number of training windows per step, each of some frames with their key frames; gradients of windows add up."""
    learning_rate: float = 2e-3
    """Initial learning rate; falls to 0 along a cosine."""
    keeps: tuple[float, ...] = (0.15, 0.25, 0.5)
    """Shares of patches that are computed, 0..1; steps take them in turn."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.windows_per_step) < 1 or not self.learning_rate > 0:
            raise ValueError(
                f"residual token: got {self}, expected counts of 1 or more and a positive rate; raise them"
            )
        if not self.keeps or not all(0 < keep <= 1 for keep in self.keeps):
            raise ValueError(f"residual token keeps: got {self.keeps}, expected shares in 0..1; correct them")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Frames beside key frames that were shown before them."""

    frames_X3HW: Tensor
    keys_X3HW: Tensor
    key_XE: Tensor
    """Dense embeddings of the key frames."""
    dense_XE: Tensor
    """And of the frames: what is to be met."""


@dataclass(frozen=True, slots=True)
class TokenFit:
    """What training came to."""

    tokenizer: ResidualTokenizer
    """Of the start and the end, the one that is better on held-out frames."""
    cosine: float
    """Of held-out frames to their dense embeddings, mean over frames and shares of patches."""
    cosine_without: float
    """The same without any token."""


def fit_tokenizer(
    vit: Vit, steps: Iterator[Sequence[Pairs]], held_out: Sequence[Pairs], config: TokenFitConfig
) -> TokenFit:
    """Train the map from a key frame's embedding to its token, on the windows of each step, of which there is no end.

    Held-out windows judge what training is worth; without any its end is kept.

    Raises:
        ValueError: The loss is no number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tokenizer = ResidualTokenizer(vit.shape).to(vit.position.device)
    first = next(steps)
    with torch.no_grad():  # a token like others is where a tower knows what to do with one
        patches = [vit.embed(pairs.keys_X3HW)[:, vit.shape.num_prefix :].float().mean((0, 1)) for pairs in first]
        tokenizer.bias_D.copy_(torch.stack(patches).mean(0))
    start = copy.deepcopy(tokenizer)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=config.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for step in range(config.steps):
        kept = num_kept(vit.shape, config.keeps[step % len(config.keeps)])
        windows = first if step == 0 else next(steps)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for pairs in windows:
            loss = _error(vit, tokenizer, pairs, kept) / len(windows)
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise ValueError(f"residual token: got a loss of {total} in step {step}, expected a number; lower its rate")
        optimizer.step()
        schedule.step()
    # Without held-out windows neither is a number, and the first of them is taken: the end.
    scores = {one: judge(vit, one, held_out, config.keeps) for one in (tokenizer, start)}
    best = max(scores, key=lambda one: scores[one])
    return TokenFit(best, scores[best], judge(vit, None, held_out, config.keeps))


@torch.no_grad()
def judge(vit: Vit, tokenizer: ResidualTokenizer | None, held_out: Iterable[Pairs], keeps: Sequence[float]) -> float:
    """Return the mean cosine of held-out frames to their dense embeddings; no number without any."""
    errors = [float(_error(vit, tokenizer, pairs, num_kept(vit.shape, keep))) for pairs in held_out for keep in keeps]
    return 1 - sum(errors) / len(errors) if errors else math.nan


def _error(vit: Vit, tokenizer: ResidualTokenizer | None, pairs: Pairs, kept: int) -> Tensor:
    embedding_XE = embed_some(vit, tokenizer, pairs.frames_X3HW, pairs.keys_X3HW, pairs.key_XE, kept)
    return 1 - F.cosine_similarity(embedding_XE.float(), pairs.dense_XE.float(), dim=-1).mean()
