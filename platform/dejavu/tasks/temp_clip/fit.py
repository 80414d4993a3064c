"""Fitting a TempCLIP head to questions: the right answer, and a moment that tells its own question from others.

B questions of a step, A candidates, N frames that the head sees, E embedding width, S sentence width.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dejavu.records import Question
from dejavu.tasks.temp_clip.answers import SeenClip
from dejavu.tasks.temp_clip.head import TempClip, TempClipShape
from dejavu.tasks.temp_clip.weights import head_from_state, text_weights

Encode = Callable[[Sequence[str]], Tensor]
"""Texts to [T, S]."""


REMEMBERED = 100_000
"""Vectors of texts that are kept of an encoder that is not trained: 0.3 GB at 768 numbers; the oldest go first."""


class NotFiniteError(ArithmeticError):
    """The loss is no number any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TempClipFitConfig:
    """How a head is trained. Except in demo and tiny, defaults are as published, for a RoBERTa trained with it."""

    width: int = 768
    """Width of the head."""
    ffn_width: int = 768
    """Width of the hidden layer in the head's transformer."""
    epochs: int = 30
    """Number of visits to each training question."""
    questions_per_step: int = 64
    """Maximum number of questions per step."""
    learning_rate: float = 1e-5
    """Learning rate of the head, and of the RoBERTa trained with it."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    dropout: float = 0.3
    """Dropout rate, 0..1."""
    clip_norm: float = 12.0
    """Maximum norm of the gradient over all weights."""
    grounding_weight: float = 1.0
    """Weight of NG+'s second loss, in which the answer pass, with the question itself as query, must find that question
    among others; 0 leaves it out."""
    redrawn_rate: float = 0.3
    """Share of questions, 0..1, whose wrong answers are redrawn from the answers to questions of the same type."""
    same_clip_rate: float = 0.3
    """Share of questions, 0..1, that must be told from others about the same clip, not from any of the same type."""
    seed: int = 0

    def __post_init__(self) -> None:
        rates = (self.dropout, self.redrawn_rate, self.same_clip_rate)
        if min(self.epochs, self.questions_per_step) < 1 or not all(0 <= rate <= 1 for rate in rates):
            raise ValueError(f"task.fit: got {self}, expected counts of 1 or more and rates in 0..1; see the defaults")
        if not (self.learning_rate > 0 and self.clip_norm > 0 and self.grounding_weight >= 0):
            raise ValueError(f"task.fit: got {self}, expected positive rates and weights; see the defaults")


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What is learned from: questions, and the clips that they are about as the head sees them."""

    questions: tuple[Question, ...]
    clips: Mapping[str, SeenClip]
    prompt: str
    """How a question and an answer become a text."""


