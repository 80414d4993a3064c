"""From video files to a Pareto plot: `python jobs/pipeline.py [demo|folder|classes|nextqa|...] [--help]`.

One call per stage; what is in the store already is not done again. With `--status` it says how that run is doing.
"""

import _bootstrap  # noqa: F401  first: makes the packages importable

import sys

if __name__ == "__main__" and "--status" in sys.argv:  # answered before what takes seconds to import
    import status

    sys.exit(status.main(sys.argv[1:]))

import os
import shlex
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from dejavu.cluster import cluster
from dejavu.backbones.load import Backbone, BackboneError, load_backbone
from dejavu.observability.events import LOGS, Work, tell, telling
from dejavu.experiment import Experiment, ExperimentError, Stage, parse
from dejavu.report.pareto_view import VIEW_ID
from dejavu.storage.place import Place, is_file, listed, storage_errors
from dejavu.records import Dataset, Question, Split, Transcoded
from dejavu.report.page import RunFacts
from dejavu.storage.results_folder import local_folder, results_folder
from dejavu.storage.setting import Setting, name_setting, with_local_weights
from dejavu.datasets.class_folders import load_class_folders
from dejavu.datasets.splits import twins
from dejavu.datasets.video_folder import passed_over
from dejavu.embedding.batch import Embedding
from dejavu.stages.class_readers import make_readers
from dejavu.stages.embed import embed_clips
from dejavu.embedding.memory import fit_memory
from dejavu.embedding.precision import choose_precision
from dejavu.stages.frontier import Evidence, Journal, draw_frontier, gather_points, git_commit, log_frontier
from dejavu.storage.failed import TooManyFailures, check_failures, say_odd, write_failures_csv, write_odd_csv
from dejavu.observability.live_curves import Curve, LiveCurves, See, ending
from dejavu.stages.measure import Timing, measure_settings
from dejavu.stages.prepare import SCORED, draw_world, load_folder, load_videos, write_splits
from dejavu.embedding.stored import clips_identity
from dejavu.stages.report import Scored, write_page
from dejavu.stages.residual_token import fit_residual_token, read_residual_token
from dejavu.stages.score import Exam, SettingScore, score_settings, set_class_exam, set_exam
from dejavu.stages.search_schedules import read_schedules, search_schedules
from dejavu.stages.task_table import write_task_scores
from dejavu.stages.temp_clip import (
    HeadFit,
    TrainedHead,
    check_fit_memory,
    check_head,
    check_lessons,
    fit_head,
    open_head,
)
from dejavu.embedding.texts import embed_texts
from dejavu.embedding.windows import num_windows
from dejavu.stages.train import MIN_WINDOWS, TrainedAddon, long_enough, read_addons, train_addons
from dejavu.stages.train_task import TrainError
from dejavu.stages.transcode import transcode_clips, transcode_one
from dejavu.video.transcode_apart import transcode_apart
from dejavu.observability.status import end_status, keep_status
from dejavu.tasks.class_readers import ClassReaders
from dejavu.storage.store import Store, StoreError, identity, write_json, write_text
from dejavu.observability.tracking import LoggedAddon, Run, Tracking, TrackingError
from torch import Tensor
from reuse_models.baselines.diffrate.method import DiffRateConfig
from reuse_models.baselines.diffrate.schedule import read_schedule
from reuse_models.method import MethodConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.reusevit.method import ReuseVitConfig
from dejavu.sweep.study import choose, list_configs, list_ranges, look_at_tower, read_chosen, some_of, write_chosen
from dejavu.sweep.sweep import Bench, SweepError, search, sweep
from tune_spaces.tower import AddonCurve, Trained
from dejavu.sweep.tried import Tried, tried_runs

PUBLISHED_REFRESH = (4, 8, 32, None)
"""Frames after which the published points begin a new segment."""

ONE_LINE_ERRORS = (
    BackboneError,
    ExperimentError,
    StoreError,
    TrackingError,
    TrainError,
    SweepError,
    TooManyFailures,
    cluster.ClusterError,
    FileNotFoundError,
    OSError,
    ValueError,
)


STOPPED = "stopped: got SIGTERM or Ctrl-C before the end; run the same command again to go on: what is done is kept"


