"""Tokenizers of videos: images' tokenizers frame by frame, the causal 3-D VQGAN, cubes."""

import pytest
import torch

from maskgen.data.augment import Augmentation
from maskgen.mim.targets import patchify
from maskgen.pipelines.store import load_tokenizer
from maskgen.tokenizer.losses import frames_of
from maskgen.tokenizer.model import Tokenizer
from maskgen.training.loop import Training, train
from maskgen.training.metrics import read_metrics
from maskgen.training.stages.centroids import CentroidStage
from maskgen.training.stages.tokenizer import TokenizerStage

CONV = {"channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1}
CAUSAL = {"type": "causal", "channels": 1, "width": 8, "multipliers": [1, 1, 2], "blocks": 1, "middle_blocks": 1}
SIZES = {"width": 16, "depth": 1, "heads": 2}
VIT = {"type": "vit", "channels": 1, "size": 8, "patch": 4, "tokens": 3, "transformer": SIZES}
VQ = {"codebook_size": 64, "dim": 4}
FAMILIES = {
    "conv": (CONV, VQ, CONV),
    "residual": (CONV, {"type": "residual", "num_quantizers": 2, "quantizer": VQ}, CONV),
    "continuous": (CONV, {"type": "none", "dim": 4}, CONV),
    "titok": (VIT, VQ, VIT),
}


def video(batch=2, frames=5, size=8, channels=1):
    return torch.rand(batch, channels, frames, size, size) * 2 - 1


def causal(**changes):
    coder = {**CAUSAL, **changes}
    return Tokenizer(coder, VQ, coder).eval()


class Videos:
    """Squares that move by a pixel a frame."""

    def __init__(self, count=12, frames=5, size=8):
        self.class_names, self.labels = ["square"], [0] * count
        self.frames, self.size = frames, size

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        pixels = -torch.ones(1, self.frames, self.size, self.size)
        for t in range(self.frames):
            x = (index + t) % self.size
            pixels[:, t, index % (self.size - 2) : index % (self.size - 2) + 3, x : x + 3] = 1
        return {"pixels": pixels, "label": 0}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_video_is_coded_frame_by_frame(name):
    tokenizer, pixels = Tokenizer(*FAMILIES[name]).eval(), video()
    codes = tokenizer.encode(pixels)
    each = torch.stack([tokenizer.encode(frame) for frame in pixels.unbind(2)], 1)
    torch.testing.assert_close(codes, each)
    made = tokenizer.decode(codes)
    torch.testing.assert_close(made, torch.stack([tokenizer.decode(c) for c in codes.unbind(1)], 2))
    torch.testing.assert_close(tokenizer(pixels).pixels, made)
    grid = tokenizer.grid((5, 8, 8))
    assert codes.shape[1 : 1 + len(grid)] == grid
    assert tokenizer.size(grid) == (5, 8, 8)


def test_text_goes_to_every_frame():
    tokenizer = Tokenizer(VIT, VQ, {**VIT, "text_dim": 5, "text_length": 7}).eval()
    codes, text = torch.randint(64, (2, 3, 3)), torch.randn(2, 4, 5)
    made = tokenizer.decode(codes, text)
    torch.testing.assert_close(made[:, :, 1], tokenizer.decode(codes[:, 1], text))


@pytest.mark.parametrize(("temporal", "frames", "grid"), [(0, 3, (3, 2, 2)), (1, 5, (3, 2, 2)), (2, 9, (3, 2, 2))])
def test_time_is_shortened_behind_the_first_frame(temporal, frames, grid):
    tokenizer = causal(temporal=temporal)
    assert tokenizer.grid((frames, 8, 8)) == grid
    assert tokenizer.size(grid) == (frames, 8, 8)
    codes = tokenizer.encode(video(frames=frames))
    assert codes.shape == (2, *grid)
    assert tokenizer.decode(codes).shape == (2, 1, frames, 8, 8)


@pytest.mark.parametrize("change", range(1, 9))
def test_later_frames_never_change_earlier_codes(change):
    tokenizer, pixels = causal(temporal=2), video(frames=9)
    other = pixels.clone()
    other[:, :, change:] = video(frames=9 - change)
    latents, others = tokenizer.encoder(pixels), tokenizer.encoder(other)
    safe = 1 + (change - 1) // 4  # latent i sees the frames up to 4 i
    assert torch.equal(latents[:, :, :safe], others[:, :, :safe])
    assert not torch.equal(latents[:, :, safe:], others[:, :, safe:])
    assert torch.equal(tokenizer.encode(pixels)[:, :safe], tokenizer.encode(other)[:, :safe])


def test_every_frame_reaches_its_latent():
    tokenizer, pixels = causal(temporal=2), video(1, 9).requires_grad_()
    for latent, (first, last) in enumerate([(0, 0), (1, 4), (5, 8)]):
        (gradient,) = torch.autograd.grad(tokenizer.encoder(pixels)[:, :, latent].sum(), pixels)
        seen = gradient.abs().sum((0, 1, 3, 4)) > 0
        assert seen[first : last + 1].all()
        assert not seen[last + 1 :].any()


def test_later_codes_never_change_earlier_frames():
    tokenizer = causal(temporal=2)
    codes = torch.randint(64, (2, 3, 2, 2))
    other = codes.clone()
    other[:, 2] = (codes[:, 2] + 1) % 64
    made, others = tokenizer.decode(codes), tokenizer.decode(other)
    assert torch.equal(made[:, :, :5], others[:, :, :5])
    assert not torch.equal(made[:, :, 5], others[:, :, 5])


def test_a_image_is_a_video_of_one_frame():
    tokenizer, pixels = causal(), video(frames=1)
    codes = tokenizer.encode(pixels[:, :, 0])
    assert codes.shape == (2, *tokenizer.grid((8, 8))) == (2, 2, 2)
    assert torch.equal(codes, tokenizer.encode(pixels)[:, 0])
    assert torch.equal(tokenizer.decode(codes), tokenizer.decode(codes[:, None])[:, :, 0])


def test_the_first_frame_of_a_video_is_its_image():
    tokenizer, pixels = causal(), video(frames=9)
    torch.testing.assert_close(tokenizer.encoder(pixels)[:, :, 0], tokenizer.encoder(pixels[:, :, 0]))


def test_cubes_are_patches_of_several_frames():
    part = {"type": "patch", "patch": 4, "frames": 2, "channels": 3}
    tokenizer, pixels = Tokenizer(part, {"type": "none", "dim": 96}, part), video(frames=4, channels=3)
    tokens = tokenizer.encode(pixels)
    assert tokens.shape == (2, *tokenizer.grid((4, 8, 8)), 96) == (2, 2, 2, 2, 96)
    assert torch.equal(tokenizer.decode(tokens), pixels)
    assert tokenizer.size((2, 2, 2)) == (4, 8, 8)
    theirs = patchify(pixels, 4, 2).unflatten(-1, (2, 4, 4, 3)).permute(0, 1, 5, 2, 3, 4)
    assert torch.equal(tokens.flatten(1, 3), theirs.flatten(2))


@pytest.mark.parametrize(
    ("make", "size", "message"),
    [
        (causal, (1, 1, 4, 8, 8), r"4 frames: this tokenizer takes 1 \+ 4 m .* give 1 or 5"),
        (causal, (1, 1, 5, 8, 6), "each side must be a multiple of 4"),
        (causal, (1, 3, 5, 8, 8), "pixels have 3 channels"),
        (lambda: Tokenizer(CONV, VQ, CONV), (1, 1, 5, 7, 8), "multiple of 2"),
    ],
)
def test_videos_that_do_not_fit_are_refused(make, size, message):
    with pytest.raises(ValueError, match=message):
        make().encode(torch.zeros(size))


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="give both the same type"):
        Tokenizer(CAUSAL, VQ, CONV)
    with pytest.raises(ValueError, match="temporal 3 must lie between 0 and the 2 halvings"):
        causal(temporal=3)
    part = {"type": "patch", "patch": 4, "frames": 2, "channels": 1}
    with pytest.raises(ValueError, match="2 frames of 4x4 pixels and 1 channels has 32 numbers"):
        Tokenizer(part, {"type": "none", "dim": 16}, part)
    with pytest.raises(ValueError, match=r"tokens of 2 frames need a video .* multiple of 2"):
        Tokenizer(part, {"type": "none", "dim": 32}, part).encode(torch.zeros(1, 1, 8, 8))


