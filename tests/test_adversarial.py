"""The stages that train tokenizers: the adversarial step and its guards, half precision, features for pixels."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maskgen.mim.teachers import Teacher
from maskgen.pipelines.store import load_tokenizer
from maskgen.tokenizer.losses import discriminator_loss, generator_loss, lecam_loss
from maskgen.training.adversary import Adversary
from maskgen.training.loop import Training, train
from maskgen.training.metrics import read_metrics
from maskgen.training.stages.tokenizer import TokenizerStage
from maskgen.training.stages.vqkd import VqkdStage, colours

ROOT = Path(__file__).parents[1]
TOKENIZER = {
    "encoder": {"width": 8, "multipliers": [1, 2], "blocks": 1},
    "quantizer": {"codebook_size": 16, "dim": 4, "learned": True},
    "decoder": {"width": 8, "multipliers": [1, 2], "blocks": 1},
}
CRITIC = {"width": 4, "layers": 1}
GUARDS = {"warmup": 3, "lecam": 0.3, "r1": 2.0, "r1_every": 2}


pytestmark = pytest.mark.usefixtures("cpu")


class Images:
    """A coloured square somewhere on a grey ground."""

    class_names = ("a", "b")

    def __init__(self, n=24, size=16):
        draw = torch.Generator().manual_seed(0)
        self.labels = np.arange(n) % 2
        self.pixels = torch.full((n, 3, size, size), 0.8)
        for image in self.pixels:
            y, x = torch.randint(0, size // 2, (2,), generator=draw).tolist()
            image[:, y : y + size // 2, x : x + size // 2] = torch.rand(3, 1, 1, generator=draw) * 2 - 1

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixels": self.pixels[index], "label": int(self.labels[index])}


def stage_of(tokenizer=TOKENIZER, **settings):
    torch.manual_seed(0)
    return TokenizerStage(dataset=Images(), tokenizer=tokenizer, **settings)


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda m, name=name: f"{name}: {m}")


# ------------------------------------------------------------------------------------------------ the lean step


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_the_lean_step_has_the_plain_sums_gradients_with_every_term_on(kind, adaptive, classifier_folder):
    """Written out: l1 + l2 + perceptual + weight * adversarial + quantizer; hinge + LeCAM + R1. One backward each."""
    stage = stage_of(
        l2=0.7,
        perceptual=0.4,
        perceptual_network={"type": "classifier", "path": classifier_folder},
        adversarial={"weight": 0.5, "kind": kind, "adaptive": adaptive, **CRITIC, **GUARDS},
    )
    anchors = {"anchor_real": torch.tensor(0.2), "anchor_fake": torch.tensor(-0.1)}
    stage.adversary.discriminator.load_state_dict(anchors, strict=False)
    plain, pixels, step = copy.deepcopy(stage), Images().pixels[:6], 2  # third of a warm-up of 3, and R1's turn

    torch.manual_seed(0)  # the quantizer draws
    steps = stage.losses({"pixels": pixels}, step)
    name, terms = next(steps)
    assert name == "model"
    terms["loss"].backward()

    torch.manual_seed(0)
    model, critic = plain.modules["model"], plain.modules["discriminator"]
    output = model(pixels)
    made = output.pixels
    fit = (made - pixels).abs().mean() + 0.7 * (made - pixels).square().mean()
    fit = fit + 0.4 * plain.perceptual_network(made.clamp(-1, 1), pixels)
    fooled = generator_loss(critic(made), kind)
    weight = torch.tensor(0.5 * 3 / 4)
    if adaptive:
        last = model.decoder.last_layer.weight
        norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (fit, fooled)]
        weight = weight * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4)
    total = fit + weight * fooled + output.loss
    total.backward()

    torch.testing.assert_close(terms["adversarial_weight"], weight)
    torch.testing.assert_close(terms["loss"].detach(), total.detach())
    assert_same_gradients(gradients(stage.modules["model"]), gradients(model))
    assert all(p.grad is None and p.requires_grad for p in stage.modules["discriminator"].parameters())

    before = gradients(stage.modules["model"])
    name, terms = next(steps)
    assert name == "discriminator"
    terms["loss"].backward()
    critic.zero_grad()
    real_pixels = pixels.clone().requires_grad_()
    real, fake = critic(real_pixels), critic(made.detach())
    slope = torch.autograd.grad(real.mean((1, 2, 3)).sum(), real_pixels, create_graph=True)[0]
    r1 = slope.square().sum((1, 2, 3)).mean()
    loss = discriminator_loss(real, fake, kind) + 0.3 * lecam_loss(real, fake, *anchors.values()) + 0.5 * 2.0 * 2 * r1
    loss.backward()
    torch.testing.assert_close(terms["loss"].detach(), loss.detach())
    assert_same_gradients(gradients(stage.modules["discriminator"]), gradients(critic))
    torch.testing.assert_close(gradients(stage.modules["model"]), before, rtol=0, atol=0)
    moved = stage.adversary.discriminator.anchor_real
    torch.testing.assert_close(moved, 0.999 * anchors["anchor_real"] + 0.001 * real.mean().detach())
    assert next(steps, None) is None


def test_the_autoencoder_and_the_perceptual_network_are_passed_once(classifier_folder):
    network = {"type": "classifier", "path": classifier_folder}
    stage = stage_of(perceptual=1.0, perceptual_network=network, adversarial=CRITIC)
    calls = []
    for name, module in {**stage.modules, "perceptual": stage.perceptual_network}.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    for _, terms in stage.losses({"pixels": Images().pixels[:2]}, 0):
        terms["loss"].backward()
    assert sorted(calls) == ["discriminator", "discriminator", "model", "perceptual"]


def test_text_goes_to_a_decoder_that_reads_it():
    vit = {"type": "vit", "size": 16, "patch": 4, "transformer": {"width": 8, "depth": 1, "heads": 2}}
    decoder = {**vit, "text_dim": 5, "text_length": 3}
    stage = TokenizerStage(Images(), tokenizer={**TOKENIZER, "encoder": vit, "decoder": decoder}, adversarial=CRITIC)
    batch = {"pixels": Images().pixels[:2], "text": torch.randn(2, 3, 5)}
    for _, terms in stage.losses(batch, 0):
        terms["loss"].backward()
    assert stage.modules["model"].decoder.text.weight.grad.norm() > 0
    with pytest.raises(ValueError, match="needs text features"):
        next(stage.losses({"pixels": batch["pixels"]}, 0))


# ------------------------------------------------------------------------------------------------------ the guards


def test_before_its_start_the_adversarial_term_is_off_and_then_it_warms_up():
    stage = stage_of(adversarial={"weight": 0.5, "start": 3, "warmup": 4, "adaptive": False, **CRITIC})
    batch = {"pixels": Images().pixels[:2]}
    assert [name for name, _ in stage.losses(batch, 2)] == ["model"]
    assert [name for name, _ in stage.losses(batch, 3)] == ["model", "discriminator"]
    weights = [dict(stage.losses(batch, k))["model"]["adversarial_weight"].item() for k in range(3, 9)]
    assert weights == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


def test_r1_comes_every_so_many_steps_from_the_start():
    stage = stage_of(adversarial={"start": 3, "r1": 1.0, "r1_every": 4, **CRITIC})
    batch = {"pixels": Images().pixels[:2]}
    assert [k for k in range(3, 16) if "r1" in dict(stage.losses(batch, k))["discriminator"]] == [3, 7, 11, 15]


def test_the_adaptive_weight_bounds_the_terms_gradient_by_the_fits():
    """However steep the discriminator is, at the decoder's last layer its gradient is `weight` times the fit's."""
    stage = stage_of(adversarial={"weight": 0.5, **CRITIC})
    with torch.no_grad():
        stage.adversary.discriminator.layers[-1].weight *= 1e4
    pixels = Images().pixels[:4]
    model = stage.modules["model"].eval()
    last = model.decoder.last_layer.weight
    output = model(pixels)
    (fit,) = torch.autograd.grad((output.pixels - pixels).abs().mean(), last)
    _, terms = next(stage.losses({"pixels": pixels}, 0))
    (both,) = torch.autograd.grad(terms["loss"], last)
    assert (both - fit).norm().item() == pytest.approx(0.5 * fit.norm().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 3}, r"layers=3 needs images of at least 24x24, got 16x16; give layers=2"),
        ({"weight": 0.0}, r"adversarial\.weight must be above 0 .*leave adversarial out"),
        ({"warmup": -1, "lecam": -1.0, "r1_every": 0}, r"(?s)warmup must be.*got -1.*lecam must be.*r1_every must be"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(settings, message):
    with pytest.raises(ValueError, match=message):
        stage_of(adversarial={**CRITIC, "start": 1000, **settings})


# -------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize(("dtype", "alike"), [(torch.bfloat16, 0.9), (torch.float16, 0.97)])
def test_under_autocast_the_losses_are_those_of_float32(dtype, alike, classifier_folder):
    """Every term on; gradients of float16 are taken of the scaled loss, as a GradScaler does.

    Without a quantizer: a latent rounded otherwise would have another code. What differs most is the gradient of the
    untrained classifier's distance, which is steep where its features are near 0; without it both are above 0.98.
    """
    settings = {
        "tokenizer": {**TOKENIZER, "quantizer": {"type": "none", "dim": 4}},
        "l2": 1.0,
        "perceptual": 0.5,
        "perceptual_network": {"type": "classifier", "path": classifier_folder},
        "adversarial": {"weight": 0.5, **CRITIC, **GUARDS},
    }
    pixels, found = Images().pixels[:6], {}
    for name in ("full", "half"):
        stage = stage_of(**settings)
        torch.manual_seed(0)
        scale = 2.0**12
        for module, terms in _under(dtype if name == "half" else None, stage, pixels):
            assert all(value.isfinite() for value in terms.values()), (module, terms)
            assert terms["loss"].dtype == torch.float32
            (scale * terms["loss"]).backward()
            found[name, module] = terms, {k: g / scale for k, g in gradients(stage.modules[module]).items()}
    for module in ("model", "discriminator"):
        (full, expected), (half, made) = found["full", module], found["half", module]
        for term in full:
            assert half[term].item() == pytest.approx(full[term].item(), rel=0.1, abs=0.05), term
        assert all(g.isfinite().all() for g in made.values())
        a, b = (torch.cat([g.flatten() for g in gs.values()]) for gs in (expected, made))
        assert torch.cosine_similarity(a, b, dim=0) > alike


def _under(dtype, stage, pixels):
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        yield from stage.losses({"pixels": pixels}, 2)


def test_small_gradients_of_large_images_survive_float16():
    """The mean over a large batch has gradients at the pixels far below float16's least number."""
    stage = stage_of(l1=1e-5, adversarial={"weight": 0.5, **CRITIC})
    with torch.autocast("cpu", torch.float16):
        _, terms = next(stage.losses({"pixels": Images().pixels[:6]}, 0))
    (2.0**16 * terms["loss"]).backward()
    assert terms["adversarial_weight"] > 0
    assert stage.modules["model"].decoder.last_layer.weight.grad.norm() > 0


