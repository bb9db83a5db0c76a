"""A transformer of videos: actions beside frames, positions of time and space, masks of the future."""

import pytest
import torch

from maskgen.transformer.model import MaskTransformer

GRID = (3, 2, 4)


def model(**options):
    settings = {"codebook_size": 16, "grid": GRID, "width": 16, "depth": 2, "heads": 2, "action_dim": 2}
    made = MaskTransformer(**{**settings, **options}).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def inputs(batch=2):
    return torch.randint(16, (batch, *GRID)), torch.rand(batch, *GRID) < 0.5


def test_an_action_is_added_to_the_tokens_of_its_frame():
    """In windows of single frames each frame's predictions know of its own action alone."""
    network, (codes, masked) = model(windows=[[1, 0, 0]]), inputs()
    actions = torch.randn(2, 3, 2)
    other = actions.clone()
    other[:, 1] += 1
    a, b = (network(codes, masked, actions=x).predictions.unflatten(1, GRID) for x in (actions, other))
    assert torch.equal(a[:, [0, 2]], b[:, [0, 2]])
    assert ((a[:, 1] - b[:, 1]).abs().amax(-1) > 1e-4).all()


def test_actions_and_pruning_go_together():
    network, (codes, masked) = model(windows=[[1, 0, 0], [0, 1, 1]]), inputs()
    actions, at = torch.randn(2, 3, 2), torch.tensor([[1, 9, 20], [0, 3, 23]])
    whole = network(codes, masked, actions=actions).predictions[torch.arange(2)[:, None], at]
    torch.testing.assert_close(network(codes, masked, predict_at=at, actions=actions).predictions, whole)


@pytest.mark.parametrize("actions", [None, torch.zeros(2, 2, 2), torch.zeros(2, 3, 1)])
def test_actions_that_do_not_fit_are_refused(actions):
    with pytest.raises(ValueError, match=r"reads actions \(2, 3, 2\); got"):
        model()(*inputs(), actions=actions)


def test_actions_that_nobody_reads_are_refused():
    with pytest.raises(ValueError, match="action_dim is 0"):
        model(action_dim=0)(*inputs(), actions=torch.zeros(2, 3, 2))


def test_positions_are_the_sum_of_time_and_space():
    network = model(positions="learned_sum", rope=False, action_dim=0)
    whole = model(positions="learned", rope=False, action_dim=0)
    state = network.state_dict()
    time, space = state.pop("first_embedding"), state.pop("position_embedding")
    state["position_embedding"] = time[:, :, None, None] + space[:, None]
    whole.load_state_dict(state)
    codes, masked = inputs()
    torch.testing.assert_close(network(codes, masked).predictions, whole(codes, masked).predictions)
    with pytest.raises(ValueError, match="needs a grid of 2 axes or more"):
        model(grid=(6,), positions="learned_sum")
