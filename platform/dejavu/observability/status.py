"""How a run is doing, told by its results folder alone: the driver keeps `status.json` there, anybody may read it.

The driver's events are folded into one small record, which a thread writes every few seconds whatever the driver is
waiting for. A record that is not finished and that nobody has written for a while is of a driver that died.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from dejavu.observability.events import add_handler, keep_log, log_event
from dejavu.storage.results_folder import results_folder, submitted_job
from dejavu.storage.store import write_json
from dejavu.storage.store_path import StorePath, is_file, storage_errors, store_path

FILE = "status.json"
PERIOD_S = 5.0
"""Between two writes."""
SILENT_S = 60.0
"""A driver that has not written for so long is dead: it may be busy, or its storage slow, but not for a minute."""
NUM_SHOWN = 5
"""Failures that are kept in the record; all of them are in failures.csv."""

State = Literal["running", "finished", "stopped", "failed", "died"]
"""`stopped` by a signal or Ctrl-C, `failed` with an error line; `died` is what a reader concludes."""


@dataclass(kw_only=True, slots=True)
class StageStatus:
    """How far one stage is, or was when it ended. Times are seconds since 1970."""

    name: str
    total: int
    """Units to be done in this run."""
    unit: str
    kept: int
    """Units that were in the store already."""
    started: float
    done: int = 0
    updated: float | None = None
    """When `done` was told."""
    ended: float | None = None

    def rate(self) -> float | None:
        """Units per second, None before anything is known."""
        seconds = (self.updated or self.started) - self.started
        return self.done / seconds if self.done and seconds > 0 else None

    def left_s(self) -> float | None:
        """Return the seconds that the rest will take at this rate, None where that is not known."""
        rate = self.rate()
        return (self.total - self.done) / rate if rate and self.ended is None else None


@dataclass(kw_only=True, slots=True)
class RunStatus:
    """One run of the pipeline. Times are seconds since 1970."""

    recipe: str
    host: str
    pid: int
    job: str | None
    """Ray's name of a submitted job."""
    logs: str
    """Folder of the log; each machine's own where results lie in an object store."""
    started: float
    updated: float
    """When the driver was last heard of."""
    state: State = "running"
    error: str = ""
    """First line of what ended a run that failed."""
    tracking: str = ""
    """The command that shows what is tracked."""
    num_failures: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    """The first few, as in the failures table."""
    stages: list[StageStatus] = field(default_factory=list)
    """As they began."""

    def judged(self, now: float) -> State:
        """Return the state, `died` where the driver cannot be alive any more."""
        if self.state != "running":
            return self.state
        gone = self.host == socket.gethostname() and not _is_alive(self.pid, self.started)
        return "died" if gone or now - self.updated > SILENT_S else "running"


def _is_alive(pid: int, since: float) -> bool:
    """Whether the process that had this number then still has it."""
    try:
        return psutil.Process(pid).create_time() <= since
    except psutil.NoSuchProcess:
        return False


def keep_status(results: StorePath, recipe: str, logs: Path) -> None:
    """Begin the record and the log of a run in this process, which is its driver."""
    keep_log(logs)
    add_handler(StatusFile(results, recipe, logs))
    log_event("run begins", {"recipe": recipe})


def end_status(state: State, error: str = "") -> None:
    """Tell how the run ended; nothing where none has begun."""
    log_event("run ends", {"state": state, "error": error.partition("\n")[0]})


def read_status(results: StorePath) -> RunStatus | None:
    """Return what the last run in a results folder told, None where none did.

    Raises:
        ValueError: The file is not one of ours.
    """
    path = results / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return RunStatus(**{**found, "stages": [StageStatus(**stage) for stage in found["stages"]]})
    except FileNotFoundError:
        return None
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: got no status of this version ({error}), expected what the pipeline writes; run it again"
        ) from error