@pytest.mark.train
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_with_every_term_stays_finite(precision, tmp_path, classifier_folder):
    stage = stage_of(
        perceptual=0.5,
        perceptual_network={"type": "classifier", "path": classifier_folder},
        adversarial={"weight": 0.5, "start": 2, **CRITIC, **GUARDS},
    )
    settings = Training(steps=8, batch_size=8, precision=precision, log_every=1, learning_rate=1e-3, warmup_steps=0)
    assert train(stage, Images(), settings, tmp_path) == 8
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert {"discriminator/lecam", "discriminator/r1", "model/adversarial_weight"} <= set(lines[2])
    assert "discriminator/r1" not in lines[3]


# ------------------------------------------------------------------------------------------------ features for pixels


class Thirds(Teacher):
    """Colours and their squares: 6 features that a code can tell."""

    def features(self, pixels):
        return torch.cat([pixels, pixels.square() - 0.5], 1)


def of_features(**decoder):
    decoder = {"channels": 6, "width": 16, "multipliers": [1], "blocks": 1, **decoder}
    return {**TOKENIZER, "target": "features", "decoder": decoder}


def test_the_loss_is_one_less_the_cosine_to_the_teachers_features():
    stage = VqkdStage(Images(), Thirds(), tokenizer=of_features())
    model = stage.modules["model"]
    pixels = Images().pixels[:4]
    torch.manual_seed(0)
    ((name, terms),) = stage.losses({"pixels": pixels}, 0)
    torch.manual_seed(0)
    output = copy.deepcopy(model)(pixels)
    wanted = torch.nn.functional.interpolate(Thirds().features(pixels), (8, 8), mode="bilinear", antialias=True)
    a, b = output.pixels.movedim(1, -1).reshape(-1, 6), wanted.movedim(1, -1).reshape(-1, 6)
    cosine = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean()
    assert name == "model"
    torch.testing.assert_close(terms["cosine"], cosine)
    torch.testing.assert_close(terms["loss"], 1 - cosine + terms["quantizer"])


