"""Show a fit while it runs: its curves go to MLflow and TensorBoard epoch by epoch.

Workers write the curves so far to one file, replaced after each epoch; the driver looks at it and logs what is new, so
that no worker needs a tracking server and a worker that dies leaves nothing half logged. A run that was broken off is
opened again by the next one; no step is logged twice.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from dejavu.observability.looking import looking
from dejavu.observability.tracking import Run, Tracking, TrackingError
from dejavu.storage.store import filled, write_json
from dejavu.storage.store_path import StorePath, is_file, storage_errors

POLL_S = 1.0
NOTE = "live.json"
"""Beside an add-on: the open MLflow run, and the last step in it."""

Curve = Sequence[Mapping[str, float]]
"""Entries of one fit in order, each with its `step`."""
See = Callable[[Mapping[str, Curve]], None]
"""Called with the curves by name (a target, as text) whenever they have changed."""


@contextmanager
def following(path: StorePath, see: See) -> Iterator[None]:
    """Call `see` with what the file holds, whenever it changes, and once more at the end, from a thread."""
    seen = ""

    def look() -> None:
        nonlocal seen
        try:
            text = path.read_text(encoding="utf-8") if is_file(path) else seen
        except storage_errors():  # it is shown later, or not at all: the fit goes on
            return
        if text != seen:
            see(json.loads(text))
        seen = text

    with looking(look, POLL_S):
        yield


@dataclass
class LiveCurves:
    """Logs each fit's curves to a run of its own."""

    tracking: Tracking
    runs: Mapping[str, Run]
    """What each fit's run is called and made from, by the fit's name."""
    folders: Mapping[str, StorePath]
    """Where each fit's note lies."""
    events: StorePath
    """TensorBoard's folder; one run in it for each fit."""
    broken: str = ""
    """Why nothing more is logged; the fit itself goes on, and its end is logged as ever."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def see(self, curves: Mapping[str, Curve]) -> None:
        """Log what is not logged yet."""
        errors: tuple[type[BaseException], ...] = (TrackingError, *storage_errors())
        with self._lock:
            for name, curve in curves.items():
                if name not in self.runs or self.broken:
                    continue
                try:
                    self._log(name, curve)
                except errors as error:
                    self.broken = str(error)
                    print(f"live curves end here: {error}", flush=True)

    def _log(self, name: str, curve: Curve) -> None:
        from tensorboardX import SummaryWriter  # noqa: PLC0415  takes a second

        run_id, last_step = read_note(self.folders[name], self.tracking)
        new = [entry for entry in curve if entry["step"] > last_step]
        if not new:
            return
        run_id = run_id or self.tracking.begin(self.runs[name])
        events = self.events / self.runs[name].name.replace(" ", "-")
        # A file of its own each time, so that nothing stays open; its name must differ within a second too.
        suffix = f".{int(new[0]['step'])}"
        with filled(events) as folder, SummaryWriter(str(folder), filename_suffix=suffix) as writer:
            for entry in new:
                step = int(entry["step"])
                numbers = {key: value for key, value in entry.items() if key != "step"}
                self.tracking.add(run_id, step, numbers)
                for key, value in numbers.items():
                    writer.add_scalar(key, value, step)
        write_json(
            self.folders[name] / NOTE, {"uri": self.tracking.uri, "run_id": run_id, "last_step": new[-1]["step"]}
        )


def read_note(folder: StorePath, tracking: Tracking) -> tuple[str | None, float]:
    """Return the run that a fit's curves go to and the last step in it; None and -1 where there is none there."""
    note = folder / NOTE
    if not is_file(note):
        return None, -1.0
    found = json.loads(note.read_text(encoding="utf-8"))
    return (found["run_id"], found["last_step"]) if found["uri"] == tracking.uri else (None, -1.0)


def ending(run: Run, folder: StorePath, tracking: Tracking) -> Run:
    """Return a finished fit's run as what ends the open one: without the points that are in it."""
    run_id, last_step = read_note(folder, tracking)
    curves = {name: [point for point in curve if point[0] > last_step] for name, curve in run.curves.items()}
    return replace(run, open_id=run_id, curves=curves)
