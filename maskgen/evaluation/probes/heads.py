"""Linear heads on frozen features: MAE's protocol, and CAPI's sweep of many heads at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn
from tqdm import tqdm

from maskgen.evaluation.classifier import split
from maskgen.evaluation.probes.features import Features
from maskgen.evaluation.probes.result import (
    Number,
    ProbeResult,
    chance_of,
    check_classes,
    check_numbers,
    check_pair,
    counts_of,
    differences,
    hits,
    notes_of,
    score,
)

FIXED = "none: features are computed once (published: random crops and flips, new ones each epoch)"
# The sum of rate x trust / (1 - momentum) tells how many times their size LARS can move the weights; about 225 on
# ImageNet.
SHORT_REACH = 5.0

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
WEIGHT_DECAYS = (5e-4, 1e-3, 5e-2)


# --------------------------------------------------------------------------------------------------------- schedule


def warmup_cosine(done: Number, total: Number, warmup: Number, floor: Number = 0) -> float:
    """The learning rate as a share of its peak: linear from 0 over `warmup`, then half a cosine to `floor` at `total`.

    `done`, `total` and `warmup` have the same unit, (fractions of) epochs or steps.
    """
    if done < warmup:
        return done / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (total - warmup)))


def shuffled(n: int, batch: int, steps: int, generator: Generator) -> Iterator[Int64[Tensor, "b"]]:
    """`steps` batches of indices below `n`; each epoch has a new order and drops its incomplete last batch."""
    while True:
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - batch + 1, batch):
            if steps == 0:
                return
            steps -= 1
            yield order[start : start + batch]


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum (You et al. 2017, arXiv:1708.03888), as in MAE's linear probe.

    For a parameter with at least 2 dimensions, the gradient g + `weight_decay` w is scaled by `trust` |w| /
    |g + `weight_decay` w| (and not scaled where either norm is 0). Other parameters use their plain gradient. The rate
    multiplies the momentum: v <- `momentum` v + g, w <- w - lr v.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                g = w.grad
                if w.ndim >= 2:
                    g = g + group["weight_decay"] * w
                    scale = group["trust"] * w.norm() / g.norm()
                    g = g * scale.where(scale.isfinite() & (scale > 0), torch.ones_like(scale))
                v = self.state[w].get("v")
                self.state[w]["v"] = v = g.clone() if v is None else v.mul_(group["momentum"]).add_(g)
                w.sub_(v, alpha=group["lr"])


# ----------------------------------------------------------------------------------------------------------- linear


def linear(
    train: Features,
    test: Features,
    *,
    epochs: int = 90,
    warmup_epochs: Number = 10,
    batch_size: int = 16384,
    blr: Number = 0.1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ProbeResult:
    """MAE's linear probe (He et al. 2021, arXiv:2111.06377, table 10): batch norm without parameters, one linear layer.

    LARS has momentum .9, trust 1e-3, no weight decay and the rate `blr` x batch / 256 with a warm-up from 0 and half a
    cosine. The test set is evaluated once, after the last epoch.

    In each step LARS moves weights by a small share of their size, at a rate made for ImageNet's 7,000 steps of 16,384
    images. On a few thousand images the head hardly leaves its initial weights (``reach`` in the settings), and the
    result then has a note about it.

    Args:
        batch_size: at most the number of training images; a larger value is reduced, and the learning rate with it.
        blr: the base learning rate, for 256 images.

    Raises:
        ValueError: the two sets do not belong together, training has a single class, or a number is out of its range.
    """
    classes = check_pair(train, test)
    check_numbers(epochs=epochs, blr=blr)
    check_numbers(1, batch_size=batch_size)
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"warmup_epochs must be from 0 to below epochs={epochs}, got {warmup_epochs}")
    batch = min(batch_size, len(train))
    per_epoch = len(train) // batch
    steps = epochs * per_epoch
    rates = [blr * batch / 256 * warmup_cosine(i / per_epoch, epochs, warmup_epochs) for i in range(steps)]
    x, y = train.values.to(device), train.labels.to(device)
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm1d(x.shape[1], affine=False, eps=1e-6)
    layer = nn.utils.skip_init(nn.Linear, x.shape[1], classes)  # its own initialisation would use the global generator
    with torch.no_grad():
        nn.init.trunc_normal_(layer.weight, std=0.01, generator=generator)
        layer.bias.zero_()
    head = nn.Sequential(norm, layer).to(device).train()
    optimizer = LARS(layer.parameters(), lr=0.0)
    for rate, index in zip(
        tqdm(rates, desc="linear probe", unit=" steps", disable=not progress),
        shuffled(len(y), batch, steps, generator),
    ):
        optimizer.param_groups[0]["lr"] = rate
        index = index.to(device)
        loss = F.cross_entropy(head(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        scores = torch.cat([head(part.to(device)).cpu() for part in test.values.split(4096)])
    reach = sum(rates) * 1e-3 / (1 - 0.9)
    notes = ["augmentation is fixed: features are computed once"]
    if reach < SHORT_REACH:
        notes.append(
            f"the head can move by only {reach:.2g} times its own size (about 225 on ImageNet), so the optimizer and "
            "not the features may limit this accuracy; raise blr or epochs, or use the sweep"
        )
    settings: dict[str, Any] = {
        "head": "BatchNorm1d(affine=False, eps=1e-6, momentum=0.1), Linear (weights from a normal of std 0.01)",
        "optimizer": "LARS",
        "momentum": 0.9,
        "trust": 1e-3,
        "weight_decay": 0.0,
        "blr": blr,
        "learning_rate": blr * batch / 256,
        "batch_size": batch,
        "epochs": epochs,
        "warmup_epochs": warmup_epochs,
        "steps": steps,
        "schedule": "linear from 0, then cosine to 0",
        "reach": reach,
        "augmentation": FIXED,
        "tested": "once, after the last epoch",
        "seed": seed,
        "features": train.facts,
    }
    published = {"epochs": (epochs, 90), "warmup_epochs": (warmup_epochs, 10), "blr": (blr, 0.1)}
    published["batch_size"] = (batch, 16384)
    return ProbeResult(
        "linear",
        score(scores, test.labels),
        chance_of(test.labels),
        settings,
        {},
        counts_of(train, test),
        [*notes, *differences(published), *notes_of(train.labels, test.labels)],
    )


# ------------------------------------------------------------------------------------------------------------ sweep


def train_heads(
    x: Float[Tensor, "n d"],
    y: Int64[Tensor, "n"],
    classes: int,
    grid: Sequence[tuple[Number, Number]],
    *,
    batch_size: int,
    steps: int,
    warmup: int,
    generator: Generator,
    progress: bool = True,
) -> tuple[Float[Tensor, "h d k"], Float[Tensor, "h 1 k"]]:
    """Weights and biases of linear heads, one per (learning rate, weight decay), trained on the same batches.

    Every head has its own AdamW (betas .9 and .95), and all start from the same weights. The heads are one batched
    matrix product, and the update is written out because torch's AdamW has one rate per tensor. Biases do not decay.
    """
    rates, decays = torch.tensor(grid, dtype=torch.float32, device=x.device).T[:, :, None, None]
    weight = nn.init.trunc_normal_(torch.empty(x.shape[1], classes), std=0.02, generator=generator).to(x)
    weight = weight.expand(len(grid), -1, -1).clone().requires_grad_()
    bias = torch.zeros(len(grid), 1, classes).to(x).requires_grad_()
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in (weight, bias)]
    for step, index in enumerate(
        tqdm(shuffled(len(y), batch_size, steps, generator), "sweep", steps, unit=" steps", disable=not progress)
    ):
        index = index.to(x.device)
        # the warm-up ends at its last step and the cosine at the very last, so both reach their end values exactly
        if step < warmup:
            rate = rates * (step / max(1, warmup - 1))
        else:
            rate = rates * warmup_cosine(step - warmup, max(1, steps - warmup - 1), 0)
        logits = torch.baddbmm(bias, x[index].expand(len(grid), -1, -1), weight)
        # the sum over heads keeps their gradients independent
        loss = F.cross_entropy(logits.flatten(0, 1), y[index].repeat(len(grid))) * len(grid)
        gradients = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            weight *= 1 - rate * decays
            for p, g, (m, v) in zip((weight, bias), gradients, moments):
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.05)
                p -= rate * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
    return weight.detach(), bias.detach()


def sweep(
    train: Features,
    test: Features,
    *,
    learning_rates: Sequence[Number] = LEARNING_RATES,
    weight_decays: Sequence[Number] = WEIGHT_DECAYS,
    steps: int = 12_500,
    batch_size: int = 1024,
    holdout: float = 0.1,
    standardise: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ProbeResult:
    """CAPI's linear probe (Darcet et al. 2025, arXiv:2502.08769): the best of one head per learning rate and decay.

    The heads train with AdamW (betas .9 and .95), the rate x batch / 256, a warm-up over a tenth of the steps and half
    a cosine to 0. A share of the training images is held out and chooses the head with the best top-1 accuracy, and
    among equals the lowest loss. This head is evaluated once on the test set, without further training.

    Args:
        batch_size: at most the number of images trained on; a larger value is reduced, and the learning rates with it.
        holdout: share of each class that is held out, in (0, 0.5].
        standardise: scale each feature to mean 0 and standard deviation 1 on the images trained on. This is not in the
            paper; it is for features that do not have the scale of a layer norm, which the learning rates assume.

    Raises:
        ValueError: the two sets do not belong together, training has a single class, too few images can be held out,
            or a number is out of its range.
    """
    classes = check_pair(train, test)
    check_numbers(steps=steps, batch_size=batch_size)
    if not learning_rates or not weight_decays or min(learning_rates) <= 0 or min(weight_decays) < 0:
        raise ValueError(
            f"a sweep needs learning rates above 0 and weight decays of at least 0, got {list(learning_rates)} and "
            f"{list(weight_decays)}"
        )
    kept, held = split(train.labels, holdout, seed)
    check_classes(train.labels[kept])
    batch, warmup = min(batch_size, len(kept)), steps // 10
    mean, deviation = torch.zeros(()), torch.ones(())
    if standardise:
        mean = train.values[kept].mean(dim=0)
        deviation = train.values[kept].std(dim=0, correction=0).clamp(min=1e-6)
    x, y = ((train.values - mean) / deviation).to(device), train.labels.to(device)
    x_test = ((test.values - mean) / deviation).to(device)
    grid = [(lr * batch / 256, decay) for lr in learning_rates for decay in weight_decays]
    weight, bias = train_heads(
        x[kept.to(device)],
        y[kept.to(device)],
        classes,
        grid,
        batch_size=batch,
        steps=steps,
        warmup=warmup,
        generator=torch.Generator().manual_seed(seed),
        progress=progress,
    )
    top1, losses = torch.zeros(len(grid), dtype=torch.float64), torch.zeros(len(grid), dtype=torch.float64)
    for index in held.to(device).split(1024):
        logits = torch.baddbmm(bias, x[index].expand(len(grid), -1, -1), weight)
        losses += (torch.logsumexp(logits, -1) - logits[..., torch.arange(len(index)), y[index]]).sum(-1).double().cpu()
        top1 += hits(logits, y[index], 1).sum(-1).double().cpu()
    # NaN losses (of a too high rate) come last
    order = sorted(range(len(grid)), key=lambda i: (-float(top1[i]), float(losses[i].nan_to_num(nan=math.inf))))
    best = order[0]
    pairs = [(lr, decay) for lr in learning_rates for decay in weight_decays]
    scores = torch.cat([part @ weight[best] + bias[best] for part in x_test.split(4096)]).cpu()
    notes = ["augmentation is fixed: features are computed once"]
    if standardise:
        notes.append("features are standardised, unlike in the paper")
    if len(learning_rates) > 1 and pairs[best][0] in (min(learning_rates), max(learning_rates)):
        notes.append(
            f"the chosen learning rate {pairs[best][0]:g} is at the end of the grid; a wider grid may do better"
        )
    published: dict[str, tuple[Any, Any]] = {
        "steps": (steps, 12_500),
        "batch_size": (batch, 1024),
        "holdout": (holdout, 0.1),
    }
    published |= {
        "learning_rates": (tuple(learning_rates), LEARNING_RATES),
        "weight_decays": (tuple(weight_decays), WEIGHT_DECAYS),
    }
    settings: dict[str, Any] = {
        "head": "Linear (weights from a normal of std 0.02)",
        "optimizer": "AdamW (betas 0.9, 0.95)",
        "learning_rates": list(learning_rates),
        "weight_decays": list(weight_decays),
        "rate_scale": batch / 256,
        "batch_size": batch,
        "steps": steps,
        "warmup_steps": warmup,
        "schedule": "linear from 0, then cosine to 0",
        "standardise": standardise,
        "holdout": holdout,
        "augmentation": FIXED,
        "tested": "once, with the chosen head, which is not trained again",
        "seed": seed,
        "features": train.facts,
    }
    share = top1 / len(held)
    chosen = {
        "learning_rate": pairs[best][0],
        "weight_decay": pairs[best][1],
        "held_out_top1": float(share[best]),
        "by": f"top-1 of {len(held)} held-out training images, among equals by the lowest loss",
        "heads": [[*pair, round(float(value), 6)] for pair, value in zip(pairs, share)],
    }
    counts = {**counts_of(train, test), "trained_on": len(kept), "held_out": len(held), "heads": len(grid)}
    notes += [*differences(published), *notes_of(train.labels[kept], test.labels)]
    return ProbeResult("sweep", score(scores, test.labels), chance_of(test.labels), settings, chosen, counts, notes)
