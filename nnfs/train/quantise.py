"""From the parameters that learn to the integers that are stored: the same rounding that training saw."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnfs.model import weights as stored
from nnfs.model.fixedpoint import (
    ACT_UNIT,
    ATTENTION_TOP,
    EMBEDDING_UNIT,
    FREQUENCY_TOP,
    HIDDEN_UNIT,
    LOGIT_UNIT,
    MAX_SHIFT,
    MULTIPLIER_LIMIT,
    RESIDUAL_UNIT,
    SCORE_UNIT,
    SQUARE_UNIT,
    TABLE,
    pre_shift,
)
from nnfs.train.network import Layer, Network


def quantised(network: Network) -> stored.Weights:
    """Return the weights that inference runs."""
    layers = cast("list[Layer]", list(network.layers))
    return stored.Weights(
        network.a,
        _embedding(network.inputs),
        tuple(_embedding(table) for table in network.ngrams),
        tuple(
            stored.Layer(
                _product(torch.cat((layer.query.weight, layer.key_value.weight)), ACT_UNIT, ACT_UNIT),
                _product(layer.out.weight, ACT_UNIT, RESIDUAL_UNIT),
                _product(layer.up.weight, ACT_UNIT, HIDDEN_UNIT),
                _product(layer.down.weight, SQUARE_UNIT, RESIDUAL_UNIT),
                _integers(layer.distance * SCORE_UNIT, 1 << 24).astype(np.int32),
            )
            for layer in layers
        ),
        _product(network.head.weight, ACT_UNIT, LOGIT_UNIT),
        _integers(network.biases * LOGIT_UNIT, 1 << 24).astype(np.int32),
        exp_table(ATTENTION_TOP),
        exp_table(FREQUENCY_TOP),
    )


def restored(w: stored.Weights) -> Network:
    """Return a network that learns, with the weights of a model: what `quantised` makes of it is that model again."""
    network = Network(w.architecture)
    queries = w.architecture.heads * w.architecture.head
    with torch.no_grad():
        network.inputs.copy_(_float(w.inputs, EMBEDDING_UNIT))
        for table, integers in zip(network.ngrams, w.ngrams, strict=True):
            table.copy_(_float(integers, EMBEDDING_UNIT))
        for layer, of_layer in zip(cast("list[Layer]", list(network.layers)), w.layers, strict=True):
            qkv = _real(of_layer.qkv, ACT_UNIT, ACT_UNIT)
            layer.query.weight.copy_(qkv[:queries])
            layer.key_value.weight.copy_(qkv[queries:])
            layer.out.weight.copy_(_real(of_layer.out, ACT_UNIT, RESIDUAL_UNIT))
            layer.up.weight.copy_(_real(of_layer.up, ACT_UNIT, HIDDEN_UNIT))
            layer.down.weight.copy_(_real(of_layer.down, SQUARE_UNIT, RESIDUAL_UNIT))
            layer.distance.copy_(_float(of_layer.distance, SCORE_UNIT))
        network.head.weight.copy_(_real(w.head, ACT_UNIT, LOGIT_UNIT))
        network.biases.copy_(_float(w.biases, LOGIT_UNIT))
    return network


def _float(integers: NDArray[Any], unit: float) -> Tensor:
    return torch.from_numpy(integers.astype(np.float64) / unit)


def _real(product: stored.Product, unit_in: float, unit_out: float) -> Tensor:
    """Return the weights of a product as floats: the inverse of `_product`, up to the rounding of multipliers."""
    scale = product.multiplier * 2.0 ** -(product.shift + product.pre) * unit_in / unit_out
    return torch.from_numpy(product.weight * scale[:, None])


def exp_table(top: int) -> NDArray[np.int32]:
    """Return round(top * exp(-i/64)) for i < TABLE, by decimal arithmetic: the same on every machine."""
    with localcontext() as context:
        context.prec = 40
        exact = (Decimal(top) * (Decimal(-i) / 64).exp() for i in range(TABLE))
        return np.array([int(value.to_integral_value()) for value in exact], np.int32)


def _integers(x: Tensor, limit: int) -> NDArray[np.float64]:
    return x.detach().double().round().clamp(-limit, limit).cpu().numpy()


def _embedding(table: Tensor) -> NDArray[np.int8]:
    return _integers(table * EMBEDDING_UNIT, 127).astype(np.int8)


def _product(weight: Tensor, unit_in: float, unit_out: float) -> stored.Product:
    """Return a product: each row scaled to +-127, with the multipliers that bring its sums to `unit_out`."""
    weight = weight.detach().double()
    scale = weight.abs().amax(1).clamp_min(1e-8) / 127
    ratio = scale.cpu().numpy() * unit_out / unit_in * 2.0 ** pre_shift(weight.shape[1])
    shift = min(MAX_SHIFT, math.floor(math.log2(MULTIPLIER_LIMIT / ratio.max())))
    if shift < 1:
        raise ValueError("the weights have grown too large to be stored: train with more weight decay")
    return stored.Product(
        _integers(weight / scale[:, None], 127).astype(np.int8),
        np.rint(ratio * 2.0**shift).astype(np.int32),
        shift,
    )
