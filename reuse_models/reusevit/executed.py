"""What frames of groups cost: units of each part of the tower and of the add-on that were executed.

Shapes: F frames, L layers, N tokens (prefix first), b = L - 1 boundaries, K units of a part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reuse_models.reusevit.addon import AddonShape
from reuse_models.reusevit.codec_net import codec_net_macs
from reuse_models.reusevit.engines.compacted import PassResult
from reuse_models.tower.shape import VitShape


def group_units(
    shape: VitShape, addon: AddonShape, results: Sequence[PassResult], *, decides: bool
) -> dict[str, Tensor]:
    """Return units_FK of each part of `flops.PARTS`; a boundary is filed under the layer that it leads into.

    Frames are those of all results, in their order. A forced rate asks no decision: `decides` is False.
    """
    # One copy from the device for all.
    columns = zip(
        *((one.executed_Fb, one.restored_Fb, one.compared_Fb, one.weighed_Fb) for one in results), strict=True
    )
    computed_Fb, restored_Fb, compared_Fb, weighed_Fb = torch.stack([torch.cat(one) for one in columns]).cpu()
    num_tokens = shape.num_tokens
    one_F1 = torch.ones(len(computed_Fb), 1, dtype=torch.int64)
    none_F1 = torch.zeros_like(one_F1)
    asked_F1 = shape.num_last_queries * one_F1
    entered_FL = torch.cat([num_tokens * one_F1, computed_Fb], 1)
    closed_FL = torch.cat([computed_Fb, asked_F1], 1)
    tokens_Fb = torch.full_like(computed_Fb, num_tokens)
    decision_units = addon.decision_hidden if decides else 0
    return {
        "patch_embedding": one_F1 * shape.num_patches,
        # In the last layer of CLS alone; where it runs for all tokens, of those that are not reused.
        "query": torch.cat([entered_FL[:, :-1], one_F1 if shape.has_cls else entered_FL[:, -1:]], 1),
        "key_value": entered_FL,
        "attention": torch.cat([tokens_Fb * num_tokens, num_tokens * asked_F1], 1),
        "projection": closed_FL,
        "mlp": closed_FL,
        "pooling": asked_F1,
        "head": one_F1,
        "importance": torch.cat([none_F1, weighed_Fb], 1),
        "similarity": torch.cat([none_F1, compared_Fb], 1),
        "decision": torch.cat([none_F1, (tokens_Fb - shape.num_prefix) * decision_units], 1),
        "restoration": torch.cat([none_F1, restored_Fb], 1),
        "codec_net": one_F1 * codec_net_macs(shape.patches_per_side) * int(addon.codec),
    }
