"""Before any stage: everything that can be checked, the precision, the dataset."""

from __future__ import annotations

from dataclasses import replace

from dejavu.backbones.load import EMBEDDED, Backbone, load_backbone
from dejavu.backbones.locate import DRAWINGS_ALONE
from dejavu.cluster import cluster
from dejavu.datasets.class_folders import load_class_folders
from dejavu.embedding.batch import EmbedContext
from dejavu.embedding.precision import choose_precision
from dejavu.experiment import Experiment
from dejavu.observability.events import LOGS, log_event
from dejavu.observability.status import keep_status
from dejavu.observability.tracking import Tracking
from dejavu.pipeline.job import Job
from dejavu.pipeline.settings import given_schedules
from dejavu.records import Dataset, Split
from dejavu.stages.prepare import ANNOTATED, SCORED, draw_world, load_videos
from dejavu.stages.temp_clip import check_head, check_training_set
from dejavu.storage.results_folder import local_folder, results_folder
from dejavu.storage.store import Store, write_csv, write_text
from dejavu.storage.store_path import StorePath


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
    if experiment.backbone == EMBEDDED and experiment.dataset != "synthetic":
        print(DRAWINGS_ALONE, flush=True)
    backbone = load_backbone(experiment.backbone, experiment.image_px)
    given_schedules(experiment, backbone)
    check_head(experiment.task, backbone, experiment.prompt)
    tracking = Tracking.open(here)
    if here != results and tracking.uri.startswith("sqlite"):
        print(f"MLflow: {here / 'mlflow.db'}, since no database can lie in {results}; or set MLFLOW_TRACKING_URI")
    log_event("tracking", {"command": tracking.ui_command})
    cluster.connect(logs=here / LOGS)
    cluster.handle_preemption()
    dataset = load_dataset(experiment, results)
    check_training_set(experiment.task, dataset.questions)
    if dataset.missing:
        names = ", ".join(dataset.missing[:10]) + (" ..." if len(dataset.missing) > 10 else "")
        print(f"missing: {len(dataset.missing)} annotated videos are not in the folder and are left out: {names}")
    experiment = with_precision(experiment, store, backbone)
    write_text(results / "config.yaml", experiment.to_yaml())
    embedding = EmbedContext(experiment.backbone, store, experiment.embed, experiment.image_px)
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


def load_dataset(experiment: Experiment, results: StorePath) -> Dataset:
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
        assert experiment.annotations is not None, "check_folders has run"
        return ANNOTATED[experiment.dataset](experiment.videos, experiment.annotations, splits=splits)
    print(f"splits: {splitting.how}", flush=True)
    rows = ((clip.clip_id, clip.split, clip.path) for clip in splitting.clips)
    write_csv(results / "splits.csv", ("clip", "split", "path"), rows)
    return dataset