@dataclass
class Job:
    """What a run has in hand between its stages."""

    experiment: Experiment
    results: Place
    store: Store
    tracking: Tracking
    backbone: Backbone
    dataset: Dataset
    embedding: Embedding
    clips: dict[str, Transcoded] = field(default_factory=dict)
    head: TrainedHead | None = None
    """Answers the questions, where that is not left to CLIP's text tower."""
    readers: ClassReaders | None = None
    """Tell the class of a clip, where clips have classes."""
    tried: list[Run] = field(default_factory=list)
    """On validation clips, in this run's sweep."""
    started: float = field(default_factory=time.monotonic)

    def runs(self, stage: Stage) -> bool:
        """Whether this stage was asked for."""
        return stage in self.experiment.stages

    def of_split(self, split: Split) -> list[Transcoded]:
        """Transcoded clips of one split."""
        names = [clip.clip_id for clip in self.dataset.clips if clip.split == split]
        return [self.clips[name] for name in names if name in self.clips]

    def questions(self, split: Split) -> list[Question]:
        """Questions of one split."""
        return [question for question in self.dataset.questions if question.split == split]

    def exam(self, split: Split, clips: Sequence[Transcoded]) -> Exam:
        """What is asked about these clips of one split."""
        if self.readers is not None:
            return set_class_exam(clips, self.questions(split), self.readers)
        embed = partial(embed_texts, backbone=self.backbone, store=self.store)
        return set_exam(clips, self.questions(split), embed, self.experiment.prompt, self.head)

    def name(self, config: MethodConfig) -> Setting:
        """Name a method's config on this backbone."""
        return name_setting(config, self.backbone.identity, self.experiment.embed.shaping())

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)

    def check(self) -> None:
        """Write failures.csv, and end the run where too much failed."""
        failures = write_failures_csv(self.store, self.results / "failures.csv")
        limit = self.experiment.max_failed_fraction
        check_failures(failures, len(self.dataset.clips), len(self.of_split("test")), limit)


def start(experiment: Experiment) -> Job:
    """Check everything that can be checked before hours of work."""
    results = results_folder(experiment.recipe, experiment.results)
    print(f"results: {results}", flush=True)
    experiment.check_folders()
    store = Store.open(results / "store")
    write_text(results / "config.yaml", experiment.to_yaml())
    here = local_folder(experiment.recipe, results)
    keep_status(results, experiment.recipe, here / LOGS)
    print(experiment.to_yaml(), flush=True)
    backbone = load_backbone(experiment.backbone, experiment.image_px)
    given_schedules(experiment, backbone)
    check_head(experiment.task, backbone, experiment.prompt)
    tracking = Tracking.open(here)
    if here != results and tracking.uri.startswith("sqlite"):
        print(f"MLflow: {here / 'mlflow.db'}, since no database can lie in {results}; or set MLFLOW_TRACKING_URI")
    tell("tracking", {"command": tracking.ui_command})
    cluster.connect(logs=here / LOGS)
    cluster.honour_notice()
    dataset = load_dataset(experiment, results)
    check_lessons(experiment.task, dataset.questions)
    if dataset.missing:
        names = ", ".join(dataset.missing[:10]) + (" ..." if len(dataset.missing) > 10 else "")
        print(f"missing: {len(dataset.missing)} annotated videos are not in the folder and are left out: {names}")
    experiment = with_precision(experiment, store, backbone)
    write_text(results / "config.yaml", experiment.to_yaml())
    embedding = Embedding(experiment.backbone, store, experiment.embed, experiment.image_px)
    return Job(experiment, results, store, tracking, backbone, dataset, embedding)


def with_precision(experiment: Experiment, store: Store, backbone: Backbone) -> Experiment:
    """Return the experiment with `--embed.precision auto` replaced by what it comes to; nothing embeds in `transcode`.

    Raises:
        ClusterError: It is to be measured on a GPU that the cluster does not have.
    """
    if set(experiment.stages) <= {"transcode"}:
        return experiment
    precision = choose_precision(experiment.embed, store, backbone, experiment.gpus_per_worker)
    print(f"precision: {precision}", flush=True)
    return replace(experiment, embed=replace(experiment.embed, precision=precision))


