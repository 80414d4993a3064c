"""TempCLIP NG+: a small trained head that answers from frame embeddings and says when it saw the answer.

B questions, F frames, A candidate answers, E embedding width, S sentence width, D width of the head, H heads, N tokens:
the frames, and the query behind them where there is one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_FRAMES = 32
"""Frames that the published head sees, whatever the length of the clip."""
NORM_EPS = 1e-12
SIGMA = 9.0
"""What a predicted width is divided by: the Gaussian's standard deviation is a ninth of it."""
MIN_WIDTH = 0.01
FLOOR = 1e-10
"""Added to the Gaussian, so that no frame's attention becomes exactly 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TempClipShape:
    """Sizes of a head."""

    feature_width: int
    """Of the frame embeddings."""
    sentence_width: int
    """Of what the text encoder gives for a candidate."""
    width: int = 768
    ffn_width: int = 768
    num_heads: int = 8
    """No weight tells it: a checkpoint read with another number gives other answers."""
    num_frames: int = NUM_FRAMES

    def __post_init__(self) -> None:
        sizes = (self.feature_width, self.sentence_width, self.width, self.ffn_width, self.num_heads, self.num_frames)
        if min(sizes) < 1 or self.width % self.num_heads or self.width % 2:
            raise ValueError(
                f"temp_clip: got {self}, expected sizes of 1 or more and an even width that the heads divide; "
                "choose --task.fit.width and --task.num-heads to fit"
            )


@dataclass(frozen=True, slots=True)
class Grounded:
    """What the head makes of a batch of questions."""

    logits_BA: Tensor
    """The answer is the largest."""
    center_B: Tensor
    """Where the Gaussian stands, as a fraction of the clip, 0..1."""
    width_B: Tensor
    """How wide it is, 0..1; the span reaches a ninth of it to both sides."""
    gauss_BF: Tensor
    """The Gaussian over the frames, its peak 1."""
    attention_BF: Tensor
    """The share of each frame in the answer; sums to 1."""

    def span(self, gamma: float = 1.0) -> Tensor:
        """Return [B, 2], (start, end) as fractions of the clip, unclamped: gamma ninths of the width to both sides."""
        half_B = gamma * self.width_B / SIGMA
        return torch.stack([self.center_B - half_B, self.center_B + half_B], dim=-1)


class TempClip(nn.Module):
    """The head: frame embeddings and candidates to an answer and its place in time.

    Source: NExT-GQA (arXiv:2309.01327), dual-encoder baseline with Gaussian grounding (NG+).
    """

    def __init__(self, shape: TempClipShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.frame_in = nn.Linear(shape.feature_width, width)
        self.frame_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.positions_FD = nn.Parameter(torch.randn(shape.num_frames, width) * 0.02)
        self.position_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.candidate_in = nn.Linear(shape.sentence_width, width)
        self.layer = PostNormLayer(shape, dropout)
        self.query_pool = AttentivePool(width)
        self.frame_pool = AttentivePool(width)
        self.gaussian = nn.Linear(width, 2)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.eval()

    def frames(self, features_BFE: Tensor) -> Tensor:
        """Bring frame embeddings into the head's width, with their positions: [B, F, D]."""
        frames_BFD = self.frame_norm(F.gelu(self.frame_in(features_BFE)))
        return self.dropout(self.position_norm(frames_BFD + self.positions_FD))  # type: ignore[no-any-return]

    def forward(self, features_BFE: Tensor, sentences_BAS: Tensor, query_B: Tensor | None = None) -> Grounded:
        """Answer a batch of questions.

        Args:
            features_BFE: Embeddings of `num_frames` frames, not normalised.
            sentences_BAS: The text encoder's hidden states of each candidate, averaged over its positions.
            query_B: Index of the text to look for. Where it is not known, the largest value over the candidates stands
                for it, dimension by dimension.
        """
        frames_BFD = self.frames(features_BFE)
        candidates_BAD = self.candidate_in(sentences_BAS)
        if query_B is None:
            query_BD = candidates_BAD.amax(dim=1)
        else:
            query_BD = candidates_BAD[torch.arange(len(query_B)), query_B]
        center_B, width_B = self._ground(frames_BFD, query_BD).unbind(-1)
        gauss_BF = gaussian_curve(center_B, width_B, frames_BFD.shape[1])
        seen_BFD = self.layer(frames_BFD, gauss_BF + FLOOR)
        pooled_BD, attention_BF = self.frame_pool(seen_BFD)
        logits_BA = torch.einsum("bad,bd->ba", candidates_BAD, self.out(self.dropout(pooled_BD)))
        return Grounded(logits_BA, center_B, width_B, gauss_BF, attention_BF)

    def _ground(self, frames_BFD: Tensor, query_BD: Tensor) -> Tensor:
        """Return centre and width of the Gaussian, [B, 2], each 0..1; the query comes last and has no position."""
        tokens_BND = self.layer(torch.cat([frames_BFD, query_BD[:, None]], dim=1))
        pooled_BD, _ = self.query_pool(tokens_BND)
        return torch.sigmoid(self.gaussian(self.dropout(pooled_BD)))


