"""The names of the weights of a peer's tokenizer, renamed to ours, and the weights that ours keeps in another form."""

import re

import torch

from recorded import Options, State

# --- Convolutional tokenizers: ours have taming-transformers' names.


def renamed(state: State, *rules: tuple[str, str]) -> State:
    """All names after each rule (pattern, replacement) in turn."""
    out = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = value
    return out


def from_finest(state: State) -> State:
    """The levels of a decoder that counts them from the coarsest, counted from the finest."""
    last = max(int(m[1]) for name in state if (m := re.match(r"decoder\.up\.(\d+)\.", name)))
    return {re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{last - int(m[1])}", k): v for k, v in state.items()}


def convolutional(state: State) -> State:
    """Linear layers of attention as 1x1 convolutions."""
    linear = re.compile(r"\.(q|k|v|proj_out)\.weight$")
    return {k: v[:, :, None, None] if linear.search(k) and v.ndim == 2 else v for k, v in state.items()}


def codebook(state: State, name: str = "quantize.embedding.weight") -> State:
    """The codebook as ours, with the statistics of a fresh one."""
    weight = state[name]
    return {
        "quantizer.embedding.weight": weight,
        "quantizer.usage": torch.ones(len(weight)),
        "quantizer.sums": weight.clone(),
        "quantizer.initialised": torch.tensor(True),
    }


def of_coders(state: State) -> State:
    return {k: v for k, v in state.items() if not k.startswith("quantize.")}


TAMING = (
    (r"^quant_conv\.", "encoder.quant_conv."),
    (r"^post_quant_conv\.", "decoder.post_quant_conv."),
)
MIDDLE = tuple((rf"\.mid\.{i}\.", f".mid.block_{i + 1}.") for i in range(10))
MASKGIT_TORCH = (
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.upsample_conv\.", ".upsample.conv."),
)
MASKBIT = (
    *MASKGIT_TORCH,
    (r"\.down_conv\.", ".downsample.conv."),
    (r"\.mid\.res_blocks\.", ".mid."),
    *MIDDLE,
    (r"\.res_blocks\.", ".block."),
)
LLAMAGEN = (
    *TAMING,
    (r"^encoder\.conv_blocks\.", "encoder.down."),
    (r"^decoder\.conv_blocks\.", "decoder.up."),
    (r"\.res\.", ".block."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)
DIFFUSERS = (
    *TAMING,
    (r"\.down_blocks\.", ".down."),
    (r"\.up_blocks\.", ".up."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.(group|spatial)_norm\.", ".norm."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)


def taming_keys(state: State, config: Options) -> State:
    """CompVis taming-transformers' VQModel; MAGE's has its names, without the two 1x1 convolutions."""
    return {**renamed(of_coders(state), *TAMING), **codebook(state)}


def maskgit_torch_keys(state: State, config: Options) -> State:
    """The MaskGIT VQGAN in PyTorch: open-muse, TiTok."""
    return {**renamed(of_coders(state), *MASKGIT_TORCH, *MIDDLE), **codebook(state)}


def maskbit_keys(state: State, config: Options) -> State:
    """MaskBit's ConvVQModel; only its newer decoder counts levels from the coarsest, whose first is enlarged."""
    coders = renamed(of_coders(state), *MASKBIT)
    coders = from_finest(coders) if "decoder.up.0.upsample_conv.weight" in state else coders
    lookup = "quantize.embedding.weight" in state
    return {**coders, **(codebook(state) if lookup else {"quantizer.seen": torch.tensor(0)})}


def llamagen_keys(state: State, config: Options) -> State:
    """LlamaGen's VQ tokenizer."""
    return {**from_finest(renamed(of_coders(state), *LLAMAGEN)), **codebook(state)}


def diffusers_keys(state: State, config: Options) -> State:
    """diffusers' VQModel, with plain and with spatial norms."""
    return {**convolutional(from_finest(renamed(of_coders(state), *DIFFUSERS))), **codebook(state)}


def maskgit_jax_keys(state: State, config: Options) -> State:
    """google-research's VQGAN in flax: modules are numbered in the order of their calls, kernels are HWIO."""
    vqvae = config["vqvae"]
    levels, blocks = len(vqvae["channel_multipliers"]), vqvae["num_res_blocks"]
    names = {"encoder/GroupNorm_0": "encoder.norm_out", "decoder/GroupNorm_0": "decoder.norm_out"}
    halving = [f"encoder.down.{i}.downsample.conv" for i in range(levels - 1)] if vqvae["conv_downsample"] else []
    doubling = [f"decoder.up.{i}.upsample.conv" for i in reversed(range(1, levels))]
    inside = {"GroupNorm_0": "norm1", "Conv_0": "conv1", "GroupNorm_1": "norm2", "Conv_1": "conv2"}
    inside["Conv_2"] = "nin_shortcut"
    for coder, convolutions in (("encoder", halving), ("decoder", doubling)):
        of_levels = [f"{coder}.down.{i}.block.{j}" for i in range(levels) for j in range(blocks)]
        middle = [f"{coder}.mid.block_{j + 1}" for j in range(blocks)]
        if coder == "encoder":
            order = of_levels + middle
        else:
            order = middle + [f"{coder}.up.{i}.block.{j}" for i in reversed(range(levels)) for j in range(blocks)]
        convolutions = [f"{coder}.conv_in", *convolutions, f"{coder}.conv_out"]
        names.update({f"{coder}/Conv_{i}": name for i, name in enumerate(convolutions)})
        names.update({f"{coder}/ResBlock_{i}/{k}": f"{n}.{v}" for i, n in enumerate(order) for k, v in inside.items()})
    out = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition("/")
        if module in names:
            leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
            out[f"{names[module]}.{leaf}"] = value.permute(3, 2, 0, 1) if value.ndim == 4 else value
    return {**out, **codebook(state, "quantizer/codebook")}


# --- Transformers.

TITOK = (
    (r"\.transformer\.(\d+)\.", r".blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.ln_pre\.", ".norm_pre."),
    (r"\.ln_post\.", ".norm."),
    (r"^encoder\.conv_out\.", "encoder.head.out."),
    (r"^decoder\.latent_token_positional_embedding", "decoder.latent_embedding"),
    (r"^decoder\.text_guidance_proj\.", "decoder.text."),
    (r"^decoder\.text_guidance_positional_embedding", "decoder.text_embedding"),
    (r"^decoder\.ffn\.0\.", "decoder.head.out."),
)
VQKD = (
    (r"\.fc_norm\.", ".norm."),
    (r"^encoder\.patch_embed\.proj\.", "encoder.patch_embed."),
    (r"^decoder\.patch_embed\.proj\.", "decoder.decoder_embed."),
    (r"^(en|de)code_task_layer\.0\.", r"\1coder.head.hidden."),
    (r"^(en|de)code_task_layer\.2\.", r"\1coder.head.out."),
)


def titok_keys(state: State, config: Options) -> State:
    """TiTok and TA-TiTok, of which the decoder makes pixels; the class token takes its position in."""
    state = dict(state)
    for coder in ("encoder", "decoder"):
        positions = state.pop(f"{coder}.positional_embedding")
        state[f"{coder}.register_tokens"] = state.pop(f"{coder}.class_embedding") + positions[:1]
        state[f"{coder}.position_embedding"] = positions[1:]
    latent = "encoder.latent_token_positional_embedding"
    state["encoder.latent_tokens"] = state.pop("latent_tokens") + state.pop(latent)
    for name in ("encoder.conv_out.weight", "decoder.ffn.0.weight"):
        state[name] = state[name].flatten(1)
    state["decoder.mask_token"] = state["decoder.mask_token"].flatten()
    return {**renamed(of_coders(state), *TITOK), **codebook(state)}


def vqkd_keys(state: State, config: Options) -> State:
    """BEiT v2's VQ-KD: keys have no bias; a layer scale is a factor of the layer before it."""
    out = {}
    for name, value in of_coders(state).items():
        coder, _, rest = name.partition(".")
        if rest.endswith(("attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2", "cls_token")):
            continue
        if rest == "pos_embed":
            value, token = value[0], state[f"{coder}.cls_token"][0]
            out[f"{coder}.register_tokens"] = token + value[:1]
            name, value = f"{coder}.position_embedding", value[1:]
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
    return {**renamed(out, *VQKD), **codebook(state)}