ADVERSARIAL = {"start": 0, "width": 8, "layers": 1}


@pytest.mark.parametrize("adversarial", [None, ADVERSARIAL])
def test_losses_of_a_video_are_those_of_its_frames(adversarial):
    """A tokenizer of images cannot tell a video from its frames, and so neither can its losses."""
    stage = TokenizerStage(
        Videos(), tokenizer={"encoder": CONV, "quantizer": VQ, "decoder": CONV}, adversarial=adversarial
    )
    stage.modules["model"].eval()  # training moves dead codes
    pixels = torch.stack([Videos()[i]["pixels"] for i in range(3)])
    of_video = [terms["loss"] for _, terms in stage.losses({"pixels": pixels}, 0)]
    of_frames = [terms["loss"] for _, terms in stage.losses({"pixels": frames_of(pixels)}, 0)]
    assert len(of_video) == 1 + (adversarial is not None)
    torch.testing.assert_close(of_video, of_frames)


def test_the_share_of_stills_is_the_share_of_steps_with_images():
    stage = TokenizerStage(Videos(), tokenizer={"encoder": CONV, "quantizer": VQ, "decoder": CONV}, stills=0.5)
    seen = []
    stage.modules["model"].register_forward_pre_hook(lambda module, args: seen.append(args[0].ndim))
    pixels = torch.stack([Videos()[i]["pixels"] for i in range(2)])
    for step in range(60):
        torch.manual_seed(step)
        next(iter(stage.losses({"pixels": pixels}, step)))
    assert 18 <= seen.count(4) <= 42
    assert seen.count(4) + seen.count(5) == 60


