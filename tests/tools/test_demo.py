"""tools/demo: what it takes, what it counts, what it says."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "lib"))

from bench import demo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in (("a/x", 3000), ("a/y", 5000), ("b/z", 300_000)):
        place = tmp_path / "in" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((name * size).encode()[:size])
    return tmp_path / "in"


def test_an_archive_is_a_folder(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "in.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, "in")
    with demo.source_of(archive) as source:
        assert sorted(entry.name for entry in source.iterdir()) == ["a", "b"]
    assert not source.exists()


def test_a_limit_bounds_each_set(folder: Path) -> None:
    assert len(demo.chosen(folder / "a", None, 1)) == 2
    assert len(demo.chosen(folder / "a", 8000, 1)) == 2
    assert len(demo.chosen(folder / "a", 1000, 1)) == 1
    assert demo.chosen(folder / "a", 1000, 1) == demo.chosen(folder / "a", 1000, 1)


def test_what_is_copied_is_what_is_compared(folder: Path, tmp_path: Path) -> None:
    sets = {name: demo.chosen(folder / name, 4000, 1) for name in ("a", "b")}
    demo.copy(folder, sets, tmp_path / "out", 4000)
    assert (tmp_path / "out/b/z").stat().st_size == 4000
    assert demo.digests(folder, sets, folder, 4000) == demo.digests(folder, sets, tmp_path / "out", 4000)
    (tmp_path / "out/b/z").write_bytes(b"other")
    assert demo.digests(folder, sets, folder, 4000) != demo.digests(folder, sets, tmp_path / "out", 4000)


def test_classical_codecs_work_on_the_same_bytes(folder: Path) -> None:
    sets = {"b": demo.chosen(folder / "b", None, 1)}
    whole, part = demo.classical(sets, None)["b"], demo.classical(sets, 1000)["b"]
    assert 0 < part["zstd-19"] < whole["zstd-19"] < 10_000
    assert 0 < part["xz"] < whole["xz"] < 10_000


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    codecs = [
        {"codec": "neural", "chunks": 9, "plain_bytes": 9 << 17, "stored_bytes": 9000},
        {"codec": "raw", "chunks": 1, "plain_bytes": 1 << 17, "stored_bytes": 1 << 17},
    ]
    line = {"plain_bytes": 10 << 17, "stored_bytes": 9000 + (1 << 17), "codecs": codecs}
    df = {"logical_bytes": 10 << 17, "physical_bytes": (28 << 20) + 600_000, "model_bytes": 28 << 20, "codecs": codecs}
    times = {"copy": 1.0, "compact": 2.0, "read back": 3.0}
    hot = {**df, "physical_bytes": (28 << 20) + 1_000_000}
    result = {"hot": hot, "cold": df, "hot_sets": {"a": line}, "cold_sets": {"a": line}}
    without = {"cold": {**df, "physical_bytes": (28 << 20) + 800_000}}
    demo.show({**result, "times": times, "equal": True}, without, {"a": {"zstd-19": 1, "xz": 2}})
    said = capsys.readouterr().out
    assert "40.0 % below" in said
    assert "25.0 % below that" in said
    assert "90.0% of them neural" in said
    assert "every file has its SHA-256" in said


def test_a_path_that_is_not_there() -> None:
    sys_argv, sys.argv = sys.argv, ["demo", "/nowhere"]
    try:
        with pytest.raises(SystemExit) as ended:
            demo.main()
        assert ended.value.code == 2
    finally:
        sys.argv = sys_argv
