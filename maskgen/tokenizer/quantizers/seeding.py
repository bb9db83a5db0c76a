"""New codes out of a batch's latents, the same in every process as in one process with the whole batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def squared_distances(z: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    """Squared distances less ``|z|^2``, which is the same for every code."""
    return torch.addmm(codebook.square().sum(-1), z, codebook.T, alpha=-2)


def draw_latents(z: Float[Tensor, "n d"], weights: Float[Tensor, "n"], count: int) -> Float[Tensor, "m d"]:
    """At most `count` of the latents of all processes, without replacement, with probability proportional to `weights`.

    A race: the latents with the largest ``log weight + Gumbel noise`` win (Efraimidis and Spirakis 2006). The noise is
    a function of a latent's place in the global batch, so that processes agree with each other and with one process.
    Several processes wait for process 0's seed.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if distributed() else (0, 1)
    seed = torch.randint(2**62, (1,))  # process 0's
    if distributed():
        seed = seed.to(z.device)
        dist.broadcast(seed, 0)
    n = len(z)
    generator = torch.Generator(z.device).manual_seed(int(seed))
    noise = torch.rand(processes * n, generator=generator, device=z.device)[rank * n : (rank + 1) * n]
    keys = weights.clamp(min=1e-12).log() - (-noise.clamp(min=1e-12).log()).log()
    keys, index = keys.topk(min(count, n))
    rows = z[index]
    if distributed():
        keys, rows = (_gather(x, processes) for x in (keys, rows))
        rows = rows[keys.topk(min(count, len(keys))).indices]
    return rows


def seeds(z: Float[Tensor, "n d"], count: int, rounds: int = 4) -> Float[Tensor, "m d"]:
    """At most `count` latents that lie apart: after the first round each is drawn with probability proportional to its
    squared distance from those already drawn (k-means++ in `rounds` instead of `count` rounds)."""
    count = min(count, len(z) * (dist.get_world_size() if distributed() else 1))
    drawn = draw_latents(z, torch.ones_like(z[:, 0]), -(-count // rounds))
    while len(drawn) < count:
        distance = squared_distances(z, drawn).amin(-1) + z.square().sum(-1)
        drawn = torch.cat([drawn, draw_latents(z, distance, min(-(-count // rounds), count - len(drawn)))])
    return drawn


def _gather(x: Tensor, processes: int) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(processes)]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def totals(
    z: Float[Tensor, "n d"], codes: Int[Tensor, "n"], count: int
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k d"]]:
    """How often each of `count` codes was chosen in all processes, and the sum of the latents that chose it."""
    numbers = z.new_zeros(count).index_add_(0, codes, z.new_ones(len(codes)))
    sums = z.new_zeros(count, z.shape[1]).index_add_(0, codes, z)
    if distributed():
        dist.all_reduce(numbers)
        dist.all_reduce(sums)
    return numbers, sums


def kmeans(
    z: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"], iterations: int, chunk: int = 8192
) -> tuple[Float[Tensor, "k d"], Float[Tensor, ""]]:
    """Lloyd's algorithm from `centroids` over the latents of all processes; also their mean squared distance before
    the last step.

    A centroid that no latent is nearest to moves to a latent, drawn with probability proportional to its squared
    distance from all centroids (Arthur and Vassilvitskii 2007).
    """
    error = z.new_zeros(())
    for _ in range(iterations):
        found = [squared_distances(part, centroids).min(-1) for part in z.split(chunk)]
        codes = torch.cat([part.indices for part in found])
        distance = (torch.cat([part.values for part in found]) + z.square().sum(-1)).clamp(min=0)
        error = mean(distance)
        numbers, sums = totals(z, codes, len(centroids))
        centroids = replaced(
            sums / numbers.clamp(min=1)[:, None], numbers == 0, draw_latents(z, distance, len(centroids))
        )
    return centroids, error


def replaced(
    codebook: Float[Tensor, "k d"], dead: Bool[Tensor, "k"], rows: Float[Tensor, "m d"]
) -> Float[Tensor, "k d"]:
    """The i-th dead code gives its place to the i-th row, as far as there are rows; branch-free."""
    turn = dead.cumsum(0) - 1
    dead = dead & (turn < len(rows))
    return torch.where(dead[:, None], rows[turn.clamp(0, len(rows) - 1)], codebook)


def mean(x: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """The mean over all processes, each with as many values."""
    total = x.mean()
    if distributed():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total


def unit(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    return F.normalize(x, dim=-1)
