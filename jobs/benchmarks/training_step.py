"""Compare a training step with a plain implementation that keeps two towers: `python jobs/benchmarks/training_step.py`.

The plain implementation follows the method in plain operations: a dense teacher beside the student in every step, and
every frame recorded for gradients. Both start from the same weights and alternate on the same batches. Time is the
median ratio over rounds; memory is each one's peak above what is resident before its first step, in its own process.
`--second-last-weight 1.5` includes the loss on hidden states. `--against compiled` compares ours with itself through
torch.compile, whose own time and memory are those of its first step.
"""

import _bootstrap_jobs  # noqa: F401  first: makes the packages importable

import copy
import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import tyro
from apart import forget_peak, report_of, status_bytes
from drawn_windows import make_batch
from torch import Tensor

from reuse_models.reusevit.frame_order import PUBLISHED_PATTERN
from reuse_models.reusevit.gate import Features, Gate
from reuse_models.training.loss import Loss, LossConfig, Teacher, reuse_loss
from reuse_models.reusevit.engines.masked import MaskedOutput
from reuse_models.reusevit.addon import Restoration
from reuse_models.reusevit.addon import ReusePolicy
from reuse_models.training.fit import Batch, Fit, FitConfig
from reuse_models.tower.vit import Vit
from reuse_models.tower.known_shapes import KNOWN_SHAPES

Side = Literal["ours", "plain", "compiled"]
MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured."""

    backbone: str = "openai/clip-vit-base-patch16"
    """Name of a backbone of known shape; its weights are random."""
    clips: int = 1
    """Number of windows per step."""
    rounds: int = 5
    """Number of pairs of steps that count, after one that does not."""
    second_last_weight: float = 0.0
    """Weight of the second-to-last layer's hidden states in the loss."""
    against: Literal["plain", "compiled"] = "plain"
    """What ours is compared with: the plain implementation, or ours through torch.compile."""
    memory_of: Annotated[
        Side | None, tyro.conf.arg(help="Side to measure alone, in this process: its memory and processor time.")
    ] = None


def main(options: Options) -> None:
    """Print the table, or one side's memory as JSON."""
    if options.memory_of:
        print(json.dumps(cost_alone(options)))
        return
    sides: tuple[Side, Side] = ("ours", options.against)
    alone = {side: report_of("training_step", f"cost_alone(b.{replace(options, memory_of=side)!r})") for side in sides}
    fits = {side: make_fit(options, side) for side in sides}
    batch = make_batch(KNOWN_SHAPES[options.backbone], options.clips)
    times: dict[Side, list[float]] = {side: [] for side in sides}
    for _ in range(options.rounds + 1):
        for side in sides:
            times[side].append(step_s(fits[side], batch))
    ratios = sorted(ours / other for ours, other in zip(times["ours"][1:], times[options.against][1:], strict=True))
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options}")
    for side in sides:
        seconds, cost = statistics.median(times[side][1:]), alone[side]
        print(
            f"{side:8} {seconds:7.3f} s a step, the first {times[side][0]:.3f} s, alone {cost['cpu_s']:.2f} s of "
            f"processor, {cost['mib']:.0f} MiB"
        )
    print(
        f"time     {statistics.median(ratios):7.3f} x the {options.against} one's ({ratios[0]:.3f}..{ratios[-1]:.3f} "
        f"over {options.rounds} rounds)\nmemory   {alone['ours']['mib'] / alone[options.against]['mib']:7.3f} x"
    )


