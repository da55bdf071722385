"""The CUDA engine: the network's step as torch operators on one device, a single column captured as a CUDA graph.

The operators are those of `nnfs.model.forward`, except that attention takes all columns of a call at once. With the
device "cpu" the same code runs without a graph, which is how it is tested where there is no GPU.

Products run on int8 units, attention in float32 (sums below 2^24, TF32 off). Sums of squares need 64 bits, all else 32.

It is used where the kernels that do all of the work on the device (`nnfs.codec.neuraldevice`) cannot be. Only the
network runs on the device here. Features, mixing and entropy coding stay on the CPU (`nnfs.codec.neural`), in threads
with a stream each, so that one batch's network and another's mixing overlap.

Streams and graph have been written without a GPU at hand. `nnfs.model.selftest` runs them, against the digest that all
engines must give, before anything is coded on a device; "auto" stays on the CPU when that fails.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnfs.errors import CodecError, ModelMissing
from nnfs.model import fixedpoint
from nnfs.model.architecture import CANDIDATES, INPUTS, NGRAMS
from nnfs.model.features import Features
from nnfs.model.forward import norm
from nnfs.model.matmul import Kind, batched_is_exact, choose
from nnfs.model.weights import Layer, Product, Weights

MIN_LANES, LANE_STEP = 24, 8  # int8 units want more than 16 rows
UNSEEN = -(1 << 30)  # added to the score of what is not in the window

_FIELDS = (INPUTS, len(NGRAMS), CANDIDATES, CANDIDATES)  # widths of the features, in the order of `Features`

_capturing = threading.Lock()  # a process captures one graph at a time


class _Product:
    """One product on the device."""

    def __init__(self, product: Product, device: str, kind: Kind) -> None:
        self.weight = kind(product.weight, device)
        self.multiplier = torch.from_numpy(product.multiplier).to(device)
        self.pre, self.shift = product.pre, product.shift

    def __call__(self, x: Tensor) -> Tensor:
        """Return (rows, outputs) int32, in the unit that the multipliers were made for, of (rows, inputs) int8."""
        sums = self.weight(x)
        if self.pre:
            sums.add_(1 << (self.pre - 1)).bitwise_right_shift_(self.pre)
        return sums.mul_(self.multiplier).add_(1 << (self.shift - 1)).bitwise_right_shift_(self.shift)


class _Layer:
    """One layer's weights on the device."""

    def __init__(self, layer: Layer, device: str, kind: Kind) -> None:
        self.qkv, self.out, self.up, self.down = (
            _Product(product, device, kind) for product in (layer.qkv, layer.out, layer.up, layer.down)
        )
        self.distance = torch.from_numpy(layer.distance).to(device)


class CudaModel:
    """A model's weights on a device; engines of any number of lanes share it."""

    def __init__(self, weights: Weights, device: str = "cuda", product: str | None = None) -> None:
        """Raise `CodecError` if the device has no exact product, `ModelMissing` for sizes it cannot take."""
        a = weights.architecture
        if any(size % 8 for size in (a.width, a.hidden, a.heads * a.head, a.kv_heads * a.head)):
            raise ModelMissing("the CUDA engine wants sizes that are multiples of 8")
        self.weights, self.device = weights, device
        kind = choose(device, product)
        if not batched_is_exact(device):
            raise CodecError(f"float32 products are not exact on {device}: the neural codec cannot run on it")
        self.inputs = torch.from_numpy(weights.inputs).to(device)
        self.ngrams = [torch.from_numpy(table).to(device) for table in weights.ngrams]
        self.layers = [_Layer(layer, device, kind) for layer in weights.layers]
        self.head = _Product(weights.head, device, kind)
        self.biases = torch.from_numpy(weights.biases).to(device)
        self.attention_table = torch.from_numpy(weights.attention_table).to(device).float()
        self.frequency_table = torch.from_numpy(weights.frequency_table).to(device) + 1
        if device != "cpu":
            torch.cuda.synchronize(device)  # other streams will read them

    def engine(self, lanes: int, columns: int = 1) -> CudaEngine:
        return CudaEngine(self, lanes, columns)


