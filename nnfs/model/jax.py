"""The engine in JAX: the network's step as one function that XLA compiles, for the first device that JAX has.

It is there for devices that only JAX reaches, a TPU for instance; on a CPU or a GPU the other engines are faster. Only
the network runs in JAX. Features, mixing and entropy coding stay on the CPU (`nnfs.codec.neural`), as with torch.

The operators are those of `nnfs.model.forward`, except that attention takes all columns of a call at once. Products and
scores are int8 with int32 sums. Attention sums values in float32 of the highest precision, below 2^24. Sums of
squares need 64 bits (`jax_enable_x64`). A device may emulate float64, so its roots are corrected in integers.

XLA compiles for each shape. Lanes are therefore rounded up to a power of two, and a call has one column or as many as
the engine was made for; what is computed beside the wanted columns and lanes is not used.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from nnfs.model import fixedpoint as u
from nnfs.model.architecture import CANDIDATES, Architecture
from nnfs.model.features import Features, room
from nnfs.model.weights import Product, Weights

jax.config.update("jax_enable_x64", True)  # before the first array

UNSEEN = -(1 << 30)  # the score of what is not in the window


class _Product(NamedTuple):
    """One product on the device."""

    weight: Any  # (outputs, inputs) int8
    multiplier: Any  # (outputs,) int32
    shift: Any  # () int32


class _Layer(NamedTuple):
    """One layer on the device."""

    qkv: _Product
    out: _Product
    up: _Product
    down: _Product
    distance: Any  # (heads, window) int32


class _Network(NamedTuple):
    """All weights and tables on the device."""

    inputs: Any
    ngrams: tuple[Any, ...]
    layers: tuple[_Layer, ...]
    head: _Product
    biases: Any
    attention_table: Any
    frequency_table: Any


class JaxModel:
    """A model's weights on JAX's first device; engines of any number of lanes share it."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

        def product(p: Product) -> _Product:
            return _Product(jnp.asarray(p.weight), jnp.asarray(p.multiplier), jnp.int32(p.shift))

        layers = tuple(
            _Layer(product(own.qkv), product(own.out), product(own.up), product(own.down), jnp.asarray(own.distance))
            for own in weights.layers
        )
        self.network = _Network(
            jnp.asarray(weights.inputs), tuple(map(jnp.asarray, weights.ngrams)), layers, product(weights.head),
            jnp.asarray(weights.biases), jnp.asarray(weights.attention_table), jnp.asarray(weights.frequency_table),
        )  # fmt: skip

    def engine(self, lanes: int, columns: int = 1) -> JaxEngine:
        return JaxEngine(self, lanes, columns)


class JaxEngine:
    """The network for `lanes` lanes side by side, from their first column on, at most `columns` columns in one call.

    Keys and values (layers, lanes, kv_heads, ring, head) are rings of window - 1 + `columns` columns: those of column
    t are at t mod ring, so the new ones of a call replace only what none of its queries sees.
    """

    def __init__(self, model: JaxModel, lanes: int, columns: int = 1) -> None:
        a = model.weights.architecture
        self.model, self.lanes, self.columns, self.known = model, lanes, columns, 0
        self._lanes = 1 << (lanes - 1).bit_length()
        cache = (a.layers, self._lanes, a.kv_heads, a.window - 1 + columns, a.head)
        self._keys, self._values = jnp.zeros(cache, jnp.int8), jnp.zeros(cache, jnp.int8)
        self._given = room(columns, self._lanes)
        self._found = np.zeros((columns * lanes, 256), np.uint32)

    def forward(self, f: Features) -> NDArray[np.uint32]:
        """Return the frequencies (columns lanes, 256) for the features of some columns, (columns, lanes, ...).

        Fewer lanes than the engine has are its first ones: the others have ended, and are stepped all the same. The
        result is valid until the next call.
        """
        columns, lanes = f.rows.shape[:2]
        for own, new in zip(self._given, f, strict=True):
            np.asarray(own)[:columns, :lanes] = new
        given = self._given.columns(0, 1 if columns == 1 else self.columns)
        network, architecture = self.model.network, self.model.weights.architecture
        found, self._keys, self._values = _step(
            architecture, network, self._keys, self._values, np.int32(self.known), Features(*map(jnp.array, given))
        )
        self.known += columns
        result = self._found[: columns * lanes]
        result.reshape(columns, lanes, 256)[:] = np.asarray(found).reshape(-1, self._lanes, 256)[:columns, :lanes]
        return result


def isqrt(n: Any) -> Any:
    """Return the floor of the square root of int64 n < 2^56, on a device whose float64 is good for 30 bits or more."""
    root = jnp.floor(jnp.sqrt(n.astype(jnp.float64))).astype(jnp.int64)
    root = root - (root * root > n)
    return root + ((root + 1) * (root + 1) <= n)


def _norm(x: Any) -> Any:
    """Return the RMSNorm (int8) of (rows, width) int32 residuals."""
    wide = x.astype(jnp.int64)
    root = jnp.maximum(isqrt((wide * wide).sum(-1, keepdims=True) << 8), 16)
    inverse = u.norm_numerator(x.shape[-1]) // root
    return jnp.clip((wide * inverse + (1 << 27)) >> 28, -u.ACT_LIMIT, u.ACT_LIMIT).astype(jnp.int8)


