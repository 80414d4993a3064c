"""What stages are tried on: the embedded backbone, and clips in a store as transcoding leaves them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dejavu.backbones.load import Backbone, load_backbone
from dejavu.embedding.batch import EmbedConfig, EmbedContext
from dejavu.records import Transcoded
from dejavu.storage.store import Store
from dejavu.video.plain import write_moving_texture


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone()


@pytest.fixture
def embedding(tmp_path: Path) -> EmbedContext:
    return EmbedContext("embedded", Store(tmp_path), EmbedConfig())


def clip(embedding: EmbedContext, name: str, num_frames: int) -> Transcoded:
    path = embedding.store.mp4_path(name)
    path.parent.mkdir(exist_ok=True)
    write_moving_texture(path, num_frames, 128)
    return Transcoded(
        clip_id=name,
        content_id=name,
        path=f"mp4/{name}.mp4",
        num_frames=num_frames,
        frame_px=128,
        fps=2.0,
        duration_s=num_frames / 2,
        codec_metadata=True,
    )
