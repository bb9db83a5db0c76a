"""Record results that a refactor must not change, and compare the results of the present code with the record.

    OMP_NUM_THREADS=1 python scripts/record_behaviour.py record      # writes tests/golden/behaviour/
    OMP_NUM_THREADS=1 python scripts/record_behaviour.py compare     # runs this code; exits with 1 if a result changed
    OMP_NUM_THREADS=1 python scripts/record_behaviour.py compare training/mae samples/bundled

The record contains, in the file formats of the recorded commit:

- ``training/NAME/``: a tiny run of one configuration. ``config.yaml`` is written by the run. ``checkpoints.tar.xz`` is
  its folder ``checkpoints/`` before the first step (for two runs also at step 10, with the optimizers' moments).
  ``losses.json`` has all metrics of its 50 steps. A comparison unpacks the checkpoint and resumes the run as a user
  would, so the code must read old configurations, weights and optimizer states, and then compute the same losses.
- ``tokenizers/``, ``generators/``, ``backbones/`` and ``tokens/``: exported pipelines and a token cache, which these
  runs read.
- ``pipelines/NAME/``: tiny pipelines with random weights, as ``save_pretrained`` wrote them.
- ``samples/NAME.json``: all codes, and the digest and a few values of the pixels, from seeded calls of the bundled
  model, the tiny pipelines and exported backbones.

``record`` needs the code of the commit in ``machine.json``, because it patches the training loop. ``compare`` uses only
the public interface. If a refactor renames an argument, rename it in the calls below; if it renames a metric, add the
new name to `RENAMED`. The record itself does not change.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "golden" / "behaviour"
LOSS_TOLERANCE = 1e-6  # relative
PIXEL_TOLERANCE = 1e-5  # absolute, of values in [0, 1] and of features
RENAMED: dict[str, str] = {}  # metric as recorded -> metric as it is called now


# ------------------------------------------------------------------------------------------------------------ the runs


@dataclass
class Run:
    """A tiny run: a configuration of ``configs/`` and its overrides, as on the command line.

    exports: the folder of the record to which the run's pipeline is copied, for the runs that read it.
    starts: the steps whose checkpoints are kept.
    """

    config: str
    overrides: list[str] = field(default_factory=list)
    exports: str | None = None
    starts: tuple[int, ...] = (0,)


TRAINING = [
    "training.steps=50",
    "training.batch_size=8",
    "training.learning_rate=3e-3",
    "training.warmup_steps=5",
    "training.decay=constant",  # the rate of a step does not depend on their number, so a few steps can be compared
    "training.precision=fp32",
    "training.workers=0",
    "training.log_every=1",
    "training.sample_every=0",
    "training.checkpoint_every=10",
    "training.keep_checkpoints=9",
]
PICTURES = ["data={type: npz, path: pictures.npz}", "holdout=8"]
EMOJI = ["data={type: emoji, groups: subcategory, classes: [heart, time]}"]
TOKENS = ["data={type: tokens, path: tokens/emoji}"]


def videos(frames: int) -> list[str]:
    return [f"data={{type: videos, path: videos.npz, frames: {frames}}}", "holdout=4"]


def settings(prefix: str, **values: Any) -> list[str]:
    return [f"{prefix}.{name}={json.dumps(value)}" for name, value in values.items()]


def coders(**values: Any) -> list[str]:
    """Return settings of both the encoder and the decoder."""
    return [line for part in ("encoder", "decoder") for line in settings(f"stage.tokenizer.{part}", **values)]


CONV = [*coders(width=4, multipliers=[1, 2], blocks=1, middle_blocks=0), "stage.perceptual=0"]
ATTENTION = coders(attention=[1], hidden_dim=8)
VIT = [*coders(size=16, patch=4, width=16, depth=1, heads=2), "stage.perceptual=0"]
SMALL_VQ = settings("stage.tokenizer.quantizer", codebook_size=16, dim=4)
ADVERSARIAL = settings("stage.adversarial", start=10, warmup=10, width=4, layers=1)
ALONE = ["stage.adversarial=null"]  # without a discriminator
MODEL = settings("stage.model", width=16, depth=2, heads=2)
DECODER = settings("stage.model", decoder_depth=1, decoder_heads=2)
NARROW = [*DECODER, "stage.model.decoder_width=8"]
STEPS = ["stage.scheduler.num_inference_steps=3"]
PATCHES = ["stage.tokens={type: patches, patch: 4}", *PICTURES]
PIXELS = ["stage.masking.target.patch=4"]
BLOCK = ["stage.masking.sampler.min_block=2"]
HIERA = settings("stage.model", width=16, heads=2, stages=[1, 1], pools=1)
VIEWS = settings("augment", small=2, small_size=8)
DISTILLED = (
    "[{type: class_distillation, prototypes: 12, first_temperature: 0.04, teacher_temperature: 0.07, warmup: 20}]"
)
IBOT = [
    *settings("stage.model", head_hidden=12, head_bottleneck=8),
    *settings("stage.masking.target", dim=12, warmup=20),
    f"stage.masking.auxiliary={DISTILLED}",
]
TEACHER = ["stage.teacher={type: torchscript, path: teacher.pt}"]

# In this order: a run may read what one before it exports.
RUNS: dict[str, Run] = {
    # Tokenizers.
    "emoji-tokenizer": Run(
        "tokenizer/emoji", [*CONV, *SMALL_VQ, *EMOJI, "stage.tokenizer.quantizer.codebook_size=32"],
        "tokenizers/emoji", (0, 10),
    ),
    "vqgan": Run("tokenizer/vqgan", [*CONV, *ATTENTION, *SMALL_VQ, *ADVERSARIAL, *PICTURES], "tokenizers/vqgan"),
    "titok": Run("tokenizer/titok", [*VIT, *coders(tokens=6), *SMALL_VQ, *ALONE, *PICTURES], "tokenizers/titok"),
    "rqvae": Run(
        "tokenizer/rqvae",
        [*CONV, *ATTENTION, *settings("stage.tokenizer.quantizer.quantizer", codebook_size=16, dim=4), *ALONE,
         *PICTURES],
    ),
    "maskbit-tokenizer": Run(
        "tokenizer/maskbit",
        [*CONV, *coders(middle_blocks=1), *settings("stage.tokenizer.quantizer", bits=6, annealing_steps=20), *ALONE,
         *PICTURES],
        "tokenizers/maskbit",
    ),
    "givt-tokenizer": Run(
        "tokenizer/givt",
        [*CONV, *coders(middle_blocks=1), "stage.tokenizer.quantizer.dim=3", *ADVERSARIAL, *PICTURES],
        "tokenizers/givt",
    ),
    "vqkd": Run(
        "tokenizer/vqkd",
        [*VIT[:-1], *coders(head="tanh"), *settings("stage.tokenizer.decoder", size=4, patch=1, channels=5), *SMALL_VQ,
         *TEACHER, *PICTURES],
        "tokenizers/vqkd",
    ),
    "centroids": Run(
        "tokenizer/centroids",
        [*settings("stage.tokenizer.quantizer", codebook_size=16), "stage.points=400", "training.steps=20", *PICTURES],
        "tokenizers/centroids",
    ),
    "causal-tokenizer": Run(
        "video/causal_tokenizer",
        [*CONV, *coders(temporal=1), "stage.tokenizer.quantizer.bits=4", *ADVERSARIAL, *videos(5)],
    ),
    "magvit-tokenizer": Run(
        "video/magvit_tokenizer", [*CONV, *coders(temporal=1), *SMALL_VQ, *ALONE, *videos(5)], "tokenizers/magvit"
    ),
    "frame-tokenizer": Run(
        "video/moving_mnist_tokenizer",
        [*coders(width=8, channels=3, patch=4, multipliers=[1]), *SMALL_VQ, *videos(1)],
        "tokenizers/frames",
    ),
    # Generators.
    "emoji": Run(
        "generation/emoji", [*MODEL, *STEPS, *TOKENS, "stage.model.depth=1", "stage.tokenizer=tokenizers/emoji"],
        "generators/emoji", (0, 10),
    ),
    "imagenet256": Run("generation/imagenet256", [*MODEL, *STEPS, *PICTURES, "stage.tokenizer=tokenizers/vqgan"]),
    "mage": Run("generation/mage", [*MODEL, *DECODER, *STEPS, *PICTURES, "stage.tokenizer=tokenizers/vqgan"]),
    "mage-c": Run(
        "generation/mage_c",
        [*MODEL, *DECODER, *STEPS, *PICTURES, "stage.tokenizer=tokenizers/vqgan",
         "stage.masking.auxiliary=[{type: info_nce, hidden: 12, out: 8, temperature: 0.2, weight: 0.1}]"],
    ),
    "maskbit": Run("generation/maskbit", [*MODEL, *STEPS, *PICTURES, "stage.tokenizer=tokenizers/maskbit"]),
    "givt": Run(
        "generation/givt",
        [*MODEL, *STEPS, *PICTURES, "stage.masking.objective.components=2", "stage.tokenizer=tokenizers/givt",
         "stage.scheduler.guidance_scale=1.0"],
    ),
    "autoregressive": Run(
        "generation/autoregressive_emoji", [*MODEL, *TOKENS, "stage.tokenizer=tokenizers/emoji"], "backbones/causal"
    ),
    "critic": Run("generation/critic_emoji", [*TOKENS, "stage.generator=generators/emoji"]),
    # Representations.
    "mae": Run("representation/mae", [*MODEL, *NARROW, *PIXELS, *PATCHES], "backbones/mae"),
    "beit": Run("representation/beit", [*MODEL, *BLOCK, *PATCHES, "stage.target_tokenizer=tokenizers/vqkd"]),
    "beit2": Run(
        "representation/beit2",
        [*MODEL, *BLOCK, *PATCHES, *settings("stage.model", branch_depth=1, branch_layer=1),
         "stage.target_tokenizer=tokenizers/vqkd"],
    ),
    "ibot": Run("representation/ibot", [*MODEL, *IBOT, *BLOCK, *PATCHES, *VIEWS]),
    "hpm": Run("representation/hpm", [*MODEL, *NARROW, *PIXELS, *PATCHES, "stage.model.branch_predictions=48"]),
    "hiera": Run(
        "representation/hiera",
        [*HIERA, *NARROW, *PIXELS, *PATCHES, *settings("stage.model", patch=[2, 2], kernel=[3, 3])],
        "backbones/hiera",
    ),
    "ccvit": Run(
        "representation/ccvit",
        [*MODEL, *BLOCK, *PATCHES, *settings("stage.model", branch_depth=1, branch_layer=1, branch_predictions=48),
         "stage.masking.dropping.count=2", "stage.target_tokenizer=tokenizers/centroids",
         "stage.masking.auxiliary=[{type: branch, target: {type: pixels, patch: 4}, objective: mse}]"],
    ),
    # Videos.
    "maskvit": Run(
        "video/maskvit_bair",
        [*MODEL, *STEPS, *videos(4), "stage.model.windows=[[1, 0, 0], [0, 2, 2]]", "stage.actions=true",
         "stage.tokenizer=tokenizers/frames"],
    ),
    "moving-mnist-tasks": Run(
        "video/moving_mnist_tasks",
        [*MODEL, *STEPS, *videos(4), "stage.model.windows=[[1, 0, 0], [0, 2, 2]]", "stage.tokenizer=tokenizers/frames",
         "stage.tasks=[{type: prediction, frames: 2}, {type: interpolation, frames: 1}, {type: inpainting}]"],
    ),
    "videomae": Run(
        "video/videomae",
        [*MODEL, *NARROW, *PIXELS, *videos(4), "augment.flip=0", "stage.tokens={type: patches, patch: 4, frames: 2}"],
    ),
    "magvit": Run("video/magvit", [*MODEL, *STEPS, *videos(5), "stage.tokenizer=tokenizers/magvit"]),
}  # fmt: skip
# For the tests, one of each kind.
FAST_RUNS = ("emoji-tokenizer", "autoregressive", "mae", "magvit")
FAST_CALLS = ("no guidance", "inpaint", "vary")


# ------------------------------------------------------------------------------------------- a folder to run them in


def pictures_file(path: Path) -> None:
    """Write 40 images of 16 x 16 pixels (a noisy coloured square on grey) with three classes and text features."""
    rng = np.random.default_rng(0)
    images = rng.integers(200, 256, (40, 16, 16, 3), dtype=np.uint8)
    for image in images:
        y, x = rng.integers(0, 9, 2)
        image[y : y + 8, x : x + 8] = rng.integers(0, 225, 3) + rng.integers(0, 31, (8, 8, 3))
    text = (rng.integers(-64, 65, (40, 7, 5)) / 32).astype(np.float32)
    np.savez(path, images=images, labels=np.arange(40) % 3, text=text)


def videos_file(path: Path) -> None:
    """Write 16 videos of 6 frames of 16 x 16 pixels: the actions move a square."""
    rng = np.random.default_rng(1)
    clips = rng.integers(0, 32, (16, 6, 16, 16, 3), dtype=np.uint8)
    actions = rng.integers(-2, 3, (16, 6, 2))
    for clip, moves in zip(clips, actions):
        colour, place = rng.integers(128, 256, 3), rng.integers(0, 16, 2)
        for frame, move in zip(clip, moves):
            rows, columns = ((np.arange(6) + at) % 16 for at in place)
            frame[rows[:, None], columns] = colour
            place = place + move
    np.savez(path, videos=clips, actions=actions.astype(np.float32))


def teacher_file(path: Path) -> None:
    """Write a teacher: one convolution that maps patches of 4 x 4 pixels to 5 channels."""
    network = nn.Conv2d(3, 5, 4, 4)
    for parameter in network.parameters():
        with torch.no_grad():
            wave = torch.arange(parameter.numel(), dtype=torch.float64) * 0.7
            parameter.copy_(wave.sin().mul(0.2).view_as(parameter))
    torch.jit.save(torch.jit.script(network), path)


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """Enter a temporary working folder with the data, and train on one CPU thread."""
    before, threads = Path.cwd(), torch.get_num_threads()
    quiet = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, quiet), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown = contextlib.redirect_stderr(io.StringIO())  # progress bars
        try:
            shown.__enter__()
            os.chdir(folder)
            torch.set_num_threads(1)
            pictures_file(Path("pictures.npz"))
            videos_file(Path("videos.npz"))
            teacher_file(Path("teacher.pt"))
            yield Path(folder)
        finally:
            shown.__exit__(None, None, None)
            os.chdir(before)
            torch.set_num_threads(threads)


def bring(*names: str) -> None:
    """Copy the folders of the record that exist into the working folder."""
    for name in names:
        if (RECORD / name).is_dir():
            shutil.copytree(RECORD / name, name, dirs_exist_ok=True)


SHARED = ("tokenizers", "generators", "backbones", "tokens")  # what runs read


def pack(folder: Path, file: Path) -> None:
    """Pack ``folder`` into the .tar.xz ``file``; the same content gives the same bytes. The EMA begins as a copy of the
    weights, so the archive is about half as large as the files."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(file, "w:xz", preset=9) as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, str(Path(folder.name) / path.relative_to(folder)), recursive=False, filter=plain)


