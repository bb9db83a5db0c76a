"""The tasks on pictures: what stays, what is drawn, what files and commands make of it, and what bad input is told."""

import json
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen import MaskedImagePipeline, MaskScheduler, MaskTransformer, Tokenizer, cli
from maskgen.pictures import parameters_of, save
from maskgen.pipelines import inputs
from maskgen.pipelines.editing import view_of
from maskgen.pipelines.inputs import masks_of, pictures_of
from maskgen.pipelines.jobs import TASKS, batch, perform
from maskgen.pipelines.trace import DecodeTrace, heatmap
from maskgen.tasks.masks import receptive_radius, token_mask
from maskgen.tasks.pictures import filled

FLAT = {"type": "vit", "patch": 4, "size": 8, "width": 16, "depth": 1, "heads": 2, "tokens": 4}


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def picture(width=8, height=8, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask(box=(2, 2, 6, 6), size=(8, 8)):
    made = Image.new("L", size)
    made.paste(255, box)
    return made


def array(image):
    return np.asarray(image)


# ------------------------------------------------------------------------------------------------------------ inpaint


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (30, 17)])
@pytest.mark.parametrize("crop", [None, 1])
def test_known_pixels_come_back_unchanged(pipeline, size, crop):
    """Of 8-bit pictures every byte, at the model's size and at others: their PSNR is infinite."""
    image, hole = picture(*size), mask((1, 2, 5, 7), size)
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
    """Whatever stands under the mask, codes and pictures are the same."""
    hole = mask((3, 2, 7, 6), size)
    hidden = array(hole) > 0
    images = []
    for seed in (0, 1):
        values = array(picture(*size)).copy()
        values[hidden] = array(picture(*size, seed=seed))[hidden]
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
    """The codes are those of `complete` on the filled picture's codes; without the paste, the pictures are theirs."""
    image, hole = picture(), mask()
    pixels, hidden = pictures_of(image, 3)[0][None], masks_of(hole, [(8, 8)])[0][None]
    canvas, tokens = pipeline.tokenizer.encode(filled(pixels, hidden)), token_mask(hidden, (4, 4))
    assert tokens.sum() == 4
    codes = pipeline.complete(canvas, tokens, [1], generator=seeded())
    assert codes.equal(pipeline.inpaint(image, hole, "bee", generator=seeded(), output_type="codes").images)
    bare = pipeline.inpaint(image, hole, "bee", generator=seeded(), output_type="pt", paste_back=False).images
    torch.testing.assert_close(bare, ((pipeline.tokenizer.decode(codes) + 1) / 2).clamp(0, 1))


def test_automatic_dilation_is_the_measured_radius(pipeline):
    radius = receptive_radius(pipeline.tokenizer, (8, 8))
    assert radius >= 1
    drawn = [
        pipeline.inpaint(picture(), mask((2, 2, 3, 3)), 1, dilation=d, generator=seeded(), output_type="codes").images
        for d in ("auto", radius, 0)
    ]
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


