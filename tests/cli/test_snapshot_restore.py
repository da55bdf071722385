"""A restore that cannot give what it has made its name puts back what had the name."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnfs.cli.snapshots import _put


def test_what_was_there_comes_back(tmp_path: Path) -> None:
    target, aside = tmp_path / "file", tmp_path / "aside"
    target.write_bytes(b"newer than the snapshot")
    with pytest.raises(FileNotFoundError):
        _put(tmp_path / "was not made", target, aside)
    assert target.read_bytes() == b"newer than the snapshot"
    assert not aside.exists()


@pytest.mark.parametrize("is_there", [False, True])
def test_what_was_made_gets_its_name(tmp_path: Path, is_there: bool) -> None:
    target, made, aside = tmp_path / "file", tmp_path / "made", tmp_path / "aside"
    made.write_bytes(b"of the snapshot")
    if is_there:
        target.write_bytes(b"newer")
    _put(made, target, aside)
    assert target.read_bytes() == b"of the snapshot"
    assert aside.exists() == is_there
