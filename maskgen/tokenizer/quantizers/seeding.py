"""New codes from the latents of a batch, the same in several processes as in one with the whole batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def squared_distances(z: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    """Squared distances minus ``|z|^2``, which is the same for every code."""
    return torch.addmm(codebook.square().sum(-1), z, codebook.T, alpha=-2)


def sample_latents(z: Float[Tensor, "n d"], weights: Float[Tensor, "n"], count: int) -> Float[Tensor, "m d"]:
    """Sample at most `count` of the latents of all processes, with probability proportional to `weights`.

    Latents are sampled without replacement: those with the largest ``log weight + Gumbel noise`` are taken (Efraimidis
    and Spirakis 2006). The noise is a function of the index of a latent in the global batch, so all processes agree
    with each other and with a single process. All processes use the seed of process 0.
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
    """Sample at most `count` latents that are far apart (k-means++ in `rounds` instead of `count` rounds).

    After the first round, the probability of a latent is proportional to its squared distance from those chosen so far.
    """
    count = min(count, len(z) * (dist.get_world_size() if distributed() else 1))
    chosen = sample_latents(z, torch.ones_like(z[:, 0]), -(-count // rounds))
    while len(chosen) < count:
        distance = squared_distances(z, chosen).amin(-1) + z.square().sum(-1)
        chosen = torch.cat([chosen, sample_latents(z, distance, min(-(-count // rounds), count - len(chosen)))])
    return chosen


def _gather(x: Tensor, processes: int) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(processes)]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def totals(
    z: Float[Tensor, "n d"], codes: Int[Tensor, "n"], count: int
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k d"]]:
    """For each of `count` codes, the number of latents in all processes that chose it, and the sum of these latents."""
    numbers = z.new_zeros(count).index_add_(0, codes, z.new_ones(len(codes)))
    sums = z.new_zeros(count, z.shape[1]).index_add_(0, codes, z)
    if distributed():
        dist.all_reduce(numbers)
        dist.all_reduce(sums)
    return numbers, sums


def kmeans(
    z: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"], iterations: int, chunk: int = 8192
) -> tuple[Float[Tensor, "k d"], Float[Tensor, ""]]:
    """Lloyd's algorithm over the latents of all processes, started from `centroids`.

    A centroid that is nearest to no latent moves to a latent, sampled with probability proportional to its squared
    distance from all centroids (Arthur and Vassilvitskii 2007).

    Returns:
        The centroids, and the mean squared distance of the latents before the last iteration.
    """
    error = z.new_zeros(())
    for _ in range(iterations):
        found = [squared_distances(part, centroids).min(-1) for part in z.split(chunk)]
        codes = torch.cat([part.indices for part in found])
        distance = (torch.cat([part.values for part in found]) + z.square().sum(-1)).clamp(min=0)
        error = mean(distance)
        numbers, sums = totals(z, codes, len(centroids))
        centroids = replaced(
            sums / numbers.clamp(min=1)[:, None], numbers == 0, sample_latents(z, distance, len(centroids))
        )
    return centroids, error


def replaced(
    codebook: Float[Tensor, "k d"], dead: Bool[Tensor, "k"], rows: Float[Tensor, "m d"]
) -> Float[Tensor, "k d"]:
    """Replace the i-th dead code by the i-th row, as long as there are rows, without branches."""
    turn = dead.cumsum(0) - 1
    dead = dead & (turn < len(rows))
    return torch.where(dead[:, None], rows[turn.clamp(0, len(rows) - 1)], codebook)


def mean(x: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """The mean over all processes, each of which has the same number of values."""
    total = x.mean()
    if distributed():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total


def unit(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    return F.normalize(x, dim=-1)
