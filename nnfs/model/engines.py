"""The engines that run a network: one model per device and process, one engine for each batch of lanes."""

from __future__ import annotations

import contextlib
import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nnfs.constants import OTHER_ENGINE, PRODUCT_VARIABLE
from nnfs.errors import ModelMissing
from nnfs.kernels import library
from nnfs.model.features import Features
from nnfs.model.weights import Weights


class Engine(Protocol):
    """The network for some lanes side by side, from their first column on."""

    lanes: int

    def forward(self, f: Features) -> NDArray[np.uint32]:
        """Return the frequencies (columns lanes, 256) for the features of some columns, (columns, lanes, ...).

        Fewer lanes than the engine has are its first ones: the others have ended. The result is valid until the next
        call.
        """


class Model(Protocol):
    """A model's weights, ready for a device. Threads may share it."""

    weights: Weights

    def engine(self, lanes: int, columns: int = 1) -> Engine:
        """Return an engine for at most `columns` columns in one call."""


def open_model(weights: Weights, device: str = "cpu", product: str | None = None) -> Model:
    """Return the model on a device: "cpu", "cuda", "cuda:0".

    `product` forces a choice: on the CPU "native" (in C, `nnfs.kernels`), "vnni" (by numba, where the processor has the
    instructions) or "float" (by numpy); on a GPU "int8" or "float" (by torch, see `matmul.choose`). They differ in
    speed only: the first that is there and has a kernel for the network's sizes is taken. "another" is the second:
    "vnni" behind "native", else "float". "jax" takes JAX, on the device that JAX has chosen (its variable
    JAX_PLATFORMS), whichever `device` is.
    Raises `CodecError` when the device is not there or does not compute exactly, `ModelMissing` for a model that
    it cannot run, `ModuleNotFoundError` where a library is missing.
    """
    product = product or os.environ.get(PRODUCT_VARIABLE) or None
    if product == "jax":
        return _in_jax(weights)
    if device == "cpu":
        return _on_cpu(weights, product)
    from nnfs.model.cuda import CudaModel

    return CudaModel(weights, device, product)


def _in_jax(weights: Weights) -> Model:
    try:
        from nnfs.model.jax import JaxModel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"no {error.name}: pip install 'nnfs[jax]'", name=error.name) from error
    return JaxModel(weights)


def _on_cpu(weights: Weights, product: str | None) -> Model:
    if product in (None, "native"):
        from nnfs.model.native import NativeModel
        from nnfs.model.selftest import native_level

        level = native_level()
        if product:
            return NativeModel(weights, level)
        with contextlib.suppress(ModelMissing):  # no kernel for these sizes: another engine has one
            if level:
                return NativeModel(weights, level)
    if product == OTHER_ENGINE and library.library() is None:
        product = "float"
    if product in (None, OTHER_ENGINE, "vnni"):
        from nnfs.model import vnni

        if product == "vnni":
            return vnni.VnniModel(weights)
        with contextlib.suppress(ModelMissing):
            if vnni.available():
                return vnni.VnniModel(weights)
    from nnfs.model.cpu import CpuModel

    return CpuModel(weights, "float" if product == OTHER_ENGINE else product)
