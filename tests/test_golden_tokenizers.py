"""Our tokenizer parts, composed by options, compute what the peers' code computed (tests/golden).

Each family has three small things: the options for a peer's configuration (tokenizer_options.py), the map from the
peer's weights to ours (tokenizer_keys.py), and what is compared. All are made for the family, so that another fixture
of it (other widths, depths, attention at other levels) passes as soon as its folder is there.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import yaml
from diffusers import VQModel
from torch import Tensor

from maskgen.registry import build
from maskgen.tokenizer.losses import feature_loss
from maskgen.tokenizer.model import DECODER, QUANTIZER, Tokenizer
from maskgen.tokenizer.quantizers.seeding import squared_distances
from recorded import Fixture, Options, State, cases, computed, family, folders
from tokenizer_keys import (
    codebook,
    diffusers_keys,
    llamagen_keys,
    maskbit_keys,
    maskgit_jax_keys,
    maskgit_torch_keys,
    taming_keys,
    titok_keys,
    vqkd_keys,
)
from tokenizer_options import (
    LEGACY,
    diffusers_vq,
    llamagen,
    mage,
    maskbit,
    maskgit_jax,
    maskgit_torch,
    taming,
    titok,
    vqkd,
)


def temperature(f: Fixture, name: str) -> float:
    """That the peer says beside an output."""
    found = re.search(r"temp=([\d.]+)", f.spec["outputs"][name]["what"])
    assert found is not None
    return float(found[1])


def loaded(options: Options, weights: State) -> Tokenizer:
    """The tokenizer of a YAML file's options, with exactly these weights."""
    tokenizer = Tokenizer(**yaml.safe_load(yaml.safe_dump(options))).eval()
    tokenizer.load_state_dict(weights, strict=True)
    return tokenizer


def results(tokenizer: Tokenizer, image: Tensor, given: Tensor, *text: Tensor) -> State:
    """What every family compares, under our names; `given` are codes to decode, in row-major order."""
    latents = tokenizer.encoder(image)
    quantized = tokenizer.quantize(latents)
    out = tokenizer(image, *text)
    assert torch.equal(tokenizer.encode(image), quantized.codes)
    assert torch.equal(out.codes, quantized.codes)
    assert torch.equal(out.loss, quantized.loss)
    return {
        "latents": latents,
        "vectors": quantized.latents,
        "codes": quantized.codes,
        "loss": quantized.loss,
        "pixels": out.pixels,
        "decoded": tokenizer.decode(quantized.codes, *text),
        "decoded_given": tokenizer.decode(given.long().view(quantized.codes.shape), *text),
    }


def soft(latents: Tensor, tokenizer: Tokenizer, temperature: float) -> Tensor:
    """Codes by probability instead of the nearest one."""
    z = latents.movedim(1, -1).flatten(0, -2)
    return (-squared_distances(z, tokenizer.quantizer.codebook) / temperature).softmax(-1)


def taming_run(f: Fixture, tokenizer: Tokenizer) -> State:
    found = results(tokenizer, f.inputs["image"], f.inputs["codes"])
    return {
        "pre_quant": found["latents"],
        "indices": found["codes"],
        "quant": found["vectors"],
        "emb_loss": LEGACY * found["loss"],
        "rec": found["pixels"],
        "decoded_code": found["decoded"],
        "decoded_random_codes": found["decoded_given"],
    }


def maskgit_torch_run(f: Fixture, tokenizer: Tokenizer) -> State:
    found = results(tokenizer, f.inputs["image"], f.inputs["codes"])
    name = "decoded_codes"
    clamped = "clamped to [0,1]" in f.spec["outputs"][name]["what"]
    loss = f.config["commitment_cost"] * found["loss"]
    return {
        "encoder_out": found["latents"],
        "indices": found["codes"],
        "vq_loss": loss,
        "loss": loss,
        "rec": found["pixels"],
        "rec_unclamped": found["pixels"],
        name: found["decoded_given"].clamp(0, 1) if clamped else found["decoded_given"],
        "soft_code": soft(found["latents"], tokenizer, temperature(f, "soft_code")),
    }


def maskgit_jax_run(f: Fixture, tokenizer: Tokenizer) -> State:
    found = results(tokenizer, f.inputs["image"].permute(0, 3, 1, 2), f.inputs["codes"])
    config = f.config["vqvae"]
    tokenizer.quantizer.train()
    training = tokenizer.quantize(found["latents"])
    entropy = training.terms["sample_entropy"] - training.terms["mean_entropy"]
    out = {"encoder_out": "latents", "rec": "pixels", "decoded_codes": "decoded_given"}
    return {
        **{theirs: found[ours].permute(0, 2, 3, 1) for theirs, ours in out.items()},
        "indices": found["codes"],
        "train_quantizer_loss": training.loss,
        "train_e_latent_loss": config["commitment_cost"] * training.terms["commitment"],
        "train_q_latent_loss": training.loss
        - config["commitment_cost"] * training.terms["commitment"]
        - config["entropy_loss_ratio"] * entropy,
        "train_entropy_loss": config["entropy_loss_ratio"] * entropy,
    }


