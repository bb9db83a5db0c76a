"""Every task of the pipelines, as functions of a pipeline and a generator."""

from functools import partial

import torch

import flat
from given import an_image, clip, mask
from maskgen import MaskedImagePipeline, MaskedVideoPipeline, MaskScheduler, Tokenizer

CODER = {"channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1}


def image_pipeline(**scheduler):
    """The bundled one: 8 x 8 tokens of 32 x 32 pixels."""
    pipeline = MaskedImagePipeline.from_pretrained()
    pipeline.scheduler = MaskScheduler.from_config(pipeline.scheduler.config, num_inference_steps=6, **scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def video_pipeline():
    """Random weights: 4 x 4 x 4 tokens of 4 frames of 8 x 8 pixels."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(CODER, {"codebook_size": 16, "dim": 4}, CODER).eval()
    transformer = flat.transformer(16, (4, 4, 4), width=32, depth=2, heads=2, windows=[[1, 0, 0], [0, 2, 2]]).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pipeline = MaskedVideoPipeline(tokenizer, transformer, MaskScheduler(num_inference_steps=3))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image_tasks():
    """By name, ``(pipeline, **options) -> output``."""
    images, hole = [an_image(32, 32, seed) for seed in (0, 1)], mask((8, 8, 24, 24), (32, 32))
    return {
        "generate": lambda p, **o: p(["heart", "cat-face"], guidance_scale=1.5, **o),
        "inpaint": lambda p, **o: p.inpaint(images[0], hole, "heart", **o),
        "outpaint": lambda p, **o: p.outpaint(images[0], left=8, bottom=8, **o),
        "edit": lambda p, **o: p.edit(images[0], "cat-face", box=(0, 0, 16, 16), **o),
        "vary": lambda p, **o: p.vary(images[0], 0.5, **o),
        "interpolate": lambda p, **o: p.interpolate(*images, num_frames=3, **o),
        "join": lambda p, **o: p.join(*images, gap=16, **o),
    }


def video_tasks():
    """By name, ``(pipeline, **options) -> output``."""
    known, hidden = clip(1, 1, (4, 8, 8)), torch.zeros(4, 8, 8, dtype=torch.bool)
    hidden[:, 2:6, 2:6] = True
    return {
        "generate": lambda p, **o: p(**o),
        "predict": lambda p, **o: p.predict(known[:, :, :2], 4, **o),
        "interpolate": lambda p, **o: p.interpolate(known[:, :, :1], known[:, :, 3:], 2, **o),
        "outpaint": lambda p, **o: p.outpaint(known[..., 2:], left=2, **o),
        "inpaint": lambda p, **o: p.inpaint(known, hidden, **o),
    }


def every_task():
    """By name, what makes the pipeline and the task."""
    made = {f"image {name}": (image_pipeline, task) for name, task in image_tasks().items()}
    for settings in ({"order": "halton", "roll": True}, {"order": "random"}, {"remask": "rescale"}):
        name = f"image generate, {next(iter(settings))} {next(iter(settings.values()))}"
        made[name] = (partial(image_pipeline, **settings), image_tasks()["generate"])
    return made | {f"video {name}": (video_pipeline, task) for name, task in video_tasks().items()}


def contents(output):
    """Images or frames of an output."""
    return output.frames if hasattr(output, "frames") else output.images
