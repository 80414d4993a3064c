"""A frozen vision tower cut at its joints, so that a method may enter and leave a layer where reuse needs it.

Shapes: B frames (of any streams), N tokens (prefix first: CLS where there is one, then registers), M of them, L layers,
D width, h heads, d head width, E embedding width, P patches a side; X stands for any leading dimensions.

One layer is `qkv` → `split_heads` → `attend` → `project` → `mlp`; `close` is the last two. Methods that gather tokens
put a packed [tokens, D] through `qkv` and `close`, since nothing but `attend` mixes tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reuse_models.tower.attention import attend
from reuse_models.tower.positions import at_size, rotary_table
from reuse_models.tower.shape import VitShape
from reuse_models.tower.without_weights import without_weights

QUICK_GELU_SLOPE = 1.702


class VitLayer(nn.Module):
    """The frozen weights of one layer; q, k and v are one product."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        width, mlp_width = shape.width, shape.mlp_width
        self.norm1_weight = _frozen(width)
        self.norm1_bias = _frozen(width)
        self.qkv_weight = _frozen(3 * width, width)
        self.qkv_bias = _frozen(3 * width)
        self.out_weight = _frozen(width, width)
        self.out_bias = _frozen(width)
        self.norm2_weight = _frozen(width)
        self.norm2_bias = _frozen(width)
        # Where the activation is quick_gelu, fc1 carries its slope and fc2 the inverse: see Vit.activate. Where the
        # tower scales what a layer adds (DINO's LayerScale), out and fc2 carry the scales.
        self.fc1_weight = _frozen(shape.fc1_width, width)
        self.fc1_bias = _frozen(shape.fc1_width)
        self.fc2_weight = _frozen(width, mlp_width)
        self.fc2_bias = _frozen(width)


