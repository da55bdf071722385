"""The GPU's kernels: the compilers see them, and the host's structures are theirs."""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import subprocess

import pytest

from nnfs.errors import BuildFailed, CodecError
from nnfs.kernels import build, compiled, hosted, launches
from nnfs.kernels.driver import Device, Driver, Module
from nnfs.kernels.library import Network

NVCC = shutil.which("nvcc") or next(iter(glob.glob("/usr/local/cuda/bin/nvcc")), None)


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize(("tensor", "versions"), [(True, (80, 90, 120)), (False, (90,))])
def test_nvcc_compiles_them(tensor: bool, versions: tuple[int, ...], tmp_path: os.PathLike[str]) -> None:
    named = [f"-gencode=arch=compute_{version},code=sm_{version}" for version in versions]
    out = os.path.join(tmp_path, "device.fatbin")
    options = ["-std=c++17", "--fmad=false", "-Werror", "all-warnings", *(() if tensor else (compiled.DP4A,))]
    main = os.path.join(compiled.SOURCES, compiled.MAIN)
    done = subprocess.run([NVCC or "", "-fatbin", *options, *named, main, "-o", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert os.path.getsize(out) > 10000


def test_nvrtc_compiles_them(tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC, where it is there, makes a cubin that is kept and sound."""
    try:
        compiled.compiler()
    except BuildFailed:
        pytest.skip("NVRTC is not installed")
    monkeypatch.setenv(build.FOLDER, str(tmp_path))
    image = compiled.cubin(90, tensor=True)
    assert image.startswith(b"\x7fELF")
    monkeypatch.setattr(compiled.Compiler, "compile", lambda *_: pytest.fail("compiled again"))
    assert compiled.cubin(90, tensor=True) == image


class Recorder:
    """A compiler that says what it was asked for."""

    version = "1"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def compile(self, text: str, chosen: list[str]) -> bytes:
        assert "#include" not in text.replace("#include <", "")
        self.asked.append(chosen)
        return b"image"


def test_what_is_compiled_is_kept(tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setenv(build.FOLDER, str(tmp_path))
    monkeypatch.setattr(compiled, "compiler", lambda: recorder)
    for _ in range(2):
        assert compiled.cubin(90, tensor=True) == b"image"
        assert compiled.cubin(90, tensor=False) == b"image"
    assert [chosen[0] for chosen in recorder.asked] == ["--gpu-architecture=sm_90"] * 2
    assert [compiled.DP4A in chosen for chosen in recorder.asked] == [False, True]
    with pytest.raises(BuildFailed, match="no instruction"):
        compiled.cubin(75, tensor=True)
    for name in os.listdir(tmp_path):  # damaged files are not taken
        with open(os.path.join(tmp_path, name), "r+b") as file:
            file.write(b"\0")
    assert compiled.cubin(90, tensor=True) == b"image"
    assert len(recorder.asked) == 3


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Device:
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    return Device(Driver(hosted.library(str(tmp_path_factory.mktemp("hosted")))))


def test_the_structures_are_those_of_the_kernels(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Network(width=64, layers=2, heads=4, kv_heads=1, hidden=128)
    launches.Launches(gpu, b"", sizes)
    found = Module(gpu, b"").integers("nnfs_sizes")
    assert found[:3] == [ctypes.sizeof(kind) for kind in (Network, launches.Chunk, launches.Work)]
    monkeypatch.setattr(Module, "integers", lambda *_: [*found[:2], found[2] + 8, *found[3:]])
    with pytest.raises(CodecError, match="other structures"):
        launches.Launches(gpu, b"", sizes)


def test_the_driver_says_what_failed(gpu: Device) -> None:
    with pytest.raises(RuntimeError, match="cuModuleGetFunction: the host's shim refuses it"):
        Module(gpu, b"").kernel("nnfs_nothing")
    with pytest.raises(RuntimeError, match="cuDeviceGet"):
        Device(gpu.driver, 1)
    with pytest.raises(MemoryError):
        gpu.memory(1 << 50)
    with pytest.raises(RuntimeError, match="no CUDA driver"):
        Driver("libm.so.6")
