"""What flows between the stages: ids and scalars; arrays lie in the store or stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "val", "test"]

CAPTION = "caption"
"""Kind of a question that is a caption: not which answer is right is asked, but which clip it tells of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One source video."""

    clip_id: str
    """Unique within a dataset; never a path."""
    path: str
    """Where the source lies."""
    split: Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One multiple-choice question about a clip, with the spans that show its answer."""

    question_id: str
    """Unique within a dataset: `<clip_id>_<qid>`."""
    clip_id: str
    split: Split
    kind: str
    """NExT-QA's type: CW, CH, TN, TP, TC; MC for plain multiple choice; CAPTION; the class of a clip in class folders,
    where `answers` are all classes and nothing else is asked."""
    text: str = ""
    answers: tuple[str, ...]
    correct: int
    """Index into answers."""
    spans_s: tuple[tuple[float, float], ...] = ()
    """Annotated (start, end) in seconds; any of them counts."""
    duration_s: float = 0.0
    """The annotation's own duration of the clip; 0 where it has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Clips and questions of one source, and what an annotation named but the folder lacks."""

    name: str
    clips: tuple[Clip, ...]
    questions: tuple[Question, ...]
    """Empty where there are no answers: the score is then fidelity to Original."""
    missing: tuple[str, ...] = ()
    """Clip ids that annotations name and the folder lacks: left out for all methods alike."""
    splits_given: bool = False
    """Whether a person divided the clips: a video that is in two splits is then refused, and not left out of one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcoded:
    """What transcoding made of one clip. Written beside the mp4 as JSON."""

    clip_id: str
    content_id: str
    """SHA-256 of the source file's bytes and the transcode config."""
    path: str
    """The mp4, relative to the store."""
    num_frames: int
    frame_px: int
    fps: float
    duration_s: float
    codec_metadata: bool
    """False where the declared fallback stands in for macroblock class, motion and quantiser."""
    start_s: float = 0.0
    """When the first frame is shown, in seconds from the source container's start, as a player counts them."""
    num_damaged: int = 0
    """Pictures of the source that were concealed."""
    num_missing: int = 0
    """Pictures that the source declares behind its end."""
    damaged_share: float = 0.0
    """Of both, among all pictures of the source."""
    concealed: str = ""
    """Frames that show what was not recorded, as ranges such as `12-15,40`."""
    remarks: str = ""
    """What a person should know of the source, such as where its clock broke; empty for most."""
    source: str = ""
    """Where the source lay when it was transcoded, in full; empty in records of earlier versions."""

    @property
    def is_odd(self) -> bool:
        """Whether the source was damaged or there is a remark about it."""
        return self.damaged_share > 0 or bool(self.remarks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One clip that a stage could not do."""

    clip_id: str
    stage: str
    reason: str
    """First line of the error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a task head answered to one question."""

    question_id: str
    answer: int
    """Index into the question's answers."""
    span_s: tuple[float, float]
    """Where it saw the answer: (start, end) in seconds, start <= end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRow:
    """One scored question: what the bootstrap draws from. Order within a clip carries no meaning."""

    question_id: str
    clip_id: str
    correct: bool
    iop: float = 0.0
    """Overlap / predicted length, the best over the annotated spans; 0..1."""
    iou: float = 0.0
    """Overlap / length of the hull of both, the best over the annotated spans; 0..1."""
    grounded: bool = False
    """Correct and iop at least one half: what Acc@GQA counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """The metrics of NExT-GQA over one set of questions; all are shares of 1, not per cent."""

    num_questions: int
    """Questions that count."""
    num_without_span: int
    """Questions left out because nothing is annotated for them."""
    num_clips: int
    acc_qa: float
    acc_gqa: float
    miop: float
    tiop_03: float
    tiop_05: float
    miou: float
    tiou_03: float
    tiou_05: float
    by_type: Mapping[str, float]
    """Accuracy of the answers for CW, CH, Bef&Aft (TN and TP), TC, C (CW and CH) and T (the three others).
    A type without a question is absent."""
    rows: tuple[EvalRow, ...]
    """One per question that counts, in the order of the questions."""
    num_beyond_video: int = 0
    """Predicted spans that leave the clip's annotated duration; they count as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """How often the right one is found among the best so many; shares of 1."""

    at_1: float
    at_5: float
    at_10: float
    median_rank: float
    """1 is best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerScore:
    """Right answers alone, where nothing says when they are seen: multiple choice and retrieval."""

    accuracy: float
    """Share of right answers, of 1; text-to-video recall at 1 in retrieval."""
    rows: tuple[EvalRow, ...]
    """One per question; iop and iou are 0."""
    text_to_video: Recall | None = None
    """None where nothing was retrieved."""
    video_to_text: Recall | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate and where resampling puts it."""

    low: float
    high: float
    mean: float
    """The estimate on the data as they are, not the mean of the resamples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoPoint:
    """One row of pareto.csv: a method setting, its quality and its cost. Fields stand in the order of the columns.

    A value that was not measured, or that a dataset without answers cannot have, is None: an empty cell.
    Accuracies are shares of 1.
    """

    method: str
    setting: str
    split: str
    num_clips: int
    reuse_rate: float | None = None
    gflops_per_frame: float | None = None
    """Executed, a multiply-accumulate being 2 FLOP."""
    flops_reduction: float | None = None
    """Original's executed FLOPs over this setting's."""
    accuracy: float | None = None
    """Share of right answers (NExT-GQA calls it Acc@QA); in retrieval, text-to-video recall at 1."""
    acc_gqa: float | None = None
    miop: float | None = None
    miou: float | None = None
    cosine_to_dense: float | None = None
    """Mean over frames of the cosine to Original's embedding."""
    ms_per_frame: float | None = None
    accuracy_ci_low: float | None = None
    """95 % interval of the accuracy itself, over resampled videos."""
    accuracy_ci_high: float | None = None
    acc_gqa_ci_low: float | None = None
    acc_gqa_ci_high: float | None = None
    flops_reduction_published: float | None = None
    """By the artifact's formulas: only to stand beside the published figure."""
    speedup: float | None = None
    """Original's time over this setting's: `timed_speedup` carried from the timed clips, which are few, to all of these
    clips by the ratio of executed FLOPs, flops_reduction / timed_flops_reduction (a ratio estimate)."""
    peak_memory_mb: float | None = None
    trained: bool | None = None
    """Whether the method's add-on weights were trained; None where it has none."""
    on_frontier: bool | None = None
    """Of executed FLOPs and the strictest quality: no other setting is both cheaper and better."""
    accuracy_loss_ci_low: float | None = None
    """Paired 95 % interval of this accuracy minus Original's on the same questions, over resampled videos: where it
    holds 0, the two cannot be told apart. Narrower than the intervals of both accuracies suggest."""
    accuracy_loss_ci_high: float | None = None
    acc_gqa_loss_ci_low: float | None = None
    """As accuracy_loss_ci_low, for Acc@GQA."""
    acc_gqa_loss_ci_high: float | None = None
    acc_gqa_diff_ci_low: float | None = None
    """Paired 95 % interval of ReuseViT's Acc@GQA minus that of the best baseline at equal executed FLOPs, whose own
    frontier is interpolated; None outside every baseline's range and for the baselines themselves."""
    acc_gqa_diff_ci_high: float | None = None
    recall_at_5: float | None = None
    """Text to video, as recall_at_10 and median_rank; None where nothing was retrieved."""
    recall_at_10: float | None = None
    median_rank: float | None = None
    video_to_text_recall_at_1: float | None = None
    video_to_text_recall_at_5: float | None = None
    video_to_text_recall_at_10: float | None = None
    video_to_text_median_rank: float | None = None
    decode_ms_per_frame: float | None = None
    """Decoding to RGB on one core, timed in the same rounds as ms_per_frame, which is encoding alone."""
    codec_ms_per_frame: float | None = None
    """What reading the codec grid in the same pass adds to decoding."""
    agreement: float | None = None
    """Of each frame's ten nearest frames of other clips under Original, the share that is still among its ten nearest;
    mean over frames. None where the clips have too few frames for it."""
    agreement_ci_low: float | None = None
    agreement_ci_high: float | None = None
    agreement_loss_ci_low: float | None = None
    """As agreement_ci_low, of the agreement minus Original's, which is 1."""
    agreement_loss_ci_high: float | None = None
    knn_accuracy: float | None = None
    """Share of clips whose class their nearest training clips tell; accuracy is then the linear probe's. None where
    clips have no classes. Intervals as those of accuracy."""
    knn_accuracy_ci_low: float | None = None
    knn_accuracy_ci_high: float | None = None
    knn_accuracy_loss_ci_low: float | None = None
    knn_accuracy_loss_ci_high: float | None = None
    zero_shot_accuracy: float | None = None
    """As knn_accuracy, by the class whose name's text embedding is nearest; None without a text tower."""
    zero_shot_accuracy_ci_low: float | None = None
    zero_shot_accuracy_ci_high: float | None = None
    zero_shot_accuracy_loss_ci_low: float | None = None
    zero_shot_accuracy_loss_ci_high: float | None = None
    dense_precision: str | None = None
    """That of the Original that speed-ups are over: the fastest on the machine, whatever the settings ran in."""
    timed_flops_reduction: float | None = None
    """`flops_reduction` on the frames that were timed: what `timed_speedup` has to be held against."""
    timed_speedup: float | None = None
    """As measured, on the timed clips, which may move more or less than the others."""


def to_ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ranges: 12, 13, 14, 40 become `12-14,40`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def from_ranges(text: str) -> list[int]:
    """Read what `to_ranges` wrote."""
    pairs = [run.partition("-") for run in text.split(",") if run]
    return [number for first, _, last in pairs for number in range(int(first), int(last or first) + 1)]
