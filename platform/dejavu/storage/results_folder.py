"""Where a run writes, on which its status and a later run must agree, and the directory that a process works in."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from dejavu.storage.store import StoreError
from dejavu.storage.store_path import StorePath, is_file, store_path


def results_folder(recipe: str, given: StorePath | None) -> StorePath:
    """Return where this recipe's run writes: an absolute path, or an address in an object store.

    A submitted job runs in Ray's own copy of the project, which Ray deletes: it never writes there.

    Raises:
        StoreError: A submitted job was given a relative path, or none where there is no home.
        ValueError: DEJAVU_RESULTS is an address that cannot be used.
    """
    if given is not None:
        if not isinstance(given, Path):
            return given
        if in_submitted_job() and not given.is_absolute():
            raise StoreError(
                f"--results: got {given}, expected an absolute path in a submitted job, "
                "whose own directory is deleted; write it in full"
            )
        return given.absolute()
    if configured := os.environ.get("DEJAVU_RESULTS"):
        folder = store_path(configured)
        return (folder.expanduser().absolute() if isinstance(folder, Path) else folder) / recipe
    return _default_folder(recipe)


def local_folder(recipe: str, results: StorePath) -> Path:
    """Return where that lies which an object store cannot hold, such as a database: in the results folder if it can."""
    return results if isinstance(results, Path) else _default_folder(recipe)


def _default_folder(recipe: str) -> Path:
    if in_submitted_job():
        try:
            return Path.home() / "dejavu-results" / recipe
        except RuntimeError as error:
            raise StoreError(
                "--results: got none and no home, expected a folder to write to; give --results"
            ) from error
    return Path.cwd() / "results" / recipe


def read_config(results: StorePath) -> dict[str, Any]:
    """Return the configuration of a run's results folder; nothing where there is none."""
    path = results / "config.yaml"
    found = yaml.safe_load(path.read_text(encoding="utf-8")) if is_file(path) else None
    return found or {}


def in_submitted_job() -> bool:
    """Whether this driver runs inside `ray job submit`: its directory may then be Ray's own copy of the project."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def submitted_job() -> str | None:
    """Return Ray's name of the submitted job that this process is the driver of, None where it is not in one."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    name = (job.get("metadata") or {}).get("job_submission_id")
    return str(name) if name else None


def _here() -> Path | None:
    with suppress(FileNotFoundError):
        return Path.cwd()
    return None


HERE = _here()
"""When this was imported; None where it was gone just then."""


def enter_again() -> None:
    """Enter the working directory again where it was made anew: MLflow and Ray Tune ask where they are.

    Where several of Ray's nodes share a machine, each that begins to work unpacks a submitted job's directory again,
    under the feet of those that are in it.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        if HERE is not None:
            os.chdir(HERE)
