"""Choice and addresses in shapes that follow from the sizes of the groups alone: the host is never asked.

Where `choice` names a patch's source by its row, here it has a *code*: 0 for the stream's anchor, 1 + i for frame i of
its group in computing order. A patch can only have been computed in the few frames that its frame may refer to, so
that every similarity that may be asked for is computed beforehand, in one go.

Shapes: S streams of the pass, F frames of the pass, K of them in a wave, N tokens (prefix first), A patches,
X = F · N rows, H = S · N rows of anchors, c codes, P pairs of frames, C rows given to a layer's products, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from reuse_models.reusevit.anchors import cosine_from_norms, norms
from reuse_models.reusevit.frame_order import GROUP_SIZE, GROUPS, NUM_KINDS, PREVIOUS

NUM_CODES = 1 + GROUP_SIZE


@dataclass(frozen=True, slots=True)
class FixedWave:
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
    waves: tuple[FixedWave, ...]


@lru_cache(maxsize=256)
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
            FixedWave(
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


Decide = Callable[[FixedWave, Tensor], Tensor]
"""From a wave and similarity_KA to g_KA."""
Nearest = Callable[[Tensor, Tensor, FixedWave], tuple[Tensor, Tensor]]


def choose_sources(similarity_FcN: Tensor, plan: Plan, decide: Decide, nearest: Nearest, prefix: int) -> Tensor:
    """Decide for all frames of the pass, kind after kind; the first `prefix` tokens are never reused.

    Returns:
        source_FN, the code of the frame in which each patch was last computed: its own frame's if it is computed now.
    """
    source_FN = torch.zeros_like(plan.anchor_FN)
    for wave in plan.waves:
        similarity_KN, found_KN = nearest(similarity_FcN, source_FN, wave)
        reused_KN = torch.nn.functional.pad(decide(wave, similarity_KN[:, prefix:]) > 0.5, (prefix, 0))
        source_FN.index_copy_(0, wave.frames_K, torch.where(reused_KN, found_KN, wave.own_K1))
    return source_FN


def nearest_candidate(similarity_FcN: Tensor, source_FN: Tensor, wave: FixedWave) -> tuple[Tensor, Tensor]:
    """Return for each token the best similarity and that candidate's source; the first of equals."""
    similarity_KcN = similarity_FcN.index_select(0, wave.frames_K)
    found = [source_FN.index_select(0, frame_K).masked_fill(code_K1 == 0, 0) for frame_K, code_K1 in wave.candidates]
    similarities = [similarity_KcN.gather(1, found_KN[:, None])[:, 0] for found_KN in found]
    if len(found) == 1:
        return similarities[0], found[0]
    nearer_KN = similarities[1] > similarities[0]
    return torch.where(nearer_KN, similarities[1], similarities[0]), torch.where(nearer_KN, found[1], found[0])


def similarities(pre_proj_FND: Tensor, anchor_SND: Tensor, anchor_norm_SN: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return norm_FN, and [F, c, N]: the cosine of each frame's pre_proj with that of the anchor and of the others.

    Pairs that may not be compared hold 0 and are never read.
    """
    num_frames, num_tokens, _ = pre_proj_FND.shape
    norm_FN = norms(pre_proj_FND)
    to_anchor_FN = cosine_from_norms(
        norms(pre_proj_FND - anchor_SND[plan.slot_F]), norm_FN, anchor_norm_SN[plan.slot_F]
    )
    later_P, earlier_P = plan.pairs_2P
    difference_PN = norms(pre_proj_FND[later_P] - pre_proj_FND[earlier_P])
    to_frame_PN = cosine_from_norms(difference_PN, norm_FN[later_P], norm_FN[earlier_P])
    to_others_YN = norm_FN.new_zeros(num_frames * NUM_CODES, num_tokens).index_copy(0, plan.pair_place_P, to_frame_PN)
    to_others_FcN = to_others_YN.view(num_frames, NUM_CODES, num_tokens)
    return norm_FN, torch.cat([to_anchor_FN[:, None], to_others_FcN[:, 1:]], 1)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where rows are found."""

    computed_FN: Tensor
    """bool."""
    rows_C: Tensor
    """The computed rows, ascending; row 0 beyond them."""
    source_X: Tensor
    """Where each row was last computed, among H rows of anchors and then X rows of the pass."""
    base_X: Tensor
    """Where its h, q, k, v lie: among H rows of anchors, then X places of which computed rows fill the first."""


def addresses(source_FN: Tensor, plan: Plan, num_given: int) -> Addresses:
    """Turn codes into places; with more computed rows than `num_given`, C, the last ones get wrong places."""
    num_frames, num_tokens = source_FN.shape
    num_rows, num_anchors = num_frames * num_tokens, plan.num_streams * num_tokens
    computed_FN = source_FN == plan.own_F1
    computed_X = computed_FN.flatten()
    rank_X = computed_X.cumsum(0) - 1
    place_X = torch.where(computed_X & (rank_X < num_given), rank_X, num_given)
    every_X = torch.arange(num_rows, device=rank_X.device)
    # What is not computed meets in one place beyond those given.
    rows_C = torch.zeros(num_given + 1, dtype=torch.int64, device=rank_X.device).scatter(0, place_X, every_X)[:-1]
    stored_X = rank_X.clamp(0, num_given - 1)

    row_X = (plan.first_FN + (source_FN - 1) * num_tokens).flatten()
    anchor_X = plan.anchor_FN.flatten()
    from_anchor_X = (source_FN == 0).flatten()
    source_X = torch.where(from_anchor_X, anchor_X, num_anchors + row_X)
    base_X = torch.where(from_anchor_X, anchor_X, num_anchors + stored_X[row_X.clamp_min(0)])
    return Addresses(computed_FN, rows_C, source_X, base_X)
