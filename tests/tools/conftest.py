"""Fixtures of the tests of tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.kit import Checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")


@pytest.fixture
def installed(checkout: Checkout) -> Checkout:
    """A checkout with an nnfs that only notes its arguments, and links to its helpers as in /sbin."""
    checkout.recorder(checkout.root / ".venv/bin/python", "nnfs")
    checkout.recorder(checkout.root / "bin/mount", "mount")
    checkout.recorder(checkout.root / "bin/umount", "umount")
    (checkout.root / "sbin").mkdir()
    for name in ("mount", "umount"):
        (checkout.root / f"sbin/{name}.fuse.nnfs").symlink_to(checkout.root / f"nnfs/cli/sbin/{name}.nnfs")
    return checkout
