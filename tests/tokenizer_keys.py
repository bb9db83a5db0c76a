"""The names of a peer's tokenizer weights to ours, and what of them ours keeps in another form."""

import functools
import re

import torch

from recorded import Options, State

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
