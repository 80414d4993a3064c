"""Embed texts once: what a backbone's text tower said of them is kept in the store.

A data set asks tens of thousands of candidates, and a run that goes on asks the same ones again. T texts, E embedding
width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dejavu.backbones import text
from dejavu.backbones.load import Backbone
from dejavu.observability.events import Work, stage_span
from dejavu.storage.code_version import closure_version
from dejavu.storage.store import Store, identity


def embed_texts(texts: Sequence[str], backbone: Backbone, store: Store) -> Tensor:
    """Return [T, E] float32, each of length 1, on the CPU: from the store where these very texts lie there.

    Raises:
        BackboneError: They do not, and there is no text tower, or it does not load.
    """
    if backbone.text is None:
        return backbone.embed_texts(texts)  # says what is amiss
    parts = {
        "texts": list(texts),
        "backbone": backbone.identity,
        "tokenizer": backbone.text.tokenizer_identity(),
        "code": closure_version((), alone=(text.__name__,)),
    }
    name = identity(parts)
    kept = store.read_texts(name)
    if kept is None:
        with stage_span(Work(stage="texts", total=len(texts), unit="texts")) as so_far:
            kept = backbone.embed_texts(texts).numpy()
            so_far(len(texts))
        store.write_texts(name, texts, kept)
    return torch.from_numpy(kept)