class PlainFit(Fit):
    """A fit whose step is the method in plain operations, with a dense tower of its own as teacher."""

    def __init__(self, vit: Vit, loss: LossConfig, config: FitConfig) -> None:
        super().__init__(vit, loss, config)
        self.teacher = copy.deepcopy(vit)

    def forward(self, batch: Batch, gate: Gate) -> tuple[Loss, Tensor]:
        """Return the loss, and [b], the rate at each boundary."""
        teacher = dense_teacher(self.teacher, batch.pixels_CF3HW)
        codec_XPP = self.addon.codec_net(batch.codec_CF4TPP.flatten(0, 1))
        codec_CFA = codec_XPP.unflatten(0, batch.codec_CF4TPP.shape[:2]).flatten(2)
        policy = ReusePolicy(self.addon, gate)
        output = plain_forward(self.vit, policy, batch.pixels_CF3HW, codec_CFA)
        return reuse_loss(output, teacher, self.loss), output.reuse_CFbN[:, -3:].detach().mean(dim=(0, 1, 3))


@torch.no_grad()
def dense_teacher(vit: Vit, pixels_CF3HW: Tensor) -> Teacher:
    """Run the dense tower: embeddings, and the second-to-last layer's hidden states."""
    h_XND = vit.embed(pixels_CF3HW.flatten(0, 1))
    for layer in range(vit.shape.num_layers - 1):
        h_XND = vit.run_layer(layer, h_XND)
    frames = pixels_CF3HW.shape[:2]
    return Teacher(vit.finish_from_input(h_XND).unflatten(0, frames), h_XND.unflatten(0, frames))


States = tuple[Tensor, Tensor]
"""h, and q, k, v side by side."""


@dataclass(frozen=True, slots=True)
class Left:
    """What a frame leaves at a boundary, patches alone."""

    pre_proj_CAD: Tensor
    used: States
    remembered: States


def plain_forward(vit: Vit, policy: ReusePolicy, pixels_CF3HW: Tensor, codec_CFA: Tensor) -> MaskedOutput:
    """Compute every token of every frame, and mix as the method says; autograd keeps what it likes."""
    num_clips, num_frames = pixels_CF3HW.shape[:2]
    h_XND = vit.embed(pixels_CF3HW.flatten(0, 1))
    qkv_XNC = vit.qkv(0, h_XND)
    rates = []
    for boundary in range(vit.shape.num_layers - 1):
        q_XhNd, k_XhNd, v_XhNd = vit.split_heads(qkv_XNC)
        attention_XhNN = (q_XhNd[:, :, :1] * vit.shape.head_dim**-0.5 @ k_XhNd.mT).softmax(-1)
        pre_proj_XND = vit.attend(q_XhNd, k_XhNd, v_XhNd)
        h_XND = vit.close(boundary, h_XND, pre_proj_XND)
        second_last_XND = h_XND
        computed = (pre_proj_XND, attention_XhNN.sum((1, 2)), h_XND, vit.qkv(boundary + 1, h_XND))
        per_frame = [x.unflatten(0, (num_clips, num_frames)) for x in computed]
        used, g_CFA = plain_mix(policy, boundary, per_frame, codec_CFA)
        h_XND, qkv_XNC = (torch.stack(frames, dim=1).flatten(0, 1) for frames in zip(*used, strict=True))
        rates.append(F.pad(g_CFA, (1, 0)))
    embeddings_XE = vit.finish(qkv_XNC, h_XND)
    shape = (num_clips, num_frames)
    return MaskedOutput(
        embeddings_XE.unflatten(0, shape), torch.stack(rates, dim=2), second_last_XND.unflatten(0, shape), None
    )


