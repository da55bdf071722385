# mypy: disable-error-code="no-any-return"
"""The network in the form that learns: float parameters, rounded on the way exactly as inference rounds.

Quantisation-aware from the first step: the weights of a product are rounded to int8 with one scale for each output row,
activations to int8 with fixed units (see `nnfs.model.fixedpoint`), and gradients pass the rounding unchanged
(straight-through estimator, Bengio et al. 2013). bf16 holds every such integer exactly, so a product here sums what
inference sums.

The network: Vaswani et al. 2017 with pre-norm RMSNorm (Zhang & Sennrich 2019), grouped-query attention (Ainslie et al.
2023) over a window with a learnt bias for each head and distance (Raffel et al. 2020), squared ReLU (So et al. 2021),
hashed n-gram embeddings, and learnt biases on the bytes that the chunk's past proposes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (the customary name)
from torch import Tensor, nn

from nnfs.model.architecture import BIASES, BYTES, INPUT_ROWS, NGRAMS, Architecture
from nnfs.model.fixedpoint import ACT_UNIT, HIDDEN_UNIT, SCORE_UNIT, SQUARE_UNIT


def rounded(x: Tensor, low: float, high: float) -> Tensor:
    """Round and clamp. The gradient passes the rounding, and is 0 where the clamp acts."""
    x = x.clamp(low, high)
    return x + (x.round() - x).detach()


class Product(nn.Module):
    """`y = x W^T` of int8 activations (given as integers) and int8 weights; in real units of `1 / unit` activations."""

    def __init__(self, inputs: int, outputs: int, unit: float, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * gain * inputs**-0.5)
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.detach().abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
        integers = self.weight / scale
        integers = integers + (integers.round() - integers).detach()
        return F.linear(x, integers.to(x.dtype)) * (scale.squeeze(1) / self.unit).to(x.dtype)


def norm(x: Tensor) -> Tensor:
    """Return the RMSNorm as integers of int8: 1.0 becomes ACT_UNIT."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * ACT_UNIT
    return rounded(y, -127, 127).to(torch.bfloat16)


class Layer(nn.Module):
    """One layer: attention and feed-forward part."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        width = a.heads * a.head
        self.query = Product(a.width, width, ACT_UNIT)
        self.key_value = Product(a.width, 2 * a.kv_heads * a.head, ACT_UNIT)
        self.out = Product(width, a.width, ACT_UNIT, 0.25)
        self.up = Product(a.width, a.hidden, ACT_UNIT)
        self.down = Product(a.hidden, a.width, SQUARE_UNIT, 0.25)
        self.distance = nn.Parameter(torch.zeros(a.heads, a.window))

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend (batch, time, width) -> the same. `mask` (batch, blocks, 1, 1, window, 2 window): 0 or -inf."""
        a, (batch, time, _) = self.a, x.shape
        blocks, group = time // a.window, a.heads // a.kv_heads
        u = norm(x)
        q = rounded(self.query(u) * ACT_UNIT, -127, 127)
        kv = rounded(self.key_value(u) * ACT_UNIT, -127, 127)
        q = q.view(batch, blocks, a.window, a.kv_heads, group, a.head).permute(0, 1, 3, 4, 2, 5)
        kv = kv.view(batch, blocks, a.window, 2, a.kv_heads, a.head).permute(3, 0, 1, 4, 2, 5)
        before = F.pad(kv, (0, 0, 0, 0, 0, 0, 1, 0))[:, :, :-1]
        kv = torch.cat((before, kv), 4)  # (2, batch, blocks, kv_heads, 2 window, head)
        k, v = kv.unbind(0)
        rows = batch * blocks * a.kv_heads
        q = q.reshape(rows, group * a.window, a.head)
        scores = torch.bmm(q, k.reshape(rows, 2 * a.window, a.head).transpose(1, 2))
        scores = scores.view(batch, blocks, a.kv_heads, group, a.window, 2 * a.window).float() / SCORE_UNIT
        scores = scores + self.position_bias() + mask
        p = torch.softmax(scores, -1).to(v.dtype).view(rows, group * a.window, 2 * a.window)
        y = torch.bmm(p, v.reshape(rows, 2 * a.window, a.head))
        y = y.view(batch, blocks, a.kv_heads, group, a.window, a.head).permute(0, 1, 4, 2, 3, 5)
        return self.out(rounded(y.reshape(batch, time, a.heads * a.head), -127, 127))

    def position_bias(self) -> Tensor:
        """Return (kv_heads, group, window, 2 window): the bias of each query's distance to each key, -inf outside."""
        a = self.a
        at = torch.arange(2 * a.window, device=self.distance.device)
        distance = at[: a.window, None] + a.window - at[None]
        seen = (distance >= 0) & (distance < a.window)
        bias = self.distance[:, distance.clamp(0, a.window - 1)]
        return bias.masked_fill(~seen, float("-inf")).view(a.kv_heads, a.heads // a.kv_heads, a.window, 2 * a.window)

    def feed(self, x: Tensor) -> Tensor:
        h = rounded(self.up(norm(x)).float() * HIDDEN_UNIT, 0, 255)
        square = h.square() * (SQUARE_UNIT / HIDDEN_UNIT**2)
        return self.down((square + (square.round() - square).detach()).to(torch.bfloat16))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attend(x, mask).float()
        return x + self.feed(x).float()


class Network(nn.Module):
    """The network: from the features of a batch of rows of positions to logits."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        self.inputs = nn.Parameter(torch.randn(INPUT_ROWS, a.width) * 0.1)
        self.ngrams = nn.ParameterList(
            nn.Parameter(torch.randn(1 << a.ngram_bits, width) * 0.1) for width in a.ngram_widths
        )
        self.layers = nn.ModuleList(Layer(a) for _ in range(a.layers))
        self.head = Product(a.width, BYTES, ACT_UNIT, 0.5)
        self.biases = nn.Parameter(torch.zeros(BIASES))

    def forward(self, rows: Tensor, ngrams: Tensor, candidates: Tensor, buckets: Tensor, start: Tensor) -> Tensor:
        """Return logits (batch, time, 256). `start` (batch, time): where the position's lane begins in its row."""
        batch, time, inputs = rows.shape
        x = F.embedding_bag(rows.view(-1, inputs), self.inputs, mode="sum").view(batch, time, -1)
        x = x + torch.cat([F.embedding(ngrams[..., k], self.ngrams[k]) for k in range(len(NGRAMS))], -1)
        mask = self.mask(start)
        for layer in self.layers:
            x = layer(x, mask)
        logits = self.head(norm(x)).float()
        biases = torch.where(buckets > 0, self.biases[buckets], 0.0)
        return logits.scatter_add(-1, candidates, biases)

    def mask(self, start: Tensor) -> Tensor:
        """Return (batch, blocks, 1, 1, window, 2 window): -inf where the key lies before the query's lane, else 0."""
        window, (batch, time) = self.a.window, start.shape
        at = torch.arange(-window, time, device=start.device)
        key = at[None, : 2 * window] + at[window::window, None]  # (blocks, 2 window)
        first = start.view(batch, time // window, window, 1).clamp_min(0)
        unseen = key[None, :, None, :] < first
        return torch.zeros((), device=start.device).masked_fill(unseen, float("-inf"))[:, :, None, None]
