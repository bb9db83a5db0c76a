"""Models with known answers and canvases, for tests of the decode loop."""

import torch

CODES = 17


def oracle(answer):
    """A model that is certain of `answer` (b, n)."""

    def predict(step):
        logits = torch.full((*step.positions.shape, CODES), -40.0)
        return logits.scatter(2, answer.gather(1, step.positions)[..., None], 40.0)

    return predict


def noise(dtype=torch.float32):
    """A model that knows nothing, the same at each call."""

    def predict(step):
        generator = torch.Generator().manual_seed(step.number)
        table = torch.randn(step.tokens.shape[1], CODES, generator=generator)
        return table[step.positions].to(dtype)

    return predict


def canvas_and_mask():
    """4 rows of 24 codes, of which none, one, 9 and all are hidden."""
    canvas = torch.randint(CODES, (4, 24))
    mask = torch.zeros(4, 24, dtype=torch.bool)
    for row, count in enumerate([0, 1, 9, 24]):
        mask[row, torch.randperm(24)[:count]] = True
    return canvas, mask


def score_by_code(tokens, drawn):
    """A critic that likes high codes."""
    return tokens.float()


def options_of(order):
    """All that it needs, for a grid of 4x6."""
    return {"critic": score_by_code if order == "critic" else None, "grid": (4, 6), "order": order}
