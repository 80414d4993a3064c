"""Choose the type that a tower embeds in: what dense and reuse are both faster in on the machines that do it.

Arithmetic of 16 bits is no sign of it (docs/performance.md has a processor that is slower in it). So it is measured,
once for a store, and kept there: what is embedded stays valid wherever a run goes on.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.cluster import cluster
from dejavu.embedding.batch import EmbedConfig, Precision
from dejavu.storage.store import Store, write_json
from dejavu.storage.store_path import is_file
from reuse_models.baselines.original import OriginalConfig
from reuse_models.method import Chunk, Method, MethodConfig
from reuse_models.reusevit.frame_order import GROUP_SIZE
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.vit import Vit

NOTE = "precision.json"
"""In the store."""
WORTH = 1.1
"""Times that bfloat16 must be faster, dense and with reuse, to be taken: it costs accuracy, if little."""
HOPELESS = 0.75
"""Where a first look says this or less, and takes longer than PASS_S, that is the answer: a large tower takes seconds a
frame."""
NUM_ROUNDS = 3
PASS_S = 1.0
"""About what dense takes over the frames that are measured: as many streams as are embedded at once where the tower is
small, since calls decide there how fast few streams are; one where a frame takes long."""
DENSE, REUSE = OriginalConfig(), ReuseVitConfig(forced_rate=0.8)


@dataclass(frozen=True, slots=True)
class Gains:
    """Time in float32 over time in bfloat16."""

    dense: float
    reuse: float | None
    """None where dense has decided."""

    @property
    def faster(self) -> Precision:
        """What to embed in."""
        return "bfloat16" if min(self.dense, self.reuse or 0.0) >= WORTH else "float32"


def choose_precision(config: EmbedConfig, store: Store, backbone: Backbone, gpus_per_worker: float | None) -> Precision:
    """Return the precision of a config; what `auto` comes to is measured where there is no note of it in the store.

    The driver must be connected to Ray, whose GPUs it is measured on where there are, or come, any.

    Raises:
        ClusterError: A GPU is asked for that the cluster does not have.
    """
    if config.precision != "auto":
        return config.precision
    note, key = store.root / NOTE, backbone.identity
    known: dict[str, Any] = json.loads(note.read_text(encoding="utf-8")) if is_file(note) else {}
    if key not in known:
        gains, hardware = _measure(backbone, config.streams, gpus_per_worker)
        known[key] = {"precision": gains.faster, **asdict(gains), "hardware": hardware}
        write_json(note, known)
    found: Precision = known[key]["precision"]
    return found


def _measure(backbone: Backbone, streams: int, gpus_per_worker: float | None) -> tuple[Gains, str]:
    """Measure on a GPU where encoders get one, else here: the processors of a cluster are taken to be alike."""
    num_gpus = cluster.gpus_per_actor(gpus_per_worker)
    if not num_gpus:
        return gains_of(backbone.vit, streams), cluster.cluster_hardware()
    gains = cluster.run_on_gpu(_gains_on_gpu, backbone.name, backbone.vit.shape.image_px, streams, num_gpus=num_gpus)
    return gains, cluster.cluster_hardware()


def _gains_on_gpu(name: str, image_px: int, streams: int) -> Gains:
    return gains_of(load_backbone(name, image_px, device="auto").vit, streams)


@torch.inference_mode()
def gains_of(vit: Vit, streams: int = 1) -> Gains:
    """Measure a float32 tower where it lies, in alternation; 1 where the hardware has no bfloat16 arithmetic.

    `streams` are embedded at once: as many are measured at most.
    """
    if not has_bfloat16(vit.position.device):
        return Gains(1.0, None)
    towers = vit, copy.deepcopy(vit).to(torch.bfloat16)
    # The second of two: the first one allocates.
    frame_s = [_seconds(DENSE.build(vit), _frames(vit, 1, 1)) for _ in range(2)][1]
    num_streams = max(1, min(streams, int(PASS_S / (frame_s * (1 + GROUP_SIZE)))))
    dense = _gain(DENSE, towers, 2, num_streams)
    return Gains(dense, None if dense < WORTH else _gain(REUSE, towers, 1 + GROUP_SIZE, num_streams))


def _gain(config: MethodConfig, towers: tuple[Vit, Vit], num_frames: int, num_streams: int) -> float:
    methods = [(config.build(vit), _frames(vit, num_frames, num_streams)) for vit in towers]
    single, half = (_seconds(method, chunk) for method, chunk in methods)
    if single + half > PASS_S and single / half <= HOPELESS:
        return single / half
    rounds = [[_seconds(method, chunk) for method, chunk in methods] for _ in range(NUM_ROUNDS)]
    return statistics.median(single / half for single, half in rounds)


def _frames(vit: Vit, num_frames: int, num_streams: int) -> Chunk:
    """Return the same frames of each stream: how they look does not matter, since reuse is forced."""
    side, patches = vit.shape.image_px, vit.shape.patches_per_side
    pixels = torch.rand(num_frames, 3, side, side, generator=torch.Generator().manual_seed(0)).to(vit.position)
    codec = torch.zeros(num_frames, 4, patches, patches, device=vit.position.device)
    return Chunk((pixels,) * num_streams, (codec,) * num_streams, (True,) * num_streams)


def _seconds(method: Method, chunk: Chunk) -> float:
    memory = method.start(chunk.num_streams)
    on_gpu = chunk.pixels[0].is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    method.encode(chunk, memory)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device does arithmetic in bfloat16; one that only takes it is several times slower in it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
