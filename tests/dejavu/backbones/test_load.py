import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from dejavu.backbones.load import BackboneError, load_backbone

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": 48, "patch_size": 16}
TEXT = {
    **SIZES,
    "vocab_size": 8,
    "max_position_embeddings": 10,
    "bos_token_id": 2,
    "eos_token_id": 7,
    "pad_token_id": 0,
}


def save_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    names = ["[PAD]", "[UNK]", "[BOS]", "a", "red", "blue", "circle", "[EOS]"]
    inner = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 7)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")
    tokenizer.save_pretrained(directory)
    return tokenizer


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIPModel]:
    directory = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    # The parts' own projection width is left at the default of 512: only the whole model's counts.
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)).eval()
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory, model


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SiglipModel]:
    directory = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config={**TEXT, "projection_size": 32}, vision_config=VISION)).eval()
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory, model


def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def test_a_whole_clip_embeds_frames_as_hugging_face_does(clip: tuple[Path, CLIPModel]) -> None:
    directory, model = clip
    backbone = load_backbone(str(directory))
    with torch.inference_mode():
        theirs = model.visual_projection(model.vision_model(pixels()).pooler_output)
        torch.testing.assert_close(backbone.vit(pixels()), theirs, atol=1e-5, rtol=1e-5)
    assert backbone.frame_px == 48
    assert backbone.vit.shape.embed_dim == 24
    assert backbone.logit_scale == pytest.approx(model.logit_scale.exp().item())


def test_a_whole_clip_embeds_texts_as_hugging_face_does(clip: tuple[Path, CLIPModel]) -> None:
    directory, model = clip
    texts = load_backbone(str(directory)).embed_texts(["a red circle", "blue"])
    ids = torch.tensor([[2, 3, 4, 6, 7], [2, 5, 7, 0, 0]])
    with torch.inference_mode():
        # One at a time, without padding: what is padded must not be seen.
        first = model.text_projection(model.text_model(ids[:1]).pooler_output)
        second = model.text_projection(model.text_model(ids[1:, :3]).pooler_output)
    torch.testing.assert_close(texts, F.normalize(torch.cat([first, second]), dim=-1), atol=1e-5, rtol=1e-5)


def test_siglip_embeds_frames_and_padded_texts_as_hugging_face_does(siglip: tuple[Path, SiglipModel]) -> None:
    directory, model = siglip
    backbone = load_backbone(str(directory))
    ids = torch.zeros(1, 10, dtype=torch.long)
    ids[0, :5] = torch.tensor([2, 3, 4, 6, 7])
    with torch.inference_mode():
        torch.testing.assert_close(
            backbone.vit(pixels()), model.vision_model(pixels()).pooler_output, atol=1e-5, rtol=1e-5
        )
        theirs = F.normalize(model.text_model(ids).pooler_output, dim=-1)
    torch.testing.assert_close(backbone.embed_texts(["a red circle"]), theirs, atol=1e-5, rtol=1e-5)
    assert not backbone.vit.shape.has_cls
    assert backbone.preprocess.processor.mean == (0.5, 0.5, 0.5)


def test_a_long_text_is_cut_to_what_the_tower_reads(clip: tuple[Path, CLIPModel]) -> None:
    directory, _ = clip
    assert load_backbone(str(directory)).embed_texts(["a red circle " * 20]).shape == (1, 24)


@pytest.mark.parametrize("kind", [CLIPVisionModelWithProjection, CLIPVisionModel])
def test_a_vision_tower_alone_loads_and_says_that_it_has_no_words(
    clip: tuple[Path, CLIPModel], tmp_path: Path, kind: type
) -> None:
    _, model = clip
    tower = kind(model.config.vision_config).eval()
    tower.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    with torch.inference_mode():
        out = tower(pixels())
        theirs = out.image_embeds if kind is CLIPVisionModelWithProjection else out.pooler_output
        torch.testing.assert_close(backbone.vit(pixels()), theirs, atol=1e-5, rtol=1e-5)
    assert backbone.text is None
    with pytest.raises(BackboneError, match="got a vision tower without text tower or tokenizer"):
        backbone.embed_texts(["a red circle"])


def test_the_identity_is_of_the_content_not_of_the_place(clip: tuple[Path, CLIPModel], tmp_path: Path) -> None:
    directory, _ = clip
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    copied = load_backbone(str(tmp_path)).identity
    assert copied == load_backbone(str(directory)).identity
    weights = load_file(tmp_path / "model.safetensors")
    weights["vision_model.embeddings.class_embedding"][0] += 1
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert load_backbone(str(tmp_path)).identity != copied


def test_the_dtype_is_the_one_asked_for(clip: tuple[Path, CLIPModel]) -> None:
    assert next(load_backbone(str(clip[0]), dtype=torch.bfloat16).vit.parameters()).dtype == torch.bfloat16


