"""Import of the published artifact's weights: its names into ours.

The artifact's `.ckpt` files are Lightning's, with a second, dense tower beside the student; see pickle_reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from reuse_models.artifact.pickle_reader import read_state_dict
from reuse_models.reusevit.addon import Addon, AddonShape, check_addon
from reuse_models.tower.shape import VitShape

Variant = Literal["as_trained", "released"]
VARIANTS: tuple[Variant, ...] = ("as_trained", "released")
"""`as_trained`: each decision at the boundary it was trained for. `released`: what the artifact's evaluation script
loads, every decision one boundary early."""

WRAPPERS = ("net._orig_mod.", "net.")
LAYERS = "model.vision_model.encoder.layers."
REUSE = "reuse_module."


def addon_from_state(state: Mapping[str, Tensor], tower: VitShape, variant: Variant) -> Addon:
    """Build an add-on from weights under their published names.

    Raises:
        ValueError: Weights are missing or fit another tower.
    """
    weights = {name: weight for name, weight in state.items() if name.startswith((LAYERS, "blobnet."))}
    with_reuse = {int(name[len(LAYERS) :].split(".")[0]) for name in weights if f".{REUSE}" in name}
    if not with_reuse:
        raise ValueError(
            "checkpoint: got no reuse_module weights, expected those of a published ReuseViT; check the file"
        )
    enter = _take(weights, f"{LAYERS}{max(with_reuse)}.{REUSE}decision_module.blocks.1.0.weight")
    down = _take(weights, f"{LAYERS}{max(with_reuse)}.{REUSE}restoration_module.h_mlp.0.weight")
    shape = AddonShape(
        width=down.shape[1],
        num_layers=max(with_reuse) + 1,
        decision_hidden=enter.shape[0],
        restoration_rank=down.shape[0],
    )
    check_addon(shape, tower, "checkpoint")
    addon = Addon(shape)
    ours = _codec_net(weights)
    for boundary in range(shape.num_boundaries):
        decided_by = boundary if variant == "released" else boundary + 1
        decision = f"{LAYERS}{decided_by}.{REUSE}decision_module.blocks."
        for own, theirs in (("enter", "1.0"), ("leave", "2.0")):
            for kind in ("weight", "bias"):
                ours[f"decisions.{boundary}.{own}.{kind}"] = _take(weights, f"{decision}{theirs}.{kind}")
        restoration = f"{LAYERS}{boundary + 1}.{REUSE}restoration_module."
        mlps = [f"{restoration}{one}_mlp." for one in "hqkv"]
        ours[f"restorations.{boundary}.down_QD"] = torch.cat([_take(weights, f"{mlp}0.weight") for mlp in mlps])
        ours[f"restorations.{boundary}.up_4DR"] = torch.stack([_take(weights, f"{mlp}3.weight") for mlp in mlps])
    try:
        addon.load_state_dict({name: weight.float() for name, weight in ours.items()})
    except RuntimeError as error:
        raise ValueError(
            f"checkpoint: got weights of other sizes ({' '.join(str(error).split())[:160]}), expected those of a "
            "published ReuseViT; check the file"
        ) from error
    return addon.eval()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the student's weights of a Lightning `.ckpt`, under their names without the wrappers.

    Raises:
        ValueError: The file is missing, truncated, malicious or holds no such weights; nothing in it was executed.
    """
    student = {
        name.removeprefix(WRAPPERS[0]).removeprefix(WRAPPERS[1]): weight
        for name, weight in read_state_dict(path, lambda name: name.startswith(WRAPPERS)).items()
    }
    if not student:
        raise ValueError(
            f"checkpoint {path.name}: got no weights under `net.`, expected the published names; check the file"
        )
    return student


def _codec_net(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the codec net's weights; the axis of time, of length one, leaves each kernel."""
    named = {"final": "decoder.final"}
    for index in range(3):
        named[f"encoder.{index}.conv"] = f"encoder.contracting.{index}.0"
        named[f"encoder.{index}.norm"] = f"encoder.contracting.{index}.3"
        named[f"decoder.{index}.conv"] = f"decoder.expanding.{index}.0.conv"
        if index < 2:
            named[f"decoder.{index}.norm"] = f"decoder.expanding.{index}.1"
    ours: dict[str, Tensor] = {}
    for (own, theirs), kind in product(named.items(), ("weight", "bias")):
        weight = _take(weights, f"blobnet.{theirs}.{kind}")
        ours[f"codec_net.{own}.{kind}"] = weight[:, :, 0] if weight.ndim == 5 else weight
    for index, mix in product(range(3), range(2)):
        weight = _take(weights, f"blobnet.encoder.contracting.{index}.5.inner.{3 * mix}.weight")
        ours[f"codec_net.encoder.{index}.mix.{mix}.weight"] = weight[..., 0]
    return ours


def _take(weights: Mapping[str, Tensor], name: str) -> Tensor:
    weight = weights.get(name)
    if weight is None:
        raise ValueError(f"checkpoint: got no {name}, expected all weights of a published ReuseViT; check the file")
    return weight