def maskbit_run(f: Fixture, tokenizer: Tokenizer) -> State:
    found = results(tokenizer, f.inputs["image"], f.inputs["codes"])
    tokenizer.quantizer.train()
    training = tokenizer.quantize(found["latents"])
    return {
        "encoder_out": found["latents"],
        "bits": found["vectors"],
        "indices": found["codes"],
        "commitment_loss": found["loss"],
        "quantizer_loss": found["loss"],
        "train_quantizer_loss": training.loss,
        "train_per_sample_entropy": training.terms["sample_entropy"],
        "train_avg_entropy": training.terms["mean_entropy"],
        "rec": found["pixels"],
        "decoded_codes": found["decoded_given"],
    }


def diffusers_run(f: Fixture, tokenizer: Tokenizer) -> State:
    found = results(tokenizer, f.inputs["image"], f.inputs["codes"])
    return {
        "vq_latents": found["latents"],
        "vq_indices": found["codes"],
        "vq_rec": found["decoded"],
        "vq_decoded_codes": found["decoded_given"],
        "vq_forward": found["pixels"],
    }


def titok_run(f: Fixture, tokenizer: Tokenizer) -> State:
    text = [f.inputs["text_guidance"]] if "text_guidance" in f.inputs else []
    found = results(tokenizer, f.inputs["image"], f.inputs["tokens"], *text)
    return {
        "encoder_out": found["latents"],
        "z_quantized": found["vectors"],
        "indices": found["codes"],
        "rec": found["pixels"],
        "decoder_out": found["pixels"],
        "decoded_tokens": found["decoded_given"],
    }


IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def vqkd_run(f: Fixture, tokenizer: Tokenizer) -> State:
    mean, std = {"default": (0.5, 0.5), "imagenet_norm": (IMAGENET_MEAN, IMAGENET_STD)}[f.config["process_type"]]
    image = (f.inputs["image"] - mean) / std
    found = results(tokenizer, image, f.outputs["tokens"])
    target = f.inputs["target"].transpose(1, 2).view_as(found["pixels"])
    quantizer = tokenizer.quantizer.train()
    # our statistics of use are counts over the count under uniform use
    uniform = f.outputs["tokens"].numel() / quantizer.codebook_size
    quantizer.usage.copy_(f.weights["quantize.cluster_size"] / uniform)
    latents = f.outputs["to_quantizer_features"].transpose(1, 2).reshape(found["latents"].shape)
    quantizer(latents)
    return {
        "input_img": image,
        "to_quantizer_features": found["latents"].flatten(2).transpose(1, 2),
        "tokens": found["codes"],
        "quantized": found["vectors"],
        "quant_loss": found["loss"],
        "rec": found["pixels"].flatten(2).transpose(1, 2),
        "rec_loss": feature_loss(found["pixels"], target),
        "train_step_codebook": quantizer.codebook,
        "train_step_cluster_size": quantizer.usage * uniform,
    }


@dataclass(frozen=True)
class Family:
    """How a peer's fixtures are run; `others` are recorded outputs that are not a tokenizer's."""

    options: Callable[[Options], Options]
    keys: Callable[[State, Options], State]
    run: Callable[[Fixture, Tokenizer], State]
    others: str = "$"

    def outputs(self, f: Fixture) -> State:
        return self.run(f, loaded(self.options(f.config), self.keys(f.weights, f.config)))


GENERATOR = r"(logits|mlm_loss|masked_token_loss|split_tokens|masked_tokens|train_masked_|mask_ratio_|sample_)"
PIPELINE = r"(text_embeds|encoder_hidden_states|logits|sched_|pipe_|prompt_)"
FAMILIES = {
    "taming/vqgan": Family(taming, taming_keys, taming_run),
    "mage/vqgan": Family(mage, taming_keys, taming_run),
    "titok/maskgit_vqgan": Family(maskgit_torch, maskgit_torch_keys, maskgit_torch_run),
    "openmuse/maskgit_vqgan": Family(maskgit_torch, maskgit_torch_keys, maskgit_torch_run),
    "maskgit_jax/tokenizer": Family(maskgit_jax, maskgit_jax_keys, maskgit_jax_run),
    "maskbit/maskbit": Family(maskbit, maskbit_keys, maskbit_run, GENERATOR),
    "maskbit/vq_bert": Family(maskbit, maskbit_keys, maskbit_run, GENERATOR),
    "halton/llamagen_vq": Family(llamagen, llamagen_keys, taming_run),
    "amused/pipeline": Family(diffusers_vq, diffusers_keys, diffusers_run, PIPELINE),
    "titok/titok": Family(titok, titok_keys, titok_run),
    "titok/tatitok": Family(titok, titok_keys, titok_run),
    "beit/vqkd": Family(vqkd, vqkd_keys, vqkd_run),
}
FOLDERS = folders(FAMILIES)
FIRST = [  # TiTok's first models: see the test of their quantizer and pixel decoder
    name
    for name in FOLDERS
    if name.startswith("titok/titok") and Fixture(FOLDERS[name]).config["model"]["vq_model"].get("is_legacy", True)
]


