"""Our transformer with peers' weights gives the peers' features, predictions and losses (tests/golden).

Where a peer has a term that ours has not, it is folded into weights that ours has; all of it is exact.
docs/methods.md says which networks are not here, and why.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from maskgen.mim.auxiliary import LossPrediction
from maskgen.mim.core import MaskedModeling
from maskgen.mim.objective import MSE, CrossEntropy
from maskgen.mim.targets import Pixels, patchify, unpatchify
from maskgen.training.representation_stage import patches
from maskgen.transformer.hiera import Hiera
from maskgen.transformer.mask_units import cut
from maskgen.transformer.model import MaskTransformer, TransformerOutput
from maskgen.transformer.relative import offsets
from recorded import GOLDEN, Fixture, State, cases, computed, family, folders

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
    names = {"norm1": "norm1", "norm2": "norm2", "attn.qkv": "attention.qkv", "attn.proj": "attention.out"}
    state: State = {}
    for theirs, ours in {**names, "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"}.items():
        state |= layer(weights, theirs, ours)
    if "attn.q_bias" in weights:
        q, v = weights["attn.q_bias"], weights["attn.v_bias"]
        state["attention.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    for scale, name in (("gamma_1", "attention.out"), ("gamma_2", "mlp.down")):
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
    return {"token_embedding.weight": kernel.movedim(1, -1).flatten(1), "token_embedding.bias": bias}


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
    model = MaskTransformer(**{"grid": grid, **tokens, **shape, **plain, **options})
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


# --- The peers.


def mae(f: Fixture) -> State:
    c, w, grid = f.config, f.weights, grid_of(f.config)
    encoder = embeddings(w, grid) | blocks(w)
    decoding = decoder(w, w["decoder_pos_embed"][0], grid) | layer(w, "decoder_pred", "head")
    model = network(encoder | decoding, grid, c)
    order = f.inputs["noise"].argsort(1)
    keep = order[:, : int(order.shape[1] * (1 - c["mask_ratio"]))]
    masked = torch.ones_like(order, dtype=torch.bool).scatter(1, keep, False).unflatten(1, grid)
    tokens = tokens_of(f.inputs["image"], c["patch_size"])
    output = model(tokens, masked, keep=keep)

    def against(normalise: str) -> Tensor:
        target = {"type": "pixels", "patch": c["patch_size"], "normalise": normalise}
        return loss(
            model, tokens, masked, {"pixels": f.inputs["image"]}, dropping="all", target=target, objective="mse"
        )

    own, other = ("patch", "none") if c["norm_pix_loss"] else ("none", "patch")
    alone = network(encoder | layer(w, "norm", "final_norm"), grid, encoder_alone(c))
    last = alone.layers(tokens)[-1]
    features = alone.final_norm(last)[:, 0]
    return {
        "latent": everything(output),
        "mask": masked.flatten(1),
        "ids_restore": order.argsort(1),
        "pred": output.predictions,
        "loss": against(own),
        "loss_other_norm_pix": against(other),
        "feat_cls": features,
        "head_logits_cls": probed(f, features),
        "feat_pool": pooled(f, last),
        "head_logits_pool": probed(f, pooled(f, last)),
    }


def simmim(f: Fixture) -> State:
    """The head is a convolution of one pixel and a pixel shuffle, which gives channels, rows, columns."""
    c, w, grid = f.config, under(f.weights, "encoder."), grid_of(f.config)
    state = embeddings(w, grid) | blocks(w) | layer(w, "norm", "final_norm") | relative(w, c)
    patch = c["patch_size"]
    for name in ("weight", "bias"):
        ours = rearrange(f.weights[f"decoder.0.{name}"], "(c p q) ... -> (p q c) ...", p=patch, q=patch)
        state[f"head.{name}"] = ours[..., 0, 0] if name == "weight" else ours
    state["mask_token"] = w["mask_token"].flatten()
    model = network(state, grid, c, **biased(state, c))
    image, masked = f.inputs["image"], f.inputs["mask"].bool()
    tokens = tokens_of(image, patch)
    output, seen = model(tokens, masked), model(tokens, torch.zeros_like(masked))
    target = {"type": "pixels", "patch": patch, "normalise": "none"}
    return {
        "features": on_grid_of(model.final_norm(output.features), grid),
        "features_no_mask": on_grid_of(model.final_norm(seen.features), grid),
        "rec": unpatchify(output.predictions, grid, patch),
        "loss": loss(model, tokens, masked, {"pixels": image}, target=target, objective="l1"),
    }


def on_grid_of(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(b, n, w) to (b, w, *grid)."""
    return x.transpose(1, 2).unflatten(2, grid)


