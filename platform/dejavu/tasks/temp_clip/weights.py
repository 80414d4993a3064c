"""A TempCLIP head's weights: the published checkpoint's names, our own file, and what does not fit.

Both are read the same way: our file is a safetensors under the published names, with a JSON beside it for what no
weight tells (the number of heads, the text encoder).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dejavu.tasks.temp_clip.head import TempClip, TempClipShape
from reuse_models.artifact.pickle_reader import read_state_dict

WRAPPER = "module."
TEXT = "lang_model.bert.bert."
"""Before the names of the text encoder's weights."""
PUBLISHED_HEADS = 8

PUBLISHED_NAMES: Mapping[str, str] = {
    "frame_in": "linear_video",
    "frame_norm": "norm_video",
    "position_norm": "position_v.LayerNorm",
    "candidate_in": "lang_model.linear_text",
    "layer.query": "mmt.layer.0.attention.q_lin",
    "layer.key": "mmt.layer.0.attention.k_lin",
    "layer.value": "mmt.layer.0.attention.v_lin",
    "layer.attended": "mmt.layer.0.attention.out_lin",
    "layer.attention_norm": "mmt.layer.0.sa_layer_norm",
    "layer.enter": "mmt.layer.0.ffn.lin1",
    "layer.leave": "mmt.layer.0.ffn.lin2",
    "layer.ffn_norm": "mmt.layer.0.output_layer_norm",
    "query_pool.enter": "satt_pool_frame_gs.0",
    "query_pool.leave": "satt_pool_frame_gs.2",
    "frame_pool.enter": "satt_pool_frame.0",
    "frame_pool.leave": "satt_pool_frame.2",
    "gaussian": "logit_gauss.1",
    "out": "vpos_proj.1",
}
"""Our module -> the published one. What else a checkpoint holds (a table of modalities, the text encoder's pooler) the
published evaluation does not use either."""
POSITIONS = "position_v.position_embeddings.weight"


@dataclass(frozen=True, slots=True)
class TempClipWeights:
    """A head, and the text encoder's weights that belong to it."""

    head: TempClip
    text: Mapping[str, Tensor]
    """Under the encoder's own names; empty where a frozen encoder was used as it is."""
    text_encoder: str | None
    """As `load_sentences` takes it; None where the file does not say."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a published checkpoint (.pth) or of our own file, float32, without the wrapper's prefix.

    Raises:
        ValueError: The file is missing, broken or malicious; nothing in it was executed.
    """
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise ValueError(f"temp_clip checkpoint: got no file {path}, expected .pth or .safetensors; check the path")
        try:
            state = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"temp_clip checkpoint {path.name}: got a broken file ({error}), expected safetensors; copy it again"
            ) from error
    else:
        state = read_state_dict(path, lambda _: True)
    return {name.removeprefix(WRAPPER): w.float() if w.is_floating_point() else w for name, w in state.items()}


def head_from_state(state: Mapping[str, Tensor], num_heads: int = PUBLISHED_HEADS) -> TempClip:
    """Build the head from weights under their published names.

    Raises:
        ValueError: One is missing, or their sizes do not fit together.
    """
    own = {
        f"{ours}.{kind}": _take(state, f"{theirs}.{kind}")
        for ours, theirs in PUBLISHED_NAMES.items()
        for kind in ("weight", "bias")
    }
    own["positions_FD"] = _take(state, POSITIONS)
    try:
        shape = TempClipShape(
            feature_width=own["frame_in.weight"].shape[-1],
            sentence_width=own["candidate_in.weight"].shape[-1],
            width=own["frame_in.weight"].shape[0],
            ffn_width=own["layer.enter.weight"].shape[0],
            num_heads=num_heads,
            num_frames=len(own["positions_FD"]),
        )
        head = TempClip(shape)
        head.load_state_dict(own)
    except (IndexError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"temp_clip checkpoint: got weights of sizes that do not fit together ({_squeezed(error)}), expected those "
            "of one TempCLIP NG+ with one layer; check the file"
        ) from error
    return head.eval()


def text_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the text encoder's weights under its own names; nothing where the file has none."""
    return {name.removeprefix(TEXT): weight for name, weight in state.items() if name.startswith(TEXT)}


def load_temp_clip(path: Path, num_heads: int | None = None) -> TempClipWeights:
    """Read a published checkpoint, a `.pth` of tensors, or the `.safetensors` that `save_temp_clip` wrote.

    The head has `num_heads`; unless given, as our JSON beside the file says, else as published.

    Raises:
        ValueError: As `read_weights` and `head_from_state`; or a number is none.
    """
    state = read_weights(path)
    if broken := sorted(name for name, weight in state.items() if not bool(torch.isfinite(weight).all())):
        raise ValueError(
            f"temp_clip checkpoint {path.name}: got {len(broken)} weights with values that are no numbers (first "
            f"{broken[0]}), expected none; train it again or download it again"
        )
    note_path = path.with_suffix(".json")
    note = _note(note_path) if note_path.is_file() else {}
    head = head_from_state(state, num_heads or note.get("num_heads", PUBLISHED_HEADS))
    return TempClipWeights(head, text_weights(state), note.get("text_encoder"))


def _note(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path.name}: got {_squeezed(error)}, expected JSON; train the head again") from error
    heads, encoder = (note.get("num_heads", 1), note.get("text_encoder", "")) if isinstance(note, dict) else (0, "")
    if type(heads) is not int or heads < 1 or not isinstance(encoder, str):
        raise ValueError(
            f"{path.name}: got {str(note)[:60]!r}, expected an object with num_heads and text_encoder; train the head "
            "again"
        )
    return dict(note)


def save_temp_clip(head: TempClip, text: Mapping[str, Tensor], text_encoder: str, path: Path) -> None:
    """Write the weights to `path` (.safetensors) under their published names, and a JSON beside it.

    Those of the text encoder are given where it was trained with the head; what it began from is said as
    `load_sentences` takes it.
    """
    own = head.state_dict()
    weights = {POSITIONS: own.pop("positions_FD")}
    for name, weight in own.items():
        module, kind = name.rsplit(".", 1)
        weights[f"{PUBLISHED_NAMES[module]}.{kind}"] = weight
    weights |= {f"{TEXT}{name}": weight for name, weight in text.items()}
    note = {"text_encoder": text_encoder, **asdict(head.shape)}
    path.with_suffix(".json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    safetensors.torch.save_file({name: w.detach().float().cpu().contiguous() for name, w in weights.items()}, path)


def check_widths(head: TempClipShape, feature_width: int, sentence_width: int) -> None:
    """Refuse a head that was made for other embeddings or another text encoder.

    Raises:
        ValueError: A width differs.
    """
    for what, got, expected, choice in (
        ("frame embeddings", head.feature_width, feature_width, "--backbone"),
        ("sentences", head.sentence_width, sentence_width, "--task.text-encoder"),
    ):
        if got != expected:
            raise ValueError(
                f"temp_clip checkpoint: got a head for {what} of width {got}, expected {expected} as these are; "
                f"choose the {choice} that it was trained on"
            )


def _take(state: Mapping[str, Tensor], name: str) -> Tensor:
    weight = state.get(name)
    if weight is None:
        raise ValueError(f"temp_clip checkpoint: got no {name}, expected all weights of a TempCLIP NG+; check the file")
    return weight


def _squeezed(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
