"""What runs a network: one model per device and process, one engine for each batch of lanes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nnfs.model.features import Features
from nnfs.model.weights import Weights


class Engine(Protocol):
    """The network for some lanes side by side, from their first column on."""

    lanes: int

    def forward(self, f: Features) -> NDArray[np.uint32]:
        """Features of some columns, (columns, lanes, ...), to frequencies (columns lanes, 256).

        The result is valid until the next call.
        """


class Model(Protocol):
    """A model's weights, ready for a device. Threads may share it."""

    weights: Weights

    def engine(self, lanes: int, columns: int = 1) -> Engine:
        """Return an engine for at most `columns` columns in one call."""


def open_model(weights: Weights, device: str = "cpu", product: str | None = None) -> Model:
    """Return the model on a device: "cpu", "cuda", "cuda:0". `product`: a forced choice, see `products.choose`.

    Raises `CodecError` when the device is not there or does not compute exactly, `ModelMissing` for a model that
    it cannot run.
    """
    if device == "cpu":
        from nnfs.model.cpu import CpuModel

        return CpuModel(weights, product)
    from nnfs.model.cuda import CudaModel

    return CudaModel(weights, device, product)
