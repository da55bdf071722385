"""Rules of recompression about models: no model is read, kept or brought back that should not be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnfs.background import modelreader
from nnfs.background.modelchanges import ROOM, ModelChanges
from nnfs.background.modelreader import ModelReader
from nnfs.codec.base import NEURAL
from nnfs.errors import DaemonError, ModelMissing
from nnfs.model import delta, selftest
from nnfs.model.weights import save_weights
from nnfs.store import modelfiles, schema
from nnfs.store.env import Store
from nnfs.workers import catalogue
from nnfs.workers.catalogue import fingerprint
from tests.background.coding import fingerprint as fingerprint_of
from tests.background.coding import model_file, text
from tests.background.kit import COLD, Chaos
from tests.background.mountkit import Start, codecs, cold_read, done, mounts, sync, write
from tests.fs.swapkit import FILE_A, A, B, damage_files, forget, keep, retire, swap, written
from tests.fs.test_apply import Files, files
from tests.harness import REPO, wait_for

__all__ = ["files"]  # a fixture


@mounts
def test_what_can_be_no_model_is_not_read(start: Start, tmp_path: Path) -> None:
    mount = start(mode="none")
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(ROOM + 1)
    irregular = dict.fromkeys(("fifo", ".", "/dev/zero"), "not a regular file")
    for name, why in {**irregular, "large": "too large", "none": "No such file"}.items():
        with pytest.raises(DaemonError, match=why):
            mount.ask("model_add", file=str(tmp_path / name))


def lines_of(mount: Chaos) -> dict[int, tuple[str, int, bool, str]]:
    """Return the list of models: by number the first letters, blocks, whether it is retired, its copies."""
    return {
        line["number"]: (
            bytes.fromhex(line["fingerprint"])[:5].decode(),
            line["blocks"],
            line["retired"],
            line["copies"],
        )
        for line in mount.ask("models")["models"]
    }


@mounts
def test_the_shipped_model_stays_retired(start: Start) -> None:
    mount = start(mode="none", options=COLD)
    write(mount.path / "f", text(1))
    done(mount, "compact", mount.path)
    mount.ask("model_retire", fingerprint=fingerprint_of("default").hex())
    for _ in range(2):
        assert done(mount, "compact", mount.path, all=True)["state"] == "done"
        assert "neural" not in codecs(mount, mount.path)
        assert lines_of(mount) == {1: ("defau", 0, True, "gone")}
        mount.remount()
        mount.deadline()
    mount.ask("model_add", file=str(mount.base / "models" / "default.safetensors"))
    done(mount, "compact", mount.path, all=True)
    assert codecs(mount, mount.path) == {"neural": 1}
    assert lines_of(mount) == {1: ("defau", 1, False, "ok")}


def lose_records(mount: Chaos, number: int) -> None:
    """Both copies of a model's record are gone when the mount is there again."""
    mount.unmount()
    store = Store.open(mount.store)
    with store.write() as txn:
        for payload in modelfiles.load_model(txn, number).payloads:
            txn.delete_prefix("payload", schema.KEY.pack(payload))
        for place in modelfiles.places(number):
            txn.delete(*place)
    store.close()
    mount.mount()
    mount.deadline()


@mounts
def test_the_shipped_model_comes_back_by_itself(start: Start) -> None:
    """Its record is lost: that it is the one, a block tells that can be decoded with it."""
    mount = start(mode="none", options=COLD)
    write(mount.path / "f", text(1))
    done(mount, "compact", mount.path)
    lose_records(mount, 1)
    wait_for("the model to be back", lambda: lines_of(mount) == {1: ("defau", 1, False, "ok")}, step=0.05)
    assert cold_read(mount.path / "f") == text(1)


@mounts
def test_what_is_written_again_is_kept_though_its_model_is_lost(start: Start, tmp_path: Path) -> None:
    """A restored copy would have been a reference to what cannot be read. The rest comes back with the model."""
    mount = start(mode="none", options=COLD)
    (tmp_path / "own").write_bytes(model_file("fitted"))
    mount.ask("model_add", file=str(tmp_path / "own"), ino=1)
    for n in range(2):
        write(mount.path / f"f{n}", text(n))
    done(mount, "compact", mount.path)
    assert lines_of(mount) == {1: ("fitte", 2, False, "ok")}
    lose_records(mount, 1)
    mount.expect_log("model 1: it is not in the store")
    for n in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            cold_read(mount.path / f"f{n}")
    assert "nnfs model add PATH FILE" in mount.log()
    wait_for("the log to tell", lambda: "2 blocks cannot be read without it" in mount.log(), step=0.05)
    write(mount.path / "again", text(0))
    sync(mount)
    mount.remount()
    mount.deadline()
    for name in ("f0", "again"):
        assert cold_read(mount.path / name) == text(0)
    (tmp_path / "other").write_bytes(model_file("other"))
    assert mount.ask("model_add", file=str(tmp_path / "other"))["number"] == 2
    assert mount.ask("model_add", file=str(tmp_path / "own"))["number"] == 1
    assert cold_read(mount.path / "f1") == text(1)


