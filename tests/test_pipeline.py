"""MaskedImagePipeline: seeds, guidance, callbacks, saving; images and tokenizers it rests on."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import flat
from given import seeded
from maskgen import MaskedImagePipeline, MaskScheduler, MaskTransformer
from maskgen.decoding.loop import Step
from maskgen.images import grid, side_by_side, to_uint8
from maskgen.pipelines.image import bundled_pipeline
from maskgen.pipelines.predictor import Predictor
from maskgen.pipelines.store import fingerprint, load_tokenizer


def test_output_types_are_one_image(pipeline):
    def draw(kind):
        return pipeline("bee", generator=seeded(), output_type=kind).images

    codes, pt, array, pil = draw("codes"), draw("pt"), draw("np"), draw("pil")
    assert codes.shape == (1, 4, 4)
    assert pt.shape == (1, 3, 8, 8)
    assert 0 <= pt.min() <= pt.max() <= 1
    np.testing.assert_array_equal(array[0], pt[0].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(np.asarray(pil[0]), (array[0] * 255).round().astype(np.uint8))
    decoded = ((pipeline.vqvae.decode(codes) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(decoded, pt)
    assert isinstance(pipeline("bee", return_dict=False), tuple)


def test_a_image_follows_its_seed_alone(pipeline):
    a = pipeline([0, 1], generator=seeded(1), output_type="codes").images
    assert a.equal(pipeline(["ant", "bee"], generator=seeded(1), output_type="codes").images)
    assert not a.equal(pipeline([0, 1], generator=seeded(2), output_type="codes").images)
    generators = [seeded(5), seeded(6), seeded(7)]
    together = pipeline([0, 1, 2], generator=generators, output_type="codes", guidance_scale=3.0).images
    for i, label in enumerate(["ant", "bee", "cat"]):
        alone = pipeline(label, generator=[seeded(5 + i)], output_type="codes", guidance_scale=3.0).images
        assert alone[0].equal(together[i])


def test_copies_of_a_label_follow_each_other(pipeline):
    four = pipeline([2, 0], num_images_per_prompt=2, generator=seeded(), output_type="codes").images
    assert four.equal(pipeline([2, 2, 0, 0], generator=seeded(), output_type="codes").images)


def test_shared_first_step_and_guidance_equal_the_plain_formulation(pipeline):
    """The blank canvas computed once a class, and both passes in one call, against two whole calls."""
    model = pipeline.transformer
    labels = [1, 1, 0, 2, 1]
    tokens, hidden = torch.randint(32, (5, 16)), torch.ones(5, 16, dtype=torch.bool)
    positions = torch.arange(16).expand(5, -1)
    given = {"label": torch.tensor(labels)}
    c = model(tokens.view(5, 4, 4), hidden.view(5, 4, 4), model.conditioner(given, 5, (4, 4))).predictions
    u = model(tokens.view(5, 4, 4), hidden.view(5, 4, 4)).predictions
    for blank in (True, False):
        for scale in (1.0, 2.5):
            logits = Predictor(model, (4, 4), given, 5)(Step(tokens, hidden, positions, 0, 4, scale, blank))
            torch.testing.assert_close(logits, u + scale * (c - u), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4])
def test_orders_by_place_through_the_pipeline(pipeline, steps):
    """Only some places are asked for, already on the blank canvas that rows of one class share."""
    labels, mask = [1, 1, 0, 2, 1], torch.ones(5, 4, 4, dtype=torch.bool)
    canvas = torch.zeros(5, 4, 4, dtype=torch.long)

    def plain(step):
        def logits(given):
            conditioning = pipeline.transformer.conditioner(given, 5, (4, 4))
            made = pipeline.transformer(step.tokens.view(5, 4, 4), step.hidden.view(5, 4, 4), conditioning).predictions
            return made[torch.arange(5)[:, None], step.positions]

        c, u = logits({"label": torch.tensor(labels)}), logits(None)
        return u + step.guidance_scale * (c - u)

    for order in ("halton", "random", "raster"):
        scheduler = MaskScheduler(order=order, num_inference_steps=steps, guidance_scale=2.5)
        other = MaskedImagePipeline(pipeline.vqvae, pipeline.transformer, scheduler, pipeline.class_names)
        other.set_progress_bar_config(disable=True)
        expected = scheduler.decode(plain, canvas.flatten(1), mask.flatten(1), generator=seeded(), grid=(4, 4))
        assert other.complete(canvas, mask, labels, generator=seeded()).flatten(1).equal(expected)


def test_steps_without_guidance_make_no_unconditional_pass(pipeline, monkeypatch):
    rows = []
    forward = MaskTransformer.forward

    def count(self, codes, *rest, **named):
        rows.append(len(codes))
        return forward(self, codes, *rest, **named)

    monkeypatch.setattr(MaskTransformer, "forward", count)
    linear = MaskedImagePipeline.from_pipe(pipeline)
    linear.scheduler = MaskScheduler.from_config(pipeline.scheduler.config, guidance_schedule="linear")
    linear.set_progress_bar_config(disable=True)
    linear([0, 1, 1], guidance_scale=3.0)
    assert rows == [2, 6, 6, 6]  # two distinct classes on the blank canvas; then both passes


def test_callback_sees_the_tokens_settle(pipeline):
    seen = []

    def watch(pipe, step, timestep, tensors):
        assert pipe is pipeline
        seen.append((step, timestep, tensors["codes"].clone(), tensors["hidden"].sum().item()))

    result = pipeline(
        "cat", generator=seeded(), output_type="codes", callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["codes", "hidden"],
    ).images  # fmt: skip
    assert [s[:2] for s in seen] == [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0)]
    assert [s[3] for s in seen] == [14, 11, 6, 0]
    assert seen[-1][2].equal(result)


def test_a_saved_copy_is_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = MaskedImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.class_names == ["ant", "bee", "cat"]
    assert loaded.scheduler.config.num_inference_steps == 4
    a, b = (p("ant", generator=seeded(), output_type="pt").images for p in (pipeline, loaded))
    assert a.equal(b)
    assert fingerprint(load_tokenizer(tmp_path)) == fingerprint(pipeline.vqvae)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_folder_with_the_old_names_loads(pipeline, tmp_path, dtype):
    """The component `vqvae` was called `tokenizer`; the bundled pipeline still is."""
    new, old = tmp_path / "new", tmp_path / "old"
    pipeline.save_pretrained(new)
    assert (new / "vqvae" / "config.json").is_file()
    shutil.copytree(new, old)
    (old / "vqvae").rename(old / "tokenizer")
    index = json.loads((old / "model_index.json").read_text())
    index["tokenizer"] = index.pop("vqvae")
    (old / "model_index.json").write_text(json.dumps(index))
    a, b = (MaskedImagePipeline.from_pretrained(folder, dtype=dtype) for folder in (new, old))
    assert fingerprint(b.vqvae) == fingerprint(a.vqvae)
    assert (b.vqvae.dtype, b.class_names) == (a.vqvae.dtype, pipeline.class_names)
    assert fingerprint(load_tokenizer(old)) == fingerprint(pipeline.vqvae)
    assert MaskedImagePipeline.from_pretrained(old, vqvae=pipeline.vqvae).vqvae is pipeline.vqvae
    b.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "vqvae" / "config.json").is_file()
    assert not (tmp_path / "again" / "tokenizer").exists()


def test_the_bundled_folder_loads():
    assert (
        MaskedImagePipeline.from_pretrained().vqvae.codebook_size
        == MaskedImagePipeline.from_pretrained(bundled_pipeline()).layout.codebook_size
    )


def test_a_run_loads_by_its_folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "run" / "pipeline")
    assert MaskedImagePipeline.from_pretrained(tmp_path / "run").class_names == pipeline.class_names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_valid_images(make_pipeline, tmp_path, dtype):
    make_pipeline().save_pretrained(tmp_path)
    half = MaskedImagePipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    half.set_progress_bar_config(disable=True)
    assert next(half.transformer.parameters()).dtype == dtype
    assert half.vqvae.quantizer.codebook.dtype == torch.float32
    images = half([0, 1], guidance_scale=3.0, output_type="pt").images
    assert images.dtype == torch.float32
    assert images.isfinite().all()


def test_an_unconditional_pipeline_takes_no_class(make_pipeline):
    pipeline = make_pipeline(None)
    images = pipeline(num_images_per_prompt=3, output_type="codes", guidance_scale=4.0).images
    assert images.shape == (3, 4, 4)
    assert pipeline.class_names == []
    with pytest.raises(ValueError, match="unconditional"):
        pipeline([0])


def test_no_label_draws_without_a_class(pipeline):
    null = [pipeline.num_classes] * 2
    expected = pipeline.complete(
        torch.zeros(2, 4, 4, dtype=torch.long), torch.ones(2, 4, 4, dtype=torch.bool), null, generator=seeded()
    )
    images = pipeline(num_images_per_prompt=2, generator=seeded(), output_type="codes").images
    assert images.equal(expected)


def test_complete_keeps_known_tokens(pipeline):
    canvas = torch.randint(32, (2, 4, 4))
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2] = mask[1, :, 3] = True
    done = pipeline.complete(canvas, mask, [0, 2], generator=seeded())
    assert done[~mask].equal(canvas[~mask])
    assert (done[mask] != canvas[mask]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_labels": "bea"}, "did you mean 'bee'"),
        ({"class_labels": 3}, "class 3 is outside 0 to 2"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "takes codes and hidden"),
        ({"num_images_per_prompt": 0}, "at least 1"),
        ({"class_labels": [0, 1], "generator": [torch.Generator()]}, "1 generators for 2 rows"),
        ({"class_labels": 0, "num_inference_steps": -1}, "steps must be at least 1"),
        ({"class_labels": 0, "num_inference_steps": 0}, "steps must be at least 1"),
    ],
)
def test_bad_calls_are_explained(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**options)


@pytest.mark.parametrize("name", ["runs-typo", "tests/typo", "/nowhere/at/all"])
def test_a_missing_run_is_not_taken_for_a_hub_name(name):
    with pytest.raises(FileNotFoundError, match="no run or pipeline"):
        MaskedImagePipeline.from_pretrained(name)


def test_parts_that_do_not_fit_are_refused(pipeline):
    other = flat.transformer(64, (4, 4), width=32, depth=1, heads=2)
    with pytest.raises(ValueError, match="32 codes and the transformer predicts 64"):
        MaskedImagePipeline(pipeline.vqvae, other, pipeline.scheduler)


def test_the_tokenizer_goes_there_and_back_and_refuses_what_does_not_fit(pipeline):
    tokenizer = pipeline.vqvae
    pixels = torch.rand(2, 3, 12, 8) * 2 - 1
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, *tokenizer.grid((12, 8))) == (2, 6, 4)
    torch.testing.assert_close(tokenizer.decode(codes), tokenizer(pixels).pixels, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"multiple of 2; resize to \(12, 8\)"):
        tokenizer.encode(pixels[..., :7])
    with pytest.raises(ValueError, match="1 channels; this tokenizer takes 3"):
        tokenizer.encode(pixels[:, :1])
    with pytest.raises(ValueError, match="NaN"):
        tokenizer.encode(pixels * float("nan"))
    with pytest.raises(ValueError, match="codes run from 0 to 32; this codebook has 0 to 31"):
        tokenizer.decode(torch.tensor([[[0, 32]]]))
    with pytest.raises(FileNotFoundError, match="no tokenizer at nowhere"):
        load_tokenizer("nowhere")


def test_images_are_8_bits_and_stand_in_a_grid():
    pixels = torch.stack([torch.full((3, 4, 6), v) for v in (-1.0, 0.0, 1.0, 5.0)])
    assert to_uint8(pixels)[:, 0, 0, 0].tolist() == [0, 128, 255, 255]
    sheet = grid(pixels, 2, scale=3, row_names=["a", "b"])
    assert isinstance(sheet, Image.Image)
    assert sheet.size[1] == 2 * (4 * 3 + 4) + 4
    assert side_by_side(pixels, pixels, columns=3).size[1] > sheet.size[1]
