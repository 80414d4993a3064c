"""How many workers a fit takes and how many windows each runs at once, so that it fits before it begins.

Workers are as many as wanted where a machine's memory is for all that it may be given, else fewer; each then runs as
many windows at once as fit into its share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reuse_models.training.memory import GIB, TrainingMemory

USABLE_SHARE = 0.85
"""Of what a machine has for tasks: the driver, and what the system needs, take the rest. Ray has taken the share of the
object store off already."""
USABLE_GPU_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Machine:
    """Where workers may run."""

    slots: int
    """Workers that it may be given, by its CPUs or GPUs."""
    memory_bytes: int
    """For all of them; on GPUs that of one GPU for each."""


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What was chosen."""

    num_workers: int
    clips_at_once: int
    """Windows of a step."""
    validated_at_once: int
    """Windows."""
    calibrated_at_once: int
    """Clips."""
    peak_bytes: int
    """Of a worker, by formula."""

    def __str__(self) -> str:
        """Say it in one line."""
        workers = f"{self.num_workers} worker{'s' * (self.num_workers > 1)}"
        windows = f"{self.clips_at_once} window{'s' * (self.clips_at_once > 1)}"
        return f"{workers}, {windows} at once, at most {self.peak_bytes / GIB:.1f} GiB each"


def plan_fit(
    memory_for: Callable[[int], TrainingMemory],
    machines: Sequence[Machine],
    wanted: int,
    given: int | None = None,
    *,
    refuses: bool = True,
) -> FitPlan:
    """Choose the number of workers and of windows at once.

    Args:
        memory_for: Given the number of workers, what one takes.
        machines: All that may be given workers.
        wanted: Workers at most, 1 or more.
        given: Windows at once; as many as fit unless given.
        refuses: Whether what does not fit is refused; else one worker takes it: other machines may come up for it.

    Raises:
        ValueError: Not even one worker fits; one line says what it takes, what there is and what to lower.
    """
    for num_workers in range(wanted, 0, -1):
        memory = memory_for(num_workers)
        limit = _limit_bytes(machines, num_workers, memory.on_gpu)
        clips = memory.clips_at_once(limit)
        if given is not None:
            clips = min(given, memory.clips_per_step)
            clips *= memory.peak_bytes(clips) <= limit
        if clips:
            return _plan(num_workers, memory, clips)
    clips = min(given or 1, memory.clips_per_step)
    if not refuses:
        return _plan(1, memory, clips)
    where = "GPU" if memory.on_gpu else "machine"
    raise ValueError(
        f"training's memory: got {limit / GIB:.1f} GiB for a worker on the smallest {where}, expected "
        f"{memory.peak_bytes(clips) / GIB:.1f} GiB for {clips} window{'s' * (clips > 1)} of this backbone at once; "
        f"{_advice(memory, clips)}"
    )


def _plan(num_workers: int, memory: TrainingMemory, clips: int) -> FitPlan:
    beside = memory.validated_at_once(clips), memory.calibrated_at_once(clips)
    return FitPlan(num_workers, clips, *beside, memory.peak_bytes(clips))


def _limit_bytes(machines: Sequence[Machine], num_workers: int, on_gpu: bool) -> int:
    """Return what each worker may take wherever it is put: all of them may be put on one machine that has the slots."""
    if on_gpu:
        return int(USABLE_GPU_SHARE * min(machine.memory_bytes for machine in machines))
    shares = [machine.memory_bytes / max(1, min(num_workers, machine.slots)) for machine in machines]
    return int(USABLE_SHARE * min(shares))


def _advice(memory: TrainingMemory, clips: int) -> str:
    """Name what takes the most and can be lowered."""
    phases = {
        "--train.windows-at-once" if clips > 1 else "": memory.step_bytes(clips),
        "--train.warm-up.num-clips or --train.warm-up.num-pairs": memory.warm_up_bytes(clips),
        "--embed.segment-frames": memory.calibration_bytes,
        "the number of --train.targets": memory.addons_bytes,
    }
    most = max(phases, key=lambda name: phases[name])
    other = "choose a smaller backbone or a machine with more memory"
    return f"lower {most}, or {other}" if most else other
