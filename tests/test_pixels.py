"""One image: exact values whatever its mode, upright, cropped to size, and refused in words."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from given import noise, save, truncate
from maskgen.data import ImageFolder, pixels
from maskgen.data.pixels import UnreadableImage, fit, load_image


def test_values_are_exact(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "x.png")
    expected = torch.from_numpy(values.astype(np.float32)) / 127.5 - 1
    assert torch.equal(load_image(tmp_path / "x.png", 16, 1)[0], expected)
    assert torch.equal(load_image(str(tmp_path / "x.png"), 16), expected.expand(3, 16, 16))
    with (tmp_path / "x.png").open("rb") as file:
        assert torch.equal(load_image(file, 16, 1)[0], expected)
    assert expected.min() == -1
    assert expected.max() == 1


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, extension):
    values = np.array([[0, 1, 255, 257], [300, 32768, 65534, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{extension}")
    expected = torch.from_numpy(values.astype(np.float64) / 65535 * 2 - 1).float()
    assert torch.allclose(load_image(tmp_path / f"x.{extension}", (2, 4), 1)[0], expected, atol=1e-6)
    assert load_image(tmp_path / f"x.{extension}", (2, 4), 3).shape == (3, 2, 4)
    resized = load_image(tmp_path / f"x.{extension}", (20, 40), 1)
    assert -1 <= resized.min() <= resized.max() <= 1  # bicubic overshoot is clipped


def test_alpha_is_composited_on_white(tmp_path):
    save(tmp_path / "rgba.png", (255, 0, 0, 51), mode="RGBA")  # a fifth of red on white: (255, 204, 204)
    save(tmp_path / "la.png", (0, 102), mode="LA")  # two fifths of black on white: 153
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=1)  # wholly transparent: white
    palette.save(tmp_path / "opaque.png")

    def colour(name):
        return ((load_image(tmp_path / name, 8)[:, 4, 4] + 1) * 127.5).round().int().tolist()

    assert colour("rgba.png") == [255, 204, 204]
    assert colour("la.png") == [153, 153, 153]
    assert colour("palette.png") == [255, 255, 255]
    assert colour("opaque.png") == [10, 20, 30]


def test_cmyk_bilevel_and_grey_become_what_they_show(tmp_path):
    save(tmp_path / "cmyk.jpg", (0, 255, 255, 0), mode="CMYK", quality=95)  # no cyan: red
    red, green, blue = load_image(tmp_path / "cmyk.jpg", 8)[:, 4, 4].tolist()
    assert red > 0.95
    assert max(green, blue) < -0.95
    save(tmp_path / "one.png", 1, mode="1")
    assert (load_image(tmp_path / "one.png", 8) == 1).all()
    save(tmp_path / "green.png", (0, 255, 0))  # ITU-R 601 luma: 0.587 * 255 = 150
    assert (load_image(tmp_path / "green.png", 8, 1) == torch.tensor(150.0) / 127.5 - 1).all()


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 4, 4))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the left goes to the top
    image.save(tmp_path / "x.png", exif=exif)
    upright = load_image(tmp_path / "x.png", (8, 4))
    assert (upright[:, :4] == 1).all()
    assert (upright[:, 4:] == -1).all()


def test_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    image = Image.new("RGB", (48, 16), "black")
    image.paste("white", (16, 0, 32, 16))  # the centre square alone is white
    image.save(tmp_path / "x.png")
    for size in (4, 16, 40):
        assert (load_image(tmp_path / "x.png", size)[:, :, size // 4 : -size // 4] == 1).all()
    assert (load_image(tmp_path / "x.png", 16) == 1).all()  # a crop alone is exact
    wide = load_image(tmp_path / "x.png", (16, 48))
    assert (wide[:, :, 16:32] == 1).all()
    assert (wide[:, :, :16] == -1).all()


def test_downscaling_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(fit(Image.fromarray(stripes), (8, 8)))
    assert np.abs(small.astype(int) - 127).max() <= 16  # sampling without a filter would give 0 or 255


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [((0, 4), 3, "size is"), ((4, 4, 4), 3, "size is"), (4, 2, "channels is 2; give 1")],
)
def test_size_and_channels_are_checked(tmp_path, size, channels, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_image(save(tmp_path / "x.png"), size, channels)
    assert not isinstance(caught.value, UnreadableImage)


def test_unreadable_images_say_why(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("hello")
    cases = {"text.png": "cannot identify", "none.png": "No such file"}
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((8, 8), 1 << 20, np.int32)).save(tmp_path / "int.tif")
    cases |= {"float.tif": "floating-point pixels, whose range is unknown", "int.tif": "32-bit integer pixels"}
    truncate(noise(tmp_path / "cut.jpg"))
    cases |= {"cut.jpg": "truncated"}
    for name, reason in cases.items():
        with pytest.raises(UnreadableImage, match=reason) as caught:
            load_image(tmp_path / name, 8)
        assert name in str(caught.value)
    monkeypatch.setattr(pixels, "MAX_PIXELS", 63)
    with pytest.raises(UnreadableImage, match=r"8x8 is more than the 63 pixels allowed"):
        load_image(save(tmp_path / "big.png"), 8)


def forged_png(width, height):
    """A PNG that says it is huge, in 45 bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b"")
    )


def test_decompression_bomb_is_unreadable(tmp_path):
    (tmp_path / "bomb.png").write_bytes(forged_png(60_000, 60_000))
    with pytest.raises(UnreadableImage, match=r"bomb.png: Image size .3600000000 pixels. exceeds limit"):
        load_image(tmp_path / "bomb.png", 8)
    save(tmp_path / "fine.png")
    assert ImageFolder(str(tmp_path), size=8).names == ["fine.png"]
