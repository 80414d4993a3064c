"""Triton kernels of a ReuseViT layer on a GPU: rows restored, attention, choice and addresses, gather, anchors.

A *row* is a token of a frame of the pass. Where it was computed, its h, q, k, v lie among the *stored* rows of its
boundary; `base` says where: a stored row, or -1 for the same token of its stream's anchor. What a reused row lacks is
added as it is read; k and v are read by many queries, and so are written down once restored.

In one file, and two of them long: a kernel cannot be divided without a launch or a pass over memory more, and all name
rows alike.

Arithmetic is float32 within a kernel; products take their operands in the tower's type.

Shapes: S streams of the pass, F frames (S groups of G, in computing order), N tokens (prefix first), A patches,
X = F · N rows, C rows given, D width, h heads, d head width, R rank of a correction, b boundaries.
"""

from __future__ import annotations

import triton
import triton.language as tl

ALIGNED = tl.constexpr(8)
"""Values that the starts of rows are multiples of: what one load of 16 bytes takes, so that none takes less."""


@triton.jit
def _offsets(base, row_T, anchor_T, is_T, anchors_ahead, stored_stride, anchor_stride):
    """Return how many values behind `stored` each row begins; anchors are `anchors_ahead` values further on."""
    base_T = tl.load(base + row_T, mask=is_T, other=0)
    offset_T = tl.where(base_T < 0, anchors_ahead + anchor_T * anchor_stride, base_T.to(tl.int64) * stored_stride)
    return tl.multiple_of(offset_T, [ALIGNED])


@triton.jit
def _hidden_units(hidden, row_T, is_T, hidden_stride, RANK: tl.constexpr, BLOCK_R: tl.constexpr):
    """Return [T, R] of one correction."""
    unit_R = tl.arange(0, BLOCK_R)
    inside_TR = is_T[:, None] & (unit_R < RANK)[None, :]
    return tl.load(hidden + row_T[:, None] * hidden_stride + unit_R[None, :], mask=inside_TR, other=0.0)


@triton.jit
def _ups(up, column_d, is_d, RANK: tl.constexpr, BLOCK_R: tl.constexpr):
    """Return [R, d]: some columns of the second layer of a correction."""
    unit_R = tl.arange(0, BLOCK_R)
    inside_Rd = (unit_R < RANK)[:, None] & is_d[None, :]
    return tl.load(up + column_d[None, :] * RANK + unit_R[:, None], mask=inside_Rd, other=0.0)


