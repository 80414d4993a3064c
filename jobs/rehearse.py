"""Rehearse a whole `nextqa` run on this machine: `python jobs/rehearse.py --backbone openai/clip-vit-large-patch14`.

It generates random weights of the same size, and videos and annotations in NExT-QA's formats, and runs every stage of
the recipe on a few clips and settings. It prints what each stage took, and what the whole data set would take with the
recipe's defaults on machines like this one; `rehearsal.json` in the results folder contains the same.

Arguments after `--` go to the pipeline: `python jobs/rehearse.py --backbone DIR -- --train.fit.clips-per-step 1`.
"""

import _bootstrap  # first: makes the packages importable

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

import submit
from dejavu.backbones.load import load_backbone
from dejavu.backbones.locate import EMBEDDED
from dejavu.cluster.cluster import hardware
from dejavu.observability.events import LOGS
from dejavu.experiment import RECIPES, parse
from dejavu.rehearsal.footage import WORDS, FootageConfig, draw_footage
from dejavu.rehearsal.spent import Spent, read_events, spent
from dejavu.rehearsal.table import markdown, record
from dejavu.rehearsal.watch import Watch
from dejavu.rehearsal.weights import num_bytes, text_sizes, write_weights_apart
from dejavu.rehearsal.whole import Extent, Hardware, forecast, list_lines
from dejavu.storage.one_line import OneLineError, exit_status
from dejavu.storage.store import write_json
from reuse_models.tower.known_shapes import KNOWN_SHAPES
from reuse_models.tower.shape import VitShape

RECIPE = "nextqa"
HANDFUL = {
    "--sweep.density": "tiny",
    "--sweep.chosen-per-method": "1",
    "--sweep.probe-clips": "1",
    "--train.targets": "0.9",
    "--train.epochs": "2",
    "--train.max-steps": "2",
    "--train.min-steps": "1",
    "--train.validation-windows": "4",
    "--train.calibrated-rates": "0.8",
    "--train.calibration-clips": "1",
    "--train.fit.clips-per-step": "2",
    "--train.warm-up.num-clips": "4",
    "--train.warm-up.steps": "20",
    "--schedules.shares": "0.627",
    "--schedules.num-frames": "16",
    "--schedules.search.steps": "2",
    "--schedules.search.frames-per-step": "4",
    "--residual.steps": "2",
    "--residual.windows-per-step": "1",
    "--measure.num-clips": "1",
    "--measure.num-frames": "5",
    "--measure.num-rounds": "1",
}
"""Two settings a method, one of them measured; of training, a little of everything that it does."""
SPARE_BYTES = 2 * 10**9
"""Beside the weights: videos, checkpoints of add-ons, what Ray keeps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RehearseConfig:
    """What is rehearsed."""

    backbone: str
    """Backbone: a published tower of known size, for random weights, or a directory written by save_pretrained."""
    results: Path = Path("results/rehearsal")
    """New or empty folder; gets the inputs in `inputs` and the run in `run`."""
    clips: FootageConfig = field(default_factory=FootageConfig)
    machines: tuple[int, ...] = (1, 4, 16)
    """Numbers of machines like this one for which the whole run is estimated."""
    num_cpus: Annotated[int | None, tyro.conf.arg(help="Number of CPUs of the cluster. If not given, all.")] = None


def check(config: RehearseConfig) -> VitShape:
    """Refuse what cannot be rehearsed before anything is made; return the tower's shape.

    Raises:
        OneLineError: The folder holds something, the disk is too full, or nothing is known of the backbone.
        BackboneError: The directory holds no tower that can be loaded.
        ValueError: The tower has no words.
    """
    if config.results.exists() and (not config.results.is_dir() or any(config.results.iterdir())):
        raise OneLineError(
            f"--results: got {config.results}, which holds something, expected a new folder, since what is there "
            "already is not done again; remove it or name another"
        )
    if not config.machines or min(config.machines) < 1 or (config.num_cpus or 1) < 1:
        raise OneLineError(f"--machines, --num-cpus: got {config}, expected numbers of 1 or more; raise them")
    shape = find_shape(config.backbone)
    there = next(one for one in (config.results.absolute(), *config.results.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    needed = SPARE_BYTES + (num_bytes(shape) if config.backbone in KNOWN_SHAPES else 0)
    if free < needed:
        raise OneLineError(
            f"--results: got {free / 1e9:.1f} GB free in {there}, expected {needed / 1e9:.1f} GB; "
            "name a folder on another disk"
        )
    return shape


def find_shape(backbone: str) -> VitShape:
    """Return the shape of a directory's tower, or of a published one.

    Raises:
        OneLineError: It is neither, or the directory has no text tower.
        BackboneError: The directory's tower does not load.
        ValueError: A published tower without text tower.
    """
    if backbone == EMBEDDED or Path(backbone).is_dir():
        loaded = load_backbone(backbone)
        if loaded.text is None:
            raise OneLineError(
                f"--backbone: got {backbone} without text tower or tokenizer, expected both, since NExT-QA asks in "
                "words; save the whole model and its tokenizer there"
            )
        return loaded.vit.shape
    if backbone not in KNOWN_SHAPES:
        raise OneLineError(
            f"--backbone: got {backbone}, which is no directory, expected one of {', '.join(KNOWN_SHAPES)}, or a "
            "directory written by save_pretrained; check the name"
        )
    text_sizes(KNOWN_SHAPES[backbone])
    return KNOWN_SHAPES[backbone]


def make_inputs(config: RehearseConfig, shape: VitShape) -> dict[str, object]:
    """Draw videos, write annotations and, unless a directory was given, weights; return the run's options of them."""
    folder = config.results.absolute() / "inputs"
    draw_footage(folder, config.clips)
    backbone = config.backbone
    if backbone in KNOWN_SHAPES and not Path(backbone).is_dir():
        write_weights_apart(shape, WORDS, folder / "backbone")
        backbone = str(folder / "backbone")
    return {"--videos": folder / "videos", "--annotations": folder / "annotations", "--backbone": backbone}


