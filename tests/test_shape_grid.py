"""Every method at the shapes that towers really have, from video files to rows of embeddings.

Shallow and narrow, so that it is seconds: but patches of 14, 16 and 32 px, towers of 224 to 384 px, with CLS, without,
and with registers, on clips of 1 to 40 frames in one batch, in float32 and in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dejavu.backbones.image_processor import read_image_processor
from dejavu.backbones.load import Backbone
from dejavu.backbones.preprocess import Preprocess
from dejavu.embedding.batch import Segment
from dejavu.embedding.encode import EncodedSegment, cut_chunk, encode_batch, to_table
from dejavu.video.decode import DecodedFrames, decode_all
from dejavu.video.mp4 import TranscodeConfig, transcode
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from reuse_models.verify.counting import ExecutedFlops
from tests.reuse_models.examples import example_configs

LENGTHS = (13, 1, 40, 3, 2, 5)
"""Frames at 2 a second of the clips of a batch, in no order."""
SOURCE_FPS = 10


def narrow(name: str, image_px: int | None = None, patch_px: int | None = None) -> VitShape:
    """A published tower's tokens, three layers deep and 32 numbers wide."""
    known = KNOWN_SHAPES[name]
    return replace(
        known,
        image_px=image_px or known.image_px,
        patch_px=patch_px or known.patch_px,
        width=32,
        num_heads=2,
        num_layers=3,
        mlp_width=64,
        embed_dim=24 if known.has_projection else 32,
    )


SHAPES: dict[str, VitShape] = {
    "CLIP B/32": narrow("openai/clip-vit-base-patch32"),
    "CLIP B/16": narrow("openai/clip-vit-base-patch16"),
    "CLIP L/14": narrow("openai/clip-vit-large-patch14"),
    "CLIP L/14 at 336": narrow("openai/clip-vit-large-patch14-336"),
    "SigLIP L/16 at 256": narrow("google/siglip-large-patch16-256"),
    "SigLIP B/16 at 384": narrow("google/siglip-base-patch16-224", 384),
    "SigLIP B/32 at 256": narrow("google/siglip-base-patch16-224", 256, 32),
    "SigLIP 2 so400m/14 at 384": narrow("google/siglip2-so400m-patch14-384"),
    "DINOv2 S/14": narrow("facebook/dinov2-small"),
    "DINOv2 g/14": narrow("facebook/dinov2-giant"),
    "DINOv2 S/14 with registers at 336": narrow("facebook/dinov2-with-registers-small", 336),
    "DINOv3 S/16": narrow("facebook/dinov3-vits16-pretrain-lvd1689m"),
    "DINOv3 S+/16 at 256": narrow("facebook/dinov3-vits16plus-pretrain-lvd1689m", 256),
}

MANY_TOKENS = 300
"""From here on a shape takes longer than the quick tests may."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Towers this narrow are slower on several threads, much slower where the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Videos that are no multiple of anything: a square drifts over noise that stays."""
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    paths = []
    for length in LENGTHS:
        path = folder / f"{length}.mp4"
        still = rng.integers(0, 256, (94, 130, 3), np.uint8)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(SOURCE_FPS), options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 130, 94, "yuv420p"
            for index in range(length * SOURCE_FPS // 2):
                picture = still.copy()
                left = 2 * index % 90
                picture[30:60, left : left + 30] = (250, 60, 20)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode(None))
        paths.append(path)
    return paths


def backbone_of(shape: VitShape, name: str) -> Backbone:
    """Random weights of a shape behind its family's own image processor."""
    family = name.split(maxsplit=1)[0].lower()
    model_type = {"dinov3": "dinov3_vit"}.get(family, family)
    processor = read_image_processor(None, model_type)
    vit = Vit.random(shape, seed=1)
    return Backbone(name, name, vit, Preprocess(shape.image_px, processor), None, None)


def decoded(sources: list[Path], backbone: Backbone, folder: Path) -> list[DecodedFrames]:
    """Each source transcoded for the backbone and decoded, as the pipeline does it."""
    found = []
    for source in sources:
        path = folder / source.name
        transcode(source, path, frame_px=backbone.frame_px, config=TranscodeConfig(), view=backbone.preprocess.view)
        found.append(decode_all(path))
    return found


def check(encoded: list[EncodedSegment], frames: list[DecodedFrames], shape: VitShape) -> None:
    for segment, clip in zip(encoded, frames, strict=True):
        num_frames = len(clip.seconds_F)
        assert segment.embeddings_FE.shape == (num_frames, shape.embed_dim)
        assert np.isfinite(segment.embeddings_FE).all()
        assert ((segment.reuse_rate_F >= 0) & (segment.reuse_rate_F <= 1)).all()
        assert (segment.flops_F >= 0).all()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if shape.num_tokens > MANY_TOKENS else [])
        for name, shape in SHAPES.items()
    ],
)
def test_every_method_embeds_ragged_clips(name: str, sources: list[Path], tmp_path: Path) -> None:
    backbone = backbone_of(SHAPES[name], name)
    frames = decoded(sources, backbone, tmp_path)
    assert [len(clip.seconds_F) for clip in frames] == list(LENGTHS)
    halves = replace(backbone, vit=Vit.random(backbone.vit.shape, seed=1).to(torch.bfloat16))
    segments = [
        Segment(clip_id=f"{length}", content_id=f"{length}", path="", start=0, num_frames=length) for length in LENGTHS
    ]
    alone = 3
    dense: list[EncodedSegment] = []
    clips = [backbone.preprocess(clip.rgb_FHWC[:4]) for clip in frames]
    # Of a tower this narrow, much is the patches.
    for method_name, config in example_configs(backbone.vit, clips, diffrate_share=0.95).items():
        together = encode_batch(config.build(backbone.vit), backbone, frames, 16)
        check(together, frames, backbone.vit.shape)
        dense = dense or together
        with ExecutedFlops() as executed:  # slow: on three clips
            few = encode_batch(config.build(backbone.vit), backbone, frames[3:], 16)
        counted = sum(float(segment.flops_F.sum()) for segment in few)
        assert executed.total == pytest.approx(counted, rel=0.01), method_name
        assert to_table(segments, frames, together).num_rows == sum(LENGTHS)

        # In other company, and in smaller pieces, a clip is the same.
        (by_itself,) = encode_batch(config.build(backbone.vit), backbone, [frames[alone]], 2)
        if method_name not in {"cmc"}:  # a distance on its threshold may fall to either side of it by rounding
            assert by_itself.embeddings_FE == pytest.approx(together[alone].embeddings_FE, abs=1e-3), method_name

        in_halves = encode_batch(config.build(halves.vit), halves, frames[:2] + frames[3:], 16)
        check(in_halves, frames[:2] + frames[3:], backbone.vit.shape)
        if method_name in {"original", "frame_skip", "adaptive_skip", "low_resolution"}:
            cosine = F.cosine_similarity(
                torch.from_numpy(in_halves[0].embeddings_FE), torch.from_numpy(together[0].embeddings_FE)
            )
            assert float(cosine.min()) > 0.99
    with torch.inference_mode():
        pixels = cut_chunk(backbone, frames, 0, 40).pixels[0]
        assert dense[0].embeddings_FE == pytest.approx(backbone.vit(pixels).numpy(), abs=1e-4)
