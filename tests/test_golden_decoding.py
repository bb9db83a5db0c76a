"""Published samplers, step by step: given their options and recorded random numbers, the loop decides as they did.

The peers' networks stand here as the few lines of arithmetic that they are, with the recorded weights, and are held to
the recorded logits first. At every step the tokens that our loop hands to the network must be those that theirs did.
"""

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.decoding.guidance import from_extra
from maskgen.decoding.loop import Step, decode
from maskgen.decoding.noise import Noise, gumbel
from maskgen.decoding.orders import halton_order
from maskgen.decoding.presets import PRESETS
from maskgen.decoding.schedules import annealed, hidden_after
from maskgen.decoding.token_samplers import categorical
from maskgen.mim.ratios import SCHEDULES, gamma
from recorded import GOLDEN
from recorded import Fixture as Recording


class Fixture(Recording):
    """Of a generator, integers as int64."""

    def __init__(self, name: str):
        super().__init__(GOLDEN / name / "a", "generator")
        for tensors in (self.inputs, self.outputs):
            tensors |= {k: v.long() for k, v in tensors.items() if v.dtype == torch.int32}


class Recorded(Noise):
    """The peer's random numbers of each step: the order's, and the codes or the noise that they were drawn with."""

    def __init__(self, order: Tensor | None = None, codes: Tensor | None = None, vocabulary: Tensor | None = None):
        self.order, self.codes, self.vocabulary, self.step = order, codes, vocabulary, 0

    def choose(self, p: Tensor, positions: Tensor) -> Tensor:
        if self.codes is not None:
            return self.codes[self.step].gather(1, positions)
        return (p.log() + at(self.vocabulary[self.step], positions)).argmax(-1)

    def gumbel(self, positions: Tensor) -> Tensor:
        return self.order[self.step].gather(1, positions)


def at(x: Tensor, positions: Tensor) -> Tensor:
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


def replay(
    network: Callable[[Tensor], Tensor] | Callable[[Tensor, Step], Tensor],
    before: Tensor,
    mask_id: int,
    noise: Recorded,
    **options: object,
) -> tuple[Tensor, list[Tensor]]:
    """The decode of a blank canvas, and what stood after each step; `before` (steps, b, n) were fed by the peer."""

    def predict(step: Step) -> Tensor:
        noise.step = step.number
        ids = step.tokens.masked_fill(step.hidden, mask_id)
        assert ids.equal(before[step.number]), f"step {step.number} was given other tokens"
        return at(network(ids, step), step.positions)

    states: list[Tensor] = []
    result = decode(
        predict, torch.zeros_like(before[0]), torch.ones_like(before[0], dtype=torch.bool), steps=len(before),
        noise=noise, callback=lambda i, t, hidden: states.append(t.masked_fill(hidden, mask_id)), **options,
    )  # fmt: skip
    assert len(states) == len(before)
    return result, states


# ------------------------------------------------------------------------------------------- arithmetic of the networks