class Vit(nn.Module):
    """A frozen tower in evaluation mode. Build it with `hugging_face.from_hf` or `Vit.random`."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.shape = shape
        width, embed_dim = shape.width, shape.embed_dim
        self.patch_weight = _frozen(width, 3, shape.patch_px, shape.patch_px)
        # Of the prefix the whole tokens, CLS and registers; of patches what is added to them, patch bias included.
        self.position = _frozen(shape.num_tokens, width)
        self.pre_norm_weight = _frozen(width) if shape.has_pre_norm else None
        self.pre_norm_bias = _frozen(width) if shape.has_pre_norm else None
        # cos and sin of rotary positions, sin's sign as `_rotate` wants it; the prefix is not turned.
        self.rotary_2Nd = None if shape.rope_theta is None else nn.Parameter(rotary_table(shape), requires_grad=False)
        self.layers = nn.ModuleList(VitLayer(shape) for _ in range(shape.num_layers))
        self.post_norm_weight = _frozen(width)
        self.post_norm_bias = _frozen(width)
        self.projection = _frozen(embed_dim, width) if shape.has_projection else None
        self.pool = None if shape.has_cls else _PoolingHead(shape)
        self.eval()

    def at_size(self, image_px: int) -> Vit:
        """Return the tower for frames of another size, sharing all weights but its positions.

        Raises:
            ValueError: The size is no multiple of the patches, and not the tower's own.
        """
        if image_px == self.shape.image_px:
            return self
        weights, shape = at_size(self.state_dict(), self.shape, image_px)
        with without_weights():
            resized = Vit(shape)
        resized.load_state_dict(weights, assign=True)
        return resized

    @staticmethod
    def random(shape: VitShape, seed: int = 0) -> Vit:
        """Return a tower with random weights that keep activations of order one: for tests and benchmarks."""
        vit = Vit(shape)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in vit.named_parameters():
            if name == "rotary_2Nd":
                continue
            if name.endswith(("norm1_weight", "norm2_weight", "norm_weight")):
                weight.fill_(1.0)
            elif weight.ndim > 1 and name != "position":
                fan_in = weight[0].numel()
                weight.normal_(0.0, fan_in**-0.5, generator=generator)
            else:
                weight.normal_(0.0, 0.02 if name.endswith("bias") else 0.5, generator=generator)
        return vit

    def layer(self, index: int) -> VitLayer:
        """Return the weights of layer 0..L-1."""
        layer = self.layers[index]
        assert isinstance(layer, VitLayer)
        return layer

    def check_pixels(self, pixels_B3HW: Tensor) -> None:
        """Refuse, by a ValueError, frames that are not [B, 3, image_px, image_px] floating point."""
        side = self.shape.image_px
        if pixels_B3HW.ndim != 4 or tuple(pixels_B3HW.shape[1:]) != (3, side, side):
            raise ValueError(
                f"frames: got {list(pixels_B3HW.shape)}, expected [F, 3, {side}, {side}]; "
                "scale the frames to the tower's size"
            )
        if not pixels_B3HW.is_floating_point():
            raise ValueError(
                f"frames: got {pixels_B3HW.dtype}, expected floating point; normalise with the tower's mean and std"
            )

    def embed(self, pixels_B3HW: Tensor, patch_BK: Tensor | None = None) -> Tensor:
        """Return the input of layer 0: h_BND, or [B, prefix + K, D] of the prefix and of some patches alone.

        No gradient reaches the pixels: the tower is frozen. Patches that are not asked for are not computed.
        """
        rows_BKX = self._cut(pixels_B3HW.detach().to(self.patch_weight))
        prefix_SD, position_KD = self.position.tensor_split([self.shape.num_prefix])
        if patch_BK is not None:
            rows_BKX = rows_BKX.gather(1, patch_BK[..., None].expand(-1, -1, rows_BKX.shape[-1]))
            position_KD = position_KD[patch_BK]
        h_BMD = F.linear(rows_BKX, self.patch_weight.flatten(1)).add_(position_KD)
        del rows_BKX  # about as large
        if len(prefix_SD):
            h_BMD = torch.cat([prefix_SD.expand(len(h_BMD), -1, -1), h_BMD], dim=1)
        return self._norm(h_BMD, self.pre_norm_weight, self.pre_norm_bias) if self.shape.has_pre_norm else h_BMD

    def _cut(self, pixels_B3HW: Tensor) -> Tensor:
        """Return [B, P * P, 3 * patch_px ** 2]: rows whose product with the patch weights is already in token order."""
        side, patch_px = self.shape.patches_per_side, self.shape.patch_px
        # Pixels beyond the last whole patch are left out, as a convolution without padding does.
        cropped_B3HW = pixels_B3HW[:, :, : side * patch_px, : side * patch_px]
        grid_B3PpPp = cropped_B3HW.reshape(-1, 3, side, patch_px, side, patch_px)
        return grid_B3PpPp.permute(0, 2, 4, 1, 3, 5).reshape(-1, side * side, 3 * patch_px**2)

    def norm1(self, index: int, h_XD: Tensor) -> Tensor:
        """Return what layer `index` projects to q, k and v."""
        layer = self.layer(index)
        return self._norm(h_XD, layer.norm1_weight, layer.norm1_bias)

    def norm2(self, index: int, h_XD: Tensor) -> Tensor:
        """Return the input of layer `index`'s MLP, given the hidden state after attention."""
        layer = self.layer(index)
        return self._norm(h_XD, layer.norm2_weight, layer.norm2_bias)

    def qkv(self, index: int, h_XD: Tensor) -> Tensor:
        """Return q, k, v of layer `index` side by side, [X, 3D], given its input h_XD (before LN1)."""
        layer = self.layer(index)
        return F.linear(self.norm1(index, h_XD), layer.qkv_weight, layer.qkv_bias)

    def query(self, index: int, h_XD: Tensor) -> Tensor:
        """Return q alone, [X, D]."""
        layer, width = self.layer(index), self.shape.width
        return F.linear(self.norm1(index, h_XD), layer.qkv_weight[:width], layer.qkv_bias[:width])

    def key_value(self, index: int, h_XD: Tensor) -> Tensor:
        """Return k and v side by side, [X, 2D]: all that the last layer needs of a token that is not CLS."""
        layer, width = self.layer(index), self.shape.width
        return F.linear(self.norm1(index, h_XD), layer.qkv_weight[width:], layer.qkv_bias[width:])

    def split_heads(self, x_BMC: Tensor, token_BM: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return C / D tensors [B, h, M, d] that lie side by side: (q, k, v), (k, v), or q of CLS alone.

        They are views, but that q and k come turned where positions are rotary: what is stored, compared and restored
        knows no position.

        Args:
            x_BMC: Projections of all tokens, or of some.
            token_BM: Where some tokens stand among all N; None for all in their order. CLS is never turned.
        """
        num_frames, num_tokens, channels = x_BMC.shape
        num_parts = channels // self.shape.width
        parts = x_BMC.view(num_frames, num_tokens, num_parts, self.shape.num_heads, self.shape.head_dim)
        split = torch.unbind(parts.permute(2, 0, 3, 1, 4))
        if self.rotary_2Nd is None or num_parts == 1:
            return split
        turned = [self._rotate(one_BhMd, self.rotary_2Nd, token_BM) for one_BhMd in split[:-1]]
        return (*turned, split[-1])

    @staticmethod
    def _rotate(x_BhMd: Tensor, rotary_2Nd: Tensor, token_BM: Tensor | None) -> Tensor:
        """Turn each pair (i, i + d / 2) of a head's numbers by its token's angle."""
        cos_Md, sin_Md = rotary_2Nd if token_BM is None else rotary_2Nd[:, token_BM][:, :, None]
        return torch.addcmul(x_BhMd * cos_Md, x_BhMd.roll(x_BhMd.shape[-1] // 2, -1), sin_Md)

    def attend(self, q_BhMd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, bias_BN: Tensor | None = None) -> Tensor:
        """Return pre_proj_BMD: the heads' outputs of `attention.attend` side by side, before the output projection."""
        return attend(q_BhMd, k_BhNd, v_BhNd, bias_BN).transpose(1, 2).flatten(2)

    def importance(self, q_BhNd: Tensor, k_BhNd: Tensor, bias_BN: Tensor | None = None) -> Tensor:
        """Return [B, N]: the attention each token receives, summed over heads.

        From CLS where there is one; else the mean over all tokens' rows, which needs the whole matrix. The bias is that
        of `attend`.
        """
        if not self.shape.has_cls and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Two [h, N, N] a frame are not kept for the backward pass but made again.
            received_BN: Tensor = checkpoint(
                self._importance, q_BhNd, k_BhNd, bias_BN, use_reentrant=False, preserve_rng_state=False
            )
            return received_BN
        return self._importance(q_BhNd, k_BhNd, bias_BN)

    def _importance(self, q_BhNd: Tensor, k_BhNd: Tensor, bias_BN: Tensor | None) -> Tensor:
        rows_BhMd = (q_BhNd[:, :, :1] if self.shape.has_cls else q_BhNd) * self.shape.head_dim**-0.5
        if rows_BhMd.is_cuda:
            scores_BhMN = rows_BhMd @ k_BhNd.mT
        elif torch.is_grad_enabled():
            # As below; a copy of k would moreover be kept for the backward pass.
            scores_BhMN = torch.stack([rows_hMd @ k_hNd.mT for rows_hMd, k_hNd in zip(rows_BhMd, k_BhNd, strict=True)])
        else:
            # A frame at a time: [h, N, d] is read where it lies, [B, h, N, d] of a fused qkv would be copied first.
            scores_BhMN = rows_BhMd.new_empty(*rows_BhMd.shape[:3], k_BhNd.shape[2])
            for rows_hMd, k_hNd, scores_hMN in zip(rows_BhMd, k_BhNd, scores_BhMN, strict=True):
                torch.bmm(rows_hMd, k_hNd.mT, out=scores_hMN)
        if bias_BN is not None:
            scores_BhMN += bias_BN[:, None, None]
        attention_BN: Tensor = scores_BhMN.softmax(-1).sum(1).mean(1)
        return attention_BN

    def project(self, index: int, h_XD: Tensor, pre_proj_XD: Tensor) -> Tensor:
        """Return the hidden state after attention: output projection and residual."""
        layer = self.layer(index)
        return F.linear(pre_proj_XD, layer.out_weight, layer.out_bias).add_(h_XD)

    def mlp(self, index: int, h_XD: Tensor) -> Tensor:
        """Return the layer's output: LN2, MLP and residual, given the hidden state after attention."""
        return self.feed_forward(index, self.norm2(index, h_XD)).add_(h_XD)

    def feed_forward(self, index: int, normed_XD: Tensor) -> Tensor:
        """Return the MLP alone, without the norm before it and the residual around it."""
        layer = self.layer(index)
        hidden_XM = F.linear(normed_XD, layer.fc1_weight, layer.fc1_bias)
        return F.linear(self.activate(hidden_XM), layer.fc2_weight, layer.fc2_bias)

    def activate(self, x_X: Tensor) -> Tensor:
        """Apply what stands between fc1 and fc2, in place unless gradients are recorded; a gated MLP halves the width.

        quick_gelu(x) = x * sigmoid(s x) = silu(s x) / s with s = 1.702: fc1 carries s and fc2 carries 1 / s, so that
        one pass over the widest buffer of the tower is left.
        """
        if self.shape.gated_mlp:
            gate_X, up_X = x_X.chunk(2, dim=-1)
            activated_X = self._activate(gate_X)
            return activated_X * up_X if torch.is_grad_enabled() else activated_X.mul_(up_X)
        return self._activate(x_X)

    def _activate(self, x_X: Tensor) -> Tensor:
        in_place = not torch.is_grad_enabled()
        if self.shape.activation in ("quick_gelu", "silu"):
            return F.silu(x_X, inplace=in_place)
        approximate = "tanh" if self.shape.activation == "gelu_pytorch_tanh" else "none"
        if in_place:
            gelued_X: Tensor = torch.ops.aten.gelu_(x_X, approximate=approximate)
            return gelued_X
        return F.gelu(x_X, approximate=approximate)

    def close(self, index: int, h_XD: Tensor, pre_proj_XD: Tensor) -> Tensor:
        """Return layer `index`'s output for tokens whose attention is done: projection, residual, LN2, MLP."""
        return self.mlp(index, self.project(index, h_XD, pre_proj_XD))

    def close_into(self, index: int, h_XD: Tensor, pre_proj_XD: Tensor, hidden_XM: Tensor, out_XD: Tensor) -> None:
        """Do as `close` in memory that is there already: fresh memory of this size costs as much as a tenth of it.

        What h_XD and hidden_XM hold afterwards means nothing.
        """
        layer = self.layer(index)
        torch.addmm(layer.out_bias, pre_proj_XD, layer.out_weight.mT, out=out_XD)
        out_XD.add_(h_XD)
        torch.addmm(layer.fc1_bias, self.norm2(index, out_XD), layer.fc1_weight.mT, out=hidden_XM)
        torch.addmm(layer.fc2_bias, self.activate(hidden_XM), layer.fc2_weight.mT, out=h_XD)
        out_XD.add_(h_XD)

    def head(self, h_BMD: Tensor, bias_BM: Tensor | None = None) -> Tensor:
        """Return embedding_BE from the last layer's output: of CLS alone ([B, 1, D] will do) or of all tokens.

        The bias is that of `attend`, for a head that pools.
        """
        if self.pool is not None:
            pooled_BE: Tensor = self.pool(self._norm(h_BMD, self.post_norm_weight, self.post_norm_bias), self, bias_BM)
            return pooled_BE
        cls_BD = self._norm(h_BMD[:, 0], self.post_norm_weight, self.post_norm_bias)
        return cls_BD if self.projection is None else F.linear(cls_BD, self.projection)

    def run_layer(self, index: int, h_BND: Tensor) -> Tensor:
        """Return the output of layer `index` for all tokens."""
        return self.close(index, h_BND, self.attend(*self.split_heads(self.qkv(index, h_BND))))

    def finish(
        self, projected_BMC: Tensor, h_BMD: Tensor, bias_BM: Tensor | None = None, token_BM: Tensor | None = None
    ) -> Tensor:
        """Return embedding_BE from the last layer's q, k, v side by side and its input; CLS does with k, v alone.

        `bias_BM` is that of `attend`, `token_BM` that of `split_heads`.
        """
        last = self.shape.num_layers - 1
        *query, k_BhMd, v_BhMd = self.split_heads(projected_BMC, token_BM)
        if self.shape.has_cls:  # nothing else reaches the embedding
            h_BMD = h_BMD[:, :1]
        (q_BhMd,) = query or self.split_heads(self.query(last, h_BMD))
        pre_proj_BMD = self.attend(q_BhMd[:, :, : h_BMD.shape[1]], k_BhMd, v_BhMd, bias_BM)
        return self.head(self.close(last, h_BMD, pre_proj_BMD), bias_BM)

    def finish_from_input(self, h_BMD: Tensor, bias_BM: Tensor | None = None, token_BM: Tensor | None = None) -> Tensor:
        """Return embedding_BE from the last layer's input, of all tokens or of those that are left; see `finish`."""
        project = self.key_value if self.shape.has_cls else self.qkv
        return self.finish(project(self.shape.num_layers - 1, h_BMD), h_BMD, bias_BM, token_BM)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Return embedding_BE of every frame, dense.

        Equal to the Hugging Face tower, but in the last layer only CLS gets a query, a projection and an MLP, since
        nothing else reaches the embedding.

        Raises:
            ValueError: The frames do not fit the tower.
        """
        self.check_pixels(pixels_B3HW)
        h_BND = self.embed(pixels_B3HW)
        for index in range(self.shape.num_layers - 1):
            h_BND = self.run_layer(index, h_BND)
        return self.finish_from_input(h_BND)

    def _norm(self, x_XD: Tensor, weight_D: Tensor | None, bias_D: Tensor | None) -> Tensor:
        return F.layer_norm(x_XD, (self.shape.width,), weight_D, bias_D, self.shape.layer_norm_eps)


class _PoolingHead(nn.Module):
    """SigLIP's head: one learned query attends to all tokens, then an MLP with residual."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        width, mlp_width = shape.width, shape.mlp_width
        # The projected probe: it does not depend on the frame.
        self.query = _frozen(width)
        self.key_value_weight = _frozen(2 * width, width)
        self.key_value_bias = _frozen(2 * width)
        self.out_weight = _frozen(width, width)
        self.out_bias = _frozen(width)
        self.norm_weight = _frozen(width)
        self.norm_bias = _frozen(width)
        self.fc1_weight = _frozen(mlp_width, width)
        self.fc1_bias = _frozen(mlp_width)
        self.fc2_weight = _frozen(width, mlp_width)
        self.fc2_bias = _frozen(width)

    def forward(self, x_BMD: Tensor, vit: Vit, bias_BM: Tensor | None) -> Tensor:
        k_BhMd, v_BhMd = vit.split_heads(F.linear(x_BMD, self.key_value_weight, self.key_value_bias))
        (q_Bh1d,) = vit.split_heads(self.query.expand(len(x_BMD), 1, -1))
        pooled_BD = F.linear(vit.attend(q_Bh1d, k_BhMd, v_BhMd, bias_BM)[:, 0], self.out_weight, self.out_bias)
        normed_BD = vit._norm(pooled_BD, self.norm_weight, self.norm_bias)
        hidden_BM = vit.activate(F.linear(normed_BD, self.fc1_weight, self.fc1_bias))
        return F.linear(hidden_BM, self.fc2_weight, self.fc2_bias).add_(pooled_BD)


def _frozen(*size: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(size), requires_grad=False)
