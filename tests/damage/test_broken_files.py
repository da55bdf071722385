"""A data file that was cut, replaced or emptied: mount and fsck say what is wrong, with the right exit code."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import why_no_mount
from tests.damage.child import examine
from tests.damage.kit import Sample
from tests.damage.pages import PAGE, Walk
from tests.harness import WAIT_S, mounted_at, nnfs, umount, work_dir

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason="mounting needs root and /dev/fuse")
NOT_A_STORE, DAMAGED = 4, 7  # of errors.py
FSCK_LEFT, FSCK_FAILED = 4, 8


def end_in_use(content: bytes) -> int:
    """Return the end of the last page that is not free."""
    free = {span.start for span in Walk(content).spans if span.what == "free page"}
    return max(at for at in range(0, len(content), PAGE) if at not in free) + PAGE


def broken(name: str, content: bytes) -> bytes:
    """The data file of a case."""
    rng = random.Random(name)
    end = end_in_use(content)
    return {
        "empty": b"",
        "one byte": b"x",
        "one page": content[:4096],
        "two pages": content[:8192],
        "half": content[: len(content) // 2],
        "a part of a page less": content[: end - 100],
        "a page less": content[: end - PAGE],
        "random": rng.randbytes(len(content)),
        "random, short": rng.randbytes(1000),
        "zeros": bytes(len(content)),
        "text": b"This is not a database.\n" * 1000,
        "random behind the meta pages": content[:8192] + rng.randbytes(len(content) - 8192),
        "zeros behind the meta pages": content[:8192] + bytes(len(content) - 8192),
    }[name]


EITHER = {"empty", "one byte", "random", "random, short", "zeros", "text"}  # no store at all, or a damaged one
CUT = {"one page", "two pages", "half", "a part of a page less", "a page less"}
GUTTED = {"random behind the meta pages", "zeros behind the meta pages"}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with `store` and `mnt`."""
    path = work_dir()
    (path / "store").mkdir()
    (path / "mnt").mkdir()
    yield path
    if mounted_at(path / "mnt"):
        umount(path / "mnt", 3)
    shutil.rmtree(path)


@pytest.mark.parametrize("name", sorted(EITHER | CUT | GUTTED))
def test_mount_and_fsck_refuse(place: Path, sample: Sample, name: str) -> None:
    data = place / "store" / "data.mdb"
    content = broken(name, sample.content)
    data.write_bytes(content)
    for command in (["mount", str(place / "store"), str(place / "mnt"), "-f"], ["fsck", str(place / "store")]):
        done = nnfs(*command, check=False, timeout=WAIT_S)  # a mount that succeeds would stay
        expected: tuple[int, ...] = (FSCK_LEFT, FSCK_FAILED)
        if command[0] == "mount":
            expected = (NOT_A_STORE, DAMAGED) if name in EITHER else (DAMAGED,)
        said = done.stdout + done.stderr
        assert done.returncode in expected, f"{command[0]}: exit {done.returncode}\n{said}"
        assert "Traceback" not in said
        assert said.strip(), "it does not say what is wrong"
        assert data.read_bytes() == content, "a refused store was changed"


def test_free_pages_may_be_missing_at_the_end(place: Path, sample: Sample) -> None:
    """LMDB itself leaves such files: that is no damage."""
    end = end_in_use(sample.content)
    assert end < len(sample.content), "the sample has no free page at its end"
    (place / "store" / "data.mdb").write_bytes(sample.content[:end])
    outcome = examine(place / "store", sample.truth)
    assert (outcome.refused, outcome.killed, outcome.verdict.errors, outcome.verdict.lies) == (0, 0, 0, [])
    assert nnfs("fsck", str(place / "store"), check=False).returncode == 0


def test_foreign_directory_is_left_alone(place: Path) -> None:
    (place / "store" / "letter.txt").write_text("dear diary")
    done = nnfs("mount", str(place / "store"), str(place / "mnt"), "-f", check=False)
    assert done.returncode == NOT_A_STORE, done.stderr
    assert [p.name for p in (place / "store").iterdir()] == ["letter.txt"]
    assert nnfs("fsck", str(place / "store"), check=False).returncode == FSCK_FAILED


def test_directory_that_is_missing(place: Path) -> None:
    done = nnfs("fsck", str(place / "nowhere"), check=False)
    assert done.returncode == FSCK_FAILED
    assert "Traceback" not in done.stderr
