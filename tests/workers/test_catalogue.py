"""The codecs that a worker serves by default: the hot ones, and the cold ones with their models."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from nnfs.codec.base import CM, CM_LIGHT, FIRST_COLD, NEURAL, PPM, RAW, ZSTD
from nnfs.errors import CodecError, ModelMissing
from nnfs.model import selftest
from nnfs.model.weights import save_weights
from nnfs.workers import catalogue
from nnfs.workers.catalogue import Catalogue
from nnfs.workers.pool import Pool, WorkerSpec
from nnfs.workers.wire import NO_MODEL
from tests.harness import environment
from tests.kernels.kit import library

MODEL = bytes(range(64))
TEXT = b"a line of text, and another\n" * 100


@pytest.fixture(autouse=True)
def no_presets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "PRESETS", str(tmp_path))


def test_names() -> None:
    served = Catalogue()
    names = served.names()
    assert names[RAW] == "raw"
    assert names[ZSTD] == "zstd"
    assert names[NEURAL] == "neural"
    assert all(number in (RAW, ZSTD) or number >= FIRST_COLD for number in names)
    assert served.resolve("zstd") == (ZSTD, NO_MODEL)
    assert served.find(ZSTD, NO_MODEL).decode(served.find(ZSTD, NO_MODEL).encode(TEXT) or b"", len(TEXT)) == TEXT
    with pytest.raises(KeyError, match="no codec tar; there are: raw, zstd"):
        served.resolve("tar")


def test_what_is_not_there(tmp_path: Path) -> None:
    served = Catalogue()
    with pytest.raises(CodecError, match="unknown codec 250"):
        served.find(250, NO_MODEL)
    with pytest.raises(ModelMissing, match="no model 0001020304050607"):
        served.find(NEURAL, MODEL)
    with pytest.raises(ModelMissing, match="no model is shipped"):
        served.find(NEURAL, NO_MODEL)
    with pytest.raises(CodecError):
        served.load(MODEL, b"no model file")
    (tmp_path / "bad.safetensors").write_bytes(b"no model file")
    with pytest.raises(CodecError):
        served.resolve("bad")
    assert served.models() == ()


def test_hot_codecs_in_a_worker() -> None:
    with Pool([WorkerSpec("cpu", "cpu")]) as pool:
        payload = pool.encode(ZSTD, TEXT).result(60)
        assert payload is not None
        assert pool.decode(ZSTD, payload, len(TEXT)).result(60) == TEXT
        bad: list[Future[bytes]] = [pool.decode(ZSTD, payload[:-1], len(TEXT)), pool.decode(RAW, b"x", 2)]
        for future in bad:
            assert type(future.exception(60)) is CodecError
        assert pool.ask("cpu").result(60).failed == 2


def test_a_worker_imports_nothing_heavy_before_it_needs_it() -> None:
    code = "import sys, nnfs.workers.worker, nnfs.workers.pool; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numba", "numpy", "lmdb", "trio", "pyfuse3"} & set(done.stdout.split())


def test_a_worker_with_native_kernels_reads_without_numba(tmp_path: Path) -> None:
    """Importing numba takes longer than everything else that a worker does before it answers a reader."""
    library()  # compiled if need be
    save_weights(selftest.weights(), str(tmp_path / "default.safetensors"), {})
    script = f"import sys\nfrom nnfs.workers import catalogue\ncatalogue.PRESETS = {str(tmp_path)!r}\n"
    script += "served = catalogue.Catalogue('cpu')\nserved.warm()\n"
    for number in (NEURAL, CM, PPM, CM_LIGHT):
        payload = Catalogue("cpu").find(number, NO_MODEL).encode(TEXT)
        assert payload is not None
        script += f"assert served.find({number}, bytes(64)).decode({payload!r}, {len(TEXT)}) == {TEXT!r}\n"
    script += "print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment({"NNFS_KERNELS": ""}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"torch", "numba", "llvmlite"} & set(done.stdout.split())


def test_a_damaged_preset_does_not_hide_another_one(tmp_path: Path) -> None:
    """A damaged one is named when it is the one that is wanted."""
    (tmp_path / "default.safetensors").write_bytes(b"no model file")
    save_weights(selftest.weights(selftest.ARCHITECTURE, b"other"), str(tmp_path / "other.safetensors"), {})
    served = Catalogue()
    other = catalogue.fingerprint((tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(ModelMissing, match=r"no model 0001020304050607; .*default\.safetensors: not a model file"):
        served.find(NEURAL, MODEL)
    assert other in served.models()


def test_an_engine_that_is_wanted_and_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference wants torch's: where that is broken, the usual one judges."""
    monkeypatch.setenv("NNFS_PRODUCT", "float")
    tried = []

    def opener(_: bytes) -> object:
        tried.append(os.environ.get("NNFS_PRODUCT"))
        if tried[-1]:
            raise ImportError("libtorch.so: cannot open shared object file")
        return "codec"

    assert Catalogue()._opened("neural", opener, MODEL) == "codec"  # type: ignore[arg-type, comparison-overlap]
    assert tried == ["float", None]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "codec x needs torch, which is not installed"),
        (ImportError("Numba needs NumPy 2.4 or less"), "codec x cannot be opened: ImportError: Numba needs NumPy"),
    ],
)
def test_imports_that_fail(error: ImportError, why: str) -> None:
    def opener(_: bytes) -> object:
        raise error

    with pytest.raises(CodecError, match=why):
        Catalogue()._opened("x", opener, MODEL)  # type: ignore[arg-type]


def test_looking_at_a_model_without_what_that_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nnfs.model", None)
    assert catalogue.main(["0"]) == catalogue.CANNOT_LOOK
    assert "which is not installed: run tools/run again" in capsys.readouterr().err