def load_dataset(experiment: Experiment, results: Place) -> Dataset:
    """Load the clips and questions, drawing the synthetic world first where that is the dataset."""
    splits: tuple[Split, ...] = ("train", *SCORED) if experiment.needs_training_clips else SCORED
    if experiment.dataset == "synthetic":
        dataset, num_drawn = draw_world(results / "world", experiment.synthetic, splits)
        print(f"drew {num_drawn} videos", flush=True)
        return dataset
    assert experiment.videos is not None, "check_folders has run"
    if experiment.dataset == "video_folder":
        splitting = load_videos(experiment.videos, experiment.train_on, experiment.group_by)
        kept = [clip for clip in splitting.clips if clip.split in splits]
        dataset = Dataset(name="video_folder", clips=tuple(kept), questions=(), splits_given=splitting.given)
    elif experiment.dataset == "class_folders":
        dataset, splitting = load_class_folders(experiment.videos, experiment.group_by)
    else:
        return load_folder(experiment.dataset, experiment.videos, experiment.annotations, splits)
    print(f"splits: {splitting.how}", flush=True)
    write_splits(results / "splits.csv", splitting.clips)
    return dataset


def run(job: Job) -> None:
    """Run the stages that were asked for, in their order."""
    experiment = job.experiment
    job.say(f"dataset {job.dataset.name}: {len(job.dataset.clips)} clips, {len(job.dataset.questions)} questions")
    if experiment.videos is not None and (others := passed_over(experiment.videos)):
        print(f"  passed over, no videos by their endings: {others}", flush=True)
    encode = partial(transcode_apart, limit_s=experiment.clip_limit_s)
    make = partial(transcode_one, encode=encode) if job.runs("transcode") else None
    transcoded = transcode_clips(
        job.dataset.clips,
        job.store,
        experiment.transcode,
        job.backbone.frame_px,
        view=job.backbone.preprocess.view,
        make=make,
    )
    job.clips = transcoded.clips
    job.say(f"transcoded {transcoded.num_made} clips, {len(job.clips)} ready, {len(transcoded.failures)} failed")
    leave_twins_out(job)
    for line in say_odd(write_odd_csv(job.clips.values(), job.results)):
        print(f"  {line}", flush=True)
    job.check()
    if set(experiment.stages) <= {"transcode"}:
        return

    original = job.name(OriginalConfig())
    if experiment.trains:
        fit_addons(job, original)
    if experiment.searches:
        fit_schedules(job)
    if experiment.fits_token:
        fit_token(job, original)
    if not {"sweep", "embed", "measure", "score"} & set(experiment.stages):
        return
    job.head = train_head(job, original)
    job.readers = fit_class_readers(job, original)
    published = [job.name(config) for config in published_configs(job)]
    chosen = choose_settings(job, original) if job.runs("sweep") else read_chosen(job.store, job.name)
    chosen += published
    if job.runs("embed"):
        pool = cluster.actor_pool(experiment.num_workers, experiment.gpus_per_worker)
        embedding, pool = fit_memory(job.backbone, [original, *chosen], job.embedding, pool)
        embedded = embed_clips(job.of_split("test"), [original, *chosen], embedding, pool, "test")
        job.say(f"embedded {embedded.num_clips} clips under {1 + len(chosen)} settings")
        job.check()
    timings: Mapping[str, Timing] = {}
    if job.runs("measure"):
        cluster.bring_up(experiment.gpus_per_worker)
        timings, num_timed = measure_settings(
            [original, *chosen], original, job.of_split("test"), job.embedding, experiment.measure
        )
        job.say(f"timed {num_timed} settings")
    if job.runs("score"):
        exam = job.exam("test", job.of_split("test"))
        with telling(Work(stage="score", total=1 + len(chosen), unit="settings")) as so_far:
            scores = score_settings([original, *chosen], original, exam, job.embedding)
            so_far(len(scores))
        write_task_scores(job.results / "task_scores.csv", scores)
        evidence = Evidence(scores, timings, job.backbone.vit.shape, experiment.seed)
        points = gather_points(evidence)
        title = f"{job.dataset.name}, {scores[0].num_clips} test clips, {job.backbone.name}"
        loss = experiment.allowed_loss
        draw_frontier(points, job.results, title=title, published=experiment.recipe == "nextqa", max_loss=loss)
        page = write_page(Scored(points, evidence, exam, job.embedding), run_facts(job, scores[0]), job.results)
        log_frontier(points, Journal(job.tracking, tags(job), job.tried), job.results, loss)
        job.say(f"scored {len(points)} settings on {scores[0].num_clips} test clips")
        print(f"\nreport     {page}\nplot       {job.results / 'pareto.png'}\ntable      {job.results / 'pareto.csv'}")
        print(f"failures   {job.results / 'failures.csv'}\nMLflow UI  {job.tracking.ui_command}")
        print(f"           then {job.tracking.view_url(VIEW_ID)}", flush=True)


