"""The tasks on images: what stays, what is drawn, and what one is in terms of another."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import flat
from given import an_image, array, mask, seeded
from maskgen import MaskedImagePipeline, MaskScheduler, Tokenizer
from maskgen.pipelines.editing import view_of
from maskgen.pipelines.inputs import images_of, masks_of
from maskgen.tasks.images import filled
from maskgen.tasks.masks import receptive_radius, token_mask

FLAT = {"type": "vit", "patch": 4, "size": 8, "tokens": 4, "transformer": {"width": 16, "depth": 1, "heads": 2}}


# ------------------------------------------------------------------------------------------------------------ inpaint


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (30, 17)])
@pytest.mark.parametrize("crop", [None, 1])
def test_known_pixels_come_back_unchanged(pipeline, size, crop):
    """Of 8-bit images every byte, at the model's size and at others: their PSNR is infinite."""
    image, hole = an_image(*size), mask((1, 2, 5, 7), size)
    for options in ({}, {"feather": 0}, {"dilation": 1}, {"fill": "grey"}):
        (made,) = pipeline.inpaint(
            image, hole, "bee", padding_mask_crop=crop, generator=seeded(), **options
        ).images  # fmt: skip
        assert made.size == image.size
        known = array(hole) == 0
        np.testing.assert_array_equal(array(made)[known], array(image)[known])
        assert (array(made)[~known] != array(image)[~known]).any()


def test_every_8_bit_value_survives(pipeline):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([values] * 3, -1))
    (made,) = pipeline.inpaint(image, mask((0, 0, 1, 1), (16, 16))).images
    np.testing.assert_array_equal(array(made)[values > 0], array(image)[values > 0])


@pytest.mark.parametrize("size", [(8, 8), (21, 16)])
def test_fault_9_hidden_pixels_do_not_leak(pipeline, size):
    """Whatever stands under the mask, codes and images are the same."""
    hole = mask((3, 2, 7, 6), size)
    hidden = array(hole) > 0
    images = []
    for seed in (0, 1):
        values = array(an_image(*size)).copy()
        values[hidden] = array(an_image(*size, seed=seed))[hidden]
        images.append(Image.fromarray(values))
    assert (array(images[0]) != array(images[1])).any()
    for options in ({}, {"fill": "mean"}, {"fill": "grey"}, {"padding_mask_crop": 1}, {"dilation": 1}, {"feather": 9}):
        for kind in ("codes", "np"):
            a, b = (
                pipeline.inpaint(i, hole, 1, generator=seeded(), output_type=kind, **options).images for i in images
            )
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    bare = [pipeline.inpaint(i, hole, 1, generator=seeded(), paste_back=False).images[0] for i in images]
    np.testing.assert_array_equal(*map(array, bare))


def test_inpainting_is_completion(pipeline):
    """The codes are those of `complete` on the filled image's codes; without the paste, the images are theirs."""
    image, hole = an_image(), mask()
    pixels, hidden = images_of(image, 3)[0][None], masks_of(hole, [(8, 8)])[0][None]
    canvas, tokens = pipeline.vqvae.encode(filled(pixels, hidden)), token_mask(hidden, (4, 4))
    assert tokens.sum() == 4
    codes = pipeline.complete(canvas, tokens, [1], generator=seeded())
    assert codes.equal(pipeline.inpaint(image, hole, "bee", generator=seeded(), output_type="codes").images)
    bare = pipeline.inpaint(image, hole, "bee", generator=seeded(), output_type="pt", paste_back=False).images
    torch.testing.assert_close(bare, ((pipeline.vqvae.decode(codes) + 1) / 2).clamp(0, 1))


def test_automatic_dilation_is_the_measured_radius(pipeline):
    radius = receptive_radius(pipeline.vqvae, (8, 8))
    assert radius >= 1
    drawn = [
        pipeline.inpaint(an_image(), mask((2, 2, 3, 3)), 1, dilation=d, generator=seeded(), output_type="codes").images
        for d in ("auto", radius, 0)
    ]
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