def _times(x: Any, p: _Product) -> Any:
    """Return (rows, outputs) int32, in the unit that the multipliers were made for, of (rows, inputs) int8."""
    sums = lax.dot_general(x, p.weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    if pre := u.pre_shift(p.weight.shape[1]):
        sums = (sums + (1 << (pre - 1))) >> pre
    return (sums * p.multiplier + (jnp.int32(1) << (p.shift - 1))) >> p.shift


@partial(jax.jit, static_argnums=0)
def _step(a: Architecture, w: _Network, keys: Any, values: Any, known: Any, f: Any) -> tuple[Any, Any, Any]:
    """Return the frequencies (columns lanes, 256) uint32 of some columns, and the new keys and values."""
    columns, lanes = f.rows.shape[:2]
    x = w.inputs[f.rows].sum(-2, dtype=jnp.int32)
    x += jnp.concatenate([table[f.ngrams[..., k]] for k, table in enumerate(w.ngrams)], -1)
    x = x.reshape(columns * lanes, a.width) << u.EMBEDDING_SHIFT
    places = _places(a, known, columns, keys.shape[-2])
    new_keys, new_values = [], []
    for k, layer in enumerate(w.layers):
        act = jnp.clip(_times(_norm(x), layer.qkv), -u.ACT_LIMIT, u.ACT_LIMIT).astype(jnp.int8)
        attended, own_keys, own_values = _attend(a, act, keys[k], values[k], layer.distance, w.attention_table, places)
        new_keys.append(own_keys)
        new_values.append(own_values)
        x = jnp.clip(x + _times(attended, layer.out), -u.RESIDUAL_LIMIT, u.RESIDUAL_LIMIT)
        hidden = jnp.clip(_times(_norm(x), layer.up), 0, u.HIDDEN_LIMIT)
        squared = (hidden * hidden + (1 << (u.SQUARE_SHIFT - 1))) >> u.SQUARE_SHIFT
        x = jnp.clip(x + _times(squared.astype(jnp.int8), layer.down), -u.RESIDUAL_LIMIT, u.RESIDUAL_LIMIT)
    logits = _times(_norm(x), w.head)
    row, proposed = jnp.arange(columns * lanes)[:, None], f.candidates.reshape(-1, CANDIDATES).astype(jnp.int32)
    logits = logits.at[row, proposed].add(w.biases[f.buckets.reshape(-1, CANDIDATES)])
    below = jnp.minimum((logits.max(-1, keepdims=True) - logits) >> u.LOGIT_SHIFT, u.TABLE - 1)
    return (w.frequency_table[below] + 1).astype(jnp.uint32), jnp.stack(new_keys), jnp.stack(new_values)


def _places(a: Architecture, known: Any, columns: int, ring: int) -> tuple[Any, Any, Any]:
    """Return each new column's place in the ring; how far each place lies back from each query; and if it is seen."""
    new, steps = known + jnp.arange(columns, dtype=jnp.int32), jnp.arange(ring, dtype=jnp.int32)
    last = new[-1]
    column = last - (last - steps) % ring  # what stands at each place
    back = new[:, None] - column
    return new % ring, jnp.clip(back, 0, a.window - 1), (back >= 0) & (back < a.window) & (column >= 0)


def _attend(
    a: Architecture, act: Any, keys: Any, values: Any, distance: Any, table: Any, places: tuple[Any, Any, Any]
) -> tuple[Any, Any, Any]:
    """Return the attended int8 (rows, queries) of the int8 queries, keys and values `act`, and the ring with them.

    Letters of the sums: l lanes, k kv_heads, g queries of one of these, c columns, r places of the ring, h head.
    """
    place, back, seen = places
    columns, lanes = len(place), keys.shape[0]
    queries, own = a.heads * a.head, a.kv_heads * a.head
    q = act[:, :queries].reshape(columns, lanes, a.kv_heads, a.heads // a.kv_heads, a.head)
    k, v = (act[:, at : at + own].reshape(columns, lanes, a.kv_heads, a.head) for at in (queries, queries + own))
    keys = keys.at[:, :, place].set(k.transpose(1, 2, 0, 3))
    values = values.at[:, :, place].set(v.transpose(1, 2, 0, 3))
    scores = jnp.einsum("clkgh,lkrh->lkgcr", q, keys, preferred_element_type=jnp.int32)
    scores = jnp.where(seen, scores + distance[:, back].reshape(a.kv_heads, -1, *back.shape), UNSEEN)
    below = jnp.minimum((scores.max(-1, keepdims=True) - scores) >> u.SCORE_SHIFT, u.TABLE - 1)
    p = jnp.where(seen, table[below], 0).astype(jnp.float32)
    highest = lax.Precision.HIGHEST
    total = jnp.einsum("lkgcr,lkrh->clkgh", p, values.astype(jnp.float32), precision=highest).astype(jnp.int32)
    den = p.sum(-1).astype(jnp.int32).transpose(3, 0, 1, 2)[..., None]
    attended = (2 * total + den) // (2 * den)
    return attended.reshape(columns * lanes, queries).astype(jnp.int8), keys, values
