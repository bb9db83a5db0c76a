"""MaskTransformer and the door to attention."""

import pytest
import torch
import torch.nn.functional as F

from flat import labelled, transformer
from maskgen.conditioning import Conditioning
from maskgen.transformer.attention import Ragged, attend, attention_probabilities
from maskgen.transformer.layers import Block
from maskgen.transformer.model import MaskTransformer
from maskgen.transformer.positions import coordinates, rotary, rotate, sine_cosine
from maskgen.transformer.relative import RelativeBias, of_queries, offsets
from maskgen.transformer.specs import BlockSpec, upgraded
from maskgen.transformer.windows import Windows


def randomised(**options):
    """A small model with no weight left at zero, so that every path counts."""
    settings = {"codebook_size": 32, "grid": (4, 6), "num_classes": 5, "width": 48, "depth": 3, "heads": 4}
    model = transformer(**{**settings, **options}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def inputs(model, batch=3, grid=None):
    """Codes, a mask and the conditioning by random classes, if `model` takes any."""
    grid = grid or (4, 6)
    codes, masked, labels = (
        torch.randint(32, (batch, *grid)),
        torch.rand(batch, *grid) < 0.5,
        torch.randint(5, (batch,)),
    )
    return codes, masked, labelled(model, labels, grid) if len(model.conditioner) else None


OPTIONS = [
    {},
    {"norm": "rms", "mlp": "gelu", "qk_norm": False},
    {"rope": False, "condition": "adaln_shared"},
    {"positions": "sincos", "rope": False, "registers": 2},
    {"positions": "none"},
    {"condition": "in_context", "registers": 1},
    {"positions": "none", "rope": False, "relative_bias": "shared", "registers": 2},
    {"relative_bias": "block", "condition": "in_context", "embedding_norm": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pruned_last_layer_is_the_whole_one_at_the_places_asked(options):
    model = randomised(**options)
    codes, masked, given = inputs(model)
    at = torch.stack([torch.randperm(24)[:7] for _ in range(3)])
    whole = model(codes, masked, given)
    asked = model(codes, masked, given, predict_at=at)
    rows = torch.arange(3)[:, None]
    torch.testing.assert_close(asked.predictions, whole.predictions[rows, at], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(asked.features, whole.features[rows, at], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_keeping_all_tokens_in_another_order_changes_nothing(options):
    model = randomised(**options)
    codes, masked, given = inputs(model)
    keep = torch.stack([torch.randperm(24) for _ in range(3)])
    at = keep[:, :5]
    whole = model(codes, masked, given).predictions[torch.arange(3)[:, None], at]
    torch.testing.assert_close(model(codes, masked, given, at, keep).predictions, whole, rtol=1e-4, atol=1e-4)


def test_dropped_tokens_are_not_seen():
    model = randomised()
    codes, masked, given = inputs(model)
    keep = torch.stack([torch.randperm(24)[:10] for _ in range(3)])
    gone = torch.ones(3, 24, dtype=torch.bool).scatter(1, keep, False).view(3, 4, 6)
    other = torch.where(gone, (codes + 1) % 32, codes)
    a = model(codes, masked, given, keep[:, :4], keep).predictions
    assert a.equal(model(other, masked, given, keep[:, :4], keep).predictions)
    assert not torch.allclose(a, model(codes, masked, given, keep[:, :4]).predictions, atol=1e-3)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_class_and_position_matter(options):
    model = randomised(**options)
    codes, masked, given = inputs(model)
    labels = torch.tensor(given.keys)
    base = model(codes, masked, given).predictions
    assert not torch.allclose(base, model(codes, masked, labelled(model, (labels + 1) % 5)).predictions, atol=1e-3)
    moved = model(codes.flip(2), masked.flip(2), given).predictions.view(3, 4, 6, -1).flip(2).flatten(1, 2)
    assert not torch.allclose(base, moved, atol=1e-3)


def test_no_label_is_the_null_class():
    model = randomised()
    codes, masked, _ = inputs(model)
    null = labelled(model, torch.full((3,), 5))
    assert model(codes, masked).predictions.equal(model(codes, masked, null).predictions)
    assert model(codes, masked, labelled(model, None).rows(torch.zeros(3, dtype=torch.long))).predictions.equal(
        model(codes, masked, null).predictions
    )


def test_class_dropout_drops_with_its_probability():
    model = transformer(8, (2, 2), num_classes=3, width=16, depth=1, heads=2, class_dropout=0.1)
    vectors = model.conditioner.label.embedding.weight
    seen = labelled(model.train(), torch.zeros(20_000, dtype=torch.long)).pooled
    dropped = (seen == vectors[3]).all(1).float().mean().item()
    assert dropped == pytest.approx(0.1, abs=0.01)
    kept = labelled(model.eval(), torch.zeros(100, dtype=torch.long)).pooled
    assert (kept == vectors[0]).all()


def test_rotary_attention_depends_on_distance_only():
    """Scores of rotated queries and keys are the same when both move together."""
    q, k = torch.randn(2, 1, 1, 1, 16).unbind(0)
    table = rotary((5, 7), 0, 16).view(5, 7, 16)

    def score(a, b):
        turn = [rotate(x, t[None]) for x, t in ((q, table[a]), (k, table[b]))]
        return (turn[0] * turn[1]).sum()

    torch.testing.assert_close(score((0, 0), (1, 3)), score((3, 2), (4, 5)))
    assert not torch.allclose(score((0, 0), (1, 3)), score((0, 0), (3, 1)), atol=1e-3)


@pytest.mark.parametrize("positions", ["learned", "sincos", "none"])
def test_models_take_other_grids(positions):
    model = randomised(positions=positions)
    codes, masked, given = inputs(model, grid=(6, 3))
    assert model(codes, masked, given).predictions.shape == (3, 18, 32)


def test_positions_are_distinct():
    assert coordinates((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    table = sine_cosine((4, 6), 48)
    assert torch.cdist(table, table).fill_diagonal_(9).min() > 0.1


def test_attention_backends_agree():
    q, k, v = torch.randn(3, 2, 9, 4, 8)
    expected = torch.einsum("bhnm,bmhd->bnhd", attention_probabilities(q, k), v)
    for backend in ("auto", "sdpa", "explicit"):
        torch.testing.assert_close(attend(q, k, v, backend), expected, rtol=1e-4, atol=1e-5)
    assert attention_probabilities(q, k).sum(-1).sub(1).abs().max() < 1e-5


def test_bad_sizes_and_labels_are_refused():
    with pytest.raises(ValueError, match="block: width 50 over heads 4 must be whole, with rope also a multiple of 4"):
        transformer(8, (2, 2), width=50, heads=4)
    unconditional = randomised(num_classes=None)
    with pytest.raises(ValueError, match="takes no label: it is unconditional; leave label out"):
        labelled(unconditional, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="takes no actions: it reads label; leave actions out"):
        randomised().conditioner({"actions": torch.zeros(3, 4, 2)}, 3, (4, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_give_the_same_model(tmp_path, dtype):
    model = randomised(registers=2)
    codes, masked, given = inputs(model)
    model.save_pretrained(tmp_path)
    loaded = MaskTransformer.from_pretrained(tmp_path, torch_dtype=dtype)
    assert loaded.grid == (4, 6)
    labels, wanted = torch.tensor(given.keys), model.to(dtype)
    predictions = [each(codes, masked, labelled(each, labels)).predictions for each in (loaded, wanted)]
    assert predictions[0].equal(predictions[1])


def test_places_differ_on_a_blank_canvas():
    """Rotary positions alone say nothing where all tokens are alike: absolute ones must."""
    blank = torch.zeros(1, 4, 6, dtype=torch.long), torch.ones(1, 4, 6, dtype=torch.bool)

    def differ(**options):
        logits = randomised(**options)(*blank).predictions[0]
        return (logits - logits[0]).abs().amax() > 1e-3

    assert not differ(positions="none")
    assert differ(positions="learned")
    assert differ(positions="sincos")
    assert not differ(positions="none", relative_bias="shared")
    assert differ(positions="none", relative_bias="shared", registers=1)  # a place's share of it says where it is


@pytest.mark.parametrize("width", [32, 384])
def test_weights_start_at_a_scale_of_their_width(width):
    """A fixed one kept narrow networks from learning: outputs of each linear layer must be about as large as inputs."""
    model = transformer(8, (2, 2), width=width, depth=2, heads=4, decoder_depth=1)
    for block in (*model.blocks, *model.decoder.blocks):
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            fan = linear.in_features + linear.out_features
            torch.testing.assert_close(linear.weight.std().item(), (2 / fan) ** 0.5, rtol=0.05, atol=0)
    assert not model.head.weight.any()


@pytest.mark.parametrize(("tokens", "same"), [(257, True), (641, False)])
def test_bfloat16_attention_on_a_processor_is_plain_products_where_they_fit(tokens, same):
    q, k, v = torch.randn(3, 1, tokens, 2, 16, dtype=torch.bfloat16)
    assert attend(q, k, v).equal(attend(q, k, v, "explicit")) == same


# ------------------------------------------------------------------------------------------------------ ragged rows


@pytest.mark.parametrize("backend", ["sdpa", "explicit", "packed"])
def test_rows_of_different_lengths_are_each_row_alone(backend):
    """Padded and packed: a row attends to its own tokens, whatever stands in the padding."""
    lengths = [5, 2, 7]
    keys = Ragged.of(lengths)
    q, k, v = (torch.randn(3, 7, 2, 8) for _ in range(3))
    k[~keys.valid] = 1e4
    made = attend(q, k, v, backend, keys)
    for row, n in enumerate(lengths):
        alone = attend(q[row : row + 1], k[row : row + 1, :n], v[row : row + 1, :n], "explicit")
        torch.testing.assert_close(made[row : row + 1], alone)


def test_packed_rows_of_one_length_are_plain_attention():
    q, k, v = (torch.randn(3, 6, 2, 8) for _ in range(3))
    torch.testing.assert_close(attend(q, k, v, "packed"), attend(q, k, v, "explicit"))


def test_ragged_says_where_tokens_are():
    ragged = Ragged.of([2, 3]).after(1)
    assert ragged.lengths == (3, 4)
    assert ragged.valid.tolist() == [[True, True, True, False], [True] * 4]
    assert ragged.index.tolist() == [0, 1, 2, 4, 5, 6, 7]


# ------------------------------------------------------------------------------------------------------ relative bias


def test_offsets_are_counted_from_the_most_negative_and_prefix_tokens_have_three_entries():
    """A grid of 2 x 3 has 3 x 5 offsets, query minus key."""
    index = offsets((2, 3), 2)
    assert index.shape == (8, 8)
    assert index[2:, 2:].diagonal().tolist() == [7] * 6  # (0, 0), the middle
    assert index[2, 2:].tolist() == [7, 6, 5, 2, 1, 0]  # from the first place down to (-1, -2)
    assert index[7, 2:].tolist() == [14, 13, 12, 9, 8, 7]  # from the last up to (1, 2)
    assert index[:2, 2:].unique().tolist() == [15]
    assert index[2:, :2].unique().tolist() == [16]
    assert index[:2, :2].unique().tolist() == [17]


def test_offsets_of_a_video_differ_on_every_axis():
    index = offsets((2, 2, 3), 0)
    assert index.unique().numel() == 3 * 3 * 5
    assert index[0, 11].item() == 0
    assert index[11, 0].item() == 3 * 3 * 5 - 1


def biased(grid=(4, 6), heads=4):
    made = RelativeBias(grid, heads)
    torch.nn.init.normal_(made.table)
    return made


def test_a_bias_of_kept_tokens_is_cut_from_the_whole():
    bias, keep = biased(), torch.stack([torch.randperm(24)[:7] for _ in range(3)])
    whole, cut = bias((4, 6), 2), bias((4, 6), 2, keep)
    assert whole.shape == (1, 4, 26, 26)
    for row, places in zip(cut, keep):
        there = torch.cat([torch.arange(2), places + 2])
        assert row.equal(whole[0][:, there][:, :, there])
    asked = of_queries(whole, keep)
    assert all(row.equal(whole[0][:, places]) for row, places in zip(asked, keep))


def test_a_bias_for_another_grid_is_resized_and_keeps_its_middle():
    bias = biased()
    bias.table.data[:-3] = torch.arange(-3, 4).abs().repeat_interleave(11)[:, None]  # rows apart
    made = bias((8, 6), 1)[0, 0]
    assert made[0, 0] == bias.table[-1, 0]
    apart = made[1, 1:].view(8, 6)[:, 0]  # of the first place to those below it
    assert (apart.diff() >= 0).all()
    assert apart[0] < 0.3
    assert apart[-1] > 2.5
    assert made[1:, 1:].diagonal().std() < 1e-5


@pytest.mark.parametrize("backend", ["sdpa", "explicit", "packed"])
@pytest.mark.parametrize("rows", [1, 3])
def test_attention_adds_a_bias_to_its_scores(backend, rows):
    q, k, v = torch.randn(3, 3, 9, 2, 8)
    bias = torch.randn(rows, 2, 9, 9)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 8**0.5 + bias
    expected = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)
    torch.testing.assert_close(attend(q, k, v, backend, bias=bias), expected, rtol=1e-4, atol=1e-5)
    lengths = [5, 2, 9]
    made = attend(q, k, v, backend, Ragged.of(lengths), bias=bias)
    for row, n in enumerate(lengths):
        alone = torch.einsum("hnm,mhd->nhd", scores[row, :, :, :n].softmax(-1), v[row, :n])
        torch.testing.assert_close(made[row], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "explicit", "packed"])
def test_a_bias_learns(backend):
    model = randomised(relative_bias="block", registers=1, backend=backend)
    codes, masked, given = inputs(model)
    model(codes, masked, given, torch.arange(5).expand(3, -1)).predictions.square().sum().backward()
    *whole, last = (bias.table.grad.count_nonzero().item() for bias in model.relative)
    assert whole == [(7 * 11 + 3) * 4] * 2
    assert last == (4 * 10 + 1) * 4  # of five queries in the first row: rows below, ten columns, the prefix


def test_a_shared_bias_is_one_table_and_equals_a_block_bias_of_equal_tables():
    shared = randomised(relative_bias="shared", registers=1)
    block = randomised(relative_bias="block", registers=1)
    state = shared.state_dict()
    assert sum("relative" in name for name in state) == 1
    block.load_state_dict({**state, **{f"relative.{i}.table": state["relative.0.table"] for i in range(3)}})
    codes, masked, given = inputs(shared)
    assert shared(codes, masked, given).predictions.equal(block(codes, masked, given).predictions)


@pytest.mark.parametrize("grid", [(6, 3), (4, 6)])
def test_a_model_with_a_relative_bias_takes_other_grids(grid):
    model = randomised(relative_bias="shared", registers=1)
    codes, masked, given = inputs(model, grid=grid)
    assert model(codes, masked, given).predictions.shape == (3, 18 if grid == (6, 3) else 24, 32)


def test_an_embedding_norm_stands_after_the_positions():
    """Whatever tokens and positions are multiplied with, the blocks see the same."""
    model = randomised(num_classes=None, embedding_norm=True)
    codes, masked, _ = inputs(model)
    before = model(codes, masked).predictions
    for parameter in (model.embedding.codes.weight, model.mask_token, model.position_embedding):
        parameter.data.mul_(7)
    torch.testing.assert_close(model(codes, masked).predictions, before, rtol=1e-3, atol=1e-3)
    model.position_embedding.data.mul_(7)
    assert not torch.allclose(model(codes, masked).predictions, before, atol=1e-2)


# ------------------------------------------------------------------------------------------- asymmetric, token dropping

DECODER = {"decoder_depth": 2, "registers": 1}
ASYMMETRIC = [
    DECODER,
    {**DECODER, "pad": "class_token", "positions": "sincos"},
    {**DECODER, "num_classes": None, "decoder_width": 32, "decoder_heads": 2, "rope": False},
    {**DECODER, "condition": "in_context", "decoder_width": 32},
    {**DECODER, "condition": "adaln_shared", "norm": "rms"},
    {**DECODER, "relative_bias": "block", "embedding_norm": True},
]


@pytest.mark.parametrize("options", ASYMMETRIC, ids=str)
def test_a_decoder_predicts_everywhere_from_the_tokens_kept(options):
    model = randomised(**options)
    codes, _, given = inputs(model)
    keep = torch.stack([torch.randperm(24)[:10] for _ in range(3)])
    gone = torch.ones(3, 24, dtype=torch.bool).scatter(1, keep, False).view(3, 4, 6)
    output = model(codes, gone, given, keep=keep)
    assert output.predictions.shape == (3, 24, 32)
    assert output.features.shape == (3, 10, 48)
    other = torch.where(gone, (codes + 1) % 32, codes)
    assert output.predictions.equal(model(other, gone, given, keep=keep).predictions)  # dropped tokens are not seen
    moved = keep[:, torch.randperm(10)]
    torch.testing.assert_close(
        model(codes, gone, given, keep=moved).predictions, output.predictions, rtol=1e-4, atol=1e-4
    )
    at = torch.stack([torch.randperm(24)[:7] for _ in range(3)])
    asked = model(codes, gone, given, at, keep).predictions
    torch.testing.assert_close(asked, output.predictions[torch.arange(3)[:, None], at], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", ASYMMETRIC, ids=str)
def test_a_masked_token_that_is_kept_is_padded_in_the_decoder(options):
    """MAGE: the encoder sees its mask token, the decoder sees `pad`, so only the encoder's other outputs know of it."""
    model = randomised(**options)
    codes, masked, given = inputs(model)
    everything = torch.arange(24).expand(3, -1)
    whole = model(codes, masked, given).predictions
    torch.testing.assert_close(model(codes, masked, given, keep=everything).predictions, whole, rtol=1e-4, atol=1e-4)
    model.mask_token.data.normal_()
    assert not torch.allclose(model(codes, masked, given).predictions, whole, atol=1e-3)


@pytest.mark.parametrize("backend", ["sdpa", "explicit", "packed"])
@pytest.mark.parametrize("options", [{}, {"relative_bias": "shared", "registers": 2}, *ASYMMETRIC], ids=str)
def test_rows_that_keep_different_numbers_are_each_row_alone(options, backend):
    model = randomised(**options, backend=backend)
    codes, _, given = inputs(model)
    counts = [6, 11, 9]
    keep = torch.stack([torch.randperm(24)[:11] for _ in range(3)])
    kept = Ragged.of(counts)
    gone = (
        torch.ones(3, 25, dtype=torch.bool).scatter(1, keep.masked_fill(~kept.valid, 24), False)[:, :24].view(3, 4, 6)
    )
    made = model(codes, gone, given, keep=keep.masked_fill(~kept.valid, 0), kept=counts).predictions
    for row, n in enumerate(counts):
        one = slice(row, row + 1)
        own = None if given is None else given.rows(one)
        alone = model(codes[one], gone[one], own, keep=keep[one, :n]).predictions
        torch.testing.assert_close(made[one, : alone.shape[1]], alone, rtol=1e-4, atol=1e-4)


def test_predictions_may_be_asked_of_rows_that_keep_different_numbers():
    model = randomised()
    codes, masked, given = inputs(model)
    counts, keep = [6, 11, 9], torch.stack([torch.randperm(23)[:11] + 1 for _ in range(3)])
    kept = Ragged.of(counts)
    padded = keep.masked_fill(~kept.valid, 0)
    every = model(codes, masked, given, keep=padded, kept=counts).predictions
    some = model(codes, masked, given, keep[:, :4], padded, kept=counts).predictions
    torch.testing.assert_close(some, every[:, :4], rtol=1e-4, atol=1e-4)


def test_continuous_tokens_and_predictions_of_any_number():
    model = randomised(codebook_size=0, token_dim=12, predictions=7)
    tokens, masked = torch.randn(2, 4, 6, 12), torch.rand(2, 4, 6) < 0.5
    made = model(tokens, masked).predictions
    assert made.shape == (2, 24, 7)
    hidden = torch.where(masked[..., None], torch.randn_like(tokens), tokens)
    assert made.equal(model(hidden, masked).predictions)
    assert [x.shape for x in model.layers(tokens)] == [(2, 24, 48)] * 3


def test_layers_end_where_the_features_begin():
    codes, masked = torch.randint(32, (2, 4, 6)), torch.zeros(2, 4, 6, dtype=torch.bool)
    for options in ({"registers": 2}, DECODER, {"relative_bias": "block", "registers": 1, "embedding_norm": True}):
        model = randomised(**options)
        layers, output = model.layers(codes), model(codes, masked)
        assert len(layers) == 3
        torch.testing.assert_close(layers[-1], torch.cat([output.prefix, output.features], 1))


def test_decoders_that_cannot_be_are_refused():
    with pytest.raises(
        ValueError, match=r"an adaLN condition needs decoder.width 0, .*; or set conditioning.pooled: in_context"
    ):
        randomised(decoder_depth=1, decoder_width=32)
    with pytest.raises(ValueError, match=r"decoder.pad: class_token needs a register; set num_registers: 1"):
        randomised(decoder_depth=1, pad="class_token")
    with pytest.raises(ValueError, match="decoder: width 30 over heads 4"):
        randomised(decoder_depth=1, decoder_width=30, num_classes=None)
    with pytest.raises(
        ValueError, match=r"tokens are codes or continuous: set one of tokens.codebook_size \(0\) and tokens.dim \(0\)"
    ):
        randomised(codebook_size=0)


# ---------------------------------------------------------------------------------------------- options of a block


def block_of(width=16, heads=2, cross=False, left_out=0.0, **options):
    """A block with no weight left at its first value."""
    made = Block(width, BlockSpec(heads=heads, mlp="gelu", **{"qk_norm": "none", **options}), False, cross, left_out)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def norm(x, layer):
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, 1e-6)


def attended(block, x, heads=2, change=None, weights=None):
    """Attention without its projection, of plain products; `change` works on queries and keys over the whole width."""
    q, k, v = F.linear(x, block.attn.qkv.weight, block.attn.qkv.bias).chunk(3, -1)
    if change is not None:
        q, k = change(q, block.attn.q_norm), change(k, block.attn.k_norm)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    p = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return ((p if weights is None else p * weights) @ v).transpose(1, 2).flatten(2)


def linear(x, layer):
    return F.linear(x, layer.weight, layer.bias)


def mlp(block, x):
    return linear(F.gelu(linear(x, block.mlp.fc1)), block.mlp.fc2)


def test_post_norms_stand_behind_the_sums():
    block, x = block_of(norm_position="post"), torch.randn(2, 5, 16)
    h = norm(x + linear(attended(block, x), block.attn.proj), block.norm1)
    torch.testing.assert_close(block(x), norm(h + mlp(block, h), block.norm2), rtol=1e-4, atol=1e-5)
    some = torch.tensor([[3, 0], [1, 4]])
    torch.testing.assert_close(block(x, queries=some), block(x)[torch.arange(2)[:, None], some], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "head"])
def test_queries_and_keys_are_normed_over_the_width_or_each_head(kind):
    block, x = block_of(qk_norm=kind), torch.randn(2, 5, 16)
    assert block.attn.q_norm.weight.shape == ((16,) if kind == "full" else (8,))

    def change(part, layer):
        return norm(part, layer) if kind == "full" else norm(part.unflatten(-1, (2, -1)), layer).flatten(-2)

    h = x + linear(attended(block, norm(x, block.norm1), change=change), block.attn.proj)
    torch.testing.assert_close(block(x), h + mlp(block, norm(h, block.norm2)), rtol=1e-4, atol=1e-4)


def test_layer_scale_multiplies_each_branch():
    block, x = block_of(layer_scale=0.1), torch.randn(2, 5, 16)
    h = x + block.scale1.gamma * linear(attended(block, norm(x, block.norm1)), block.attn.proj)
    wanted = h + block.scale2.gamma * mlp(block, norm(h, block.norm2))
    torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-4)
    fresh = transformer(8, (2, 2), width=16, depth=2, heads=2).blocks[0]
    assert not any("gamma" in name for name, _ in fresh.named_parameters())
    fresh = MaskTransformer((2, 2), 16, 2, tokens={"codebook_size": 8}, block={"heads": 2, "layer_scale": 0.1}).blocks[
        0
    ]
    assert fresh.scale1.gamma.equal(torch.full((16,), 0.1))
    assert fresh.scale2.gamma.equal(torch.full((16,), 0.1))


def test_sub_norms_stand_before_the_last_layer_of_each_branch():
    block, x = block_of(sub_norm=True), torch.randn(2, 5, 16)
    h = x + linear(norm(attended(block, norm(x, block.norm1)), block.attn.norm), block.attn.proj)
    hidden = F.gelu(linear(norm(h, block.norm2), block.mlp.fc1))
    wanted = h + linear(norm(hidden, block.mlp.norm), block.mlp.fc2)
    torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-4)


def test_stochastic_depth_leaves_out_branches_of_whole_rows():
    """Kept branches are divided by their probability; it grows with depth from 0."""
    block, x = block_of(left_out=0.4).train(), torch.randn(1, 5, 16).expand(2000, -1, -1)
    made = block(x)
    h = x[:1] + torch.tensor([0, 1 / 0.6])[:, None, None] * linear(
        attended(block, norm(x[:1], block.norm1)), block.attn.proj
    )
    branch = mlp(block, norm(h, block.norm2)) / 0.6
    cases = torch.stack([h[0], h[1], h[0] + branch[0], h[1] + branch[1]])
    near = (made[:, None] - cases).abs().amax((2, 3))
    assert near.amin(1).max() < 1e-3
    share = near.argmin(1).bincount(minlength=4) / 2000
    torch.testing.assert_close(share, torch.tensor([0.16, 0.24, 0.24, 0.36]), atol=0.04, rtol=0)
    torch.testing.assert_close(block.eval()(x[:1]), h[:1] + 0.6 * (h[1:] - h[:1]) + mlp(
        block, norm(h[:1] + 0.6 * (h[1:] - h[:1]), block.norm2)
    ), rtol=1e-4, atol=1e-4)  # fmt: skip
    model = MaskTransformer((2, 2), 16, 3, tokens={"codebook_size": 8}, block={"heads": 2, "stochastic_depth": 0.4})
    assert [getattr(each.left_out, "p", 0.0) for each in model.blocks] == [0.0, 0.2, 0.4]


def test_attention_dropout_drops_probabilities_in_training_alone():
    block, x = block_of(attention_dropout=0.3), torch.randn(3, 5, 16)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        weights = F.dropout(torch.ones(3, 2, 5, 5), 0.3)
    h = x + linear(attended(block, norm(x, block.norm1), weights=weights), block.attn.proj)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        made = block.train()(x)
    torch.testing.assert_close(made, h + mlp(block, norm(h, block.norm2)), rtol=1e-4, atol=1e-4)
    h = x + linear(attended(block, norm(x, block.norm1)), block.attn.proj)
    torch.testing.assert_close(block.eval()(x), h + mlp(block, norm(h, block.norm2)), rtol=1e-4, atol=1e-4)


def test_attention_dropout_keeps_to_causality_and_windows():
    block, x = block_of(attention_dropout=0.3).train(), torch.randn(1, 6, 16)
    other = x.clone()
    other[:, 4:] = torch.randn(1, 2, 16)

    def run(x, **options):
        torch.manual_seed(7)
        return block(x, **options)

    torch.testing.assert_close(run(x, causal=True)[:, :4], run(other, causal=True)[:, :4])
    windows = Windows((6,), (2,))
    torch.testing.assert_close(run(x, windows=windows)[:, :4], run(other, windows=windows)[:, :4])
    assert not torch.allclose(run(x, windows=windows), block.eval()(x, windows=windows))  # and it drops there too
    assert not torch.allclose(run(x)[:, :4], run(other)[:, :4])


def test_cross_attention_sees_the_context_that_is_there():
    block, x, context = block_of(cross=True), torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    there = torch.tensor([[True, True, False, True], [False, True, False, False]])
    made = block(x, context=(context, there))
    h = x + linear(attended(block, norm(x, block.norm1)), block.attn.proj)
    rows = []
    for row, c, mask in zip(h, context, there):
        q = linear(norm(row, block.norm_cross), block.cross.q).unflatten(-1, (2, -1)).transpose(0, 1)
        k, v = (y.unflatten(-1, (2, -1)).transpose(0, 1) for y in linear(c[mask], block.cross.kv).chunk(2, -1))
        rows.append(((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(0, 1).flatten(1))
    h = h + linear(torch.stack(rows), block.cross.proj)
    torch.testing.assert_close(made, h + mlp(block, norm(h, block.norm2)), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made, block(x, context=(context, None)))


def test_the_mlm_head_is_tied_to_the_table_of_codes():
    model = randomised(num_classes=None, head_type="mlm")
    codes, masked, _ = inputs(model)
    output, head = model(codes, masked), model.head
    h = F.gelu(linear(norm(output.features, model.final_norm), head.dense))
    h = F.layer_norm(h, (48,), head.norm.weight, head.norm.bias, 1e-12)
    wanted = h @ model.embedding.codes.weight.T + head.bias
    torch.testing.assert_close(output.predictions, wanted, rtol=1e-4, atol=1e-4)
    assert sum(p.shape == (32, 48) for p in model.parameters()) == 1
    for wrong in ({"groups": 2}, {"codebook_size": 0, "token_dim": 3}):
        with pytest.raises(
            ValueError, match=r"head.type: mlm is tied to a table of codes: set tokens.codes_per_position: 1"
        ):
            randomised(num_classes=None, head_type="mlm", **wrong)
    with pytest.raises(ValueError, match=r"tied to the table of codes: set decoder.width: 0 and out_dim: 0"):
        randomised(num_classes=None, head_type="mlm", predictions=7)


# -------------------------------------------------------------------------------------------- conditions as tokens


def with_tokens(how, **options):
    """A network that takes condition tokens, and 4 of them for each of 3 rows, the last 1, 3 and 0 of which do not
    exist."""
    settings = {"num_classes": None, **options}
    flat = {"codebook_size": 32, "grid": (4, 6), "width": 48, "depth": 3, "heads": 4, **settings}
    made = upgraded(flat)
    made["conditioning"] = {"tokens": how, **made.get("conditioning", {})}
    model = MaskTransformer(**made).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model, torch.randn(3, 4, 48), Ragged.of([3, 1, 4]).valid


TOKENS = [
    ("cross_attention", {}),
    ("cross_attention", {"relative_bias": "block", "registers": 2}),
    ("in_context", {}),
    ("in_context", {"registers": 2, "relative_bias": "shared"}),
    ("in_context", {"windows": [[2, 3], [0, 0]], "registers": 1}),
    ("in_context", {"decoder_depth": 2, "registers": 1}),
    ("in_context", {"rope": False, "backend": "explicit"}),
]


@pytest.mark.parametrize(("how", "options"), TOKENS, ids=str)
def test_condition_tokens_that_do_not_exist_change_nothing(how, options):
    model, tokens, there = with_tokens(how, **options)
    codes, masked, _ = inputs(model)
    made = model(codes, masked, Conditioning(tokens=tokens, mask=there)).predictions
    other = torch.where(there[..., None], tokens, torch.randn_like(tokens))
    torch.testing.assert_close(model(codes, masked, Conditioning(tokens=other, mask=there)).predictions, made)
    for row, n in enumerate(there.sum(1).tolist()):  # and each row is as without them
        one = slice(row, row + 1)
        alone = model(codes[one], masked[one], Conditioning(tokens=tokens[one, :n])).predictions
        torch.testing.assert_close(made[one], alone, rtol=1e-4, atol=1e-4)
    changed = torch.where(there[..., None], torch.randn_like(tokens), tokens)
    seen = model(codes, masked, Conditioning(tokens=changed, mask=there))
    assert ((seen.predictions - made).abs().amax((1, 2)) > 1e-3).all()  # those that exist count


@pytest.mark.parametrize(("how", "options"), TOKENS, ids=str)
def test_condition_tokens_go_with_pruned_and_reordered_tokens(how, options):
    model, tokens, there = with_tokens(how, **options)
    codes, masked, _ = inputs(model)
    given = Conditioning(tokens=tokens, mask=there)
    whole = model(codes, masked, given).predictions
    keep = torch.stack([torch.randperm(24) for _ in range(3)])
    at, rows = keep[:, :5], torch.arange(3)[:, None]
    for more in ({}, {"keep": keep}):
        asked = model(codes, masked, given, predict_at=at, **more).predictions
        torch.testing.assert_close(asked, whole[rows, at], rtol=1e-4, atol=1e-4)
