"""A tokenizer with one id for each word, for a CLIP or SigLIP that is made here."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast


def word_tokenizer(words: Sequence[str], max_words: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of these words, whose end-of-text id is the highest, as CLIP's pooling expects.

    Words are in lower case, each once; all others are `[UNK]`. `max_words` counts a text's beginning and end as well.
    """
    names = ["[PAD]", "[UNK]", "[BOS]", *words, "[EOS]"]
    tokenizer = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(name, names.index(name)) for name in ("[BOS]", "[EOS]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="[BOS]",
        eos_token="[EOS]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=max_words,
    )
