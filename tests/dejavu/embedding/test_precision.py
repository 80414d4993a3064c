"""What a tower embeds in: measured once for a store, part of a result's name, and as good as float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.cluster import cluster
from dejavu.embedding import precision
from dejavu.embedding.batch import EmbedConfig, EmbedContext
from dejavu.embedding.encode import encode_batch, load_backbone_for
from dejavu.embedding.precision import Gains, choose_precision, gains_of
from dejavu.storage.store import Store
from dejavu.video.decode import DecodedFrames, decode
from dejavu.video.plain import write_moving_texture
from reuse_models.baselines.cmc import CmcConfig
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.baselines.tome import ToMeConfig
from reuse_models.method import Chunk, Method, MethodConfig
from reuse_models.reusevit.method import ReuseVitConfig
from reuse_models.tower.vit import Vit

AUTO = EmbedConfig(precision="auto")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone()


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[DecodedFrames]:
    path = tmp_path_factory.mktemp("precision") / "texture.mp4"
    write_moving_texture(path, 9, 128)
    return list(decode(path, chunk_frames=9))


def test_what_is_faster_is_measured_once_for_a_store_and_a_tower(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Vit] = []

    def gains(vit: Vit, streams: int) -> Gains:
        assert streams == AUTO.streams
        measured.append(vit)
        return Gains(dense=1.9, reuse=1.4)

    monkeypatch.setattr(precision, "gains_of", gains)
    monkeypatch.setattr(cluster, "gpus_per_actor", lambda given: 0.0)
    monkeypatch.setattr(cluster, "cluster_hardware", lambda: "this machine")
    store = Store.open(tmp_path)
    assert [choose_precision(AUTO, store, backbone, None) for _ in range(2)] == ["bfloat16"] * 2
    assert len(measured) == 1
    (noted,) = json.loads((tmp_path / "precision.json").read_text()).values()
    assert (noted["precision"], noted["dense"], noted["reuse"]) == ("bfloat16", 1.9, 1.4)
    choose_precision(AUTO, store, replace(backbone, identity="another"), None)
    assert len(measured) == 2
    assert choose_precision(EmbedConfig(precision="float32"), store, backbone, None) == "float32"


def test_where_there_are_gpus_it_is_measured_on_one_of_them(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_on_gpu(function: Callable[..., Gains], *arguments: object, num_gpus: float) -> Gains:
        assert (num_gpus, arguments) == (0.5, (backbone.name, backbone.vit.shape.image_px, AUTO.streams))
        assert function is precision._gains_on_gpu
        return Gains(dense=4.0, reuse=3.0)

    monkeypatch.setattr(cluster, "run_on_gpu", run_on_gpu)
    monkeypatch.setattr(cluster, "cluster_hardware", lambda: "a card")
    assert choose_precision(AUTO, Store.open(tmp_path), backbone, 0.5) == "bfloat16"


@pytest.mark.parametrize(
    ("gains", "faster"), [((2.0, 1.0), "float32"), ((0.7, None), "float32"), ((1.2, 1.2), "bfloat16")]
)
def test_bfloat16_is_taken_where_dense_and_reuse_gain(gains: tuple[float, float | None], faster: str) -> None:
    assert Gains(*gains).faster == faster


def test_without_arithmetic_of_16_bits_nothing_is_measured(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    monkeypatch.setattr(precision, "_gain", lambda *_: pytest.fail("measured"))
    assert gains_of(backbone.vit) == Gains(1.0, None)


def test_with_it_both_are_measured(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    gains = gains_of(backbone.vit)
    assert gains.dense > 0
    assert (gains.reuse is None) == (gains.dense < precision.WORTH)


def test_one_look_is_enough_where_it_is_hopeless(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([0.5, 0.5, 1.0, 2.0])
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "_seconds", lambda method, chunk: next(spent))
    assert gains_of(backbone.vit) == Gains(0.5, None)


def test_reuse_is_measured_where_dense_gains(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(method: Method, chunk: Chunk) -> float:
        half = method.vit.position.dtype == torch.bfloat16
        return (0.1 if len(chunk.pixels[0]) == 2 else 0.08) if half else 0.2

    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "_seconds", seconds)
    assert gains_of(backbone.vit) == Gains(dense=2.0, reuse=2.5)


@pytest.mark.parametrize(("dense_s", "expected"), [(0.001, 8), (0.06, 3), (30.0, 1)])
def test_reuse_is_measured_on_as_many_streams_as_are_embedded_where_the_tower_is_small(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, dense_s: float, expected: int
) -> None:
    streams: list[int] = []

    def seconds(method: Method, chunk: Chunk) -> float:
        streams.append(chunk.num_streams)
        return dense_s / 2 if method.vit.position.dtype == torch.bfloat16 else dense_s

    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "_seconds", seconds)
    gains_of(backbone.vit, streams=8)
    assert streams[-1] == expected


def test_results_of_float32_keep_their_names_and_what_is_undecided_has_none() -> None:
    assert EmbedConfig().shaping() == {"segment_frames": 512, "motion_binning": "destination"}
    assert EmbedConfig(precision="bfloat16").shaping() == {**EmbedConfig().shaping(), "precision": "bfloat16"}
    with pytest.raises(ValueError, match="got auto"):
        AUTO.shaping()


@pytest.mark.parametrize(
    ("config", "least"),
    [
        (OriginalConfig(), 0.999),
        (CmcConfig(threshold=0.0), 0.999),
        # Which of two tokens is the nearer, or changed more, is chance where rounding decides, and frames inherit it.
        (ToMeConfig(merged_per_layer=4), 0.9),
        (ReuseVitConfig(forced_rate=0.6), 0.98),
        (EventfulConfig(refreshed_tokens=24), 0.98),
    ],
    ids=lambda value: getattr(value, "method", ""),
)
def test_embeddings_of_16_bits_are_those_of_float32(
    config: MethodConfig, least: float, frames: list[DecodedFrames], tmp_path: Path
) -> None:
    of = {}
    for kind in ("float32", "bfloat16"):
        backbone = load_backbone_for(EmbedContext("embedded", Store(tmp_path), EmbedConfig(precision=kind)))
        assert str(backbone.vit.position.dtype) == f"torch.{kind}"
        (of[kind],) = encode_batch(config.build(backbone.vit), backbone, frames, 16)
    single, half = (torch.from_numpy(of[kind].embeddings_FE) for kind in of)
    assert float(torch.cosine_similarity(single, half, dim=1).min()) > least
