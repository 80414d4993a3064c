"""The trained part of ReuseViT, beside the frozen tower: decisions, restorations, codec net; its file.

A file is a safetensors of float32 weights with a JSON of the same name beside it that says what tower they fit.

Shapes: X leading dimensions, D width, R rank, Q ranks of all corrections side by side.
Source: paper, section on the restoration layer; docs/methods.md.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reuse_models.reusevit.codec_net import CodecNet, NoCodecNet
from reuse_models.reusevit.engines.token_memory import ReferenceState
from reuse_models.reusevit.gate import Decision, Gate, Numbers
from reuse_models.tower.shape import VitShape
from reuse_models.tower.without_weights import without_weights

PUBLISHED_DECISION_HIDDEN = 160
PUBLISHED_RANK = 64
MAX_LAYERS = 1000
PUBLISHED_WIDTH = 768
"""From this width on the hidden sizes are the published ones; below, they would eat what reuse saves."""
CORRECTED = ("h", "q", "k", "v")
"""What restoration corrects, in the order of its weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AddonShape:
    """Sizes of an add-on: those of its tower, and its own."""

    width: int
    num_layers: int
    decision_hidden: int
    restoration_rank: int
    """0 for no restoration: what is reused is used as it is."""
    numbers: Numbers = "plain"
    """How importance and similarity enter the decisions."""
    codec: bool = True
    """Whether there is a codec net; without one its score is 0, and nothing of the codec grid is read."""

    def __post_init__(self) -> None:
        if self.numbers not in get_args(Numbers):
            raise ValueError(f"add-on numbers: got {self.numbers!r}, expected plain or log; train the add-on again")
        sizes = (self.width, self.num_layers, self.decision_hidden, self.restoration_rank)
        whole = all(isinstance(size, int) for size in sizes) and self.num_layers <= MAX_LAYERS
        if not whole or min(self.width, self.num_layers - 1, self.decision_hidden) < 1 or self.restoration_rank < 0:
            raise ValueError(
                f"add-on: got {self}, expected sizes of 1 or more, a rank of 0 or more and 2 to {MAX_LAYERS} layers; "
                "check the config"
            )

    @property
    def num_boundaries(self) -> int:
        """L - 1: places between layers where a token may be reused."""
        return self.num_layers - 1


def addon_shape(shape: VitShape, decision_hidden: int | None = None, restoration_rank: int | None = None) -> AddonShape:
    """Return the add-on's sizes on a tower; hidden sizes not given are the published ones, or in proportion to it.

    Raises:
        ValueError: A size is below 1.
    """
    share = min(1.0, shape.width / PUBLISHED_WIDTH)
    return AddonShape(
        width=shape.width,
        num_layers=shape.num_layers,
        decision_hidden=decision_hidden or max(16, round(PUBLISHED_DECISION_HIDDEN * share)),
        restoration_rank=max(4, round(PUBLISHED_RANK * share)) if restoration_rank is None else restoration_rank,
    )


class Restoration(nn.Module):
    """What a reused patch's h, q, k and v lack, read off the change of its attention output, at one boundary.

    Four bias-free MLPs, D -> R -> D, their first layers as one product; rank 0 corrects nothing.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.down_QD = nn.Parameter(torch.empty(len(CORRECTED) * rank, width))
        # Nothing is corrected until something is learned (ours; the artifact starts at random).
        self.up_4DR = nn.Parameter(torch.zeros(len(CORRECTED), width, rank))
        if rank:
            nn.init.kaiming_uniform_(self.down_QD, a=5**0.5)

    def forward(self, difference_XD: Tensor) -> tuple[Tensor, Tensor]:
        """Return corrections of h, [X, D], and of q, k, v side by side, from pre_proj minus the reference's."""
        if not self.rank:
            h_XD = torch.zeros_like(difference_XD)
            return h_XD, h_XD.repeat_interleave(len(CORRECTED) - 1, dim=-1)
        hidden = torch.split(F.relu(F.linear(difference_XD, self.down_QD)), self.rank, dim=-1)
        h_XD, *qkv = (F.linear(one, up_DR) for one, up_DR in zip(hidden, self.up_4DR, strict=True))
        return h_XD, torch.cat(qkv, dim=-1)


