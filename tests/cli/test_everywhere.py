"""`nnfs df` and `nnfs status` without a path, `help` and `version`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import nnfs
from nnfs.cli import everywhere, locate
from nnfs.errors import DaemonError, UsageError
from tests.cli.conftest import Run
from tests.cli.kit import FakeDaemon, job

DF = {"logical_bytes": 4 << 20, "stored_bytes": 1 << 20, "physical_bytes": 2 << 20, "free_bytes": 3 << 30, "codecs": []}
STATUS = {"pid": 17, "read_only": "", "no_space": False, "damaged_blocks": 2, "jobs": [job(kind="scrub")]}


@pytest.fixture
def mounted(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that is mounted twice (once by a bind), beside something else and a mount that is dead."""
    points = [("/one", locate.FSTYPE), ("/bind", locate.FSTYPE), ("/", "ext4"), ("/de\udcffad\n", locate.FSTYPE)]
    monkeypatch.setattr(everywhere, "mounts", lambda: [locate.MountEntry(*point, str(store)) for point in points])

    def located(point: str) -> locate.Place:
        if point.startswith("/de"):
            raise UsageError(f"{point}: its daemon does not tell its store")
        return locate.Place(store, locate.MountEntry(point, locate.FSTYPE, str(store)), Path(point))

    monkeypatch.setattr(everywhere, "locate", located)
    return store


def test_df_of_all_mounts(mounted: Path, run: Run) -> None:
    with FakeDaemon(mounted, df=DF):
        status, out, err = run("df")
        found = json.loads(run("df", "--json")[1])
    assert (status, err) == (DaemonError.exit_code, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["store", "mounted", "on", "logical", "physical", "free", "ratio"]
    assert rows[1] == [str(mounted), "/one", "4.00", "MiB", "2.00", "MiB", "3.00", "GiB", "2.00"]
    assert out.splitlines()[2:] == ["/de\\xffad\\n: /de\\xffad\\n: its daemon does not tell its store"]
    assert found[0] == {"mountpoint": "/one", "store": str(mounted), **DF}
    assert [one["mountpoint_hex"] for one in found if "error" in one] == [os.fsencode("/de\udcffad\n").hex()]


def test_status_of_all_mounts(mounted: Path, run: Run) -> None:
    with FakeDaemon(mounted, status=STATUS):
        assert run("status")[1].splitlines()[1].split() == [str(mounted), "/one", "17", "mounted", "scrub", "2"]
    with FakeDaemon(mounted, status={**STATUS, "read_only": "why", "jobs": []}):
        assert run("status")[1].splitlines()[1].split() == [str(mounted), "/one", "17", "read-only", "idle", "2"]
    with FakeDaemon(mounted, status=DaemonError("did not answer")):
        status, out, _ = run("status")
        assert (status, out.splitlines()[0]) == (DaemonError.exit_code, "/one: did not answer")


@pytest.mark.parametrize("name", ["df", "status"])
def test_nothing_is_mounted(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(everywhere, "mounts", list)
    assert run(name) == (0, "no nnfs is mounted here\n", "")
    assert json.loads(run(name, "--json")[1]) == []


def test_help_and_version(run: Run) -> None:
    assert run("version") == (0, f"nnfs {nnfs.__version__}\n", "") == run("--version")
    assert run("help")[:2] == run("--help")[:2]
    assert run("help", "compact")[:2] == run("compact", "--help")[:2]
    assert run("help", "model", "add")[:2] == run("model", "add", "--help")[:2]