def test_a_directory_without_weights_is_refused(clip: tuple[Path, CLIPModel], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((clip[0] / "config.json").read_text())
    with pytest.raises(BackboneError, match=r"without safetensors weights, expected model\.safetensors") as caught:
        load_backbone(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_touched(clip: tuple[Path, CLIPModel], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((clip[0] / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="without safetensors weights"):
        load_backbone(str(tmp_path))


def test_half_a_model_is_refused_rather_than_filled_with_random_weights(
    clip: tuple[Path, CLIPModel], tmp_path: Path
) -> None:
    clip[1].save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match=r"no weights for .*layers\.1\.mlp\.fc1\.weight"):
        load_backbone(str(tmp_path))


def test_torn_weights_are_refused_in_one_line(clip: tuple[Path, CLIPModel], tmp_path: Path) -> None:
    clip[1].save_pretrained(tmp_path)
    torn = (tmp_path / "model.safetensors").read_bytes()[:5000]
    (tmp_path / "model.safetensors").write_bytes(torn)
    with pytest.raises(BackboneError) as caught:
        load_backbone(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_another_kind_of_model_is_refused(clip: tuple[Path, CLIPModel], tmp_path: Path) -> None:
    clip[1].save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BackboneError, match=r"backbone .*: got a 'bert' model, expected CLIP, SigLIP or"):
        load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(BackboneError, match="whose frames may have any shape"):
        load_backbone(str(tmp_path))


DINO = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 14, "image_size": 518}
DINOS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "dinov2": (Dinov2Config, Dinov2Model, {}),
    "dinov2 giant": (Dinov2Config, Dinov2Model, {"use_swiglu_ffn": True}),
    "dinov2 with registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel, {}),
    "dinov3": (DINOv3ViTConfig, DINOv3ViTModel, {"num_register_tokens": 4, "intermediate_size": 96}),
    "dinov3 plus": (
        DINOv3ViTConfig,
        DINOv3ViTModel,
        {"num_register_tokens": 4, "intermediate_size": 96, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
}


@pytest.mark.parametrize("name", DINOS)
def test_a_dino_directory_runs_at_its_processors_size_or_another(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, kind, more = DINOS[name]
    torch.manual_seed(0)
    model = kind(config(**DINO, **more)).eval()
    model.save_pretrained(tmp_path)
    own = load_backbone(str(tmp_path))
    assert own.vit.shape.image_px == 224
    assert own.frame_px == 256
    assert own.preprocess.view == (0.875 if "dinov2" in name else 1.0)
    other = load_backbone(str(tmp_path), 70)
    assert other.identity != own.identity == load_backbone(str(tmp_path), 224).identity
    with torch.no_grad():
        for backbone, px in ((own, 224), (other, 70)):
            frames = torch.randn(2, 3, px, px)
            torch.testing.assert_close(backbone.vit(frames), model(frames).pooler_output, atol=1e-4, rtol=1e-4)
    # Read by transformers where it is not read here: the same tower.
    monkeypatch.setattr("dejavu.backbones.load.read_tower", lambda _: None)
    through = load_backbone(str(tmp_path)).vit
    for ours, theirs in zip(own.vit.state_dict().values(), through.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_size_between_patches_is_refused_in_one_line(clip: tuple[Path, CLIPModel]) -> None:
    with pytest.raises(BackboneError, match=r"image_px: got 50, expected a multiple .* of 16 px; the nearest is 48"):
        load_backbone(str(clip[0]), 50)
    assert load_backbone(str(clip[0]), 64).vit.shape.num_tokens == 17


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_size", 96, r"got embeddings\.cls_token of \[1, 1, 48\], where the config says \[1, 1, 96\]"),
        ("image_size", 532, r"got embeddings\.position_embeddings of \[1, 1370, 48\], where .* \[1, 1445, 48\]"),
        ("num_hidden_layers", 4, r"got no weights for encoder\.layer\.3\."),
    ],
)
def test_a_config_whose_sizes_contradict_the_weights_is_refused(
    field: str, value: int, said: str, tmp_path: Path
) -> None:
    Dinov2Model(Dinov2Config(**DINO)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(BackboneError, match=said) as caught:
        load_backbone(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_json_is_refused(clip: tuple[Path, CLIPModel], tmp_path: Path) -> None:
    clip[1].save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="expected JSON"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "{there}/nowhere", "nowhere"])
def test_a_path_that_is_not_there_is_refused_without_asking_the_hub(name: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="which is no directory, expected a directory, 'embedded', or a name"):
        load_backbone(name.format(there=tmp_path))


def test_a_hub_out_of_reach_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match="the hub cannot be reached") as caught:
        load_backbone("openai/clip-vit-large-patch14")
    assert "\n" not in str(caught.value)
