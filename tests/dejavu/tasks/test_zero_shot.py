import numpy as np
import pytest

from dejavu.tasks.zero_shot import span_around_peak, zero_shot

SECONDS = np.arange(8) * 0.5


def frames_like(weights: list[float]) -> np.ndarray:
    """Frames between `nothing` and answer 0, whose cosine with the answer is the weight."""
    weight = np.asarray(weights)
    return np.stack([weight, np.zeros_like(weight), np.sqrt(1 - weight**2)], axis=1)


ANSWERS = np.eye(3)[:2]


def test_the_answer_is_the_one_that_fits_some_frame_best() -> None:
    assert zero_shot(frames_like([0.1, 0.1, 0.9, 0.8, 0.1, 0.1, 0.1, 0.1]), SECONDS, ANSWERS)[0] == 0


@pytest.mark.parametrize(("peak", "answer"), [(0.7, 1), (0.74, 1), (0.79, 0)])
def test_what_fits_the_clip_at_any_time_says_less_than_what_stands_out(peak: float, answer: int) -> None:
    # Answer 0 has its peak less 0.4 of a median of 0.6; answer 1 has 0.52 over a median of 0.
    frames = np.zeros((5, 3))
    frames[:, 0], frames[2, :2] = 0.6, (peak, 0.52)
    frames[:, 2] = np.sqrt(1 - (frames**2).sum(axis=1))
    assert zero_shot(frames, SECONDS[:5], ANSWERS)[0] == answer


def test_the_span_is_the_frames_around_the_peak_and_half_a_period_more() -> None:
    # Level: 0.1 + 0.6 * 0.8 = 0.58. Frame 6 lies above it but apart.
    _, span_s = zero_shot(frames_like([0.1, 0.1, 0.9, 0.6, 0.1, 0.1, 0.7, 0.1]), SECONDS, ANSWERS)
    assert span_s == (0.75, 1.75)


def test_the_span_starts_no_earlier_than_the_clip() -> None:
    assert span_around_peak(np.asarray([0.9, 0.1, 0.1], np.float32), SECONDS[:3]) == (0.0, 0.25)


def test_one_frame_is_a_span_of_no_length() -> None:
    assert zero_shot(frames_like([0.5]), [2.0], ANSWERS) == (0, (2.0, 2.0))


def test_lengths_of_vectors_do_not_matter() -> None:
    frames = frames_like([0.1, 0.9, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert zero_shot(frames, SECONDS, ANSWERS) == zero_shot(frames * 7, SECONDS, ANSWERS * 3)


@pytest.mark.parametrize(("frames", "seconds"), [((0, 3), 0), ((4, 2), 4), ((4, 3), 3)])
def test_what_does_not_fit_is_refused(frames: tuple[int, int], seconds: int) -> None:
    with pytest.raises(ValueError, match=r"zero-shot: got frames .* expected \[F, E\]"):
        zero_shot(np.ones(frames), np.arange(seconds), ANSWERS)
