"""One fit on Ray Train, from its workers to its last checkpoint. Each checkpoint has a `progress.json`.

<store>/train/<name>/    Ray Train's checkpoints
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from dejavu.cluster.cluster import own_handlers
from dejavu.stages.train_task import TrainError
from dejavu.storage.store_path import StorePath, ray_storage


@dataclass(frozen=True, slots=True)
class FitRun:
    """A fit as Ray Train runs it."""

    name: str
    """A run of the same name goes on from its last checkpoint, with as many workers as there are now."""
    folder: StorePath
    """Of all fits."""
    num_workers: int
    """With a CPU each, or a GPU."""
    on_gpu: bool
    max_failures: int
    """Of workers, before it is given up."""


@contextlib.contextmanager
def run_fit(worker: Callable[[dict[str, Any]], None], told: dict[str, Any], fit: FitRun) -> Iterator[tuple[Path, Any]]:
    """Run a fit to its end; give its last checkpoint's folder, for as long as it is looked at, and its progress.

    Raises:
        TrainError: Workers failed too often, or the fit says itself that it broke.
        KeyboardInterrupt: Ctrl-C.
    """
    path, filesystem = ray_storage(fit.folder)
    trainer = TorchTrainer(
        worker,
        train_loop_config=told,
        scaling_config=ScalingConfig(
            num_workers=fit.num_workers,
            use_gpu=fit.on_gpu,
            resources_per_worker=None if fit.on_gpu else {"CPU": 1},
        ),
        run_config=RunConfig(
            name=fit.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=fit.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        with own_handlers():
            result = trainer.fit()
    except SystemExit:  # how Ray Train answers Ctrl-C, after it has ended its workers
        raise KeyboardInterrupt from None
    except TrainingFailedError as error:
        reason = str(error).strip().splitlines()[-1]
        raise TrainError(
            f"training: got workers that failed more than {fit.max_failures} times ({reason}), expected them to come "
            "back; run the same command again: it goes on from the last checkpoint"
        ) from error
    if result.checkpoint is None:
        raise TrainError(f"training: got no checkpoint ({result.error}), expected one; see Ray's log of the workers")
    with result.checkpoint.as_directory() as folder:
        progress = json.loads((Path(folder) / "progress.json").read_text(encoding="utf-8"))
        if broken := progress["broken"]:
            raise TrainError(f"{broken}; the last good checkpoint is {result.checkpoint.path}")
        yield Path(folder), progress


def quieten() -> None:
    """Leave out what Ray Train and stores' clients say of each checkpoint; called in workers."""
    by_file = [name for name in logging.root.manager.loggerDict if Path(train.__file__).parent in Path(name).parents]
    for name in ("ray.train", "botocore", "aiobotocore", *by_file):
        logging.getLogger(name).setLevel(logging.WARNING)
