"""Test clips: embed, measure, score, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dejavu.cluster import cluster
from dejavu.embedding.memory import shrink_to_memory
from dejavu.observability.events import Work, stage_span
from dejavu.pipeline.job import Job, tags
from dejavu.report.page import RunFacts
from dejavu.report.pareto_view import VIEW_ID
from dejavu.stages.embed import embed_clips
from dejavu.stages.frontier import Evidence, Journal, draw_frontier, gather_points, log_frontier
from dejavu.stages.measure import Timing, measure_settings
from dejavu.stages.report import Scored, write_page
from dejavu.stages.score import SettingScore, score_settings, write_task_scores
from dejavu.storage.setting import Setting


def embed(job: Job, settings: Sequence[Setting]) -> None:
    """Embed the test clips under all settings."""
    pool = cluster.actor_pool(job.experiment.num_workers, job.experiment.gpus_per_worker)
    embedding, pool = shrink_to_memory(job.backbone, settings, job.embedding, pool)
    embedded = embed_clips(job.of_split("test"), settings, embedding, pool, "test")
    job.say(f"embedded {embedded.num_clips} clips under {len(settings)} settings")
    job.check()


def measure(job: Job, settings: Sequence[Setting]) -> Mapping[str, Timing]:
    """Time all settings on some test clips."""
    cluster.wait_for_nodes(job.experiment.gpus_per_worker)
    clips = job.of_split("test")
    timings, num_timed = measure_settings(settings, job.original, clips, job.embedding, job.experiment.measure)
    job.say(f"timed {num_timed} settings")
    return timings


def score(job: Job, settings: Sequence[Setting], timings: Mapping[str, Timing]) -> None:
    """Score all settings on the test clips, and write plot, tables, report and MLflow's runs."""
    experiment = job.experiment
    eval_set = job.eval_set("test", job.of_split("test"))
    with stage_span(Work(stage="score", total=len(settings), unit="settings")) as so_far:
        scores = score_settings(settings, job.original, eval_set, job.embedding)
        so_far(len(scores))
    write_task_scores(job.results / "task_scores.csv", scores)
    evidence = Evidence(scores, timings, job.backbone.vit.shape, experiment.seed)
    points = gather_points(evidence)
    title = f"{job.dataset.name}, {scores[0].num_clips} test clips, {job.backbone.name}"
    loss = experiment.allowed_loss
    draw_frontier(points, job.results, title=title, published=experiment.recipe == "nextqa", max_loss=loss)
    page = write_page(Scored(points, evidence, eval_set, job.embedding), run_facts(job, scores[0]), job.results)
    log_frontier(points, Journal(job.tracking, tags(job), job.tried), job.results, loss)
    job.say(f"scored {len(points)} settings on {scores[0].num_clips} test clips")
    print(f"\nreport     {page}\nplot       {job.results / 'pareto.png'}\ntable      {job.results / 'pareto.csv'}")
    print(f"failures   {job.results / 'failures.csv'}\nMLflow UI  {job.tracking.ui_command}")
    print(f"           then {job.tracking.view_url(VIEW_ID)}", flush=True)


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
        num_streams=job.experiment.measure.num_clips or job.experiment.embed.streams,
        tags=tags(job),
        config_yaml=(job.results / "config.yaml").read_text(encoding="utf-8"),
        allowed_loss=job.experiment.allowed_loss,
    )
