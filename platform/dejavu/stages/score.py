"""Score stored embeddings: zero-shot grounded questions where there are answers, fidelity to Original always."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.stored import ClipEmbeddings, complete_clips, read_beside
from dejavu.records import CAPTION, AnswerScore, EvalRow, Question, TaskScore, Transcoded
from dejavu.stages.accumulators import Accumulator, CaptionRetrieval, ClassAnswers, HeadAnswers, ZeroShot
from dejavu.stages.temp_clip import TrainedHead
from dejavu.storage.setting import Setting
from dejavu.storage.store import write_csv
from dejavu.storage.store_path import StorePath
from dejavu.tasks.class_readers import ClassReaders, Reader
from dejavu.tasks.fidelity import frame_cosines
from dejavu.tasks.grounded_qa import TYPE_GROUPS
from dejavu.tasks.neighbours import Agreement, NeighbourSearch, agreement, choose_queries
from dejavu.tasks.temp_clip.answers import SpanKind, embed_candidates
from dejavu.tasks.temp_clip.head import TempClip


@dataclass(frozen=True, slots=True)
class SettingScore:
    """What one setting is worth and what it costs, over one set of clips. Costs are means over frames."""

    setting: Setting
    num_clips: int
    num_frames: int
    reuse_rate: float
    gflops_per_frame: float
    cosine_to_dense: float
    task: TaskScore | None
    """None where the dataset has no answers with spans."""

    by_span: Mapping[SpanKind, TaskScore] = field(default_factory=dict)
    """A trained head's score under each kind of span, `task` being one of them; empty without such a head."""

    answers: AnswerScore | None = None
    """Where there are answers, or captions, but no spans."""

    by_reader: Mapping[Reader, AnswerScore] = field(default_factory=dict)
    """Of clips in classes, the score of everything that tells a class, `answers` being the linear probe's."""

    agreement: Agreement | None = None
    """How many of each frame's nearest frames of other clips stay; None where the clips have too few for it."""

    computed_share: float = 1.0
    """Share of the frames that anything was computed for; the others took over what other frames have."""

    @property
    def rows(self) -> tuple[EvalRow, ...]:
        """Scored questions, for the bootstrap."""
        scored = self.task or self.answers
        return scored.rows if scored else ()

    @property
    def accuracy(self) -> float | None:
        """Share of right answers, whether or not they have spans; None without questions."""
        return self.task.acc_qa if self.task else self.answers.accuracy if self.answers else None


@dataclass(frozen=True, slots=True)
class EvalSet:
    """What is asked, and of which clips: the same for every setting that is compared."""

    clips: tuple[Transcoded, ...]
    questions: tuple[Question, ...]
    answers_AE: Mapping[str, NDArray[np.float32]]
    """Question id -> [A, E], the candidates' text embeddings, normalised; with a head, its text encoder's vectors."""
    head: TempClip | None = None
    """Answers instead of CLIP's own text tower."""
    span: SpanKind = "combined"
    """Which of the head's spans counts."""
    readers: ClassReaders | None = None
    """Tell the class of each clip, where that is what is asked."""


def build_eval_set(
    clips: Sequence[Transcoded],
    questions: Sequence[Question],
    embed: Callable[[Sequence[str]], Tensor],
    prompt: str,
    trained: TrainedHead | None = None,
) -> EvalSet:
    """Embed the candidates of all questions about these clips, each text once; those about other clips are left out.

    `embed` turns texts into vectors of length 1, as `embed_texts` does; it is not called where there are no questions.
    `prompt` says how question and answer become a text, such as `{answer}` or `{question} {answer}`. A `trained` head
    answers instead, with its own text encoder and prompt.
    """
    names = {clip.clip_id for clip in clips}
    asked = tuple(question for question in questions if question.clip_id in names)
    if trained is not None:
        sentences = embed_candidates(asked, trained.sentences.embed, trained.prompt)
        return EvalSet(tuple(clips), asked, sentences, trained.head, trained.span)
    return EvalSet(tuple(clips), asked, embed_candidates(asked, embed, prompt))


def build_class_eval_set(clips: Sequence[Transcoded], questions: Sequence[Question], readers: ClassReaders) -> EvalSet:
    """Ask for the class of each of these clips."""
    names = {clip.clip_id for clip in clips}
    asked = tuple(question for question in questions if question.clip_id in names)
    return EvalSet(tuple(clips), asked, {}, readers=readers)


