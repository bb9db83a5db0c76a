"""MAGE's training forward pass in its authors' formulation (the code of arXiv:2211.09117), rewritten for timing.

It keeps what costs time there: one ratio per batch, boolean gathers and scatters, attention as an explicit softmax of
float32 scores with their maximum subtracted, a head over 2025 words at every position, and a loss at every position
that is masked afterwards. No line is copied. With the authors' weights, codes and noise it reproduces their recorded
logits and loss (`tests/golden/mage/pretrain`, LTH14/mage).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LABELS, FAKE_CLASS = 1000, 1100  # words of the vocabulary behind the codes; the word at the class token's place
DROPPED = 0.5


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        with torch.autocast(x.device.type, enabled=False):
            scores = (q.float() @ k.float().transpose(-2, -1)) * (width // self.heads) ** -0.5
        scores = scores - scores.max(-1, keepdim=True)[0]
        weights = self.dropout(scores.softmax(-1))
        return self.dropout(self.out((weights @ v).transpose(1, 2).reshape(b, n, width)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, eps=1e-6), Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.dropout(self.down(self.dropout(F.gelu(self.up(self.norm2(x))))))


class MAGE(nn.Module):
    """Codes (b, n) to the loss.

    Args:
        codes: of the tokenizer; the vocabulary has 1001 words more, the last is the mask token.
        n: tokens of an image.
        width, depth, heads: of the encoder; the decoder has its own.
        dropout: 0.1 in theirs, everywhere.
    """

    def __init__(
        self,
        codes: int,
        n: int,
        width: int,
        depth: int,
        heads: int,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.codes, self.mask_word = codes, codes + LABELS
        self.fake_class = codes + FAKE_CLASS - 1024
        self.words, self.positions = nn.Embedding(codes + LABELS + 1, width), nn.Embedding(n + 1, width)
        self.embedding_norm, self.dropout = nn.LayerNorm(width, eps=1e-6), nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.decoder_positions = nn.Parameter(torch.randn(1, n + 1, decoder_width) * 0.02)
        self.decoder_blocks = nn.ModuleList(Block(decoder_width, decoder_heads, dropout) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.to_word, self.word_norm = nn.Linear(decoder_width, width), nn.LayerNorm(width)
        self.word_bias = nn.Parameter(torch.zeros(1, 1, codes + LABELS + 1))

    def forward(self, codes: Tensor, ratio: float, noise: Tensor | None = None) -> Tensor:
        """The loss, with `ratio` of each row masked: the places of least `noise` (b, n)."""
        logits, masked = self.logits(codes, ratio, noise)
        log_p = logits[:, 1:, : self.codes].reshape(codes.numel(), -1).log_softmax(-1)
        nll = -log_p.gather(-1, codes.flatten()[:, None])[:, 0]
        each = (0.9 * nll - 0.1 * log_p.mean(-1)).view(codes.shape) * masked[:, 1:]
        return each.sum() / masked[:, 1:].sum()

    def logits(self, codes: Tensor, ratio: float, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (b, 1 + n, words) and, as floats (b, 1 + n), what is masked; the class token stands first."""
        b, n = codes.shape
        if noise is None:
            noise = torch.rand(b, n, device=codes.device)
        ordered = noise.sort(1)[0]
        first = codes.new_zeros(b, 1)
        dropped, masked = (
            torch.cat([first, noise <= ordered[:, count - 1 : count]], 1).float()
            for count in (math.ceil(n * DROPPED), math.ceil(n * ratio))
        )
        words = torch.cat([first + self.fake_class, codes], 1)
        words[masked.nonzero(as_tuple=True)] = self.mask_word
        x = self.words(words) + self.positions(torch.arange(n + 1, device=codes.device)[None])
        x = self.dropout(self.embedding_norm(x))
        x = x[(1 - dropped).nonzero(as_tuple=True)].reshape(b, -1, x.shape[-1])
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        pad = x[:, :1].repeat(1, n + 1, 1)
        full = pad.clone()
        full[(1 - dropped).nonzero(as_tuple=True)] = x.reshape(-1, x.shape[-1])
        x = torch.where(masked[..., None].bool(), pad, full) + self.decoder_positions
        for block in self.decoder_blocks:
            x = block(x)
        x = self.word_norm(F.gelu(self.to_word(self.decoder_norm(x))))
        return x @ self.words.weight.detach().T + self.word_bias, masked
