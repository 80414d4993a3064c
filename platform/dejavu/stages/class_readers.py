"""Make what tells a clip's class out of Original's stored embeddings. Seconds, so that nothing is kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from dejavu.datasets.class_folders import words_of_class
from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.stored import read_beside
from dejavu.records import Question, Split, Transcoded
from dejavu.storage.setting import Setting
from dejavu.tasks.class_readers import ClassReaders, Pooled, fit_readers
from dejavu.tasks.retrieval import pool


def make_readers(
    clips: Mapping[Split, Sequence[Transcoded]],
    questions: Sequence[Question],
    original: Setting,
    embedding: EmbedContext,
    embed: Callable[[Sequence[str]], Tensor] | None,
) -> ClassReaders:
    """Fit on the training clips, choosing by the validation clips; clips that failed are left out.

    Args:
        clips: By split, train and val; Original's embeddings of them must be in the store.
        questions: Which class each clip is of (`datasets/class_folders.py`).
        original: The setting that is learned from.
        embedding: Where embeddings lie.
        embed: Names of classes to vectors of length 1; None where the backbone has no text tower.

    Raises:
        ValueError: A class has no training clip with embeddings.
    """
    classes = questions[0].answers
    label_of = {question.clip_id: question.correct for question in questions}
    train, validation = (_pooled(clips[split], label_of, original, embedding) for split in ("train", "val"))
    names_CE = embed([words_of_class(name) for name in classes]).numpy() if embed else None
    return fit_readers(classes, train, validation, names_CE)


def _pooled(
    clips: Sequence[Transcoded], label_of: Mapping[str, int], original: Setting, embedding: EmbedContext
) -> Pooled:
    found = {
        clip_id: pool(clip.embeddings_FE)
        for _, part, _ in read_beside(embedding, [original], original, clips)
        for clip_id, clip in part.items()
    }
    names = sorted(found)
    embeddings_NE = np.stack([found[name] for name in names]) if names else np.zeros((0, 0), np.float32)
    return Pooled(embeddings_NE, np.array([label_of[name] for name in names], np.int64))