@triton.jit
def _restored(
    stored, offset_T, hidden, up_Rd, row_T, is_T, column_d, is_d, hidden_stride,
    RANK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Return [T, d]: some columns of rows as computed, with the correction."""
    inside_Td = is_T[:, None] & is_d[None, :]
    x_Td = tl.load(stored + offset_T[:, None] + column_d[None, :], mask=inside_Td, other=0.0)
    if RANK > 0:
        hidden_TR = _hidden_units(hidden, row_T, is_T, hidden_stride, RANK, BLOCK_R)
        x_Td = tl.dot(hidden_TR, up_Rd, x_Td.to(tl.float32), input_precision="ieee").to(x_Td.dtype)
    return x_Td


@triton.jit
def fill_kernel(
    stored, hidden, up, base, anchor_F, out,
    anchors_ahead, stored_stride, anchor_stride, hidden_stride, num_rows, num_tokens,
    WIDTH: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write k and v of all rows, restored, side by side; pointers are those of k."""
    row_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_T = row_T < num_rows
    column_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_C = column_C < WIDTH
    part = tl.program_id(2)
    anchor_T = tl.load(anchor_F + row_T // num_tokens, mask=is_T, other=0).to(tl.int64) * num_tokens
    offset_T = _offsets(base, row_T, anchor_T + row_T % num_tokens, is_T, anchors_ahead, stored_stride, anchor_stride)
    up_RC = _ups(up + part * WIDTH * RANK, column_C, is_C, RANK, BLOCK_R)
    x_TC = _restored(
        stored + part * WIDTH, offset_T, hidden + part * RANK, up_RC, row_T, is_T, column_C, is_C, hidden_stride,
        RANK, BLOCK_R,
    )  # fmt: skip
    at_TC = row_T[:, None] * (2 * WIDTH) + part * WIDTH + column_C[None, :]
    tl.store(out + at_TC, x_TC, mask=is_T[:, None] & is_C[None, :])


@triton.jit
def attend_kernel(
    stored, hidden, up, base, anchor_F, key_value, query, out, scores, stats,
    anchors_ahead, stored_stride, anchor_stride, hidden_stride, key_value_stride, log2_scale, num_tokens,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    RANK: tl.constexpr, BLOCK_R: tl.constexpr, PREFIX: tl.constexpr, PREFIX_T: tl.constexpr, PATCHES: tl.constexpr,
    TILES: tl.constexpr, LAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Attention of one head of one frame: of a tile of its patches, or (the last program) of its prefix.

    Queries are restored here, keys and values before. In the LAST layer of a tower with CLS, `query` holds CLS's, and
    nothing else asks. Scores are kept for importance: of CLS's row as they are, with the row's maximum and sum in
    `stats`; without a prefix the columns' sums of this tile's attention. The prefix has programs of its own since its
    few rows would make one more tile of queries, and its keys come first since they would make one more of keys.
    """
    frame, head, tile = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS, tl.program_id(1)
    row_0 = frame * num_tokens
    anchor_0 = tl.load(anchor_F + frame).to(tl.int64) * num_tokens
    of_head_d = tl.arange(0, BLOCK_D)
    is_d = of_head_d < HEAD_DIM
    column_d = head * HEAD_DIM + of_head_d
    token_T = tl.arange(0, PREFIX_T)
    is_T = token_T < PREFIX
    inside_Td = is_T[:, None] & is_d[None, :]
    at_T = (row_0 + token_T)[:, None] * key_value_stride + column_d[None, :]
    if PREFIX > 0:
        k_Td = tl.load(key_value + at_T, mask=inside_Td, other=0.0)
        v_Td = tl.load(key_value + WIDTH + at_T, mask=inside_Td, other=0.0)

    if tile < TILES:
        token_M = PREFIX + tile * BLOCK_M + tl.arange(0, BLOCK_M)
        is_M = token_M < num_tokens
        offset_M = _offsets(
            base, row_0 + token_M, anchor_0 + token_M, is_M, anchors_ahead, stored_stride, anchor_stride
        )
        up_q = _ups(up, column_d, is_d, RANK, BLOCK_R)
        q_Md = _restored(
            stored, offset_M, hidden, up_q, row_0 + token_M, is_M, column_d, is_d, hidden_stride, RANK, BLOCK_R
        )
        if PREFIX > 0:
            s_MT = tl.where(is_T[None, :], tl.dot(q_Md, tl.trans(k_Td), input_precision="ieee"), float("-inf"))
            most_M = tl.max(s_MT, 1) * log2_scale
            p_MT = tl.exp2(s_MT * log2_scale - most_M[:, None])
            sum_M = tl.sum(p_MT, 1)
            sum_Md = tl.dot(p_MT.to(v_Td.dtype), v_Td, input_precision="ieee")
        else:
            most_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
            sum_M = tl.zeros([BLOCK_M], tl.float32)
            sum_Md = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for start in tl.range(0, PATCHES, BLOCK_N, num_stages=STAGES):
            patch_N = start + tl.arange(0, BLOCK_N)
            inside_Nd = (patch_N < PATCHES)[:, None] & is_d[None, :]
            at_Nd = (row_0 + PREFIX + patch_N)[:, None] * key_value_stride + column_d[None, :]
            k_Nd = tl.load(key_value + at_Nd, mask=inside_Nd, other=0.0)
            v_Nd = tl.load(key_value + WIDTH + at_Nd, mask=inside_Nd, other=0.0)
            s_MN = tl.dot(q_Md, tl.trans(k_Nd), input_precision="ieee")
            if PATCHES % BLOCK_N > 0:
                s_MN = tl.where((patch_N < PATCHES)[None, :], s_MN, float("-inf"))
            more_M = tl.maximum(most_M, tl.max(s_MN, 1) * log2_scale)
            p_MN = tl.exp2(s_MN * log2_scale - more_M[:, None])
            keep_M = tl.exp2(most_M - more_M)
            sum_M = sum_M * keep_M + tl.sum(p_MN, 1)
            sum_Md = tl.dot(p_MN.to(v_Nd.dtype), v_Nd, sum_Md * keep_M[:, None], input_precision="ieee")
            most_M = more_M
        at_Md = (row_0 + token_M)[:, None] * WIDTH + column_d[None, :]
        o_Md = sum_Md / sum_M[:, None]
        tl.store(out + at_Md, o_Md.to(out.dtype.element_ty), mask=is_M[:, None] & is_d[None, :])
        if PREFIX == 0:
            for start in tl.range(0, PATCHES, BLOCK_N, num_stages=STAGES):
                patch_N = start + tl.arange(0, BLOCK_N)
                is_N = patch_N < PATCHES
                at_Nd = (row_0 + patch_N)[:, None] * key_value_stride + column_d[None, :]
                k_Nd = tl.load(key_value + at_Nd, mask=is_N[:, None] & is_d[None, :], other=0.0)
                s_MN = tl.dot(q_Md, tl.trans(k_Nd), input_precision="ieee")
                p_MN = tl.where(is_M[:, None], tl.exp2(s_MN * log2_scale - most_M[:, None]) / sum_M[:, None], 0.0)
                at_N = (tl.program_id(0) * TILES + tile) * num_tokens + patch_N
                tl.store(scores + at_N, tl.sum(p_MN, 0), mask=is_N)
    elif PREFIX > 0:
        if LAST:
            at_query = query + frame * WIDTH + 0 * token_T[:, None] + column_d[None, :]
            q_Td = tl.load(at_query, mask=inside_Td, other=0.0)
        else:
            offset_T = _offsets(
                base, row_0 + token_T, anchor_0 + token_T, is_T, anchors_ahead, stored_stride, anchor_stride
            )
            up_q = _ups(up, column_d, is_d, RANK, BLOCK_R)
            q_Td = _restored(
                stored, offset_T, hidden, up_q, row_0 + token_T, is_T, column_d, is_d, hidden_stride, RANK, BLOCK_R
            )
        s_TT = tl.where(is_T[None, :], tl.dot(q_Td, tl.trans(k_Td), input_precision="ieee"), float("-inf")) * log2_scale
        most_T = tl.max(s_TT, 1)
        p_TT = tl.exp2(s_TT - most_T[:, None])
        sum_T = tl.sum(p_TT, 1)
        sum_Td = tl.dot(p_TT.to(v_Td.dtype), v_Td, input_precision="ieee")
        of_frame = scores + tl.program_id(0) * num_tokens
        if not LAST:
            tl.store(of_frame + token_T, tl.sum(tl.where((token_T == 0)[:, None], s_TT, 0.0), 0), mask=is_T)
        for start in tl.range(0, PATCHES, BLOCK_N, num_stages=STAGES):
            patch_N = start + tl.arange(0, BLOCK_N)
            is_N = patch_N < PATCHES
            at_Nd = (row_0 + PREFIX + patch_N)[:, None] * key_value_stride + column_d[None, :]
            k_Nd = tl.load(key_value + at_Nd, mask=is_N[:, None] & is_d[None, :], other=0.0)
            v_Nd = tl.load(key_value + WIDTH + at_Nd, mask=is_N[:, None] & is_d[None, :], other=0.0)
            s_TN = tl.dot(q_Td, tl.trans(k_Nd), input_precision="ieee") * log2_scale
            s_TN = tl.where(is_N[None, :], s_TN, float("-inf"))
            more_T = tl.maximum(most_T, tl.max(s_TN, 1))
            p_TN = tl.exp2(s_TN - more_T[:, None])
            keep_T = tl.exp2(most_T - more_T)
            sum_T = sum_T * keep_T + tl.sum(p_TN, 1)
            sum_Td = tl.dot(p_TN.to(v_Nd.dtype), v_Nd, sum_Td * keep_T[:, None], input_precision="ieee")
            most_T = more_T
            if not LAST:
                of_cls_N = tl.sum(tl.where((token_T == 0)[:, None], s_TN, 0.0), 0)
                tl.store(of_frame + PREFIX + patch_N, of_cls_N, mask=is_N)
        o_Td = (sum_Td / sum_T[:, None]).to(out.dtype.element_ty)
        is_cls_T = token_T == 0
        if LAST:
            at_out = out + frame * WIDTH + 0 * token_T[:, None] + column_d[None, :]
            tl.store(at_out, o_Td, mask=is_cls_T[:, None] & is_d[None, :])
        else:
            tl.store(out + (row_0 + token_T)[:, None] * WIDTH + column_d[None, :], o_Td, mask=inside_Td)
            tl.store(stats + tl.program_id(0) * 2 + 0 * token_T, most_T, mask=is_cls_T)
            tl.store(stats + tl.program_id(0) * 2 + 1 + 0 * token_T, sum_T, mask=is_cls_T)


@triton.jit
def _cosine(norm_i, norm_j, difference):
    """Return the cosine of two rows from their squared lengths and that of their difference."""
    return (norm_i + norm_j - difference) / (2 * tl.maximum(tl.sqrt(norm_i) * tl.sqrt(norm_j), 1e-20))


@triton.jit
def _pick(code, of_0, of_1, of_2):
    return tl.where(code == 0, of_0, tl.where(code == 1, of_1, of_2))


@triton.jit
def _is_reused(
    similarity_t, frame, token_t, is_patch_t, scores, stats, codec, masks, draws, enter, enter_bias, leave, leave_bias,
    shift, scale, boundary, bias, num_tokens, KIND: tl.constexpr,
    HEADS: tl.constexpr, BLOCK_H: tl.constexpr, TILES: tl.constexpr, PREFIX: tl.constexpr, PATCHES: tl.constexpr,
    FORCED: tl.constexpr, LOG: tl.constexpr, UNITS: tl.constexpr, BLOCK_U: tl.constexpr, BOUNDARIES: tl.constexpr,
    LEAST: tl.constexpr,
):  # fmt: skip
    """Return what the gate says of some tokens of one frame."""
    if FORCED:
        draw = tl.load(draws + frame)
        mask_t = tl.load(
            masks + (draw * BOUNDARIES + boundary) * PATCHES + token_t - PREFIX, mask=is_patch_t, other=0.0
        )
        reused_t = mask_t > 0.5
    else:
        head_h = tl.arange(0, BLOCK_H)
        is_ht = (head_h < HEADS * TILES)[:, None] & is_patch_t[None, :]
        score_ht = tl.load(
            scores + (frame * HEADS * TILES + head_h)[:, None] * num_tokens + token_t[None, :], mask=is_ht, other=0.0
        )
        if PREFIX > 0:
            most_h = tl.load(stats + (frame * HEADS + head_h) * 2, mask=head_h < HEADS, other=0.0)
            sum_h = tl.load(stats + (frame * HEADS + head_h) * 2 + 1, mask=head_h < HEADS, other=1.0)
            share_ht = tl.where(is_ht, tl.exp2(score_ht - most_h[:, None]) / sum_h[:, None], 0.0)
            importance_t = tl.sum(share_ht, 0)
        else:
            importance_t = tl.sum(score_ht, 0) / num_tokens
        codec_t = tl.load(codec + frame * PATCHES + token_t - PREFIX, mask=is_patch_t, other=0.0).to(tl.float32)
        if LOG:
            importance_t = tl.log(importance_t + LEAST)
            similarity_t = -tl.log(tl.maximum(1 - similarity_t, 0.0) + LEAST)
            importance_t = (importance_t - tl.load(shift).to(tl.float32)) / tl.load(scale).to(tl.float32)
            similarity_t = (similarity_t - tl.load(shift + 1).to(tl.float32)) / tl.load(scale + 1).to(tl.float32)
            codec_t = (codec_t - tl.load(shift + 2).to(tl.float32)) / tl.load(scale + 2).to(tl.float32)
        unit_U = tl.arange(0, BLOCK_U)
        is_U = unit_U < UNITS
        at_U = enter + unit_U * 6
        of_importance_U = tl.load(at_U, mask=is_U, other=0.0).to(tl.float32)
        of_similarity_U = tl.load(at_U + 1, mask=is_U, other=0.0).to(tl.float32)
        of_codec_U = tl.load(at_U + 2, mask=is_U, other=0.0).to(tl.float32)
        of_kind_U = tl.load(at_U + 3 + KIND, mask=is_U, other=0.0).to(tl.float32)
        of_kind_U += tl.load(enter_bias + unit_U, mask=is_U, other=0.0).to(tl.float32)
        hidden_tU = (
            importance_t[:, None] * of_importance_U[None, :]
            + similarity_t[:, None] * of_similarity_U[None, :]
            + codec_t[:, None] * of_codec_U[None, :]
            + of_kind_U[None, :]
        )
        of_reuse_U = tl.load(leave + unit_U, mask=is_U, other=0.0).to(tl.float32)
        of_compute_U = tl.load(leave + UNITS + unit_U, mask=is_U, other=0.0).to(tl.float32)
        ahead_t = tl.sum(tl.maximum(hidden_tU, 0.0) * (of_reuse_U - of_compute_U)[None, :], 1)
        ahead_t += tl.load(leave_bias).to(tl.float32) - tl.load(leave_bias + 1).to(tl.float32)
        reused_t = ahead_t + bias > 0
    return reused_t & is_patch_t


@triton.jit
def choose_kernel(
    pre_proj, anchor_pre_proj, anchor_norm, streams_S, scores, stats, codec, masks, draws,
    enter, enter_bias, leave, leave_bias, shift, scale,
    base, source, rows, counter, reuse, norm_out,
    boundary, capacity, bias, num_tokens,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, BLOCK_H: tl.constexpr, TILES: tl.constexpr, PREFIX: tl.constexpr,
    PATCHES: tl.constexpr, FORCED: tl.constexpr, LOG: tl.constexpr, UNITS: tl.constexpr, BLOCK_U: tl.constexpr,
    BOUNDARIES: tl.constexpr, LEAST: tl.constexpr, GROUP: tl.constexpr,
    SECOND_A: tl.constexpr, SECOND_B: tl.constexpr, SECOND_KIND: tl.constexpr,
    THIRD_A: tl.constexpr, THIRD_B: tl.constexpr, THIRD_KIND: tl.constexpr,
    FOURTH_A: tl.constexpr, FOURTH_B: tl.constexpr, FOURTH_KIND: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compare, decide and address some tokens of a group's frames, one after the other in computing order.

    A source's code is 0 for the anchor and i for the i-th frame; candidates of a frame come as codes. Computed rows get
    the next free places, in whatever order programs come by: what is in a row does not depend on its place.
    """
    slot, first_token = tl.program_id(0), tl.program_id(1) * BLOCK_T
    token_t = first_token + tl.arange(0, BLOCK_T)
    is_t = token_t < num_tokens
    is_patch_t = is_t & (token_t >= PREFIX)
    frame_1 = slot * GROUP
    row_1 = frame_1 * num_tokens + token_t
    anchor_t = tl.load(streams_S + slot).to(tl.int64) * num_tokens + token_t
    zero_t = tl.zeros([BLOCK_T], tl.float32)
    n_0, n_1, n_2, n_3, n_4 = zero_t, zero_t, zero_t, zero_t, zero_t
    d_10, d_20, d_21, d_30, d_31, d_32 = zero_t, zero_t, zero_t, zero_t, zero_t, zero_t
    d_40, d_41, d_42 = zero_t, zero_t, zero_t
    for start in range(0, WIDTH, BLOCK_C):
        column_C = start + tl.arange(0, BLOCK_C)
        inside = is_t[:, None] & (column_C < WIDTH)[None, :]
        x_0 = tl.load(anchor_pre_proj + anchor_t[:, None] * WIDTH + column_C[None, :], mask=inside, other=0.0)
        x_0 = x_0.to(tl.float32)
        at = pre_proj + row_1[:, None] * WIDTH + column_C[None, :]
        step = num_tokens * WIDTH
        x_1 = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        n_0 += tl.sum(x_0 * x_0, 1)
        n_1 += tl.sum(x_1 * x_1, 1)
        d_10 += tl.sum((x_1 - x_0) * (x_1 - x_0), 1)
        if GROUP > 1:
            x_2 = tl.load(at + step, mask=inside, other=0.0).to(tl.float32)
            n_2 += tl.sum(x_2 * x_2, 1)
            d_20 += tl.sum((x_2 - x_0) * (x_2 - x_0), 1)
            d_21 += tl.sum((x_2 - x_1) * (x_2 - x_1), 1)
        if GROUP > 2:
            x_3 = tl.load(at + 2 * step, mask=inside, other=0.0).to(tl.float32)
            n_3 += tl.sum(x_3 * x_3, 1)
            d_30 += tl.sum((x_3 - x_0) * (x_3 - x_0), 1)
            d_31 += tl.sum((x_3 - x_1) * (x_3 - x_1), 1)
            d_32 += tl.sum((x_3 - x_2) * (x_3 - x_2), 1)
        if GROUP > 3:
            x_4 = tl.load(at + 3 * step, mask=inside, other=0.0).to(tl.float32)
            n_4 += tl.sum(x_4 * x_4, 1)
            d_40 += tl.sum((x_4 - x_0) * (x_4 - x_0), 1)
            d_41 += tl.sum((x_4 - x_1) * (x_4 - x_1), 1)
            d_42 += tl.sum((x_4 - x_2) * (x_4 - x_2), 1)

    none_t = tl.zeros([BLOCK_T], tl.int32)
    s_10 = _cosine(n_1, n_0, d_10)
    reused_1 = _is_reused(
        s_10, frame_1, token_t, is_patch_t, scores, stats, codec, masks, draws, enter, enter_bias, leave, leave_bias,
        shift, scale, boundary, bias, num_tokens, 0,
        HEADS, BLOCK_H, TILES, PREFIX, PATCHES, FORCED, LOG, UNITS, BLOCK_U, BOUNDARIES, LEAST,
    )  # fmt: skip
    code_1 = tl.where(reused_1, 0, none_t + 1)
    computed_1 = (is_t & ~reused_1).to(tl.int32)
    total = tl.sum(computed_1, 0)
    rank_1 = tl.cumsum(computed_1, 0) - 1
    if GROUP > 1:
        source_a = code_1 if SECOND_A == 1 else none_t
        source_b = code_1 if SECOND_B == 1 else none_t
        s_0, s_1 = _cosine(n_2, n_0, d_20), _cosine(n_2, n_1, d_21)
        similar_a, similar_b = _pick(source_a, s_0, s_1, s_1), _pick(source_b, s_0, s_1, s_1)
        found = tl.where(similar_b > similar_a, source_b, source_a)
        reused_2 = _is_reused(
            tl.maximum(similar_a, similar_b), frame_1 + 1, token_t, is_patch_t, scores, stats, codec, masks, draws,
            enter, enter_bias, leave, leave_bias, shift, scale, boundary, bias, num_tokens, SECOND_KIND,
            HEADS, BLOCK_H, TILES, PREFIX, PATCHES, FORCED, LOG, UNITS, BLOCK_U, BOUNDARIES, LEAST,
        )  # fmt: skip
        code_2 = tl.where(reused_2, found, 2)
        computed_2 = (is_t & ~reused_2).to(tl.int32)
        rank_2 = total + tl.cumsum(computed_2, 0) - 1
        total += tl.sum(computed_2, 0)
    if GROUP > 2:
        source_a = code_2 if THIRD_A == 2 else (code_1 if THIRD_A == 1 else none_t)
        source_b = code_2 if THIRD_B == 2 else (code_1 if THIRD_B == 1 else none_t)
        s_0, s_1, s_2 = _cosine(n_3, n_0, d_30), _cosine(n_3, n_1, d_31), _cosine(n_3, n_2, d_32)
        similar_a, similar_b = _pick(source_a, s_0, s_1, s_2), _pick(source_b, s_0, s_1, s_2)
        found = tl.where(similar_b > similar_a, source_b, source_a)
        reused_3 = _is_reused(
            tl.maximum(similar_a, similar_b), frame_1 + 2, token_t, is_patch_t, scores, stats, codec, masks, draws,
            enter, enter_bias, leave, leave_bias, shift, scale, boundary, bias, num_tokens, THIRD_KIND,
            HEADS, BLOCK_H, TILES, PREFIX, PATCHES, FORCED, LOG, UNITS, BLOCK_U, BOUNDARIES, LEAST,
        )  # fmt: skip
        code_3 = tl.where(reused_3, found, 3)
        computed_3 = (is_t & ~reused_3).to(tl.int32)
        rank_3 = total + tl.cumsum(computed_3, 0) - 1
        total += tl.sum(computed_3, 0)
    if GROUP > 3:
        source_a = code_2 if FOURTH_A == 2 else (code_1 if FOURTH_A == 1 else none_t)
        source_b = code_2 if FOURTH_B == 2 else (code_1 if FOURTH_B == 1 else none_t)
        s_0, s_1, s_2 = _cosine(n_4, n_0, d_40), _cosine(n_4, n_1, d_41), _cosine(n_4, n_2, d_42)
        similar_a, similar_b = _pick(source_a, s_0, s_1, s_2), _pick(source_b, s_0, s_1, s_2)
        found = tl.where(similar_b > similar_a, source_b, source_a)
        reused_4 = _is_reused(
            tl.maximum(similar_a, similar_b), frame_1 + 3, token_t, is_patch_t, scores, stats, codec, masks, draws,
            enter, enter_bias, leave, leave_bias, shift, scale, boundary, bias, num_tokens, FOURTH_KIND,
            HEADS, BLOCK_H, TILES, PREFIX, PATCHES, FORCED, LOG, UNITS, BLOCK_U, BOUNDARIES, LEAST,
        )  # fmt: skip
        code_4 = tl.where(reused_4, found, 4)
        computed_4 = (is_t & ~reused_4).to(tl.int32)
        rank_4 = total + tl.cumsum(computed_4, 0) - 1
        total += tl.sum(computed_4, 0)

    begin = tl.atomic_add(counter + boundary, total)
    place_1 = begin + rank_1
    place_2, place_3 = place_1, place_1
    if GROUP > 1:
        place_2 = begin + rank_2
    if GROUP > 2:
        place_3 = begin + rank_3
    _address(code_1, 1, place_1, place_1, place_2, place_3, frame_1, token_t, is_t, n_1, base, source, rows, reuse,
             norm_out, boundary, capacity, num_tokens, BOUNDARIES)  # fmt: skip
    if GROUP > 1:
        _address(code_2, 2, place_2, place_1, place_2, place_3, frame_1, token_t, is_t, n_2, base, source, rows, reuse,
                 norm_out, boundary, capacity, num_tokens, BOUNDARIES)  # fmt: skip
    if GROUP > 2:
        _address(code_3, 3, place_3, place_1, place_2, place_3, frame_1, token_t, is_t, n_3, base, source, rows, reuse,
                 norm_out, boundary, capacity, num_tokens, BOUNDARIES)  # fmt: skip
    if GROUP > 3:
        _address(code_4, 4, begin + rank_4, place_1, place_2, place_3, frame_1, token_t, is_t, n_4, base, source, rows,
                 reuse, norm_out, boundary, capacity, num_tokens, BOUNDARIES)  # fmt: skip


@triton.jit
def _address(
    code_t, OWN: tl.constexpr, place_t, place_1, place_2, place_3, frame_1, token_t, is_t, square_t,
    base, source, rows, reuse, norm_out, boundary, capacity, num_tokens, BOUNDARIES: tl.constexpr,
):  # fmt: skip
    """Write where one frame's rows are found. A computed row without a place gets a wrong one: the call is redone."""
    frame = frame_1 + OWN - 1
    row_t = frame * num_tokens + token_t
    is_computed_t = code_t == OWN
    its_place_t = tl.where(
        is_computed_t, place_t, tl.where(code_t == 1, place_1, _pick(code_t - 2, place_2, place_3, 0))
    )
    its_place_t = tl.minimum(its_place_t, capacity - 1)
    its_row_t = (frame_1 + code_t - 1) * num_tokens + token_t
    tl.store(base + row_t, tl.where(code_t == 0, -1, its_place_t), mask=is_t)
    tl.store(source + row_t, tl.where(code_t == 0, -1, its_row_t), mask=is_t)
    tl.store(rows + place_t, row_t, mask=is_t & is_computed_t & (place_t < capacity))
    tl.store(reuse + (frame * BOUNDARIES + boundary) * num_tokens + token_t, (~is_computed_t).to(tl.int8), mask=is_t)
    tl.store(norm_out + row_t, tl.sqrt(square_t), mask=is_t)


@triton.jit
def gather_kernel(
    stored, hidden, up, base, anchor_F, pre_proj, rows, h_out, pre_proj_out,
    anchors_ahead, capacity, num_tokens, hidden_stride,
    WIDTH: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr, WITH_PRE_PROJ: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Bring the rows to be computed together: the layer's input, restored, and what attention made of them."""
    place_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_T = place_T < capacity
    row_T = tl.load(rows + place_T, mask=is_T, other=0)
    anchor_T = tl.load(anchor_F + row_T // num_tokens, mask=is_T, other=0).to(tl.int64) * num_tokens
    anchor_T += row_T % num_tokens
    column_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_C = column_C < WIDTH
    inside = is_T[:, None] & is_C[None, :]
    offset_T = _offsets(base, row_T, anchor_T, is_T, anchors_ahead, WIDTH, WIDTH)
    up_RC = _ups(up, column_C, is_C, RANK, BLOCK_R)
    h_TC = _restored(stored, offset_T, hidden, up_RC, row_T, is_T, column_C, is_C, hidden_stride, RANK, BLOCK_R)
    at_TC = place_T[:, None] * WIDTH + column_C[None, :]
    tl.store(h_out + at_TC, h_TC, mask=inside)
    if WITH_PRE_PROJ:
        x_TC = tl.load(pre_proj + row_T[:, None] * WIDTH + column_C[None, :], mask=inside, other=0.0)
        tl.store(pre_proj_out + at_TC, x_TC, mask=inside)


@triton.jit
def _copy_row(source, target, saved, is_new, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < WIDTH
        if is_new:
            tl.store(saved + column, tl.load(target + column, mask=inside), mask=inside)
        tl.store(target + column, tl.load(source + column, mask=inside), mask=inside)


@triton.jit
def move_kernel(
    base, stored, stored_h, anchors, anchors_h, saved, saved_h, seen,
    computed, pre_proj, norm, anchors_pre_proj, anchors_norm, saved_pre_proj, saved_norm, seen_pre_proj,
    streams_S, stored_stride, anchor_stride, num_tokens,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, WITH_H: tl.constexpr,
    WITH_STATES: tl.constexpr, WITH_PRE_PROJ: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Make a group's first frame its stream's anchor: where it was computed; elsewhere it is the anchor already.

    What is overwritten for the first time since `seen` was cleared is kept in `saved`.
    """
    token = tl.program_id(0)
    slot = tl.program_id(1)
    row = (slot * GROUP * num_tokens + token).to(tl.int64)
    at = tl.load(streams_S + slot).to(tl.int64) * num_tokens + token
    if WITH_STATES:
        place = tl.load(base + row).to(tl.int64)
        if place >= 0:
            is_new = tl.load(seen + at) == 0
            _copy_row(stored + place * stored_stride, anchors + at * anchor_stride, saved + at * anchor_stride, is_new,
                      CHANNELS, BLOCK)  # fmt: skip
            if WITH_H:
                _copy_row(stored_h + place * WIDTH, anchors_h + at * WIDTH, saved_h + at * WIDTH, is_new, WIDTH, BLOCK)
            tl.store(seen + at, 1)
    if WITH_PRE_PROJ:  # noqa: SIM102  decided while compiling
        if tl.load(computed + row) >= 0:
            is_new = tl.load(seen_pre_proj + at) == 0
            _copy_row(pre_proj + row * WIDTH, anchors_pre_proj + at * WIDTH, saved_pre_proj + at * WIDTH, is_new,
                      WIDTH, BLOCK)  # fmt: skip
            if is_new:
                tl.store(saved_norm + at, tl.load(anchors_norm + at))
            tl.store(anchors_norm + at, tl.load(norm + row))
            tl.store(seen_pre_proj + at, 1)


@triton.jit
def hidden_kernel(
    own, of_anchors, source, slot_of_F, out, num_rows, num_tokens, out_stride,
    UNITS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_U: tl.constexpr,
):  # fmt: skip
    """Hidden units of the corrections: exactly 0 for a row that is its own source."""
    row_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_T = row_T < num_rows
    unit_U = tl.arange(0, BLOCK_U)
    inside = is_T[:, None] & (unit_U < UNITS)[None, :]
    source_T = tl.load(source + row_T, mask=is_T, other=0)
    slot_T = tl.load(slot_of_F + row_T // num_tokens, mask=is_T, other=0)
    anchor_T = slot_T * num_tokens + row_T % num_tokens
    pointer_T = tl.where(source_T < 0, of_anchors + anchor_T * UNITS, own + source_T * UNITS)
    theirs_TU = tl.load(pointer_T[:, None] + unit_U[None, :], mask=inside, other=0.0).to(tl.float32)
    own_TU = tl.load(own + row_T[:, None] * UNITS + unit_U[None, :], mask=inside, other=0.0).to(tl.float32)
    units_TU = tl.maximum(own_TU - theirs_TU, 0.0).to(out.dtype.element_ty)
    tl.store(out + row_T[:, None] * out_stride + unit_U[None, :], units_TU, mask=inside)


@triton.jit
def norm_kernel(x, bias, weight, norm_bias, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Add a product's bias to a row in place, and return the row normalised."""
    at = x + tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    row = tl.load(at + column, mask=inside, other=0.0).to(tl.float32)
    row += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    row = row.to(x.dtype.element_ty)
    tl.store(at + column, row, mask=inside)
    row = row.to(tl.float32)
    mean = tl.sum(row, 0) / WIDTH
    centred = tl.where(inside, row - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
    normed = centred / deviation * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    normed += tl.load(norm_bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + tl.program_id(0).to(tl.int64) * WIDTH + column, normed.to(out.dtype.element_ty), mask=inside)