class StatusFile(logging.Handler):
    """Folds the driver's events into `status.json`."""

    def __init__(self, results: StorePath, recipe: str, logs: Path) -> None:
        super().__init__()
        now = time.time()
        self.path = results / FILE
        self.status = RunStatus(
            recipe=recipe,
            host=socket.gethostname(),
            pid=os.getpid(),
            job=submitted_job(),
            logs=str(logs),
            started=now,
            updated=now,
        )
        for torn in results.glob(f".{FILE}.*.tmp") if isinstance(results, Path) else ():
            torn.unlink(missing_ok=True)  # of a driver that was killed while it wrote
        self.ended = threading.Event()
        self.writing = threading.Lock()
        self._write()
        threading.Thread(target=self._beat, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one event in; the last one is written at once."""
        fields: Mapping[str, Any] = record.__dict__["fields"]
        status = self.status
        match record.getMessage():
            case "stage begins":
                named = {name: fields[name] for name in ("total", "unit", "kept")}
                status.stages.append(StageStatus(name=fields["stage"], started=record.created, **named))
            case "progress":
                stage = self._under_way(fields["stage"])
                stage.done, stage.updated = fields["done"], record.created
            case "stage ends":
                self._under_way(fields["stage"]).ended = record.created
            case "clip failed":
                status.num_failures += 1
                if len(status.failures) < NUM_SHOWN:
                    status.failures.append({name: str(fields[name]) for name in ("clip_id", "stage", "reason")})
            case "tracking":
                status.tracking = fields["command"]
            case "run ends":
                status.state, status.error = fields["state"], fields["error"]
                self.close()

    def _under_way(self, name: str) -> StageStatus:
        """Return the stage of this name that has not ended, the last to begin where there are two."""
        return next(one for one in reversed(self.status.stages) if one.name == name and one.ended is None)

    def _beat(self) -> None:
        while not self.ended.wait(PERIOD_S):
            self._write()

    def _write(self) -> None:
        """Write the record; where storage is away, the next one will do."""
        with self.writing, suppress(*storage_errors()):
            self.status.updated = time.time()
            write_json(self.path, asdict(self.status))

    def close(self) -> None:
        """Write the record for the last time."""
        if not self.ended.is_set():
            self.ended.set()
            self._write()
        super().close()


# ------------------------------------------------------------------------------------------------------ for people
def tell(words: Sequence[str]) -> int:
    """Print how the run is doing whose command's words these are, or with `--json` its record.

    Returns:
        The exit status. 0: running or finished; 1: no run there; 3: stopped, failed or died.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--results")
    parser.add_argument("--json", action="store_true")
    options, _ = parser.parse_known_args(words)
    recipe = words[0] if words and not words[0].startswith("-") else "demo"
    now = time.time()
    results = results_folder(recipe, options.results and store_path(options.results))
    if (status := read_status(results)) is None:
        print(f"status: got no run in {results}, expected status.json there; check --results", file=sys.stderr)
        return 1
    state = status.judged(now)
    if options.json:
        print(json.dumps({**asdict(status), "state": state, "results": str(results)}, indent=2))
    else:
        print(describe(status, results, now))
    return 0 if state in ("running", "finished") else 3


def describe(status: RunStatus, results: StorePath, now: float) -> str:
    """Return what a person wants to know of a run."""
    state = status.judged(now)
    lines = [_headline(status, state, now), f"results    {results}"]
    job = f", job {status.job}" if status.job else ""
    lines.append(f"driver     {status.host}, process {status.pid}{job}, heard of {_span(now - status.updated)} ago")
    width = max((len(stage.name) for stage in status.stages), default=0)
    lines += [f"  {stage.name:{width}}  {_stage_line(stage, state, now)}" for stage in status.stages]
    lines.append(f"failures   {status.num_failures} in this run")
    lines += [f"  {one['clip_id']}  {one['stage']}  {one['reason']}" for one in status.failures]
    for name, file in (("report", "report.html"), ("plot", "pareto.png"), ("table", "pareto.csv")):
        if is_file(results / file):
            lines.append(f"{name:10} {results / file}")
    lines.append(f"log        {status.logs}")
    if status.tracking:
        lines.append(f"MLflow UI  {status.tracking}")
    return "\n".join(lines)


def _headline(status: RunStatus, state: State, now: float) -> str:
    who, since = status.recipe, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.started))
    took = _span(status.updated - status.started)
    match state:
        case "running":
            return f"{who}: running since {since}, {_span(now - status.started)}"
        case "finished":
            return f"{who}: finished, after {took} (began {since})"
        case "failed":
            return f"{who}: failed after {took} (began {since}): {status.error}"
        case "stopped":
            return f"{who}: stopped after {took} (began {since}); run the same command again to go on"
        case "died":
            return f"{who}: died after {took} (began {since}) without a word; run the same command again to go on"


def _stage_line(stage: StageStatus, state: State, now: float) -> str:
    kept = f" ({stage.kept} were there)" if stage.kept else ""
    line = f"{stage.kept + stage.done} of {stage.kept + stage.total} {stage.unit}{kept}"
    if stage.ended is not None:
        line += f", {_span(stage.ended - stage.started)}"
    elif state == "running":
        line += f", for {_span(now - stage.started)}"
    else:
        line += ", not ended"
    if rate := stage.rate():
        line += f", {rate:.3g} {stage.unit}/s"
    left_s = stage.left_s()
    return line + (f", about {_span(left_s)} left" if left_s is not None and state == "running" else "")


def _span(seconds: float) -> str:
    """Return a time as a person says it: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
