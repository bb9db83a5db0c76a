"""Every task of the image and the video pipeline in float32, bfloat16 and float16."""

import pytest
import torch

import flat
from given import seeded
from maskgen import MaskedImagePipeline, MaskedVideoPipeline, MaskScheduler, Tokenizer

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
IMAGE = torch.randint(256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
OTHER = torch.randint(256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
HOLE = torch.zeros(8, 8, dtype=torch.bool)
HOLE[2:6, 3:7] = True
CLIP = torch.rand(1, 1, 4, 6, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
PIT = torch.zeros(4, 6, 8, dtype=torch.bool)
PIT[1:3, 2:4, 2:6] = True
ACTIONS = torch.randn(4, 2, generator=torch.Generator().manual_seed(4))

IMAGE_TASKS = {
    "generate": lambda p, **o: p("bee", generator=[seeded()], **o),
    "inpaint": lambda p, **o: p.inpaint(IMAGE, HOLE, "bee", generator=[seeded()], **o),
    "inpaint auto": lambda p, **o: p.inpaint(IMAGE, HOLE, "bee", dilation="auto", generator=[seeded()], **o),
    "outpaint": lambda p, **o: p.outpaint(IMAGE, left=4, class_labels="bee", generator=[seeded()], **o),
    "edit": lambda p, **o: p.edit(IMAGE, "cat", box=(2, 2, 5, 5), grow=0, generator=[seeded()], **o),
    "vary": lambda p, **o: p.vary(IMAGE, 0.5, "bee", generator=[seeded()], **o),
    "interpolate": lambda p, **o: p.interpolate(IMAGE, OTHER, 3, class_labels="bee", generator=seeded(), **o),
    "join": lambda p, **o: p.join(IMAGE, OTHER, 4, class_labels="bee", generator=[seeded()], **o),
}
VIDEO_TASKS = {
    "generate": lambda p, **o: p(**o),
    "predict": lambda p, **o: p.predict(CLIP[:, :, :2], 2, **o),
    "interpolate": lambda p, **o: p.interpolate(CLIP[:, :, :1], CLIP[:, :, 3:], 2, **o),
    "inpaint": lambda p, **o: p.inpaint(CLIP, PIT, **o),
    "outpaint": lambda p, **o: p.outpaint(CLIP[:, :, :3], after=1, **o),
}
# What each task gives back unchanged: where in the result, and the pixels.
PIXELS = IMAGE.float() / 127.5 - 1
KNOWN_IMAGE = {
    "inpaint": lambda made: (made[0][:, ~HOLE], PIXELS[:, ~HOLE]),
    "inpaint auto": lambda made: (made[0][:, ~HOLE], PIXELS[:, ~HOLE]),
    "outpaint": lambda made: (made[0][:, :, 4:], PIXELS),
    "edit": lambda made: (made[0][:, 5:], PIXELS[:, 5:]),
    "join": lambda made: (made[0][:, :, :8], PIXELS),
}
KNOWN_VIDEO = {
    "predict": lambda made: (made[:, :, :2], CLIP[:, :, :2]),
    "interpolate": lambda made: (made[:, :, [0, 3]], CLIP[:, :, [0, 3]]),
    "inpaint": lambda made: (made[:, :, ~PIT], CLIP[:, :, ~PIT]),
    "outpaint": lambda made: (made[:, :, :3], CLIP[:, :, :3]),
}


def video_pipeline(kind):
    """A small video pipeline: plain, with actions, with a causal tokenizer, or of several tasks."""
    torch.manual_seed(0)
    coder = {"channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1}
    if kind == "causal":
        coder |= {"type": "causal", "temporal": 0}
    vqvae = Tokenizer(coder, {"codebook_size": 16, "dim": 4}, coder).eval()
    options = {"actions": {"action_dim": 2}, "tasks": {"num_classes": 5}}.get(kind, {})
    transformer = flat.transformer(16, (4, 3, 4), width=16, depth=2, heads=2, **options).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tasks = ["generation", "prediction", "interpolation", "inpainting", "outpainting"] if kind == "tasks" else None
    return MaskedVideoPipeline(vqvae, transformer, MaskScheduler(num_inference_steps=2), tasks=tasks)


def in_half(pipeline, how, dtype, device, folder):
    """The pipeline in another dtype: cast, or saved and loaded."""
    if how == "loaded":
        pipeline.save_pretrained(folder)
        pipeline = type(pipeline).from_pretrained(folder, dtype=dtype)
    pipeline = pipeline.to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check(made, known):
    assert made.dtype == torch.float32
    assert made.isfinite().all()
    assert made.abs().max() <= 1
    if known is not None:
        ours, given = known(made.cpu())
        assert torch.equal(ours, given)  # bit for bit


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", ["cast", "loaded"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_image_task_runs_in_every_dtype(make_pipeline, dtype, how, device, tmp_path):
    pipeline = in_half(make_pipeline(num_inference_steps=2, guidance_scale=2.0), how, dtype, device, tmp_path)
    assert isinstance(pipeline, MaskedImagePipeline)
    for name, task in IMAGE_TASKS.items():
        check(task(pipeline, output_type="pixels").images, KNOWN_IMAGE.get(name))
        task(pipeline)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["plain", "actions", "causal", "tasks"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_video_task_runs_in_every_dtype(dtype, kind, device, tmp_path):
    pipeline = in_half(video_pipeline(kind), "cast", dtype, device, tmp_path)
    options = {"generator": [seeded()], "output_type": "pixels", **({"actions": ACTIONS} if kind == "actions" else {})}
    for name, task in VIDEO_TASKS.items():
        check(task(pipeline, **options).frames, KNOWN_VIDEO.get(name))


def test_videos_in_half_precision_are_taken():
    pipeline = in_half(video_pipeline("plain"), "cast", torch.bfloat16, "cpu", None)
    made = pipeline.predict(CLIP[:, :, :2].bfloat16(), 2, output_type="pixels").frames
    assert made[:, :, :2].equal(CLIP[:, :, :2].bfloat16().float())


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_the_quantizer_stays_in_float32(make_pipeline, dtype):
    """Distances in half precision pick wrong codes."""
    pipeline = make_pipeline()
    before = pipeline.vqvae.quantizer.codebook.clone()
    pipeline.to(dtype)
    assert pipeline.vqvae.dtype == pipeline.transformer.dtype == dtype
    assert pipeline.vqvae.quantizer.codebook.equal(before)
