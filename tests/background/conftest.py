"""A mount whose workers may misbehave, and commands to its daemon, for tests of recompression."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.background.kit import Chaos, fsck_clean
from tests.background.mountkit import Start


@pytest.fixture
def start() -> Iterator[Start]:
    """Mounts that go with the test, and leave stores that fsck finds nothing in."""
    mounts: list[Chaos] = []

    def begin(**arguments: Any) -> Chaos:
        mount = Chaos(**arguments).__enter__()
        mounts.append(mount)
        mount.deadline()
        return mount

    yield begin
    try:
        for mount in mounts:
            mount.unmount()
            if not mount.is_damaged:
                fsck_clean(mount.store)
    finally:
        for mount in mounts:
            mount.__exit__(None, None, None)
