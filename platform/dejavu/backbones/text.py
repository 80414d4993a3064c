"""The text tower beside a vision tower: phrases to vectors in the same space.

Shapes: T phrases, E embedding width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dejavu.backbones.locate import BackboneError

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
MORE_TOKENIZER_FILES = ("merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
TEXTS_AT_ONCE = 256
"""Bounds memory: data sets ask tens of thousands of candidates."""


@dataclass(frozen=True, slots=True)
class TextTower:
    """Text side of a CLIP or SigLIP directory. Loaded when first asked, since embedding frames does not need it."""

    directory: Path
    model_type: str

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return [T, E] float32, each of length 1.

        Raises:
            BackboneError: The tokenizer or the weights do not load.
        """
        parts = [self._embed(texts[start : start + TEXTS_AT_ONCE]) for start in range(0, len(texts), TEXTS_AT_ONCE)]
        return torch.cat(parts)

    def tokenizer_identity(self) -> str:
        """Return the SHA-256 of what decides how a text is cut into tokens."""
        digest = hashlib.sha256()
        for name in (*TOKENIZER_FILES, *MORE_TOKENIZER_FILES):
            if (path := self.directory / name).is_file():
                digest.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def _embed(self, texts: Sequence[str]) -> Tensor:
        tokenizer, model = _load(self.directory, self.model_type)
        max_words = model.config.max_position_embeddings
        # SigLIP was trained on padded texts and pools the last position: without the padding it reads another one.
        padding = "max_length" if self.model_type == "siglip" else True
        tokens = tokenizer(list(texts), padding=padding, truncation=True, max_length=max_words, return_tensors="pt")
        with torch.inference_mode():
            if self.model_type == "siglip":
                text_TE = model(input_ids=tokens["input_ids"]).pooler_output
            else:
                text_TE = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).text_embeds
            return F.normalize(text_TE.float(), dim=-1)


def find_text(directory: Path, model_type: str) -> TextTower | None:
    """Return the text tower of a directory, None where the model has none or its tokenizer is not there."""
    has_tokenizer = any((directory / name).is_file() for name in TOKENIZER_FILES)
    return TextTower(directory, model_type) if model_type in {"clip", "siglip"} and has_tokenizer else None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' logger and progress bars: what matters of key reports is checked and raised."""
    from transformers.utils import logging  # noqa: PLC0415  slow to import

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@cache
def _load(directory: Path, model_type: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer, CLIPTextModelWithProjection, SiglipTextModel  # noqa: PLC0415

    kind: Any = SiglipTextModel if model_type == "siglip" else CLIPTextModelWithProjection
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            model, info = kind.from_pretrained(
                directory,
                config=part_config(config, "text_config"),
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise BackboneError(
            f"text tower in {directory}: got {_first_line(error)}, expected a tokenizer and text weights that "
            "transformers reads; save the whole model and its tokenizer there"
        ) from error
    if info["missing_keys"]:
        raise BackboneError(
            f"text tower in {directory}: got no weights for {sorted(info['missing_keys'])[0]}, expected all; "
            "save the whole model there"
        )
    if broken := [name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())]:
        raise BackboneError(
            f"text tower in {directory}: got values that are no numbers in {broken[0]}, expected none; save it again"
        )
    return tokenizer, model.eval()


def part_config(config: Any, part: str) -> Any:
    """Return the config of one tower of a two-tower model, or the config itself of a single tower.

    The projection's width is that of the whole model: CLIPModel reads no other, though each part's config has one.
    """
    if not hasattr(config, part):
        return config
    tower = getattr(config, part)
    if getattr(config, "projection_dim", None) is not None:
        tower.projection_dim = config.projection_dim
    return tower


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