def leave_twins_out(job: Job) -> None:
    """Neither train on nor choose by a video that lies in the folder twice and is tested as well."""
    if not job.experiment.is_own:
        return
    splits = {clip.clip_id: clip.split for clip in job.dataset.clips}
    contents = {name: clip.content_id for name, clip in job.clips.items()}
    for name, other in twins(contents, splits, given=job.dataset.splits_given).items():
        print(f"  {name} is left out of {splits[name]}: {other} in {splits[other]} has the same content", flush=True)
        del job.clips[name]


def train_head(job: Job, original: Setting) -> TrainedHead | None:
    """Return the head that answers questions, fitted on Original's embeddings unless a checkpoint is given."""
    experiment, task = job.experiment, job.experiment.task
    if task.head == "zero_shot":
        return None
    if not task.trains:
        return open_head(task, job.backbone, experiment.prompt)
    clips = embed_dense(job, original)
    questions = [*job.questions("train"), *job.questions("val")]
    check_fit_memory(task, job.backbone, sum(map(len, clips.values())))
    fitted = fit_head([*clips["train"], *clips["val"]], questions, original, job.embedding, task, experiment.prompt)
    job.say(f"{'trained' if fitted.is_new else 'found'} a TempCLIP head, {len(fitted.curve)} epochs: {fitted.weights}")
    log_once(job, fitted.weights, head_run(job, fitted))
    return open_head(task, job.backbone, experiment.prompt, fitted.weights)


def fit_class_readers(job: Job, original: Setting) -> ClassReaders | None:
    """Return what tells a clip's class, made on Original's embeddings; nothing where clips have no classes."""
    if job.experiment.dataset != "class_folders":
        return None
    clips = embed_dense(job, original)

    def embed(names: Sequence[str]) -> Tensor:
        texts = [job.experiment.prompt.format(question="", answer=name) for name in names]
        return embed_texts(texts, job.backbone, job.store)

    has_words = job.backbone.text is not None
    readers = make_readers(clips, job.dataset.questions, original, job.embedding, embed if has_words else None)
    job.say(f"fitted a probe of {len(readers.bias_C)} classes on {len(readers.train.label_N)} clips")
    return readers


def embed_dense(job: Job, original: Setting) -> dict[Split, list[Transcoded]]:
    """Embed what Original lacks of training and validation clips, for what learns from it; return the clips."""
    pool = cluster.actor_pool(job.experiment.num_workers, job.experiment.gpus_per_worker)
    embedding, pool = fit_memory(job.backbone, [original], job.embedding, pool)
    splits: tuple[Split, ...] = ("train", "val")
    clips = {split: job.of_split(split) for split in splits}
    for split, some in clips.items():
        embed_clips(some, [original], embedding, pool, split)
    return clips


def head_run(job: Job, fitted: HeadFit) -> Run:
    """Return what MLflow keeps of a head's fit: its curves and weights."""
    curves = {
        name: [(int(entry["epoch"]), entry[name]) for entry in fitted.curve if name in entry]
        for name in sorted({name for entry in fitted.curve for name in entry} - {"epoch"})
    }
    files = (fitted.weights, fitted.weights.with_suffix(".json"))
    return Run(name="fit temp_clip", params={}, metrics={}, tags=tags(job), artifacts=files, curves=curves)


def too_few(job: Job, windows: int) -> bool:
    """Whether so few training windows teach nothing; where a recipe says what is learned from, any will do."""
    return not windows or (job.experiment.is_own and windows < MIN_WINDOWS)


def fit_addons(job: Job, original: Setting) -> tuple[TrainedAddon, ...]:
    """Fit ReuseViT at each target on training clips, with the dense embeddings of the store as teacher."""
    experiment = job.experiment
    clips = {split: job.of_split(split) for split in ("train", "val")}
    windows = num_windows(long_enough(clips["train"]))
    if too_few(job, windows):
        job.say(f"{len(clips['train'])} training clips give {windows} windows: ReuseViT is not trained")
        return ()
    embed_dense(job, original)
    with telling(Work(stage="train", total=experiment.train.visits(windows), unit="epochs")):
        result = train_addons(clips, original, job.embedding, experiment.train, partial(live_curves, job))
    job.say(f"trained {result.num_trained} of {len(result.addons)} add-ons, {len(result.failures)} clips unreadable")
    for addon in result.addons:
        log_once(job, addon.weights, ending(fit_run(job, addon), addon.weights.parent, job.tracking))
        if addon.achieved_rate is not None:
            print(f"  target={addon.target:g}: requested {addon.target:.3f}, achieved {addon.achieved_rate:.3f}")
    job.check()
    return result.addons


