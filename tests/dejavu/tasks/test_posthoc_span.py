from __future__ import annotations

import pytest

from dejavu.tasks import posthoc_span as spans
from dejavu.tasks.posthoc_span import combined_span, gaussian_span, posthoc_span


def peak_at(frame: int, num_frames: int, **others: float) -> list[float]:
    weights = [0.0] * num_frames
    weights[frame] = 1.0
    for name, weight in others.items():
        weights[int(name.removeprefix("at_"))] = weight
    return weights


EVERY_SECOND = [float(frame) for frame in range(32)]


def test_a_gaussian_span_is_rounded_to_a_tenth_of_a_second() -> None:
    assert gaussian_span((0.1234, 0.5), 33.0) == (4.1, 16.5)


def test_a_lonely_peak_is_a_span_of_no_length() -> None:
    assert posthoc_span(peak_at(7, 32), EVERY_SECOND) == (7.0, 7.0)


def test_neighbours_above_the_faded_mean_join_the_peak() -> None:
    # mean = (1 + .9 + .9) / 32, so both pass even when faded by 1 / 1.3 at three seconds
    assert posthoc_span(peak_at(10, 32, at_7=0.9, at_13=0.9), EVERY_SECOND) == (7.0, 13.0)


def test_attention_fades_to_one_half_at_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    # scores 1, s, s of three frames at 0, 10 and 0: pass where s / 2 >= threshold * (1 + s) / 3
    monkeypatch.setattr(spans, "THRESHOLD", 0.5)
    just_passes = 0.5001
    assert posthoc_span([0.0, 1.0, just_passes], [0.0, 1.0, 11.0]) == (1.0, 11.0)
    assert posthoc_span([0.0, 1.0, just_passes - 0.001], [0.0, 1.0, 11.0]) == (1.0, 1.0)


def test_failing_frames_near_the_peak_are_stepped_over_and_far_ones_end_the_walk() -> None:
    assert posthoc_span(peak_at(2, 32, at_12=0.9), EVERY_SECOND) == (2.0, 12.0)  # ten seconds away, nine fail between
    assert posthoc_span(peak_at(2, 32, at_14=0.9), EVERY_SECOND) == (2.0, 2.0)  # the one at 13 failed, too far away


def test_the_first_frame_is_never_taken_and_the_last_may_be() -> None:
    assert posthoc_span(peak_at(3, 8, at_0=0.9, at_7=0.9), EVERY_SECOND[:8]) == (3.0, 7.0)
    assert posthoc_span(peak_at(0, 8), EVERY_SECOND[:8]) == (0.0, 0.0)  # unless it is the peak


def test_the_scale_of_attention_does_not_matter() -> None:
    weights = peak_at(10, 32, at_7=0.9, at_13=0.4)
    scaled = [3 + 0.01 * weight for weight in weights]
    assert posthoc_span(scaled, EVERY_SECOND) == posthoc_span(weights, EVERY_SECOND)


def test_flat_attention_gives_no_length() -> None:
    assert posthoc_span([0.5] * 4, EVERY_SECOND[:4]) == (0.0, 0.0)


@pytest.mark.parametrize(("attention", "times"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, float("nan")], [1.0, 2.0])])
def test_attention_that_fits_no_frames_is_refused(attention: list[float], times: list[float]) -> None:
    with pytest.raises(ValueError, match="attention: got"):
        posthoc_span(attention, times)


def test_combined_is_the_intersection_or_else_the_posthoc_span() -> None:
    assert combined_span((0.0, 10.0), (5.0, 20.0)) == (5.0, 10.0)
    assert combined_span((0.0, 5.0), (5.0, 20.0)) == (5.0, 5.0)
    assert combined_span((0.0, 4.9), (5.0, 20.0)) == (5.0, 20.0)
