"""`nnfs du`: its table, its order, and a real mount against os.walk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.kit import FakeDaemon
from tests.conftest import why_no_mount
from tests.harness import Mount, nnfs

LINES: list[dict[str, Any]] = [
    {"path": "small", "inodes": 3, "logical_bytes": 1000, "stored_bytes": 900, "damaged": 0},
    {"path": "wide\n", "inodes": 9, "logical_bytes": 5000, "stored_bytes": 100, "damaged": 2},
    {"path": "grown", "inodes": 2, "logical_bytes": 10, "stored_bytes": 30, "damaged": 0},
    {"path": "", "inodes": 14, "logical_bytes": 6010, "stored_bytes": 1030, "damaged": 2},
]


def test_the_table(store: Path, run: Run) -> None:
    with FakeDaemon(store, du={"directories": [dict(line) for line in LINES]}) as daemon:
        status, out, _ = run("du", store, "-d", "3")
        assert daemon.asked("du") == [{"ino": 1, "depth": 3}]
    assert status == 0
    assert out.splitlines() == [
        " logical    stored     saved  inodes  path",
        f"  1000 B     900 B     100 B       3  {store}/small",
        f"4.88 KiB     100 B  4.79 KiB       9  {store}/wide\\n  (2 damaged)",
        f"    10 B      30 B     -20 B       2  {store}/grown",
        f"5.87 KiB  1.01 KiB  4.86 KiB      14  {store}  (2 damaged)",
    ]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("saved", ["wide\n", "small", "grown"]), ("stored", ["small", "wide\n", "grown"]),
        ("logical", ["wide\n", "small", "grown"]), ("inodes", ["wide\n", "small", "grown"]),
        ("name", ["grown", "small", "wide\n"]),
    ],
)  # fmt: skip
def test_orders(store: Path, run: Run, sort: str, order: list[str]) -> None:
    with FakeDaemon(store, du={"directories": [dict(line) for line in LINES]}):
        found = json.loads(run("du", store, "--sort", sort, "--json")[1])
    assert [line["path"] for line in found] == [*(f"{store}/{name}" for name in order), str(store)]
    assert all(line["saved_bytes"] == line["logical_bytes"] - line["stored_bytes"] for line in found)


@pytest.mark.skipif(why_no_mount() is not None, reason="needs a mount")
def test_a_mount_and_its_store_tell_the_same(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with Mount(tmp_path / "store") as mount:
        for number in range(20):
            folder = mount.path / f"a{number % 3}" / f"b{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"f{number}").write_bytes(b"text " * 1000 * number)
        os.link(mount.path / "a0" / "b0" / "f0", mount.path / "a0" / "b0" / "again")
        told = json.loads(nnfs("du", str(mount.path), "-d", "9", "--json").stdout)
        for line in told:
            inodes, size = set(), 0
            for folder, _, files in os.walk(line["path"]):
                for path in (folder, *(os.path.join(folder, name) for name in files)):
                    status = os.lstat(path)
                    size += status.st_size if path != folder and status.st_ino not in inodes else 0
                    inodes.add(status.st_ino)
            assert (line["inodes"], line["logical_bytes"]) == (len(inodes), size), line["path"]
            assert 0 < line["stored_bytes"] < line["logical_bytes"] / 10
        assert len(told) == 1 + 3 + 6
        below = json.loads(nnfs("du", str(mount.path / "a1"), "--json").stdout)
        assert below[-1] == next(line for line in told if line["path"] == str(mount.path / "a1"))
        point = str(mount.path)
    offline = json.loads(nnfs("du", str(tmp_path / "store"), "-d", "9", "--json").stdout)
    assert [line["path"].replace(str(tmp_path / "store"), point) for line in offline] == [one["path"] for one in told]
    assert [one["stored_bytes"] for one in offline] == [one["stored_bytes"] for one in told]
