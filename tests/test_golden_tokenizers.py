"""Our tokenizer parts, composed by options, compute what the peers' code computed (tests/golden).

Each family has three small things: the options for a peer's configuration, the map from the peer's weights to ours,
and what is compared. All are made for the family, so that another fixture of it (other widths, depths, attention at
other levels) passes as soon as its folder is there.
"""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import yaml
from diffusers import VQModel
from diffusers.models.autoencoders.vae import VectorQuantizer as PeerQuantizer
from torch import Tensor

from maskgen.parts import build
from maskgen.tokenizer.losses import feature_loss
from maskgen.tokenizer.model import DECODER, QUANTIZER, Tokenizer
from maskgen.tokenizer.quantizers import FiniteScalarQuantizer, LookupFreeQuantizer
from maskgen.tokenizer.quantizers.seeding import squared_distances
from recorded import GOLDEN, Fixture, State

Options = dict[str, Any]

# --- Key maps of convolutional tokenizers: a peer's names -> names of places in the network -> our names.


def renamed(state: State, *rules: tuple[str, str]) -> State:
    """All names after each rule (pattern, replacement) in turn."""
    out = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = value
    return out


def placed(state: State) -> State:
    """Names of places to ours, which count layers.

    ``encoder.`` and ``decoder.`` are followed by ``in`` and ``out`` (the convolutions at the pixels, and at the
    decoder's latents), ``latent`` (the 1x1 convolution at the latents), ``hidden`` (the 3x3 one of an encoder that
    has both), ``norm``, ``middle.block.J``, ``middle.attention``, ``level.I.block.J``, ``level.I.attention.J`` and
    ``level.I.resample``. Level 0 is the finest; ``stage.I`` is the same counted from the coarsest.
    """
    out = {}
    for coder in ("encoder", "decoder"):
        own = {k.removeprefix(f"{coder}."): v for k, v in state.items() if k.startswith(f"{coder}.")}
        if not own:
            continue
        levels = 1 + max(int(m[1]) for k in own if (m := re.match(r"(?:level|stage)\.(\d+)\.", k)))
        for i in range(levels):
            own = {re.sub(rf"^stage\.{i}\.", f"level.{levels - 1 - i}.", k): v for k, v in own.items()}
        place = functools.partial(_place, coder=coder, levels=levels, names=list(own))
        out.update({place(k): v for k, v in own.items()})
    rest = {k: v for k, v in state.items() if not k.startswith(("encoder.", "decoder."))}
    return {**_joined(out), **rest}


def _place(name: str, coder: str, levels: int, names: list[str]) -> str:
    """Our name of one place; the order of layers is that of ConvEncoder and ConvDecoder."""
    blocks = len({m[1] for k in names if (m := re.match(r"middle\.block\.(\d+)", k))})
    attention = any(k.startswith("middle.attention") for k in names)
    middle, hidden, latent = blocks + attention, "hidden.weight" in names, "latent.weight" in names
    if coder == "encoder":
        start, of_level = 2 * levels, [1 + 2 * i for i in range(levels)]
        norm = start + middle
        fixed = {"in": 0, "norm": norm, "hidden": norm + 2, "latent": norm + 2 + hidden}
    else:
        start = 1 + latent
        of_level = [start + middle + 2 * (levels - 1 - i) for i in range(levels)]
        fixed = {"latent": 0, "in": latent + 0, "norm": start + middle + 2 * levels - 1}
    first, _, rest = name.partition(".")
    if first == "out":
        return f"decoder.output.{rest}"
    if first in fixed:
        return f"{coder}.layers.{fixed[first]}.{rest}"
    if m := re.match(r"middle\.block\.(\d+)\.(.*)", name):
        j = int(m[1])
        return f"{coder}.layers.{start + j + (attention and j > 0)}.{m[2]}"
    if m := re.match(r"middle\.attention\.(.*)", name):
        return f"{coder}.layers.{start + 1}.{m[1]}"
    if m := re.match(r"level\.(\d+)\.resample\.(.*)", name):
        return f"{coder}.layers.{of_level[int(m[1])] + 1}.conv.{m[2]}"
    if m := re.match(r"level\.(\d+)\.(block|attention)\.(\d+)\.(.*)", name):
        attended = any(k.startswith(f"level.{m[1]}.attention.") for k in names)
        j = int(m[3]) * (1 + attended) + (m[2] == "attention")
        return f"{coder}.layers.{of_level[int(m[1])]}.{j}.{m[4]}"
    raise KeyError(f"no place {coder}.{name}")