def beit_network(f: Fixture, shared: bool = True, **options: Any) -> MaskTransformer:
    """With a table of all blocks given to each of them, where it is not to be `shared`."""
    c, w, grid = f.config, f.weights, grid_of(f.config)
    state = blocks(w) | blocks(w, "cls_pt_layers.", "bottleneck.") | embeddings(w, grid)
    state |= {"mask_token": w["mask_token"].flatten()} | relative(w, c, 0 if shared else c["depth"])
    state |= layer(w, "norm", "final_norm") | layer(w, "lm_head", "head")
    return network(state, grid, c, c["vocab_size"], **biased(state, c), **options)


def cross_entropy(f: Fixture, model: MaskTransformer, tokens: Tensor, masked: Tensor, **parts: Any) -> Tensor:
    codes = f.inputs["labels"].long().view(masked.shape)
    objective = {"type": "cross_entropy", "label_smoothing": 0.0}
    return loss(model, tokens, masked, {"codes": codes}, target="codes", objective=objective, **parts)


def beit(f: Fixture) -> State:
    model, masked = beit_network(f), f.inputs["mask"].bool()
    tokens = tokens_of(f.inputs["image"], f.config["patch_size"])
    output = model(tokens, masked)
    features = pooled(f, beit_network(f, shared=False).layers(tokens)[-1])
    return {
        "features": model.final_norm(everything(output)),
        "logits_all": output.predictions,
        "logits_masked": output.predictions[masked.flatten(1)],
        "loss": cross_entropy(f, model, tokens, masked),
        "finetune_features": features,
        "finetune_logits": probed(f, features),
    }


def beit2(f: Fixture) -> State:
    c = f.config
    branch = {"branch_type": "class_bottleneck", "branch_layer": c["early_layers"], "branch_depth": c["head_layers"]}
    model, masked = beit_network(f, **branch), f.inputs["mask"].bool()
    tokens, codes = tokens_of(f.inputs["image"], c["patch_size"]), f.inputs["labels"].long()
    output, first = model(tokens, masked), cross_entropy(f, model, tokens, masked)
    return {
        "logits_masked": output.predictions[masked.flatten(1)],
        "logits_masked_cls_pt": output.branch[masked.flatten(1)],
        "loss_1": first,
        "loss_2": CrossEntropy(0.0)(output.branch, codes, masked.flatten(1))["loss"],
        "loss": cross_entropy(f, model, tokens, masked, auxiliary=[{"type": "branch"}]),
    }


def hpm(f: Fixture) -> State:
    """Both decoders start from one layer and mask token; recorded predictions stand in the order visible, masked."""
    c, w, grid = f.config, f.weights, grid_of(f.config)
    encoder, positions = embeddings(w, grid) | blocks(w), w["decoder_pos_embed"][0]
    tokens, masked = tokens_of(f.inputs["image"], c["patch_size"]), f.inputs["mask"].bool()
    state = encoder | decoder(w, positions, grid) | layer(w, "decoder_pred", "head")
    second = decoder(w, positions, grid, "_losspred")
    state |= {f"second_{name}": x for name, x in second.items() if name.startswith("decoder.")}
    state |= layer(w, "decoder_norm_losspred", "branch_norm") | layer(w, "decoder_pred_losspred", "branch_head")
    branch = {"branch_type": "decoder", "branch_predictions": len(state["branch_head.bias"])}
    model = network(state, grid, c, **branch)
    keep = (~masked).nonzero()[:, 1].view(len(masked), -1)
    order = masked.int().argsort(dim=1, stable=True)
    output = model(tokens, masked.unflatten(1, grid), keep=keep)
    normalise = "patch" if c["norm_pix_loss"] else "none"
    losses = MSE().per_token(output.predictions, Pixels(c["patch_size"], normalise=normalise)(f.inputs["image"]))
    predicted = output.branch.mean(-1)
    target = {"type": "pixels", "patch": c["patch_size"], "normalise": normalise}
    parts = {"dropping": "all", "target": target, "objective": "mse"}
    return {
        "features": everything(output),
        "pix_pred": torch.stack([x[i] for x, i in zip(output.predictions, order)]),
        "loss_pred": predicted.gather(1, order),
        "loss_mean": loss(model, tokens, masked.unflatten(1, grid), {"pixels": f.inputs["image"]}, **parts),
        "loss_matrix": losses[masked].view(len(masked), -1),
        "learn_loss_relative": LossPrediction("relative")(predicted, losses, masked)["loss"],
        "learn_loss_absolute": LossPrediction("absolute")(predicted, losses, masked)["loss"],
    }


