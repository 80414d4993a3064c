"""Sentences to vectors for a trained head: a RoBERTa that may be trained with it, or the backbone's own text tower.

T texts, W tokens of a text, S sentence width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dejavu.backbones.load import Backbone
from dejavu.backbones.locate import BackboneError, fetch
from dejavu.backbones.text import quiet

BACKBONE = "backbone"
"""Name of the text tower that belongs to the vision tower: frozen, a sentence's vector is its embedding."""
MAX_TOKENS = 38
"""Of a question with a candidate, as published. Every text is padded to it: the mean over positions counts padding."""
TEXTS_AT_ONCE = 64
TRAINED_AT_ONCE = 32
"""Texts whose hidden states are in memory at once while an encoder is trained: some 1 GB of RoBERTa-base's."""


@dataclass(frozen=True, slots=True)
class Sentences:
    """Turns texts into vectors."""

    name: str
    """As `load_sentences` takes it."""
    width: int
    encoder: Any
    """A RoBERTa; None for the backbone's text tower, which is not trained."""
    tokenizer: Any
    backbone: Backbone | None

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return [T, W] token ids of an encoder of its own, padded to one width for all texts."""
        longest = min(MAX_TOKENS, self.encoder.config.max_position_embeddings - 2)
        found = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        )
        return found["input_ids"]  # type: ignore[no-any-return]

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return [T, S] float32 on the CPU, without gradients.

        Raises:
            BackboneError: The backbone has no text tower.
        """
        if self.encoder is None:
            assert self.backbone is not None
            return self.backbone.embed_texts(texts).float().cpu()
        device = next(self.encoder.parameters()).device
        parts = [
            mean_hidden(self.encoder, self.tokens(texts[start : start + TEXTS_AT_ONCE]).to(device)).float().cpu()
            for start in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return torch.cat(parts)


def mean_hidden(roberta: Any, tokens_TW: Tensor) -> Tensor:
    """Return [T, S]: the mean of the hidden states over all positions, padding included, which attention leaves out.

    A linear map commutes with the mean, so that a head may map the mean where the published one maps each token.
    """
    mask_TW = (tokens_TW != roberta.config.pad_token_id).long()
    return roberta(input_ids=tokens_TW, attention_mask=mask_TW).last_hidden_state.mean(dim=1)  # type: ignore[no-any-return]


def trained_mean_hidden(roberta: Any, tokens_TW: Tensor) -> Tensor:
    """Do as `mean_hidden`, keeping no more than TRAINED_AT_ONCE texts' hidden states for the backward pass.

    Of more texts the tokens alone are kept, and each part is computed again when its gradient is due, with the same
    dropout: a third more work, where a step of 64 questions would take 17 GB in a RoBERTa-base.
    """
    parts = tokens_TW.split(TRAINED_AT_ONCE)
    if len(parts) == 1:
        return mean_hidden(roberta, tokens_TW)
    return torch.cat([checkpoint(mean_hidden, roberta, part_PW, use_reentrant=False) for part_PW in parts])


def load_sentences(name: str, backbone: Backbone | None, weights: Mapping[str, Tensor] | None = None) -> Sentences:
    """Load a text encoder.

    Args:
        name: `backbone`, a directory with a RoBERTa and its tokenizer as `save_pretrained` writes them, or a name on
            the hub such as roberta-base.
        backbone: The vision tower's, whose text tower `backbone` means.
        weights: Trained ones, which replace the encoder's own: those of a checkpoint.

    Raises:
        BackboneError: It is not to be found, lacks a tokenizer, is no RoBERTa, or the weights do not fit it.
    """
    if name == BACKBONE:
        if backbone is None or backbone.text is None:
            raise BackboneError(
                "text encoder: got backbone, whose directory has no text tower and tokenizer, expected both; "
                "give --task.text-encoder a RoBERTa's directory"
            )
        width = backbone.embed_texts(["width"]).shape[-1]
        return Sentences(name, width, None, None, backbone)
    directory = _directory(name)
    tokenizer, roberta = _load_roberta(directory)
    if weights:
        _replace_weights(roberta, weights, name)
    return Sentences(name, roberta.config.hidden_size, roberta.eval(), tokenizer, None)


def roberta_from_state(state: Mapping[str, Tensor], *, num_heads: int, norm_eps: float) -> nn.Module:
    """Build a RoBERTa whose sizes are those of its weights.

    Raises:
        ValueError: The weights are not a RoBERTa's.
    """
    from transformers import RobertaConfig, RobertaModel  # noqa: PLC0415  slow to import

    try:
        positions, width = state["embeddings.position_embeddings.weight"].shape
        layers = {int(name.split(".")[2]) for name in state if name.startswith("encoder.layer.")}
        config = RobertaConfig(
            vocab_size=len(state["embeddings.word_embeddings.weight"]),
            hidden_size=width,
            num_hidden_layers=max(layers) + 1,
            num_attention_heads=num_heads,
            intermediate_size=len(state["encoder.layer.0.intermediate.dense.weight"]),
            max_position_embeddings=positions,
            type_vocab_size=len(state["embeddings.token_type_embeddings.weight"]),
            layer_norm_eps=norm_eps,
            pad_token_id=1,
        )
        model = RobertaModel(config, add_pooling_layer="pooler.dense.weight" in state)
        model.load_state_dict({name: weight for name, weight in state.items() if name in model.state_dict()})
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"text encoder: got weights without {' '.join(str(error).split())[:120]}, expected a RoBERTa's; "
            "check the checkpoint"
        ) from error
    return model.eval()  # type: ignore[no-any-return]


def _directory(name: str) -> Path:
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BackboneError(
            f"text encoder: got {name}, which is no directory, expected a RoBERTa's directory, {BACKBONE!r} or a name "
            "on the hub such as roberta-base; check the path"
        )
    return fetch(name, f"a RoBERTa's directory, {BACKBONE!r}, or a name on the hub such as roberta-base")


def _load_roberta(directory: Path) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer, RobertaModel  # noqa: PLC0415  slow to import

    try:
        with quiet():
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            if config.model_type != "roberta":
                raise ValueError(f"a model of type {config.model_type}")
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            model = RobertaModel.from_pretrained(
                directory,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                add_pooling_layer=False,
            )
        if tokenizer.pad_token_id != config.pad_token_id or len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"a tokenizer of {len(tokenizer)} tokens padding with {tokenizer.pad_token_id} for a model of "
                f"{config.vocab_size} that pads with {config.pad_token_id}"
            )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackboneError(
            f"text encoder in {directory}: got {reason}, expected a RoBERTa's config, tokenizer and safetensors "
            "weights; save model and tokenizer there with save_pretrained"
        ) from error
    return tokenizer, model


def _replace_weights(roberta: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    own = roberta.state_dict()
    lacking = sorted(key for key in own if key not in weights)
    other = sorted(key for key in own if key in weights and weights[key].shape != own[key].shape)
    if lacking or other:
        got = f"no {lacking[0]}" if lacking else f"{other[0]} of {list(weights[other[0]].shape)}"
        raise BackboneError(
            f"text encoder {name}: got a checkpoint with {got}, expected weights of this encoder's sizes; "
            "give --task.text-encoder the model that it was trained from"
        )
    roberta.load_state_dict({key: weights[key] for key in own})
