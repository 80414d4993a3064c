"""The one trained part of ResidualViT: a key frame's embedding as a token of the frames after it; and its file.

A file is a safetensors of float32 weights.

Shapes: X frames, E embedding width, D width.
Source: "ResidualViT for Efficient Temporally Dense Video Encoding" (arXiv:2509.13255), residual tokenizer.
"""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reuse_models.tower.shape import VitShape

INITIAL_STD = 0.02


class ResidualTokenizer(nn.Module):
    """A linear map. It reads the direction of an embedding, in numbers of order one: towers differ in scale."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.weight_DE = nn.Parameter(torch.empty(shape.width, shape.embed_dim))
        self.bias_D = nn.Parameter(torch.zeros(shape.width))
        nn.init.normal_(self.weight_DE, 0.0, INITIAL_STD)

    def forward(self, key_XE: Tensor) -> Tensor:
        """Return [X, 1, D], the token that stands for a key frame."""
        direction_XE = F.normalize(key_XE.float(), dim=-1) * key_XE.shape[-1] ** 0.5
        return F.linear(direction_XE, self.weight_DE.float(), self.bias_D.float())[:, None].to(self.weight_DE.dtype)


def save_tokenizer(tokenizer: ResidualTokenizer, path: Path) -> None:
    """Write weights that `load_tokenizer` reads."""
    weights = {name: value.detach().float().cpu().contiguous() for name, value in tokenizer.state_dict().items()}
    safetensors.torch.save_file(weights, path)


def load_tokenizer(path: Path, shape: VitShape) -> ResidualTokenizer:
    """Read a tokenizer for a tower of this shape.

    Raises:
        ValueError: The file is missing, broken, or another tower's.
    """
    with torch.random.fork_rng(devices=[]):
        tokenizer = ResidualTokenizer(shape)
    expected = {name: list(value.shape) for name, value in tokenizer.state_dict().items()}
    try:
        found = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"residual token {path}: got {error}, expected a safetensors file; train it again") from error
    got = {name: list(value.shape) for name, value in found.items()}
    if got != expected:
        raise ValueError(f"residual token {path}: got {got}, expected {expected} on this tower; train it again")
    tokenizer.load_state_dict(found, assign=True)  # where memory is estimated, nothing that is built has any
    return tokenizer