def pipeline_words(config: RehearseConfig, inputs: Mapping[str, object], more: Sequence[str]) -> list[str]:
    """Return the pipeline's arguments; what was given after `--` comes last and wins."""
    given = {**inputs, "--results": config.results.absolute() / "run"}
    handful = {name: value for name, value in HANDFUL.items() if name not in more}
    return [RECIPE, *(str(word) for pair in {**given, **handful}.items() for word in pair), *more]


def run(words: Sequence[str], results: Path, num_cpus: int) -> Spent:
    """Run the pipeline on a cluster of its own, watching; return what its stages took.

    Raises:
        OneLineError: It ended with an error.
    """
    with submit.cluster(num_cpus) as started:
        variables = {"RAY_ADDRESS": started.address, "HF_HUB_OFFLINE": "1"}
        environment = submit.environment(started.token) | variables
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = [sys.executable, str(_bootstrap.ROOT / "jobs" / "pipeline.py"), *words]
        begin = time.time()
        driver = subprocess.Popen(command, env=environment, stdout=sys.stderr)
        watch = Watch(driver.pid, started.pid, results)
        watch.start()
        try:
            status = driver.wait()
        finally:
            driver.terminate()
            driver.wait()
            samples = watch.stop()
        end = time.time()
    if status:
        raise OneLineError(
            f"pipeline: got exit status {status} after {end - begin:.0f} s, expected 0; its last line above says why"
        )
    return spent(read_events(results / LOGS), samples, begin, end)


def rehearse(config: RehearseConfig, more: Sequence[str]) -> None:
    """Make everything, run it, print the table and write the record."""
    shape = check(config)
    begin = time.monotonic()
    print(f"drawing clips and weights in {config.results}", file=sys.stderr, flush=True)
    inputs = make_inputs(config, shape)
    words = pipeline_words(config, inputs, more)
    rehearsed = parse(words)
    made_s = time.monotonic() - begin
    here = Hardware(cpus=config.num_cpus or os.cpu_count() or 1, gpus=torch.cuda.device_count())
    found = run(words, config.results.absolute() / "run", here.cpus)
    extent = Extent(shape=shape, rehearsed=rehearsed, recipe=RECIPES[RECIPE][1], hardware=here)
    lines = list_lines(found, extent)
    whole = forecast(lines, found, here, config.machines)
    about = {
        "backbone": config.backbone,
        "hardware": hardware(),
        "machine": asdict(here),
        "clips": asdict(config.clips),
        "pipeline": words,
        "made_s": made_s,
        "data_set": asdict(extent.data),
    }
    write_json(config.results / "rehearsal.json", record(found, whole, lines, about))
    print(f"\n{config.backbone} on {hardware()}, {here.cpus} CPUs, {here.gpus} GPUs; inputs made in {made_s:.0f} s\n")
    print(markdown(found, whole, here))
    print(f"\nrecord     {config.results / 'rehearsal.json'}", flush=True)


def main(words: Sequence[str]) -> int:
    """Rehearse; return the exit status."""
    cut = words.index("--") if "--" in words else len(words)
    try:
        return exit_status(
            lambda: rehearse(tyro.cli(RehearseConfig, args=words[:cut], description=__doc__), words[cut + 1 :])
        )
    except KeyboardInterrupt:
        print("stopped: got Ctrl-C, expected the end; remove the results folder and begin anew", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
