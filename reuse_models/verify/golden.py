"""Comparing the methods with numbers of the published artifact's own code, on any folder of that form.

The folder's README says what each file holds. Sizes are read from the files, never assumed.

Shapes: F frames, N tokens, L layers, E embedding width, G groups; a clip dimension of 1 leads where the files have it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from reuse_models.artifact import flops as flops_published
from reuse_models.artifact.weights import VARIANTS, Variant, addon_from_state
from reuse_models.baselines.cmc import CmcConfig
from reuse_models.baselines.diffrate.method import DiffRateConfig
from reuse_models.baselines.eventful import EventfulConfig
from reuse_models.method import Chunk, Encoded, Method
from reuse_models.reusevit.addon import Addon, ReusePolicy
from reuse_models.reusevit.codec_net import CODEC_CHANNELS, CODEC_STEPS, codec_history
from reuse_models.reusevit.engines.masked import Clips, MaskedOutput, masked_forward
from reuse_models.reusevit.frame_order import FrameStep, schedule
from reuse_models.reusevit.gate import HardGate
from reuse_models.reusevit.method import ReuseVit, ReuseVitConfig
from reuse_models.tower.hugging_face import from_hf
from reuse_models.tower.shape import VitShape
from reuse_models.tower.vit import Vit
from reuse_models.training.fit import dense_second_last
from reuse_models.training.loss import LossConfig, Teacher, counted_cosine, reuse_loss

State = Literal["ok", "failed", "absent"]

EMBEDDING_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-5
FLOPS_TOLERANCE = 1e-6
"""Relative."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison."""

    name: str
    file: str
    largest_error: float | None
    """None where nothing could be compared."""
    tolerance: float
    state: State
    note: str = ""


class AbsentError(Exception):
    """Something that a comparison needs is not here; not a failure."""


