"""One experiment as typed values: recipes, and the command line that overrides them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal, get_args

import tyro
import yaml

from dejavu.datasets.splits import GroupBy
from dejavu.datasets.synthetic import SyntheticConfig
from dejavu.embedding.batch import EmbedConfig
from dejavu.report.frontier import MAX_LOSS
from dejavu.stages.measure import MeasureConfig
from dejavu.stages.prepare import OWN_VIDEOS, DatasetName
from dejavu.stages.search_schedules import SchedulesConfig
from dejavu.stages.temp_clip import TaskConfig
from dejavu.stages.train_task import TrainConfig
from dejavu.storage.given_path import GivenPath
from dejavu.storage.one_line import OneLineError
from dejavu.storage.store_path import StorePath, is_folder, listed
from dejavu.sweep.study import SweepConfig
from dejavu.tasks.temp_clip.fit import TempClipFitConfig
from dejavu.video.mp4 import TranscodeConfig
from dejavu.video.transcode_apart import CLIP_LIMIT_S
from reuse_models.artifact.weights import Variant
from reuse_models.baselines.diffrate.schedule import PUBLISHED_SHARES
from reuse_models.baselines.diffrate.search import SearchConfig
from reuse_models.baselines.residual_vit.fit import TokenFitConfig
from reuse_models.training.fit import FitConfig

Stage = Literal["transcode", "train", "sweep", "embed", "measure", "score"]
STAGES: tuple[Stage, ...] = get_args(Stage)
LEARNED = ("reusevit", "diffrate", "residualvit")
"""Methods whose add-ons, schedules and token come of training clips."""
MAX_CLIP_LIMIT_S = 5 * 3600
"""Less than what Ray Data waits for a stage in which nothing moves."""
UNTRAINED: tuple[Stage, ...] = tuple(stage for stage in STAGES if stage != "train")
"""What runs unless training is asked for by `--stages`, in recipes without training videos or without the time."""


class ExperimentError(OneLineError):
    """The configuration does not make sense; one line says what and what to do."""


def _stages(text: str) -> tuple[Stage, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in STAGES]:
        raise ValueError(f"stages: got {unknown[0]!r}, expected some of {', '.join(STAGES)}; separate them by commas")
    return tuple(stage for stage in STAGES if stage in names)


Stages = Annotated[
    tuple[Stage, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="STAGE[,STAGE...]",
        instance_from_str=lambda texts: _stages(texts[0]),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(value)],
    ),
]
"""A comma-separated word on the command line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """Everything that a run of the pipeline depends on."""

    recipe: tyro.conf.Suppress[str] = "demo"
    dataset: tyro.conf.Suppress[DatasetName] = "synthetic"
    videos: GivenPath | None = None
    """Folder of videos, required by every recipe except demo and tiny."""
    train_on: GivenPath | None = None
    """Folder of other videos for training and for choosing settings; all of --videos is then tested (recipe folder)."""
    group_by: GroupBy = "auto"
    """Groups of videos that are never divided between splits (recipes folder and classes): those in one folder
    (`parent`), those whose names differ only in a number at the end (`stem-prefix`), or no groups (`none`). `auto`
    means `stem-prefix` if that leaves ten groups, otherwise `none`."""
    annotations: GivenPath | None = None
    """Folder of the dataset's published annotation files, required by recipes nextqa, msrvtt and how2qa."""
    published_checkpoints: GivenPath | None = None
    """Folder of published ReuseViT checkpoints (*.ckpt), each measured at refresh intervals R = 4, 8, 32 and none
    (recipe nextqa)."""
    variant: Variant = "as_trained"
    """Boundary at which each decision of a published checkpoint is made: the one it was trained for (`as_trained`), or
    one boundary earlier, as in the artifact's evaluation script (`released`)."""
    backbone: str = "embedded"
    """Backbone: `embedded`, a directory written by save_pretrained, or a name on the Hugging Face hub."""
    image_px: int | None = None
    """Side of the tower's input frames in pixels, a multiple of its patch size; position embeddings are interpolated.
    If not given, the size of the backbone's image processor."""
    results: GivenPath | None = None
    """Results folder. If not given, $DEJAVU_RESULTS/<recipe> if that is set; otherwise results/<recipe> in the current
    directory, or dejavu-results/<recipe> under home in a submitted job."""
    stages: Stages = STAGES
    """Stages to run, separated by commas and always run in the same order; stored results are not computed again."""
    num_workers: int | None = None
    """Number of encoding actors. If not given, as many as fit on the cluster."""
    gpus_per_worker: float | None = None
    """Number of GPUs per encoding actor. If not given, one if the cluster has GPUs."""
    max_failed_fraction: float = 0.01
    """Maximum share of clips that may fail, 0..1; if more fail, the run ends with an error."""
    allowed_loss: float = MAX_LOSS
    """Maximum share of Original's quality to lose, 0..1; the report leads with the fastest setting within it."""
    clip_limit_s: float = CLIP_LIMIT_S
    """Maximum time for transcoding one clip, in seconds; a clip that takes longer counts as failed."""
    prompt: str = "{answer}"
    """Template that makes {question} and {answer} into the text that frames are compared with."""
    seed: int = 0
    """Random seed of the bootstrap for confidence intervals."""
    task: TaskConfig = field(default_factory=TaskConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    transcode: TranscodeConfig = field(default_factory=TranscodeConfig)
    embed: EmbedConfig = field(default_factory=partial(EmbedConfig, precision="auto"))
    train: TrainConfig = field(default_factory=TrainConfig)
    schedules: SchedulesConfig = field(default_factory=SchedulesConfig)
    residual: TokenFitConfig = field(default_factory=TokenFitConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.max_failed_fraction <= 1:
            raise ExperimentError(
                f"max_failed_fraction: got {self.max_failed_fraction}, expected 0..1; 0.01 lets one clip in 100 fail"
            )
        if not 0 <= self.allowed_loss < 1:
            raise ExperimentError(
                f"allowed_loss: got {self.allowed_loss}, expected 0 or more and less than 1; 0.02 allows 2 %"
            )
        if not 0 < self.clip_limit_s <= MAX_CLIP_LIMIT_S:
            raise ExperimentError(
                f"clip_limit_s: got {self.clip_limit_s}, expected more than 0 and at most {MAX_CLIP_LIMIT_S}; "
                f"{CLIP_LIMIT_S:g} are enough for a video of an hour"
            )
        if self.dataset == "class_folders" and self.task.head != "zero_shot":
            raise ExperimentError(
                f"--task.head: got {self.task.head}, expected zero_shot; recipe {self.recipe} asks for classes, which "
                "its own probe tells"
            )
        try:
            self.prompt.format(question="", answer="")
        except (KeyError, IndexError, ValueError) as error:
            raise ExperimentError(
                f"prompt: got {self.prompt!r} ({error}), expected {{question}} and {{answer}} alone in braces; mend it"
            ) from None
        if self.num_workers is not None and self.num_workers < 1:
            raise ExperimentError(f"num_workers: got {self.num_workers}, expected 1 or more; leave it out to fit all")

    def fits(self, method: str) -> bool:
        """Whether a method of LEARNED is fitted: the stage was asked for, and somebody will measure what it makes."""
        return "train" in self.stages and method in self.sweep.methods

    def check_folders(self) -> None:
        """Refuse to start without the folders that the recipe reads.

        Raises:
            ExperimentError: One of them is not given or not there.
        """
        needed = {"synthetic": (), **dict.fromkeys(OWN_VIDEOS, ("videos",))}.get(
            self.dataset, ("videos", "annotations")
        )
        if self.train_on is not None and self.dataset != "video_folder":
            raise ExperimentError(
                f"--train-on: got {self.train_on}, expected nothing in recipe {self.recipe}; only recipe folder trains "
                "on other videos"
            )
        if self.published_checkpoints is not None and not listed(self.published_checkpoints, "*.ckpt"):
            raise ExperimentError(
                f"--published-checkpoints: got {self.published_checkpoints} without any *.ckpt, expected a folder of "
                "published checkpoints; see docs/nextqa.md"
            )
        for name in needed:
            folder: StorePath | None = getattr(self, name)
            if folder is None or not is_folder(folder):
                got = "nothing" if folder is None else f"{folder}, which is no folder"
                raise ExperimentError(f"--{name}: got {got}, expected a folder; recipe {self.recipe} reads it")

    @property
    def is_own(self) -> bool:
        """Whether a person's own folder is run, whose splits are made here."""
        return self.dataset in OWN_VIDEOS

    @property
    def needs_training_clips(self) -> bool:
        """Whether anything is learned from the clips of the train split."""
        return any(map(self.fits, LEARNED)) or self.task.trains or self.dataset == "class_folders"

    def to_yaml(self) -> str:
        """Return the resolved configuration as a person reads it."""
        plain = json.loads(json.dumps(dataclasses.asdict(self), default=str))  # paths as text, tuples as lists
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


DEMO_TRAINING = TrainConfig(
    epochs=6,
    min_steps=1,
    fit=FitConfig(
        codec_learning_rate=2.5e-3,
        restoration_learning_rate=4e-3,
        decision_learning_rate=5e-3,
        decay=0.65,
        clips_per_step=2,
        restoration_rank=4,
    ),
)
"""For a small tower and minutes: larger rates than published, few clips and so many steps, a rank that costs little of
what reuse saves (docs/training.md)."""

DEMO_HEAD = TaskConfig(
    fit=TempClipFitConfig(width=128, ffn_width=128, epochs=12, learning_rate=1e-3, dropout=0.1, questions_per_step=32)
)
"""A head that fits in a minute, on the backbone's own text tower."""

OWN_TRAINING = TrainConfig(
    targets=(0.85,),
    min_steps=200,
    patience=2,
    validation_windows=24,
    calibrated_rates=(0.2, 0.35, 0.5, 0.65, 0.8, 0.9),
    fit=FitConfig(
        codec_learning_rate=5e-4,
        restoration_learning_rate=1e-4,
        decision_learning_rate=5e-4,
        restoration_rank=4,
        rate="held",
    ),
)
"""What two cores can do for a small real tower: one fit, whose biases give the other rates, a restoration of a rank
that costs little (of the rank that the tower's width gives, more is not explained), and a fifth of the published rates:
with two windows a step, decisions of whole layers ran to all or nothing at those (docs/training.md)."""

OWN_SCHEDULES = SchedulesConfig(shares=PUBLISHED_SHARES[2::2], num_frames=192)
"""One for each of two cores, on half of the frames: five took longer than the training, and of a small tower on real
video what is cheaper loses too much to be chosen."""

OWN_SWEEP = SweepConfig(num_frames=400, chosen_per_method=3)
"""Enough frames to tell settings apart; fifty settings on all validation clips would take longer than the training."""

DRAWN = EmbedConfig(precision="auto", streams=16)
"""The drawn world's tower is so small that calls, not products, take the time with fewer streams."""

RECIPES: dict[str, tuple[str, Experiment]] = {
    "demo": (
        "Synthetic world of 220 videos on the embedded backbone; takes a quarter of an hour on two cores.",
        Experiment(train=DEMO_TRAINING, task=DEMO_HEAD, embed=DRAWN),
    ),
    "tiny": (
        "The same with 22 videos and two settings per method, for tests and notebooks.",
        Experiment(
            recipe="tiny",
            stages=UNTRAINED,
            # Tests and notebooks see the same numbers on every machine.
            embed=replace(DRAWN, precision="float32"),
            train=replace(DEMO_TRAINING, targets=(0.8,), max_steps=4),
            schedules=SchedulesConfig(shares=(0.565, 0.689), num_frames=64, search=SearchConfig(steps=4)),
            residual=TokenFitConfig(steps=4, windows_per_step=1),
            task=replace(DEMO_HEAD, fit=replace(DEMO_HEAD.fit, epochs=2)),
            synthetic=SyntheticConfig(num_train=8, num_val=6, num_test=8),
            sweep=SweepConfig(density="tiny", chosen_per_method=2, probe_clips=4),
            measure=MeasureConfig(num_clips=2, num_frames=8, num_rounds=2),
        ),
    ),
    "folder": (
        "Folder of your own videos, without labels; the score is the agreement of neighbours with Original.",
        Experiment(
            recipe="folder", dataset="video_folder", train=OWN_TRAINING, schedules=OWN_SCHEDULES, sweep=OWN_SWEEP
        ),
    ),
    "classes": (
        "Your own videos in folders by class, [split/]class/video; the score is the accuracy of a linear probe.",
        Experiment(
            recipe="classes",
            dataset="class_folders",
            prompt="a video of {answer}",
            train=OWN_TRAINING,
            schedules=OWN_SCHEDULES,
            sweep=OWN_SWEEP,
        ),
    ),
    "nextqa": (
        "NExT-QA videos with NExT-GQA annotations, at the paper's settings.",
        Experiment(
            recipe="nextqa",
            dataset="next_qa",
            backbone="openai/clip-vit-large-patch14",
            prompt="{question} {answer}",
            train=TrainConfig(targets=(0.95, 0.9, 0.85, 0.8)),
            sweep=SweepConfig(density="paper", chosen_per_method=6),
        ),
    ),
    "msrvtt": (
        "MSR-VTT captions: text-to-video and video-to-text retrieval with mean-pooled embeddings.",
        Experiment(
            recipe="msrvtt",
            dataset="msr_vtt",
            stages=UNTRAINED,
            backbone="openai/clip-vit-large-patch14",
            sweep=SweepConfig(density="paper", chosen_per_method=6),
        ),
    ),
    "how2qa": (
        "How2QA: multiple choice without spans.",
        Experiment(
            recipe="how2qa",
            dataset="how2qa",
            stages=UNTRAINED,
            backbone="openai/clip-vit-large-patch14",
            prompt="{question} {answer}",
            sweep=SweepConfig(density="paper", chosen_per_method=6),
        ),
    ),
}


def parse(arguments: Sequence[str]) -> Experiment:
    """Read the command line: a recipe's name, `demo` unless given, and overrides of its values.

    Exits with tyro's own message on an unknown flag or a value of the wrong type.

    Raises:
        ValueError: A value is out of range.
    """
    words = list(arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "demo")
    return tyro.extras.overridable_config_cli(
        RECIPES,
        prog="python jobs/pipeline.py",
        description="From video files to a Pareto plot. Without a recipe, `demo` runs. RECIPE --help lists its options."
        " --status (or --status --json) after a run's command reports on that run.",
        args=words,
    )