class TempClipFit:
    """A head under training.

    What is drawn in an epoch follows from its number and the seed, so that a fit that was resumed goes on as if nothing
    had happened.
    """

    def __init__(
        self, shape: TempClipShape, encoder: nn.Module | None, training_set: TrainingSet, config: TempClipFitConfig
    ) -> None:
        self.training_set, self.config = training_set, config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = TempClip(shape, config.dropout)
        self.encoder = encoder
        """Trained with the head; None where sentences come from elsewhere and stay as they are."""
        if encoder is not None:
            self.head.to(next(encoder.parameters()).device)
        self.weights = [*self.head.parameters(), *(encoder.parameters() if encoder is not None else ())]
        self.optimizer = torch.optim.AdamW(self.weights, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.steps_per_epoch = max(1, math.ceil(len(training_set.questions) / config.questions_per_step))
        self.num_epochs = 0
        self._by_kind: dict[str, list[Question]] = defaultdict(list)
        self._by_clip: dict[str, list[Question]] = defaultdict(list)
        for question in training_set.questions:
            self._by_kind[question.kind].append(question)
            self._by_clip[question.clip_id].append(question)

    def run_epoch(self, encode: Encode) -> dict[str, float]:
        """Visit every question once; return the means of the losses and the share of right answers.

        Raises:
            NotFiniteError: Loss or gradient is not finite; the weights are those of the step before.
        """
        self._train(True)
        seed = self.config.seed * 1_000_003 + self.num_epochs
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.training_set.questions))
        sums: dict[str, float] = defaultdict(float)
        device = next(self.head.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)  # dropout draws from the global generator
            for part in np.array_split(order, self.steps_per_epoch):
                questions = [self.training_set.questions[index] for index in part]
                for name, value in self._step(questions, encode, rng).items():
                    sums[name] += value * len(part)
        self.num_epochs += 1
        self._train(False)
        return {name: value / len(order) for name, value in sums.items()}

    def _step(self, questions: Sequence[Question], encode: Encode, rng: np.random.Generator) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._decay()
        device = next(self.head.parameters()).device
        features = np.stack([self.training_set.clips[question.clip_id].features_NE for question in questions])
        features_BNE = torch.from_numpy(features).to(device)
        asked = [self._candidates(question, rng) for question in questions]
        right_B = torch.tensor([right for _, right in asked], device=device)
        logits_BA = self.head(features_BNE, _encode([texts for texts, _ in asked], encode).to(device)).logits_BA
        loss = answer_loss = F.cross_entropy(logits_BA, right_B)
        report = {"accuracy": float((logits_BA.argmax(dim=-1) == right_B).float().mean())}
        if self.config.grounding_weight:
            others = [self._other_questions(question, rng) for question in questions]
            own_B = torch.tensor([own for _, own in others], device=device)
            sentences_BAS = _encode([texts for texts, _ in others], encode).to(device)
            found_BA = self.head(features_BNE, sentences_BAS, own_B).logits_BA
            grounding_loss = F.cross_entropy(found_BA, own_B)
            loss = answer_loss + self.config.grounding_weight * grounding_loss
            report["grounding_loss"] = float(grounding_loss.detach())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, self.config.clip_norm))
        if not math.isfinite(float(loss.detach())) or not math.isfinite(norm):
            raise NotFiniteError(
                f"temp_clip loss: got {float(loss.detach())} with a gradient of length {norm} in epoch "
                f"{self.num_epochs + 1}, expected finite numbers; lower --task.fit.learning-rate"
            )
        self.optimizer.step()
        return {"loss": float(loss.detach()), "answer_loss": float(answer_loss.detach()), **report}

    def _decay(self) -> float:
        """Fall from 1 to 0 over the epochs, along a cosine."""
        return (1 + math.cos(math.pi * self.num_epochs / self.config.epochs)) / 2

    def _candidates(self, question: Question, rng: np.random.Generator) -> tuple[list[str], int]:
        """Return the texts of a question's candidates and which is right; some with wrong answers drawn anew."""
        answers, right = list(question.answers), question.correct
        if rng.random() < self.config.redrawn_rate:
            kind = self._by_kind[question.kind]
            own = answers[right]
            pool = sorted({other.answers[other.correct] for other in kind} - {own})
            if len(pool) >= len(answers) - 1:
                answers = [str(text) for text in rng.choice(pool, len(answers) - 1, replace=False)]
                right = int(rng.integers(len(answers) + 1))
                answers.insert(right, own)
        return [self.training_set.prompt.format(question=question.text, answer=answer) for answer in answers], right

    def _other_questions(self, question: Question, rng: np.random.Generator) -> tuple[list[str], int]:
        """Return as many question texts as there are candidates, and which is this question's."""
        wanted = len(question.answers) - 1
        near = sorted({other.text for other in self._by_clip[question.clip_id]} - {question.text})
        far = sorted({other.text for other in self._by_kind[question.kind]} - {question.text, *near})
        texts = [str(text) for text in rng.permutation(near)] if rng.random() < self.config.same_clip_rate else []
        rest = far or sorted({other.text for other in self.training_set.questions} - {question.text})
        texts = texts[:wanted]
        while len(texts) < wanted:
            texts.append(str(rest[rng.integers(len(rest))]) if rest else "")
        own = int(rng.integers(wanted + 1))
        texts.insert(own, question.text)
        return texts, own

    def _train(self, on: bool) -> None:
        self.head.train(on)
        if self.encoder is not None:
            self.encoder.train(on)

    def trained_text(self) -> dict[str, Tensor]:
        """Return the trained text encoder's weights; nothing where it stays as it is."""
        return dict(self.encoder.state_dict()) if self.encoder is not None else {}

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Take weights under their published names: the head's, and the encoder's where it is trained."""
        self.head.load_state_dict(head_from_state(state, self.head.shape.num_heads).state_dict())
        if self.encoder is not None:
            self.encoder.load_state_dict(text_weights(state))

    def save_optimizer(self, path: Path) -> None:
        """Write what the optimiser remembers to `path` (.safetensors) and the epoch beside it, as JSON."""
        moments = {
            f"{index}.{name}": value.detach().cpu().contiguous()
            for index, entries in self.optimizer.state_dict()["state"].items()
            for name, value in entries.items()
        }
        path.with_suffix(".json").write_text(json.dumps({"epochs": self.num_epochs}), encoding="utf-8")
        safetensors.torch.save_file(moments, path)

    def load_optimizer(self, path: Path) -> None:
        """Go on where `save_optimizer` was called; the weights are loaded by `load_weights`."""
        self.num_epochs = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["epochs"]
        state = self.optimizer.state_dict()
        for name, value in safetensors.torch.load_file(path).items():
            index, _, entry = name.partition(".")
            state["state"].setdefault(int(index), {})[entry] = value
        self.optimizer.load_state_dict(state)


def _encode(texts: Sequence[Sequence[str]], encode: Encode) -> Tensor:
    """Return [B, A, S], each different text encoded once."""
    unique = sorted({text for some in texts for text in some})
    row_of = {text: row for row, text in enumerate(unique)}
    index_BA = torch.tensor([[row_of[text] for text in some] for some in texts])
    encoded_TS = encode(unique)
    return encoded_TS[index_BA.to(encoded_TS.device)]


def remembered(encode: Encode, most: int = REMEMBERED) -> Encode:
    """Return an encoder that encodes no text again while it remembers it: for one that is not trained.

    Candidates are drawn anew in each epoch, so that without a bound memory would grow with every one of them.
    """
    known: dict[str, Tensor] = {}

    def encode_new(texts: Sequence[str]) -> Tensor:
        if new := [text for text in texts if text not in known]:
            known.update(zip(new, encode(new), strict=True))
        vectors_TS = torch.stack([known[text] for text in texts])
        for text in list(islice(known, max(0, len(known) - most))):
            del known[text]
        return vectors_TS

    return encode_new
