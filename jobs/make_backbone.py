"""Train the embedded backbone on frames of the synthetic world and write it as an ordinary Hugging Face directory.

    python jobs/make_backbone.py --out platform/dejavu/backbones/embedded

One file, which is run once in the backbone's life. Two phases, both by steps, so that a seed gives the same model on
any machine of the same kind:

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
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from dejavu.backbones.image_processor import CLIP_MEAN, CLIP_STD
from dejavu.backbones.words import word_tokenizer
from dejavu.synthetic.labelled_frames import BACKGROUND, CELL_PX, UNCLEAR, LabelledFrames, labelled_frames
from dejavu.synthetic.world import COLOURS, KINDS, SHAPES

TRAIN_STREAM = 1
"""Frames come from the seeds (seed, TRAIN_STREAM, step); no validation or test video is drawn from these."""
MAX_WORDS = 16
LOCALITY = 1.6
"""How strongly the first layers look at their neighbours at the start."""
NEIGHBOURS = (
    ((-0.7, 0.0), (0.7, 0.0), (0.0, -0.7), (0.0, 0.7)),
    ((-1.0, -1.0), (1.0, 1.0), (-1.0, 1.0), (1.0, -1.0)),
    ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)),
)
"""Rows and columns to the neighbour that each head of the first layers starts with."""
SHARED = 0.25
"""Cosine at which phrases of one colour or of one shape start phase 2."""
PART_WEIGHT = 0.3
"""What `something red` and `a circle` count in the loss beside `a red circle`."""
POOLING_LAYERS = 2
"""Layers at the end that phase 1 leaves to CLS."""
WINDOW = 5
"""Patches a side of the windows of phase 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MakeBackboneConfig:
    """Train the embedded backbone on frames of the synthetic world and write it as a Hugging Face directory."""

    out: Path
    """Directory to write."""
    seed: int = 0
    image_px: int = 128
    patch_px: int = 16
    width: int = 128
    num_layers: int = 6
    num_heads: int = 4
    text_layers: int = 2
    patch_steps: int = 2500
    """Number of steps of phase 1, the image tower alone."""
    word_steps: int = 200
    """Number of steps of the text tower alone, between the phases."""
    joint_steps: int = 1200
    """Number of steps of phase 2, both towers together."""
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
    texts = [kind.phrase for kind in KINDS]
    columns = [[kind == named for kind in KINDS] for named in KINDS]
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
    return word_tokenizer(words, MAX_WORDS)


