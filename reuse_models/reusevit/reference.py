"""Which frames a pass holds, who may refer to whom, and which reference is the nearest: for all inference engines.

Where a patch was last computed, its *source*, is a *code*: 0 for the stream's anchor, 1 + i for frame i of its group in
computing order. An engine brings the similarities and the gate.

Shapes: S streams of the pass, F frames of the pass (stream after stream, each in computing order), K of them in a wave,
N tokens (prefix first), A patches, H = S · N rows of anchors, c codes, P pairs of frames, L layers, b = L - 1
boundaries, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from reuse_models.reusevit.frame_order import GROUP_SIZE, GROUPS, NUM_KINDS, PREVIOUS
from reuse_models.reusevit.gate import FrameId

NUM_CODES = 1 + GROUP_SIZE


@dataclass(frozen=True, slots=True)
class Pass:
    """The next groups of S streams."""

    streams: tuple[int, ...]
    """Which of the anchors' streams."""
    sizes: tuple[int, ...]
    """Frames of each stream's group, 1..4."""
    pixels_F3HW: Tensor
    """Stream after stream, each group in computing order."""
    history_F4TPP: Tensor
    """Codec grids up to each frame, for the codec net."""
    frames: Sequence[FrameId]
    """For gates that draw by frame; may be empty."""


@dataclass(frozen=True, slots=True)
class PassResult:
    """Frames in the order of the pass."""

    embeddings_FE: Tensor
    reuse_FbN: Tensor
    """bool [F, L - 1, N]."""
    executed_Fb: Tensor
    """int64: rows put through the products behind each boundary."""
    restored_Fb: Tensor
    """int64: rows times ranks put through the products of each boundary's restoration."""
    compared_Fb: Tensor
    """int64: pairs of rows compared at each boundary."""
    weighed_Fb: Tensor
    """int64: query-key pairs beyond those of attention: for importance, or given up where a sum left the range."""
    given: tuple[int, ...] = ()
    """Rows that each boundary's products were given beforehand, see fixed_capacity; none where they take what comes."""


@dataclass(frozen=True, slots=True)
class Wave:
    """Frames of one kind: they decide together, after the waves of smaller kinds."""

    kind: int
    frames: tuple[int, ...]
    frames_K: Tensor
    own_K1: Tensor
    """Codes of the frames themselves."""
    candidates: tuple[tuple[Tensor, Tensor], ...]
    """One or two: frame_K (any for the anchor) and code_K1, in computing order."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A group of each of S streams, of one to four frames."""

    sizes: tuple[int, ...]
    num_streams: int
    num_frames: int
    own_F1: Tensor
    """Code of each frame."""
    slot_F: Tensor
    """Place of the frame's stream among the S streams."""
    anchor_FN: Tensor
    """Row of each row's anchor among the H rows of anchors."""
    first_FN: Tensor
    """Row of the same token in the first frame of the group."""
    pairs_2P: Tensor
    """Pairs of frames of a group that may be compared: the later frame, then the earlier one."""
    pair_place_P: Tensor
    """frame · c + code of the earlier one."""
    compared: tuple[int, ...]
    """Of each frame: with how many frames it is compared, the anchor's included."""
    handed: tuple[int, ...]
    """The frame of each stream that becomes its anchor: the first one."""
    handed_S: Tensor
    handed_rows_H: Tensor
    waves: tuple[Wave, ...]

    def rows_of(self, source_FN: Tensor, wave: Wave | None = None) -> Tensor:
        """Return the rows (frame · N + token) that sources of all frames, or of a wave's, name; any for the anchor."""
        first_FN = self.first_FN if wave is None else self.first_FN.index_select(0, wave.frames_K)
        return first_FN + (source_FN - 1) * self.first_FN.shape[1]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # later calls may come from outside of it
def plan_of(sizes: tuple[int, ...], num_tokens: int, device: torch.device) -> Plan:
    """Lay out groups of these sizes, 1..4, one a stream; stream after stream, each in computing order."""
    owns: list[int] = []
    slots: list[int] = []
    starts: list[int] = []
    compared: list[int] = []
    pairs: list[tuple[int, int, int]] = []
    waves: list[list[tuple[int, int, list[tuple[int, int]]]]] = [[] for _ in range(NUM_KINDS)]
    for slot, size in enumerate(sizes):
        starts.append(start := len(owns))
        code_of = {PREVIOUS: 0} | {step.frame: 1 + index for index, step in enumerate(GROUPS[size])}
        sources: list[set[int]] = [{0}]
        for index, step in enumerate(GROUPS[size]):
            frame, codes = start + index, [code_of[one] for one in step.candidates]
            found = set().union(*(sources[code] for code in codes))
            sources.append({*found, 1 + index})
            pairs += [(frame, start + code - 1, frame * NUM_CODES + code) for code in sorted(found) if code]
            compared.append(len(found))
            waves[step.kind].append((frame, 1 + index, [(start + max(code - 1, 0), code) for code in codes]))
            owns.append(1 + index)
            slots.append(slot)

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    def rows(frames: list[int]) -> Tensor:
        return (tensor(frames)[:, None] * num_tokens + token_N).flatten()

    token_N = torch.arange(num_tokens, device=device)
    slot_F = tensor(slots)
    return Plan(
        sizes=sizes,
        num_streams=len(sizes),
        num_frames=len(owns),
        own_F1=tensor(owns)[:, None],
        slot_F=slot_F,
        anchor_FN=slot_F[:, None] * num_tokens + token_N,
        first_FN=tensor([starts[slot] for slot in slots])[:, None] * num_tokens + token_N,
        pairs_2P=tensor([later for later, _, _ in pairs] + [earlier for _, earlier, _ in pairs]).view(2, -1),
        pair_place_P=tensor([place for _, _, place in pairs]),
        compared=tuple(compared),
        handed=tuple(starts),
        handed_S=tensor(starts),
        handed_rows_H=rows(starts),
        waves=tuple(
            Wave(
                kind=kind,
                frames=tuple(frame for frame, _, _ in wave),
                frames_K=tensor([frame for frame, _, _ in wave]),
                own_K1=tensor([own for _, own, _ in wave])[:, None],
                candidates=tuple(
                    (tensor([frame for frame, _ in column]), tensor([code for _, code in column])[:, None])
                    for column in zip(*(candidates for _, _, candidates in wave), strict=True)
                ),
            )
            for kind, wave in enumerate(waves)
            if wave
        ),
    )


def sources_of(source_FN: Tensor, wave: Wave) -> list[Tensor]:
    """Return [K, N] for each candidate: where its patches were last computed."""
    return [source_FN.index_select(0, frame_K).masked_fill(code_K1 == 0, 0) for frame_K, code_K1 in wave.candidates]


def nearer(similarities: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return for each token the best similarity and that candidate's source; the first of equals."""
    if len(found) == 1:
        return similarities[0], found[0]
    nearer_KN = similarities[1] > similarities[0]
    return torch.where(nearer_KN, similarities[1], similarities[0]), torch.where(nearer_KN, found[1], found[0])


def note_sources(source_FN: Tensor, wave: Wave, g_KA: Tensor, found_KN: Tensor) -> None:
    """Write where each patch of a wave was last computed: where the reference found was, if reused, else in its frame.

    The prefix is never reused. Waves come in their order, since later ones refer to what earlier ones left.
    """
    reused_KN = torch.nn.functional.pad(g_KA > 0.5, (source_FN.shape[1] - g_KA.shape[1], 0))
    source_FN.index_copy_(0, wave.frames_K, torch.where(reused_KN, found_KN, wave.own_K1))
