"""A decode in slices of positions gives the codes of a whole one, in bounded memory."""

import memory
import pytest
import torch

from given import seeded
from maskgen.decoding import slices
from maskgen.decoding.loop import decode
from maskgen.pipelines import predictor
from maskgen.pipelines.base import given_of
from maskgen.pipelines.predictor import Predictor
from maskgen.transformer.model import MaskTransformer

CODES, SIDE, ROWS = 24, 4, 3


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    inputs = {"label": {"type": "class", "count": 5}}
    shape = {"block": {"heads": 2}, "tokens": {"codebook_size": CODES}, "conditioning": {"inputs": inputs}}
    made = MaskTransformer((SIDE, SIDE), width=16, depth=2, **shape).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def opened(partial):
    """A canvas and its mask: all hidden, or each row another number of tokens."""
    canvas = torch.randint(CODES, (ROWS, SIDE**2), generator=seeded(1))
    hidden = torch.arange(SIDE**2) < torch.tensor([[16], [9], [5]])
    return canvas, hidden if partial else torch.ones_like(hidden)


@pytest.mark.parametrize("partial", [False, True], ids=["blank", "partial"])
@pytest.mark.parametrize("order", ["confidence", "halton", "random"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("per_slice", [0, 3])
def test_slices_change_no_code(network, monkeypatch, partial, order, scale, per_slice):
    """With one position per slice (fewer logits allowed than one position has) and with three."""
    widths, sample = [], slices.SlicedPredictions.sample
    canvas, mask = opened(partial)

    def spied(self, *given):
        widths.append(self.width)
        return sample(self, *given)

    def codes():
        predict = Predictor(network, (SIDE, SIDE), given_of([0, 3, 3]), ROWS)
        options = {"steps": 4, "order": order, "guidance_scale": scale, "grid": (SIDE, SIDE)}
        return decode(predict, canvas, mask, generator=seeded(), **options)

    monkeypatch.setattr(slices.SlicedPredictions, "sample", spied)
    whole = codes()
    assert not widths
    most = per_slice * CODES * ROWS * (1 if scale == 1 else 2) or CODES // 2
    for module in (slices, predictor):
        monkeypatch.setattr(module, "MOST", most)
    assert codes().equal(whole)
    assert widths
    assert set(widths) == {per_slice or 1}


def test_no_slice_is_larger_than_allowed(network, monkeypatch):
    """The head never makes more than `MOST` logits at once."""
    made, predicted = [], network.predicted

    def counted(h):
        logits = predicted(h)
        made.append(logits.numel())
        return logits

    monkeypatch.setattr(predictor, "MOST", 5 * CODES * ROWS)
    monkeypatch.setattr(network, "predicted", counted)
    canvas, mask = opened(False)
    decode(Predictor(network, (SIDE, SIDE), given_of([0, 1, 2]), ROWS), canvas, mask, steps=2, generator=seeded())
    assert max(made) == 5 * CODES * ROWS


@pytest.mark.bench
def test_the_memory_of_a_small_decode():
    """256 tokens and 4096 codes: all logits are 64 MiB, and a few copies of them exist at once."""
    found = memory.measured(side=16, codes=2**12, batch=16, steps=2)
    assert found["logits_mib"] == 64
    assert found["peak_mib"] < 6 * found["logits_mib"]
    assert found["codes_used"] > 100
