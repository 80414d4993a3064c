"""MLflow: one parent run for a run of the pipeline, one child for each method setting (mlflow is used only here)."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from dejavu.storage.one_line import OneLineError
from dejavu.storage.results_folder import enter_again
from dejavu.storage.store import local_copy
from dejavu.storage.store_path import StorePath

EXPERIMENT = "dejavu"
METRICS_PER_CALL = 500
"""MLflow takes up to 1000 at once."""
RETRIES_VARIABLE = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
RETRIES_AT_START = 2
"""A server that is not there is said to be so within seconds."""
RETRIES_LATER = 6
"""MLflow waits 2, 4, 8 ... s between them: a server that is away for two minutes costs the run nothing else."""
LOCK_TIMEOUT_S = 120
"""To make a database takes seconds; on a very busy machine, a minute."""
UI_PORT = 5000
GO_ON = "start it and run the same command again: only what is not logged is done again"


class TrackingError(OneLineError):
    """The tracking server cannot be used; one line says which and why."""


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where runs are logged."""

    uri: str
    experiment_id: str

    @staticmethod
    def open(folder: Path) -> Tracking:
        """Connect, and create database and experiment before anything runs at the same time as this.

        `MLFLOW_TRACKING_URI` is honoured; else a sqlite file in this folder is used, which is made.

        Raises:
            TrackingError: The server does not answer.
        """
        # Both are read when mlflow is imported, which takes seconds: so it is imported here, not above.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # MLflow prints the address of each run that ends, with the password that may stand in it.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow import MlflowClient  # noqa: PLC0415

        uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(folder.resolve() / "mlflow.db")
        if uri.startswith("sqlite"):
            folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, uri), _answering(uri, RETRIES_AT_START, "start it or unset MLFLOW_TRACKING_URI"):
            client = MlflowClient(uri)
            known = client.get_experiment_by_name(EXPERIMENT)
            if known is not None:
                return Tracking(uri, known.experiment_id)
            location = (folder.resolve() / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
            return Tracking(uri, client.create_experiment(EXPERIMENT, artifact_location=location))

    def log(self, parent: Run, children: Sequence[Run]) -> str:
        """Log one parent run and its children, each finished; return the parent's id.

        Raises:
            TrackingError: The server does not answer for minutes.
        """
        with self._client() as client:
            parent_id = self._log(client, parent, {})
            for child in children:
                self._log(client, child, {"mlflow.parentRunId": parent_id})
        return parent_id

    def begin(self, run: Run) -> str:
        """Open a run whose numbers come while it goes on; `log` with its id as `open_id` ends it. Return the id.

        Raises:
            TrackingError: The server does not answer for minutes.
        """
        with self._client() as client:
            created = client.create_run(self.experiment_id, run_name=run.name, tags=dict(run.tags))
            return str(created.info.run_id)

    def add(self, run_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add one step's numbers to an open run.

        Raises:
            TrackingError: The server does not answer for minutes.
        """
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        with self._client() as client:
            client.log_batch(run_id, metrics=[Metric(name, float(value), now, step) for name, value in metrics.items()])

    @contextmanager
    def _client(self) -> Iterator[Any]:
        """Yield what talks to the server, for minutes if it has to."""
        from mlflow import MlflowClient  # noqa: PLC0415

        with _answering(self.uri, RETRIES_LATER, GO_ON):
            yield MlflowClient(self.uri)

    def _log(self, client: Any, run: Run, tags: Mapping[str, str]) -> str:
        from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415

        if run.open_id is None:
            opened = client.create_run(self.experiment_id, run_name=run.name, tags={**run.tags, **tags})
        else:
            opened = client.get_run(run.open_id)
        run_id: str = opened.info.run_id
        now = int(time.time() * 1000)
        client.log_batch(
            run_id,
            metrics=[Metric(name, float(value), now, 0) for name, value in run.metrics.items() if value is not None],
            params=[Param(name, str(value)[:6000]) for name, value in run.params.items()],
            tags=[RunTag(name, value) for name, value in run.tags.items()],
        )
        points = [(name, step, value) for name, curve in run.curves.items() for step, value in curve]
        for start in range(0, len(points), METRICS_PER_CALL):
            some = points[start : start + METRICS_PER_CALL]
            client.log_batch(run_id, metrics=[Metric(name, float(value), now, step) for name, step, value in some])
        for path in run.artifacts:
            with local_copy(path) as here:
                client.log_artifact(run_id, str(here))
        if run.addon is not None:
            self._log_addon(run_id, run.addon)
        client.set_terminated(run_id)
        return run_id

    def _log_addon(self, run_id: str, addon: LoggedAddon) -> None:
        """Log weights and their shape as a model: `mlflow.pyfunc.load_model` runs it in another process."""
        import mlflow  # noqa: PLC0415

        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.uri)  # for the whole process, and by its environment for those it starts
        try:
            with warnings.catch_warnings(record=True) as said:
                # MLflow wants an example and type hints; the signature says what comes. For the hints it sets filters
                # of its own: hence the record.
                warnings.simplefilter("ignore", UserWarning)
                _log_model(run_id, addon)
            for one in said:
                if not issubclass(one.category, UserWarning):
                    warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        finally:
            mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None takes it back

    def save_view(self, view_id: str, value: str) -> None:
        """Keep a view of the runs in the experiment, and let the UI take it as one of models, not of agents.

        Raises:
            TrackingError: The server does not answer for minutes.
        """
        with self._client() as client:
            client.set_experiment_tag(self.experiment_id, "mlflow.experimentKind", "custom_model_development")
            client.set_experiment_tag(self.experiment_id, f"mlflow.sharedViewState.{view_id}", value)

    @property
    def ui_command(self) -> str:
        """What a person types to see the runs."""
        if self.uri.startswith("http"):
            return f"open {without_secrets(self.uri)}"
        if not self.uri.startswith("sqlite"):  # a database of the user's own: its URI may hold a password
            return f'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI" --port {UI_PORT}'
        # By its path, unless this environment is the activated one: a job's PATH is not that of a person's shell.
        beside = Path(sys.executable).with_name("mlflow")
        program = str(beside) if beside.is_file() and os.environ.get("VIRTUAL_ENV") != sys.prefix else "mlflow"
        return f"{shlex.quote(program)} ui --backend-store-uri {shlex.quote(self.uri)} --port {UI_PORT}"

    def view_path(self, view_id: str) -> str:
        """Return where the UI shows a saved view, below its address."""
        shown = f"viewStateShareKey={view_id}&compareRunsMode=CHART&workflowType=machine_learning"
        return f"/#/experiments/{self.experiment_id}/runs?{shown}"

    def view_url(self, view_id: str) -> str:
        """Return what a browser opens once the UI runs."""
        is_server = self.uri.startswith("http")
        address = without_secrets(self.uri).rstrip("/") if is_server else f"http://127.0.0.1:{UI_PORT}"
        return address + self.view_path(view_id)


@dataclass(frozen=True, slots=True)
class LoggedAddon:
    """ReuseViT's trained weights, and the backbone that they fit."""

    weights: StorePath
    """A .safetensors with its .json beside it."""
    backbone: str
    """As load_backbone takes it; likewise the size of frames."""
    image_px: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one MLflow run holds."""

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    """None is left out."""
    tags: Mapping[str, str]
    artifacts: tuple[StorePath, ...] = ()
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """Metrics over steps."""
    addon: LoggedAddon | None = None
    """Weights to log as a model."""
    open_id: str | None = None
    """A run begun before, which is ended with this; else it is a new one."""


@contextmanager
def _alone(folder: Path, uri: str) -> Iterator[None]:
    """Wait for other runs that make or bring up to date the sqlite file of this folder: two at once break it."""
    if not uri.startswith("sqlite"):
        yield
        return
    try:
        with FileLock(folder / ".mlflow.lock", timeout=LOCK_TIMEOUT_S):
            yield
    except Timeout as error:
        raise TrackingError(
            f"MLflow: got another run at work on the database in {folder} for {LOCK_TIMEOUT_S} s, expected it to end; "
            "end it, or choose another --results"
        ) from error


@contextmanager
def _answering(uri: str, retries: int, advice: str) -> Iterator[None]:
    """Ask a server that does not answer again, as often as this, unless the user's environment says how often."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    enter_again()
    given = os.environ.get(RETRIES_VARIABLE)
    os.environ[RETRIES_VARIABLE] = given or str(retries)  # read at each request
    try:
        yield
    except (MlflowException, OSError) as error:
        reason = without_secrets(str(error).splitlines()[0])[:200]
        raise TrackingError(
            f"MLflow: got no answer from {without_secrets(uri)} ({reason}), expected a tracking server; {advice}"
        ) from error
    finally:
        if given is None:
            os.environ.pop(RETRIES_VARIABLE, None)  # live curves are logged from a thread of their own


def sqlite_uri(path: Path) -> str:
    """Return an absolute path as the address of a database.

    `?` begins options there, and `%` a character's number; both are written as numbers. Of an address that begins with
    `sqlite:` MLflow makes the folder as it is written, numbers and all; with the driver's name it does not.
    """
    written = str(path).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}" if written == str(path) else f"sqlite+pysqlite:///{written}"


def without_secrets(text: str) -> str:
    """Return a text in which no URI carries a user and password."""
    return re.sub(r"://[^@/\s]+@", "://", text)


def _log_model(run_id: str, addon: LoggedAddon) -> None:
    import mlflow  # noqa: PLC0415
    from mlflow.models import ModelSignature  # noqa: PLC0415
    from mlflow.types import Schema, TensorSpec  # noqa: PLC0415

    float32 = np.dtype(np.float32)
    signature = ModelSignature(
        Schema([TensorSpec(float32, (-1, 3, -1, -1), "pixels"), TensorSpec(float32, (-1, 4, -1, -1), "codec")]),
        Schema([TensorSpec(float32, (-1, -1))]),
    )
    with (
        local_copy(addon.weights) as weights,
        local_copy(addon.weights.with_suffix(".json")) as shape,
        mlflow.start_run(run_id=run_id),
    ):
        mlflow.pyfunc.log_model(
            name="addon",
            python_model=str(Path(__file__).with_name("addon_model.py")),  # as code: nothing is pickled
            artifacts={"weights": str(weights), "shape": str(shape)},
            model_config={"backbone": addon.backbone, "image_px": addon.image_px},
            signature=signature,
            pip_requirements=["dejavu-platform"],
        )