def make_model(config: MakeBackboneConfig, tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Return an untrained CLIP of the configured sizes."""
    both = {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_attention_heads": config.num_heads,
        "projection_dim": config.width,
    }
    text = {
        **both,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": config.text_layers,
        "max_position_embeddings": MAX_WORDS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        **both,
        "num_hidden_layers": config.num_layers,
        "image_size": config.image_px,
        "patch_size": config.patch_px,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.width))
    start_local(model, config.image_px // config.patch_px)
    return model


def start_local(model: CLIPModel, patches: int) -> None:
    """Let each head of the first layers look at a neighbour from step one, as a convolution would.

    CLIP starts positions near zero, and finding neighbours is then most of the training. Positions start as waves
    instead, and queries as keys turned by the phase that a step to the neighbour makes. It stays an ordinary CLIP.
    """
    tower: Any = model.vision_model
    width = tower.config.hidden_size
    num_heads = tower.config.num_attention_heads
    head_dim, num_waves = width // num_heads, width // 4
    rate = wave_rates(patches, num_waves)
    chosen = torch.arange(0, num_waves, 4 * num_waves // head_dim)[: head_dim // 4]
    with torch.no_grad():
        tower.embeddings.position_embedding.weight[1:] = 0.5 * waves(patches, width)
        for layer, steps in zip(tower.encoder.layers, NEIGHBOURS, strict=False):
            attention = layer.self_attn
            for head, (row_step, column_step) in enumerate(steps[:num_heads]):
                query, key = torch.zeros(head_dim, width), torch.zeros(head_dim, width)
                for axis, step in enumerate((row_step, column_step)):
                    for index, wave in enumerate(chosen.tolist()):
                        sine, cosine = 2 * axis * num_waves + wave, (2 * axis + 1) * num_waves + wave
                        row = axis * head_dim // 2 + 2 * index
                        turn = rate[wave] * step
                        key[row, sine] = key[row + 1, cosine] = 1
                        query[row, sine] = query[row + 1, cosine] = turn.cos()
                        query[row, cosine], query[row + 1, sine] = turn.sin(), -turn.sin()
                rows = slice(head * head_dim, (head + 1) * head_dim)
                attention.q_proj.weight[rows] = 0.5 * attention.q_proj.weight[rows] + LOCALITY * query
                attention.k_proj.weight[rows] = 0.5 * attention.k_proj.weight[rows] + LOCALITY * key


def wave_rates(patches: int, num_waves: int) -> Tensor:
    """Return the radians by which each wave turns from one patch to the next."""
    return math.pi / patches * 2 ** torch.linspace(0, 2.5, num_waves)


def waves(patches: int, width: int) -> Tensor:
    """Return [N, D]: sines and cosines of a patch's row and column."""
    place_P = torch.arange(patches, dtype=torch.float32)
    angle_PF = place_P[:, None] * wave_rates(patches, width // 4)
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


def some_windows(num_frames: int, patches: int, window: int, generator: torch.Generator) -> Tensor:
    """Return [B, M]: the patches of the whole frame that a window of window x window patches lies on."""
    corner_B2 = torch.randint(0, patches - window + 1, (num_frames, 2), generator=generator)
    rows_BW, columns_BW = (corner_B2[:, axis, None] + torch.arange(window) for axis in (0, 1))
    return (rows_BW[:, :, None] * patches + columns_BW[:, None]).flatten(1)


def keep_objects(patch_kind_BN: Tensor, kept: int, generator: torch.Generator) -> Tensor:
    """Return [B, M]: the patches that a step computes, those of the background only as far as there is room."""
    rank_BN = torch.rand(patch_kind_BN.shape, generator=generator) + (patch_kind_BN == BACKGROUND).float()
    return rank_BN.argsort(dim=1)[:, :kept].sort(dim=1).values


def enter_tower(model: CLIPModel, pixels_B3HW: Tensor, kept_BM: Tensor | None, place_BM: Tensor) -> Tensor:
    """Return the input of the first layer: CLS, and of frames or windows of frames the kept patches, None for all.

    `place_BM` is where these lie in the whole frame.
    """
    tower: Any = model.vision_model
    embed = tower.embeddings
    patches_BMD = embed.patch_embedding(pixels_B3HW).flatten(2).mT
    if kept_BM is not None:
        patches_BMD = patches_BMD.gather(1, kept_BM[:, :, None].expand(-1, -1, patches_BMD.shape[-1]))
    cls_B1D = (embed.class_embedding + embed.position_embedding.weight[0]).expand(len(pixels_B3HW), 1, -1)
    hidden_BND = torch.cat([cls_B1D, patches_BMD + embed.position_embedding(place_BM + 1)], dim=1)
    normed_BND: Tensor = tower.pre_layrnorm(hidden_BND)
    return normed_BND


def run_layers(model: CLIPModel, hidden_BND: Tensor, layers: slice) -> Tensor:
    """Return the output of the last of some layers of the image tower."""
    tower: Any = model.vision_model
    for layer in tower.encoder.layers[layers]:
        hidden_BND = layer(hidden_BND, None)
    return hidden_BND


@dataclass(slots=True)
class Trainer:
    """One model and its way through the two phases."""

    config: MakeBackboneConfig
    model: CLIPModel
    tokenizer: PreTrainedTokenizerFast
    generator: torch.Generator

    @property
    def patches(self) -> int:
        """Patches a side of a whole frame."""
        return self.config.image_px // self.config.patch_px

    def batch(self, phase: int, step: int, num_objects: tuple[int, int], side_px: int) -> tuple[Tensor, LabelledFrames]:
        """Draw the frames of one step."""
        rng = np.random.default_rng([self.config.seed, TRAIN_STREAM, phase, step])
        patch_px = self.config.patch_px
        frames = labelled_frames(rng, self.config.batch_frames, num_objects, side_px=side_px, patch_px=patch_px)
        return to_pixels(frames.rgb, self.generator), frames

    def learn_patches(self) -> None:
        """Phase 1: colour and shape under each patch, and how far its object reaches.

        Frames are windows of WINDOW x WINDOW patches anywhere in the frame, since a patch needs its neighbours and no
        more. The head reads the patches before the last layers, since CLS has to find there what it is to
        pool. The reach, a mask of 48 x 48 px around the patch, is asked for because it makes the tower look there.
        """
        window_px = WINDOW * self.config.patch_px
        parts = [1, len(COLOURS), len(SHAPES), (3 * self.config.patch_px // CELL_PX) ** 2]
        head = nn.Sequential(nn.LayerNorm(self.config.width), nn.Linear(self.config.width, sum(parts)))
        parameters = [*self.model.vision_model.parameters(), *head.parameters()]
        optimizer, schedule = self.optimizer(parameters, self.config.patch_steps)
        started = time.perf_counter()
        for step in range(self.config.patch_steps):
            pixels, frames = self.batch(1, step, (2, 4), window_px)
            place_BM = some_windows(len(pixels), self.patches, WINDOW, self.generator)
            hidden_BND = enter_tower(self.model, pixels, None, place_BM)
            hidden_BND = run_layers(self.model, hidden_BND, slice(self.config.num_layers - POOLING_LAYERS))
            logits = head(hidden_BND[:, 1:].flatten(0, 1))
            object_logit, colour_logits, shape_logits, reach_logits = logits.split(parts, dim=1)
            kind = torch.from_numpy(frames.patch_kind).flatten()
            clear, seen = kind != UNCLEAR, kind >= 0
            colour, shape = kind[seen] // len(SHAPES), kind[seen] % len(SHAPES)
            reach = torch.from_numpy(frames.extent).flatten(0, 1)[seen].float()
            loss = (
                F.binary_cross_entropy_with_logits(object_logit[clear, 0], seen[clear].float())
                + F.cross_entropy(colour_logits[seen], colour)
                + F.cross_entropy(shape_logits[seen], shape)
                + 5 * F.binary_cross_entropy_with_logits(reach_logits[seen], reach)
            )
            self.update(loss, optimizer, schedule)
            if step % 100 == 99:
                right = (shape_logits[seen].argmax(1) == shape).float().mean()
                right_colour = (colour_logits[seen].argmax(1) == colour).float().mean()
                self.report("patches", step, started, f"loss {loss:.3f} colour {right_colour:.3f} shape {right:.3f}")

    def learn_words(self) -> None:
        """Between the phases, seconds: the text tower alone spreads the phrases out.

        Phrases that share a colour or a shape get a cosine of SHARED, others 0. Left to the frames, the words for
        shapes stay on one line for hundreds of steps.
        """
        said = phrases()
        tokens = self.tokenizer(list(said.texts), padding=True, return_tensors="pt")
        parts = [*COLOURS, *SHAPES]
        has_CP = torch.tensor([[part in text.split() for part in parts] for text in said.texts]).float()
        goal_CC = SHARED * (has_CP @ has_CP.mT)
        goal_CC.fill_diagonal_(1.0)
        text_parameters = [*self.model.text_model.parameters(), *self.model.text_projection.parameters()]
        optimizer, schedule = self.optimizer(text_parameters, self.config.word_steps)
        started = time.perf_counter()
        for step in range(self.config.word_steps):
            text_CE = self.embed_texts(tokens)
            loss = (text_CE @ text_CE.mT - goal_CC).square().sum(dim=1).mean()
            self.update(loss, optimizer, schedule)
            if step % 100 == 99:
                self.report("words", step, started, f"loss {loss:.4f}")

    def learn_phrases(self) -> None:
        """Phase 2: frames and patches against phrases."""
        said = phrases()
        tokens = self.tokenizer(list(said.texts), padding=True, return_tensors="pt")
        bias = nn.Parameter(torch.tensor(-7.0))
        patch_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        patch_background = nn.Parameter(torch.tensor(8.0))
        self.model.logit_scale.data.fill_(math.log(25.0))
        extra = [bias, patch_scale, patch_background]
        optimizer, schedule = self.optimizer([*self.model.parameters(), *extra], self.config.joint_steps)
        started = time.perf_counter()
        for step in range(self.config.joint_steps):
            pixels, frames = self.batch(2, step, (0, 6), self.config.image_px)
            kind_BN = torch.from_numpy(frames.patch_kind)
            sparse = step < self.config.joint_steps * 2 // 3
            kept_BM = keep_objects(kind_BN, kind_BN.shape[1] // 2 if sparse else kind_BN.shape[1], self.generator)
            hidden_BND = enter_tower(self.model, pixels, kept_BM, kept_BM)
            hidden_BND = run_layers(self.model, hidden_BND, slice(self.config.num_layers - 1))
            # Before the last layer, so that CLS can take from the patches there what is already in the texts' space.
            patch_BME = self.project(hidden_BND[:, 1:])
            frame_BE = self.project(run_layers(self.model, hidden_BND, slice(self.config.num_layers - 1, None))[:, 0])
            text_CE = self.embed_texts(tokens)
            visible_BK = torch.from_numpy(frames.visible)
            loss_phrases = phrase_loss(frame_BE @ text_CE.mT * self.model.logit_scale.exp() + bias, visible_BK, said)
            loss_pairs = self.pair_loss(frame_BE, visible_BK, bias)
            kind = kind_BN.gather(1, kept_BM).flatten()
            logits = patch_BME.flatten(0, 1) @ text_CE[: len(KINDS)].mT * patch_scale.exp()
            logits = torch.cat([logits, patch_background.expand(len(logits), 1)], dim=1)
            target = torch.where(kind == BACKGROUND, len(KINDS), kind)
            loss_patches = F.cross_entropy(logits[kind != UNCLEAR], target[kind != UNCLEAR])
            self.update(loss_phrases + 0.5 * loss_pairs + loss_patches, optimizer, schedule)
            if step % 100 == 99:
                self.report(
                    "phrases",
                    step,
                    started,
                    f"frame {loss_phrases:.3f} pairs {loss_pairs:.3f} patch {loss_patches:.3f} "
                    f"order {order(frame_BE @ text_CE[: len(KINDS)].mT, visible_BK):.3f} "
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
        text_CE = self.embed_texts(tokens)
        logits_BC = frame_BE @ text_CE.mT * self.model.logit_scale.exp() + bias
        share_BC = torch.stack([visible_BK[:, list(pair)].amin(dim=1) for pair in pairs], dim=1)
        return visibility_loss(logits_BC, share_BC)

    def project(self, hidden_XD: Tensor) -> Tensor:
        """Return [X, E], each of length 1: the end of the image tower."""
        return F.normalize(self.model.visual_projection(self.model.vision_model.post_layernorm(hidden_XD)), dim=-1)

    def embed_texts(self, tokens: Any) -> Tensor:
        """Return [C, E], each of length 1."""
        return F.normalize(self.model.text_projection(self.model.text_model(**tokens).pooler_output), dim=-1)

    def optimizer(self, parameters: list[nn.Parameter], steps: int) -> tuple[torch.optim.Optimizer, Any]:
        """Return AdamW with a short warm-up and a cosine to a twentieth."""
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in parameters if parameter.ndim == 1]
        scalars = [parameter for parameter in parameters if parameter.ndim == 0]
        rate = self.config.learning_rate
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": 0.05},
                {"params": vectors, "weight_decay": 0.0},
                # Scales and biases have units to go where weights have hundredths.
                {"params": scalars, "weight_decay": 0.0, "lr": 10 * rate},
            ],
            lr=rate,
            betas=(0.9, 0.98),
        )

        def share(step: int) -> float:
            warm = min(1.0, (step + 1) / 60)
            return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)

    def update(self, loss: Tensor, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        """Take one step."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            if group["params"]:
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
    kinds = len(KINDS)
    whole, parts = (visibility_loss(logits_BC[:, c], share_BC[:, c]) for c in (slice(kinds), slice(kinds, None)))
    return whole + PART_WEIGHT * parts


def order(cosine_BK: Tensor, visible_BK: Tensor) -> float:
    """Return how often a seen kind scores above an unseen one whose colour and shape are both seen."""
    right = asked = 0
    colour_K, shape_K = torch.arange(len(KINDS)) // len(SHAPES), torch.arange(len(KINDS)) % len(SHAPES)
    for cosine_K, visible_K in zip(cosine_BK, visible_BK, strict=True):
        seen_K = visible_K >= 0.4
        near_K = torch.isin(colour_K, colour_K[seen_K]) & torch.isin(shape_K, shape_K[seen_K]) & (visible_K < 0.1)
        above = cosine_K[seen_K][:, None] > cosine_K[near_K][None]
        right, asked = right + int(above.sum()), asked + above.numel()
    return right / max(asked, 1)


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
    trainer.learn_words()
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
