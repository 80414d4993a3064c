"""The state machine of streams: what comes next, in the order that frame_order.py lays down as data."""

from __future__ import annotations

import pytest
import torch

from reuse_models.reusevit.frame_order import GROUPS, schedule
from reuse_models.reusevit.scheduler import HeldFrame, Scheduler, StreamState, Turn


def hold(state: StreamState, num_frames: int = 0, *, ended: bool = False) -> StreamState:
    state.held += [HeldFrame(torch.empty(0), torch.empty(0))] * num_frames
    state.ended = ended
    return state


def run(scheduler: Scheduler, states: list[StreamState]) -> list[list[tuple[int, bool]]]:
    """Take turns until all wait; return each stream's frames in computing order, and which were dense."""
    computed: list[list[tuple[int, bool]]] = [[] for _ in states]
    while turns := scheduler.schedule(states, range(len(states))):
        for turn in turns:
            for stream, size in zip(turn.streams, turn.sizes, strict=True):
                first = states[stream].next_frame
                offsets = [0] if turn.is_dense else [step.frame for step in GROUPS[size]]
                computed[stream] += [(first + offset, turn.is_dense) for offset in offsets]
            scheduler.done(states, turn)
    return computed


@pytest.mark.parametrize("refresh", [None, 1, 3, 4, 6])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 8, 13])
def test_frames_are_computed_in_the_order_that_is_laid_down(num_frames: int, refresh: int | None) -> None:
    state = hold(StreamState(), num_frames, ended=True)
    (computed,) = run(Scheduler(refresh), [state])
    assert computed == [(step.frame, not step.candidates) for step in schedule(num_frames, refresh)]
    assert (state.held, state.next_frame) == ([], num_frames)


def test_a_group_waits_until_it_is_full_or_its_stream_has_ended() -> None:
    scheduler, state = Scheduler(None), hold(StreamState(), 4)
    assert run(scheduler, [state]) == [[(0, True)]]
    assert len(state.held) == 3
    assert run(scheduler, [hold(state, 1)]) == [[(4, False), (2, False), (1, False), (3, False)]]
    assert run(scheduler, [hold(state, 2)]) == [[]]
    assert run(scheduler, [hold(state, ended=True)]) == [[(6, False), (5, False)]]


def test_streams_of_which_the_same_comes_next_go_together_and_dense_frames_first() -> None:
    states = [
        hold(StreamState(left_in_gop=None), 4),
        hold(StreamState(), 1),
        hold(StreamState(left_in_gop=None), 2, ended=True),
        hold(StreamState(left_in_gop=None), 1),
    ]
    scheduler = Scheduler(None)
    (dense,) = scheduler.schedule(states, range(4))
    assert dense == Turn((1,), (1,), is_dense=True)
    scheduler.done(states, dense)
    assert scheduler.schedule(states, range(4)) == [Turn((0, 2), (4, 2), is_dense=False)]
    one_size = Scheduler(None, one_size=True)
    assert one_size.schedule(states, range(4)) == [Turn((0,), (4,), is_dense=False), Turn((2,), (2,), is_dense=False)]


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("already", [0, 1, 5])
def test_frames_that_wait_for_their_group_are_not_ready(already: int, *, ended: bool) -> None:
    scheduler = Scheduler(None)
    for num_frames in range(10):
        state = hold(StreamState(), already)
        run(scheduler, [state])
        ready = scheduler.num_ready(hold(state, num_frames, ended=ended))
        (computed,) = run(scheduler, [state])
        assert ready == len(computed)


def test_a_copy_goes_on_by_itself() -> None:
    state = hold(StreamState(), 1)
    other = state.copy()
    Scheduler(None).done([other], Turn((0,), (1,), is_dense=True))
    assert (len(state.held), state.next_frame, other.held, other.next_frame) == (1, 0, [], 1)