class CudaEngine:
    """The network for `lanes` lanes side by side, from their first column on, at most `columns` columns in one call.

    Keys and values (lanes kv_heads, ring, head) are rings of window - 1 + `columns` columns: those of column t, counted
    from the lane's start, are at t mod ring, so the new ones of a call replace only what none of its queries sees.
    """

    def __init__(self, model: CudaModel, lanes: int, columns: int = 1) -> None:
        a = self.a = model.weights.architecture
        self.model, self.lanes, self.columns = model, lanes, columns
        self.all_lanes = max(MIN_LANES, -(-lanes // LANE_STEP) * LANE_STEP)  # further lanes, whose results are not used
        self.ring = a.window - 1 + columns
        self.cuda = model.device != "cpu"
        self.stream = torch.cuda.Stream(model.device) if self.cuda else None  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0
        with self._on_stream():
            cache = (a.layers, self.all_lanes * a.kv_heads, self.ring, a.head)
            self.keys, self.values = (torch.zeros(cache, device=model.device) for _ in range(2))
            self.known = self._integers()
            self.steps = torch.arange(self.ring, dtype=torch.int32, device=model.device)
            self.features = self._integers(columns, self.all_lanes, sum(_FIELDS))
            self.frequencies = self._integers(self.all_lanes, 256)  # of a single column
        self.features_here = self._integers_here(columns, self.all_lanes, sum(_FIELDS))
        self.frequencies_here = self._integers_here(columns * lanes, 256)

    def _integers(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=self.model.device)

    def _integers_here(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32, pin_memory=self.cuda)

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        if self.stream is None:
            yield
            return
        with torch.cuda.device(self.stream.device), torch.cuda.stream(self.stream):
            yield

    def forward(self, f: Features) -> NDArray[np.uint32]:
        """Return the frequencies (columns lanes, 256) for the features of some columns, (columns, lanes, ...).

        Fewer lanes than the engine has are its first ones: the others have ended, and are stepped all the same. The
        result is valid until the next call.
        """
        columns, lanes = f.rows.shape[:2]
        filled = self.features_here.numpy()[:columns, :lanes]
        np.concatenate(f, axis=-1, out=filled, casting="unsafe")
        rows = columns * lanes
        with torch.inference_mode(), self._on_stream():
            self.features[:columns].copy_(self.features_here[:columns], non_blocking=True)
            if columns == 1:
                self._single()
                frequencies = self.frequencies
            else:
                frequencies = self._network(columns)
            frequencies = frequencies.view(columns, self.all_lanes, 256)[:, :lanes].reshape(rows, 256)
            self.frequencies_here[:rows].copy_(frequencies, non_blocking=True)
            if self.stream is not None:
                self.stream.synchronize()
        result: NDArray[np.uint32] = self.frequencies_here.numpy()[:rows].view(np.uint32)
        return result

    def _single(self) -> None:
        """Step one column: the first time to warm up, from the second on by a graph."""
        self.calls += 1
        if self.graph is None and self.cuda and self.calls > 1:
            with _capturing:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                    self.frequencies.copy_(self._network(1))
            self.graph = graph
        if self.graph is not None:
            self.graph.replay()
        else:
            self.frequencies.copy_(self._network(1))

    def _network(self, columns: int) -> Tensor:
        """Step `columns` columns, whose features are on the device. Returns (columns all_lanes, 256) int32."""
        model, limit = self.model, fixedpoint.RESIDUAL_LIMIT
        f = self.features[:columns].view(columns * self.all_lanes, -1)
        rows, ngrams, candidates, buckets = torch.split(f, list(_FIELDS), -1)
        x = self._embed(rows, ngrams)
        distance, seen = self._distances(columns)
        for k, layer in enumerate(model.layers):
            x = (x + layer.out(self._attend(k, norm(x), columns, distance, seen))).clamp_(-limit, limit)
            hidden = layer.up(norm(x)).clamp_(0, fixedpoint.HIDDEN_LIMIT)
            squared = (
                hidden.mul_(hidden)
                .add_(1 << (fixedpoint.SQUARE_SHIFT - 1))
                .bitwise_right_shift_(fixedpoint.SQUARE_SHIFT)
            )
            x = (x + layer.down(squared.to(torch.int8))).clamp_(-limit, limit)
        self.known.add_(columns)
        logits = model.head(norm(x))
        biases = model.biases.index_select(0, buckets.reshape(-1)).view(buckets.shape)
        logits.scatter_add_(1, candidates.long(), biases)
        below = (logits.amax(1, keepdim=True) - logits).bitwise_right_shift_(fixedpoint.LOGIT_SHIFT)
        below.clamp_(max=fixedpoint.TABLE - 1)
        return model.frequency_table.index_select(0, below.view(-1)).view(-1, 256)

    def _embed(self, rows: Tensor, ngrams: Tensor) -> Tensor:
        """Return the residual stream (rows, width) int32 that the features begin."""
        tables = self.model.ngrams
        x = self.model.inputs.index_select(0, rows.reshape(-1)).view(*rows.shape, -1).sum(1, dtype=torch.int32)
        x += torch.cat([table.index_select(0, ngrams[:, k].contiguous()) for k, table in enumerate(tables)], 1)
        return x.bitwise_left_shift_(fixedpoint.EMBEDDING_SHIFT)

    def _distances(self, columns: int) -> tuple[Tensor, Tensor]:
        """Return (columns, ring): the distance of each place of the ring from each query, and whether it is seen."""
        last = self.known + (columns - 1)
        column = last - torch.remainder(last - self.steps[: self.ring], self.ring)  # what stands at each place
        distance = (self.known + self.steps[:columns])[:, None] - column
        seen = (distance >= 0) & (distance < self.a.window) & (column >= 0)
        return distance.clamp_(0, self.a.window - 1), seen

    def _attend(self, k: int, u: Tensor, columns: int, distance: Tensor, seen: Tensor) -> Tensor:
        """Attention of layer k: normed rows (rows, width) int8 to (rows, queries) int8."""
        a, model, lanes = self.a, self.model, self.all_lanes
        layer, group, pairs = model.layers[k], a.heads // a.kv_heads, lanes * a.kv_heads
        qkv = layer.qkv(u).clamp_(-fixedpoint.ACT_LIMIT, fixedpoint.ACT_LIMIT).float()
        q, key, value = torch.split(qkv, [a.heads * a.head, a.kv_heads * a.head, a.kv_heads * a.head], 1)
        place = torch.remainder(self.known + self.steps[:columns], self.ring).long()
        for ring, new in ((self.keys[k], key), (self.values[k], value)):
            ring.index_copy_(1, place, new.reshape(columns, pairs, a.head).transpose(0, 1))
        q = q.reshape(columns, pairs, group, a.head).permute(1, 2, 0, 3).reshape(pairs, group * columns, a.head)
        scores = torch.bmm(q, self.keys[k].transpose(1, 2)).int().view(lanes, a.heads, columns, self.ring)
        far = layer.distance.index_select(1, distance.view(-1)).view(a.heads, columns, self.ring)
        scores += far.masked_fill_(~seen, UNSEEN)
        below = (scores.amax(-1, keepdim=True) - scores).bitwise_right_shift_(fixedpoint.SCORE_SHIFT)
        below.clamp_(max=fixedpoint.TABLE - 1)
        weights = model.attention_table.index_select(0, below.view(-1)).view(below.shape).mul_(seen)
        weights = weights.view(pairs, group * columns, self.ring)
        den = weights.sum(-1, keepdim=True).int()
        total = torch.bmm(weights, self.values[k]).int()
        mean = torch.div(total.mul_(2).add_(den), den * 2, rounding_mode="floor").to(torch.int8)
        mean = mean.view(pairs, group, columns, a.head).permute(2, 0, 1, 3)
        return mean.reshape(columns * lanes, a.heads * a.head)
