"""From video files to a Pareto plot: `python jobs/pipeline.py [demo|folder|classes|nextqa|...] [--help]`.

One call per stage; what is in the store already is not done again. With `--status` it says how that run is doing.
"""

import _bootstrap  # noqa: F401  first: makes the packages importable

import sys

if __name__ == "__main__" and "--status" in sys.argv:  # answered before what takes seconds to import
    from dejavu.observability.status import tell
    from dejavu.storage.one_line import exit_status

    sys.exit(exit_status(lambda: tell(sys.argv[1:])))

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from dejavu.cluster.no_error import without_advice
from dejavu.experiment import parse
from dejavu.observability.status import end_status
from dejavu.pipeline.fits import fit_addons, fit_class_readers, fit_schedules, fit_token, train_head
from dejavu.pipeline.job import Job
from dejavu.pipeline.outcome import embed, measure, score
from dejavu.pipeline.settings import settings_of
from dejavu.pipeline.start import start
from dejavu.pipeline.videos import transcode
from dejavu.storage.one_line import line_of

STOPPED = "stopped: got SIGTERM or Ctrl-C before the end; run the same command again to go on: what is done is kept"


def run(job: Job) -> None:
    """Run the stages that were asked for, in their order."""
    experiment = job.experiment
    job.say(f"dataset {job.dataset.name}: {len(job.dataset.clips)} clips, {len(job.dataset.questions)} questions")
    transcode(job)
    if experiment.fits("reusevit"):
        fit_addons(job)
    if experiment.fits("diffrate"):
        fit_schedules(job)
    if experiment.fits("residualvit"):
        fit_token(job)
    if not job.runs("sweep", "embed", "measure", "score"):
        return
    job.head = train_head(job)
    job.readers = fit_class_readers(job)
    settings = [job.original, *settings_of(job)]
    if job.runs("embed"):
        embed(job, settings)
    timings = measure(job, settings) if job.runs("measure") else {}
    if job.runs("score"):
        score(job, settings, timings)


@contextmanager
def reported_end() -> Iterator[None]:
    """Tell how the run ends; say in one line what ends it early, and leave with that exit status."""
    try:
        yield
    except Exception as error:
        line = line_of(error)
        if line is None:
            raise
        end_status("failed", line)
        print(f"error: {line}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        end_status("stopped")
        print(STOPPED, file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGTERM)
    end_status("finished")


if __name__ == "__main__":
    with without_advice(), reported_end():
        run(start(parse(sys.argv[1:])))