def live_curves(job: Job, folders: Mapping[str, Place]) -> See:
    """Open a run in MLflow and one in TensorBoard for each target, to be seen while the fits go on."""
    runs = {target: Run(name=f"fit target={target}", params={}, metrics={}, tags=tags(job)) for target in folders}
    events = job.results / "tensorboard"
    print(f"live curves: {job.tracking.ui_command}, or tensorboard --logdir {shlex.quote(str(events))}", flush=True)
    live = LiveCurves(job.tracking, runs, folders, events)

    def see(curves: Mapping[str, Curve]) -> None:
        tell("progress", {"stage": "train", "done": max(map(len, curves.values()), default=0)})
        live.see(curves)

    return see


def log_once(job: Job, weights: Place, run: Run) -> None:
    """Log what made these weights, unless that is done: a run may have ended between the fit and its logging."""
    note = weights.with_name("mlflow.json")
    if not is_file(note):
        write_json(note, {"run_id": job.tracking.log(run, [])})


def fit_run(job: Job, addon: TrainedAddon) -> Run:
    """Return what MLflow keeps of a fit: its curves, requested against achieved reuse, and the weights as a model."""
    curves = {
        name: [(int(entry["step"]), entry[name]) for entry in addon.curve if name in entry]
        for name in sorted({name for entry in addon.curve for name in entry} - {"step"})
    }
    return Run(
        name=f"fit {addon.config.name}",
        params={"target": addon.target, "biases": dict(addon.biases)},
        metrics={"requested_rate": addon.target, "achieved_rate": addon.achieved_rate},
        tags=tags(job),
        curves=curves,
        addon=LoggedAddon(
            addon.weights, job.experiment.backbone, job.experiment.image_px, addon.semantics, addon.order
        ),
    )


def fit_schedules(job: Job) -> None:
    """Search DiffRate's schedule for each FLOP target on training clips."""
    clips = job.of_split("train")
    if not clips:
        job.say("no training clips: DiffRate's schedules are not searched")
        return
    cluster.bring_up(job.experiment.gpus_per_worker)
    result = search_schedules(clips, job.backbone, job.embedding, job.experiment.schedules)
    job.say(f"searched {len(result.found)} of {len(result.schedules)} DiffRate schedules")
    for share, found in sorted(result.found.items()):
        cosines = f"{found.cosine:.3f}, of the same rate in every layer {found.uniform_cosine:.3f}"
        print(f"  diffrate {share:g}: costs {found.schedule.achieved_share:.3f} of dense, cosine to it {cosines}")
    job.check()


def fit_token(job: Job, original: Setting) -> None:
    """Fit the token of ResidualViT on training clips."""
    clips = {split: job.of_split(split) for split in ("train", "val")}
    if too_few(job, num_windows(long_enough(clips["train"]))):
        job.say("too few training clips: ResidualViT is left out")
        return
    embed_dense(job, original)
    cluster.bring_up(job.experiment.gpus_per_worker)
    result = fit_residual_token(clips, original, job.backbone, job.embedding, job.experiment.residual)
    judged = "" if result.cosine is None else f": cosine {result.cosine:.3f}, without any {result.cosine_without:.3f}"
    job.say(f"{'fitted' if result.is_new else 'found'} ResidualViT's token{judged}")
    job.check()


def given_schedules(experiment: Experiment, backbone: Backbone) -> list[DiffRateConfig]:
    """Read the schedules that were given as files; a broken one ends the run before any work."""
    return [read_schedule(path, backbone.vit.shape).config() for path in experiment.sweep.diffrate_schedules]


def published_configs(job: Job) -> list[MethodConfig]:
    """Return the published checkpoints at the published refresh intervals.

    Each is read once here, so that a broken one ends the run before any work.
    """
    folder = job.experiment.published_checkpoints
    configs: list[MethodConfig] = []
    for path in listed(folder, "*.ckpt") if folder else []:
        for refresh in PUBLISHED_REFRESH:
            configs.append(
                ReuseVitConfig(
                    weights=str(path.resolve()), variant=job.experiment.variant, refresh=refresh, semantics="grouped"
                )
            )
        with_local_weights(configs[-1]).build(job.backbone.vit)
    return configs


