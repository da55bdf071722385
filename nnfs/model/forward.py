"""The network's forward pass, normative: integer arithmetic as plain torch operators, in one file to read.

`Reference.forward` takes the features of some columns to frequencies. `nnfs.model.features` makes the indices that it
looks up, `nnfs.model.architecture` holds the sizes, `nnfs.model.fixedpoint` the unit and limit of each integer. The
engines (`cpu`, `vnni`, `native`, `cuda`) do the same faster; where one differs, the engine is wrong.

It runs wherever torch runs, on many columns at once or one by one: the cache of keys and values is the same. Products
run on int8 units (`int8_product`) or in float32 (`float_product`); both are exact, so they differ in speed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnfs.model import fixedpoint as u
from nnfs.model.weights import Product, Weights

Multiply = Callable[[Tensor, Tensor], Tensor]


def int8_product(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply (rows, inputs) int8 by (outputs, inputs) int8 to (rows, outputs) int32, on int8 units."""
    return torch._int_mm(x, weight.t())


def float_product(x: Tensor, weight: Tensor) -> Tensor:
    """Do as `int8_product` in float32, which holds every such sum exactly while inputs <= 1040."""
    return (x.float() @ weight.t().float()).int()


def isqrt(n: Tensor) -> Tensor:
    """Return the floor of the square root of int64 n < 2^52: float64 holds n, and its root is correctly rounded."""
    return n.double().sqrt().floor().long()


def norm(x: Tensor) -> Tensor:
    """Return the RMSNorm (int8) of (rows, width) int32 residuals: ACT_UNIT x / sqrt(mean of squares), clamped."""
    wide = x.long()
    root = isqrt(wide.square().sum(-1, keepdim=True) << 8).clamp_min(16)  # 16 sqrt(sum)
    inverse = torch.div(u.norm_numerator(x.shape[-1]), root, rounding_mode="floor")
    return ((wide * inverse + (1 << 27)) >> 28).clamp(-u.ACT_LIMIT, u.ACT_LIMIT).to(torch.int8)


class TorchProduct:
    """One product on a device."""

    def __init__(self, product: Product, device: str, multiply: Multiply) -> None:
        self.weight = torch.from_numpy(product.weight).to(device)
        self.multiplier = torch.from_numpy(product.multiplier).to(device)
        self.pre, self.shift, self.multiply = product.pre, product.shift, multiply

    def __call__(self, x: Tensor) -> Tensor:
        """Return (rows, outputs) int32, in the unit that the multipliers were made for, of (rows, inputs) int8."""
        sums = self.multiply(x, self.weight)
        if self.pre:
            sums = (sums + (1 << (self.pre - 1))) >> self.pre
        return (sums * self.multiplier + (1 << (self.shift - 1))) >> self.shift


class Reference:
    """The network for `lanes` lanes side by side, from their first column on."""

    def __init__(self, weights: Weights, lanes: int, device: str = "cpu", multiply: Multiply = float_product) -> None:
        self.a, self.lanes, self.device = weights.architecture, lanes, device

        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self.inputs, self.ngrams = tensor(weights.inputs), [tensor(table) for table in weights.ngrams]
        self.layers = [
            [TorchProduct(p, device, multiply) for p in (layer.qkv, layer.out, layer.up, layer.down)]
            for layer in weights.layers
        ]
        self.distances = [tensor(layer.distance) for layer in weights.layers]
        self.head, self.biases = TorchProduct(weights.head, device, multiply), tensor(weights.biases)
        self.attention_table, self.frequency_table = tensor(weights.attention_table), tensor(weights.frequency_table)
        a = self.a
        self.past = torch.zeros(a.layers, 0, lanes, 2, a.kv_heads, a.head, dtype=torch.int32, device=device)

    def forward(self, rows: Tensor, ngrams: Tensor, candidates: Tensor, buckets: Tensor) -> Tensor:
        """Return the frequencies (columns, lanes, 256) int32 for the features of some columns (columns, lanes, ...)."""
        columns = rows.shape[0]
        x = self.inputs[rows.long()].int().sum(-2)
        x += torch.cat([t[ngrams[..., k].long()] for k, t in enumerate(self.ngrams)], -1).int()
        x = x.view(columns * self.lanes, -1) << u.EMBEDDING_SHIFT
        present = []
        for k, (qkv, out, up, down) in enumerate(self.layers):
            act = qkv(norm(x)).clamp(-u.ACT_LIMIT, u.ACT_LIMIT)
            attended, kv = self._attend(act, self.past[k], self.distances[k], columns)
            present.append(kv)
            x = (x + out(attended)).clamp(-u.RESIDUAL_LIMIT, u.RESIDUAL_LIMIT)
            hidden = up(norm(x)).clamp(0, u.HIDDEN_LIMIT)
            squared = (hidden * hidden + (1 << (u.SQUARE_SHIFT - 1))) >> u.SQUARE_SHIFT
            x = (x + down(squared.to(torch.int8))).clamp(-u.RESIDUAL_LIMIT, u.RESIDUAL_LIMIT)
        self.past = torch.stack(present)
        logits = self.head(norm(x)).view(columns, self.lanes, -1)
        logits.scatter_add_(-1, candidates.long(), self.biases[buckets.long()])
        below = (logits.amax(-1, keepdim=True) - logits) >> u.LOGIT_SHIFT
        return self.frequency_table[below.clamp(max=u.TABLE - 1).long()] + 1

    def _attend(self, qkv: Tensor, past: Tensor, distance: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """Return the attended int8 of (columns lanes, ...) int32, and the keys and values to keep."""
        a, lanes = self.a, self.lanes
        q, kv = torch.split(qkv, [a.heads * a.head, 2 * a.kv_heads * a.head], -1)
        q = q.view(columns, lanes, a.kv_heads, a.heads // a.kv_heads, a.head)
        kv = torch.cat((past, kv.view(columns, lanes, 2, a.kv_heads, a.head)))
        result = torch.empty(columns, lanes, a.heads * a.head, dtype=torch.int8, device=self.device)
        for t in range(columns):  # plain, not fast: one query column at a time
            end = len(kv) - columns + t + 1
            seen = kv[max(0, end - a.window) : end].long()  # (keys, lanes, 2, kv_heads, head)
            keys, values = seen.unbind(2)
            scores = (q[t].long()[None] * keys[:, :, :, None]).sum(-1)  # (keys, lanes, kv_heads, group)
            far = distance[:, : len(seen)].flip(1).t().view(len(seen), 1, a.kv_heads, -1)
            scores = scores + far
            below = ((scores.amax(0, keepdim=True) - scores) >> u.SCORE_SHIFT).clamp(max=u.TABLE - 1)
            p = self.attention_table[below].long()
            total = (p[..., None] * values[:, :, :, None]).sum(0)  # (lanes, kv_heads, group, head)
            den = p.sum(0)[..., None]
            result[t] = torch.div(2 * total + den, 2 * den, rounding_mode="floor").view(lanes, -1).to(torch.int8)
        return result.view(columns * lanes, -1), kv[-(a.window - 1) :]
