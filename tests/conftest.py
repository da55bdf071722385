"""Fixtures for everything that needs a mount. `--target DIR` runs the semantics on another filesystem instead."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import isolation
from tests.harness import Mount, Plain


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--target`."""
    parser.addoption("--target", metavar="DIR", help="run the semantics tests in DIR, not on an nnfs mount")


def pytest_configure(config: pytest.Config) -> None:
    """A mount namespace of the run's own. timeout(1) and CI end a run with SIGTERM: fixtures clean up as after ^C."""
    isolation.enter(target_dir(config))
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Reports hold what tests logged, names that are no UTF-8 too: xdist cannot send these, and would end the run."""
    return sendable((yield))


def sendable(data: Any) -> Any:
    """The same, with every string as UTF-8 can have it."""
    if isinstance(data, str):
        return data.encode("utf-8", "backslashreplace").decode()
    if isinstance(data, dict):
        return {sendable(key): sendable(value) for key, value in data.items()}
    return type(data)(map(sendable, data)) if type(data) in (list, tuple) else data


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses a mount."""
    for item in items:
        if {"mounted", "mnt", "fresh_mount"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("mount")


def why_no_mount() -> str | None:
    """Return what this machine lacks for a mount, "" if nothing."""
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse"
    return None


def target_dir(config: pytest.Config) -> Path | None:
    """The directory given with --target."""
    given = config.getoption("--target")
    return Path(given).resolve() if given else None


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """A test, or a command that it calls in this process, may leave another umask: later tests would fail of it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def mounted(request: pytest.FixtureRequest) -> Iterator[Mount | Plain]:
    """One mount for a module, with small chunks so that tests meet their borders; or the target."""
    target = target_dir(request.config)
    if target is not None:
        base = Path(tempfile.mkdtemp(prefix="nnfs-test-", dir=target))
        base.chmod(0o755)
        try:
            yield Plain(base)
        finally:
            shutil.rmtree(base)
        return
    if why := why_no_mount():
        pytest.skip(f"mounting {why}")
    with Mount(chunk_size=16384) as mount:
        yield mount


@pytest.fixture
def mnt(request: pytest.FixtureRequest, mounted: Mount | Plain) -> Iterator[Path]:
    """A fresh empty directory on the module's mount, open to all users; the guard gives the test a bounded time."""
    skip_marked(request.node, mounted)
    mounted.revive()
    mounted.deadline()
    name = re.sub(r"[^A-Za-z0-9_]+", "_", request.node.name)[:60]
    path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=mounted.path))
    path.chmod(0o777)
    old = os.umask(0o022)
    yield path
    os.umask(old)
    mounted.deadline(0)
    forsake_handles(mounted.path)
    if isinstance(mounted, Mount):
        mounted.check_log()
        assert mounted.alive, f"the daemon is gone:\n{mounted.log()[-4000:]}"


@pytest.fixture
def fresh_mount(request: pytest.FixtureRequest) -> Iterator[Mount]:
    """A mount of its own for one test, never the target."""
    if target_dir(request.config) is not None:
        pytest.skip("a test of nnfs's own mount")
    if why := why_no_mount():
        pytest.skip(f"mounting {why}")
    with Mount(chunk_size=16384) as mount:
        mount.path.chmod(0o777)
        mount.deadline()
        yield mount


def forsake_handles(base: Path) -> None:
    """Close files that a failed test left open: they would make later unmounts busy. Objects keep their number."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if f"{os.readlink(f'/proc/self/fd/{fd}')}/".startswith(f"{base}/"):
                os.dup2(null, int(fd))
    os.close(null)


def skip_marked(node: pytest.Item, mounted: Mount | Plain) -> None:
    """Skip what the target is known not to do."""
    if mounted.is_nnfs:
        return
    if mark := node.get_closest_marker("nnfs_only"):
        pytest.skip(f"nnfs only: {mark.args[0]}")
    mark = node.get_closest_marker("beyond")
    if mark and mounted.fstype in mark.args:
        pytest.skip(f"{mounted.fstype} cannot do this")


SHM = Path("/dev/shm")


@pytest.fixture
def shm() -> Iterator[Path]:
    """The model's directory."""
    path = Path(tempfile.mkdtemp(prefix="nnfs-test-", dir=SHM))
    yield path
    shutil.rmtree(path)
