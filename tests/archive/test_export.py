"""`nnfs export`: archives that other programs extract, and what an export does when something is in its way."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.archive import kit
from tests.harness import WAIT_S, Mount, command, environment, nnfs

pytestmark = pytest.mark.nnfs_only("a command of nnfs")
CHUNK = 16384


@pytest.mark.parametrize("program", kit.PROGRAMS)
def test_everything_extracted_by_another_program(mnt: Path, out: Path, program: str) -> None:
    tree = mnt / "tree"
    kit.make_everything(tree)
    if program == "bsdtar":  # libarchive 3.6 reads -1.5 as -0.5
        for path in tree.rglob("*"):
            if (found := path.lstat().st_mtime_ns) < 0:
                os.utime(path, ns=(found // 10**9 * 10**9,) * 2, follow_symlinks=False)
    kit.make_names(tree / "names", b"user.n" if program == "bsdtar" else b"user.%3D=%25=x")
    before = kit.times(tree)
    nnfs("export", str(tree), str(out / "x.tar"))
    assert kit.times(tree) == before, "an export changes no atime"
    assert stat.S_IMODE((out / "x.tar").stat().st_mode) == 0o600
    kit.extract(program, out / "x.tar", mnt / "again")
    kit.same(tree, mnt / "again")


def test_the_same_tree_has_the_same_archive(mnt: Path, out: Path) -> None:
    kit.make_names(mnt / "tree")
    nnfs("export", str(mnt / "tree"), "/dev/null")  # to list a directory, or to read a link, moves an atime once
    nnfs("export", str(mnt / "tree"), str(out / "1.tar"))
    with (out / "2.tar").open("wb") as file:
        subprocess.run(command("export", str(mnt / "tree"), "-"), env=environment(), stdout=file, check=True)
    assert (out / "1.tar").read_bytes() == (out / "2.tar").read_bytes()
    assert (out / "1.tar").stat().st_size % 10240 == 0


@pytest.mark.parametrize("program", kit.PROGRAMS)
def test_files_with_holes_that_are_larger_than_a_field(mnt: Path, out: Path, program: str) -> None:
    (mnt / "tree").mkdir()
    for name, parts in (
        ("begin", [(0, b"x" * CHUNK)]),
        ("end", [((20 << 30) - 1, b"e")]),
        ("middle", [(9 << 30, b"island"), ((9 << 30) + 3 * CHUNK, b"y" * 100)]),
        ("hole", []),
    ):
        with (mnt / "tree" / name).open("wb") as file:
            file.truncate(20 << 30)
            for offset, data in parts:
                file.seek(offset)
                file.write(data)
    (mnt / "tree" / "small hole").touch()
    os.truncate(mnt / "tree" / "small hole", 100)
    report = json.loads(nnfs("export", str(mnt / "tree"), str(out / "x.tar"), "--json").stdout)
    assert report["files"] == 5
    assert report["plain_bytes"] == (4 * 20 << 30) + 100
    assert report["archive_bytes"] == (out / "x.tar").stat().st_size < 10 * CHUNK
    kit.extract(program, out / "x.tar", mnt / "again")
    for path in (mnt / "tree").iterdir():
        copy = mnt / "again" / path.name
        assert (copy.stat().st_size, copy.stat().st_blocks > 1000) == (path.stat().st_size, False)
        assert os.getxattr(copy, "user.nnfs.fingerprint") == os.getxattr(path, "user.nnfs.fingerprint"), path.name


def test_fingerprints_and_the_policy_travel(mnt: Path, out: Path) -> None:
    (mnt / "tree").mkdir()
    (mnt / "tree" / "f").write_bytes(b"text " * 10_000)
    os.setxattr(mnt / "tree", "user.nnfs.policy", b"cold")
    nnfs("export", str(mnt / "tree"), str(out / "x.tar"))
    with tarfile.open(out / "x.tar") as archive:
        assert archive.getmember(".").pax_headers["SCHILY.xattr.user.nnfs.policy"] == "cold"
        found = archive.getmember("f").pax_headers
    assert found["NNFS.fingerprint"] == os.getxattr(mnt / "tree" / "f", "user.nnfs.fingerprint").decode()
    assert found["NNFS.chunk_size"] == str(CHUNK)
    assert {name for name in found if ".nnfs." in name} == set()


def test_one_file(mnt: Path, out: Path) -> None:
    (mnt / "f").write_bytes(b"content")
    (mnt / "link").symlink_to("f")
    nnfs("export", str(mnt / "link"), str(out / "x.tar"))
    with tarfile.open(out / "x.tar") as archive:
        assert archive.getnames() == ["f"]
        assert archive.extractfile("f").read() == b"content"  # type: ignore[union-attr]


def test_an_archive_below_what_is_exported(mnt: Path, out: Path) -> None:
    (mnt / "a" / "b").mkdir(parents=True)
    (out / "link").symlink_to(mnt / "a" / "b")
    for target in (mnt / "a" / "x.tar", mnt / "a" / "b" / "x.tar", out / "link" / "x.tar"):
        done = nnfs("export", str(mnt / "a"), str(target), check=False)
        assert (done.returncode, target.exists()) == (2, False)
        assert "lies in what is exported" in done.stderr
    nnfs("export", str(mnt / "a" / "b"), str(mnt / "a" / "x.tar"))
    with (mnt / "a" / "stream.tar").open("wb") as file:
        streamed = subprocess.run(
            command("export", str(mnt / "a"), "-"),
            env=environment(),
            stdout=file,
            stderr=subprocess.PIPE,
            timeout=WAIT_S,
        )
    assert streamed.returncode == 0
    assert b"it is the archive itself" in streamed.stderr
    with tarfile.open(mnt / "a" / "stream.tar") as archive:
        assert archive.getnames() == [".", "b", "x.tar"]


def test_wrong_usage(mnt: Path, mounted: Mount, out: Path) -> None:
    for args, why in (
        ([str(mounted.store), str(out / "x")], "is a store: mount it"),
        ([str(out), str(out / "x")], "neither a store nor on an nnfs mount"),
        ([str(mnt), str(out)], "is a directory"),
        ([str(mnt), str(out / "no" / "x")], "is not a directory"),
        ([str(mnt), "-", "--json"], "name a file"),
    ):
        done = nnfs("export", *args, check=False)
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
    assert os.listdir(out) == []


def test_what_cannot_be_exported_is_told(mnt: Path, out: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(mnt / "socket"))
    (mnt / "f").touch()
    done = nnfs("export", str(mnt), str(out / "x.tar"))
    assert "socket: left out: archives have no sockets" in done.stderr
    with tarfile.open(out / "x.tar") as archive:
        assert archive.getnames() == [".", "f"]


def test_a_full_disk_leaves_no_archive(mnt: Path, out: Path) -> None:
    (mnt / "f").write_bytes(os.urandom(3 << 20))
    os.mkdir(out / "small")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", out / "small"], check=True)
    try:
        done = nnfs("export", str(mnt), str(out / "small" / "x.tar"), check=False)
        assert (done.returncode, done.stderr) == (8, "nnfs: no space left for the archive\n")
        assert os.listdir(out / "small") == []
    finally:
        subprocess.run(["umount", out / "small"], check=True)


def test_a_reader_that_goes_away(mnt: Path) -> None:
    (mnt / "f").write_bytes(os.urandom(3 << 20))
    with subprocess.Popen(command("export", str(mnt), "-"), env=environment(), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read(1000)
        child.stdout.close()
        assert child.wait(WAIT_S) == 1


def test_an_archive_stays_as_it_was_until_the_new_one_is_whole(mnt: Path, out: Path) -> None:
    (mnt / "f").write_bytes(b"new")
    (out / "x.tar").write_bytes(b"old")
    (out / "link.tar").symlink_to("x.tar")
    nnfs("export", str(mnt), str(out / "link.tar"))
    assert sorted(os.listdir(out)) == ["link.tar", "x.tar"]
    with tarfile.open(out / "x.tar") as archive:
        assert archive.getnames() == [".", "f"]
