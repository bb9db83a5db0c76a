"""A trace shows every step of a decode: what was hidden, the tokens and their confidence."""

import pytest
import torch
from PIL import Image

from given import an_image, array, mask, seeded
from maskgen.pipelines.trace import DecodeTrace, heatmap


def test_a_trace_shows_every_step(pipeline, tmp_path):
    film = DecodeTrace()
    codes = pipeline.inpaint(an_image(), mask(), 1, generator=seeded(), output_type="codes", trace=film).images
    assert [int(hidden.sum()) for _, hidden, _ in film.steps] == [4, 3, 2, 1, 0]
    tokens, _, confidence = film.steps[-1]
    assert tokens.equal(codes)
    given = torch.ones(1, 4, 4, dtype=torch.bool)
    given[:, 1:3, 1:3] = False
    assert confidence.isnan().equal(given)
    assert ((confidence[~given] > 0) & (confidence[~given] <= 1)).all()
    with Image.open(film.save(tmp_path / "t.gif", pipeline.vqvae)) as gif:
        assert gif.n_frames == 5
        assert gif.height > 192
    frames = film.frames(pipeline.vqvae, side=80)
    start, end = (array(frame)[24 + 4 : 24 + 4 + 80, 4 : 4 + 80] for frame in (frames[0], frames[-1]))
    assert (start[25:55, 25:55] == 128).all()  # hidden: grey
    assert not (end[25:55, 25:55] == 128).all()


def test_confidence_is_the_probability_of_what_was_drawn(pipeline):
    """One step on a blank canvas: the softmax of the network's own logits at the codes."""
    film = DecodeTrace()
    codes = pipeline(1, num_inference_steps=1, generator=seeded(), output_type="codes", trace=film).images
    blank = torch.zeros(1, 4, 4, dtype=torch.long)
    given = pipeline.transformer.conditioner({"label": torch.tensor([1])}, 1, (4, 4))
    p = pipeline.transformer(blank, blank == 0, given).predictions.softmax(-1)
    torch.testing.assert_close(film.steps[-1][2].flatten(1), p.gather(-1, codes.flatten(1)[..., None])[..., 0])


def test_a_trace_of_windows_has_the_whole_canvas(pipeline):
    film = DecodeTrace(limit=1)
    codes = pipeline.outpaint(
        [an_image()] * 2, right=8, generator=seeded(), output_type="codes", num_inference_steps=2, trace=film
    ).images  # fmt: skip
    assert len(film.steps) == 1 + 2 * 2
    assert film.steps[0][0].shape == (1, 4, 8)
    assert film.steps[-1][0].equal(codes[:1])
    assert not film.steps[-1][1].any()


def test_heat_goes_from_blue_to_yellow_and_grey_is_unknown(pipeline):
    heat = heatmap(torch.tensor([[[0.0, 1.0, float("nan")]]]))
    assert heat[0, 2, 0, 0] > heat[0, 0, 0, 0]  # blue
    assert heat[0, 0, 0, 1] > 0.9 > heat[0, 2, 0, 1]  # yellow
    assert len(heat[0, :, 0, 2].unique()) == 1
    with pytest.raises(ValueError, match="no decode was traced"):
        DecodeTrace().frames(pipeline.vqvae)
