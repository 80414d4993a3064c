from __future__ import annotations

import numpy as np
import pytest

from dejavu.tasks import class_readers
from dejavu.tasks.class_readers import NUM_NEAREST, TEMPERATURE, ClassReaders, Pooled, fit_readers

WIDTH = 12


def clips(num_each: int, num_classes: int, seed: int, spread: float = 0.25) -> Pooled:
    """Clouds around a direction for each class."""
    centre_CE = np.random.default_rng(9).standard_normal((num_classes, WIDTH))
    label_N = np.repeat(np.arange(num_classes), num_each)
    x_NE = centre_CE[label_N] + spread * np.random.default_rng(seed).standard_normal((len(label_N), WIDTH)) * 3
    return Pooled((x_NE / np.linalg.norm(x_NE, axis=1, keepdims=True)).astype(np.float32), label_N)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_both_learn_what_can_be_told_apart(num_classes: int) -> None:
    names = [f"class {index}" for index in range(num_classes)]
    readers = fit_readers(names, clips(20, num_classes, 0), clips(5, num_classes, 1), None)
    asked = clips(40, num_classes, 2)
    said = readers.read(asked.embeddings_NE)
    assert list(said) == ["linear_probe", "nearest"]  # no words, no zero-shot
    for label_N in said.values():
        assert (label_N == asked.label_N).mean() > 0.9


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_probe_says_what_scikit_learn_says(num_classes: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, asked = clips(15, num_classes, 0, spread=0.6), clips(30, num_classes, 1, spread=0.6)
    readers = fit_readers([str(index) for index in range(num_classes)], train, None, None)
    own = make_pipeline(StandardScaler(), LogisticRegression(C=class_readers.USUAL_C))
    own.fit(train.embeddings_NE, train.label_N)
    logit_NC = readers.logits(asked.embeddings_NE)
    share_NC = np.exp(logit_NC) / np.exp(logit_NC).sum(axis=1, keepdims=True)
    assert share_NC == pytest.approx(own.predict_proba(asked.embeddings_NE), abs=1e-3)
    assert 0.3 < (logit_NC.argmax(axis=1) == asked.label_N).mean() < 1


def test_neighbours_vote_by_nearness(monkeypatch: pytest.MonkeyPatch) -> None:
    train, asked = clips(12, 3, 0, spread=0.7), clips(9, 3, 1, spread=0.7)
    readers = fit_readers(["a", "b", "c"], train, None, None)
    expected = []
    for x_E in asked.embeddings_NE:
        votes = [0.0] * 3
        ranked = sorted(zip(train.embeddings_NE @ x_E, train.label_N, strict=True), key=lambda pair: -pair[0])
        for cosine, label in ranked[:NUM_NEAREST]:
            votes[label] += float(np.exp(cosine / TEMPERATURE))
        expected.append(int(np.argmax(votes)))
    assert readers.read(asked.embeddings_NE)["nearest"].tolist() == expected
    monkeypatch.setattr(class_readers, "_VOTES_AT_ONCE", 100)
    assert readers.read(asked.embeddings_NE)["nearest"].tolist() == expected


def test_names_are_compared_where_there_are_words() -> None:
    names_CE = np.eye(3, WIDTH, dtype=np.float32)
    readers = ClassReaders(np.zeros((3, WIDTH), np.float32), np.zeros(3, np.float32), clips(2, 3, 0), names_CE)
    said = readers.read(np.eye(3, WIDTH, dtype=np.float32)[[2, 0, 1]])
    assert said["zero_shot"].tolist() == [2, 0, 1]
    assert said["linear_probe"].tolist() == [0, 0, 0]  # a tie


def test_validation_clips_choose_the_penalty() -> None:
    """Labels that carry nothing make the strictest penalty the likeliest, those that do a milder one."""
    train = clips(20, 2, 0, spread=0.6)
    shuffled = Pooled(train.embeddings_NE, np.random.default_rng(3).permutation(train.label_N))
    asked = clips(40, 2, 1, spread=0.6)
    strict = fit_readers(["a", "b"], shuffled, asked, None)
    mild = fit_readers(["a", "b"], train, asked, None)
    assert np.linalg.norm(strict.weight_CE) < 0.1 * np.linalg.norm(mild.weight_CE)


def test_a_class_without_a_training_clip_is_named() -> None:
    with pytest.raises(ValueError, match="got no training clip of 'run' that could be embedded"):
        fit_readers(["walk", "run"], Pooled(np.eye(2, 4, dtype=np.float32), np.zeros(2, np.int64)), None, None)