def test_a_causal_tokenizer_trains_on_videos_and_stills(tmp_path):
    settings = Training(steps=2, batch_size=2, log_every=1, precision="fp32")
    spec = {"encoder": CAUSAL, "quantizer": VQ, "decoder": CAUSAL}
    stage = TokenizerStage(Videos(), Videos(4), spec, adversarial=ADVERSARIAL, stills=0.5)
    train(stage, Videos(), settings, tmp_path, Augmentation(flip=0.5, crop=0.5))
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["step"] == 2
    assert last["discriminator/loss"] > 0
    assert load_tokenizer(tmp_path).encode(video()).shape == (2, 2, 2, 2)


def test_a_causal_tokenizer_learns_to_reconstruct_motion():
    stage = TokenizerStage(Videos(), tokenizer={"encoder": CAUSAL, "quantizer": VQ, "decoder": CAUSAL})
    pixels = torch.stack([Videos()[i]["pixels"] for i in range(4)])
    model = stage.modules["model"]
    optimizer, losses = torch.optim.Adam(model.parameters(), 5e-3), []
    for step in range(25):
        ((_, terms),) = stage.losses({"pixels": pixels}, step)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(float(terms["l1"].detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_centroids_of_videos_are_patches_of_their_frames(tmp_path):
    """With a code for every patch there is, nothing is lost."""
    part = {"type": "patch", "patch": 4, "channels": 1}
    spec = {"encoder": part, "quantizer": {"codebook_size": 128, "dim": 16}, "decoder": part}
    CentroidStage(Videos(), tokenizer=spec, points=240).fit(2, 0, tmp_path)
    tokenizer, pixels = load_tokenizer(tmp_path).eval(), torch.stack([Videos()[i]["pixels"] for i in range(12)])
    codes = tokenizer.encode(pixels)
    assert codes.shape == (12, 5, 2, 2)
    torch.testing.assert_close(tokenizer.decode(codes), pixels)


def test_augmentation_changes_all_frames_alike():
    still = torch.rand(1, 1, 8, 8).expand(1, 5, 8, 8).contiguous()
    found = Augmentation(flip=0.5, crop=0.3)(still, torch.Generator().manual_seed(1))
    assert found.shape == still.shape
    assert not torch.equal(found, still)
    assert torch.equal(found, found[:, :1].expand_as(found))
    alone = Augmentation(flip=0.5, crop=0.3)(still[:, 0], torch.Generator().manual_seed(1))
    assert torch.equal(found[:, 0], alone)
