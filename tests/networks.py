"""Peers' networks as ours: their weights by our names, and what is common to their runs."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flat import transformer
from maskgen.mim.core import MaskedModeling
from maskgen.mim.targets import patchify
from maskgen.transformer.model import MaskTransformer, TransformerOutput
from recorded import Fixture, State

EPS = 1e-6  # of the norms, the peers' and ours


# --- Weights by our names.


def under(weights: State, prefix: str) -> State:
    """Those whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}


def layer(weights: State, theirs: str, ours: str) -> State:
    """Weight and bias of a linear layer or norm; a bias that the peer has not is zero."""
    weight = weights[f"{theirs}.weight"]
    return {f"{ours}.weight": weight, f"{ours}.bias": weights.get(f"{theirs}.bias", torch.zeros(len(weight)))}


def block(weights: State) -> State:
    """timm's block; BEiT's keys have no bias, and its layer scale goes into the last layer of each branch."""
    state: State = {}
    for name in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        state |= layer(weights, name, name)
    if "attn.q_bias" in weights:
        q, v = weights["attn.q_bias"], weights["attn.v_bias"]
        state["attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    for scale, name in (("gamma_1", "attn.proj"), ("gamma_2", "mlp.fc2")):
        if scale in weights:
            state[f"{name}.weight"] = state[f"{name}.weight"] * weights[scale][:, None]
            state[f"{name}.bias"] = state[f"{name}.bias"] * weights[scale]
    return state


def blocks(weights: State, theirs: str = "blocks.", ours: str = "blocks.") -> State:
    """All blocks of a list."""
    found = sorted({int(name.split(".")[0]) for name in under(weights, theirs)})
    return {f"{ours}{i}.{name}": x for i in found for name, x in block(under(weights, f"{theirs}{i}.")).items()}


def patch_embedding(weights: State) -> State:
    """A convolution over whole patches, whose values stand in our order: (frames,) rows, columns, channels."""
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    return {"embedding.projection.weight": kernel.movedim(1, -1).flatten(1), "embedding.projection.bias": bias}


def on_grid(positions: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(n, w) to (w, *grid)."""
    return positions.T.unflatten(1, grid)


def embeddings(weights: State, grid: tuple[int, ...]) -> State:
    """Patches, class token, and positions where there are: the class token's is added to it."""
    state, token = patch_embedding(weights), weights["cls_token"][0]
    if "pos_embed" in weights:
        positions = weights["pos_embed"][0]
        state["position_embedding"], token = on_grid(positions[1:], grid), token + positions[:1]
    return {**state, "register_tokens": token}


def relative(weights: State, config: dict[str, Any], depth: int = 0) -> State:
    """BEiT's tables: one shared, given `depth` once for each block, or each block's own (the bottleneck's last)."""
    if config["use_shared_rel_pos_bias"]:
        tables = [weights["rel_pos_bias.relative_position_bias_table"]] * (depth or 1)
    else:
        mine = (name for name in weights if name.endswith("position_bias_table"))
        tables = [weights[name] for name in sorted(mine, key=lambda x: (x[:6] != "blocks", int(x.split(".")[1])))]
    return {f"relative.{i}.table": table for i, table in enumerate(tables)}


def decoder(weights: State, positions: Tensor, grid: tuple[int, ...], kind: str = "") -> State:
    """MAE's, or another `kind` beside it (HPM).

    The peer adds a position to the decoder's class token as well, ours does not. So it is added to all tokens, in the
    layer and the mask token that make them, and taken off the other positions.
    """
    state = layer(weights, "decoder_embed", "decoder.embed")
    state["decoder.embed.bias"] = state["decoder.embed.bias"] + positions[0]
    if "mask_token" in weights:
        state["decoder.mask_token"] = weights["mask_token"].flatten() + positions[0]
    state["decoder.position_embedding"] = on_grid(positions[1:] - positions[0], grid)
    state |= blocks(weights, f"decoder_blocks{kind}.", "decoder.blocks.")
    return state | layer(weights, "norm", "encoder_norm") | layer(weights, f"decoder_norm{kind}", "final_norm")


def network(
    state: State, grid: tuple[int, ...], config: dict[str, Any], predictions: int = 0, **options: Any
) -> MaskTransformer:
    """A plain vision transformer of a peer's configuration; what the method does not use keeps its first values."""
    width, patch, depth = config["embed_dim"], config["patch_size"], config["depth"]
    if "decoder_depth" in config:
        options = {f"decoder_{x}": config[f"decoder_{y}"] for x, y in SIZES.items()} | options
    shape = {"width": width, "depth": depth, "heads": config["num_heads"], "mlp_ratio": config["mlp_ratio"]}
    tokens = {"codebook_size": 0, "token_dim": config.get("token_dim", 3 * patch**2), "predictions": predictions}
    plain = {"mlp": "gelu", "qk_norm": False, "rope": False, "registers": 1}
    model = transformer(**{"grid": grid, **tokens, **shape, **plain, **options})
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"mask_token", "register_tokens", "head.weight", "head.bias"}
    return model.eval()


def encoder_alone(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if not k.startswith("decoder")}


SIZES = {"depth": "depth", "width": "embed_dim", "heads": "num_heads"}


def biased(state: State, config: dict[str, Any]) -> dict[str, str]:
    """The options of positions of BEiT's and SimMIM's networks."""
    bias = "block" if "relative.1.table" in state else "shared"
    return {"positions": "learned" if config["use_abs_pos_emb"] else "none", "relative_bias": bias}


# --- What is common to the peers' runs.


def grid_of(config: dict[str, Any]) -> tuple[int, int]:
    size = config["img_size"]
    side = (size[0] if isinstance(size, list) else size) // config["patch_size"]
    return side, side


def tokens_of(pixels: Tensor, patch: int, frames: int = 1) -> Tensor:
    """(b, c, *size) to continuous tokens (b, *grid, d)."""
    *time, height, width = pixels.shape[2:]
    grid = (*(t // frames for t in time), height // patch, width // patch)
    return patchify(pixels, patch, frames).unflatten(1, grid)


class Given:
    """A sampler that gives the recorded mask."""

    guide = None

    def __init__(self, masked: Tensor):
        self.masked = masked

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        return self.masked


def loss(model: Callable[..., Any], tokens: Tensor, masked: Tensor, sources: State, **parts: Any) -> Tensor:
    """Of a step of the masked-modeling core."""
    core = MaskedModeling(sampler=Given(masked), **parts)
    return core.losses(model, tokens, **sources)["loss"]


def everything(output: TransformerOutput) -> Tensor:
    """The class token and the others."""
    return torch.cat([output.prefix, output.features], 1)


def normed(x: Tensor, weights: State, name: str, eps: float = EPS) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def probed(f: Fixture, x: Tensor, layer: str = "head") -> Tensor:
    return F.linear(x, f.inputs[f"probe.{layer}.weight"], f.inputs[f"probe.{layer}.bias"])


def pooled(f: Fixture, x: Tensor) -> Tensor:
    """The normed mean of the patch tokens, as in fine-tuning."""
    return normed(x[:, 1:].mean(1), f.inputs, "probe.fc_norm")
