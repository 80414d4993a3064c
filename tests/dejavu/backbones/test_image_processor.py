"""Against transformers' own processors, on frames of a real video where there is one and drawn ones elsewhere."""

import copy
import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.clip.processing_clip import CLIPProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from dejavu.backbones.image_processor import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageProcessor,
    default_image_px,
    read_image_processor,
)
from dejavu.backbones.locate import EMBEDDED, BackboneError, BackboneFiles, locate
from dejavu.backbones.preprocess import Preprocess
from dejavu.video.decode import decode_all
from dejavu.video.mp4 import TranscodeConfig, transcode
from dejavu.video.write import write_video

VIDEOS = Path(__file__).resolve().parents[4] / "shared" / "data" / "natural" / "test"
DINOV2 = {
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [*IMAGENET_MEAN],
    "image_std": [*IMAGENET_STD],
}
DINOV3 = {
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": True,
    "device": None,
    "do_center_crop": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [*IMAGENET_MEAN],
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "image_std": [*IMAGENET_STD],
    "input_data_format": None,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
"""As published with facebook/dinov3-vits16-pretrain-lvd1689m."""
PROCESSORS = {
    "clip": CLIPImageProcessorPil(),
    "clip, nearest": CLIPImageProcessorPil(resample=0),
    "clip, bilinear, no mean": CLIPImageProcessorPil(resample=2, do_normalize=False),
    "clip, a part, bytes": CLIPImageProcessorPil(size={"shortest_edge": 256}, do_rescale=False),
    "clip, factor": CLIPImageProcessorPil(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3),
    "siglip": SiglipImageProcessorPil(),
    "siglip 2": SiglipImageProcessorPil(resample=2, size={"height": 256, "width": 256}),
    "dinov2": BitImageProcessorPil(**DINOV2),
    "vit": ViTImageProcessorPil(),
}


@pytest.fixture(scope="module")
def frames() -> list[NDArray[np.uint8]]:
    """Centre squares of some real frames, of an even side, and a drawn picture with hard edges."""
    drawn = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    squares = [np.array(Image.fromarray(drawn).resize((480, 480), Image.Resampling.BOX))]
    for path in sorted(VIDEOS.glob("*.mp4"))[:3]:
        with av.open(str(path)) as container:
            (frame,) = islice(container.decode(video=0), 1)
            rgb_HW3 = frame.to_ndarray(format="rgb24")
        side = min(rgb_HW3.shape[:2]) // 64 * 64
        top, left = ((length - side) // 2 for length in rgb_HW3.shape[:2])
        squares.append(np.ascontiguousarray(rgb_HW3[top : top + side, left : left + side]))
    return squares


def seen(square_HW3: NDArray[np.uint8], view: float) -> NDArray[np.uint8]:
    """Return [1, V, V, 3], what transcoding leaves of a square."""
    side = round(view * len(square_HW3))
    first = (len(square_HW3) - side) // 2
    return np.ascontiguousarray(square_HW3[None, first : first + side, first : first + side])


@pytest.mark.parametrize("name", PROCESSORS)
def test_frames_are_processed_as_transformers_does(name: str, frames: list[NDArray[np.uint8]]) -> None:
    theirs = PROCESSORS[name]
    config = json.loads(theirs.to_json_string())
    processor = read_image_processor(config, "siglip" if "siglip" in name else "clip")
    assert processor.side_px is not None
    preprocess = Preprocess(processor.side_px, processor)
    level_311 = processor.factor / np.asarray(processor.std)[:, None, None]
    for square in frames:
        expected = np.asarray(theirs(square, input_data_format="channels_last")["pixel_values"][0])
        ours = preprocess(seen(square, preprocess.view))[0].numpy()
        assert ours.shape == expected.shape
        apart = np.abs(ours - expected) / level_311
        if preprocess.view == 1:
            assert apart.max() < 2.01  # in grey levels: each axis rounds once
            assert apart.mean() < 0.05
            assert processor.resample != "nearest" or apart.max() < 0.01
        else:  # the two rows at each border lack what the filter sees beyond the crop
            assert apart[:, 2:-2, 2:-2].max() < 2.01
            assert apart.mean() < 0.05


def test_a_transcoded_video_shows_what_dinov2s_processor_sees(tmp_path: Path) -> None:
    """The whole path: a wide video, transcoded to 256 px for 16 patches a side, against the processor on its frames."""
    waves = np.linspace(0, 20, 320)
    picture = 127 + 60 * np.sin(waves)[:192, None, None] + 60 * np.cos(1.3 * waves)[None, :, None] + np.zeros(3)
    write_video(tmp_path / "wide.mp4", iter([picture.astype(np.uint8)] * 4), 2, 4)
    with av.open(str(tmp_path / "wide.mp4")) as container:
        whole = next(container.decode(video=0)).to_ndarray(format="rgb24")
    theirs = BitImageProcessorPil(**DINOV2)(whole)["pixel_values"][0]
    config = json.loads(BitImageProcessorPil(**DINOV2).to_json_string())
    preprocess = Preprocess(224, read_image_processor(config, "dinov2"))
    apart = {}
    for view in (preprocess.view, 1.0):
        transcode(tmp_path / "wide.mp4", tmp_path / "out.mp4", frame_px=256, config=TranscodeConfig(crf=4), view=view)
        ours = preprocess(decode_all(tmp_path / "out.mp4", count=1).rgb_FHWC)[0].numpy()
        apart[view] = float(np.abs(ours - theirs).mean()) * 255 * 0.225
    assert apart[preprocess.view] < 2
    assert apart[1.0] > 8


def test_dinov3_scales_real_numbers_bilinearly(frames: list[NDArray[np.uint8]]) -> None:
    """Its processor needs torchvision: each channel as Pillow's floating-point bilinear is the same arithmetic."""
    preprocess = Preprocess(224, read_image_processor(DINOV3, "dinov3_vit"))
    for square in frames:
        channels = [
            np.asarray(Image.fromarray(square[..., c].astype(np.float32)).resize((224, 224), Image.Resampling.BILINEAR))
            for c in range(3)
        ]
        expected = [
            (channel / 255 - mean) / std
            for channel, mean, std in zip(channels, IMAGENET_MEAN, IMAGENET_STD, strict=True)
        ]
        assert np.abs(preprocess(square[None])[0].numpy() - np.stack(expected)).max() < 1e-4
    assert preprocess.view == 1


def test_what_dinov2s_own_config_says_is_what_its_family_does() -> None:
    config = json.loads(BitImageProcessorPil(**DINOV2).to_json_string())
    for model_type in ("dinov2", "dinov2_with_registers"):
        own = read_image_processor(None, model_type)
        assert own == read_image_processor(config, model_type)
        assert (own.view, own.side_px) == (224 / 256, 224)
        assert default_image_px(own, model_type, 518) == 224


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("clip", json.loads(CLIPImageProcessorPil().to_json_string())),
        ("clip_vision_model", json.loads(CLIPImageProcessorPil().to_json_string())),
        ("siglip", json.loads(SiglipImageProcessorPil().to_json_string())),
        ("siglip_vision_model", json.loads(SiglipImageProcessorPil().to_json_string())),
        ("dinov3_vit", DINOV3),
    ],
)
def test_a_tower_without_processor_has_its_familys(
    model_type: str, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    own = read_image_processor(None, model_type)
    assert [record.getMessage() for record in caplog.records] == [
        f"image processor: none beside a {model_type}; its family's own is taken"
    ]
    said = read_image_processor(config, model_type)
    assert said.side_px == 224 == default_image_px(own, model_type, 224)
    assert own in (said, ImageProcessor(**{**fields(said), "side_px": None}))
    assert len(caplog.records) == 1


def fields(processor: ImageProcessor) -> dict[str, Any]:
    return {name: getattr(processor, name) for name in ImageProcessor.__dataclass_fields__}


@pytest.mark.parametrize("size", [224, [224, 224], {"shortest_edge": 224}, {"height": 224, "width": 224}])
def test_a_square_is_named_in_several_ways(size: object) -> None:
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": size, "crop_size": 224, "resample": 3}
    assert read_image_processor(old, "clip") == ImageProcessor(side_px=224)


def test_what_is_null_or_left_out_is_the_classs_own() -> None:
    plain = json.loads(CLIPImageProcessorPil().to_json_string())
    nulls = {**dict.fromkeys(plain), "image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 224}}
    assert read_image_processor(nulls, "clip") == read_image_processor(plain, "clip")
    assert read_image_processor({"image_mean": [0.5] * 3}, "clip").std == ImageProcessor().std
    without_effect = {"do_convert_rgb": False, "data_format": "channels_last", "do_pad": False, "pad_size": None}
    assert read_image_processor({**plain, **without_effect}, "clip") == read_image_processor(plain, "clip")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"do_pad": True}, "got do_pad true"),
        ({"pad_size": {"height": 9, "width": 9}}, 'got pad_size {"height": 9'),
        ({"do_reduce_labels": True}, "got do_reduce_labels true"),
        ({"do_flip_channel_order": True}, "got do_flip_channel_order true"),
        ({"patch_size": 16, "max_num_patches": 256}, "got patch_size 16"),
        ({"rescale_offset": -1}, "got rescale_offset -1"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "got image_processor_type Siglip2ImageProcessor"),
        ({"image_processor_type": 7}, "got image_processor_type 7"),
        ({"resample": 1}, "got resample 1"),
        ({"resample": "bicubic"}, "got resample bicubic"),
        ({"resample": [3]}, r"got resample \[3\]"),
        ({"resample": True}, "got resample true"),
        ({"resample": 3.5}, "got resample 3.5"),
        ({"do_resize": False}, "got do_resize false"),
        ({"do_rescale": 0}, "got do_rescale 0, expected true or false"),
        ({"size": {"height": 224, "width": 336}}, "got size"),
        ({"size": {"shortest_edge": 224, "longest_edge": 448}}, "got size"),
        ({"size": {"min_pixels": 9, "max_pixels": 99}}, "got size"),
        ({"size": 0}, r"got size 0, expected pixels in 1\.\.4096"),
        ({"size": 224.0}, "got size 224.0"),
        ({"size": "224"}, "got size 224"),
        ({"size": 10**9}, "got size 1000000000"),
        ({"crop_size": {"shortest_edge": 224}}, "got crop_size"),
        ({"crop_size": 336}, "got crop_size 336, expected at most size, 224"),
        ({"rescale_factor": float("nan")}, "got rescale_factor NaN"),
        ({"rescale_factor": -1}, "got rescale_factor -1"),
        ({"rescale_factor": 1e30}, "got pixel values up to"),
        ({"image_mean": [0.5]}, r"got image_mean \[0.5\], expected three numbers"),
        ({"image_mean": ["a", "b", "c"]}, "got image_mean a"),
        ({"image_std": 3}, "got image_std 3"),
        ({"image_std": [0.5, 0.0, 0.5]}, r"got image_std \[0.5, 0.0, 0.5\], expected positive numbers"),
        ({"image_std": [0.5, 1e-300, 0.5]}, "got pixel values up to"),
        ({"do\nmore": "x\ny" * 99}, "got do"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(change: dict[str, Any], line: str) -> None:
    config = {**json.loads(CLIPImageProcessorPil().to_json_string()), **change}
    with pytest.raises(ValueError, match=f"image processor: {line}") as refusal:
        read_image_processor(config, "clip")
    assert len(str(refusal.value).splitlines()) == 1
    assert len(str(refusal.value)) < 250


def test_an_unknown_model_type_is_refused() -> None:
    with pytest.raises(ValueError, match="image processor: got model_type siglip2, expected one of clip"):
        read_image_processor(None, "siglip2")


def test_pictures_that_the_tower_does_not_take_are_refused() -> None:
    said = read_image_processor(json.loads(CLIPImageProcessorPil().to_json_string()), "clip")
    with pytest.raises(ValueError, match="got pictures of 224 px, expected the tower's 336"):
        default_image_px(said, "clip", 336)
    assert default_image_px(read_image_processor({"image_mean": [0.5] * 3}, "clip"), "clip", 336) == 336


def test_odd_configs_are_read_or_refused_and_nothing_else() -> None:
    """Values of every kind in every place, one to three at a time."""
    rng = random.Random(0)
    bases = [json.loads(processor.to_json_string()) for processor in PROCESSORS.values()] + [DINOV3]
    values: list[Any] = [None, True, False, 0, 1, -1, 2, 3, 224, 10**30, 0.5, float("inf"), float("nan"), "", "x\n"]
    values += [[], [1], [0.5] * 3, [[1]] * 3, [None] * 3, {}, {"height": 2}, {"height": 224, "width": 224}]
    values += [{"shortest_edge": [1]}, {"shortest_edge": "1"}, {"shortest_edge": None}]
    done = 0
    for _ in range(3000):
        config = copy.deepcopy(rng.choice(bases))
        for _ in range(rng.randint(1, 3)):
            config[rng.choice([*config, "other"])] = rng.choice(values)
        try:
            processor = read_image_processor(config, rng.choice(["clip", "siglip", "dinov2", "dinov3_vit"]))
        except ValueError as error:
            assert str(error).startswith("image processor: got ")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            continue
        done += 1
        assert 0 < processor.view <= 1
        assert np.isfinite(Preprocess(8, processor)(np.full((1, 16, 16, 3), 255, np.uint8)).numpy()).all()
    assert 300 < done < 2700


def test_the_processors_file_is_found_as_transformers_finds_it(tmp_path: Path) -> None:
    """CLIPProcessor writes processor_config.json alone; where both are there, it counts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate(EMBEDDED).directory)
    whole = CLIPProcessor(image_processor=CLIPImageProcessorPil(rescale_factor=0.5), tokenizer=tokenizer)
    files = BackboneFiles(tmp_path, {"model_type": "clip"}, ())
    assert files.preprocessor() is None
    nothing = files.identity()
    whole.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    assert read_image_processor(files.preprocessor(), "clip").factor == 0.5
    nested = files.identity()
    CLIPImageProcessorPil(rescale_factor=0.25).save_pretrained(tmp_path)
    assert CLIPImageProcessorPil.from_pretrained(tmp_path).rescale_factor == 0.5
    assert read_image_processor(files.preprocessor(), "clip").factor == 0.5
    assert files.identity() == nested
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert CLIPImageProcessorPil.from_pretrained(tmp_path).rescale_factor == 0.25
    assert read_image_processor(files.preprocessor(), "clip").factor == 0.25
    assert len({nothing, nested, files.identity()}) == 3
    (tmp_path / "processor_config.json").write_text('{"image_processor": [1]}')
    with pytest.raises(BackboneError, match=r"processor_config\.json: got \[1\], expected an object"):
        files.preprocessor()
