from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dejavu.stages import run_fit as module
from dejavu.stages.run_fit import FitRun, run_fit


class Interrupted:
    """A trainer that was told Ctrl-C: Ray Train aborts the run and then ends the process."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def fit(self) -> None:
        sys.exit(1)


def test_ctrl_c_in_a_fit_is_ctrl_c(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And not a quiet end: the pipeline says in one line that it was stopped."""
    monkeypatch.setattr(module, "TorchTrainer", Interrupted)
    fit = FitRun(name="fit", folder=tmp_path, num_workers=1, on_gpu=False, max_failures=0)
    with pytest.raises(KeyboardInterrupt), run_fit(lambda _: None, {}, fit):
        pass
