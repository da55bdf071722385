"""Recompression on a mount with models of the store: kept, retired, missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnfs.errors import DaemonError
from nnfs.store import modelfiles
from nnfs.store.env import Store
from tests.background.coding import fingerprint, model_file, text
from tests.background.kit import fsck_clean
from tests.background.mountkit import Start, codecs, cold_read, done, end_of, mounts, settled, sync, write
from tests.harness import wait_for

pytestmark = mounts


def test_a_model_is_kept_twice_and_found_again(start: Start) -> None:
    mount = start(mode="none")
    file = write(mount.path / "f", text(1))
    done(mount, "compact", mount.path)
    default = fingerprint("default").hex()
    for _ in range(2):
        found = mount.ask("models")
        assert found["default"] == default
        [line] = found["models"]
        assert (line["fingerprint"], line["copies"], line["blocks"], line["retired"]) == (default, "ok", 1, False)
        mount.remount()
        mount.deadline()
    # A later nnfs with another model reads what this one has encoded, and adds its own when it is needed.
    (mount.base / "models" / "default.safetensors").write_bytes(model_file("newer"))
    mount.remount()
    mount.deadline()
    assert file.read_bytes() == text(1)
    write(mount.path / "g", text(2))
    done(mount, "compact", mount.path)
    assert [(line["number"], line["blocks"]) for line in mount.ask("models")["models"]] == [(1, 1), (2, 1)]
    done(mount, "compact", mount.path, all=True)
    assert codecs(mount, mount.path) == {"neural": 2}
    assert cold_read(file) == text(1)
    mount.unmount()
    fsck_clean(mount.store)
    mount.mount()


def test_a_retired_model_goes_with_its_last_block(start: Start, tmp_path: Path) -> None:
    mount = start()
    own = tmp_path / "own.safetensors"
    own.write_bytes(model_file("fitted"))
    (mount.path / "d").mkdir()
    added = mount.ask("model_add", file=str(own), ino=(mount.path / "d").stat().st_ino)
    assert added["fingerprint"] == fingerprint("fitted").hex()
    for n in range(3):
        write(mount.path / "d" / f"f{n}", text(n))
        write(mount.path / f"f{n}", text(n + 10))
    sync(mount)
    wait_for("all to be looked at", lambda: settled(mount) == 6)
    assert {line["fingerprint"]: line["blocks"] for line in mount.ask("models")["models"]} == {
        fingerprint("fitted").hex(): 3, fingerprint("default").hex(): 3
    }  # fmt: skip
    mount.ask("model_retire", fingerprint=added["fingerprint"])

    def copies() -> dict[str, str]:
        return {line["fingerprint"]: line["copies"] for line in mount.ask("models")["models"]}

    wait_for("the retired model to go", lambda: copies()[added["fingerprint"]] == "gone", step=0.05)
    assert [line["blocks"] for line in mount.ask("models")["models"]] in ([0, 6], [6, 0])
    for n in range(3):
        assert cold_read(mount.path / "d" / f"f{n}") == text(n)
    # The shipped one as well: blocks go where there is another codec, though that takes more room.
    mount.ask("model_retire", fingerprint=fingerprint("default").hex())
    wait_for("the retired model to go", lambda: set(copies().values()) == {"gone"}, step=0.05)
    assert set(codecs(mount, mount.path)) <= {"cm", "zstd"}
    for n in range(3):
        assert cold_read(mount.path / f"f{n}") == text(n + 10)
    with pytest.raises(DaemonError, match="not in the store"):
        mount.ask("model_retire", fingerprint="ab" * 64)


def test_a_missing_model_is_named_and_costs_nothing_else(start: Start) -> None:
    mount = start(mode="none")
    for n in range(12):
        write(mount.path / f"f{n}", text(n))
    done(mount, "compact", mount.path)
    write(mount.path / "warm", text(100))
    mount.unmount()
    mount.is_damaged = True
    store = Store.open(mount.store)
    with store.write() as txn:
        for table, key in modelfiles.places(1):
            record = bytearray(txn.get(table, key) or b"")
            record[20] ^= 1
            txn.put(table, key, bytes(record))
    store.close()
    (mount.base / "models" / "default.safetensors").write_bytes(model_file("newer"))
    mount.mount()
    mount.deadline()
    mount.expect_log("model 1: both copies of its record are damaged")
    assert (mount.path / "warm").read_bytes() == text(100)
    with pytest.raises(OSError, match="Input/output error"):
        (mount.path / "f3").read_bytes()
    assert "model 1: both copies" in mount.log()
    sync(mount)
    done(mount, "compact", mount.path / "warm", all=True)
    assert codecs(mount, mount.path / "warm") == {"neural": 1}
    job = end_of(mount, mount.ask("thaw", ino=1)["job"])  # 12 failures in a row, and what can be thawed is
    assert (job["state"], job["failed_chunks"]) == ("done", 12)
    assert codecs(mount, mount.path / "warm") == {"zstd": 1}
    assert "model 1" in str(mount.ask("status")["damaged"]) + mount.ask("status")["worker_trouble"]
