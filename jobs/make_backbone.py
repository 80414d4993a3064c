"""Train the embedded backbone on frames of the synthetic world and write it as an ordinary Hugging Face directory.

    python jobs/make_backbone.py --out platform/dejavu/backbones/embedded

Two phases, both by steps, so that a seed gives the same model on any machine of the same kind:

1. the image tower alone learns to name the colour and the shape under each patch (a throw-away linear head): trained
   jointly with text from the start, shape stays at chance;
2. image and text tower together: the frame's embedding against every phrase that can be said of one object, and
   every patch against the phrases of the 48 kinds.

Shapes: B frames, N patches, M of them kept, D width, E embedding width, K kinds, C phrases.
"""

import _bootstrap  # noqa: F401

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from dejavu.datasets.labelled_frames import BACKGROUND, UNCLEAR, LabelledFrames, labelled_frames
from dejavu.datasets.world import COLOURS, KINDS, SHAPES, Kind

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TRAIN_STREAM = 1
"""Frames come from the seeds (seed, TRAIN_STREAM, step); no validation or test video is drawn from these."""
MAX_WORDS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class MakeBackboneConfig:
    """Sizes and budget of the embedded backbone."""

    out: Path
    """Folder to write."""
    seed: int = 0
    image_px: int = 128
    patch_px: int = 16
    width: int = 128
    num_layers: int = 6
    num_heads: int = 4
    text_layers: int = 2
    patch_steps: int = 800
    """Steps of phase 1."""
    joint_steps: int = 1300
    """Steps of phase 2."""
    batch_frames: int = 32
    learning_rate: float = 1e-3
    num_threads: int = 2


@dataclass(frozen=True, slots=True)
class Phrases:
    """Everything that can be said of one object, and which kinds it is true of."""

    texts: tuple[str, ...]
    """C phrases; the first K are `a red circle` and so on, in the order of KINDS."""
    holds_KC: Tensor
    """Bool: phrase c is true of kind k."""


def phrases() -> Phrases:
    """List one phrase for each kind, each colour and each shape."""
    said: list[tuple[str, Kind | None]] = [(kind.phrase, kind) for kind in KINDS]
    texts = [text for text, _ in said]
    columns = [[kind == named for kind in KINDS] for _, named in said]
    for colour in COLOURS:
        texts.append(f"something {colour}")
        columns.append([kind.colour == colour for kind in KINDS])
    for shape in SHAPES:
        texts.append(f"a {shape}")
        columns.append([kind.shape == shape for kind in KINDS])
    return Phrases(tuple(texts), torch.tensor(columns).mT.contiguous())


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one id per word, the end-of-text id highest, as CLIP's pooling expects."""
    words = ["a", "an", "and", "the", "something", "of", "in", "with", "is", "photo", *COLOURS, *SHAPES]
    names = ["[PAD]", "[UNK]", "[BOS]", *words, "[EOS]"]
    tokenizer = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(name, names.index(name)) for name in ("[BOS]", "[EOS]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="[BOS]",
        eos_token="[EOS]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=MAX_WORDS,
    )


def make_model(config: MakeBackboneConfig, tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Return an untrained CLIP of the configured sizes."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": MAX_WORDS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "image_size": config.image_px,
        "patch_size": config.patch_px,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.width))
    # CLIP starts positions near zero; here they start as waves, so that a patch finds its neighbours from step one.
    patches = config.image_px // config.patch_px
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight[1:] = 0.5 * waves(patches, config.width)
    return model


