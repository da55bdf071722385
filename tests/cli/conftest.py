from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnfs.cli import locate, models, policy, progress, recompress, show
from nnfs.cli.main import main
from nnfs.store.env import Store
from tests.harness import Mount

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that is not mounted; a fake daemon may answer for it."""
    path = tmp_path / "store"
    Store.create(path, 16384).close()
    return path


@pytest.fixture
def mnt(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that the commands take for the mount of `store`."""
    path = tmp_path / "mnt"
    path.mkdir()
    entry = locate.MountEntry(str(path), locate.FSTYPE, str(store))

    def located(text: str, *, follow: bool = False) -> locate.Place:
        return locate.Place(store, entry, Path(os.path.realpath(text) if follow else text))

    for module in (models, policy, recompress, show):
        monkeypatch.setattr(module, "locate", located)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command: exit status, output, errors. Polls without pauses."""
    monkeypatch.setattr(progress, "FIRST_POLL_S", 0.0)

    def run(*args: object) -> tuple[int, str, str]:
        try:
            status = main([str(arg) for arg in args])
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return run


@pytest.fixture
def mount() -> Iterator[Mount]:
    with Mount(chunk_size=16384) as mount:
        mount.deadline()
        yield mount
