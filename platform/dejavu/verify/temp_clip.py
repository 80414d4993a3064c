"""The comparison of our TempCLIP head with the golden one, for jobs/verify.py and the tests. Needs torch alone.

B questions, A candidates, W tokens of a candidate.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dejavu.backbones.sentences import mean_hidden, roberta_from_state
from dejavu.tasks.temp_clip.weights import head_from_state, read_weights, text_weights
from reuse_models.verify.golden import EMBEDDING_TOLERANCE, Row, compare

GOLDEN_HEADS = 4
"""Of the head and of its RoBERTa: the golden numbers' README says so, no weight does."""
NORM_EPS = 1e-12


def check_temp_clip(state_file: Path, forward_file: Path) -> list[Row]:
    """Run our head and RoBERTa on the golden inputs.

    Raises:
        OSError: A file is missing.
        ValueError: The weights are not those of a TempCLIP.
        KeyError: The outputs lack an entry.
    """
    state = read_weights(state_file)
    golden = load_file(forward_file)
    roberta = roberta_from_state(text_weights(state), num_heads=GOLDEN_HEADS, norm_eps=NORM_EPS)
    head = head_from_state(state, GOLDEN_HEADS)
    tokens_BAW = golden["answer_token_ids"]
    with torch.inference_mode():
        sentences_TS = mean_hidden(roberta, tokens_BAW.flatten(0, 1))
        ours = head(golden["video_features"], sentences_TS.unflatten(0, tokens_BAW.shape[:2]))

    def row(name: str, got: Tensor, wanted: str) -> Row:
        theirs = golden[wanted].reshape(got.shape) if golden[wanted].numel() == got.numel() else golden[wanted]
        return compare(f"temp_clip {name}", forward_file.name, got, theirs, EMBEDDING_TOLERANCE)

    return [
        row("logits", ours.logits_BA, "logits"),
        row("span", ours.span(), "gauss_span"),
        row("frame attention", ours.attention_BF, "frame_attention"),
        row("Gaussian", ours.gauss_BF, "gauss_weight"),
    ]