def waves(patches: int, width: int) -> Tensor:
    """Return [N, D]: sines and cosines of a patch's row and column."""
    place_P = torch.arange(patches, dtype=torch.float32)
    rate = math.pi / patches * 2 ** torch.linspace(0, 2.5, width // 4)
    angle_PF = place_P[:, None] * rate
    wave_PF = torch.cat([angle_PF.sin(), angle_PF.cos()], dim=1)
    rows = wave_PF[:, None].expand(-1, patches, -1)
    columns = wave_PF[None].expand(patches, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def to_pixels(rgb: np.ndarray, generator: torch.Generator) -> Tensor:
    """Return normalised pixels [B, 3, H, W], half of the frames with the half-size colour of a video."""
    frames_B3HW = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
    red, green, blue = frames_B3HW.unbind(1)
    luma_BHW = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma_B3HW = frames_B3HW - luma_BHW[:, None]
    coarse_B3HW = F.interpolate(F.avg_pool2d(chroma_B3HW, 2), scale_factor=2, mode="bilinear")
    soft_BHW = F.avg_pool2d(luma_BHW[:, None], 3, stride=1, padding=1, count_include_pad=False)
    softness_B111 = torch.rand(len(rgb), 1, 1, 1, generator=generator).clamp_max(0.8)
    compressed_B3HW = coarse_B3HW + torch.lerp(luma_BHW[:, None], soft_BHW, softness_B111)
    as_video_B111 = torch.rand(len(rgb), 1, 1, 1, generator=generator) < 0.6
    frames_B3HW = torch.where(as_video_B111, compressed_B3HW, frames_B3HW).clamp(0, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (frames_B3HW - mean) / std


def keep_patches(num_frames: int, num_patches: int, kept: int, generator: torch.Generator) -> Tensor:
    """Return [B, M] indices of the patches that a step computes: fewer tokens, more frames."""
    return torch.rand(num_frames, num_patches, generator=generator).argsort(dim=1)[:, :kept].sort(dim=1).values


def run_tower(model: CLIPModel, pixels_B3HW: Tensor, kept_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normalised last hidden state of CLS [B, D] and of the kept patches [B, M, D]."""
    tower: Any = model.vision_model
    tokens_BND = tower.embeddings(pixels_B3HW)
    index_BMD = (kept_BM + 1)[:, :, None].expand(-1, -1, tokens_BND.shape[-1])
    hidden = torch.cat([tokens_BND[:, :1], tokens_BND.gather(1, index_BMD)], dim=1)
    hidden = tower.pre_layrnorm(hidden)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, None)
    hidden = tower.post_layernorm(hidden)
    return hidden[:, 0], hidden[:, 1:]


@dataclass(slots=True)
class Trainer:
    """One model and its way through the two phases."""

    config: MakeBackboneConfig
    model: CLIPModel
    tokenizer: PreTrainedTokenizerFast
    generator: torch.Generator

    def batch(self, phase: int, step: int, num_objects: tuple[int, int]) -> tuple[Tensor, LabelledFrames]:
        """Draw the frames of one step."""
        rng = np.random.default_rng([self.config.seed, TRAIN_STREAM, phase, step])
        frames = labelled_frames(
            rng,
            self.config.batch_frames,
            num_objects,
            side_px=self.config.image_px,
            patch_px=self.config.patch_px,
        )
        return to_pixels(frames.rgb, self.generator), frames

    def learn_patches(self) -> None:
        """Phase 1: colour and shape under each patch."""
        num_patches = (self.config.image_px // self.config.patch_px) ** 2
        head = nn.Linear(self.config.width, 1 + len(COLOURS) + len(SHAPES))
        optimizer, schedule = self.optimizer(
            [*self.model.vision_model.parameters(), *head.parameters()], self.config.patch_steps
        )
        started = time.perf_counter()
        for step in range(self.config.patch_steps):
            pixels, frames = self.batch(1, step, (6, 8))
            kept_BM = keep_patches(len(pixels), num_patches, num_patches // 2, self.generator)
            with torch.autocast("cpu", torch.bfloat16):
                _, patches_BMD = run_tower(self.model, pixels, kept_BM)
            logits = head(patches_BMD.float()).flatten(0, 1)
            kind = torch.from_numpy(frames.patch_kind).gather(1, kept_BM).flatten()
            object_logit, colour_logits, shape_logits = logits.split([1, len(COLOURS), len(SHAPES)], dim=1)
            clear, seen = kind != UNCLEAR, kind >= 0
            colour, shape = kind[seen] // len(SHAPES), kind[seen] % len(SHAPES)
            loss = (
                F.binary_cross_entropy_with_logits(object_logit[clear, 0], seen[clear].float())
                + F.cross_entropy(colour_logits[seen], colour)
                + F.cross_entropy(shape_logits[seen], shape)
            )
            self.update(loss, optimizer, schedule)
            if step % 50 == 49:
                right = (shape_logits[seen].argmax(1) == shape).float().mean()
                right_colour = (colour_logits[seen].argmax(1) == colour).float().mean()
                self.report("patches", step, started, f"loss {loss:.3f} colour {right_colour:.3f} shape {right:.3f}")

    def learn_phrases(self) -> None:
        """Phase 2: frames and patches against phrases."""
        num_patches = (self.config.image_px // self.config.patch_px) ** 2
        said = phrases()
        tokens = self.tokenizer(list(said.texts), padding=True, return_tensors="pt")
        bias = nn.Parameter(torch.tensor(-6.0))
        patch_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        patch_background = nn.Parameter(torch.tensor(5.0))
        self.model.logit_scale.data.fill_(math.log(10.0))
        extra = [bias, patch_scale, patch_background]
        optimizer, schedule = self.optimizer([*self.model.parameters(), *extra], self.config.joint_steps)
        started = time.perf_counter()
        for step in range(self.config.joint_steps):
            pixels, frames = self.batch(2, step, (0, 6))
            sparse = step < self.config.joint_steps * 2 // 3
            kept_BM = keep_patches(len(pixels), num_patches, 24 if sparse else num_patches, self.generator)
            with torch.autocast("cpu", torch.bfloat16):
                cls_BD, patches_BMD = run_tower(self.model, pixels, kept_BM)
                frame_BE = self.model.visual_projection(cls_BD)
                patch_BME = self.model.visual_projection(patches_BMD)
                text_CE = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
            frame_BE, patch_BME, text_CE = (F.normalize(x.float(), dim=-1) for x in (frame_BE, patch_BME, text_CE))
            visible_BK = torch.from_numpy(frames.visible)
            loss_phrases = phrase_loss(frame_BE @ text_CE.mT * self.model.logit_scale.exp() + bias, visible_BK, said)
            loss_pairs = self.pair_loss(frame_BE, visible_BK, bias)
            kind = torch.from_numpy(frames.patch_kind).gather(1, kept_BM).flatten()
            logits = patch_BME.flatten(0, 1) @ text_CE[: len(KINDS)].mT * patch_scale.exp()
            logits = torch.cat([logits, patch_background.expand(len(logits), 1)], dim=1)
            target = torch.where(kind == BACKGROUND, len(KINDS), kind)
            loss_patches = F.cross_entropy(logits[kind != UNCLEAR], target[kind != UNCLEAR])
            self.update(loss_phrases + 0.5 * loss_pairs + loss_patches, optimizer, schedule)
            if step % 50 == 49:
                self.report(
                    "phrases",
                    step,
                    started,
                    f"frame {loss_phrases:.3f} pairs {loss_pairs:.3f} patch {loss_patches:.3f} "
                    f"scale {self.model.logit_scale.exp().item():.1f} bias {bias.item():.1f}",
                )

    def pair_loss(self, frame_BE: Tensor, visible_BK: Tensor, bias: Tensor) -> Tensor:
        """Score captions of two objects, `a red circle and a blue star`, true where both are seen."""
        pairs = []
        for visible_K in visible_BK:
            seen = (visible_K >= 0.4).nonzero()[:, 0].tolist()
            if len(seen) >= 2:
                pairs.append(
                    tuple(torch.tensor(seen)[torch.randperm(len(seen), generator=self.generator)[:2]].tolist())
                )
        if not pairs:
            return frame_BE.sum() * 0
        texts = [f"{KINDS[first].phrase} and {KINDS[second].phrase}" for first, second in pairs]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            text_CE = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
        text_CE = F.normalize(text_CE.float(), dim=-1)
        logits_BC = frame_BE @ text_CE.mT * self.model.logit_scale.exp() + bias
        share_BC = torch.stack([visible_BK[:, list(pair)].amin(dim=1) for pair in pairs], dim=1)
        return visibility_loss(logits_BC, share_BC)

    def optimizer(self, parameters: list[nn.Parameter], steps: int) -> tuple[torch.optim.Optimizer, Any]:
        """Return AdamW with a short warm-up and a cosine to a twentieth."""
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
            lr=self.config.learning_rate,
            betas=(0.9, 0.98),
        )

        def rate(step: int) -> float:
            warm = min(1.0, (step + 1) / 60)
            return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    def update(self, loss: Tensor, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        """Take one step."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        schedule.step()

    def report(self, phase: str, step: int, started: float, text: str) -> None:
        """Print where training stands."""
        spent = time.perf_counter() - started
        rate = (step + 1) * self.config.batch_frames / spent
        print(f"{phase} {step + 1:5d} {spent:6.1f} s {rate:5.0f} frames/s {text}", flush=True)


def phrase_loss(logits_BC: Tensor, visible_BK: Tensor, said: Phrases) -> Tensor:
    """Score every phrase against every frame: a phrase is as visible as the best seen object it is true of."""
    share_BC = torch.where(said.holds_KC[None], visible_BK[:, :, None], 0.0).amax(dim=1)
    return visibility_loss(logits_BC, share_BC)


def visibility_loss(logits_BC: Tensor, share_BC: Tensor) -> Tensor:
    """Sigmoid loss: true from 40 % visible, false below 10 %, unasked between; summed over phrases per frame."""
    weight_BC = ((share_BC >= 0.4) | (share_BC < 0.1)).float()
    target_BC = (share_BC >= 0.4).float()
    loss_BC = F.binary_cross_entropy_with_logits(logits_BC, target_BC, weight=weight_BC, reduction="none")
    return loss_BC.sum() / len(logits_BC)


def main(config: MakeBackboneConfig) -> None:
    """Train and write."""
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    tokenizer = make_tokenizer()
    model = make_model(config, tokenizer)
    started = time.perf_counter()
    trainer = Trainer(config, model, tokenizer, torch.Generator().manual_seed(config.seed))
    trainer.learn_patches()
    trainer.learn_phrases()
    seconds = time.perf_counter() - started
    config.out.mkdir(parents=True, exist_ok=True)
    model.eval().half().save_pretrained(config.out)
    tokenizer.save_pretrained(config.out)
    CLIPImageProcessor(
        size={"shortest_edge": config.image_px}, crop_size={"height": config.image_px, "width": config.image_px}
    ).save_pretrained(config.out)
    size_mb = sum(path.stat().st_size for path in config.out.iterdir()) / 1e6
    print(f"wrote {config.out}: {size_mb:.1f} MB after {seconds:.0f} s; {json.dumps(asdict(config), default=str)}")


if __name__ == "__main__":
    main(tyro.cli(MakeBackboneConfig))
