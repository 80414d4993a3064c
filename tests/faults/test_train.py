"""A fit loses a worker, a machine and its driver; it goes on from its last checkpoint to the same metrics."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.soak, pytest.mark.ray, pytest.mark.slow]

NUM_STEPS = 3
SMALL = ("--train.warm-up.steps", "20", "--train.warm-up.num-clips", "8", "--train.calibration-clips", "0")
SMALL += ("--train.validation-windows", "8")
FIT = ("--stages", "transcode,train", "--sweep.methods", "reusevit", "--train.epochs", str(NUM_STEPS), *SMALL)
FIT += ("--train.patience", str(NUM_STEPS), "--train.max-steps", str(NUM_STEPS), "--train.fit.clips-per-step", "16")
FIT += ("--train.min-steps", "1")
"""One step an epoch, so that there is a checkpoint after each."""
NOISE = 0.05
"""Of the loss on validation clips: a fit that goes on draws other windows than one that was never broken off."""


@pytest.fixture(scope="module")
def fitted(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a fit that nobody disturbed."""
    results: Path = bench.results(tmp_path_factory.mktemp("fitted") / "results")
    bench.finish(bench.start(results, *FIT), results)
    return results


def fit(results: Path) -> Any:
    (note,) = (results / "store" / "addons").glob("*/fit.json")
    return json.loads(note.read_text())


def check(results: Path, undisturbed: Path) -> None:
    """Every epoch once, the same end, and the beginning not trained again."""
    ours, theirs = fit(results), fit(undisturbed)
    assert [entry["step"] for entry in ours["curve"]] == [entry["step"] for entry in theirs["curve"]]
    assert ours["curve"][-1]["val_loss"] == pytest.approx(theirs["curve"][-1]["val_loss"], abs=NOISE)
    assert ours["curve"][-1]["val_rate"] == pytest.approx(theirs["curve"][-1]["val_rate"], abs=NOISE)
    # Each line is there several times, as Ray forwards it; the process that wrote it is named.
    firsts = re.findall(rf"pid=(\d+)\).*step 1 of {NUM_STEPS}", (results / "driver.log").read_text())
    assert len(set(firsts)) == 1, "the first epoch was trained again"
    assert (results / "failures.csv").read_text() == "clip,stage,reason\n"


def has_come_far(results: Path) -> bool:
    """Whether Ray has noted a checkpoint: one that is written counts only then."""
    for note in (results / "store" / "train").glob("*/checkpoint_manager_snapshot.json"):
        with contextlib.suppress(ValueError):  # Ray is writing it
            return bool(json.loads(note.read_text())["latest_checkpoint_result"])
    return False


def test_a_fit_that_loses_a_worker_goes_on(bench: Any, fitted: Path, tmp_path: Path) -> None:
    results = bench.copy(fitted, tmp_path / "results", "addons", "train")
    driver = bench.start(results, *FIT)
    bench.wait(driver, results, lambda: has_come_far(results))
    bench.workers("RayTrainWorker")[0].kill()
    assert "[FailurePolicy] RETRY" in bench.finish(driver, results), "the kill came too late to show anything"
    check(results, fitted)


@pytest.fixture
def broken_off(bench: Any, fitted: Path, tmp_path: Path) -> Path:
    """The results folder of a fit that has lost a machine, and then its driver."""
    node = bench.add_node(num_cpus=1)
    results: Path = bench.copy(fitted, tmp_path / "results", "addons", "train")
    driver = bench.start(results, *FIT, "--train.num-workers", "3")
    bench.wait(driver, results, lambda: has_come_far(results))
    assert bench.workers("RayTrainWorker", node.pid), "no worker of the fit is on the machine"
    bench.kill_node(node)
    # Two CPUs are left for three workers: Ray waits for a machine that does not come, until somebody ends the driver.
    bench.wait(driver, results, lambda: not bench.workers("RayTrainWorker"))
    driver.kill()
    driver.wait()
    return results


def test_a_fit_without_its_machine_and_driver_goes_on_with_fewer_workers(
    bench: Any, fitted: Path, broken_off: Path
) -> None:
    bench.finish(bench.start(broken_off, *FIT), broken_off)
    check(broken_off, fitted)
