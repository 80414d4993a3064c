"""ResidualViT(n, keep): every n-th frame whole; of the others the patches that changed, and the key frame as a token.

Frames between key frames go through the tower with a share of their patches, those whose pixels are farthest from the
key frame's, and with one more token that a trained linear map makes of the key frame's embedding. What is left out of a
frame is neither computed nor looked at.

Ours, where the paper leaves it open or reads something else: patches are chosen by pixels, not by the codec's motion,
so that any decoded video will do; the map reads the direction of the embedding.

Shapes: B streams, R frames of all streams, X of them at once, A patches, K of them kept, M tokens of such a frame, E
embedding width, D width.
Source: arXiv:2509.13255; docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reuse_models.baselines.frame_skip import compute_or_repeat, every_nth, rows_shown, start_last
from reuse_models.flops import dense_work
from reuse_models.method import Chunk, Encoded, Method
from reuse_models.streams import FRAMES_PER_BATCH, check_chunk
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit

INITIAL_STD = 0.02
MOST_BATCHES = 4
"""Batches of frames at once, at most: of a chunk of eight streams, half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidualVitConfig:
    """One key frame in `every`; of each other frame a share of the patches beside the key frame's token."""

    method: ClassVar[str] = "residualvit"
    weights: str | None = None
    """A .safetensors of `save_tokenizer`. None for no token at all: what dropping patches does by itself."""
    every: int = 3
    """Frames per key frame; the paper has two frames between them."""
    keep: float = 0.25
    """Share of the patches of a frame that is no key frame, 0..1; one at least."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every: got {self.every}, expected 1 or more frames; 1 computes all of them")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: got {self.keep}, expected a share in 0..1; divide percentages by 100")

    @property
    def setting(self) -> str:
        return f"every={self.every} keep={self.keep:g}" + ("" if self.weights else " no token")

    def build(self, vit: Vit) -> Method:
        tokenizer = load_tokenizer(Path(self.weights), vit.shape) if self.weights else None
        return ResidualVit(self, vit, tokenizer)


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


@dataclass(slots=True)
class KeyMemory:
    """Per stream: frames seen, and the last key frame with its embedding."""

    num_seen: list[int]
    key_B3HW: Tensor
    key_BE: Tensor


class ResidualVit:
    """Key frames, and what is new beside them."""

    def __init__(self, config: ResidualVitConfig, vit: Vit, tokenizer: ResidualTokenizer | None) -> None:
        self.config, self.vit = config, vit
        self.tokenizer = None if tokenizer is None else tokenizer.to(vit.position).eval().requires_grad_(False)
        self.num_kept = num_kept(vit.shape, config.keep)
        self.work = dense_work(vit.shape, num_patches=self.num_kept, num_more=int(tokenizer is not None))
        if tokenizer is not None:
            self.work.parts["residual_token"] = torch.ones(1, 1, dtype=torch.int64)

    def start(self, num_streams: int) -> KeyMemory:
        side = self.vit.shape.image_px
        key_B3HW = self.vit.position.new_zeros(num_streams, 3, side, side)
        return KeyMemory([0] * num_streams, key_B3HW, start_last(self.vit, num_streams))

    @torch.no_grad()
    def encode(self, chunk: Chunk, memory: KeyMemory) -> Encoded:
        check_chunk(chunk, self.vit, len(memory.num_seen))
        computed = every_nth(chunk, memory.num_seen, self.config.every)
        # Frames that are no key frames show theirs at first, whose embedding is what theirs are made with.
        record = compute_or_repeat(self.vit, chunk, computed, memory.key_BE)
        record.reuse_RLN.zero_()  # none of them is left out
        key_R, last_B = rows_shown(computed)
        others = [row for row, is_key in enumerate(chain.from_iterable(computed)) if not is_key]
        frames = [frame_3HW for pixels_F3HW in chunk.pixels for frame_3HW in pixels_F3HW]
        known = [*memory.key_B3HW, *frames]
        # As many tokens at once as of whole frames, up to where pixels take the room.
        at_once = FRAMES_PER_BATCH * min(self.vit.shape.num_patches // self.num_kept, MOST_BATCHES)
        for start in range(0, len(others), at_once):
            rows = others[start : start + at_once]
            frames_X3HW = torch.stack([frames[row].to(memory.key_B3HW) for row in rows])
            their_keys = [known[key].to(memory.key_B3HW) for key in (key_R[row] for row in rows)]
            record.embeddings_RE[rows] = embed_some(
                self.vit, self.tokenizer, frames_X3HW, their_keys, record.embeddings_RE[rows], self.num_kept
            ).float()
        record.add_dense(self.work, others)
        for stream, key in enumerate(last_B):
            memory.key_B3HW[stream] = known[key]
        return record.encoded(memory)


def num_kept(shape: VitShape, keep: float) -> int:
    """Return K, one at least."""
    return max(1, round(keep * shape.num_patches))


def embed_some(  # noqa: PLR0913, PLR0917  one frame's inputs
    vit: Vit,
    tokenizer: ResidualTokenizer | None,
    frames_X3HW: Tensor,
    keys_X3HW: Sequence[Tensor] | Tensor,
    key_XE: Tensor,
    kept: int,
) -> Tensor:
    """Return embedding_XE of frames beside their key frames, whose dense embeddings are key_XE.

    Of each frame K patches are `kept`, and a token of its key frame where there is a tokenizer.
    """
    patch_XK = most_changed(vit.shape, frames_X3HW, keys_X3HW, kept)
    h_XMD = vit.embed(frames_X3HW, patch_XK)
    prefix_X = torch.arange(vit.shape.num_prefix, device=patch_XK.device).expand(len(patch_XK), -1)
    token_XM = torch.cat([prefix_X, patch_XK + vit.shape.num_prefix], dim=1)
    if tokenizer is not None:
        h_XMD = torch.cat([h_XMD, tokenizer(key_XE).to(h_XMD.dtype)], dim=1)
        # It stands nowhere in the picture: as CLS, which rotary positions never turn.
        token_XM = F.pad(token_XM, (0, 1))
    for index in range(vit.shape.num_layers - 1):
        q_XhMd, k_XhMd, v_XhMd = vit.split_heads(vit.qkv(index, h_XMD), token_XM)
        h_XMD = vit.close(index, h_XMD, vit.attend(q_XhMd, k_XhMd, v_XhMd))
    return vit.finish_from_input(h_XMD, None, token_XM)


def most_changed(shape: VitShape, frames_X3HW: Tensor, keys_X3HW: Sequence[Tensor] | Tensor, kept: int) -> Tensor:
    """Return [X, K] int64, ascending: the patches whose pixels are farthest from the key frame's, by mean distance."""
    seen_px = shape.patches_per_side * shape.patch_px
    if frames_X3HW.is_cuda:
        apart_XHW = distance(frames_X3HW, torch.stack(tuple(keys_X3HW)))
    else:  # frame by frame: two frames stay in a core's cache, a batch of them does not
        apart_XHW = torch.stack([distance(one, key) for one, key in zip(frames_X3HW, keys_X3HW, strict=True)])
    apart_XA = F.avg_pool2d(apart_XHW[:, :seen_px, :seen_px], shape.patch_px).flatten(1)
    # Of equals the first, so that a picture that stands still is the same on every machine.
    return apart_XA.argsort(dim=1, descending=True, stable=True)[:, :kept].sort(dim=1).values


def distance(a_X3HW: Tensor, b_X3HW: Tensor) -> Tensor:
    """Return [X, H, W]: the sum of absolute differences over colours, of one frame or of many."""
    return (a_X3HW.float() - b_X3HW.float()).abs_().sum(-3)


def save_tokenizer(tokenizer: ResidualTokenizer, path: Path) -> None:
    """Write a safetensors of float32 weights, which `load_tokenizer` reads."""
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