def _joined(state: State) -> State:
    """Query, key and value as one 1x1 convolution; linear layers of attention as 1x1 convolutions."""
    out = {}
    for name, value in state.items():
        if m := re.match(r"(.*)\.([qkv]|out)\.(weight|bias)$", name):
            value = value[:, :, None, None] if m[3] == "weight" and value.ndim == 2 else value
            if m[2] in "kv":
                continue
            if m[2] == "q":
                others = [state[f"{m[1]}.{x}.{m[3]}"] for x in "kv"]
                value = torch.cat([value, *(x.view_as(value) for x in others)])
                name = f"{m[1]}.qkv.{m[3]}"
        out[name] = value
    return out


def codebook(state: State, name: str = "quantize.embedding.weight") -> State:
    """The codebook as ours, with the statistics of a fresh one."""
    weight = state[name]
    return {
        "quantizer.codebook": weight,
        "quantizer.usage": torch.ones(len(weight)),
        "quantizer.sums": weight.clone(),
        "quantizer.initialised": torch.tensor(True),
    }


COMMON = (
    (r"nin_shortcut|conv_shortcut", "shortcut"),
    (r"proj_out", "out"),
    (r"\.attn\.(\d+)\.", r".attention.\1."),
    (r"\.conv_in\.", ".in."),
    (r"\.(conv_)?norm_out\.", ".norm."),
    (r"^decoder\.conv_out\.", "decoder.out."),
)
QUANT_CONVS = (
    (r"^encoder\.conv_out\.", "encoder.hidden."),
    (r"^quant_conv\.", "encoder.latent."),
    (r"^post_quant_conv\.", "decoder.latent."),
)
NO_QUANT_CONV = ((r"^encoder\.conv_out\.", "encoder.latent."),)


def of_coders(state: State) -> State:
    return {k: v for k, v in state.items() if not k.startswith("quantize.")}


def taming_keys(state: State, config: Options) -> State:
    """CompVis taming-transformers' VQModel; MAGE's has its names, without the two 1x1 convolutions."""
    rules = (
        *COMMON,
        (r"^encoder\.down\.", "encoder.level."),
        (r"^decoder\.up\.", "decoder.level."),
        (r"\.(down|up)sample\.conv\.", ".resample."),
        (r"\.mid\.block_1\.", ".middle.block.0."),
        (r"\.mid\.block_2\.", ".middle.block.1."),
        (r"\.mid\.attn_1\.", ".middle.attention."),
        *(QUANT_CONVS if "quant_conv.weight" in state else NO_QUANT_CONV),
    )
    return {**placed(renamed(of_coders(state), *rules)), **codebook(state)}


def maskgit_torch_keys(state: State, config: Options) -> State:
    """The MaskGIT VQGAN in PyTorch: open-muse, TiTok."""
    rules = (
        *COMMON,
        (r"^encoder\.down\.", "encoder.level."),
        (r"^decoder\.up\.", "decoder.level."),
        (r"\.upsample_conv\.", ".resample."),
        (r"\.mid\.(\d+)\.", r".middle.block.\1."),
        *NO_QUANT_CONV,
    )
    return {**placed(renamed(of_coders(state), *rules)), **codebook(state)}


def maskbit_keys(state: State, config: Options) -> State:
    """MaskBit's ConvVQModel; only its newer decoder counts levels from the coarsest, whose first is enlarged."""
    levels = "stage" if "decoder.up.0.upsample_conv.weight" in state else "level"
    rules = (
        *COMMON,
        (r"^encoder\.down\.", "encoder.level."),
        (r"^decoder\.up\.", f"decoder.{levels}."),
        (r"\.(upsample|down)_conv\.", ".resample."),
        (r"\.mid\.res_blocks\.", ".middle.block."),
        (r"\.res_blocks\.", ".block."),
        *NO_QUANT_CONV,
    )
    lookup = "quantize.embedding.weight" in state
    quantizer = codebook(state) if lookup else {"quantizer.seen": torch.tensor(0)}
    return {**placed(renamed(of_coders(state), *rules)), **quantizer}


