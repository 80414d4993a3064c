"""The training loss: stay close to the dense tower, and reuse at least the target share.

Shapes: C clips, F frames in computing order, K the last three of them, N tokens, b boundaries, D width, E embedding.
Source: paper, section on training; docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from reuse_models.reusevit.engines.masked import MaskedOutput
from reuse_models.reusevit.gate import check_rate

COUNTED_FRAMES = 3
"""Only the last three frames of the pattern enter: the ones before exist to give them references."""
RATE_LIMIT = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights of the loss's terms."""

    target_rate: float
    """Reuse rate from which on more reuse is not rewarded."""
    second_last_weight: float = 0.0
    """Of the second-to-last layer's hidden states; the published default is 1.5, NExT-QA's experiment has 0."""
    rate_weight: float = 0.35

    def __post_init__(self) -> None:
        check_rate(self.target_rate)


@dataclass(frozen=True, slots=True)
class Teacher:
    """The dense tower on the same frames, in computing order."""

    embeddings_CFE: Tensor
    second_last_CFND: Tensor | None = None
    """Output of layer L-2; None where its weight is 0."""


class Loss(NamedTuple):
    """The loss and what it is made of; all but the total are means over clips."""

    total: Tensor
    """quality + rate_weight * relu(target - rate): of all clips together, since the relu is of their mean rate."""
    quality: Tensor
    """Every term but the rate's."""
    rate: Tensor
    """The rate that the target is compared with."""
    embedding_error: Tensor
    """Plain mean of 1 - cosine over the counted frames."""
    rate_per_frame_CK: Tensor
    """Mean over boundaries of reused / N, unclamped."""


def reuse_loss(output: MaskedOutput, teacher: Teacher, config: LossConfig) -> Loss:
    """Compare a training forward with its teacher.

    Raises:
        ValueError: The second-to-last layer has a weight but no teacher.
    """
    rate, per_frame_CK = counted_rate(output.reuse_CFbN)
    embedding_CK = counted_cosine(output.embeddings_CFE, teacher.embeddings_CFE)
    quality = 1 - embedding_CK.min(dim=1).values.mean()
    if teacher.second_last_CFND is not None:
        cosine_CKN = counted_cosine(output.second_last_CFND, teacher.second_last_CFND)
        quality = quality + config.second_last_weight * (1 - cosine_CKN.min(dim=1).values.mean())
    elif config.second_last_weight:
        raise ValueError(
            f"loss: got weight {config.second_last_weight} for the second-to-last layer without its hidden states, "
            "expected the teacher's; pass them or set the weight to 0"
        )
    total = quality + config.rate_weight * torch.relu(config.target_rate - rate)
    return Loss(total, quality, rate, 1 - embedding_CK.mean(), per_frame_CK)


def whole_loss(parts: Sequence[Loss], config: LossConfig) -> Loss:
    """Return the loss of all clips from those of some of them at a time: equal to that of all at once, to rounding."""
    if len(parts) == 1:
        return parts[0]
    clips_M = [len(part.rate_per_frame_CK) for part in parts]
    quality = mean_over_clips([part.quality for part in parts], clips_M)
    rate = mean_over_clips([part.rate for part in parts], clips_M)
    return Loss(
        quality + config.rate_weight * torch.relu(config.target_rate - rate),
        quality,
        rate,
        mean_over_clips([part.embedding_error for part in parts], clips_M),
        torch.cat([part.rate_per_frame_CK for part in parts]),
    )


def mean_over_clips(means: Sequence[Tensor], clips_M: Sequence[int]) -> Tensor:
    """Return the mean over all clips from the means over parts of them and how many clips each part has."""
    total = sum(clips_M)
    return torch.stack([mean * (count / total) for mean, count in zip(means, clips_M, strict=True)]).sum(0)


def counted_rate(reuse_CFbN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rate as the loss counts it, and rate_per_frame_CK.

    Every entry above 0.95 earns nothing more; the last frame, closest to both of its references, counts twice, the
    second time unclamped.
    """
    rate_CKb = reuse_CFbN[:, -COUNTED_FRAMES:].float().mean(dim=-1)
    num_clips, num_frames, num_boundaries = rate_CKb.shape
    per_frame_CK = rate_CKb.mean(dim=-1)
    total = rate_CKb.clamp(max=RATE_LIMIT).sum() + per_frame_CK[:, -1].sum()
    return total / (num_clips * num_frames * num_boundaries + num_clips), per_frame_CK


def counted_cosine(student_CFX: Tensor, teacher_CFX: Tensor) -> Tensor:
    """Return [C, K, ...]: the cosine over the last dimension, of the frames that count."""
    counted = slice(-COUNTED_FRAMES, None)
    return torch.cosine_similarity(student_CFX[:, counted].float(), teacher_CFX[:, counted].float(), dim=-1)