def test_batches_and_copies_and_seeds(pipeline):
    images, holes = [picture(seed=s) for s in (1, 2)], [mask(), mask((0, 0, 3, 8))]
    together = pipeline.inpaint(
        images, holes, ["ant", "cat"], num_images_per_prompt=2, generator=[seeded(s) for s in range(4)]
    ).images  # fmt: skip
    assert len(together) == 4
    for i, made in enumerate(together):
        label = ["ant", "cat"][i // 2]
        (alone,) = pipeline.inpaint(images[i // 2], holes[i // 2], label, generator=[seeded(i)]).images
        np.testing.assert_array_equal(array(made), array(alone))
    assert (array(together[0]) != array(together[1])).any()


def test_pictures_of_several_sizes_in_one_batch(pipeline):
    images, holes = [picture(), picture(12, 9)], [mask(), mask((0, 0, 3, 8), (12, 9))]
    made = pipeline.inpaint(images, holes, generator=seeded()).images
    assert [m.size for m in made] == [(8, 8), (12, 9)]
    with pytest.raises(ValueError, match="several sizes are no one array: output_type='pil', not 'np'"):
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
    codes = pipeline.inpaint(picture(), mask((0, 0, 8, 8)), 1, generator=seeded(), output_type="codes").images
    assert codes.equal(pipeline(1, generator=seeded(), output_type="codes").images)
    assert "no token is known" in caplog.text


# ---------------------------------------------------------------------------------------------------- the other tasks


@pytest.mark.parametrize("size", [(8, 8), (16, 10), (33, 33)])
def test_outpainting_keeps_the_picture_in_its_place(pipeline, size):
    image = picture(*size)
    (made,) = pipeline.outpaint(image, left=3, top=1, right=21, bottom=2, class_labels="ant", generator=seeded()).images
    assert made.size == (size[0] + 24, size[1] + 3)
    np.testing.assert_array_equal(array(made)[1 : 1 + size[1], 3 : 3 + size[0]], array(image))
    outside = array(made)[:, 3 + size[0] :]
    assert outside.std() > 0


def test_outpainting_within_whole_tokens_is_completion_by_windows(pipeline):
    image = picture()
    canvas = torch.zeros(1, 4, 9, dtype=torch.long)
    canvas[:, :, 2:6] = pipeline.tokenizer.encode(pictures_of(image, 3)[0][None])
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
    image = picture(16, 16)
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
    image = picture()
    codes = pipeline.tokenizer.encode(pictures_of(image, 3)[0][None])

    def vary(strength, **options):
        return pipeline.vary(image, strength, 1, generator=seeded(2), output_type="codes", **options).images

    assert vary(0.0).equal(codes)
    assert 0 < (vary(0.25) != codes).sum() <= 4
    assert (vary(1.0) != codes).sum() > 8
    four = vary(0.5, num_images_per_prompt=4)
    assert len(four.flatten(1).unique(dim=0)) == 4
    assert pipeline.vary(picture(20, 10), 0.5, generator=seeded()).images[0].size == (8, 8)


def test_interpolation_goes_from_one_picture_to_the_other(pipeline):
    pictures = picture(seed=1), picture(seed=2)
    a, b = (pipeline.tokenizer.encode(pictures_of(p, 3)[0][None])[0] for p in pictures)
    assert (a != b).sum() > 4

    def frames(strength):
        return pipeline.interpolate(
            *pictures, num_frames=5, strength=strength, generator=seeded(), output_type="codes"
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


def test_joined_pictures_keep_their_parts(pipeline):
    left, right = picture(seed=1), picture(seed=2)
    (whole,) = pipeline.join(left, right, gap=5, class_labels=0, generator=seeded()).images
    assert whole.size == (22, 8)  # the gap is 3 tokens
    np.testing.assert_array_equal(array(whole)[:, :8], array(left))
    np.testing.assert_array_equal(array(whole)[:, -8:], array(right))
    (parts,) = pipeline.join(left, right, gap=4, keep=2, class_labels=0, generator=seeded()).images
    assert parts.size == (8, 8)
    np.testing.assert_array_equal(array(parts)[:, :2], array(left)[:, :2])
    np.testing.assert_array_equal(array(parts)[:, -2:], array(right)[:, -2:])
    with pytest.raises(ValueError, match="6 pixels wide; the model has 8: keep more"):
        pipeline.join(left, right, gap=2, keep=2)


def test_an_unconditional_model_inpaints_without_a_class(make_pipeline):
    pipeline = make_pipeline(None)
    assert pipeline.inpaint(picture(), mask(), generator=seeded()).images[0].size == (8, 8)
    with pytest.raises(ValueError, match="unconditional: it takes no class_labels"):
        pipeline.inpaint(picture(), mask(), 0)


def test_tokens_without_a_place_can_be_varied_not_inpainted():
    tokenizer = Tokenizer(encoder=FLAT, quantizer={"codebook_size": 32, "dim": 4}, decoder=FLAT).eval()
    flat = MaskedImagePipeline(
        tokenizer, MaskTransformer(32, (4,), width=32, depth=1, heads=2).eval(), MaskScheduler(num_inference_steps=2)
    )
    flat.set_progress_bar_config(disable=True)
    assert flat.vary(picture(), 0.5).images[0].size == (8, 8)
    with pytest.raises(ValueError, match="no place in the picture: it can generate and vary"):
        flat.inpaint(picture(), mask())


# ------------------------------------------------------------------------------------------------- pictures and masks


def test_pictures_of_every_kind(tmp_path):
    image = picture(6, 4)
    (expected,) = pictures_of(image, 3)
    assert expected.shape == (3, 4, 6)
    image.save(tmp_path / "a.png")
    rotated = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees clockwise to see it upright
    rotated.save(tmp_path / "turned.png", exif=exif)
    unit = torch.from_numpy(array(image).copy()).permute(2, 0, 1) / 255
    kinds = [tmp_path / "a.png", str(tmp_path / "turned.png"), array(image), array(image) / 255.0, unit, unit[None]]
    for kind in [*kinds, [image], torch.from_numpy(array(image).copy()).permute(2, 0, 1)]:
        (found,) = pictures_of(kind, 3)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    grey = image.convert("L")
    assert pictures_of(grey, 3)[0].shape == (3, 4, 6)
    torch.testing.assert_close(pictures_of(array(grey), 1)[0], pictures_of(grey, 1)[0], atol=1e-6, rtol=0)
    clear = Image.new("RGBA", (6, 4), (255, 0, 0, 0))
    assert (pictures_of(clear, 3)[0] == 1).all()
    deep = Image.fromarray(np.full((4, 6), 65535, np.uint16))
    assert (pictures_of(deep, 3)[0] == 1).all()
    assert len(pictures_of(np.zeros((5, 4, 6, 3), np.uint8), 3)) == 5


def test_masks_of_every_kind(tmp_path):
    hole = mask((1, 0, 4, 2), (6, 4))
    (expected,) = masks_of(hole, [(4, 6)])
    assert expected.sum() == 6
    hole.save(tmp_path / "m.png")
    painted = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    painted.paste((255, 255, 255, 255), (1, 0, 4, 2))
    bright = array(hole).astype(np.float32) / 255
    kinds = [tmp_path / "m.png", hole.convert("1"), hole.convert("RGB"), painted, array(hole) > 0, bright, array(hole)]
    for kind in [*kinds, torch.from_numpy(bright), expected, Image.fromarray(array(hole).astype(np.uint16) * 257)]:
        assert masks_of(kind, [(4, 6)])[0].equal(expected)
    soft = Image.new("L", (6, 4), 127)
    soft.putpixel((2, 1), 128)
    assert masks_of(soft, [(4, 6)])[0].sum() == 1
    assert len(masks_of(hole, [(4, 6), (4, 6)])) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.inpaint(picture(), mask(size=(9, 8))), r"the mask is 9x8 pixels \(w x h\) and its picture 8x8"),
        (lambda p: p.inpaint(picture(), Image.new("L", (8, 8))), "the mask hides nothing: white is what to draw anew"),
        (lambda p: p.inpaint([picture()] * 3, [mask()] * 2), "2 masks for 3 pictures"),
        (lambda p: p.inpaint("gone.png", mask()), "gone.png: .*No such file"),
        (lambda p: p.inpaint(__file__, mask()), "cannot identify image file"),
        (lambda p: p.inpaint([], mask()), "an empty list of pictures"),
        (lambda p: p.inpaint(3, mask()), "a picture of type int; give a file"),
        (lambda p: p.inpaint(np.full((8, 8, 3), 7.0), mask()), "values from 7 to 7; floats are in"),
        (lambda p: p.inpaint(np.zeros((8, 8, 3), np.int64), mask()), "int64 numbers; give uint8"),
        (lambda p: p.inpaint(np.zeros((8, 8, 2), np.uint8), mask()), r"shape \(8, 8, 2\); give an array"),
        (lambda p: p.inpaint(picture(), mask(), "bea"), "unknown class 'bea': did you mean 'bee'"),
        (lambda p: p.inpaint(picture(), mask(), 3), "class 3 is outside 0 to 2"),
        (lambda p: p.inpaint(picture(), mask(), [0, 1]), "2 class_labels for 1 pictures"),
        (lambda p: p.inpaint(picture(), mask(), num_inference_steps=0), "steps must be at least 1"),
        (lambda p: p.inpaint(picture(), mask(), num_images_per_prompt=0), "num_images_per_prompt must be at least 1"),
        (lambda p: p.inpaint(picture(), mask(), generator=[seeded()] * 2), "2 generators for 1 pictures"),
        (lambda p: p.inpaint(picture(), mask(), output_type="jpg"), "unknown output_type 'jpg': choose one of pil"),
        (lambda p: p.inpaint(picture(), mask(), feather=-2), "feather is -2"),
        (lambda p: p.outpaint(picture()), "outpainting by 0 pixels on every side"),
        (lambda p: p.outpaint(picture(), left=-3, right=4), "outpainting by left -3 pixels"),
        (lambda p: p.outpaint([picture(), picture(9, 9)], left=3), "several sizes are outpainted one by one"),
        (lambda p: p.outpaint(picture(), left=99999), "a canvas of .* tokens; at most 256 times the trained 4x4"),
        (lambda p: p.outpaint(picture(), left=4, overlap=4), "overlap 4 must be at least 0 and below the 4 tokens"),
        (lambda p: p.edit(picture(), "ant"), "give either mask_image or box"),
        (lambda p: p.edit(picture(), "ant", mask(), (0, 0, 4, 4)), "give either mask_image or box"),
        (lambda p: p.edit(picture(), None, box=(0, 0, 4, 4)), "editing draws another class"),
        (lambda p: p.edit(picture(), "ant", box=(0, 0, 9, 4)), "must lie in the picture"),
        (lambda p: p.edit(picture(), "ant", box=(0, 0, 4, 4), grow=-1), "grow is -1"),
        (lambda p: p.vary(picture(), 1.5), "strength 1.5 must lie between 0"),
        (lambda p: p.interpolate(picture(), picture(), num_frames=1), "num_frames is 1"),
        (lambda p: p.interpolate([picture()] * 2, picture()), "one picture at either end"),
        (lambda p: p.interpolate(picture(), picture(), num_images_per_prompt=2), "one row of frames"),
        (lambda p: p.join(picture(), picture(), gap=0), "a gap of 0 pixels"),
        (lambda p: p.join(picture(), [picture()] * 2, gap=4), "one picture on either side"),
    ],
)  # fmt: skip
def test_bad_input_is_explained(pipeline, call, message):
    with pytest.raises(ValueError, match=message):
        call(pipeline)


def test_huge_and_broken_pictures_are_refused(pipeline, tmp_path, monkeypatch):
    picture(64, 64).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut.png: .*truncated"):
        pipeline.vary(tmp_path / "cut.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")  # PIL refuses it by itself
    with pytest.raises(ValueError, match=r"bomb.png: .*decompression bomb"):
        pipeline.vary(tmp_path / "bomb.png")
    Image.new("1", (5000, 4000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large.png has 5000x4000 pixels; at most 16777216 \(4096x4096\)"):
        pipeline.vary(tmp_path / "large.png")
    monkeypatch.setattr(inputs, "MAX_PIXELS", 50)
    with pytest.raises(ValueError, match="the picture has 8x8 pixels"):
        pipeline.vary(picture())


# -------------------------------------------------------------------------------------------------------------- trace


def test_a_trace_shows_every_step(pipeline, tmp_path):
    film = DecodeTrace()
    codes = pipeline.inpaint(picture(), mask(), 1, generator=seeded(), output_type="codes", trace=film).images
    assert [int(hidden.sum()) for _, hidden, _ in film.steps] == [4, 3, 2, 1, 0]
    tokens, _, confidence = film.steps[-1]
    assert tokens.equal(codes)
    given = torch.ones(1, 4, 4, dtype=torch.bool)
    given[:, 1:3, 1:3] = False
    assert confidence.isnan().equal(given)
    assert ((confidence[~given] > 0) & (confidence[~given] <= 1)).all()
    with Image.open(film.save(tmp_path / "t.gif", pipeline.tokenizer)) as gif:
        assert gif.n_frames == 5
        assert gif.height > 192
    frames = film.frames(pipeline.tokenizer, side=80)
    start, end = (array(frame)[24 + 4 : 24 + 4 + 80, 4 : 4 + 80] for frame in (frames[0], frames[-1]))
    assert (start[25:55, 25:55] == 128).all()  # hidden: grey
    assert not (end[25:55, 25:55] == 128).all()


def test_confidence_is_the_probability_of_what_was_drawn(pipeline):
    """One step on a blank canvas: the softmax of the network's own logits at the codes."""
    film = DecodeTrace()
    codes = pipeline(1, num_inference_steps=1, generator=seeded(), output_type="codes", trace=film).images
    blank = torch.zeros(1, 4, 4, dtype=torch.long)
    p = pipeline.transformer(blank, blank == 0, torch.tensor([1])).predictions.softmax(-1)
    torch.testing.assert_close(film.steps[-1][2].flatten(1), p.gather(-1, codes.flatten(1)[..., None])[..., 0])


def test_a_trace_of_windows_has_the_whole_canvas(pipeline):
    film = DecodeTrace(limit=1)
    codes = pipeline.outpaint(
        [picture()] * 2, right=8, generator=seeded(), output_type="codes", num_inference_steps=2, trace=film
    ).images  # fmt: skip
    assert len(film.steps) == 1 + 2 * 2
    assert film.steps[0][0].shape == (1, 4, 8)
    assert film.steps[-1][0].equal(codes[:1])
    assert not film.steps[-1][1].any()


def test_heat_and_empty_traces(pipeline):
    heat = heatmap(torch.tensor([[[0.0, 1.0, float("nan")]]]))
    assert heat[0, 2, 0, 0] > heat[0, 0, 0, 0]  # blue
    assert heat[0, 0, 0, 1] > 0.9 > heat[0, 2, 0, 1]  # yellow
    assert len(heat[0, :, 0, 2].unique()) == 1
    with pytest.raises(ValueError, match="no decode was traced"):
        DecodeTrace().frames(pipeline.tokenizer)


# ----------------------------------------------------------------------------------------------------- files, commands


@pytest.fixture
def folder(pipeline, tmp_path, monkeypatch):
    pipeline.save_pretrained(tmp_path / "model")
    picture(seed=1).save(tmp_path / "a.png")
    picture(seed=2).save(tmp_path / "b.png")
    mask().save(tmp_path / "m.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def maskgen(folder, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["maskgen", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return SimpleNamespace(code=stop.value.code, out=capsys.readouterr().out)

    return run


COMMANDS = {
    "inpaint": ["a.png", "m.png", "--class", "bee", "--dilation", "1", "--crop", "2"],
    "outpaint": ["a.png", "--left", "2", "--bottom", "5", "--overlap", "1"],
    "edit": ["a.png", "--class", "2", "--box", "2,2,6,6", "--feather", "1"],
    "vary": ["a.png", "--strength", "0.7", "-n", "1"],
    "interpolate": ["a.png", "b.png", "--frames", "3"],
    "join": ["a.png", "b.png", "--gap", "4", "--keep", "6"],
}


@pytest.mark.parametrize("task", COMMANDS)
def test_every_command_writes_what_its_parameters_make_again(pipeline, maskgen, folder, task):
    common = ["--model", "model", "--steps", "3", "--seed", "5", "--out", "made/x.png", "--trace", "t.gif"]
    done = maskgen(task, *COMMANDS[task], *common)
    assert done.code == 0
    names = done.out.split()
    assert names.pop() == "t.gif"
    with Image.open("t.gif") as gif:
        assert gif.n_frames >= 4
    expected = [f"made/x_{i:03d}.png" for i in range(3)] if task == "interpolate" else ["made/x.png"]
    assert names == expected
    kept = parameters_of(names[-1])
    assert {"task": task, "model": "model", "seed": 5, "steps": 3}.items() <= kept.items()
    assert kept["guidance"] == 1.0
    assert kept["version"]
    settings = {k: v for k, v in kept.items() if k not in ("task", "model", "version", "seed", "number")}
    again = perform(pipeline, task, settings, folder / "again.png", kept["seed"])
    for old, new in zip(names, again):
        np.testing.assert_array_equal(array(Image.open(old)), array(Image.open(new)))


def test_samples_carry_their_parameters_and_a_trace(maskgen, folder):
    assert maskgen("sample", "model", "--class", "ant", "-n", 2, "--seed", 7, "--trace", "t.gif").code == 0
    assert parameters_of("samples/ant_001.png") == {
        "task": "sample", "model": "model", "version": "0.1.0", "steps": 4, "guidance": 1.0, "class": "ant", "seed": 8,
    }  # fmt: skip
    with Image.open("t.gif") as gif:
        assert gif.n_frames == 5
    shown = json.loads(maskgen("parameters", "samples/ant_001.png").out)
    assert shown["seed"] == 8
    assert maskgen("sample", "model", "--class", "ant", "-n", 1, "--seed", 8, "--out", "one").code == 0
    np.testing.assert_array_equal(array(Image.open("samples/ant_001.png")), array(Image.open("one/ant_000.png")))


def test_pictures_without_parameters_are_told(tmp_path):
    picture().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png holds no parameters: another program wrote it"):
        parameters_of(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"cannot read the parameters of .*b.png"):
        parameters_of(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"c.jpg cannot hold what made it; give a name that ends in .png"):
        save(picture(), tmp_path / "c.jpg", {"seed": 1})
    save(picture(), tmp_path / "d.png", {"class": "Fréchet", "box": [1, 2]})
    assert parameters_of(tmp_path / "d.png") == {"class": "Fréchet", "box": [1, 2]}


TABLE = """task,image,mask,box,class,seed,right,out
inpaint,a.png,m.png,,bee,3,,first.png
edit,b.png,,2 2 6 6,ant,,,
edit,b.png,,2 2 60 6,ant,,,

outpaint,a.png,,,,1,7,sub/third.png
,a.png,m.png,,catt,,,
inpaint,gone.png,m.png,,,,,
inpaint,a.png,m.png,,,x,,
vary,a.png,m.png,,,,,
enhance,a.png,,,,,,
inpaint,a.png,,,,,,
inpaint,a.png,m.png,,,,,../out.png
outpaint,a.png,,,,,much,
"""


def test_a_batch_does_every_row_it_can_and_tells_of_the_others(pipeline, folder):
    (folder / "t.csv").write_text(TABLE)
    with pytest.raises(ValueError, match=r"9 of 12 rows of .*t.csv failed; 3 pictures are in .*results") as told:
        batch(pipeline, folder / "t.csv", folder / "results", trace=folder / "films")
    lines = str(told.value).splitlines()[1:]
    for line, (number, message) in zip(
        lines,
        [
            (4, "box (2, 2, 60, 6)"),
            (7, "unknown class 'catt': did you mean 'cat'"),
            (8, "gone.png"),
            (9, "invalid literal"),
            (10, "vary has no 'mask'"),
            (11, "unknown task 'enhance'"),
            (12, "inpaint needs mask"),
            (13, "out '../out.png' must lie in the folder"),
            (14, "right is 'much'; give a number"),
        ],
        strict=True,
    ):
        assert line.startswith(f"  - line {number}: ")
        assert message in line
    made = sorted(str(p.relative_to(folder / "results")) for p in (folder / "results").rglob("*.png"))
    assert made == ["first.png", "row_0003.png", "sub/third.png"]
    films = sorted((folder / "films").rglob("*.*"))
    assert [str(p.relative_to(folder / "films")) for p in films] == ["first.gif", "row_0003.gif", "sub/third.gif"]
    (alone,) = pipeline.inpaint("a.png", "m.png", "bee", generator=[seeded(3)]).images
    np.testing.assert_array_equal(array(Image.open(folder / "results/first.png")), array(alone))


def test_a_batch_from_the_command(maskgen, folder):
    (folder / "t.csv").write_text("image, mask, class\na.png, m.png, bee\nb.png, m.png, 1\n")
    assert maskgen("batch", "t.csv", "--model", "model").out.strip() == "2 pictures in batch"
    assert parameters_of("batch/row_0003.png")["class"] == "1"
    assert not list(folder.rglob("*.gif"))


def test_a_batch_traces_each_row(maskgen, folder):
    (folder / "t.csv").write_text(
        "task, image, image_2, frames, steps\nvary, a.png,,, 3\ninterpolate, a.png, b.png, 3, 2\n"
    )
    assert maskgen("batch", "t.csv", "--model", "model", "--trace", "films").out.strip() == "4 pictures in batch"
    for name, steps in (("row_0002", 3), ("row_0003", 2)):
        with Image.open(f"films/{name}.gif") as film:
            assert film.n_frames == 1 + steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,maske\na.png,m.png\n", "unknown column 'maske': did you mean 'mask'"),
        ("image,mask\n", "holds no rows"),
        ("", "holds no rows"),
        ("image,mask\na.png,m.png,bee\n", "line 2: more cells than the header has columns"),
    ],
)
def test_tables_that_cannot_be(pipeline, folder, text, message):
    (folder / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        batch(pipeline, folder / "t.csv", folder / "results")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inpaint", "a.png", "m.png", "--out", "x.jpg"], "x.jpg must end in .png"),
        (["inpaint", "a.png", "m.png", "--trace", "x.mp4"], "the trace x.mp4 must end in .gif"),
        (["sample", "model", "--trace", "x.mp4"], "the trace x.mp4 must end in .gif"),
        (["inpaint", "a.png", "m.png", "--dilation", "some"], "dilation is 'some'; give a number or auto"),
        (["inpaint", "a.png", "m.png", "--class", "antt"], "unknown class 'antt': did you mean 'ant'"),
        (["inpaint", "a.png", "m.png", "--steps", "0"], "steps must be at least 1"),
        (["edit", "a.png", "--class", "ant", "--box", "1,2"], "has 2 numbers; give left, top, right, bottom"),
        (["edit", "a.png", "--class", "ant", "--box", "a,b"], "box is 'a,b'; give left,top,right,bottom"),
        (["outpaint", "a.png"], "outpainting by 0 pixels"),
        (["parameters", "a.png"], "holds no parameters"),
        (["batch", "gone.csv"], "gone.csv"),
    ],
)
def test_an_error_of_a_command_is_one_message(maskgen, arguments, message):
    if arguments[0] not in ("sample", "parameters"):
        arguments = [*arguments, "--model", "model"]
    done = maskgen(*arguments)
    assert str(done.code).startswith("maskgen: ")
    assert message in done.code


def test_the_tables_of_tasks_agree():
    assert set(TASKS) == {*COMMANDS, "sample"}