# ---------------------------------------------------------------------------------------------------------- training


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl`` without the time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@contextlib.contextmanager
def saving_before_the_first_step(folder: Path) -> Iterator[None]:
    """Make the loop save a checkpoint of step 0 in its own format, at the point where it would load one."""
    from maskgen.training import loop
    from maskgen.training.checkpoint import save_checkpoint

    def save(path: Path, modules: dict[str, nn.Module], optimizers: dict[str, Any]) -> int:
        save_checkpoint(folder / "checkpoints", 0, modules, optimizers, keep=9)
        return 0

    found = mock.patch.object(loop, "checkpoints", return_value=[Path()])
    with found, mock.patch.object(loop, "load_checkpoint", save):
        yield


def record_run(name: str) -> None:
    """Train without interruption, and keep configuration, first checkpoint, losses and exported pipeline."""
    from maskgen.training.run import run_config

    run, folder, kept = RUNS[name], Path("runs") / name, RECORD / "training" / name
    steps = [line for line in TRAINING if not (run.config.endswith("centroids") and "steps=50" in line)]
    with saving_before_the_first_step(folder):
        run_config(run.config, [*steps, *run.overrides, f"name={name}"])
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    shutil.copy(folder / "config.yaml", kept)
    for start in run.starts:
        if (folder / "checkpoints").is_dir():
            chosen = Path("packed") / name / str(start) / "checkpoints"
            shutil.copytree(folder / "checkpoints" / f"step_{start:08d}", chosen / f"step_{start:08d}")
            pack(chosen, kept / ("checkpoints.tar.xz" if start == 0 else f"checkpoints-{start}.tar.xz"))
    write_json(kept / "losses.json", metrics_of(folder))
    if run.exports:
        shutil.rmtree(RECORD / run.exports, ignore_errors=True)
        shutil.copytree(folder / "pipeline", RECORD / run.exports)
        shutil.copytree(folder / "pipeline", run.exports)
    if name == "emoji-tokenizer":
        record_tokens()