def ibot(f: Fixture) -> State:
    c, grid = f.config["backbone"], grid_of(f.config["backbone"])
    crops = [f.inputs["global_0"], f.inputs["global_1"]]
    masked = torch.cat([f.inputs["mask_0"], f.inputs["mask_1"]]).bool()

    def parts(name: str, pixels: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Normed tokens, and the head on them; small pictures have positions resized as the peer does."""
        size, w, head = (
            tuple(masked.shape[1:]),
            under(f.weights, f"{name}.backbone."),
            under(f.weights, f"{name}.head."),
        )
        state = embeddings(w, grid) | blocks(w) | layer(w, "norm", "final_norm")
        state |= {f"head.{name}": x for name, x in head.items() if name.startswith("mlp")}
        state["head.prototypes.weight"] = head["last_layer.weight_v"]
        if "masked_embed" in w:
            state["mask_token"] = w["masked_embed"][0]
        state["position_embedding"] = bicubic(state["position_embedding"], size)
        sizes = {"head_hidden": f.config["head"]["hidden_dim"], "head_bottleneck": f.config["head"]["bottleneck_dim"]}
        options = {"head_type": "projector", "class_predictions": True, **sizes}
        model = network(state, size, c, f.config["head"]["out_dim"], **options)
        output = model(tokens_of(pixels, c["patch_size"]), masked)
        predictions = torch.cat([output.class_predictions[:, None], output.predictions], 1)
        lengths = head["last_layer.weight_g"].flatten()  # 1 in training (norm_last_layer), and in ours
        return model.final_norm(everything(output)), predictions * lengths

    tokens, teacher = parts("teacher", torch.cat(crops), torch.zeros_like(masked))
    _, student = parts("student", torch.cat(crops), masked)
    small = f.inputs["local"].flatten(0, 1)
    shape = tokens_of(small, c["patch_size"]).shape[:3]
    _, local = parts("student", small, torch.zeros(shape, dtype=torch.bool))
    return {
        "teacher_backbone_tokens": tokens[: len(crops[0])],
        "teacher_cls": teacher[:, 0],
        "teacher_patch": teacher[:, 1:],
        "student_cls": student[:, 0],
        "student_patch": student[:, 1:],
        "student_local_cls": local[:, 0],
    }


def bicubic(table: Tensor, size: tuple[int, ...]) -> Tensor:
    """DINO's and iBOT's resizing of positions (w, h, w): the scale is of 0.1 tokens more, against rounding."""
    if tuple(table.shape[1:]) == size:
        return table
    scale = tuple((n + 0.1) / m for n, m in zip(size, table.shape[1:]))
    return F.interpolate(table[None], scale_factor=scale, mode="bicubic")[0]


def mage(f: Fixture) -> State:
    """The last layers, a dense one, GELU, a norm and the encoder's own embedding, are not ours: they follow here."""
    c, w, codes, grid = f.config["model"], f.weights, f.config["vqgan"]["n_embed"], grid_of(f.config["model"])
    n, mask_label, fake_class = grid[0] * grid[1], codes + 1000, codes + 1100 - 1024
    words, places = w["token_emb.word_embeddings.weight"], w["token_emb.position_embeddings.weight"]
    state = blocks(w) | decoder(w, w["decoder_pos_embed_learned"][0], grid)
    state |= layer(w, "token_emb.LayerNorm", "embedded")
    state |= {
        "code_embedding.weight": words[:codes],
        "mask_token": words[mask_label],
        "position_embedding": on_grid(places[1 : n + 1], grid),
        "register_tokens": normed(words[fake_class] + places[0], w, "token_emb.LayerNorm")[None],
        "head.weight": torch.eye(c["decoder_embed_dim"]),
        "head.bias": torch.zeros(c["decoder_embed_dim"]),
    }
    options = {"codebook_size": codes, "token_dim": 0, "embedding_norm": True}
    model = network(state, grid, c, c["decoder_embed_dim"], pad="class_token", **options)

    def logits(output: TransformerOutput) -> Tensor:
        h = F.gelu(F.linear(output.predictions, w["mlm_layer.fc.weight"], w["mlm_layer.fc.bias"]))
        return F.linear(normed(h, w, "mlm_layer.ln", 1e-5), words[:codes], w["mlm_layer.bias"].flatten()[:codes])

    tokens, ranked = f.outputs["gt_indices"].long(), f.inputs["noise"].argsort(1).argsort(1)
    dropped, masked = (ranked < -(-n * share // 1) for share in (c["mask_ratio_min"], f.config["forward"]["mask_rate"]))
    keep = (~dropped).nonzero()[:, 1].view(len(dropped), -1)
    output = model(tokens.unflatten(1, grid), masked.unflatten(1, grid), keep=keep)
    hidden = f.inputs["gen_ids"] == mask_label
    known = f.inputs["gen_ids"].long().masked_fill(hidden, 0)
    generated = model(known.unflatten(1, grid), hidden.unflatten(1, grid))
    shared = {k: v for k, v in state.items() if not k.startswith(("decoder", "encoder", "head", "final"))}
    last = network(shared | layer(w, "norm", "final_norm"), grid, encoder_alone(c), **options)
    for name in ("logits", "gen_logits"):
        f.outputs[name] = f.outputs[name][:, 1:]  # the class token's count for nothing; ours has none
    seen = tokens.unflatten(1, grid)
    features = model.layers(seen)[-1][:, 0]
    pool = pooled(f, last.layers(seen)[-1])
    return {
        "token_drop_mask": F.pad(dropped, (1, 0)),
        "token_all_mask": F.pad(masked, (1, 0)),
        "latent": everything(output),
        "logits": logits(output),
        "loss": CrossEntropy(0.1)(logits(output), tokens, masked)["loss"],
        "gen_encoder_out": everything(generated),
        "gen_logits": logits(generated),
        "feat_cls": features,
        "linprobe_logits_cls": linear_probe(f, features),
        "feat_pool": pool,
        "linprobe_logits_pool": linear_probe(f, pool),
    }


def linear_probe(f: Fixture, x: Tensor) -> Tensor:
    mean, variance = f.inputs["probe.head.0.running_mean"], f.inputs["probe.head.0.running_var"]
    return probed(f, F.batch_norm(x, mean, variance, eps=1e-6), "head.1")


def videomae(f: Fixture) -> State:
    """No class token; both tables of positions are sines and cosines of the place in the row of all tokens."""
    c, w = f.config, f.weights
    grid = (c["num_frames"] // c["tubelet_size"], *grid_of(c))
    mine = {x: c[f"encoder_{x}"] for x in ("embed_dim", "depth", "num_heads")}
    mine |= {x: c[x] for x in ("patch_size", "mlp_ratio")} | {f"decoder_{x}": c[f"decoder_{x}"] for x in mine}
    tubelet, patch = c["tubelet_size"], c["patch_size"]
    state = patch_embedding(under(w, "encoder.")) | blocks(under(w, "encoder."))
    state |= layer(w, "encoder.norm", "encoder_norm") | layer(w, "encoder_to_decoder", "decoder.embed")
    state |= blocks(under(w, "decoder."), ours="decoder.blocks.")
    state |= layer(w, "decoder.norm", "final_norm") | layer(w, "decoder.head", "head")
    state |= {
        "position_embedding": on_grid(sinusoids(math.prod(grid), mine["embed_dim"]), grid),
        "decoder.position_embedding": on_grid(sinusoids(math.prod(grid), mine["decoder_embed_dim"]), grid),
        "decoder.mask_token": w["mask_token"].flatten(),
    }
    model = network(state, grid, mine, registers=0, token_dim=3 * tubelet * patch**2)
    video, masked = f.inputs["video"], f.inputs["mask"].bool()
    tokens, keep = tokens_of(video, patch, tubelet), (~masked).nonzero()[:, 1].view(len(masked), -1)
    output = model(tokens, masked.unflatten(1, grid), keep=keep)
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def against(normalise: str) -> Tensor:
        target = {"type": "pixels", "patch": patch, "frames": tubelet, "normalise": normalise}
        sources = {"pixels": video * std + mean}
        parts = {"dropping": "all", "target": target, "objective": "mse"}
        return loss(model, tokens, masked.unflatten(1, grid), sources, **parts)

    return {
        "encoder_out": output.features,
        "pred": output.predictions[masked].view(len(masked), -1, output.predictions.shape[-1]),
        "loss_norm": against("patch_channel"),
        "loss_raw": against("none"),
    }


def sinusoids(n: int, width: int) -> Tensor:
    """(n, width): the Transformer's table, sines at even and cosines at odd places."""
    rate = 10000.0 ** (-2 * (torch.arange(width) // 2) / width)
    angles = torch.arange(n, dtype=torch.float64)[:, None] * rate.double()
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos()).float()


def hiera(f: Fixture) -> State:
    """A picture's predictions are the peer's in the order channels, rows, columns; a video's in ours."""
    c, w = f.config, f.weights
    size, pool, pools, stages = c["input_size"], c["q_stride"], c["q_pool"], len(c["stages"])
    token = [stride * step**pools for stride, step in zip(c["patch_stride"], pool)]
    unit = [side // step**pools for side, step in zip(c["mask_unit_size"], pool)]
    grid = tuple(n // side for n, side in zip(size, token))
    channels, patch, frames = f.inputs["x"].shape[1], token[-1], token[0] if len(grid) == 3 else 1
    model = Hiera(
        0,
        grid,
        token_dim=channels * math.prod(token),
        predictions=channels * patch**2,
        width=c["embed_dim"] * 2 ** (stages - 1),
        heads=c["num_heads"] * 2 ** (stages - 1),
        stages=c["stages"],
        patch=c["patch_stride"],
        kernel=c["patch_kernel"],
        pool=pool,
        pools=pools,
        unit=unit,
        unit_stages=sum(c["mask_unit_attn"]),
        mlp_ratio=c.get("mlp_ratio", 4.0),
        positions="learned_sum" if c.get("sep_pos_embed") else "learned",
        **{f"decoder_{x}": c[f"decoder_{y}"] for x, y in {**SIZES, "heads": "num_heads"}.items()},
    ).eval()
    model.load_state_dict(hiera_weights(w, grid, [n * step**pools for n, step in zip(grid, pool)], patch))

    coarse = [n // side for n, side in zip(grid, unit)]
    order = f.inputs["noise"].argsort(1)
    kept = order[:, : int(order.shape[1] * (1 - c["mask_ratio"]))].sort(1).values
    seen = torch.zeros_like(order, dtype=torch.bool).scatter(1, kept, True)
    masked = ~seen.unflatten(1, coarse)
    for axis, side in enumerate(unit, start=1):
        masked = masked.repeat_interleave(side, axis)
    tokens = patches(patch, channels, frames).encode(f.inputs["x"])
    keep = (~masked).flatten(1).nonzero()[:, 1].view(len(masked), -1)
    output = model(tokens, masked, keep=keep)

    target = Pixels(patch, frames, first_frame=len(grid) == 3)
    parts = {"dropping": "all", "target": target, "objective": "mse"}
    everywhere = scattered(output.features, keep, math.prod(grid)).unflatten(1, grid)

    def theirs(x: Tensor) -> Tensor:
        """A picture's values in the peer's order."""
        return x if len(grid) == 3 else rearrange(x, "... (p q c) -> ... (c p q)", p=patch, q=patch)

    return {
        "mask": seen,
        "latent": cut(everywhere, unit)[torch.arange(len(kept))[:, None], kept],
        "pred_all": theirs(output.predictions),
        "pred_mask": ~masked.flatten(1),
        "loss": loss(model, tokens, masked, {"pixels": f.inputs["x"]}, **parts),
        "pred": theirs(output.predictions[masked.flatten(1)]),
        "label": theirs(target(f.inputs["x"])[masked.flatten(1)]),
    }


def scattered(x: Tensor, keep: Tensor, n: int) -> Tensor:
    """(b, m, w) to their places among n."""
    return x.new_zeros(len(x), n, x.shape[-1]).scatter(1, keep[..., None].expand_as(x), x)


def hiera_weights(w: State, grid: tuple[int, ...], small: list[int], patch: int) -> State:
    """By our names, for a grid of tokens and one of the `small` patches that the first block sees."""
    state = layer(w, "patch_embed.proj", "patch_embedding")
    if "pos_embed" in w:
        state["position_embedding"] = on_grid(w["pos_embed"][0], tuple(small))
    else:
        state["first_embedding"] = w["pos_embed_temporal"][0].T
        state["position_embedding"] = on_grid(w["pos_embed_spatial"][0], tuple(small[1:]))
    names = {"attention.qkv": "qkv", "attention.out": "out"}
    for name, x in blocks(w).items():
        _, i, *rest = name.split(".")
        key, kind = ".".join(rest[:-1]), rest[-1]
        pools = f"blocks.{i}.proj.weight" in w
        state[f"blocks.{i}.{names.get(key, key) if pools else key}.{kind}"] = x
    for name in w:
        if name.startswith("blocks.") and name.split(".")[2] == "proj":
            state[name.replace(".proj.", ".skip.")] = w[name]
        elif name.startswith("multi_scale_fusion_heads."):
            state[name.replace("multi_scale_fusion_heads", "fusions")] = w[name]
    state |= layer(w, "encoder_norm", "encoder_norm") | layer(w, "decoder_embed", "decoder.embed")
    state["decoder.mask_token"] = w["mask_token"].flatten()
    state["decoder.position_embedding"] = on_grid(w["decoder_pos_embed"][0], grid)
    state |= blocks(w, "decoder_blocks.", "decoder.blocks.") | layer(w, "decoder_norm", "final_norm")
    head = layer(w, "decoder_pred", "head")
    if len(grid) == 2:
        head = {name: rearrange(x, "(c p q) ... -> (p q c) ...", p=patch, q=patch) for name, x in head.items()}
    return state | head


FAMILIES: dict[str, Callable[[Fixture], State]] = {
    "mae/mae_vit": mae,
    "simmim/vit": simmim,
    "beit/beit_mim": beit,
    "beit/beit2_mim": beit2,
    "hpm/hpm": hpm,
    "ibot/ibot": ibot,
    "mage/pretrain": mage,
    "videomae/pretrain": videomae,
    "hiera/mae": hiera,
}
ELSEWHERE = {  # not a network's: tests/test_golden_mim.py, test_samplers.py, test_golden_tokenizers.py have them
    "mae/mae_vit": {"patchified"},
    "hpm/hpm": {"guided_mask_epoch50", "guided_mask_epoch100", "guided_mask_epoch199"},
    "ibot/ibot": {"loss_cls", "loss_patch", "loss", "center_after", "center2_after"},
    "mage/pretrain": {"gt_indices", "mask_ratio_ppf"},
    "videomae/pretrain": {"target_norm", "target_raw"},
}
FOLDERS = folders(FAMILIES)


def of_a_network(name: str, output: str) -> bool:
    """Its inputs' masks and its losses too; "gen_loop" is decoding's."""
    return output not in ELSEWHERE.get(family(name), ()) and not output.startswith("gen_loop")


@pytest.mark.parametrize(("name", "output"), cases(FOLDERS, of_a_network))
def test_every_output_is_the_peers(name, output):
    fixture, found = computed(FOLDERS[name], FAMILIES[family(name)])
    fixture.check(output, found[output])


def test_all_families_are_there():
    assert {family(name) for name in FOLDERS} == set(FAMILIES)


@pytest.mark.parametrize("name", ["simmim/vit/a", "beit/beit_mim/a", "beit/beit2_mim/a"])
def test_entries_of_the_relative_bias_are_in_the_peers_order(name):
    weights = load_file(GOLDEN / name / "weights.safetensors")
    (index,) = (x for key, x in weights.items() if key.endswith("relative_position_index"))
    assert offsets((4, 4), 1).equal(index.long())
