"""The codec net: a small U-Net that scores each patch from what the video codec decided about it.

Shapes: B frames, C channels, T codec steps (oldest first), P patches a side, S side of an inner map.

Kernels never span time, so the steps ride in the batch of a 2-D convolution; only normalisation and the temporal mixing
see them together. Source: paper, section on codec metadata; layer by layer as in the artifact's network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CODEC_CHANNELS = 4
CODEC_STEPS = 4
ENCODER_CHANNELS = (16, 32, 64)
DECODER_CHANNELS = ((64, 32), (64, 16), (32, 16))
LAST_CLASS = 6.0
LAST_QUANTISER = 51.0
DROPOUT = 0.2


def codec_history(before_XT4PP: Tensor, codec_XF4PP: Tensor) -> Tensor:
    """Return [X, F, 4, T, P, P]: for each frame the three before it and itself, oldest first.

    Args:
        before_XT4PP: The T - 1 grids before the first frame, zeros where the stream had not begun. X is any number of
            leading dimensions.
        codec_XF4PP: The frames' own grids in display order.
    """
    joined = torch.cat([before_XT4PP, codec_XF4PP], dim=-4)
    return joined.unfold(-4, CODEC_STEPS, 1).movedim(-1, -3)


class CodecNet(nn.Module):
    """Scores in (-1, 1), one per patch."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (CODEC_CHANNELS, *ENCODER_CHANNELS[:-1])
        self.encoder = nn.ModuleList(_Down(a, b) for a, b in zip(inputs, ENCODER_CHANNELS, strict=True))
        self.decoder = nn.ModuleList(_Up(a, b, normed=index < 2) for index, (a, b) in enumerate(DECODER_CHANNELS))
        self.final = nn.Conv2d(DECODER_CHANNELS[-1][1], 1, 1)

    def forward(self, history_B4TPP: Tensor) -> Tensor:
        """Return score_BPP from the grids as decoded: `codec_history` gives them their order."""
        grid = history_B4TPP.abs()
        grid[:, 0].clamp_(max=LAST_CLASS).mul_(1 / LAST_CLASS)
        grid[:, 3].mul_(1 / LAST_QUANTISER)
        x_BTCSS = grid.transpose(1, 2)
        # The decoder sees the oldest step alone.
        oldest = []
        for down in self.encoder:
            x_BTCSS = down(x_BTCSS)
            oldest.append(x_BTCSS[:, 0])
        x_BCSS = oldest.pop()
        for up in self.decoder:
            x_BCSS = up(x_BCSS)
            if oldest:
                beside = oldest.pop()
                side = beside.shape[-1]
                x_BCSS = torch.cat([x_BCSS[..., :side, :side], beside], dim=1)
        side = history_B4TPP.shape[-1]
        score: Tensor = torch.tanh(self.final(x_BCSS))[:, 0, :side, :side]
        return score


class _Down(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 2)
        self.norm = nn.GroupNorm(1, channels_out)
        self.mix = nn.ModuleList(nn.Linear(CODEC_STEPS, CODEC_STEPS, bias=False) for _ in range(2))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x_BTCSS: Tensor) -> Tensor:
        batch, steps = x_BTCSS.shape[:2]
        # `same` for an even kernel: one row below and one column to the right.
        x = F.relu(self.conv(F.pad(x_BTCSS.flatten(0, 1), (0, 1, 0, 1))))
        odd = x.shape[-1] % 2
        x = F.pad(x, (0, odd, 0, odd))
        # One group: mean and deviation are those of all channels, steps and places of a frame.
        x = self.norm(x.view(batch, steps, *x.shape[1:]).transpose(1, 2)).transpose(1, 2)
        x = F.max_pool2d(x.flatten(0, 1), 2)
        x_BTCSS = x.view(batch, steps, *x.shape[1:])
        mixed = x_BTCSS.movedim(1, -1)
        for mix in self.mix:
            mixed = self.dropout(F.relu(mix(mixed)))
        return F.relu(mixed.movedim(-1, 1) + x_BTCSS)


class NoCodecNet(nn.Module):
    """Stands where the codec net would in an add-on that decides without it: every score is 0."""

    def forward(self, history_B4TPP: Tensor) -> Tensor:
        """Return zeros_BPP."""
        return history_B4TPP.new_zeros(len(history_B4TPP), *history_B4TPP.shape[-2:])


class _Up(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, normed: bool) -> None:
        super().__init__()
        self.dropout = nn.Dropout(DROPOUT)
        self.conv = nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2)
        self.norm = nn.GroupNorm(1, channels_out) if normed else None

    def forward(self, x_BCSS: Tensor) -> Tensor:
        x: Tensor = self.conv(self.dropout(F.relu(x_BCSS)))
        return x if self.norm is None else self.norm(x)


def codec_net_macs(side: int) -> int:
    """Return the multiply-accumulates of the net's products for one frame with `side` patches a side."""
    total, sides = 0, []
    inputs = (CODEC_CHANNELS, *ENCODER_CHANNELS[:-1])
    for channels_in, channels_out in zip(inputs, ENCODER_CHANNELS, strict=True):
        total += CODEC_STEPS * side**2 * channels_in * channels_out * 4
        side = (side + 1) // 2
        total += 2 * channels_out * CODEC_STEPS**2 * side**2
        sides.append(side)
    side = sides.pop()
    for channels_in, channels_out in DECODER_CHANNELS:
        total += side**2 * channels_in * channels_out * 4
        side = 2 * side if not sides else sides.pop()
    return total + side**2 * DECODER_CHANNELS[-1][1]