def record_tokens() -> None:
    """Write a token cache as ``maskgen encode`` does."""
    from maskgen.config import check, load
    from maskgen.pipelines.encode import encode_dataset
    from maskgen.pipelines.store import load_tokenizer
    from maskgen.registry import build
    from maskgen.training.run import DATA, run

    config = check(run, load("tokenizer/emoji", EMOJI), "emoji")
    encode_dataset(load_tokenizer("tokenizers/emoji"), build(DATA, config["data"]), "tokens/emoji")
    shutil.rmtree(RECORD / "tokens", ignore_errors=True)
    shutil.copytree("tokens", RECORD / "tokens")


def starts_of(name: str) -> list[int]:
    """Return the steps from which a recorded run can be resumed."""
    return sorted(
        int(path.name.removesuffix(".tar.xz").partition("-")[2] or 0)
        for path in (RECORD / "training" / name).glob("checkpoints*.tar.xz")
    ) or [0]


def resume(name: str, start: int, steps: int | None = None) -> list[dict[str, Any]]:
    """Resume a recorded run from the checkpoint at `start`, for `steps` steps or to the end, and return its metrics."""
    from maskgen.training.run import run_config

    kept, folder = RECORD / "training" / name, Path("runs") / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(kept / "config.yaml", folder)
    archive = kept / ("checkpoints.tar.xz" if start == 0 else f"checkpoints-{start}.tar.xz")
    if archive.is_file():  # k-means has no checkpoints and starts from its seed
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    run_config(str(folder / "config.yaml"), [] if steps is None else [f"training.steps={start + steps}"])
    return metrics_of(folder)


