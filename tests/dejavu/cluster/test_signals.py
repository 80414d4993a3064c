from __future__ import annotations

import signal
import weakref

import pytest
from ray.train.torch import TorchTrainer
from ray.tune.tune import _setup_signal_catching

from dejavu.cluster.cluster import TAKEN, own_handlers


class Controller:
    """Stands for the actor that Ray Train's handler of Ctrl-C would end."""


@pytest.mark.parametrize("library", ["tune", "train"])
def test_ctrl_c_is_ours_again_and_nothing_of_theirs_stays(library: str) -> None:
    before = [signal.getsignal(number) for number in TAKEN]
    controller = Controller()
    gone = weakref.ref(controller)
    with own_handlers():
        if library == "tune":
            _setup_signal_catching()
        else:
            TorchTrainer._register_sigint_handler(None, controller)  # type: ignore[arg-type]
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in TAKEN] == before
    del controller
    assert gone() is None