@mounts
def test_the_gain_is_known_after_a_mount(start: Start) -> None:
    mount = start(mode="none", options=COLD)
    write(mount.path / "f", text(1, 100_000))
    sync(mount)
    assert mount.ask("df")["gain"] is None
    done(mount, "compact", mount.path)
    write(mount.path / "g", text(2, 100_000))
    sync(mount)
    df = mount.ask("df")
    first = df["gain"]
    zstd = next(line for line in df["codecs"] if line["codec"] == "zstd")
    quickest = df["rungs"][0]
    assert (quickest["codec"], quickest["plain_bytes"]) == ("ppm", zstd["plain_bytes"])
    assert quickest["seconds"] > 0
    mount.remount()
    mount.deadline()
    assert 0 < mount.ask("df")["gain"] <= 1.2 * first


async def test_a_model_is_examined_as_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file may be another one by now, or be gone."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    save_weights(selftest.weights(selftest.ARCHITECTURE, b"rules"), str(tmp_path / "tiny"), {})
    data = (tmp_path / "tiny").read_bytes()
    under_test = ModelChanges(None, ModelReader(None), None, None)  # type: ignore[arg-type]
    assert await under_test._examine(tmp_path / "gone", data, None) == fingerprint(data)
    with pytest.raises(ModelMissing, match="gone: "):
        await under_test._examine(tmp_path / "gone", b"{" + data[1:], None)
    at = data.index(fingerprint(data).hex().encode())
    with pytest.raises(ModelMissing, match="gone: the model's file is damaged: it says that it is 00000000"):
        await under_test._examine(tmp_path / "gone", data[:at] + b"0" * 128 + data[at + 128 :], None)
    with pytest.raises(ModelMissing, match="gone: the model's file is damaged"):
        await under_test._examine(tmp_path / "gone", data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], None)


async def test_a_shipped_model_that_is_damaged_does_not_come_into_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    path = tmp_path / "default.safetensors"
    save_weights(selftest.weights(selftest.ARCHITECTURE, b"rules"), str(path), {})
    data, under_test = path.read_bytes(), ModelChanges(None, ModelReader(None), None, None)  # type: ignore[arg-type]
    name = fingerprint(data)
    assert await under_test._sound(path, name) == data
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(ModelMissing, match="the model's file is damaged"):
        await under_test._sound(path, name)


@pytest.mark.parametrize("header", [b"", b"\xff" * 100, b"no model file, but longer than a header would be"])
def test_a_damaged_shipped_model_does_not_keep_the_stores_own_from_use(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bytes
) -> None:
    for module in (modelreader, catalogue):
        monkeypatch.setattr(module, "PRESETS", str(tmp_path))
    (tmp_path / "default.safetensors").write_bytes(header)
    under_test = ModelReader(files.store)
    with pytest.raises(ModelMissing, match="default"):
        under_test.default()
    assert under_test.wanted(b"") == b""
    number = keep(files)
    keep(files, B, delta.MAGIC + A + b"changes", A)
    assert under_test.wanted(b"") == A  # a whole one, not the fitted one
    assert under_test.wanted(B) == B
    assert under_test.find(A) == FILE_A
    assert under_test.find(b"C" * 64) is None
    retire(files, number)
    assert under_test.wanted(b"") == b""


def test_a_delta_uses_the_shipped_base_when_that_of_the_store_is_damaged(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = delta.MAGIC + A + b"changes"
    base, number = keep(files), keep(files, B, changes, A)
    inode = written(files, 3)
    swap(files, inode, 3, NEURAL, number)
    (tmp_path / "shipped").write_bytes(FILE_A)
    monkeypatch.setattr(modelreader, "shipped", lambda fingerprint: tmp_path / "shipped" if fingerprint == A else None)
    monkeypatch.setattr(delta, "compose", lambda base, changes: base + changes)
    under_test = ModelReader(files.store)
    assert under_test.find(B) == FILE_A + changes
    damage_files(files, base)
    assert under_test.find(B) == FILE_A + changes
    forget(files, base)
    assert under_test.find(B) == FILE_A + changes
    assert [(lost.number, lost.fingerprint) for lost in under_test.lost()] == [(base, A)]