def llamagen_keys(state: State, config: Options) -> State:
    """LlamaGen's VQ tokenizer."""
    rules = (
        *COMMON,
        (r"^encoder\.conv_blocks\.", "encoder.level."),
        (r"^decoder\.conv_blocks\.", "decoder.stage."),
        (r"\.(down|up)sample\.conv\.", ".resample."),
        (r"\.res\.", ".block."),
        (r"\.mid\.0\.", ".middle.block.0."),
        (r"\.mid\.1\.", ".middle.attention."),
        (r"\.mid\.2\.", ".middle.block.1."),
        *QUANT_CONVS,
    )
    return {**placed(renamed(of_coders(state), *rules)), **codebook(state)}


def diffusers_keys(state: State, config: Options) -> State:
    """diffusers' VQModel, with plain and with spatial norms."""
    rules = (
        *COMMON,
        (r"^encoder\.down_blocks\.", "encoder.level."),
        (r"^decoder\.up_blocks\.", "decoder.stage."),
        (r"\.(down|up)samplers\.0\.conv\.", ".resample."),
        (r"\.mid_block\.resnets\.", ".middle.block."),
        (r"\.mid_block\.attentions\.0\.", ".middle.attention."),
        (r"\.resnets\.", ".block."),
        (r"\.attentions\.", ".attention."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.to_out\.0\.", ".out."),
        (r"\.(group|spatial)_norm\.", ".norm."),
        (r"\.norm_layer\.", ".norm."),
        (r"\.conv_y\.", ".scale."),
        (r"\.conv_b\.", ".shift."),
        *QUANT_CONVS,
    )
    return {**placed(renamed(of_coders(state), *rules)), **codebook(state)}


def maskgit_jax_keys(state: State, config: Options) -> State:
    """google-research's VQGAN in flax: modules are numbered in the order of their calls, kernels are HWIO."""
    vqvae = config["vqvae"]
    levels, blocks = len(vqvae["channel_multipliers"]), vqvae["num_res_blocks"]
    places = {"encoder/GroupNorm_0": "encoder.norm", "decoder/GroupNorm_0": "decoder.norm"}
    learned = [f"encoder.level.{i}.resample" for i in range(levels - 1)] if vqvae["conv_downsample"] else []
    enlarging = [f"decoder.stage.{i}.resample" for i in range(levels - 1)]
    for coder, convolutions, part in (
        ("encoder", ["encoder.in", *learned, "encoder.latent"], "level"),
        ("decoder", ["decoder.in", *enlarging, "decoder.out"], "stage"),
    ):
        of_level = [f"{coder}.{part}.{i}.block.{j}" for i in range(levels) for j in range(blocks)]
        middle = [f"{coder}.middle.block.{j}" for j in range(blocks)]
        order = of_level + middle if coder == "encoder" else middle + of_level
        places.update({f"{coder}/Conv_{i}": name for i, name in enumerate(convolutions)})
        inside = {"GroupNorm_0": "norm1", "Conv_0": "conv1", "GroupNorm_1": "norm2", "Conv_1": "conv2"}
        inside["Conv_2"] = "shortcut"
        places.update({f"{coder}/ResBlock_{i}/{k}": f"{n}.{v}" for i, n in enumerate(order) for k, v in inside.items()})
    out = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition("/")
        if module in places:
            leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
            out[f"{places[module]}.{leaf}"] = value.permute(3, 2, 0, 1) if value.ndim == 4 else value
    return {**placed(out), **codebook(state, "quantizer/codebook")}


# --- Key maps of transformers.


def titok_keys(state: State, config: Options) -> State:
    """TiTok and TA-TiTok, of which the decoder makes pixels; the class token takes its position in."""
    state = dict(state)
    for coder in ("encoder", "decoder"):
        positions = state.pop(f"{coder}.positional_embedding")
        state[f"{coder}.trunk.register_tokens"] = state.pop(f"{coder}.class_embedding") + positions[:1]
        state[f"{coder}.trunk.position_embedding"] = positions[1:]
    latent = "encoder.latent_token_positional_embedding"
    state["encoder.latent_tokens"] = state.pop("latent_tokens") + state.pop(latent)
    for name in ("encoder.conv_out.weight", "decoder.ffn.0.weight"):
        state[name] = state[name].flatten(1)
    state["decoder.mask_token"] = state["decoder.mask_token"].flatten()
    rules = (
        (r"\.transformer\.(\d+)\.", r".trunk.blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.attn\.in_proj_", ".attention.qkv."),
        (r"\.attn\.out_proj\.", ".attention.out."),
        (r"\.mlp\.c_fc\.", ".mlp.up."),
        (r"\.mlp\.c_proj\.", ".mlp.down."),
        (r"\.ln_(pre|post)\.", r".trunk.\1_norm."),
        (r"^encoder\.patch_embed\.", "encoder.embed."),
        (r"^encoder\.conv_out\.", "encoder.head.0."),
        (r"^decoder\.decoder_embed\.", "decoder.embed."),
        (r"^decoder\.latent_token_positional_embedding", "decoder.latent_embedding"),
        (r"^decoder\.text_guidance_proj\.", "decoder.text."),
        (r"^decoder\.text_guidance_positional_embedding", "decoder.text_embedding"),
        (r"^decoder\.ffn\.0\.", "decoder.head.0."),
        (r"^decoder\.conv_out\.", "decoder.refine."),
    )
    return {**renamed(of_coders(state), *rules), **codebook(state)}


def vqkd_keys(state: State, config: Options) -> State:
    """BEiT v2's VQ-KD: keys have no bias; a layer scale is a factor of the layer before it."""
    out = {}
    for name, value in of_coders(state).items():
        coder, _, rest = name.partition(".")
        if rest.endswith(("attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2", "cls_token")):
            continue
        if rest == "pos_embed":
            value, token = value[0], state[f"{coder}.cls_token"][0]
            out[f"{coder}.trunk.register_tokens"] = token + value[:1]
            name, value = f"{coder}.trunk.position_embedding", value[1:]
        if m := re.match(r"(.*)\.(attn\.proj|mlp\.fc2)\.(weight|bias)", name):
            scale = state.get(f"{m[1]}.gamma_{1 if m[2] == 'attn.proj' else 2}")
            if scale is not None:
                value = scale.view(-1, *[1] * (value.ndim - 1)) * value
        if m := re.match(r"(.*\.attn)\.qkv\.weight", name):
            zero = value.new_zeros(len(value) // 3)
            q, v = (state.get(f"{m[1]}.{x}_bias", zero) for x in "qv")
            out[f"{m[1]}.qkv.bias"] = torch.cat([q, zero, v])
        if name == "decoder.patch_embed.proj.weight":
            value = value.flatten(1)
        out[name] = value
    rules = (
        (r"\.blocks\.(\d+)\.", r".trunk.blocks.\1."),
        (r"\.attn\.qkv\.", ".attention.qkv."),
        (r"\.attn\.proj\.", ".attention.out."),
        (r"\.mlp\.fc1\.", ".mlp.up."),
        (r"\.mlp\.fc2\.", ".mlp.down."),
        (r"coder\.(fc_)?norm\.", "coder.trunk.post_norm."),
        (r"\.patch_embed\.proj\.", ".embed."),
        (r"^encode_task_layer\.", "encoder.head."),
        (r"^decode_task_layer\.", "decoder.head."),
    )
    return {**renamed(out, *rules), **codebook(state)}


# --- Options, as a YAML file would give them.

LEGACY = 0.25  # taming's beta stands before the codebook's term: its loss is ours with 1 / beta, times beta


def both(encoder: Options, decoder: Options, quantizer: Options) -> Options:
    """A tokenizer with a frozen codebook's housekeeping: nothing is set from data or revived."""
    return {"encoder": encoder, "decoder": decoder, "quantizer": {"init": "random", "revive_below": 0.0, **quantizer}}


def taming(config: Options) -> Options:
    dd = config["ddconfig"]
    at = [i for i in range(len(dd["ch_mult"])) if dd["resolution"] // 2**i in dd["attn_resolutions"]]
    common = {"width": dd["ch"], "multipliers": dd["ch_mult"], "attention": at, "middle_attention": True}
    common["hidden_dim"] = dd["z_channels"]
    return both(
        {**common, "channels": dd["in_channels"], "blocks": dd["num_res_blocks"]},
        {**common, "channels": dd["out_ch"], "blocks": dd["num_res_blocks"] + 1},
        {"codebook_size": config["n_embed"], "dim": config["embed_dim"], "learned": True, "commitment": 1 / LEGACY},
    )


def mage(config: Options) -> Options:
    dd = config["ddconfig"]
    common = {"width": dd["ch"], "multipliers": dd["ch_mult"], "blocks": dd["num_res_blocks"], "residual": "maskgit"}
    return both(
        {**common, "channels": dd["in_channels"], "downsample": "pool"},
        {**common, "channels": dd["out_ch"]},
        {"codebook_size": config["n_embed"], "dim": config["embed_dim"], "learned": True, "commitment": 1 / LEGACY},
    )


def maskgit_torch(config: Options) -> Options:
    common = {
        "channels": config["num_channels"],
        "width": config["hidden_channels"],
        "multipliers": config["channel_mult"],
        "blocks": config["num_res_blocks"],
        "middle_blocks": config["num_res_blocks"],
        "residual": "maskgit",
    }
    quantizer = {"codebook_size": config["num_embeddings"], "dim": config["z_channels"], "learned": True}
    quantizer["commitment"] = 1 / config["commitment_cost"]  # before the codebook's term here too
    return both({**common, "downsample": "pool"}, common, quantizer)


def maskgit_jax(config: Options) -> Options:
    vqvae = config["vqvae"]
    assert vqvae["activation_fn"] == "swish"
    assert vqvae["norm_type"] == "GN"
    assert vqvae["entropy_loss_type"] == "softmax"
    blocks = vqvae["num_res_blocks"]
    common = {"width": vqvae["filters"], "multipliers": vqvae["channel_multipliers"], "residual": "maskgit"}
    common |= {"blocks": blocks, "middle_blocks": blocks}
    quantizer = {
        "codebook_size": vqvae["codebook_size"],
        "dim": vqvae["embedding_dim"],
        "learned": True,
        "commitment": vqvae["commitment_cost"],
        "entropy": vqvae["entropy_loss_ratio"],
        "entropy_temperature": vqvae["entropy_temperature"],
    }
    return both({**common, "downsample": "conv4" if vqvae["conv_downsample"] else "pool"}, common, quantizer)


def maskbit(config: Options) -> Options:
    vq = config["vq_model"]
    common = {"channels": vq["num_channels"], "width": vq["hidden_channels"], "multipliers": vq["channel_mult"]}
    common["residual"] = "maskgit"
    blocks, decoder_blocks = vq["num_res_blocks"], vq.get("num_res_blocks_decoder", vq["num_res_blocks"])
    downsample = "conv" if vq["sample_with_conv"] else "pool"
    quantizer = {"commitment": vq["commitment_cost"], "entropy": vq["entropy_loss_weight"]}
    encoder = {**common, "blocks": blocks, "middle_blocks": blocks, "downsample": downsample}
    decoder = {**common, "blocks": decoder_blocks, "middle_blocks": decoder_blocks}
    if vq["quantizer_type"] == "lookup-free":
        quantizer |= {"type": "lfq", "bits": vq["token_size"], "gamma": vq["entropy_gamma"]}
        quantizer["temperature"] = vq["entropy_loss_temperature"]
        return {"encoder": encoder, "decoder": decoder, "quantizer": quantizer}
    assert vq["entropy_gamma"] == 1
    quantizer |= {"codebook_size": vq["codebook_size"], "dim": vq["token_size"], "learned": True}
    quantizer |= {"l2_norm": vq.get("use_l2_normalisation", False)}
    return both(encoder, decoder, {**quantizer, "entropy_temperature": vq["entropy_loss_temperature"]})


def llamagen(config: Options) -> Options:
    args, coder = config["ModelArgs"], config["Encoder/Decoder"]

    def part(multipliers: list[int], blocks: int) -> Options:
        last = len(multipliers) - 1
        sizes = {"width": coder["ch"], "multipliers": multipliers, "blocks": blocks, "hidden_dim": args["z_channels"]}
        return {**sizes, "attention": [last], "middle_attention": True}

    return both(
        part(args["encoder_ch_mult"], coder["num_res_blocks"]),
        part(args["decoder_ch_mult"], coder["num_res_blocks"] + 1),
        {"codebook_size": args["codebook_size"], "dim": args["codebook_embed_dim"], "learned": True, "l2_norm": True},
    )


def diffusers_vq(config: Options) -> Options:
    vq = config["vqvae"]
    widths = vq["block_out_channels"]
    assert not any(w % widths[0] for w in widths)
    common = {
        "width": widths[0],
        "multipliers": [w // widths[0] for w in widths],
        "middle_attention": vq["mid_block_add_attention"],
        "groups": vq["norm_num_groups"],
        "hidden_dim": vq["latent_channels"],
    }

    def attention(kinds: list[str]) -> list[int]:
        return [i for i, kind in enumerate(kinds) if kind.startswith("Attn")]

    down, up = attention(vq["down_block_types"]), attention(vq["up_block_types"][::-1])
    quantizer = {"codebook_size": vq["num_vq_embeddings"], "dim": vq["vq_embed_dim"] or vq["latent_channels"]}
    return both(
        {**common, "channels": vq["in_channels"], "blocks": vq["layers_per_block"], "attention": down},
        {
            **common,
            "channels": vq["out_channels"],
            "blocks": vq["layers_per_block"] + 1,
            "attention": up,
            "norm": vq["norm_type"],
        },
        {**quantizer, "learned": True, "commitment": 1 / LEGACY},
    )


def titok(config: Options) -> Options:
    vq, size = config["model"]["vq_model"], config["dataset"]["preprocessing"]["crop_size"]
    kinds = config["hardcoded_in_peer_replaced_here_by"]["vit_sizes"]

    def part(coder: str) -> Options:
        kind = kinds[vq[f"vit_{coder}_model_size"]]
        sizes = {"width": kind["width"], "depth": kind["num_layers"], "heads": kind["num_heads"]}
        grid = {"size": size, "patch": vq[f"vit_{coder}_patch_size"], "tokens": vq["num_latent_tokens"]}
        trunk = {"positions": "learned", "registers": 1, "pre_norm": True, "norm_eps": 1e-5}
        return {"type": "vit", **sizes, **grid, **trunk}

    text = (
        {"text_dim": vq["text_embed_dim"], "text_length": vq["text_context_length"]} if "text_embed_dim" in vq else {}
    )
    quantizer = {"codebook_size": vq["codebook_size"], "dim": vq["token_size"], "l2_norm": vq["use_l2_norm"]}
    quantizer |= {"learned": True, "commitment": vq["commitment_cost"]}
    return both(part("enc"), {**part("dec"), "refine": True, **text}, quantizer)


def vqkd(config: Options) -> Options:
    def part(vit: Options) -> Options:
        assert not vit["use_rel_pos_bias"]
        assert not vit["use_shared_rel_pos_bias"]
        assert vit["use_abs_pos_emb"]
        sizes = {"size": vit["img_size"], "patch": vit["patch_size"], "width": vit["embed_dim"], "depth": vit["depth"]}
        sizes |= {"heads": vit["num_heads"], "mlp_ratio": vit["mlp_ratio"]}
        return {"type": "vit", **sizes, "positions": "learned", "registers": 1, "head": "tanh"}

    quantizer = {"codebook_size": config["n_embed"], "dim": config["embed_dim"], "commitment": config["beta"]}
    quantizer |= {"l2_norm": True, "average": "directions", "decay": config["decay"]}
    encoder = {**part(config["encoder_config"]), "channels": config["encoder_config"]["in_chans"]}
    decoder = {**part(config["decoder_config"]), "channels": config["decoder_out_dim"]}
    return {**both(encoder, decoder, quantizer), "target": "features"}


# --- What is compared.


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


@dataclass
class Family:
    """How a peer's fixtures are run; `others` are recorded outputs that are not a tokenizer's."""

    options: Callable[[Options], Options]
    keys: Callable[[State, Options], State]
    run: Callable[[Fixture, Tokenizer], State]
    others: str = "$"


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
FOLDERS = {str(p.relative_to(GOLDEN)): p for name in FAMILIES for p in sorted((GOLDEN / name).glob("*/"))}


def family(name: str) -> Family:
    return FAMILIES[name.rpartition("/")[0]]


@functools.cache
def computed(name: str) -> tuple[Fixture, State]:
    """A fixture and all that we compute of it."""
    torch.manual_seed(0)
    fixture, own = Fixture(FOLDERS[name], "tokenizer"), family(name)
    tokenizer = loaded(own.options(fixture.config), own.keys(fixture.weights, fixture.config))
    with torch.no_grad():
        return fixture, own.run(fixture, tokenizer)


def cases() -> list[Any]:
    """Every recorded output of a tokenizer."""
    out = []
    for name, folder in FOLDERS.items():
        spec = json.loads((folder / "fixture.json").read_text())
        own = [x for x in spec["outputs"] if not re.match(family(name).others, x)]
        out += [pytest.param(name, x, id=f"{name}-{x}") for x in own if not legacy(name, spec["config"])]
    return out


def legacy(name: str, config: Options) -> bool:
    """TiTok's first models: see test_titok_legacy."""
    return name.startswith("titok/ti") and config["model"]["vq_model"].get("is_legacy", True)


@pytest.mark.parametrize(("name", "output"), cases())
def test_output(name, output):
    fixture, found = computed(name)
    fixture.check(output, found[output])


def test_all_families_are_there():
    assert {name.rpartition("/")[0] for name in FOLDERS} == set(FAMILIES)


@pytest.mark.parametrize("name", [n for n in FOLDERS if legacy(n, Fixture(FOLDERS[n]).config)])
def test_titok_legacy(name):
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
    latents = f.outputs["decoder_out"].softmax(1).movedim(1, -1) @ weights["quantizer.codebook"]
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
def test_movq(attention, levels, kinds):
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


@pytest.mark.parametrize("steps", [[8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [3], [4, 3, 16, 9]])
def test_fsq_is_that_of_vector_quantize_pytorch(steps):
    from vector_quantize_pytorch import FSQ

    ours, theirs = FiniteScalarQuantizer(steps), FSQ(steps)
    z = (3 * torch.randn(4, len(steps), 32, 32)).requires_grad_()
    found, (vectors, codes) = ours(z), theirs(z)
    assert torch.equal(found.codes, codes.long())
    torch.testing.assert_close(found.latents, vectors, atol=1e-6, rtol=0)
    slope = torch.randn_like(vectors)
    gradients = [torch.autograd.grad((x * slope).sum(), z)[0] for x in (found.latents, vectors)]
    torch.testing.assert_close(*gradients)
    every = torch.arange(ours.codebook_size)[None]
    torch.testing.assert_close(ours.embed(every).movedim(1, -1), theirs.indices_to_codes(every), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bits", [1, 5, 10])
def test_lfq_is_that_of_vector_quantize_pytorch(bits):
    """That library's first channel is the highest bit, ours (and MaskBit's) the lowest."""
    from vector_quantize_pytorch import LFQ

    ours = LookupFreeQuantizer(bits, commitment=0.25, entropy=0.1, temperature=0.01)
    theirs = LFQ(dim=bits, entropy_loss_weight=0.1, commitment_loss_weight=0.25)
    z = torch.randn(4, bits, 16, 16)
    found = ours(z)
    (vectors, codes, loss), parts = theirs(z.flip(1), return_loss_breakdown=True)
    assert torch.equal(found.codes, codes.long())
    torch.testing.assert_close(found.latents, vectors.flip(1), atol=1e-6, rtol=0)
    assert torch.equal(ours.embed(codes.long()), theirs.indices_to_codes(codes).flip(1))
    torch.testing.assert_close(found.terms["mean_entropy"], parts.batch_entropy)
    torch.testing.assert_close(found.terms["commitment"], parts.commitment)
    # that library cuts the logarithm of single assignments at 1e-5 too
    torch.testing.assert_close(found.terms["sample_entropy"], parts.per_sample_entropy, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.loss, loss, atol=2e-5, rtol=0)


@pytest.mark.parametrize("legacy_loss", [True, False])
def test_commitment_weighs_the_encoder(legacy_loss):
    """A loss's value cannot tell which of its terms beta weighs; gradients can, and do so of taming's two forms."""
    beta, z = 0.25, torch.randn(2, 4, 8, 8, requires_grad=True)
    theirs = PeerQuantizer(16, 4, beta=beta, legacy=legacy_loss)
    options = {"codebook_size": 16, "dim": 4, "learned": True, "commitment": 1 / beta if legacy_loss else beta}
    ours = build(QUANTIZER, {**options, "init": "random", "revive_below": 0.0})
    with torch.no_grad():
        ours.codebook.copy_(theirs.embedding.weight.normal_())
    loss = (beta if legacy_loss else 1) * ours(z).loss
    wanted = theirs(z)[1]
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(loss, [z, ours.codebook]), torch.autograd.grad(wanted, [z, theirs.embedding.weight])
    )
