"""The same programs, while everything they write turns cold and warm under them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps import test_apps
from tests.apps.test_apps import (
    everything,
    test_git,
    test_rsync,
    test_the_tree_itself_on_the_mount,
    test_the_way_dpkg_installs,
)
from tests.background.kit import Chaos, restless
from tests.conftest import why_no_mount

__all__ = [  # a fixture, and tests that the mount below is for
    "everything", "test_git", "test_rsync", "test_the_tree_itself_on_the_mount", "test_the_way_dpkg_installs",
]  # fmt: skip


@pytest.fixture(scope="module")
def mounted() -> Iterator[Chaos]:
    if why := why_no_mount():
        pytest.skip(f"mounting {why}")
    with restless(kill=60) as mount:
        yield mount
        assert mount.swaps > 100


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite(mnt: Path, mounted: Chaos, journal: str) -> None:
    test_apps.test_sqlite(mnt, mounted, journal)
