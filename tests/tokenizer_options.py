"""A peer's configuration of its tokenizer as options of ours, as a YAML file would give them."""

from recorded import Options

LEGACY = 0.25  # taming's beta stands before the codebook's term: its loss is ours with 1 / beta, times beta


def both(encoder: Options, decoder: Options, quantizer: Options) -> Options:
    """A tokenizer with a frozen codebook's housekeeping: nothing is set from data or revived."""
    return {"encoder": encoder, "decoder": decoder, "quantizer": {"init": "random", "revive_below": 0.0, **quantizer}}


def taming(config: Options) -> Options:
    dd = config["ddconfig"]
    at = [i for i in range(len(dd["ch_mult"])) if dd["resolution"] // 2**i in dd["attn_resolutions"]]
    common = {"width": dd["ch"], "multipliers": dd["ch_mult"], "attention": at, "middle": {"attention": True}}
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
        "middle": {"blocks": config["num_res_blocks"]},
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
    common |= {"blocks": blocks, "middle": {"blocks": blocks}}
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
    encoder = {**common, "blocks": blocks, "middle": {"blocks": blocks}, "downsample": downsample}
    decoder = {**common, "blocks": decoder_blocks, "middle": {"blocks": decoder_blocks}}
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
        return {**sizes, "attention": [last], "middle": {"attention": True}}

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
        "middle": {"attention": vq["mid_block_add_attention"]},
        "norm_groups": vq["norm_num_groups"],
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
        sizes |= {"positions": "learned", "num_registers": 1, "pre_norm": True, "norm_eps": 1e-5}
        return {"type": "vit", **grid, "transformer": sizes}

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
        sizes = {"width": vit["embed_dim"], "depth": vit["depth"], "heads": vit["num_heads"]}
        sizes |= {"mlp_ratio": vit["mlp_ratio"], "positions": "learned", "num_registers": 1}
        grid = {"size": vit["img_size"], "patch": vit["patch_size"]}
        return {"type": "vit", **grid, "transformer": sizes, "head": "tanh"}

    quantizer = {"codebook_size": config["n_embed"], "dim": config["embed_dim"], "commitment": config["beta"]}
    quantizer |= {"l2_norm": True, "average": "directions", "decay": config["decay"]}
    encoder = {**part(config["encoder_config"]), "channels": config["encoder_config"]["in_chans"]}
    decoder = {**part(config["decoder_config"]), "channels": config["decoder_out_dim"]}
    return {**both(encoder, decoder, quantizer), "target": "features"}