def compare(name: str, file: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Row:
    """Return the row for two tensors; other shapes and numbers that are none are failures."""
    if ours.shape != theirs.shape:
        note = f"got shape {list(ours.shape)}, expected {list(theirs.shape)}"
        return Row(name, file, None, tolerance, "failed", note)
    return judge(name, file, float((ours.double() - theirs.double()).abs().max()), tolerance)


def judge(name: str, file: str, largest_error: float, tolerance: float) -> Row:
    """Return the row for an error already measured."""
    if math.isnan(largest_error):
        return Row(name, file, None, tolerance, "failed", "got a value that is not a number")
    return Row(name, file, largest_error, tolerance, "ok" if largest_error <= tolerance else "failed")


def attempt(name: str, file: str, comparison: Callable[[], Iterable[Row]]) -> list[Row]:
    """Run one comparison; what is not here becomes a row `absent`, an error of any kind a row `failed`."""
    try:
        return list(comparison())
    except AbsentError as absent:
        return [Row(name, file, None, 0.0, "absent", str(absent))]
    except Exception as error:
        lines = str(error).splitlines() or [""]
        return [Row(name, file, None, 0.0, "failed", f"{type(error).__name__}: {lines[0][:160]}")]


class Golden:
    """A folder of golden numbers, read as far as it goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def compare_all(self) -> list[Row]:
        """Run every comparison that needs torch alone."""
        rows: list[Row] = []
        with torch.no_grad():
            rows += attempt("training forward", "train_forward.safetensors", self._training_forward)
            losses = sorted(self.folder.glob("loss_*.safetensors"))
            if not losses:
                rows.append(Row("loss", "loss_*.safetensors", None, LOSS_TOLERANCE, "absent", "no such file"))
            for path in losses:
                rows += attempt(path.stem, path.name, lambda path=path: self._loss(path))  # type: ignore[misc]
            rows += attempt("grouped inference", "group_eval.safetensors", self._group_eval)
            for name in ("eventful", "cmc"):
                file = f"{name}.safetensors"
                rows += attempt(name, file, lambda name=name: self._sequential(name))  # type: ignore[misc]
            rows += attempt("diffrate", "diffrate.safetensors", self._diffrate)
            rows += attempt("published FLOPs", "flops_published.json", self._flops)
        return rows

    def path(self, name: str) -> Path:
        """Return where a file lies, or raise an AbsentError."""
        path = self.folder / name
        if not path.is_file():
            raise AbsentError(f"no {name}")
        return path

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """All weights under their published names."""
        return load_file(self.path("reference_state.safetensors"))

    @cached_property
    def train(self) -> dict[str, Tensor]:
        """Inputs and outputs of the training forward; the other files share its pixels."""
        return load_file(self.path("train_forward.safetensors"))

    @cached_property
    def vit(self) -> Vit:
        config = CLIPVisionConfig(**json.loads(self.path("clip_vision_config.json").read_text(encoding="utf-8")))
        model = CLIPVisionModelWithProjection(config)
        wanted = model.state_dict()
        weights = {name.removeprefix("model."): weight for name, weight in self.state.items()}
        model.load_state_dict({name: weight for name, weight in weights.items() if name in wanted})
        return from_hf(model.eval())

    def addon(self, variant: Variant) -> Addon:
        """Return the add-on with its decisions laid to boundaries as `variant` says."""
        return addon_from_state(self.state, self.vit.shape, variant)

    @cached_property
    def codec_scores(self) -> Tensor:
        """The codec net's scores of all frames, [F, P, P]."""
        codec_F4PP = self.train["codec"]
        before_T4PP = codec_F4PP.new_zeros(CODEC_STEPS - 1, CODEC_CHANNELS, *codec_F4PP.shape[2:])
        scores: Tensor = self.addon("as_trained").codec_net(codec_history(before_T4PP, codec_F4PP))
        return scores

    @cached_property
    def output(self) -> MaskedOutput:
        """Our training forward on the published pattern."""
        frames = self.train["pattern"].tolist()
        kinds = self.train["ref_type"][0].argmax(dim=-1).tolist()
        steps = []
        for index, (frame, kind) in enumerate(zip(frames, kinds, strict=True)):
            allowed = self.train["ref_mask"][0, index].nonzero()[:, 0].tolist()
            steps.append(FrameStep(frame, tuple(frames[one] for one in allowed), kind, index))
        addon = self.addon("as_trained")
        clips = Clips(self.train["pixels"][frames][None], self.codec_scores[frames][None], steps)
        return masked_forward(self.vit, ReusePolicy(addon, HardGate(addon.decisions), "chained"), clips, keep_last=True)

    def _training_forward(self) -> Iterable[Row]:
        train, file = self.train, "train_forward.safetensors"
        frames = train["pattern"].tolist()
        output = self.output
        dense_FE = self.vit(train["pixels"][frames])
        for name, ours, theirs, tolerance in (
            ("image_embeds", output.embeddings_CFE, train["image_embeds"], EMBEDDING_TOLERANCE),
            ("reuse_map", output.reuse_CFbN, train["reuse_map"], 0.0),
            ("hidden_last", output.last_CFND, train["hidden_last"], EMBEDDING_TOLERANCE),
            ("hidden_2nd_last", output.second_last_CFND, train["hidden_2nd_last"], EMBEDDING_TOLERANCE),
            ("dense_embeds", dense_FE, train["dense_embeds"], EMBEDDING_TOLERANCE),
            ("blobnet_map", self.codec_scores[:, None], train["blobnet_map"], EMBEDDING_TOLERANCE),
        ):
            assert ours is not None
            yield compare(f"training forward {name}", file, ours, theirs, tolerance)

    def _loss(self, path: Path) -> Iterable[Row]:
        expected, train = load_file(path), self.train
        second_last_1FND = dense_second_last(self.vit, train["pixels"][train["pattern"]][None])
        last_FND = self.vit.run_layer(self.vit.shape.num_layers - 1, second_last_1FND[0])
        published = MaskedOutput(
            train["image_embeds"], train["reuse_map"], train["hidden_2nd_last"], train["hidden_last"]
        )
        teacher = Teacher(train["dense_embeds"][None], second_last_1FND)
        target_rate = int(path.stem.removeprefix("loss_")) / 100
        loss = reuse_loss(published, teacher, LossConfig(target_rate=target_rate, second_last_weight=1.5))
        for name, ours in (
            ("loss", loss.total),
            ("cls_error", loss.embedding_error),
            ("hh_error", 1 - counted_cosine(train["hidden_2nd_last"], second_last_1FND).mean()),
            ("hidden_error", 1 - counted_cosine(train["hidden_last"], last_FND[None]).mean()),
            ("reuse_rate", loss.rate),
            ("reuse_rate_per_frame", loss.rate_per_frame_CK),
        ):
            yield compare(f"{path.stem} {name}", path.name, ours, expected[name], LOSS_TOLERANCE)

    def _group_eval(self) -> Iterable[Row]:
        file = "group_eval.safetensors"
        expected, train = load_file(self.path(file)), self.train
        pixels_F3HW, codec_F4PP = train["pixels"], train["codec"]
        order = expected["order"]
        # The file repeats the dense frame to fill its group.
        frames = [int(order[0, 0]), *order[1:].flatten().tolist()]
        wanted = [step.frame for step in schedule(len(pixels_F3HW))]
        yield judge("grouped inference order", file, float(frames != wanted), 0.0)
        dense_FE = self.vit(pixels_F3HW)
        yield compare("grouped dense_embeds", file, dense_FE, expected["dense_embeds"], EMBEDDING_TOLERANCE)
        for variant in VARIANTS:
            method = ReuseVit(ReuseVitConfig(reference_state="grouped"), self.vit, self.addon(variant))
            encoded = method.encode(Chunk((pixels_F3HW,), (codec_F4PP,), (True,)), method.start(1))
            embeds_GE, map_GbN = expected[f"{variant}_embeds"], expected[f"{variant}_reuse_map"]
            theirs = torch.cat([embeds_GE[0, :1], embeds_GE[1:].flatten(0, 1)])
            reuse = torch.cat([map_GbN[0, :, 0, 0][None], map_GbN[1:, :, :, 0].transpose(1, 2).flatten(0, 1)])
            ours = encoded.embeddings[0][frames]
            yield compare(f"grouped {variant} embeds", file, ours, theirs, EMBEDDING_TOLERANCE)
            yield compare(f"grouped {variant} reuse_map", file, encoded.reuse[0][frames].float(), reuse, 0.0)

    def _sequential(self, name: str) -> Iterable[Row]:
        file = f"{name}.safetensors"
        expected = load_file(self.path(file))
        knob = float(expected["knob"])
        config = EventfulConfig(refreshed_tokens=int(knob)) if name == "eventful" else CmcConfig(threshold=-knob)
        encoded = _encode(config.build(self.vit), self.train["pixels"])
        embeds = torch.cat([expected["image_embeds"][0, :1], expected["image_embeds"][1:].flatten(0, 1)])
        reuse = torch.cat([expected["reuse_map"][0, :1], expected["reuse_map"][1:].flatten(0, 1)])
        yield compare(f"{name} embeds", file, encoded.embeddings[0], embeds, EMBEDDING_TOLERANCE)
        yield compare(f"{name} reuse_map", file, encoded.reuse[0].float(), reuse, 0.0)

    def _diffrate(self) -> Iterable[Row]:
        file = "diffrate.safetensors"
        expected = load_file(self.path(file))
        config = DiffRateConfig(
            prune_kept=tuple(expected["prune_kept"].tolist()), merge_kept=tuple(expected["merge_kept"].tolist())
        )
        encoded = _encode(config.build(self.vit), self.train["pixels"])
        yield compare("diffrate embeds", file, encoded.embeddings[0], expected["image_embeds"], EMBEDDING_TOLERANCE)

    def _flops(self) -> Iterable[Row]:
        file = "flops_published.json"
        rows = json.loads(self.path(file).read_text(encoding="utf-8"))["rows"]
        shapes = {"base": flops_published.BASE, "large": flops_published.LARGE}
        errors: dict[str, float] = {}
        for row in rows:
            shape, theirs = shapes[row["model"]], float(row["flops"])
            ours = _published_flops(row, shape)
            name = f"published FLOPs {row['model']} {row['method']}"
            errors[name] = max(errors.get(name, 0.0), abs(ours - theirs) / theirs)
        for name, error in errors.items():
            yield judge(name, file, error, FLOPS_TOLERANCE)


def _encode(method: Method, pixels_F3HW: Tensor) -> Encoded:
    return method.encode(Chunk((pixels_F3HW,), None, (True,)), method.start(1))


def _published_flops(row: dict[str, Any], shape: VitShape) -> float:
    match row["method"]:
        case "original":
            return flops_published.original(shape)
        case "cmc":
            return flops_published.cmc(shape, row["reuse_rate"])
        case "reusevit":
            return flops_published.reusevit(shape, row["reuse_rate"])
        case "eventful":
            return flops_published.eventful(shape, row["k"])
        case "diffrate":
            return flops_published.diffrate(shape, row["prune_kept"], row["merge_kept"])
    raise ValueError(f"method: got {row['method']!r}, expected one with a published formula; check the file")