def gaussian_curve(center_B: Tensor, width_B: Tensor, num_frames: int) -> Tensor:
    """Return [B, F]: a Gaussian over frames that stand evenly in 0..1, scaled to 1 at the frame nearest its centre."""
    place_F = torch.linspace(0, 1, num_frames, device=center_B.device, dtype=center_B.dtype)
    deviation_B1 = width_B[:, None].clamp(min=MIN_WIDTH) / SIGMA
    exponent_BF = -(((place_F - center_B[:, None]) / deviation_B1) ** 2) / 2
    # The largest exponent is taken off before it is raised: a narrow Gaussian between two frames would else be 0 / 0.
    return torch.exp(exponent_BF - exponent_BF.amax(dim=-1, keepdim=True))


class AttentivePool(nn.Module):
    """A weighted mean over tokens, the weights found from the tokens themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, width // 2)
        self.leave = nn.Linear(width // 2, 1)

    def forward(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean [B, D] and the weights [B, N]."""
        weight_BN = self.leave(torch.tanh(self.enter(tokens_BND))).squeeze(-1).softmax(dim=-1)
        return torch.einsum("bn,bnd->bd", weight_BN, tokens_BND), weight_BN


class PostNormLayer(nn.Module):
    """One transformer layer whose norms come after the residual sums."""

    def __init__(self, shape: TempClipShape, dropout: float) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.query, self.key, self.value, self.attended = (nn.Linear(shape.width, shape.width) for _ in range(4))
        self.attention_norm = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.enter = nn.Linear(shape.width, shape.ffn_width)
        self.leave = nn.Linear(shape.ffn_width, shape.width)
        self.ffn_norm = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, weight_BN: Tensor | None = None) -> Tensor:
        """Attend among the tokens; with a weight, each token's share of every attention is multiplied by it."""
        x_BND = self.attention_norm(x_BND + self._attend(x_BND, weight_BN))
        return self.ffn_norm(x_BND + self.dropout(self.leave(F.gelu(self.enter(x_BND)))))  # type: ignore[no-any-return]

    def _attend(self, x_BND: Tensor, weight_BN: Tensor | None) -> Tensor:
        query_BHNd, key_BHNd, value_BHNd = (
            linear(x_BND).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        share_BHNN = (query_BHNd @ key_BHNd.mT / math.sqrt(query_BHNd.shape[-1])).softmax(dim=-1)
        if weight_BN is not None:
            share_BHNN = share_BHNN * weight_BN[:, None, None]
            share_BHNN = share_BHNN / share_BHNN.sum(dim=-1, keepdim=True)
        mixed_BND = (self.dropout(share_BHNN) @ value_BHNd).transpose(1, 2).flatten(-2)
        return self.attended(mixed_BND)  # type: ignore[no-any-return]
