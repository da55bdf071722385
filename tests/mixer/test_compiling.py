"""The cache of compiled kernels: whatever has become of it, what was asked for is computed."""

from __future__ import annotations

import builtins
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnfs import kernelcache
from nnfs.mixer import kernelfiles
from nnfs.mixer.compiling import njit
from nnfs.mixer.kernelfiles import MAGIC, PART, read, write
from tests.harness import REPO, environment

NOWHERE = "/proc/nowhere/kernels-x"  # cannot be made, by root neither


def double(x: int) -> int:
    """The function that is compiled."""
    return 2 * x


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place of kernels."""
    found = tmp_path / "cache" / "kernels-x"
    monkeypatch.setattr(kernelcache, "places", lambda: [str(found)])
    monkeypatch.setattr(kernelfiles, "_unwritable", set())
    return found


def compiled() -> Any:
    """A dispatcher of a new process, as far as the cache is concerned, that has computed something."""
    made = njit(nogil=True)(double)
    assert made(21) == 42
    return made


def hits(made: Any) -> int:
    return sum(made.stats.cache_hits.values())


def test_what_was_compiled_is_found(place: Path) -> None:
    assert hits(compiled()) == 0
    assert hits(compiled()) == 1
    assert not list(place.glob(f"*{PART}"))
    assert len(list(place.iterdir())) == 1
    made = compiled()
    assert made(2.5) == 5.0  # another signature is another file
    assert len(list(place.iterdir())) == 2


def sound(content: bytes) -> bytes:
    import hashlib

    return MAGIC + hashlib.blake2b(content, digest_size=32).digest() + content


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated to nothing": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "truncated in its head": lambda data: data[:30],
    "filled with zeros": lambda data: bytes(len(data)),
    "zeros from a block on": lambda data: data[:512] + bytes(len(data) - 512),
    "garbage": lambda data: os.urandom(len(data)),
    "one bit": lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
    "longer": lambda data: data + b"\0",
    "of another kind": lambda data: sound(pickle.dumps(("no", "kernel"))),
    "no pickle": lambda data: sound(b"\x80\x04garbage"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_compiled_again(
    place: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    compiled()
    [file] = place.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert hits(compiled()) == 0
    assert "it is compiled again" in caplog.text
    assert [one.name for one in place.iterdir()] == [file.name]
    assert hits(compiled()) == 1


def test_what_cannot_be_read_is_compiled_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled()
    [file] = place.iterdir()
    file.unlink()
    file.mkdir()
    assert hits(compiled()) == 0  # and a folder in the way is no reason to fail
    assert hits(compiled()) == 0


@pytest.mark.parametrize("name", ["os.mkdir", "open", "os.fsync", "os.replace", "kernelcache.sync_folder"])
@pytest.mark.parametrize("turn", [1, 2, 3, 4])
def test_a_write_that_fails_anywhere_leaves_nothing_half(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str, turn: int
) -> None:
    """A full disk, say; and with it each state that a crash can leave, but for torn files, see `DAMAGE`."""
    owner: Any = {"os": os, "open": builtins, "kernelcache": kernelcache}[name.partition(".")[0]]
    real, calls = getattr(owner, name.rpartition(".")[2]), [0]

    def failing(*arguments: Any, **more: Any) -> Any:
        if name != "open" or "x" in str(arguments[1:]):
            calls[0] += 1
            if calls[0] == turn:
                raise OSError(28, "No space left on device")
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name.rpartition(".")[2], failing)
        compiled()
    left = list(place.iterdir()) if place.exists() else []
    assert all(read(str(file)) is not None for file in left)
    kernelfiles._unwritable.clear()
    compiled()
    assert hits(compiled()) == 1


def test_a_read_only_place_in_front_of_a_writable_one(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled()
    behind = tmp_path / "own" / "nnfs" / "kernels-x"
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(kernelfiles, "write", lambda where, *rest: str(where) != str(place) and write(where, *rest))
    monkeypatch.setattr(kernelcache, "places", lambda: [str(place), str(behind)])
    assert hits(compiled()) == 1  # from the first
    assert not behind.exists()
    for file in place.iterdir():
        file.write_bytes(b"")  # stays, where nothing can be removed
    assert hits(compiled()) == 0
    assert hits(compiled()) == 1  # from the second
    assert len(list(behind.iterdir())) == 1


def test_without_any_place_kernels_are_compiled_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernelcache, "places", lambda: [NOWHERE])
    monkeypatch.setattr(kernelfiles, "_unwritable", set())
    assert hits(compiled()) == hits(compiled()) == 0
    assert kernelfiles._unwritable == {NOWHERE}


@pytest.mark.parametrize(("mode", "owner"), [(0o777, 0), (0o755, 12345)])
def test_code_of_others_is_not_run(place: Path, mode: int, owner: int) -> None:
    compiled()
    place.chmod(mode)
    if os.geteuid() == 0:
        os.chown(place, owner, owner)
    elif owner:
        pytest.skip("needs root")
    assert hits(compiled()) == 0
    assert hits(compiled()) == 0


def test_where_kernels_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    beside = str(REPO / "nnfs" / "__pycache__")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernelcache.roots() == [beside, str(tmp_path / ".cache" / "nnfs")]
    monkeypatch.setenv("HOME", "/nonexistent")
    assert kernelcache.roots() == [beside]  # and no home is made
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert kernelcache.roots() == [beside]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernelcache.roots() == [beside, str(tmp_path / "xdg" / "nnfs")]
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/elsewhere")
    assert kernelcache.places() == [f"/elsewhere/{kernelcache.folder_name()}"]


def test_a_folder_is_made_but_no_tree(tmp_path: Path) -> None:
    kernelcache.make_place(str(tmp_path / "cache" / "nnfs" / "kernels-x"))
    kernelcache.make_place(str(tmp_path / "cache" / "nnfs" / "kernels-x"))
    with pytest.raises(FileNotFoundError):
        kernelcache.make_place(str(tmp_path / "home" / "cache" / "nnfs" / "kernels-x"))


def test_what_others_set_for_numba_is_not_for_us() -> None:
    environment = {
        "NUMBA_DISABLE_JIT": "1",
        "NUMBA_OPT": "0",
        "NUMBA_CACHE_DIR": "/c",
        "NUMBA_NUM_THREADS": "2",
        "A": "b",
    }
    kernelcache.clean_environment(environment)
    assert environment == {"NUMBA_CACHE_DIR": "/c", "NUMBA_NUM_THREADS": "2", "A": "b"}


def test_a_real_codec_after_a_power_cut(tmp_path: Path) -> None:
    """Some files are empty, of kernels that take little time to compile: data can be read all the same."""
    folder = tmp_path / kernelcache.folder_name()
    for found in kernelcache.places():
        if os.path.isdir(found):
            shutil.copytree(found, folder, dirs_exist_ok=True)
    script = (
        "from nnfs.codec.cm import ContextMixing; c = ContextMixing(); p = b'some text, and more text. ' * 9;"
        "assert c.decode(c.encode(p), len(p)) == p"
    )
    more = {"NUMBA_CACHE_DIR": str(tmp_path), "NNFS_KERNELS": "none"}  # numba's, which native ones stand in for
    subprocess.run([sys.executable, "-c", script], env=environment(more), check=True)
    cut = [*folder.glob("bitstream._decode_all*")]
    assert cut
    for file in cut:
        file.write_bytes(b"")
    subprocess.run([sys.executable, "-c", script], env=environment(more), check=True)
    assert all(file.stat().st_size for file in cut)
