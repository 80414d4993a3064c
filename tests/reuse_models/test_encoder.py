"""`reuse_models.apply`: as the README has it, on whole videos."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

import reuse_models
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.baselines.frame_skip import FrameSkipConfig
from reuse_models.baselines.original import OriginalConfig
from reuse_models.encoder import CHUNK_FRAMES
from reuse_models.flops import dense_flops
from reuse_models.reusevit.method import ReuseVitConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model() -> Dinov2Model:
    torch.manual_seed(0)
    size = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 14, "image_size": 70}
    return Dinov2Model(Dinov2Config(**size)).eval()


def video(num_frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_frames, 3, 70, 70, generator=torch.Generator().manual_seed(seed))


def test_original_gives_what_the_model_gives(model: Dinov2Model) -> None:
    frames = video(CHUNK_FRAMES + 3)
    with torch.no_grad():
        expected = model(frames).pooler_output
    torch.testing.assert_close(reuse_models.apply(model, OriginalConfig())(frames), expected, atol=1e-4, rtol=1e-4)


def test_several_videos_are_each_as_alone(model: Dinov2Model) -> None:
    videos = [video(CHUNK_FRAMES + 5, 1), video(1, 2), video(7, 3)]
    grids = [torch.rand(len(one), 4, 5, 5) for one in videos]
    encoder = reuse_models.apply(model, ReuseVitConfig(forced_rate=0.6))
    for together, frames, codec in zip(encoder(videos, grids), videos, grids, strict=True):
        torch.testing.assert_close(together, encoder(frames, codec), atol=1e-5, rtol=1e-5)


def test_flops_are_those_of_each_frame(model: Dinov2Model) -> None:
    encoder = reuse_models.apply(model, FrameSkipConfig(every=3))
    assert encoder.flops(video(5)).tolist() == [dense_flops(encoder.vit.shape), 0, 0, dense_flops(encoder.vit.shape), 0]


def test_no_frames_give_no_embeddings_and_wrong_ones_one_line(model: Dinov2Model) -> None:
    encoder = reuse_models.apply(model, EventfulConfig(refreshed_tokens=4))
    assert encoder([]) == []
    with pytest.raises(ValueError, match=r"frames: got \[2, 3, 64, 64\], expected \[F, 3, 70, 70\]"):
        encoder(torch.zeros(2, 3, 64, 64))
    with pytest.raises(ValueError, match="without codec grids"):
        reuse_models.apply(model, ReuseVitConfig(forced_rate=0.5))(video(3))
    with pytest.raises(ValueError, match="reusevit: got no weights, expected those of a fit"):
        reuse_models.apply(model, ReuseVitConfig())


def test_the_package_is_free_of_torch() -> None:
    code = "import reuse_models, sys; assert 'torch' not in sys.modules; assert callable(reuse_models.apply)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_readme_runs_as_written(model: Dinov2Model, tmp_path: Path) -> None:
    """On a directory in place of the hub's name, and frames of its size."""
    model.save_pretrained(tmp_path)
    (block,) = re.findall(r"```python\n(.*?reuse_models\.apply.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    code = block.replace('"facebook/dinov2-small"', f"{str(tmp_path)!r}").replace("224", "70")
    assert code != block
    names: dict[str, object] = {}
    exec(code, names)
    embeddings = names["embeddings"]
    assert isinstance(embeddings, torch.Tensor)
    assert embeddings.shape == (48, 48)