def of_a_tokenizer(name: str, output: str) -> bool:
    return name not in FIRST and not re.match(FAMILIES[family(name)].others, output)


@pytest.mark.parametrize(("name", "output"), cases(FOLDERS, of_a_tokenizer))
def test_every_output_is_the_peers(name, output):
    fixture, found = computed(FOLDERS[name], FAMILIES[family(name)].outputs, "tokenizer")
    fixture.check(output, found[output])


def test_all_families_are_there():
    assert {family(name) for name in FOLDERS} == set(FAMILIES)


@pytest.mark.parametrize("name", FIRST)
def test_quantizer_and_pixel_decoder_of_the_first_titoks_are_the_peers(name):
    """Of the first TiTok models the quantizer, and the pixel decoder behind soft codes of its codebook.

    Not their transformers: the encoder's tokens are reshaped without a transpose, and the decoder's head is wider.
    """
    f = Fixture(FOLDERS[name], "tokenizer")
    quantizer = build(QUANTIZER, titok(f.config)["quantizer"]).eval()
    quantizer.load_state_dict({k.removeprefix("quantizer."): v for k, v in codebook(f.weights).items()})
    found = quantizer(f.outputs["encoder_out"][:, :, 0])
    f.check("indices", found.codes)
    f.check("z_quantized", found.latents)

    pixels = {k.removeprefix("pixel_"): v for k, v in f.weights.items() if k.startswith("pixel_")}
    sizes = f.config["hardcoded_in_peer_replaced_here_by"]
    vqgan = maskgit_torch({**sizes["pixel_vqgan"], **sizes["pixel_codebook"], "commitment_cost": 0.25})
    decoder = build(DECODER, vqgan["decoder"], latent_dim=vqgan["quantizer"]["dim"])
    weights = maskgit_torch_keys(pixels, f.config)
    decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in weights.items() if k.startswith("decoder.")})
    latents = f.outputs["decoder_out"].softmax(1).movedim(1, -1) @ weights["quantizer.embedding.weight"]
    f.check("rec", decoder(latents.movedim(-1, 1)))


# --- Peers that are installed here and so are asked at once.


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Norms' weights and all biases too, so that a map that mixes them up is found out."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("levels", [[32, 64], [32, 64, 96]])
@pytest.mark.parametrize("kinds", ["plain", "attention"])
def test_movq_is_that_of_diffusers(attention, levels, kinds):
    """MoVQ's decoder as in diffusers: all norms, also attention's, read scale and shift from the latents."""
    config = {
        "block_out_channels": levels,
        "down_block_types": ["DownEncoderBlock2D"] * (len(levels) - 1)
        + ["AttnDownEncoderBlock2D" if kinds == "attention" else "DownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D" if kinds == "attention" else "UpDecoderBlock2D"]
        + ["UpDecoderBlock2D"] * (len(levels) - 1),
        "layers_per_block": 2,
        "latent_channels": 4,
        "vq_embed_dim": 4,
        "num_vq_embeddings": 32,
        "norm_type": "spatial",
        "mid_block_add_attention": attention,
        "norm_num_groups": 32,
        "in_channels": 3,
        "out_channels": 3,
    }
    peer = randomised(VQModel(**config))
    tokenizer = loaded(diffusers_vq({"vqvae": config}), diffusers_keys(peer.state_dict(), config))
    pixels, codes = torch.rand(2, 3, 16, 24) * 2 - 1, torch.randint(32, (2, 8, 12))
    latents = torch.randn(2, 4, 8, 12)
    with torch.no_grad():
        for x, theirs, ours in (
            (pixels, lambda m, x: m.encode(x).latents, tokenizer.encoder),
            (latents, lambda m, x: m.decode(x, force_not_quantize=True).sample, tokenizer.decoder),
        ):
            wanted = theirs(peer.float(), x)
            exact = theirs(peer.double(), x.double())
            # as the fixtures' tolerances: ten times the peer's own error
            atol = max(10 * float((wanted - exact).abs().max()), 1e-6 * float(wanted.abs().max()))
            torch.testing.assert_close(ours(x), wanted, atol=atol, rtol=1e-5)
        vectors = peer.float().quantize.get_codebook_entry(codes.flatten(), (2, 8, 12, 4))
        torch.testing.assert_close(tokenizer.embed(codes), vectors, atol=0, rtol=0)