def plain_mix(
    policy: ReusePolicy, boundary: int, per_frame: Sequence[Tensor], codec_CFA: Tensor
) -> tuple[list[States], Tensor]:
    """Return what the next layer works with, frame by frame, and g_CFA."""
    pre_proj_CFND, importance_CFN, h_CFND, qkv_CFNC = per_frame
    left: dict[int, Left] = {}
    used, gates = [], []
    for index, step in enumerate(PUBLISHED_PATTERN):
        pre_proj_CAD = pre_proj_CFND[:, index, 1:]
        own = (h_CFND[:, index, 1:], qkv_CFNC[:, index, 1:])
        g_CA = torch.zeros_like(codec_CFA[:, index])
        mixed = Left(pre_proj_CAD, own, own)
        if step.candidates:
            similarity_CA, anchor_CAD, state = nearest(pre_proj_CAD, [left[one] for one in step.candidates])
            features = Features(importance_CFN[:, index, 1:], similarity_CA, codec_CFA[:, index], step.kind)
            g_CA = policy.gate(boundary, features)
            g_CA1 = g_CA[..., None]
            corrections = policy.addon.restoration(boundary)(pre_proj_CAD - anchor_CAD)
            restored = (state[0] + corrections[0], state[1] + corrections[1])
            mixed = Left(
                g_CA1 * anchor_CAD + (1 - g_CA1) * pre_proj_CAD,
                blend(g_CA1, restored, own),
                blend(g_CA1, state, own),
            )
        left[step.frame] = mixed
        gates.append(g_CA)
        whole = (h_CFND[:, index, :1], qkv_CFNC[:, index, :1])
        used.append((torch.cat([whole[0], mixed.used[0]], dim=1), torch.cat([whole[1], mixed.used[1]], dim=1)))
    return used, torch.stack(gates, dim=1)


def nearest(pre_proj_CAD: Tensor, candidates: Sequence[Left]) -> tuple[Tensor, Tensor, States]:
    """Return the largest cosine, and the pre_proj and the states it was found at."""
    found = [(F.cosine_similarity(pre_proj_CAD, one.pre_proj_CAD, dim=-1), one) for one in candidates]
    similarity_CA, first = found[0]
    anchor_CAD, state = first.pre_proj_CAD, first.remembered
    for cosine_CA, other in found[1:]:
        nearer_CA1 = (cosine_CA > similarity_CA)[..., None]
        similarity_CA = torch.where(nearer_CA1[..., 0], cosine_CA, similarity_CA)
        anchor_CAD = torch.where(nearer_CA1, other.pre_proj_CAD, anchor_CAD)
        h_CAD, qkv_CAC = other.remembered
        state = (torch.where(nearer_CA1, h_CAD, state[0]), torch.where(nearer_CA1, qkv_CAC, state[1]))
    return similarity_CA, anchor_CAD, state


def blend(g_CA1: Tensor, reused: States, computed: States) -> States:
    """Return g reused + (1 - g) computed."""
    return g_CA1 * reused[0] + (1 - g_CA1) * computed[0], g_CA1 * reused[1] + (1 - g_CA1) * computed[1]


def make_fit(options: Options, side: Side) -> Fit:
    """Build one side, its restoration not zero, so that every product has something to do."""
    vit = Vit.random(KNOWN_SHAPES[options.backbone])
    loss = LossConfig(target_rate=0.9, second_last_weight=options.second_last_weight)
    fit = (
        PlainFit(vit, loss, FitConfig())
        if side == "plain"
        else Fit(vit, loss, FitConfig(), compiled=side == "compiled")
    )
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for restoration in fit.addon.restorations:
            assert isinstance(restoration, Restoration)
            restoration.up_4DR.normal_(0.0, 0.01)
    return fit


def step_s(fit: Fit, batch: Batch) -> float:
    """Return the seconds of one step: forward, backward, optimiser."""
    started = time.perf_counter()
    fit.step(batch)
    return time.perf_counter() - started


def cost_alone(options: Options) -> dict[str, float]:
    """Return how far two steps rise above what is resident before the first one, and the second's processor time.

    Processor time bears other work on the machine better than the clock does. Linux only.
    """
    assert options.memory_of is not None
    fit, batch = make_fit(options, options.memory_of), make_batch(KNOWN_SHAPES[options.backbone], options.clips)
    forget_peak()
    before = status_bytes("VmRSS")
    fit.step(batch)
    started_s = time.process_time()
    fit.step(batch)
    return {"mib": (status_bytes("VmHWM") - before) / MIB, "cpu_s": time.process_time() - started_s}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
