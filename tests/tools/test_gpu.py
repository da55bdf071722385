"""`tools/test-gpu`: says that there is no GPU, and finds what differs."""

from __future__ import annotations

import os

import pytest

from nnfs.codec import devicechoice
from nnfs.codec.neuraldevice import DeviceCoder
from nnfs.kernels import driver
from nnfs.kernels.driver import Device
from nnfs.model import selftest
from tests.tools.kit import lib

testgpu = lib("testgpu")


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(driver, "driver", lambda: None)
    assert testgpu.main([]) == testgpu.NO_GPU
    assert "there is no NVIDIA GPU here" in capsys.readouterr().out


@pytest.fixture
def gpu(tmp_path: os.PathLike[str]) -> Device:
    found: Device = testgpu.host_device(str(tmp_path), tensor=True)
    return found


def test_what_is_right_and_what_differs(
    gpu: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = selftest.weights()
    coder = DeviceCoder(gpu, weights, b"")
    plains = list(testgpu.content(3, 300))
    assert len(set(plains)) == 3
    assert testgpu.prove(gpu, b"")
    assert testgpu.compare(coder, weights, plains)
    assert testgpu.speed(coder, 8, 200)
    assert "WRONG" not in capsys.readouterr().out
    assert not testgpu.compare(coder, selftest.weights(seed=b"others"), plains)
    monkeypatch.setattr(devicechoice, "DIGEST", "another")
    assert not testgpu.prove(gpu, b"")
    assert "WRONG" in capsys.readouterr().out
    coder.free()
