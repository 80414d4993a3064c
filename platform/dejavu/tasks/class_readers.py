"""What tells a clip's class by its mean-pooled embedding: made on Original's embeddings of training clips, then frozen.

Applied to embeddings of any setting, they say whether reuse harms a model that was made on dense embeddings.

Shapes: N clips, T training clips, C classes, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

Reader = Literal["linear_probe", "nearest", "zero_shot"]

NUM_NEAREST = 10
TEMPERATURE = 0.07
"""A neighbour's vote weighs exp(cosine / TEMPERATURE), as in DINO's evaluation (arXiv:2104.14294)."""
C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of scikit-learn's C, the inverse of the penalty, that validation clips choose from; features have unit variance."""
USUAL_C = 1e-2
"""Of them, where there are no validation clips."""
_VOTES_AT_ONCE = 2**24


@dataclass(frozen=True, slots=True)
class Pooled:
    """Clips of known classes."""

    embeddings_NE: Floats
    """Of length 1 (`tasks/retrieval.py`, pool)."""
    label_N: Labels
    """Indices into the classes."""


@dataclass(frozen=True, slots=True)
class ClassReaders:
    """A linear probe, the training clips themselves, and where there is a text tower the names of the classes."""

    weight_CE: Floats
    bias_C: Floats
    train: Pooled
    names_CE: Floats | None
    """Text embeddings of the classes' names, of length 1."""

    def read(self, embeddings_NE: Floats) -> dict[Reader, Labels]:
        """Return [N], the class of each clip by its pooled embedding of length 1, by every reader that there is.

        A tie goes to the first class.
        """
        said: dict[Reader, Labels] = {
            "linear_probe": self.logits(embeddings_NE).argmax(axis=1),
            "nearest": self._nearest(embeddings_NE),
        }
        if self.names_CE is not None:
            said["zero_shot"] = (embeddings_NE @ self.names_CE.T).argmax(axis=1)
        return said

    def logits(self, embeddings_NE: Floats) -> Floats:
        """Return [N, C] of the linear probe."""
        return embeddings_NE @ self.weight_CE.T + self.bias_C

    def _nearest(self, embeddings_NE: Floats) -> Labels:
        num_train = len(self.train.label_N)
        num_nearest, rows = min(NUM_NEAREST, num_train), max(1, _VOTES_AT_ONCE // num_train)
        is_of_TC = np.eye(len(self.bias_C), dtype=np.float32)[self.train.label_N]
        said = []
        for start in range(0, len(embeddings_NE), rows):
            cosine_NT = embeddings_NE[start : start + rows] @ self.train.embeddings_NE.T
            least_N1 = -np.partition(-cosine_NT, num_nearest - 1, axis=1)[:, num_nearest - 1 : num_nearest]
            vote_NT = np.where(cosine_NT >= least_N1, np.exp((cosine_NT - 1) / TEMPERATURE), 0)
            said.append((vote_NT @ is_of_TC).argmax(axis=1))
        return np.concatenate(said) if said else np.zeros(0, np.int64)


def fit_readers(
    classes: Sequence[str], train: Pooled, validation: Pooled | None, names_CE: Floats | None
) -> ClassReaders:
    """Fit the probe, a logistic regression, on Original's embeddings, and keep what the other readers need.

    Its C is the one under which the classes of dense validation clips, if there are any, are likeliest.

    Raises:
        ValueError: A class has no training clip.
    """
    lacking = [name for index, name in enumerate(classes) if index not in set(train.label_N.tolist())]
    if lacking:
        raise ValueError(
            f"classes: got no training clip of {lacking[0]!r} that could be embedded, expected one or more; see "
            "failures.csv"
        )
    c_values = C_VALUES if validation is not None and len(validation.label_N) else (USUAL_C,)
    fits = [_fit(train, c) for c in c_values]
    readers = [ClassReaders(weight_CE, bias_C, train, names_CE) for weight_CE, bias_C in fits]
    if validation is None or len(readers) == 1:
        return readers[0]
    return max(readers, key=lambda one: _log_likelihood(one.logits(validation.embeddings_NE), validation.label_N))


def _fit(train: Pooled, c: float) -> tuple[Floats, Floats]:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  takes a second, which no other recipe needs

    mean_E = train.embeddings_NE.mean(axis=0, dtype=np.float64)
    scale_E = np.maximum(train.embeddings_NE.std(axis=0, dtype=np.float64), 1e-6)
    probe = LogisticRegression(C=c, max_iter=1000)
    probe.fit((train.embeddings_NE - mean_E) / scale_E, train.label_N)
    weight_CE, bias_C = probe.coef_, probe.intercept_
    if len(weight_CE) == 1:  # two classes: scikit-learn has the second one's logit alone
        weight_CE, bias_C = np.vstack([-weight_CE, weight_CE]) / 2, np.concatenate([-bias_C, bias_C]) / 2
    weight_CE = weight_CE / scale_E
    return weight_CE.astype(np.float32), (bias_C - weight_CE @ mean_E).astype(np.float32)


def _log_likelihood(logit_NC: Floats, label_N: Labels) -> float:
    wide_NC = logit_NC.astype(np.float64)
    own_N = wide_NC[np.arange(len(label_N)), label_N]
    return float((own_N - np.logaddexp.reduce(wide_NC, axis=1)).mean())
