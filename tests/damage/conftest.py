"""The sample store of the damage tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import why_no_mount
from tests.damage.kit import Sample, build
from tests.damage.pages import Walk
from tests.harness import work_dir


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A scratch directory."""
    path = work_dir()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def sample(folder: Path) -> Sample:
    """Made once."""
    if why := why_no_mount():
        pytest.skip(f"mounting {why}")
    return build(folder)


@pytest.fixture(scope="session")
def walk(sample: Sample) -> Walk:
    """Which byte of the sample is what."""
    return Walk(sample.content)
