"""What the tasks take and refuse: images and masks of every kind, and bad input in words."""

import numpy as np
import pytest
import torch
from PIL import Image

from given import an_image, array, mask, noise, seeded, truncate
from maskgen.pipelines import inputs
from maskgen.pipelines.inputs import images_of, masks_of


def test_images_of_every_kind_are_one_image(tmp_path):
    image = an_image(6, 4)
    (expected,) = images_of(image, 3)
    assert expected.shape == (3, 4, 6)
    image.save(tmp_path / "a.png")
    rotated = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees clockwise to see it upright
    rotated.save(tmp_path / "turned.png", exif=exif)
    unit = torch.from_numpy(array(image).copy()).permute(2, 0, 1) / 255
    kinds = [tmp_path / "a.png", str(tmp_path / "turned.png"), array(image), array(image) / 255.0, unit, unit[None]]
    for kind in [*kinds, [image], torch.from_numpy(array(image).copy()).permute(2, 0, 1)]:
        (found,) = images_of(kind, 3)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    grey = image.convert("L")
    assert images_of(grey, 3)[0].shape == (3, 4, 6)
    torch.testing.assert_close(images_of(array(grey), 1)[0], images_of(grey, 1)[0], atol=1e-6, rtol=0)
    clear = Image.new("RGBA", (6, 4), (255, 0, 0, 0))
    assert (images_of(clear, 3)[0] == 1).all()
    deep = Image.fromarray(np.full((4, 6), 65535, np.uint16))
    assert (images_of(deep, 3)[0] == 1).all()
    assert len(images_of(np.zeros((5, 4, 6, 3), np.uint8), 3)) == 5


def test_masks_of_every_kind_are_one_mask(tmp_path):
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
        (lambda p: p.inpaint(an_image(), mask(size=(9, 8))), r"the mask is 9x8 pixels \(w x h\) and its image 8x8"),
        (lambda p: p.inpaint(an_image(), Image.new("L", (8, 8))), "the mask hides nothing: white is hidden"),
        (lambda p: p.inpaint([an_image()] * 3, [mask()] * 2), "2 masks for 3 images"),
        (lambda p: p.inpaint("gone.png", mask()), "gone.png does not exist; give"),
        (lambda p: p.inpaint(__file__, mask()), "cannot identify image file"),
        (lambda p: p.inpaint([], mask()), "an empty list of images"),
        (lambda p: p.inpaint(3, mask()), "image is of type int"),
        (lambda p: p.inpaint(np.full((8, 8, 3), 7.0), mask()), "values from 7 to 7; floats are in"),
        (lambda p: p.inpaint(np.zeros((8, 8, 3), np.int64), mask()), "int64 numbers; give uint8"),
        (lambda p: p.inpaint(np.zeros((8, 8, 2), np.uint8), mask()), r"shape \(8, 8, 2\); give an array"),
        (lambda p: p.inpaint(an_image(), mask(), "bea"), "unknown class 'bea': did you mean 'bee'"),
        (lambda p: p.inpaint(an_image(), mask(), 3), "class 3 is outside 0 to 2"),
        (lambda p: p.inpaint(an_image(), mask(), [0, 1]), "2 class_labels for 1 images"),
        (lambda p: p.inpaint(an_image(), mask(), num_inference_steps=0), "steps must be at least 1"),
        (lambda p: p.inpaint(an_image(), mask(), num_images_per_prompt=0), "num_images_per_prompt must be at least 1"),
        (lambda p: p.inpaint(an_image(), mask(), generator=[seeded()] * 2), "2 generators for 1 images"),
        (lambda p: p.inpaint(an_image(), mask(), output_type="jpg"), "unknown output_type 'jpg': choose one of pil"),
        (lambda p: p.inpaint(an_image(), mask(), feather=-2), "feather is -2"),
        (lambda p: p.outpaint(an_image()), "0 pixels on every side"),
        (lambda p: p.outpaint(an_image(), left=-3, right=4), "left -3 pixels"),
        (lambda p: p.outpaint([an_image(), an_image(9, 9)], left=3), "outpaint them one by one"),
        (lambda p: p.outpaint(an_image(), left=99999), "at most 256 times the trained 4x4"),
        (lambda p: p.outpaint(an_image(), left=4, overlap=4), "overlap 4 must be at least 0 and below the 4 tokens"),
        (lambda p: p.edit(an_image(), "ant"), "give either mask_image or box"),
        (lambda p: p.edit(an_image(), "ant", mask(), (0, 0, 4, 4)), "give either mask_image or box"),
        (lambda p: p.edit(an_image(), None, box=(0, 0, 4, 4)), "give class_labels"),
        (lambda p: p.edit(an_image(), "ant", box=(0, 0, 9, 4)), "must lie in the image"),
        (lambda p: p.edit(an_image(), "ant", box=(0, 0, 4, 4), grow=-1), "grow is -1"),
        (lambda p: p.vary(an_image(), 1.5), "strength 1.5 must lie between 0"),
        (lambda p: p.interpolate(an_image(), an_image(), num_frames=1), "num_frames is 1"),
        (lambda p: p.interpolate([an_image()] * 2, an_image()), "give one image for each end"),
        (lambda p: p.interpolate(an_image(), an_image(), num_images_per_prompt=2), "one row of frames"),
        (lambda p: p.join(an_image(), an_image(), gap=0), "gap is 0 .* at least 1 pixel"),
        (lambda p: p.join(an_image(), [an_image()] * 2, gap=4), "one image on either side"),
    ],
)  # fmt: skip
def test_bad_input_is_explained(pipeline, call, message):
    with pytest.raises(ValueError, match=message):
        call(pipeline)


def test_huge_and_broken_images_are_refused(pipeline, tmp_path, monkeypatch):
    truncate(noise(tmp_path / "cut.png"))
    with pytest.raises(ValueError, match=r"cut.png: .*truncated"):
        pipeline.vary(tmp_path / "cut.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")  # PIL refuses it by itself
    with pytest.raises(ValueError, match=r"bomb.png: .*decompression bomb"):
        pipeline.vary(tmp_path / "bomb.png")
    Image.new("1", (5000, 4000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large.png has 5000x4000 pixels; at most 16777216 \(4096x4096\)"):
        pipeline.vary(tmp_path / "large.png")
    monkeypatch.setattr(inputs, "MAX_PIXELS", 50)
    with pytest.raises(ValueError, match="the image has 8x8 pixels"):
        pipeline.vary(an_image())