def choose_settings(job: Job, original: Setting) -> list[Setting]:
    """Sweep the grids on validation clips and choose; without validation clips, every setting goes on."""
    experiment = job.experiment
    validation = some_of(job.of_split("val"), experiment.sweep.num_frames)
    probes = validation or job.of_split("test")
    addons = [AddonCurve(addon.config, tuple(addon.biases.values())) for addon in read_addons(job.embedding)]
    searched = [schedule.config() for schedule in read_schedules(job.embedding, job.backbone)]
    schedules = tuple(dict.fromkeys([*searched, *given_schedules(experiment, job.backbone)]))
    token = read_residual_token(job.embedding, job.backbone)
    trained = Trained(tuple(addons), schedules, token.config if token else None)
    tower = look_at_tower(job.backbone, probes, job.embedding, experiment.sweep, trained)
    sweep_config = experiment.sweep
    if experiment.is_own and not addons:
        job.say("ReuseViT is left out of plot and table: nothing has been trained for it")
        sweep_config = replace(sweep_config, methods=tuple(name for name in sweep_config.methods if name != "reusevit"))
    configs = list_configs(tower, job.backbone, sweep_config)
    settings = [job.name(config) for config in configs]
    if not validation:
        job.say(f"no validation clips: all {len(settings)} settings are measured")
        write_chosen(job.store, settings)
        return settings
    pool = cluster.actor_pool(experiment.num_workers, experiment.gpus_per_worker)
    embedding, pool = fit_memory(job.backbone, [original, *settings], job.embedding, pool)
    embed_clips(validation, [original], embedding, pool, "val")
    exam = job.exam("val", validation)
    bench = Bench(original, exam, embedding, pool)
    num_trials = sweep(settings, bench)
    scores = score_settings(settings, original, exam, job.embedding)
    stopped: list[Tried] = []
    if experiment.sweep.search == "optuna":
        name = partial(name_setting, backbone_identity=job.backbone.identity, embedding=experiment.embed.shaping())
        tried = search(list_ranges(tower, configs), scores, bench, experiment.sweep, name)
        stopped = [one for one in tried if not one.whole]
        found = [one.setting for one in tried if one.whole]
        scores = score_settings([*settings, *found], original, exam, job.embedding)
        job.say(f"searched {len(tried)} settings beyond the grid, {len(stopped)} of them stopped early")
    chosen = choose(scores, experiment.sweep.chosen_per_method)
    write_chosen(job.store, chosen)
    job.tried = tried_runs(scores, stopped, chosen, tags(job))
    counts = f"swept {num_trials} of {len(settings)} settings, chose {len(chosen)}"
    job.say(f"{counts} on {len(validation)} validation clips")
    return chosen


def tags(job: Job) -> dict[str, str]:
    """Return what names this run in MLflow."""
    config = (job.results / "config.yaml").read_text(encoding="utf-8")
    return {
        "recipe": job.experiment.recipe,
        "git_commit": git_commit(os.environ.get("DEJAVU_GIT_COMMIT")),
        "config_hash": identity({"config": config}),
        "data_hash": clips_identity(job.clips.values()),
        "backbone": f"{job.backbone.name} {job.backbone.identity[:12]}",
        "hardware": cluster.hardware(),
        "precision": job.experiment.embed.precision,
    }


def run_facts(job: Job, original: SettingScore) -> RunFacts:
    """Return what the report says of this run beside its points."""
    return RunFacts(
        recipe=job.experiment.recipe,
        dataset=job.dataset.name,
        num_clips=len(job.dataset.clips),
        num_questions=len(original.rows),
        num_without_span=original.task.num_without_span if original.task else 0,
        missing=job.dataset.missing,
        failures=job.store.failures(),
        odd=[clip for clip in job.clips.values() if clip.is_odd],
        num_rounds=job.experiment.measure.num_rounds,
        num_streams=job.experiment.measure.num_clips,
        tags=tags(job),
        config_yaml=(job.results / "config.yaml").read_text(encoding="utf-8"),
        allowed_loss=job.experiment.allowed_loss,
    )


def attempt(read: Callable[[], Experiment]) -> int:
    """Run the experiment that is read; say in one line what ended it early; return the exit status."""
    try:
        run(start(read()))
    except ONE_LINE_ERRORS + storage_errors() as error:
        end_status("failed", str(error))
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        end_status("stopped")
        print(STOPPED, file=sys.stderr, flush=True)
        return 128 + signal.SIGTERM
    end_status("finished")
    return 0


def main() -> int:
    """Run the pipeline; return the exit status."""
    return attempt(lambda: parse(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
