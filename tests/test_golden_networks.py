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
from maskgen.mim.objective import MSE, CrossEntropy
from maskgen.mim.targets import Pixels, unpatchify
from maskgen.transformer.model import MaskTransformer, TransformerOutput
from maskgen.transformer.relative import offsets
from networks import (
    biased,
    blocks,
    decoder,
    embeddings,
    encoder_alone,
    everything,
    grid_of,
    layer,
    loss,
    network,
    normed,
    on_grid,
    patch_embedding,
    pooled,
    probed,
    relative,
    tokens_of,
    under,
)
from recorded import GOLDEN, Fixture, State, cases, computed, family, folders


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
        """Normed tokens, and the head on them; small images have positions resized as the peer does."""
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
    state |= layer(w, "token_emb.LayerNorm", "embedding_norm")
    state |= {
        "embedding.codes.weight": words[:codes],
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


FAMILIES: dict[str, Callable[[Fixture], State]] = {
    "mae/mae_vit": mae,
    "simmim/vit": simmim,
    "beit/beit_mim": beit,
    "beit/beit2_mim": beit2,
    "hpm/hpm": hpm,
    "ibot/ibot": ibot,
    "mage/pretrain": mage,
    "videomae/pretrain": videomae,
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