def score_settings(
    settings: Sequence[Setting], original: Setting, eval_set: EvalSet, embedding: EmbedContext
) -> list[SettingScore]:
    """Score settings on the clips that all of them have: a clip that failed for one is left out for all alike.

    In memory at once: a part of Original's embeddings and of one setting's; of all frames, each setting's cosines, and
    the embeddings of at most MAX_QUERIES of them. The store is read twice, the second time for nearest frames.

    `original`, among the settings or not, is what fidelity is measured against; its embeddings must be in the store.

    Raises:
        ValueError: No clip has embeddings under every setting.
    """
    everyone = [original, *(setting for setting in settings if setting != original)]
    shared = set.intersection(*(complete_clips(embedding, setting, eval_set.clips) for setting in everyone))
    if not shared:
        raise ValueError(
            f"score: got no clip with embeddings under all {len(everyone)} settings, expected one or more; "
            "run the embed stage, and see failures.csv"
        )
    questions = [question for question in eval_set.questions if question.clip_id in shared]
    if left_out := len(eval_set.questions) - len(questions):
        print(f"  score: {left_out} questions about clips that failed are left out for every setting", flush=True)
    clips = [clip for clip in eval_set.clips if clip.clip_id in shared]
    accumulators = {setting: _Clips(questions, eval_set) for setting in settings}
    different = {clip.content_id: clip for clip in sorted(clips, key=lambda clip: (clip.content_id, clip.clip_id))}
    queries = choose_queries({clip.clip_id: clip.num_frames for clip in different.values()})
    searches = {setting: NeighbourSearch(queries) for setting in everyone} if queries else {}
    for setting, part, dense in read_beside(embedding, everyone, original, clips):
        if setting in accumulators:
            accumulators[setting].update(part, dense)
        if setting in searches:
            searches[setting].ask(_vectors(part))
    if searches:
        for setting, part, _ in read_beside(embedding, everyone, original, list(different.values())):
            searches[setting].see(_vectors(part))
    kept = {setting: agreement(search, searches[original]) for setting, search in searches.items()}
    return [replace(accumulators[setting].compute(setting), agreement=kept.get(setting)) for setting in settings]


def _vectors(clips: Mapping[str, ClipEmbeddings]) -> dict[str, NDArray[np.float32]]:
    return {clip_id: clip.embeddings_FE for clip_id, clip in clips.items()}


def _accumulator(questions: Sequence[Question], eval_set: EvalSet) -> Accumulator:
    """Return what the questions are scored by: all of them are of one task."""
    answers_AE = eval_set.answers_AE
    if eval_set.readers is not None:
        return ClassAnswers(questions, eval_set.readers)
    if all(question.kind == CAPTION for question in questions):
        return CaptionRetrieval(questions, answers_AE)
    if eval_set.head is not None and any(question.spans_s for question in questions):
        return HeadAnswers(questions, answers_AE, eval_set.head, eval_set.span)
    return ZeroShot(questions, answers_AE)


class _Clips:
    """What is kept of one setting's clips once their embeddings are gone."""

    def __init__(self, questions: Sequence[Question], eval_set: EvalSet) -> None:
        self.asked: dict[str, list[Question]] = defaultdict(list)
        for question in questions:
            self.asked[question.clip_id].append(question)
        self.answers = _accumulator(questions, eval_set)
        self.cosines: dict[str, NDArray[np.floating]] = {}
        self.reuse_rates: list[float] = []
        self.flops: list[float] = []
        self.num_computed = 0

    def update(self, clips: Mapping[str, ClipEmbeddings], dense: Mapping[str, ClipEmbeddings]) -> None:
        """Take down what some clips give."""
        for clip_id, clip in clips.items():
            self.cosines[clip_id] = frame_cosines(clip.embeddings_FE, dense[clip_id].embeddings_FE)
            self.reuse_rates.append(float(clip.reuse_rate_F.sum(dtype=np.float64)))
            self.flops.append(float(clip.flops_F.sum()))
            self.num_computed += int(np.count_nonzero(clip.flops_F))
        self.answers.update(clips, [question for clip_id in clips for question in self.asked.get(clip_id, ())])

    def compute(self, setting: Setting) -> SettingScore:
        """Sum up, when all clips are marked."""
        num_frames = sum(map(len, self.cosines.values()))
        found = self.answers.compute()
        return SettingScore(
            setting=setting,
            num_clips=len(self.cosines),
            num_frames=num_frames,
            reuse_rate=math.fsum(self.reuse_rates) / num_frames,
            gflops_per_frame=math.fsum(self.flops) / num_frames / 1e9,
            cosine_to_dense=float(np.concatenate(list(self.cosines.values())).mean()),
            task=found.task,
            by_span=found.by_span,
            answers=found.answers,
            by_reader=found.by_reader,
            computed_share=self.num_computed / num_frames,
        )


METRICS = tuple(field.name for field in fields(TaskScore) if field.name not in ("by_type", "rows"))
COLUMNS = ("method", "setting", "span", *METRICS, *(f"acc_qa_{kind}" for kind in TYPE_GROUPS))
"""Of task_scores.csv."""


def write_task_scores(path: StorePath, scores: Sequence[SettingScore]) -> None:
    """Write every metric of every setting and kind of span, a row each; nothing where no question was scored.

    A question type that nobody asked is an empty cell; all other values are counts or shares of 1.
    """
    rows: list[list[object]] = []
    for score_of in scores:
        tasks = [(str(span), task) for span, task in score_of.by_span.items()]
        if score_of.task and not tasks:
            tasks = [("zero_shot", score_of.task)]
        for span, task in tasks:
            values = [getattr(task, name) for name in METRICS] + [task.by_type.get(kind) for kind in TYPE_GROUPS]
            rows.append([score_of.setting.method, score_of.setting.label, span, *values])
    if rows:
        write_csv(path, COLUMNS, rows)
