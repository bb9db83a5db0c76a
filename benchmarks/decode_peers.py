"""The peers of decode.py: public implementations with networks of the same size."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import torch
from decode_sides import Case, Side, Size
from torch import Tensor, nn


def amused(size: Size, place: dict, res_blocks: int = 3) -> Side:
    """diffusers: UVit2DModel and AmusedScheduler, called as AmusedPipeline does, with one text token.

    `res_blocks`: convolution and attention blocks at either end of the transformer; aMUSEd has 3.
    """
    width, device = size.width, place["device"]
    network = diffusers.UVit2DModel(
        hidden_size=width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=width * 8 // 3,  # gated: as many weights as a plain MLP four times as wide
        codebook_size=size.codes,
        vocab_size=size.codes + 64,
        in_channels=width,
        block_out_channels=width,
        block_num_heads=size.heads,
        num_res_blocks=res_blocks,
        encoder_hidden_size=width,
        cond_embed_dim=width,
        micro_cond_encode_dim=width,
        micro_cond_embed_dim=5 * width,
        sample_size=size.side,
    )
    network = network.to(**place).eval()
    scheduler = diffusers.AmusedScheduler(mask_token_id=size.codes)

    @torch.no_grad()
    def generate(case: Case) -> Tensor:
        guided = case.guidance > 1
        rows = 2 * case.batch if guided else case.batch
        conditions = {
            "encoder_hidden_states": torch.randn(rows, 1, width, **place),
            "pooled_text_emb": torch.randn(rows, width, **place),
            "micro_conds": torch.tensor([[256.0, 256.0, 0.0, 0.0, 6.0]], **place).expand(rows, -1),
        }
        latents = torch.full((case.batch, size.side, size.side), size.codes, device=device)
        scheduler.set_timesteps(case.steps, temperature=(2, 0), device=device)
        for timestep in scheduler.timesteps:
            logits = network(torch.cat([latents] * 2) if guided else latents, **conditions)
            if guided:
                u, c = logits.chunk(2)
                logits = u + case.guidance * (c - u)
            latents = scheduler.step(logits, timestep, latents).prev_sample
        return latents.flatten(1)

    return Side(f"UVit2DModel, {res_blocks} residual blocks at either end; AmusedScheduler", network, generate)


def muse(size: Size, place: dict, flash: bool | None = None) -> Side:
    """muse-maskgit-pytorch: MaskGitTransformer and MaskGit.generate, with one text token; no T5, no image decoder.

    `flash`: as it is shipped, True; False in bfloat16, where that attention raises: it multiplies bfloat16 values by
    weights that its float32 maxima made float32, and under autocast fills bfloat16 scores with float32's lowest number.
    """
    from muse_maskgit_pytorch import MaskGit, MaskGitTransformer, VQGanVAE, muse_maskgit_pytorch, t5

    class NoDecoder(VQGanVAE):
        """Returns the codes."""

        def __init__(self):
            nn.Module.__init__(self)
            self.codebook_size = size.codes

        def copy_for_eval(self):
            return self

        def get_encoded_fmap_size(self, image_size):
            return size.side

        def decode_from_ids(self, ids):
            return ids

    flash = place["dtype"] == torch.float32 if flash is None else flash
    muse_maskgit_pytorch.tqdm = lambda steps, total: steps
    t5.T5_CONFIGS["none"] = {"config": SimpleNamespace(d_model=size.width)}
    network = MaskGitTransformer(
        num_tokens=size.codes,
        seq_len=size.side**2,
        dim=size.width,
        depth=size.depth,
        heads=size.heads,
        dim_head=size.width // size.heads,
        flash=flash,
        t5_name="none",
    )
    network.encode_text = lambda texts: torch.randn(len(texts), 1, size.width, **place)
    model = MaskGit(image_size=16 * size.side, transformer=network, vae=NoDecoder()).to(**place).eval()

    def generate(case: Case) -> Tensor:
        return model.generate([""] * case.batch, timesteps=case.steps, cond_scale=case.guidance).flatten(1)

    return Side(f"MaskGitTransformer(flash={flash}), MaskGit.generate", network, generate)