@pytest.mark.train
def test_a_tokenizer_of_features_learns_its_teachers(tmp_path, classifier_folder):
    stage = VqkdStage(Images(), Thirds(), holdout=Images(8), tokenizer=of_features())
    settings = Training(
        steps=60, batch_size=12, learning_rate=4e-3, warmup_steps=0, ema=0.8, precision="fp32", sample_every=59
    )
    before = stage.evaluate(stage.modules["model"].eval())
    stage.modules["model"].train()
    train(stage, Images(), settings, tmp_path)
    after = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert after["holdout/cosine"] > max(0.8, before["holdout/cosine"] + 0.3)
    assert after["codebook/use"] > 0.5
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step_00000059.png", "step_00000060.png"]
    assert load_tokenizer(tmp_path).config.target == "features"


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (TOKENIZER, r"set stage\.tokenizer\.target=features"),
        (of_features(channels=5), r"teacher has 6 features per token, the decoder makes 5; set .*decoder\.channels=6"),
        (of_features(multipliers=[1, 1]), r"decoder makes a map of \(16, 16\) for tokens on a grid \(8, 8\)"),
    ],
)
def test_a_tokenizer_that_cannot_make_the_teachers_features_is_refused(tokenizer, message):
    with pytest.raises(ValueError, match=message):
        VqkdStage(Images(), Thirds(), tokenizer=tokenizer)