# ------------------------------------------------------------------------------------------------ seeded calls, sampled


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def each(count: int) -> list[torch.Generator]:
    return [seeded(100 + i) for i in range(count)]


def emoji(index: int) -> Tensor:
    """Return a bundled image, float (1, 3, 32, 32) in [0, 1]."""
    from maskgen.data.emoji import Emoji

    return (Emoji()[index]["pixels"][None] + 1) / 2


def hole(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def clip(frames: int, channels: int = 3, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    """Return a video (1, c, t, h, w) in [-1, 1] with 256 levels."""
    levels = torch.randint(0, 256, (1, channels, frames, height, width), generator=seeded(seed))
    return levels.float() / 127.5 - 1


Call = Callable[[str], Any]  # output type -> codes or pixels


def scheduled(pipeline: Any, **changes: Any) -> Any:
    """Return the pipeline with other settings of its scheduler."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)
    changed = type(pipeline)(**{**pipeline.components, "scheduler": scheduler}, class_names=pipeline.class_names)
    changed.set_progress_bar_config(disable=True)
    return changed


@cache
def image_pipeline(folder: str | None) -> Any:
    from maskgen import MaskedImagePipeline

    pipeline = MaskedImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def video_pipeline(folder: str) -> Any:
    from maskgen import MaskedVideoPipeline

    pipeline = MaskedVideoPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def bundled() -> dict[str, Call]:
    """Return calls of generation and of every editing task with the bundled model."""
    p = image_pipeline(None)
    heart, cat = emoji(12), emoji(220)
    large = torch.cat([emoji(300), emoji(310)], 3).repeat(1, 1, 2, 1)  # 64 x 64
    square, region = hole(32, 32, 8, 8, 24, 24), hole(64, 64, 20, 30, 40, 60)

    def halton(output: str) -> Any:
        return scheduled(p, order="halton", roll=True)(["heart", "time"], generator=seeded(4), output_type=output)

    def remasked(output: str) -> Any:
        changed = scheduled(p, remask="rescale", remask_eta=0.5, top_k=50, top_p=0.9, mask_schedule="arccos")
        return changed(["heart", "time"], generator=seeded(5), output_type=output)

    calls: dict[str, Call] = {
        "labels": lambda o: p(["heart", "cat-face", 3, 57], generator=seeded(0), output_type=o),
        "no guidance": lambda o: p(["heart", "cat-face"], guidance_scale=1.0, generator=seeded(1), output_type=o),
        "guidance 4, own generators": lambda o: p(
            ["heart", 98], 2, num_inference_steps=8, guidance_scale=4.0, generator=each(4), output_type=o
        ),
        "without a class": lambda o: p(num_images_per_prompt=3, generator=seeded(2), output_type=o),
        "halton": halton,
        "remasked": remasked,
        "inpaint": lambda o: p.inpaint(heart, square, "heart", generator=seeded(0), output_type=o),
        "inpaint, encoder's dilation": lambda o: p.inpaint(
            heart, square, None, dilation="auto", fill="grey", generator=seeded(1), output_type=o
        ),
        "inpaint, cropped": lambda o: p.inpaint(
            large, region, 7, padding_mask_crop=6, feather=3, num_images_per_prompt=2, generator=each(2), output_type=o
        ),
        "inpaint, largest box": lambda o: p.inpaint(large, region, 7, generator=seeded(3), output_type=o),
        "outpaint": lambda o: p.outpaint(heart, left=8, bottom=12, class_labels=5, generator=seeded(0), output_type=o),
        "outpaint by windows": lambda o: p.outpaint(
            cat, right=24, top=8, class_labels="animal-bird", overlap=2, dilation=1, generator=each(1), output_type=o
        ),
        "edit a box": lambda o: p.edit(cat, "animal-bird", box=[4, 4, 20, 28], generator=seeded(0), output_type=o),
        "edit a mask": lambda o: p.edit(cat, 14, mask_image=square, grow=0, generator=seeded(1), output_type=o),
        "vary": lambda o: p.vary(heart, 0.6, "heart", num_images_per_prompt=2, generator=each(2), output_type=o),
        "interpolate": lambda o: p.interpolate(
            heart, cat, 5, 0.5, "heart", guidance_scale=2.0, generator=seeded(0), output_type=o
        ),
        "join": lambda o: p.join(heart, cat, 16, 24, "heart", generator=seeded(0), output_type=o),
        "join, wide": lambda o: p.join(heart, cat, 24, overlap=3, generator=seeded(1), output_type=o),
    }
    return {name: of_images(call) for name, call in calls.items()}


def of_images(call: Call) -> Call:
    return lambda output: call(output).images


def of_frames(call: Call) -> Call:
    return lambda output: call(output).frames


def of_network(name: str) -> Callable[[], dict[str, Call]]:
    """Return calls of generation, inpainting and variation with a tiny pipeline."""

    def calls() -> dict[str, Call]:
        p = image_pipeline(str(RECORD / "pipelines" / name))
        labels = [0, 2, 1] if p.num_classes else None
        options = {} if labels else {"num_images_per_prompt": 3}
        several = p.vqvae.codebook_size > 0
        height, width = p.size
        picture = clip(1, 3, height, width, seed=7)[:, :, 0] / 2 + 0.5
        made: dict[str, Call] = {"generate": lambda o: p(labels, generator=seeded(0), output_type=o, **options)}
        if labels and several:
            made["guided"] = lambda o: p(labels, guidance_scale=3.0, generator=each(3), output_type=o)
            made["without a class"] = lambda o: p(num_images_per_prompt=2, generator=seeded(1), output_type=o)
        label = 1 if labels else None
        if len(p.transformer.grid) == 2:
            square = hole(height, width, height // 4, 0, height // 2 + 1, width // 2)
            made["inpaint"] = lambda o: p.inpaint(picture, square, label, generator=seeded(2), output_type=o)
            made["outpaint"] = lambda o: p.outpaint(
                picture, right=6, class_labels=label, generator=seeded(3), output_type=o
            )
        made["vary"] = lambda o: p.vary(picture, 0.5, label, generator=seeded(4), output_type=o)
        return {key: of_images(call) for key, call in made.items()}

    return calls


def of_videos(name: str) -> Callable[[], dict[str, Call]]:
    """Return calls of every video task with a tiny pipeline."""

    def calls() -> dict[str, Call]:
        p = video_pipeline(str(RECORD / "pipelines" / name))
        frames, height, width = p.size
        several, slides = p.config.tasks is not None, p.factor == 1 and p.config.tasks is None

        def video(count: int, more: int = 0) -> Tensor:
            return clip(count, 3, height, width + more, seed=count)

        def actions(count: int) -> dict[str, Any]:
            if "actions" not in p.transformer.conditioner:
                return {}
            return {"actions": torch.randint(-2, 3, (count, 2), generator=seeded(9)).float()}

        mask = torch.zeros(frames, height, width, dtype=torch.bool)
        mask[1:, height // 4 : height // 2 + 1, : width // 2] = True
        labels = {"class_labels": 1} if p.class_names and not several else {}
        made: dict[str, Call] = {
            "generate": lambda o: p(generator=seeded(0), output_type=o, **labels, **actions(frames)),
            "predict": lambda o: p.predict(
                video(1), frames - 1, generator=seeded(1), output_type=o, **labels, **actions(frames)
            ),
            "predict several": lambda o: p.predict(
                video(1), frames - 1, num_videos_per_prompt=2, generator=each(2), output_type=o, **actions(frames)
            ),
            "interpolate": lambda o: p.interpolate(
                video(1), video(1).flip(-1), frames - 2, generator=seeded(2), output_type=o, **labels, **actions(frames)
            ),
            "inpaint": lambda o: p.inpaint(
                video(frames), mask, generator=seeded(3), output_type=o, **labels, **actions(frames)
            ),
            "outpaint": lambda o: p.outpaint(
                video(frames)[..., : width // 2], right=width // 2, generator=seeded(4), output_type=o, **labels,
                **actions(frames),
            ),
        }  # fmt: skip
        if slides:
            made["predict beyond"] = lambda o: p.predict(
                video(2), frames + 1, generator=seeded(5), output_type=o, **labels, **actions(frames + 3)
            )
            made["outpaint beyond"] = lambda o: p.outpaint(
                video(frames), right=4, after=2, generator=seeded(6), output_type=o, **labels, **actions(frames + 2)
            )
        else:  # decoded frames are encoded again, so there are only pixels
            made["predict beyond, pixels"] = lambda o: p.predict(
                video(2), frames + 1, generator=seeded(5), output_type=o, **labels, **actions(frames + 3)
            )
        return {key: of_frames(call) for key, call in made.items()}

    return calls


def critic() -> dict[str, Call]:
    p = image_pipeline(str(RECORD / "pipelines" / "critic"))
    return {
        "by the critic": of_images(lambda o: p(["a", "b"], guidance_scale=2.0, generator=seeded(0), output_type=o)),
    }


def raster() -> dict[str, Call]:
    """Return calls of the autoregressive baseline, which gives only pixels."""
    from maskgen.pipelines.backbone import load_backbone  # noqa: F401  (the folder has a backbone's layout)
    from maskgen.pipelines.raster import sample_raster
    from maskgen.pipelines.store import load_tokenizer
    from maskgen.transformer.autoregressive import CausalTransformer

    folder = RECORD / "pipelines" / "autoregressive"
    parts = load_tokenizer(folder), CausalTransformer.from_pretrained(folder / "transformer")

    def sample(output: str, **options: Any) -> Any:
        return (sample_raster(*parts, [0, 1, 2], seeded(0), **options) + 1) / 2

    return {
        "raster, pixels": sample,
        "raster, guided, pixels": lambda o: sample(o, guidance_scale=2.0, guidance_schedule="linear"),
    }


def features() -> dict[str, Call]:
    """Return calls that give the features of all layers of exported backbones, for images and videos."""
    from maskgen.pipelines.backbone import load_backbone

    def of(folder: Path, pixels: Tensor) -> Call:
        backbone = load_backbone(folder)
        return lambda output: torch.cat([layer.flatten() for layer in backbone.layers(pixels)])

    pictures = clip(1, seed=3)[:, :, 0]
    return {
        "mae, pixels": of(RECORD / "backbones" / "mae", pictures),
        "hiera, pixels": of(RECORD / "backbones" / "hiera", pictures),
        "bundled, pixels": of(ROOT / "maskgen" / "pretrained" / "emoji", emoji(5) * 2 - 1),
    }


# --------------------------------------------------------------------------------- tiny pipelines, made once and saved


def randomised(network: Any) -> Any:
    """Give the network random weights; as after training, none is zero."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def tokenizer_of(quantizer: dict[str, Any], **options: Any) -> Any:
    from maskgen import Tokenizer

    part: dict[str, Any] = {"width": 4, "multipliers": [1, 2], "blocks": 1, "middle_blocks": 0, **options}
    if quantizer == VQ and not options:  # the recorded networks need no other tokenizer
        part, quantizer = {"type": "patch", "patch": 4}, {**VQ, "dim": 48}
    return Tokenizer(encoder=part, quantizer=quantizer, decoder=part).eval()


VQ = {"codebook_size": 16, "dim": 4}
BITS = {"type": "lfq", "bits": 6}
LATENTS = {"type": "gaussian", "dim": 3}
MULTICHANNEL = {"type": "multichannel", "chunks": 2, "quantizer": {"codebook_size": 16, "dim": 2}}
PLAIN = {"mlp": "gelu", "qk_norm": False, "rope": False}
# The quantizer of the tokenizer, and options of the transformer (4 x 4 tokens, three classes).
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "in-context": (VQ, {"condition": "in_context", "registers": 1, "embedding_norm": True, **PLAIN}),
    "adaln": (VQ, {"condition": "adaln", "norm": "rms"}),
    "adaln-shared": (VQ, {"condition": "adaln_shared"}),
    "unconditional": (VQ, {"num_classes": None, "relative_bias": "block", "windows": [[0, 0], [2, 2]]}),
    "mage": (VQ, {"registers": 1, "decoder_depth": 1, "decoder_heads": 2, "pad": "class_token", **PLAIN}),
    "maskbit": (BITS, {"codebook_size": 8, "groups": 2, "embedding": "bits", "condition": "in_context", **PLAIN}),
    "movq": (MULTICHANNEL, {"groups": 2}),
    "givt": (LATENTS, {"codebook_size": 0, "token_dim": 3, "predictions": 14, **PLAIN}),
    "titok": (VQ, {"grid": (6,)}),
    "code-vectors": (VQ, {"code_dim": 48}),
}
VIDEO_NETWORKS: dict[str, dict[str, Any]] = {
    "video-maskvit": {"windows": [[1, 0, 0], [0, 2, 2]], "positions": "learned_sum"},
    "video-actions": {"windows": [[1, 0, 0], [0, 2, 2]], "positions": "learned_sum", "action_dim": 2},
    "video-classes": {"num_classes": 3},
    "video-causal": {},
    "video-tasks": {"condition": "in_context", "embedding_norm": True, **PLAIN},
}
SMALL = {"width": 8, "depth": 2, "heads": 2}


def record_pipelines() -> None:
    """Write all of ``pipelines/``."""
    from maskgen import MaskedImagePipeline, MaskedVideoPipeline, MaskScheduler, MaskTransformer, Tokenizer
    from maskgen.pipelines.backbone import save_backbone
    from maskgen.tasks.conditions import Prompts
    from maskgen.transformer.autoregressive import CausalTransformer

    shutil.rmtree(RECORD / "pipelines", ignore_errors=True)
    torch.manual_seed(0)
    names = ["a", "b", "c"]
    scheduler = MaskScheduler(num_inference_steps=4)
    for name, (quantizer, options) in NETWORKS.items():
        if name == "titok":
            part = {"type": "vit", "size": 16, "patch": 4, "width": 8, "depth": 1, "heads": 2, "tokens": 6}
            tokenizer = Tokenizer(encoder=part, quantizer=quantizer, decoder=part).eval()
        else:
            tokenizer = tokenizer_of(quantizer)
        settings = {"codebook_size": 16, "grid": (4, 4), "num_classes": 3, **SMALL, **options}
        network = randomised(MaskTransformer(**settings))
        if name == "code-vectors":
            network.code_vectors.take(tokenizer.quantizer.embed(torch.arange(16)[None])[0].T)
        classes = names if settings["num_classes"] else None
        MaskedImagePipeline(tokenizer, network, scheduler, classes).save_pretrained(RECORD / "pipelines" / name)
    tokenizer, options = tokenizer_of(VQ), {"grid": (4, 4), "num_classes": 3, **SMALL}
    parts = [randomised(MaskTransformer(16, **options, **more)) for more in ({}, {"predictions": 1})]
    ordered = MaskScheduler(num_inference_steps=4, order="critic")
    MaskedImagePipeline(tokenizer, parts[0], ordered, names, parts[1]).save_pretrained(RECORD / "pipelines/critic")
    save_backbone(tokenizer, randomised(CausalTransformer(16, **options)), RECORD / "pipelines/autoregressive")
    for name, options in VIDEO_NETWORKS.items():
        causal = {"type": "causal", "temporal": 1} if name in ("video-causal", "video-tasks") else {}
        more: dict[str, Any] = {}
        if name == "video-tasks":
            more = {"tasks": ["generation", "prediction", "interpolation", "outpainting", "inpainting"]}
            options = {**options, "num_classes": Prompts(more["tasks"]).count}
        network = randomised(MaskTransformer(16, **{"grid": (3 if causal else 4, 4, 4), **SMALL, **options}))
        classes = names if name == "video-classes" else None
        pipeline = MaskedVideoPipeline(tokenizer_of(VQ, **causal), network, scheduler, classes, **more)
        pipeline.save_pretrained(RECORD / "pipelines" / name)


SAMPLES: dict[str, Callable[[], dict[str, Call]]] = {
    "bundled": bundled,
    **{name: of_network(name) for name in NETWORKS},
    **{name: of_videos(name) for name in VIDEO_NETWORKS},
    "critic": critic,
    "autoregressive": raster,
    "features": features,
}


def sampled(name: str, keys: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return codes and pixels of every call, or of the calls in `keys`."""
    made: dict[str, dict[str, Any]] = {}
    for key, call in SAMPLES[name]().items():
        if keys is not None and key not in keys:
            continue
        codes = None if key.endswith("pixels") else call("codes")
        pixels = torch.as_tensor(call("pt")).detach().float().contiguous()
        flat, entry = pixels.flatten().double(), {}
        if codes is not None and codes.is_floating_point():
            entry["latents"] = codes.flatten().double().tolist()
        elif codes is not None:
            entry["codes"] = codes.flatten().tolist()
        few = flat[torch.linspace(0, len(flat) - 1, 24).long()]
        made[key] = {
            **({} if codes is None else {"shape": list(codes.shape)}),
            **entry,
            "pixels_shape": list(pixels.shape),
            "pixels_sha256": hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
            "pixels": few.tolist(),
        }
    return made


# ---------------------------------------------------------------------------------------------------------- comparison


@dataclass
class Result:
    """The comparison of one entry of the record.

    difference: largest absolute difference of all numbers; relative: largest relative difference of the losses,
    infinity if a loss is missing; codes: number of codes that differ; note: where a result differs or is missing.
    """

    name: str
    bitwise: bool = True
    difference: float = 0.0
    relative: float = 0.0
    codes: int = 0
    pixels: float = 0.0
    note: str = ""

    def right(self, loss_tolerance: float = LOSS_TOLERANCE, pixel_tolerance: float = PIXEL_TOLERANCE) -> bool:
        return self.relative <= loss_tolerance and self.codes == 0 and self.pixels <= pixel_tolerance

    def line(self) -> str:
        if self.bitwise:
            return f"{self.name}: bitwise equal"
        found = f"largest absolute difference {self.difference:.3g}, losses relative {self.relative:.3g}"
        return f"{self.name}: {found}, codes that differ {self.codes}; {self.note}"


def compare_losses(name: str, found: list[dict[str, Any]], wanted: list[dict[str, Any]], last: bool) -> Result:
    """Compare metrics line by line. A line of `found` may have more metrics. Without `last`, the run ended early, and
    only losses and the metrics of the trained modules are compared."""
    result = Result(name)
    by_step = {line["step"]: line for line in found}
    for line in wanted:
        now = by_step.get(line["step"], {})
        for key, value in line.items():
            other = now.get(RENAMED.get(key, key))
            loss = key == "error" or key.endswith("/loss")
            if other == value or not (last or loss or key.startswith(("model/", "discriminator/"))):
                continue
            difference = abs(other - value) if other is not None else float("inf")
            if result.bitwise or difference > result.difference:
                result.note = f"step {line['step']}, {key}: {other!r}, recorded {value!r}"
            result.bitwise, result.difference = False, max(result.difference, difference)
            if loss:
                result.relative = max(result.relative, difference / max(abs(value), 1e-12))
    return result


def compare_run(name: str, start: int = 0, steps: int | None = None) -> Result:
    """Resume a recorded run and compare its losses; call it in a :func:`workshop` with :func:`bring` (SHARED)."""
    lines = json.loads((RECORD / "training" / name / "losses.json").read_text())
    end = max(line["step"] for line in lines) if steps is None else start + steps
    wanted = [line for line in lines if start < line["step"] <= end]
    found = resume(name, start, steps)
    return compare_losses(f"training/{name} from step {start}", found, wanted, last=steps is None)


def compare_samples(name: str, keys: Collection[str] | None = None) -> list[Result]:
    """Repeat the recorded calls of a pipeline, all or those in `keys`, and compare codes and pixels."""
    wanted, results = json.loads((RECORD / "samples" / f"{name}.json").read_text()), []
    found = sampled(name, keys)
    for key, entry in wanted.items():
        if keys is not None and key not in keys:
            continue
        result, now = Result(f"samples/{name}: {key}"), found.get(key)
        if now is None or any(now.get(shape) != entry.get(shape) for shape in ("shape", "pixels_shape")):
            result = Result(result.name, False, float("inf"), codes=1, note="no such sample, or of another shape")
            results.append(result)
            continue
        result.codes = sum(a != b for a, b in zip(now.get("codes", ()), entry.get("codes", ())))
        numbers = [(now[kind], entry[kind]) for kind in ("pixels", "latents") if kind in entry]
        result.difference = max(abs(a - b) for one, two in numbers for a, b in zip(one, two))
        result.pixels = result.difference
        same = now["pixels_sha256"] == entry["pixels_sha256"]
        result.bitwise = same and result.codes == 0 and result.difference == 0
        result.note = "the pixels' digest is the same" if same else "the pixels' digest differs"
        results.append(result)
    return results


# ------------------------------------------------------------------------------------------------------------- commands


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, list):  # one line each
        path.write_text("[\n" + ",\n".join(json.dumps(line) for line in value) + "\n]\n")
    else:
        path.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}\n")


def machine() -> dict[str, Any]:
    """Return facts about the machine on which the numbers may depend."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    command = ["git", "log", "-1", "--format=%H", "--", "maskgen"]  # the last change of the code itself
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip(),
        "cpu": model,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def record(names: list[str]) -> None:
    """Write the record, or only the entries in `names`."""
    clock = time.perf_counter()
    with workshop():
        bring(*SHARED)
        for name in RUNS:
            if not names or f"training/{name}" in names:
                record_run(name)
                print(f"training/{name}: recorded, {time.perf_counter() - clock:.1f} s so far", flush=True)
        if not names:
            record_pipelines()
        for name in SAMPLES:
            if not names or f"samples/{name}" in names:
                write_json(RECORD / "samples" / f"{name}.json", sampled(name))
                print(f"samples/{name}: recorded, {time.perf_counter() - clock:.1f} s so far", flush=True)
    write_json(RECORD / "machine.json", machine())


def compare(names: list[str]) -> bool:
    """Compare all entries, or those in `names`; print a line for each and return whether all agree."""
    kept, here = json.loads((RECORD / "machine.json").read_text()), machine()
    for key, value in kept.items():
        print(f"{key}: recorded {value}, now {here[key]}" if here[key] != value else f"{key}: {value}")
    all_right, all_same, clock = True, True, time.perf_counter()
    with workshop():
        bring(*SHARED)
        for entry in entries():
            kind, _, name = entry.partition("/")
            if names and entry not in names:
                continue
            started = time.perf_counter()
            try:
                results = [compare_run(name, start) for start in starts_of(name)] if kind == "training" else []
                results = results or compare_samples(name)
            except Exception as error:  # an error in one entry does not hide the others
                results = [Result(entry, False, float("inf"), float("inf"), note=f"{type(error).__name__}: {error}")]
            took = time.perf_counter() - started
            for result in results:
                print(result.line() if result.right() else f"MOVED {result.line()}", flush=True)
            print(f"    ({entry}: {took:.1f} s)", flush=True)
            all_right &= all(result.right() for result in results)
            all_same &= all(result.bitwise for result in results)
    verdict = "all bitwise equal" if all_same else "within the tolerances" if all_right else "MOVED"
    print(f"{verdict}; {time.perf_counter() - clock:.0f} s")
    return all_right


def entries() -> list[str]:
    """Return the names of all entries."""
    runs = [f"training/{path.parent.name}" for path in sorted(RECORD.glob("training/*/losses.json"))]
    return runs + [f"samples/{path.stem}" for path in sorted(RECORD.glob("samples/*.json"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["record", "compare"])
    parser.add_argument("names", nargs="*", help="entries, as training/mae or samples/bundled; all if none")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    if arguments.command == "record":
        record(arguments.names)
        return 0
    known = entries()
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"no such entries: {', '.join(unknown)}; there are {', '.join(known)}")
    return 0 if compare(arguments.names) else 1


if __name__ == "__main__":
    sys.exit(main())