class Addon(nn.Module):
    """All trained weights. Built in evaluation mode; training switches its dropout on."""

    def __init__(self, shape: AddonShape) -> None:
        super().__init__()
        self.shape = shape
        boundaries = range(shape.num_boundaries)
        self.codec_net = CodecNet() if shape.codec else NoCodecNet()
        self.decisions = nn.ModuleList(Decision(shape.decision_hidden, shape.numbers) for _ in boundaries)
        self.restorations = nn.ModuleList(Restoration(shape.width, shape.restoration_rank) for _ in boundaries)
        self.eval()

    def restoration(self, boundary: int) -> Restoration:
        """Return the restoration of boundary 0..L-2."""
        restoration = self.restorations[boundary]
        assert isinstance(restoration, Restoration)
        return restoration

    def without_restoration(self) -> Addon:
        """Return a copy that decides alike and corrects nothing."""
        other = copy.deepcopy(self)  # dropout's rate is not among the weights
        other.shape = dataclasses.replace(self.shape, restoration_rank=0)
        like = self.restoration(0).down_QD
        nothing = (Restoration(self.shape.width, 0).to(like) for _ in range(self.shape.num_boundaries))
        other.restorations = nn.ModuleList(nothing)
        other.zero_grad()
        return other.train(self.training)

    def beside(self, tower_weight: Tensor) -> Addon:
        """Move to the device and type of a tower's weights, in place, and return self.

        Decisions stay in float32 beside a tower of 16 bits: most similarities lie within 0.03 of 1, where a bfloat16
        has eight values.
        """
        halves = tower_weight.dtype in (torch.float16, torch.bfloat16)
        self.decisions.to(tower_weight.device, torch.float32 if halves else tower_weight.dtype)
        self.codec_net.to(tower_weight)
        self.restorations.to(tower_weight)
        return self


@dataclass(frozen=True, slots=True)
class ReusePolicy:
    """How reuse goes: decided by what, restored by what, remembered as what. One value for training and inference."""

    addon: Addon
    """Its restorations; its decisions act through the gate."""
    gate: Gate
    """Soft for training; hard or forced otherwise."""
    reference_state: ReferenceState = "anchor"
    """What a frame finds at a reference that reused the patch itself."""


def check_addon(addon: AddonShape, tower: VitShape, subject: str) -> None:
    """Refuse, by a ValueError, an add-on that was made for a tower of another width or number of layers."""
    for name, got, expected in (
        ("width", addon.width, tower.width),
        ("layers", addon.num_layers, tower.num_layers),
    ):
        if got != expected:
            raise ValueError(
                f"{subject}: got {name} {got}, expected {expected} as in the tower; "
                "choose the backbone that it was trained on"
            )


def save_addon(addon: Addon, path: Path) -> None:
    """Write the weights to `path` (.safetensors) and their shape beside it, as JSON."""
    weights: dict[str, Tensor] = {name: w.detach().float().cpu().contiguous() for name, w in addon.state_dict().items()}
    # The JSON first: weights without it cannot be read, it without weights is not taken for them.
    _json_beside(path).write_text(json.dumps(dataclasses.asdict(addon.shape), indent=2) + "\n")
    safetensors.torch.save_file(weights, path)


def load_addon(path: Path) -> Addon:
    """Read what `save_addon` wrote.

    Raises:
        ValueError: A file is missing, broken, or does not hold the weights that its JSON announces.
    """
    for needed in (path, _json_beside(path)):
        if not needed.is_file():
            raise ValueError(f"add-on weights: got no file {needed}, expected one; train them or check the path")
    try:
        shape = AddonShape(**json.loads(_json_beside(path).read_text()))
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"add-on weights {_json_beside(path)}: got {str(error).splitlines()[0]}, expected the shape that training "
            "writes; train them again"
        ) from error
    try:
        weights = {name: weight.float().clone() for name, weight in safetensors.torch.load_file(path).items()}
        with without_weights():  # the JSON may name any size: no memory is taken before the weights bear it out
            addon = Addon(shape)
        addon.load_state_dict(weights, assign=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"add-on weights {path}: got a file that does not hold them ({' '.join(str(error).split())[:120]}), "
            "expected what training writes; train them again"
        ) from error
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise ValueError(
            f"add-on weights {path}: got values that are no numbers, expected what training writes; train them again"
        )
    return addon.eval()


def _json_beside(path: Path) -> Path:
    return path.with_suffix(".json")