def part(w: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(x: Tensor, w: dict[str, Tensor], name: str, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def rms(x: Tensor, weight: Tensor | float = 1.0, bias: Tensor | float = 0.0) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight + bias


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def vit_block(x: Tensor, w: dict[str, Tensor], heads: int, eps: float) -> Tensor:
    """Pre-norm, one matrix for queries, keys and values."""
    x = x + linear(attend(*linear(norm(x, w, "norm1", eps), w, "attn.qkv").chunk(3, -1), heads), w, "attn.proj")
    return x + linear(F.gelu(linear(norm(x, w, "norm2", eps), w, "mlp.fc1")), w, "mlp.fc2")


def torch_attention(x: Tensor, w: dict[str, Tensor], heads: int) -> Tensor:
    q, k, v = F.linear(x, w["mha.in_proj_weight"], w["mha.in_proj_bias"]).chunk(3, -1)
    return linear(attend(q, k, v, heads), w, "mha.out_proj")


def mage(ids: Tensor, f: Fixture) -> Tensor:
    w, c, mask = f.weights, f.config["model"], 1064
    ids = F.pad(ids, (1, 0), value=140)  # the class that stands for none
    x = w["token_emb.word_embeddings.weight"][ids] + w["token_emb.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x, w, "token_emb.LayerNorm", 1e-6)
    for i in range(c["depth"]):
        x = vit_block(x, part(w, f"blocks.{i}."), c["num_heads"], 1e-6)
    x = linear(norm(x, w, "norm", 1e-6), w, "decoder_embed")
    x = torch.where((ids == mask)[..., None], x[:, :1], x) + w["decoder_pos_embed_learned"]
    for i in range(c["decoder_depth"]):
        x = vit_block(x, part(w, f"decoder_blocks.{i}."), c["decoder_num_heads"], 1e-6)
    x = norm(F.gelu(linear(norm(x, w, "decoder_norm", 1e-6), w, "mlm_layer.fc")), w, "mlm_layer.ln")
    return (x @ w["token_emb.word_embeddings.weight"].T + w["mlm_layer.bias"])[:, 1:, :64]


def maskgit(ids: Tensor, f: Fixture) -> Tensor:
    """Flax: kernels are (in, out), attention's (in, heads, each)."""
    w, c = f.weights, f.config

    def dense(x: Tensor, name: str) -> Tensor:
        kernel, bias = w[f"{name}/kernel"], w[f"{name}/bias"]
        return x @ kernel.reshape(x.shape[-1], -1) + bias.flatten()

    def ln(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}/scale"], w[f"{name}/bias"], 1e-12)

    words = w["Embed_0/word_embeddings/embedding"]
    x = ln(words[ids] + w["Embed_0/position_embeddings/embedding"], "Embed_0/embeddings_ln")
    for i in range(c["num_hidden_layers"]):
        a, m = f"TransformerLayer_{i}/Attention_0", f"TransformerLayer_{i}/Mlp_0"
        q, k, v = (dense(x, f"{a}/self_attention/{name}") for name in ("query", "key", "value"))
        h = dense(attend(q, k, v, c["num_attention_heads"]), f"{a}/self_attention/out")
        x = ln(x + h, f"{a}/attention_output_ln")
        h = dense(F.gelu(dense(x, f"{m}/intermediate_output"), approximate="tanh"), f"{m}/layer_output")
        x = ln(x + h, f"{m}/layer_output_ln")
    x = ln(F.gelu(dense(x, "MlmLayer_0/mlm_dense"), approximate="tanh"), "MlmLayer_0/mlm_ln")
    return x @ words.T + w["MlmLayer_0/mlm_bias/bias"]


def titok(ids: Tensor, labels: Tensor, f: Fixture) -> Tensor:
    """ImageBert (a post-norm BERT) or UViTBert (pre-norm, long skips); the class, 10 for none, stands in front."""
    c, w = f.config["model"]["generator"], f.weights
    heads, ids = c["num_attention_heads"], torch.cat([labels[:, None] + 97, ids], 1)
    if c["model_type"] == "UViT":
        block = functools.partial(vit_block, heads=heads, eps=1e-5)
        first = block(w["embeddings.weight"][ids] + w["pos_embed"], part(w, "in_blocks.0."))
        x = torch.cat([block(first, part(w, "mid_block.")), first], -1)
        x = block(linear(x, w, "out_blocks.0.skip_linear"), part(w, "out_blocks.0."))
        return linear(norm(x, w, "norm"), w, "lm_head")[:, 1:]
    w = part(w, "model.")
    e = part(w, "embeddings.")
    x = e["word_embeddings.weight"][ids] + e["position_embeddings.weight"] + e["token_type_embeddings.weight"][0]
    x = norm(x, e, "LayerNorm", 1e-12)
    for i in range(c["num_hidden_layers"]):
        b = part(w, f"encoder.layer.{i}.")
        h = attend(*(linear(x, b, f"attention.self.{name}") for name in ("query", "key", "value")), heads)
        x = norm(x + linear(h, b, "attention.output.dense"), b, "attention.output.LayerNorm", 1e-12)
        h = linear(F.gelu(linear(x, b, "intermediate.dense")), b, "output.dense")
        x = norm(x + h, b, "output.LayerNorm", 1e-12)
    return linear(x, w, "lm_head")[:, 1:]


def maskbit(ids: Tensor, labels: Tensor, f: Fixture) -> Tensor:
    """ids (b, places x 2): each group's bits as -1 and 1, a hidden group's as 0; the class stands last."""
    w, c = f.weights, f.config["mlm_model"]
    ids = ids.unflatten(1, (-1, 2))
    bits = ((ids[..., None] >> torch.arange(4)) & 1) * 2.0 - 1
    bits = bits.masked_fill((ids == 16)[..., None], 0.0).flatten(2)
    x = torch.cat([linear(bits, w, "input_proj"), w["class_emb.weight"][labels][:, None]], 1) + w["pos_emb"]
    x = norm(x, w, "first_layer.0", 1e-12)
    for i in range(c["depth"]):
        a, m = part(w, f"transformer.layers.{i}.0."), part(w, f"transformer.layers.{i}.1.")
        x = norm(x + torch_attention(x, a, c["heads"]), a, "norm", 1e-12)
        x = norm(x + linear(F.gelu(linear(x, m, "net.0")), m, "net.2"), m, "norm", 1e-12)
    x = norm(F.gelu(linear(x, w, "last_layer.0")), w, "last_layer.2", 1e-12)
    return linear(x[:, :-1], w, "prediction_layer").unflatten(-1, (2, -1)).flatten(1, 2)


def halton(ids: Tensor, labels: Tensor, f: Fixture) -> Tensor:
    w, c = f.weights, f.config["transformer"]
    y = F.silu(w["cls_emb.weight"][labels])[:, None]
    x = w["tok_emb.weight"][ids] + w["pos_emb.weight"]
    x = torch.cat([x, w["reg_tokens.weight"].expand(len(x), -1, -1)], 1)
    for i in range(c["depth"]):
        b = part(w, f"transformer.layers.{i}.")
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(y, b, "mlp.1").chunk(6, -1)
        h = rms(x, b["ln1.weight"]) * (1 + scale1) + shift1
        q, k, v = (linear(h, b, f"attn.{name}") for name in ("wq", "wk", "wv"))
        x = x + gate1 * linear(attend(rms(q), rms(k), v, c["heads"]), b, "attn.wo")
        h = rms(x, b["ln2.weight"]) * (1 + scale2) + shift2
        x = x + gate2 * linear(F.silu(linear(h, b, "ff.w1")) * linear(h, b, "ff.w3"), b, "ff.w2")
    shift, scale = linear(y, w, "last_norm.mlp.1").chunk(2, -1)
    x = rms(x[:, :-1], w["last_norm.norm_final.weight"], w["last_norm.norm_final.bias"]) * (1 + scale) + shift
    return F.linear(x, w["tok_emb.weight"], w["head.bias"])


def halton_v1(ids: Tensor, labels: Tensor, f: Fixture) -> Tensor:
    w, c = f.weights, f.config["transformer"]
    x = w["tok_emb.weight"][torch.cat([ids, labels[:, None] + 65], 1)] + w["pos_emb"]
    x = norm(F.gelu(linear(norm(x, w, "first_layer.0", 1e-12), w, "first_layer.2")), w, "first_layer.4", 1e-12)
    x = linear(x, w, "first_layer.6")
    for i in range(c["depth"]):
        a, m = part(w, f"transformer.layers.{i}.0."), part(w, f"transformer.layers.{i}.1.")
        x = x + torch_attention(norm(x, a, "norm"), part(a, "fn."), c["heads"])
        x = x + linear(F.gelu(linear(norm(x, m, "norm"), m, "fn.net.0")), m, "fn.net.3")
    x = norm(F.gelu(linear(norm(x, w, "last_layer.0", 1e-12), w, "last_layer.2")), w, "last_layer.4", 1e-12)
    return (x @ w["tok_emb.weight"].T + w["bias"])[:, :-1, :65]


def guided(network: Callable[[Tensor, Tensor, Fixture], Tensor], labels: Tensor, f: Fixture) -> Callable:
    """Class 10 is none."""

    def logits(ids: Tensor, step: Step) -> Tensor:
        c = network(ids, labels, f)
        if step.guidance_scale == 1:
            return c
        u = network(ids, torch.full_like(labels, 10), f)
        return u + step.guidance_scale * (c - u)

    return logits


# ------------------------------------------------------------------------------------------------------------ schedules


def test_halton_order_is_the_peers():
    f = Fixture("halton/schedules")
    for side in (16, 32):
        recorded = f.outputs[f"halton_order_{side}"]
        assert list(halton_order((side, side))) == (recorded[:, 0] * side + recorded[:, 1]).tolist()


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("steps", [8, 12, 16, 32])
def test_halton_step_counts_are_the_peers(side, steps):
    f, n = Fixture("halton/schedules"), side**2

    def shown(schedule, counting):
        return [n - left for left in hidden_after(schedule, n, steps, counting)]

    assert shown("arccos", "halton") == f.outputs[f"halton_cum_{side}_{steps}"].tolist()
    for name in ("root", "linear", "square", "cosine", "arccos"):
        ours = {"root": "sqrt"}.get(name, name)
        recorded = f.outputs[f"confidence_{name}_{side}_{steps}"].tolist()  # before its own max
        assert shown(ours, "halton_confidence") == [max(t, i + 1) for i, t in enumerate(recorded)]
        each = f.outputs[f"v1_{name}_{side}_{steps}"]
        assert shown(ours, "halton_v1") == each.cumsum(0).tolist()


def test_maskgit_schedules_are_the_peers():
    f = Fixture("maskgit_jax/transformer")
    ours = {"uniform": "linear", "cosine": "cosine", "pow0.5": "sqrt", "log": "logarithmic", "exp": "exponential"}
    for name, schedule in ours.items():
        for n in (256, 1024):
            values = torch.tensor([gamma(schedule, r, n) for r in f.inputs["schedule_ratio"].tolist()])
            f.check(f"schedule_{name}_{n}", values)
    for steps in (8, 12, 16):
        expected = f.outputs[f"cosine_counts_256_{steps}"].tolist()
        if steps == 12:  # 256 cos(pi / 3) = 128; theirs is in float32, 127
            assert expected[7] == 127
            expected[7] = 128
        assert hidden_after("cosine", 256, steps) == expected


def test_openmuse_schedules_are_the_peers():
    f = Fixture("openmuse/maskgit_transformer")
    for name, schedule in {"cosine": "cosine", "linear": "linear", "pow2": "square", "pow0.5": "sqrt"}.items():
        f.check(f"sched_{name}", torch.tensor([gamma(schedule, t) for t in f.inputs["schedule_t"].tolist()]))


def test_maskbit_schedules_are_the_peers():
    f = Fixture("maskbit/maskbit")
    for name in ("root", "square", "cosine", "arccos", "linear"):
        values = [gamma({"root": "sqrt"}.get(name, name), (i + 1) / 12) for i in range(12)]
        f.check(f"mask_ratio_{name}", torch.tensor(values))


# --------------------------------------------------------------------------------------------------------------- traces


def test_decode_of_mage_is_the_peers():
    f = Fixture("mage/pretrain")
    logits = mage(f.inputs["gen_ids"], f)
    torch.testing.assert_close(logits, f.outputs["gen_logits"][:, 1:], atol=6e-5, rtol=1e-5)
    after = f.outputs["gen_loop_ids_after"]
    before = torch.cat([torch.full_like(after[:1], 1064), after[:-1]])
    noise = Recorded(f.inputs["gen_loop_gumbel"], f.outputs["gen_loop_sampled"])
    preset = {k: v for k, v in PRESETS["mage"].items() if k not in ("num_inference_steps", "choice_temperature")}
    assert not preset  # MAGE is the defaults; the fixture was made at MaskGIT's temperature
    result, states = replay(lambda ids, step: mage(ids, f), before, 1064, noise)
    assert result.equal(f.outputs["gen_loop_filled"][-1])
    for state, recorded in zip(states[:-1], after):
        assert state.equal(recorded)
    assert [int((s[0] == 1064).sum()) for s in states[:-1]] == f.outputs["gen_loop_mask_len"].tolist()[:-1]


def test_decode_of_maskgit_is_the_peers():
    f = Fixture("maskgit_jax/transformer")
    f.check("logits", maskgit(f.inputs["input_ids"], f))
    labels = f.inputs["decode_start"][:, :1]
    before = f.outputs["decode_ids_before"][..., 1:]
    filled = f.outputs["decode_final_seqs"].transpose(0, 1)[..., 1:]

    def network(ids, step):
        return maskgit(torch.cat([labels, ids], 1), f)[:, 1:, :64]  # codes only: no class, no mask

    noise = Recorded(f.inputs["decode_gumbel"][..., 1:], filled)
    result, states = replay(network, before, -1, noise)
    assert result.equal(filled[-1])
    left = [[int((row == -1).sum()) for row in state] for state in states]
    assert left[:-1] == f.outputs["decode_mask_len"].tolist()[:-1]


@pytest.mark.parametrize(("name", "count"), [("amused/pipeline", 6), ("meissonic/transformer", 5)])
def test_decode_of_diffusers_schedulers_is_theirs_step_by_step(name, count, monkeypatch):
    """aMUSEd's scheduler, and Meissonic's: a generator a step, codes by torch.multinomial, then uniform noise.

    Their cosine is in float32, so that 64 cos(pi / 3) is 31 hidden tokens; ours, and MAGE's, is 32.
    """
    f = Fixture(name)
    monkeypatch.setitem(SCHEDULES, "cosine", lambda r, n: torch.tensor(math.pi / 2 * r).cos().item())
    seed = {"amused/pipeline": 511, "meissonic/transformer": 1201}[name]
    logits = f.inputs["sched_model_output"].flatten(3).transpose(2, 3)  # steps, b, n, codes
    order = []
    for i in range(count):
        generator = torch.Generator().manual_seed(seed + i)
        codes = torch.multinomial(logits[i].softmax(-1).flatten(0, 1), 1, generator=generator)[:, 0]
        hidden = f.outputs["sched_samples"][i].flatten() == 71
        assert codes[hidden].equal(f.outputs["sched_pred_original"][i].flatten()[hidden])
        order.append(gumbel(torch.zeros(1, logits.shape[2]).uniform_(0, 1, generator=generator)))
    noise = Recorded(torch.stack(order), f.outputs["sched_pred_original"].flatten(2))
    result, _ = replay(
        lambda ids, step: logits[step.number], f.outputs["sched_samples"].flatten(2), 71, noise,
        choice_temperature=PRESETS["amused"]["choice_temperature"], choice_anneal=PRESETS["amused"]["choice_anneal"],
    )  # fmt: skip
    assert result.equal(f.outputs["sched_pred_original"][-1].flatten(1))


def test_temperatures_of_amuseds_steps_are_the_peers():
    f = Fixture("amused/pipeline")
    f.check("sched_temperatures", torch.tensor(annealed((2.0, 0.0), "linspace", 6)))


@pytest.mark.parametrize("name", ["titok/imagebert", "titok/uvitbert"])
def test_decode_of_titok_is_the_peers(name):
    f = Fixture(name)
    f.check("logits_cond", titok(f.inputs["input_ids"], f.inputs["condition"], f))
    f.check("logits_uncond", titok(f.inputs["input_ids"], torch.full((3,), 10), f))
    preset = PRESETS["titok-l32"]
    noise = Recorded(gumbel_of(f.inputs["gen_uniform_conf"]), vocabulary=gumbel_of(f.inputs["gen_uniform_logits"]))
    result, _ = replay(
        guided(titok, f.inputs["condition"], f), f.outputs["gen_ids_before"], 96, noise,
        schedule=preset["mask_schedule"], sample_tokens=functools.partial(categorical, confidence=preset["confidence"]),
        choice_temperature=preset["choice_temperature"], temperature=preset["temperature"],
        temperature_anneal=preset["temperature_anneal"], guidance_scale=preset["guidance_scale"],
        guidance_schedule=preset["guidance_schedule"],
    )  # fmt: skip
    assert result.equal(f.outputs["gen_final_ids"])
    assert preset["guidance_scale"] == from_extra(f.config["generate"]["guidance_scale"])


def gumbel_of(u: Tensor) -> Tensor:
    return -(-u.log()).log()


def test_decode_of_maskbit_is_the_peers():
    """Two groups of bits a place, flat: n = 128 for 64 places."""
    f = Fixture("maskbit/maskbit")
    labels = f.inputs["labels"].masked_fill(f.inputs["drop_label_mask"].bool(), 10)
    f.check("logits", maskbit(f.outputs["masked_tokens"].flatten(1), labels, f).unflatten(1, (-1, 2)))
    sample = f.config["sample"]
    result, _ = replay(
        guided(maskbit, f.inputs["labels"], f), f.outputs["sample_masked_tokens"].flatten(2), 16,
        Recorded(f.inputs["sample_gumbel"].flatten(2), f.outputs["sample_pred_tokens"].flatten(2)),
        schedule="arccos", choice_temperature=sample["randomize_temperature"], guidance_schedule="cosine",
        guidance_scale=from_extra(sample["guidance_scale"]), guidance_power=sample["scale_pow"],
    )  # fmt: skip
    assert result.equal(f.outputs["sample_pred_tokens"][-1].flatten(1))


def test_decode_of_halton_is_the_peers():
    """The codes too: torch's generator draws them as it did, from the probabilities that our draw arrives at.

    The mask is a class of theirs; a place where it was drawn counts as decided and is given back as a mask.
    """
    f = Fixture("halton/transformer")
    labels, outputs, sampler = f.inputs["labels"], f.outputs, f.config["halton_sampler"]
    first = halton(torch.full((3, 64), 64), labels, f)
    nothing = halton(torch.full((3, 64), 64), torch.full((3,), 10), f)
    f.check("halton_step0_logits", torch.stack([first[0], nothing[-1]]))

    heats = annealed((1 / sampler["sm_temp_min"], 1 / sampler["sm_temp_max"]), "reciprocal", 8)
    scale = from_extra(sampler["w"])
    logits = guided(halton, labels, f)
    generator, positions, codes = torch.Generator().manual_seed(516), [], outputs["halton_pred_codes"].flatten(2)

    def network(ids, step):
        made = logits(ids, step)
        p = (made / heats[step.number]).softmax(-1)
        assert torch.multinomial(p.flatten(0, 1), 1, True, generator=generator).view(3, 64).equal(codes[step.number])
        positions.append(step.positions)
        return made

    result, _ = replay(
        network, outputs["halton_codes_before"].flatten(2), 64, Recorded(codes=codes),
        schedule="arccos", counting="halton", order="halton", grid=(8, 8), guidance_scale=scale,
        temperature=(1 / sampler["sm_temp_min"], 1 / sampler["sm_temp_max"]), temperature_anneal="reciprocal",
    )  # fmt: skip
    assert result.clamp(max=63).equal(outputs["halton_final_codes"].flatten(1))
    for asked, written in zip(positions, outputs["halton_masks"].flatten(2)):
        assert asked.sort(1).values.equal(written[0].nonzero()[:, 0].expand(3, -1))


def test_decode_of_haltons_first_release_is_the_peers():
    f = Fixture("halton/v1_masktransformer")
    labels = f.inputs["labels"].masked_fill(f.inputs["drop_label"].bool(), 10)
    f.check("logits", halton_v1(f.inputs["code"].flatten(1), labels, f))
    sample = f.config["sample"]
    result, _ = replay(
        guided(halton_v1, f.inputs["labels"], f), f.outputs["conf_codes_before"].flatten(2), 64,
        Recorded(f.inputs["conf_gumbel"], f.outputs["conf_pred_codes"].flatten(2)),
        schedule="arccos", counting="halton_v1", choice_temperature=sample["r_temp"], choice_anneal="linspace",
        temperature=1 / sample["sm_temp"],
        guidance_schedule="linear", guidance_scale=from_extra(float(sample["w"])),
    )  # fmt: skip
    assert result.clamp(max=63).equal(f.outputs["conf_final_codes"].flatten(1))
