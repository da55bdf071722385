"""`nnfs search` and `nnfs similar` on real mounts: true after every change, a crash, damage, and without the index."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nnfs.cli import client
from nnfs.fs import fsck
from nnfs.store import vectors
from nnfs.store.env import Store
from tests.conftest import why_no_mount
from tests.harness import Mount, nnfs, wait_for

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason="needs a mount")

WHALES = b"Whales are mammals of the ocean. A blue whale eats krill, and its calf drinks the mother's milk.\n"
BILL = b"The invoice of the plumber: taps and pipes were mended, the boiler cleaned, and the bill is due.\n"
QUIET = ("compact=off", "cpu_budget=1")


def names(*args: str) -> list[str]:
    """The answers of a command, as names without directories."""
    return [os.path.basename(one["path"]) for one in json.loads(nnfs(*args, "--json").stdout)]


def state(mount: Mount) -> dict[str, Any]:
    found: dict[str, Any] = client.ask(mount.store, "status")["search"]
    return found


def count(mount: Mount) -> int:
    """The vectors of a mount's store, once there is nothing left to do."""
    client.ask(mount.store, "df")  # commits
    wait_for("the vectors", lambda: not (state(mount)["waiting"] or state(mount)["looking"]), step=0.05)
    client.ask(mount.store, "df")
    backup = mount.base / "backup"
    backup.mkdir(exist_ok=True)
    client.ask(mount.store, "backup", file=str(backup / "data.mdb"))
    store = Store.open(backup, readonly=True)
    try:
        with store.read() as snapshot:
            has = snapshot.has(vectors.TABLE)
            return sum(key != vectors.PROGRESS_KEY for key, _ in snapshot.range(vectors.TABLE, b"")) if has else 0
    finally:
        store.close()


def test_it_follows_what_happens_to_files() -> None:
    with Mount(options=QUIET) as mount:
        top = mount.path
        (top / "sea").mkdir()
        (top / "sea" / "one").write_bytes(WHALES)
        (top / "two").write_bytes(BILL)
        os.link(top / "two", top / "sea" / "again")
        (top / "empty").touch()
        (top / "zeros").write_bytes(bytes(100_000))
        point = str(top)
        assert set(names("search", point, "two")) == {"two"}  # at once, without a vector
        assert wait_for("vectors", lambda: names("search", point, "plumber invoice") or None)
        assert set(names("search", point, "plumber invoice")) == {"two", "again"}
        assert names("search", point, "krill whales", "-n", "1") == ["one"]
        assert count(mount) == 2
        os.rename(top / "sea", top / "ocean")
        os.rename(top / "two", top / "deux")
        assert set(names("search", point, "plumber invoice")) == {"deux", "again"}
        assert names("search", f"{point}/ocean", "krill") == ["one"]
        assert names("search", point, "sea") == []
        with open(top / "deux", "r+b") as file:
            file.write(WHALES[::-1].replace(b"krill", b"llirk"))
            file.truncate(40)
        client.ask(mount.store, "df")
        assert names("search", point, "plumber invoice") == []  # a vector of what was there before does not count
        os.truncate(top / "ocean" / "one", 0)
        os.unlink(top / "zeros")
        wait_for("the change", lambda: count(mount) == 1)
        os.unlink(top / "deux")
        os.unlink(top / "ocean" / "again")
        wait_for("the removal", lambda: count(mount) == 0)
        assert names("search", point, "deux") == []


def test_crash_remount_and_an_unmounted_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with Mount(store, options=QUIET) as mount:
        (mount.path / "d").mkdir()
        (mount.path / "d" / "one").write_bytes(WHALES)
        assert count(mount) == 1
        (mount.path / "two").write_bytes(BILL)
        nnfs("search", str(mount.path), "two")  # commits it
        mount.kill()
        mount.revive()
        assert count(mount) == 2
        (tmp_path / "letter").write_bytes(WHALES + b"So much for whales.\n")
        assert names("similar", str(mount.path), str(tmp_path / "letter"), "-n", "1") == ["one"]
        assert "two" not in names("similar", str(mount.path), str(mount.path / "two"))
        live = nnfs("search", str(mount.path), "plumber krill", "--json").stdout
        point = str(mount.path)
    assert json.loads(nnfs("search", str(store), "plumber krill", "--json").stdout) == json.loads(
        live.replace(point, str(store))
    )
    assert nnfs("fsck", str(store)).returncode == 0
    with Mount(store, options=["ro"]) as mount:
        assert names("search", str(mount.path), "krill") == ["one"]


def test_off_deletes_the_vectors_and_on_makes_them_again() -> None:
    with Mount(options=QUIET) as mount:
        (mount.path / "one").write_bytes(WHALES)
        assert count(mount) == 1
        nnfs("set", str(mount.path), "search=off")
        wait_for("no vectors", lambda: count(mount) == 0)
        assert names("search", str(mount.path), "krill") == []
        assert names("search", str(mount.path), "one") == ["one"]
        nnfs("set", str(mount.path), "search=on")
        wait_for("vectors", lambda: count(mount) == 1)


def test_damaged_vectors_harm_nothing_and_are_made_again(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with Mount(store, options=QUIET) as mount:
        (mount.path / "one").write_bytes(WHALES)
        assert count(mount) == 1
    opened = Store.open(store)
    with opened.write() as txn:
        for key, record in list(txn.range(vectors.TABLE, b"")):
            txn.put(vectors.TABLE, key, record[:-1] + bytes([record[-1] ^ 1]))
    report = fsck.check(opened, data=False, repair=False, progress=lambda stage, done, total: None)
    assert {problem.kind for problem in report.problems} == {"vector"}
    opened.close()
    with Mount(store, options=QUIET) as mount:
        assert (mount.path / "one").read_bytes() == WHALES
        assert names("search", str(mount.path), "one") == ["one"]
        wait_for("the vector", lambda: names("search", str(mount.path), "krill") == ["one"])
    assert nnfs("fsck", str(store)).returncode == 0
