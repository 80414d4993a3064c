"""Measure which ideas of ReuseViT pay off: `python jobs/ablate.py [--list] [--out results/ablation]`.

Fits every variant with every seed in the plain loop, applies it to validation clips of the synthetic world, and writes
a table to ablations.md in the results folder. Each result is one JSON file; existing ones are not computed again.

    python jobs/ablate.py --videos DIR --backbone DIR --fps 2 --steps 0 --out results/ablation_own

does the same for your own videos, split as in `jobs/pipeline.py folder`, by cosine and agreement of neighbours. With 0
steps, an add-on stays as it starts: warmed up on training clips, brought to its rate on validation clips.
"""

import _bootstrap  # noqa: F401  first: makes the packages importable

import json
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import tyro

from dejavu.cluster import cluster
from dejavu.ablation.footage import World, open_videos, open_world
from dejavu.ablation.table import render
from dejavu.ablation.trial import Trial, fit_addon, measure, to_row
from dejavu.ablation.variants import DEFAULT_LOSS, VARIANTS, Variant, all_variants
from dejavu.backbones.load import Backbone, load_backbone
from dejavu.experiment import OWN_TRAINING, RECIPES
from dejavu.stages.score import EvalSet, build_eval_set
from dejavu.embedding.texts import embed_texts
from dejavu.storage.one_line import exit_status
from dejavu.storage.store import Store, write_json, write_text

NUM_SEEDS = 3
BEGIN, END = "<!-- table: written by jobs/ablate.py -->", "<!-- end of table -->"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured, and where it goes."""

    variants: tuple[str, ...] = ()
    """Variants to fit, which are the table's rows. If empty, all."""
    seeds: tuple[int, ...] = tuple(range(NUM_SEEDS))
    """Random seeds; each variant is fitted once with each."""
    steps: int = 432
    """Number of steps per fit; on the embedded backbone, the default takes less than a minute on an idle core."""
    videos: Path | None = None
    """Folder of your own videos, used instead of the synthetic world."""
    backbone: str = "embedded"
    """Backbone as in jobs/pipeline.py; only with --videos."""
    fps: float = 2.0
    """Frames per second taken from --videos."""
    out: Path = Path("results/ablation")
    """Results folder."""
    document: Path | None = None
    """Document that gets the table between its marks. If not given, ablations.md in the results folder."""
    list: bool = False
    """Print the variants and end."""
    table: bool = False
    """Write the table from existing results and end."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise ValueError(f"--variants: got {unknown[0]!r}, expected some of {', '.join(VARIANTS)}; see --list")
        if self.steps < 0 or not self.seeds:
            raise ValueError(
                f"--steps, --seeds: got {self.steps}, {self.seeds}, expected 0 steps or more and a seed; leave them out"
            )
        if self.videos is None and self.backbone != "embedded":
            raise ValueError(f"--backbone: got {self.backbone}, expected --videos as well; the world is drawn for ours")


def main() -> int:
    """Measure what is lacking, print and write the table; return the exit status."""
    return exit_status(lambda: run(tyro.cli(Options, description=__doc__)))


def run(options: Options) -> None:
    """List the variants, or measure what is lacking and write the table."""
    if options.list:
        for variant in VARIANTS.values():
            print(f"{variant.name:24} {variant.says}")
        return
    if not options.table:
        measure_lacking(options)
    write_table(options.out, options.document or options.out / "ablations.md")


def measure_lacking(options: Options) -> None:
    """Measure what is lacking: one seed of everything before the next."""
    began = time.monotonic()
    backbone = load_backbone(options.backbone)
    world, eval_set = open_data(options, backbone)
    clips = f"{len(world.train)} training clips, {len(world.validation)} validation clips"
    print(f"{clips}, {len(world.questions)} questions", flush=True)
    variants = VARIANTS if options.videos is None else own_variants()
    names = options.variants or tuple(variants)
    trials = [Trial(variants[name], seed, options.steps) for seed in options.seeds for name in names]
    for number, trial in enumerate(trials, 1):
        result = options.out / "results" / f"{trial.result_id(world.data_id)}.json"
        if result.is_file():
            continue
        weights = options.out / "addons" / f"{trial.fit_id(world.data_id)}.safetensors"
        fit_seconds = 0.0 if weights.is_file() else fit_addon(trial, world, backbone, weights)
        points = measure(trial, world, backbone, eval_set, weights)
        write_json(result, to_row(trial, points, fit_seconds))
        spent = time.monotonic() - began
        print(f"[{spent:6.0f} s] {number} of {len(trials)}: {trial.variant.name}, seed {trial.seed}", flush=True)


def own_variants() -> dict[str, Variant]:
    """Return the variants of what recipe `folder` fits, with as many windows a step as its few videos come to."""
    loss = replace(DEFAULT_LOSS, target_rate=OWN_TRAINING.targets[0])
    return all_variants(replace(OWN_TRAINING.fit, clips_per_step=2), loss)


def open_data(options: Options, backbone: Backbone) -> tuple[World, EvalSet | None]:
    """Return decoded clips, and what is asked about them; nothing is about one's own videos."""
    if options.videos is not None:
        return open_videos(options.out, options.videos, options.fps, backbone), None
    experiment = RECIPES["demo"][1]
    world = open_world(options.out, experiment.synthetic, backbone)
    embed = partial(embed_texts, backbone=backbone, store=Store.open(options.out / "store"))
    clips = [clip.clip for clip in world.validation]
    return world, build_eval_set(clips, world.questions, embed, experiment.prompt)


def write_table(out: Path, document: Path) -> None:
    """Print the table, and put it into the document between its marks, with command and hardware.

    Raises:
        ValueError: There is nothing to write.
    """
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "results").glob("*.json"))]
    if not rows:
        raise ValueError(f"--out: got {out} without a result, expected one or more; leave out --table to make some")
    text = render(rows)
    print(text)
    steps = " and ".join(sorted({str(row["steps"]) for row in rows}))
    variants, seeds = ({row[name] for row in rows} for name in ("variant", "seed"))
    made = f"`python jobs/ablate.py --steps {steps}`, {cluster.hardware()}, one thread. {len(rows)} trials of "
    made += f"{len(variants)} variants x {len(seeds)} seeds are done."
    before, after = "# Ablations\n\n", ""
    if document.is_file():
        before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
    write_text(document, f"{before}{BEGIN}\n\n{made}\n\n{text}\n{END}{after or chr(10)}")


if __name__ == "__main__":
    sys.exit(main())
