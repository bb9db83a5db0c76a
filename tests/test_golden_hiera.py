"""Hiera with the peer's weights gives its tokens, predictions and losses, of images and videos (tests/golden)."""

import math

import pytest
import torch
from einops import rearrange
from torch import Tensor

from maskgen.mim.targets import Pixels
from maskgen.training.stages.representation import patches
from maskgen.transformer.hiera import Hiera
from maskgen.transformer.mask_units import cut
from networks import SIZES, blocks, layer, loss, on_grid
from recorded import Fixture, State, cases, computed, folders


def hiera(f: Fixture) -> State:
    """A image's predictions are the peer's in the order channels, rows, columns; a video's in ours."""
    c, w = f.config, f.weights
    size, pool, pools, stages = c["input_size"], c["q_stride"], c["q_pool"], len(c["stages"])
    token = [stride * step**pools for stride, step in zip(c["patch_stride"], pool)]
    unit = [side // step**pools for side, step in zip(c["mask_unit_size"], pool)]
    grid = tuple(n // side for n, side in zip(size, token))
    channels, patch, frames = f.inputs["x"].shape[1], token[-1], token[0] if len(grid) == 3 else 1
    model = Hiera(
        grid,
        out_dim=channels * patch**2,
        tokens={"dim": channels * math.prod(token)},
        width=c["embed_dim"] * 2 ** (stages - 1),
        heads=c["num_heads"] * 2 ** (stages - 1),
        stages=c["stages"],
        stem={"stride": c["patch_stride"], "kernel": c["patch_kernel"]},
        pooling={"pool": pool, "pools": pools, "unit": unit, "unit_stages": sum(c["mask_unit_attn"])},
        mlp_ratio=c.get("mlp_ratio", 4.0),
        positions="learned_sum" if c.get("sep_pos_embed") else "learned",
        decoder={x: c[f"decoder_{y}"] for x, y in SIZES.items()},
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
        """A image's values in the peer's order."""
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
    names = {"attn.qkv": "qkv", "attn.proj": "proj"}
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


FOLDERS = folders(["hiera/mae"])


@pytest.mark.parametrize(("name", "output"), cases(FOLDERS, lambda *_: True))
def test_every_output_is_the_peers(name, output):
    fixture, found = computed(FOLDERS[name], hiera)
    fixture.check(output, found[output])


def test_images_and_videos_are_there():
    assert {len(Fixture(folder).config["input_size"]) for folder in FOLDERS.values()} == {2, 3}
