"""The formula against what methods keep, and how streams and actors are fitted to machines."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.cluster.cluster import ClusterError, Pool
from dejavu.embedding import memory as stage
from dejavu.embedding.batch import EmbedConfig, EmbedContext
from dejavu.storage.setting import Setting, name_setting
from dejavu.storage.store import Store
from reuse_models.baselines.eventful_full import EventfulFullConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.method import MethodConfig
from reuse_models.reusevit.anchors import state_bytes_per_stream
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from tests.reuse_models.examples import example_configs

ROOT = Path(__file__).resolve().parents[3]
LARGE = KNOWN_SHAPES["openai/clip-vit-large-patch14"]
SMALL_14 = VitShape(
    image_px=224, patch_px=14, width=384, num_heads=6, num_layers=4, mlp_width=1536, embed_dim=384, has_cls=True
)
POOL = Pool(num_actors=8, cpus_per_actor=0.5, gpus_per_actor=0.0, cpus_per_reader=1.0)


def named(config: MethodConfig) -> Setting:
    return name_setting(config, "tower", {})


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone()


def test_every_method_keeps_what_is_counted_without_allocating_it() -> None:
    vit = Vit.random(SMALL_14)
    for name, config in example_configs(vit, [torch.rand(3, 3, 224, 224)]).items():
        kept = {x.untyped_storage().data_ptr(): x for x in stage._tensors(config.build(vit).start(1))}
        expected = sum(x.untyped_storage().nbytes() for x in kept.values())
        # Padding between rows of q, k, v is 16 of 1152 numbers.
        assert stage.state_bytes(SMALL_14, named(config)) == pytest.approx(expected, rel=0.02), name


def test_reusevits_state_is_its_own_formula() -> None:
    assert stage.state_bytes(LARGE, named(ReuseVitConfig())) == pytest.approx(state_bytes_per_stream(LARGE), rel=0.01)


def fit(backbone: Backbone, monkeypatch: pytest.MonkeyPatch, gib: tuple[float, ...], pool: Pool = POOL) -> tuple:
    with torch.device("meta"):
        large = replace(backbone, vit=Vit(LARGE))
    monkeypatch.setattr(stage, "memory_per_machine", lambda: [int(amount * 2**30) for amount in gib])
    monkeypatch.setattr(stage, "grows", lambda: False)
    settings = [named(OriginalConfig()), named(EventfulFullConfig(refreshed_tokens=16))]
    embedding, found = stage.shrink_to_memory(
        large, settings, EmbedContext("x", Store(Path("/tmp")), EmbedConfig()), pool
    )
    return embedding.config.streams, found.num_actors


def test_streams_and_then_actors_give_way(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit(backbone, monkeypatch, (200.0,)) == (8, 8)
    streams, actors = fit(backbone, monkeypatch, (36.0,))
    assert 1 < streams < 8
    assert actors == 8
    streams, actors = fit(backbone, monkeypatch, (12.0,))
    assert streams == 1
    assert 1 < actors < 8
    assert fit(backbone, monkeypatch, (12.0, 12.0))[1] in (8, 2 * actors)
    assert fit(backbone, monkeypatch, (200.0, 12.0)) == fit(backbone, monkeypatch, (12.0, 12.0))
    assert fit(backbone, monkeypatch, (1.0,), replace(POOL, gpus_per_actor=1.0)) == (8, 8)


def bound_of(backbone: Backbone, monkeypatch: pytest.MonkeyPatch, pool: Pool, *, grows: bool = False) -> float:
    monkeypatch.setattr(stage, "memory_per_machine", lambda: [20 * 2**30, 20 * 2**30])
    monkeypatch.setattr(stage, "grows", lambda: grows)
    context = EmbedContext("x", Store(Path("/tmp")), EmbedConfig())
    return stage.shrink_to_memory(backbone, [named(OriginalConfig())], context, pool)[1].store_bytes


def test_decoded_batches_are_bounded_by_who_takes_and_who_makes_them_on_cpus(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = EmbedConfig().batch_frames
    per_frame = 3 * backbone.frame_px**2 + 16 * backbone.vit.shape.num_patches + 8
    pool = replace(POOL, num_actors=4)
    assert bound_of(backbone, monkeypatch, pool) == 2 * (2 * 4 + 2) * frames * per_frame
    assert bound_of(backbone, monkeypatch, pool, grows=True) == math.inf
    assert bound_of(backbone, monkeypatch, replace(pool, gpus_per_actor=1.0)) == math.inf


@pytest.mark.parametrize(("usual_frames", "counted"), [(256.0, 256), (4096.0, 1024), (None, 1024)])
def test_batches_that_wait_are_bounded_by_what_they_usually_hold(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, usual_frames: float | None, counted: int
) -> None:
    monkeypatch.setattr(stage, "memory_per_machine", lambda: [20 * 2**30])
    monkeypatch.setattr(stage, "grows", lambda: False)
    context = EmbedContext("x", Store(Path("/tmp")), EmbedConfig(batch_frames=1024))
    found = stage.shrink_to_memory(backbone, [named(OriginalConfig())], context, POOL, usual_frames)[1]
    per_frame = 3 * backbone.frame_px**2 + 16 * backbone.vit.shape.num_patches + 8
    assert found.store_bytes == 2 * (2 * POOL.num_actors + 1) * counted * per_frame


def test_what_is_chosen_fits_and_one_more_does_not(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        vit = Vit(LARGE)
    settings = [named(EventfulFullConfig(refreshed_tokens=16))]
    needs = stage.actor_memory(vit, 256, settings, EmbedConfig())
    for gib in (20.0, 30.0, 40.0):
        streams, actors = fit(backbone, monkeypatch, (gib,))
        assert actors * needs.total(streams) + needs.reader <= gib * 2**30
        assert 8 * needs.total(streams + 1) + needs.reader > gib * 2**30


def test_a_machine_without_room_for_one_actor_is_refused(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=r"embed: got a machine of 2\.0 GiB, expected [34]\.\d GiB for one actor"):
        fit(backbone, monkeypatch, (64.0, 2.0))


ENCODE = """
import json, sys
sys.path[:0] = ["platform", ".", "jobs/benchmarks"]
import numpy as np, torch
from apart import forget_peak, status_bytes
from types import SimpleNamespace
from dejavu.backbones.preprocess import Preprocess
from dejavu.backbones.load import Backbone
from dejavu.embedding.encode import encode_batch
from dejavu.video.decode import DecodedFrames
from reuse_models.registry import config_from_dict
from reuse_models.tower.vit import Vit
from reuse_models.tower.shape import VitShape
torch.set_num_threads(1)
shape, streams = VitShape(**json.loads(sys.argv[1])), int(sys.argv[2])
vit = Vit.random(shape)
backbone = Backbone("x", "x", vit, Preprocess(shape.image_px), None, None)
px, rng = backbone.frame_px, np.random.default_rng(0)
forget_peak()
before = status_bytes("VmRSS")
frames = [
    DecodedFrames(rng.integers(0, 256, (length, px, px, 3), dtype=np.uint8),
                  np.zeros((length, 4, px // 16, px // 16), np.float32), np.arange(length) / 2, "", True)
    for length in [24] * (streams - 1) + [9]
]
for config in json.loads(sys.argv[3]):
    encode_batch(config_from_dict(config).build(vit), backbone, frames, 16)
print(json.dumps({"grown": status_bytes("VmHWM") - before}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [OriginalConfig(), EventfulFullConfig(refreshed_tokens=16), ReuseVitConfig()],
    ids=lambda config: str(config.method),
)
def test_a_process_grows_by_no_more_than_the_formula(config: MethodConfig) -> None:
    """At 257 tokens, clips of 24 frames and one of 9, in a process of its own."""
    from reuse_models.registry import config_to_dict

    streams = 4
    sizes = {name: getattr(SMALL_14, name) for name in VitShape.__dataclass_fields__}
    done = subprocess.run(
        [sys.executable, "-c", ENCODE, json.dumps(sizes), str(streams), json.dumps([config_to_dict(config)])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    grown = json.loads(done.stdout.strip().splitlines()[-1])["grown"]
    needs = stage.actor_memory(Vit.random(SMALL_14), 256, [named(config)], EmbedConfig(batch_frames=512))
    needs = replace(needs, batch=needs.batch * (3 * 24 + 9) // 512)
    working = needs.total(streams) - needs.tower
    assert grown < working
    assert grown > 0.1 * working, "most of it is what an interpreter with everything imported takes"
