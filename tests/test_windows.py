"""Attention in windows: the same as full attention that is masked outside them."""

import pytest
import torch

from flat import transformer
from maskgen.transformer.attention import attend
from maskgen.transformer.windows import Windows

GRID = (3, 4, 6)
WINDOWS = {"spatial": (1, 4, 6), "columns": (3, 2, 3), "time": (3, 1, 1), "cubes": (1, 2, 2)}
ALTERNATING = [[1, 0, 0], [0, 2, 3]]


def heads(n, batch=2):
    return torch.randn(3, batch, n, 4, 8).unbind(0)


def model(**options):
    settings = {"codebook_size": 32, "grid": GRID, "width": 32, "depth": 3, "heads": 2, "windows": ALTERNATING}
    made = transformer(**{**settings, **options}).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def inputs(batch=2, grid=GRID):
    return torch.randint(32, (batch, *grid)), torch.rand(batch, *grid) < 0.5


def masked_full(q, k, v, barred):
    """By its definition, in float64."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(barred, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.double()).float()


@pytest.mark.parametrize("backend", ["sdpa", "explicit", "packed"])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_masked_full_attention(name, prefix, backend):
    windows = Windows(GRID, WINDOWS[name], prefix)
    q, k, v = heads(72 + prefix)
    barred = windows.barred()
    torch.testing.assert_close(windows.attend(q, k, v, backend), masked_full(q, k, v, barred), rtol=1e-5, atol=1e-5)
    assert int((~barred[-1]).sum()) == prefix + torch.tensor(WINDOWS[name]).prod()


def test_the_mask_says_who_shares_a_window():
    barred = Windows((2, 2, 4), (1, 2, 2)).barred().view(2, 2, 4, 2, 2, 4)
    for a in torch.cartesian_prod(*[torch.arange(n) for n in (2, 2, 4)]).tolist():
        for b in torch.cartesian_prod(*[torch.arange(n) for n in (2, 2, 4)]).tolist():
            together = a[0] == b[0] and a[2] // 2 == b[2] // 2
            assert bool(barred[(*a, *b)]) != together


def test_one_window_is_full_attention():
    q, k, v = heads(72)
    assert Windows.of(GRID, [0, 0, 0]) is None
    assert torch.equal(Windows(GRID, GRID).attend(q, k, v), attend(q, k, v))


OPTIONS = [
    {},
    {"registers": 2},
    {"num_classes": 5, "condition": "in_context"},
    {"num_classes": 5, "rope": False, "positions": "learned_sum"},
    {"windows": [[1, 0, 0], [0, 1, 1], [0, 0, 0]], "registers": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_model_in_windows_is_the_model_with_masked_full_attention(options, monkeypatch):
    network, (codes, masked) = model(**options), inputs()
    found = network(codes, masked).predictions

    def full(self, q, k, v, backend="auto"):
        return masked_full(q, k, v, self.barred())

    monkeypatch.setattr(Windows, "attend", full)
    torch.testing.assert_close(found, network(codes, masked).predictions, rtol=1e-4, atol=1e-4)
    without = model(**{**options, "windows": []})
    without.load_state_dict(network.state_dict())
    assert (found - without(codes, masked).predictions).abs().max() > 1e-2


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_predictions_asked_for_are_those_of_all(options):
    network, (codes, masked) = model(**options), inputs()
    at = torch.stack([torch.randperm(72)[:9] for _ in range(2)])
    whole = network(codes, masked).predictions[torch.arange(2)[:, None], at]
    torch.testing.assert_close(network(codes, masked, predict_at=at).predictions, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_all_tokens_kept_in_another_order_change_nothing(options):
    """The tokens kept cannot be cut into windows: there a mask takes their place."""
    network, (codes, masked) = model(**options), inputs()
    keep = torch.stack([torch.randperm(72) for _ in range(2)])
    whole = network(codes, masked).predictions[torch.arange(2)[:, None], keep[:, :5]]
    found = network(codes, masked, predict_at=keep[:, :5], keep=keep).predictions
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_a_relative_bias_of_zero_changes_nothing():
    network, (codes, masked) = model(relative_bias="block"), inputs()
    for table in network.relative:
        torch.nn.init.zeros_(table.table)
    without = model()
    without.load_state_dict(network.state_dict(), strict=False)
    torch.testing.assert_close(
        network(codes, masked).predictions, without(codes, masked).predictions, rtol=1e-4, atol=1e-4
    )


def test_a_token_reaches_its_window_alone():
    """One spatial block: a frame says nothing to another; a second block, of columns, carries it on."""
    codes, masked = inputs(1)
    other = codes.clone()
    other[0, 0] = (codes[0, 0] + 1) % 32
    seeing = torch.zeros_like(masked)
    for depth, others_change in ((1, False), (2, True)):
        network = model(depth=depth)
        change = (network(codes, seeing).predictions - network(other, seeing).predictions).abs().amax(-1).view(GRID)
        assert (change[0] > 0).all()
        assert bool((change[1:] > 0).any()) == others_change


def test_gradients_are_those_of_masked_full_attention():
    windows, tensors = Windows(GRID, WINDOWS["columns"], 1), [x.requires_grad_() for x in heads(73)]
    weights = torch.randn(2, 73, 4, 8)
    found = torch.autograd.grad((windows.attend(*tensors) * weights).sum(), tensors)
    wanted = torch.autograd.grad((masked_full(*tensors, windows.barred()) * weights).sum(), tensors)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_layers_and_attention_know_of_windows():
    network, (codes, _) = model(registers=1), inputs()
    layers, attention = network.layers_and_attention(codes)
    output = network(codes, torch.zeros_like(codes, dtype=torch.bool), attention=True)
    torch.testing.assert_close(layers[-1][:, 1:], output.features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(attention, output.attention, rtol=1e-4, atol=1e-5)


def test_longer_videos_keep_the_windows_of_a_whole_axis():
    network = model()
    codes, masked = inputs(1, (5, 4, 6))
    assert network(codes, masked).predictions.shape == (1, 120, 32)


@pytest.mark.parametrize("window", [[1, 3, 3], [2, 2], [4, 0, 0]])
def test_windows_that_do_not_tile_are_refused(window):
    with pytest.raises(ValueError, match="do not tile a grid of"):
        model(windows=[window])
