"""The autoregressive baseline: causality, cached against uncached, and the decode on models with known answers."""

import inspect

import pytest
import torch

from flat import causal, labelled, transformer
from maskgen.decoding.autoregressive import decode_raster
from maskgen.pipelines.predictor import NextPredictor
from maskgen.transformer.attention import attend, attention_probabilities
from maskgen.transformer.autoregressive import CausalTransformer


def make(**options):
    settings = {"codebook_size": 16, "grid": (3, 4), "num_classes": 3, "width": 32, "depth": 2, "heads": 4}
    model = causal(**{**settings, **options}).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


OPTIONS = [{}, {"num_classes": None}, {"norm": "rms", "mlp": "gelu", "qk_norm": False}, {"grid": (12,)}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cached_steps_are_the_uncached_pass(options):
    model = make(**options)
    codes = torch.randint(16, (2, *model.grid))
    conditioning = labelled(model, torch.tensor([2, 0])) if len(model.conditioner) else None
    whole = model(codes, conditioning)
    past, conditions = model.room(2), model.prepare(conditioning, 2)
    flat = codes.flatten(1)
    steps = [model.step(flat[:, i - 1] if i else None, conditions, past) for i in range(12)]
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=0, atol=1e-12)
    assert [p.length for p in past] == [12, 12]


def test_a_token_sees_only_those_before_it():
    model = make()
    codes = torch.randint(16, (1, 3, 4))
    other = codes.clone()
    other[0, 1, 2] = (codes[0, 1, 2] + 1) % 16  # place 6
    given = labelled(model, torch.tensor([1]))
    a, b = model(codes, given), model(other, given)
    assert a[:, :7].equal(b[:, :7])
    assert (a[:, 7:] != b[:, 7:]).any(-1).all()


def test_causal_attention_is_the_masked_product():
    q, k, v = torch.randn(3, 2, 5, 4, 8, dtype=torch.float64)
    p = attention_probabilities(q, k).tril()
    expected = ((p / p.sum(-1, keepdim=True)) @ v.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(attend(q, k, v, "sdpa", causal=True), expected)
    with pytest.raises(ValueError, match="rows of one length"):
        attend(q, k, v, "packed", causal=True)


def test_as_many_weights_as_the_masked_transformer():
    size = {"codebook_size": 16, "grid": (3, 4), "num_classes": 3, "width": 32, "depth": 2, "heads": 4}
    counts = [sum(p.numel() for p in model(**size).parameters()) for model in (causal, transformer)]
    assert counts[0] == counts[1]  # a start for the mask token


def test_greedy_decode_is_the_argmax_of_the_uncached_passes():
    model, labels, n = make(), [2, 0], 12
    canvas, mask = torch.zeros(2, n, dtype=torch.long), torch.ones(2, n, dtype=torch.bool)
    made = decode_raster(
        NextPredictor(model, {"label": torch.tensor(labels)}, rows=2, guided=True),
        canvas,
        mask,
        temperature=0.0,
        guidance_scale=3.0,
    )
    codes = torch.zeros(2, n, dtype=torch.long)
    for i in range(n):
        c, u = (model(codes.view(2, 3, 4), labelled(model, torch.tensor(x)))[:, i] for x in (labels, [3, 3]))
        codes[:, i] = (u + 3.0 * (c - u)).argmax(-1)
    assert made.equal(codes)


def test_known_tokens_stay_and_seeds_repeat():
    model, n = make(num_classes=None), 12
    canvas, mask = torch.randint(16, (2, n)), torch.rand(2, n) < 0.6
    seen = []

    def run(rows, seeds):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        predict = NextPredictor(model, rows=len(rows))
        return decode_raster(
            predict, canvas[rows], mask[rows], generator=generators, callback=lambda i, t, h: seen.append((t, h))
        )

    both = run([0, 1], [5, 6])
    assert both[~mask].equal(canvas[~mask])
    assert both[1:].equal(run([1], [6]))
    assert seen[3][1][:, :4].sum() == 0
    assert seen[3][1][:, 4:].equal(mask[:, 4:])


def test_unguided_rows_are_not_doubled():
    model = make()
    given = {"label": torch.tensor([0, 1])}
    assert NextPredictor(model, given, rows=2).past[0].room.shape[1] == 2
    assert NextPredictor(model, given, rows=2, guided=True).past[0].room.shape[1] == 4


def test_it_learns():
    """Each code is the one before it plus one: a few steps are enough."""
    model = causal(8, (8,), width=32, depth=1, heads=4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        codes = (torch.randint(8, (16, 1)) + torch.arange(8)) % 8
        loss = torch.nn.functional.cross_entropy(model(codes).flatten(0, 1), codes.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    canvas, mask = torch.full((1, 8), 5), torch.arange(8)[None] > 0
    assert decode_raster(NextPredictor(model.eval()), canvas, mask, temperature=0.0).tolist() == [
        [5, 6, 7, 0, 1, 2, 3, 4]
    ]


def test_bad_input_is_explained(tmp_path):
    with pytest.raises(ValueError, match=r"width 32 over heads 3 must be .*multiple of 4"):
        make(heads=3)
    with pytest.raises(ValueError, match=r"set block\.norm_position: pre"):
        CausalTransformer(
            8,
            (8,),
            width=32,
            depth=1,
            block={"heads": 4, "norm_position": "post"},
            conditioning={"inputs": {"label": {"type": "class", "count": 3}}},
        )
    with pytest.raises(ValueError, match="takes no label: it is unconditional; leave label out"):
        NextPredictor(make(num_classes=None), {"label": torch.tensor([0])})
    with pytest.raises(ValueError, match=r"this model was made for \(3, 4\)"):
        make()(torch.zeros(1, 4, 4, dtype=torch.long))
    canvas, mask = torch.zeros(1, 12, dtype=torch.long), torch.ones(1, 11, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"canvas \(1, 12\) and mask \(1, 11\) must have one shape"):
        inspect.unwrap(decode_raster)(NextPredictor(make()), canvas, mask)  # past beartype, as in production


def test_a_saved_copy_is_the_same(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    codes = torch.randint(16, (1, 3, 4))
    loaded = CausalTransformer.from_pretrained(tmp_path)  # as float32
    torch.testing.assert_close(loaded(codes).double(), model(codes), rtol=1e-4, atol=1e-4)
