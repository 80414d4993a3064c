"""Embed a folder of videos as a short user script would, with none of our code; end_to_end.py compares with it.

    python jobs/benchmarks/plain_loop.py --videos DIR --backbone DIR --fps 2 --dtype float32 --decoder pyav

Prints frames, seconds of video and seconds as JSON; the clock starts when the model is loaded.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

BATCH = 16
TOWERS = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}
DECODERS = ("pyav", "torchcodec")
Frame = NDArray[Any]


def frames_by_pyav(path: Path, fps: float) -> Iterator[Frame]:
    """Yield uint8 [H, W, 3] every 1 / fps seconds."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        due = None
        for frame in container.decode(video=0):
            if frame.time is None:
                continue
            due = frame.time if due is None else due
            if frame.time >= due - 1e-6:
                due += 1 / fps
                yield frame.to_ndarray(format="rgb24")


def frames_by_torchcodec(path: Path, fps: float) -> Iterator[Frame]:
    """Yield uint8 [H, W, 3] every 1 / fps seconds."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=0)
    begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    for start in np.arange(begin, end, BATCH / fps):
        due = [float(second) for second in np.arange(start, min(start + BATCH / fps, end), 1 / fps)]
        yield from decoder.get_frames_played_at(due).data.numpy()


def main() -> None:
    """Embed all videos of the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--backbone", type=Path, required=True, help="directory of the model")
    parser.add_argument("--fps", type=float, default=2.0, help="frames per second")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--decoder", choices=DECODERS, default="pyav")
    options = parser.parse_args()
    if options.decoder == "torchcodec":
        import torchcodec  # noqa: F401  before the clock starts

    kind = json.loads((options.backbone / "config.json").read_text())["model_type"]
    loader: Any = getattr(transformers, TOWERS.get(kind, "AutoModel"))
    dtype = getattr(torch, options.dtype)
    model = loader.from_pretrained(
        options.backbone, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
    ).eval()
    processor: Any = transformers.AutoImageProcessor.from_pretrained(options.backbone, local_files_only=True)
    read = {"pyav": frames_by_pyav, "torchcodec": frames_by_torchcodec}[options.decoder]

    def embed(frames: list[Frame]) -> torch.Tensor:
        pixels = processor(images=frames, return_tensors="pt")["pixel_values"].to(dtype)
        found = model(pixel_values=pixels)
        embeddings: torch.Tensor = found.image_embeds if "image_embeds" in found else found.pooler_output
        return embeddings.float()

    embeddings, begin = [], time.monotonic()
    with torch.inference_mode():
        for path in sorted(path for path in options.videos.rglob("*") if path.is_file()):
            batch: list[Frame] = []
            for frame in read(path, options.fps):
                batch.append(frame)
                if len(batch) == BATCH:
                    embeddings.append(embed(batch))
                    batch = []
            if batch:
                embeddings.append(embed(batch))
    num_frames = sum(map(len, embeddings))
    spent = time.monotonic() - begin
    print(json.dumps({"frames": num_frames, "video_s": num_frames / options.fps, "seconds": spent}))


if __name__ == "__main__":
    main()
