"""Both notebooks run from top to bottom, draw what they promise, and lie in git without outputs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ONE_CLIP, PARETO = (ROOT / "notebooks" / name for name in ("1_one_clip.ipynb", "2_pareto.ipynb"))

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Output = dict[str, Any]


def run(notebook: Path, results: Path) -> list[Output]:
    """Execute a copy against a results folder; return the outputs of all cells up to the first error."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    hidden = ("MLFLOW_TRACKING_URI", "MPLBACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["DEJAVU_RESULTS_FOLDER"] = str(results)
    # The project need not be installed where its tests run.
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT / "platform"), str(ROOT)))
    copy = nbformat.read(notebook, as_version=4)
    client = NotebookClient(copy, timeout=900, resources={"metadata": {"path": str(notebook.parent)}})
    with contextlib.suppress(CellExecutionError):  # the error is the last output
        client.execute(env=environment)
    return [output for cell in copy.cells for output in cell.get("outputs", ())]


def errors(outputs: list[Output]) -> list[str]:
    return [f"{output['ename']}: {output['evalue']}" for output in outputs if output["output_type"] == "error"]


def num_figures(outputs: list[Output]) -> int:
    """Count pictures that are not empty."""
    return sum(len(output.get("data", {}).get("image/png", "")) > 10_000 for output in outputs)


def text(outputs: list[Output]) -> str:
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def tables(outputs: list[Output]) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in outputs)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_in_git(notebook: Path) -> None:
    staged = subprocess.run(
        ["git", "show", f":{notebook.relative_to(ROOT).as_posix()}"], cwd=ROOT, capture_output=True, check=False
    )
    # Not in a checkout: what lies here is what was shipped.
    source = staged.stdout if staged.returncode == 0 else notebook.read_bytes()
    cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)
    assert {cell["execution_count"] for cell in cells} == {None}


@pytest.mark.slow
def test_one_clip_draws_its_own_where_nothing_has_run(tmp_path: Path) -> None:
    outputs = run(ONE_CLIP, tmp_path / "none")
    assert errors(outputs) == []
    assert num_figures(outputs) == 3
    assert re.match(r"\d+ frames of 128 px, 8 x 8 patches, coded as IBBBP", text(outputs))
    assert all(name in tables(outputs) for name in ("Original", "Eventful", "CMC", "ReuseViT"))
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_pareto_says_what_to_run_where_nothing_has_run(tmp_path: Path) -> None:
    (problem,) = errors(run(PARETO, tmp_path))
    assert problem.startswith("SystemExit: ")
    assert "run `make pipeline`" in problem
    assert "\n" not in problem
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.ray
def test_one_clip_takes_a_clip_of_a_run(tiny_results: Path) -> None:
    outputs = run(ONE_CLIP, tiny_results)
    assert errors(outputs) == []
    assert num_figures(outputs) == 3


@pytest.mark.slow
@pytest.mark.ray
def test_pareto_shows_every_setting_of_a_run(tiny_results: Path) -> None:
    outputs = run(PARETO, tiny_results)
    assert errors(outputs) == []
    assert num_figures(outputs) == 2
    num_settings = len((tiny_results / "pareto.csv").read_text().splitlines()) - 1
    assert f"{num_settings} settings; MLflow and pareto.csv agree" in text(outputs)
    assert tables(outputs).count("<tr>") >= num_settings