def test_each_image_of_a_batch_follows_its_own_generator(pipeline):
    images, holes = [an_image(seed=s) for s in (1, 2)], [mask(), mask((0, 0, 3, 8))]
    together = pipeline.inpaint(
        images, holes, ["ant", "cat"], num_images_per_prompt=2, generator=[seeded(s) for s in range(4)]
    ).images  # fmt: skip
    assert len(together) == 4
    for i, made in enumerate(together):
        label = ["ant", "cat"][i // 2]
        (alone,) = pipeline.inpaint(images[i // 2], holes[i // 2], label, generator=[seeded(i)]).images
        np.testing.assert_array_equal(array(made), array(alone))
    assert (array(together[0]) != array(together[1])).any()


def test_images_of_several_sizes_in_one_batch(pipeline):
    images, holes = [an_image(), an_image(12, 9)], [mask(), mask((0, 0, 3, 8), (12, 9))]
    made = pipeline.inpaint(images, holes, generator=seeded()).images
    assert [m.size for m in made] == [(8, 8), (12, 9)]
    with pytest.raises(ValueError, match="output_type='pil', not 'np'"):
        pipeline.inpaint(images, holes, output_type="np")


def test_the_view_holds_the_hole():
    def view(size, box, margin=None):
        hidden = torch.zeros(size, dtype=torch.bool)
        hidden[box[0] : box[1], box[2] : box[3]] = True
        y, x = view_of(hidden, (8, 8), margin)
        return (y.start, y.stop, x.start, x.stop)

    assert view((10, 30), (2, 4, 1, 3)) == (0, 10, 0, 10)
    assert view((10, 30), (2, 4, 14, 18)) == (0, 10, 11, 21)
    assert view((10, 30), (2, 4, 28, 30)) == (0, 10, 20, 30)
    assert view((10, 30), (2, 4, 5, 20)) == (0, 10, 0, 30)  # stretched
    assert view((40, 40), (20, 24, 20, 24), 2) == (18, 26, 18, 26)
    assert view((40, 40), (0, 4, 20, 24), 2) == (0, 8, 18, 26)
    assert view((40, 40), (0, 30, 0, 4), 9) == (0, 40, 0, 40)
    with pytest.raises(ValueError, match="padding_mask_crop is -1"):
        view((10, 30), (2, 4, 1, 3), -1)


def test_a_hidden_everything_is_generation(pipeline, caplog):
    codes = pipeline.inpaint(an_image(), mask((0, 0, 8, 8)), 1, generator=seeded(), output_type="codes").images
    assert codes.equal(pipeline(1, generator=seeded(), output_type="codes").images)
    assert "no token is known" in caplog.text


# ---------------------------------------------------------------------------------------------------- the other tasks


@pytest.mark.parametrize("size", [(8, 8), (16, 10), (33, 33)])
def test_outpainting_keeps_the_image_in_its_place(pipeline, size):
    image = an_image(*size)
    (made,) = pipeline.outpaint(image, left=3, top=1, right=21, bottom=2, class_labels="ant", generator=seeded()).images
    assert made.size == (size[0] + 24, size[1] + 3)
    np.testing.assert_array_equal(array(made)[1 : 1 + size[1], 3 : 3 + size[0]], array(image))
    outside = array(made)[:, 3 + size[0] :]
    assert outside.std() > 0


def test_outpainting_within_whole_tokens_is_completion_by_windows(pipeline):
    image = an_image()
    canvas = torch.zeros(1, 4, 9, dtype=torch.long)
    canvas[:, :, 2:6] = pipeline.vqvae.encode(images_of(image, 3)[0][None])
    hidden = torch.ones(1, 4, 9, dtype=torch.bool)
    hidden[:, :, 2:6] = False
    codes = pipeline.complete(canvas, hidden, [1], generator=seeded(3), overlap=3)
    assert codes[~hidden].equal(canvas[~hidden])
    found = pipeline.outpaint(
        image, left=4, right=5, class_labels=1, overlap=3, generator=seeded(3), output_type="codes"
    ).images  # fmt: skip
    assert found.equal(codes)


def test_a_narrow_hidden_window_is_one_decode(pipeline):
    """A canvas whose hole lies in one window comes out as that window alone."""
    canvas = torch.randint(32, (1, 4, 8))
    hidden = torch.zeros(1, 4, 8, dtype=torch.bool)
    hidden[:, :, 0] = True
    whole = pipeline.complete(canvas, hidden, [2], generator=seeded())
    part = pipeline.complete(canvas[:, :, :4], hidden[:, :, :4], [2], generator=seeded())
    assert whole[:, :, :4].equal(part)
    assert whole[:, :, 4:].equal(canvas[:, :, 4:])


def test_an_edit_is_an_inpainting_of_a_grown_region_with_a_class(pipeline):
    image = an_image(16, 16)
    (made,) = pipeline.edit(image, "cat", box=(6, 4, 10, 8), generator=seeded()).images
    grown = mask((2, 0, 14, 12), (16, 16))  # a token is 4 pixels there
    (same,) = pipeline.inpaint(image, grown, "cat", generator=seeded()).images
    np.testing.assert_array_equal(array(made), array(same))
    (by_mask,) = pipeline.edit(image, "cat", mask_image=mask((6, 4, 10, 8), (16, 16)), generator=seeded()).images
    np.testing.assert_array_equal(array(made), array(by_mask))
    (tight,) = pipeline.edit(image, "cat", box=(6, 4, 10, 8), grow=0, generator=seeded()).images
    assert (array(tight) != array(image)).any(-1).sum() <= 16
    (other,) = pipeline.edit(image, "ant", box=(6, 4, 10, 8), generator=seeded()).images
    assert (array(made) != array(other)).any()


def test_variation_redraws_a_share_of_the_tokens(pipeline):
    image = an_image()
    codes = pipeline.vqvae.encode(images_of(image, 3)[0][None])

    def vary(strength, **options):
        return pipeline.vary(image, strength, 1, generator=seeded(2), output_type="codes", **options).images

    assert vary(0.0).equal(codes)
    assert 0 < (vary(0.25) != codes).sum() <= 4
    assert (vary(1.0) != codes).sum() > 8
    four = vary(0.5, num_images_per_prompt=4)
    assert len(four.flatten(1).unique(dim=0)) == 4
    assert pipeline.vary(an_image(20, 10), 0.5, generator=seeded()).images[0].size == (8, 8)


def test_interpolation_goes_from_one_image_to_the_other(pipeline):
    images = an_image(seed=1), an_image(seed=2)
    a, b = (pipeline.vqvae.encode(images_of(p, 3)[0][None])[0] for p in images)
    assert (a != b).sum() > 4

    def frames(strength):
        return pipeline.interpolate(
            *images, num_frames=5, strength=strength, generator=seeded(), output_type="codes"
        ).images  # fmt: skip

    mixed, drawn = frames(0.0), frames(0.5)
    for found in (mixed, drawn):
        assert found[0].equal(a)
        assert found[-1].equal(b)
        assert (found == a)[:, a == b].all()  # what both have never changes
    from_b = [(frame == b) & (a != b) for frame in mixed]
    assert ((mixed == a) | (mixed == b)).all()
    assert all(not (before & ~after).any() for before, after in pairwise(from_b))
    assert ((drawn != a) & (drawn != b)).any()
    assert drawn.equal(frames(0.5))


def test_joined_images_keep_their_parts(pipeline):
    left, right = an_image(seed=1), an_image(seed=2)
    (whole,) = pipeline.join(left, right, gap=5, class_labels=0, generator=seeded()).images
    assert whole.size == (22, 8)  # the gap is 3 tokens
    np.testing.assert_array_equal(array(whole)[:, :8], array(left))
    np.testing.assert_array_equal(array(whole)[:, -8:], array(right))
    (parts,) = pipeline.join(left, right, gap=4, keep=2, class_labels=0, generator=seeded()).images
    assert parts.size == (8, 8)
    np.testing.assert_array_equal(array(parts)[:, :2], array(left)[:, :2])
    np.testing.assert_array_equal(array(parts)[:, -2:], array(right)[:, -2:])
    with pytest.raises(ValueError, match=r"6 pixels wide .* 8: keep more"):
        pipeline.join(left, right, gap=2, keep=2)


def test_an_unconditional_model_inpaints_without_a_class(make_pipeline):
    pipeline = make_pipeline(None)
    assert pipeline.inpaint(an_image(), mask(), generator=seeded()).images[0].size == (8, 8)
    with pytest.raises(ValueError, match="unconditional: it takes no class_labels"):
        pipeline.inpaint(an_image(), mask(), 0)


def test_tokens_without_a_place_can_be_varied_not_inpainted():
    tokenizer = Tokenizer(encoder=FLAT, quantizer={"codebook_size": 32, "dim": 4}, decoder=FLAT).eval()
    places = MaskedImagePipeline(
        tokenizer, flat.transformer(32, (4,), width=32, depth=1, heads=2).eval(), MaskScheduler(num_inference_steps=2)
    )
    places.set_progress_bar_config(disable=True)
    assert places.vary(an_image(), 0.5).images[0].size == (8, 8)
    with pytest.raises(ValueError, match="use generate or vary"):
        places.inpaint(an_image(), mask())