def test_a_tokenizer_of_features_is_not_trained_on_pixels():
    with pytest.raises(ValueError, match=r"target is 'features'.*type vqkd"):
        TokenizerStage(Images(), tokenizer=of_features())


def test_colours_tell_like_from_unlike():
    vectors = torch.zeros(1, 5, 2, 2)
    vectors[0, :, 0] = torch.randn(5, 1)
    found = colours(vectors)
    assert found.shape == (1, 3, 2, 2)
    assert found.min() >= -1
    assert found.max() <= 1
    torch.testing.assert_close(found[..., 0], found[..., 1])
    assert (found[..., 0, 0] - found[..., 1, 0]).abs().max() == pytest.approx(2)
    assert colours(torch.randn(2, 2, 3, 3)).shape == (2, 3, 3, 3)


# -------------------------------------------------------------------------------------------------- many processes

RANK = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from maskgen.training.adversary import Adversary
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
adversary = Adversary(3, (16, 16), lecam=0.3, lecam_decay=0.5, r1=2.0, r1_every=1, width=4, layers=1)
module = DistributedDataParallel(adversary.discriminator)
pixels, made = torch.load(f"{folder}/images.pt")
for step in range(2):
    module.zero_grad()
    adversary.terms(module, pixels.chunk(2)[rank], made.chunk(2)[rank], step)["loss"].backward()
state = {**module.module.state_dict(), **{f"grad.{k}": p.grad for k, p in module.module.named_parameters()}}
torch.save(state, f"{folder}/rank{rank}.pt")
"""


@pytest.mark.train
def test_two_processes_have_the_discriminators_gradients_and_anchors_of_one(tmp_path):
    pixels, made = Images(8).pixels, torch.randn(8, 3, 16, 16)
    torch.save((pixels, made), tmp_path / "images.pt")
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(r), str(tmp_path)], cwd=ROOT) for r in range(2)]
    torch.manual_seed(0)
    adversary = Adversary(3, (16, 16), lecam=0.3, lecam_decay=0.5, r1=2.0, r1_every=1, width=4, layers=1)
    module = adversary.discriminator
    for step in range(2):
        module.zero_grad()
        adversary.terms(module, pixels, made, step)["loss"].backward()
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    expected = {**module.state_dict(), **{f"grad.{k}": g for k, g in gradients(module).items()}}
    assert expected["anchor_real"] != 0
    one, two = (torch.load(tmp_path / f"rank{r}.pt") for r in range(2))
    for key, value in expected.items():
        assert torch.equal(one[key], two[key]), key
        torch.testing.assert_close(one[key], value, msg=lambda m, key=key: f"{key}: {m}")
