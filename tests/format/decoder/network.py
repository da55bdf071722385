"""Sections 6.4 to 6.7: the network."""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from tests.format.decoder.features import Row
from tests.format.decoder.models import Model

Ints = NDArray[np.int64]


def norm(x: Ints) -> Ints:
    """6.5: root mean square norm."""
    root = max(isqrt(int((x * x).sum()) << 8), 16)
    inverse = isqrt(1024 * len(x) << 64) // root
    clipped: Ints = np.clip(x * inverse + (1 << 27) >> 28, -127, 127)
    return clipped


class Product:
    """6.4: a matrix and the scale of its sums."""

    def __init__(self, model: Model, name: str) -> None:
        self.weight = model.tensors[f"{name}.weight"].astype(np.float64)  # sums below 2^24 are exact in it
        self.multiplier = model.tensors[f"{name}.multiplier"].astype(np.int64)
        self.shift = int(model.tensors[f"{name}.shift"][0])
        self.pre = max((self.weight.shape[1] * 16129).bit_length() - 16, 0)

    def __call__(self, x: Ints) -> Ints:
        sums: Ints = (self.weight @ x.astype(np.float64)).astype(np.int64)
        sums = sums + (1 << self.pre >> 1) >> self.pre
        return sums * self.multiplier + (1 << self.shift - 1) >> self.shift


class Network:
    """The weights, ready to be used."""

    def __init__(self, model: Model) -> None:
        self.a, self.t = model.architecture, model.tensors
        self.layers = [
            [Product(model, f"layers.{k}.{part}") for part in ("qkv", "out", "up", "down")]
            for k in range(self.a["layers"])
        ]
        self.head = Product(model, "head")

    def lane(self) -> Lane:
        """A lane before its first column."""
        return Lane(self)


class Lane:
    """One lane's keys and values."""

    def __init__(self, network: Network) -> None:
        self.n = network
        self.keys: list[list[Ints]] = [[] for _ in network.layers]
        self.values: list[list[Ints]] = [[] for _ in network.layers]

    def embed(self, row: Row) -> Ints:
        """6.4: the residual stream at the start."""
        t = self.n.t
        x: Ints = t["inputs"][row.inputs].astype(np.int64).sum(0)
        x += np.concatenate([t[f"ngrams.{k}"][at] for k, at in enumerate(row.ngrams)])
        return x << 4

    def attend(self, k: int, act: Ints) -> Ints:
        """6.6: attention of one layer."""
        a, t = self.n.a, self.n.t
        heads, kv_heads, size = a["heads"], a["kv_heads"], a["head"]
        queries = act[: heads * size].reshape(heads, size)
        own_keys, own_values = act[heads * size :].reshape(2, kv_heads, size)
        keys, values = self.keys[k], self.values[k]
        keys.append(own_keys)
        values.append(own_values)
        del keys[: -a["window"]], values[: -a["window"]]
        distance = t[f"layers.{k}.distance"].astype(np.int64)
        out = []
        for h in range(heads):
            kv = h // (heads // kv_heads)
            back = np.arange(len(keys) - 1, -1, -1)  # oldest first
            score = np.array([int(queries[h] @ key[kv]) for key in keys]) + distance[h, back]
            weight = t["attention_table"][np.minimum(score.max() - score >> 6, 1023)].astype(np.int64)
            total = sum(w * value[kv] for w, value in zip(weight, values, strict=True))
            den = weight.sum()
            out.append((2 * total + den) // (2 * den))
        return np.concatenate(out)

    def forward(self, row: Row) -> list[int]:
        """256 frequencies."""
        t, limit = self.n.t, (1 << 18) - 1
        x = self.embed(row)
        for k, (qkv, out, up, down) in enumerate(self.n.layers):
            act = np.clip(qkv(norm(x)), -127, 127)
            x = np.clip(x + out(self.attend(k, act)), -limit, limit)
            hidden = np.clip(up(norm(x)), 0, 255)
            x = np.clip(x + down(hidden * hidden + 256 >> 9), -limit, limit)
        logits = self.n.head(norm(x))
        for byte, bucket in zip(row.candidates, row.buckets, strict=True):
            logits[byte] += t["biases"][bucket]
        self.logits = logits
        below = np.minimum(logits.max() - logits >> 2, 1023)
        return [int(f) + 1 for f in t["frequency_table"][below]]
