"""Programs that people run: git, sqlite, rsync, tar, cp, dpkg's renames. Read back from the store, not the cache."""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import FULL, REPO, WAIT_S, Mount, Plain, work_dir
from tests.semantics.kit import acl, capability, pattern

GIT_ENV = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def need(program: str) -> None:
    """Skip, saying why, when a program is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def run(*argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        [str(a) for a in argv], cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, timeout=WAIT_S
    )
    out = done.stdout.decode(errors="backslashreplace")
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{out}{done.stderr.decode(errors='backslashreplace')}"
    return out


def manifest(base: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that a copy must keep, by relative path; links by the set of their names."""
    root = os.fsencode(base)
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[int, bytes] = {}
    paths = sorted(
        os.path.join(d, n) for d, ds, fs in os.walk(root) for n in (*ds, *fs)
    )  # os.walk does not follow symlinks
    for path in [root, *paths]:
        st = os.lstat(path)
        name = os.path.relpath(path, root)
        first = inodes.setdefault(st.st_ino, name)
        what: object = None
        if stat.S_ISREG(st.st_mode):
            what = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
        elif stat.S_ISLNK(st.st_mode):
            what = os.readlink(path)
        size = st.st_size if not stat.S_ISDIR(st.st_mode) else 0
        links = st.st_nlink if not stat.S_ISDIR(st.st_mode) else 0
        xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)}
        time = None if path == root else st.st_mtime_ns
        found[name] = (
            st.st_mode,
            st.st_uid,
            st.st_gid,
            size,
            st.st_rdev,
            time,
            links,
            first,
            what,
            sorted(xattrs.items()),
        )
    return found


def make_everything(base: Path) -> None:
    """A tree that has everything a copy can lose."""
    base.mkdir()
    for i in range(60):
        d = base / f"dir{i % 7}" / f"sub{i % 3}"
        d.mkdir(parents=True, exist_ok=True)
        (d / f"file{i}").write_bytes(pattern(i * 997, seed=i + 1))
    raw = os.fsencode(base)
    for name in (b"\xff\xfe bytes", b"new\nline", b"n" * 255, b" lead", b"-dash", "ünïcode".encode()):
        with open(raw + b"/" + name, "wb") as f:
            f.write(name)
    (base / "empty dir").mkdir()
    (base / "empty").touch()
    (base / "big").write_bytes(os.urandom(3 << 20) + bytes(1 << 20) + b"text " * 100_000)
    with (base / "sparse").open("wb") as f:
        f.truncate(50 << 20)
        f.seek(20 << 20)
        f.write(b"island")
    os.link(base / "big", base / "dir1" / "big's other name")
    os.symlink("big", base / "link")
    os.symlink("dangling/" + "x" * 3000, base / "dangling")
    os.link(base / "link", base / "link2", follow_symlinks=False)
    os.mkfifo(base / "fifo", 0o640)
    os.mknod(base / "char", stat.S_IFCHR | 0o600, os.makedev(5, 300))
    os.mknod(base / "block", stat.S_IFBLK | 0o600, os.makedev(259, 1 << 18))
    (base / "suid").write_bytes(b"#!/bin/sh\n")
    os.chown(base / "suid", 12001, 12100)
    os.chmod(base / "suid", 0o6755)
    (base / "caps").write_bytes(b"x")
    os.setxattr(base / "caps", "security.capability", capability())
    os.setxattr(base / "big", "user.comment", b"with \0 zero")
    os.setxattr(base / "big", "user.large", pattern(2000))
    os.setxattr(base / "dir2", "trusted.note", b"root's")
    os.setxattr(base / "dir2", "system.posix_acl_access", acl(7, 5, 0, mask=7, users={12001: 7}))
    os.setxattr(base / "dir2", "system.posix_acl_default", acl(7, 5, 0, mask=5, groups={12100: 5}))
    os.setxattr(base / "empty", "system.posix_acl_access", acl(6, 4, 0, mask=4, users={12001: 4, 12002: 0}))
    os.chmod(base / "dir3", 0o2775)
    os.chmod(base / "dir4", 0o1777)
    # No mtime of today: rsync takes times within one second for equal.
    for i, path in enumerate(sorted(base.rglob("*"), reverse=True)):
        os.utime(path, ns=(10**18 + i * 10**9 + i, 10**18 + i * 10**9 + i), follow_symlinks=False)
    for i, node in enumerate(("big", "empty", "sparse", "dir5/sub2", "dir5", "fifo", "link", "suid")):
        ns = (-(10**18) + i, 123_456_789 + i, 2**31 * 10**9 + 7)[i % 3]
        os.utime(base / node, ns=(ns, ns), follow_symlinks=False)


@pytest.fixture(scope="module")
def everything() -> Iterator[Path]:
    """The tree, on the lower filesystem."""
    base = work_dir()
    make_everything(base / "tree")
    yield base / "tree"
    shutil.rmtree(base)


def test_the_tree_itself_on_the_mount(mnt: Path, mounted: Mount | Plain) -> None:
    """Made in place, not copied."""
    make_everything(mnt / "tree")
    before = manifest(mnt / "tree")
    assert len(before) > 90
    mounted.drop_caches()
    assert manifest(mnt / "tree") == before
    mounted.remount()
    assert manifest(mnt / "tree") == before
    shutil.rmtree(mnt / "tree")
    assert os.listdir(mnt) == []


def test_rsync(mnt: Path, mounted: Mount | Plain, everything: Path) -> None:
    need("rsync")
    run("rsync", "-aHAXS", "--numeric-ids", f"{everything}/", mnt / "copy")
    mounted.remount()
    again = ("rsync", "-aHAXn", "-i", "--numeric-ids", "--delete")
    assert run(*again, "--checksum", f"{everything}/", f"{mnt}/copy/") == ""
    want = manifest(everything)
    assert manifest(mnt / "copy") == want
    # And back: what is read from here is as complete.
    back = work_dir()
    try:
        run("rsync", "-aHAXS", "--numeric-ids", f"{mnt}/copy/", back / "copy")
        assert run(*again, f"{mnt}/copy/", f"{back}/copy/") == ""
        assert manifest(back / "copy") == want
    finally:
        shutil.rmtree(back)


def test_rsync_updates_in_place_and_deletes(mnt: Path, mounted: Mount | Plain, everything: Path) -> None:
    need("rsync")
    run("rsync", "-aHAX", f"{everything}/", mnt / "copy")
    (mnt / "copy" / "extra").write_bytes(b"to be deleted")
    (mnt / "copy" / "big").write_bytes(b"changed")
    (mnt / "copy" / "dir6" / "sub0" / "file6").unlink()
    run("rsync", "-aHAX", "--inplace", "--delete", f"{everything}/", mnt / "copy")
    mounted.drop_caches()
    assert run("rsync", "-aHAXnc", "-i", "--delete", f"{everything}/", f"{mnt}/copy/") == ""
    assert manifest(mnt / "copy") == manifest(everything)


def test_cp_archive_and_sparse(mnt: Path, mounted: Mount | Plain, everything: Path) -> None:
    run("cp", "-a", everything, mnt / "copy")
    run("cp", "--sparse=always", everything / "sparse", mnt / "holes")
    run("cp", "--sparse=never", everything / "sparse", mnt / "zeros")
    run("cp", "-a", mnt / "copy", mnt / "second")
    mounted.remount()
    want = manifest(everything)
    assert manifest(mnt / "copy") == want
    assert manifest(mnt / "second") == want
    for name in ("holes", "zeros"):
        assert filecmp.cmp(everything / "sparse", mnt / name, shallow=False)
    assert (mnt / "holes").stat().st_blocks * 512 < 1 << 20


def test_tar_both_ways(mnt: Path, mounted: Mount | Plain, everything: Path) -> None:
    options = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--format=posix"]
    run("tar", "-C", everything, *options, "-Scf", mnt / "a.tar", ".")
    (mnt / "copy").mkdir()
    run("tar", "-C", mnt / "copy", *options, "-xpf", mnt / "a.tar")
    mounted.remount()
    assert manifest(mnt / "copy") == manifest(everything)
    run("tar", "-C", mnt / "copy", *options, "--compare", "-f", mnt / "a.tar")
    with tarfile.open(mnt / "a.tar") as archive:
        assert len(archive.getmembers()) == len(manifest(everything))


def git(cwd: Path, *args: str) -> str:
    """One git command."""
    return run("git", *args, cwd=cwd, env=GIT_ENV)


def test_git(mnt: Path, mounted: Mount | Plain) -> None:
    need("git")
    tree = mnt / "repo"
    tree.mkdir()
    git(tree, "init", "-q", "-b", "main")
    # A real tree: this project's own tracked files.
    shutil.copytree(REPO / "nnfs", tree / "nnfs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPO / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    os.symlink("run", tree / "link")
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "first")
    assert git(tree, "status", "--porcelain") == ""
    mounted.drop_caches()
    assert git(tree, "status", "--porcelain") == ""
    for i in range(5):
        (tree / "nnfs" / "new.py").write_text(f"n = {i}\n")
        (tree / f"file{i}").write_bytes(pattern(5000 * i, seed=i + 1))
        git(tree, "add", ".")
        git(tree, "commit", "-q", "-m", f"change {i}")
    git(tree, "mv", "file3", "moved")
    git(tree, "rm", "-q", "-r", "tests")
    git(tree, "commit", "-q", "-am", "moved and removed")
    git(tree, "gc", "-q", "--prune=now")
    mounted.remount()
    git(tree, "fsck", "--strict", "--full")
    assert git(tree, "status", "--porcelain") == ""
    assert git(tree, "log", "--oneline").count("\n") == 7
    git(mnt, "clone", "-q", "--no-hardlinks", "repo", "clone")
    git(mnt, "clone", "-q", "repo", "linked")
    git(mnt / "clone", "checkout", "-q", "HEAD~3")
    assert (mnt / "clone" / "tests" / "harness.py").exists()
    git(mnt / "clone", "checkout", "-q", "main")
    for name in ("clone", "linked"):
        git(mnt / name, "fsck", "--strict", "--full")
        assert git(mnt / name, "status", "--porcelain") == ""
        assert git(mnt / name, "rev-parse", "HEAD^{tree}") == git(tree, "rev-parse", "HEAD^{tree}")


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate", "persist"])
def test_sqlite(mnt: Path, mounted: Mount | Plain, journal: str) -> None:
    path = mnt / "db"
    rows = 5000 if FULL else 1000

    def connect() -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None)
        assert db.execute(f"pragma journal_mode={journal}").fetchone()[0] == journal
        return db

    def check(db: sqlite3.Connection) -> None:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]

    db = connect()
    db.execute("create table t (id integer primary key, body blob)")
    for start in range(0, rows, 100):
        db.execute("begin")
        db.executemany(
            "insert into t values (?, ?)", ((i, pattern(i % 700, seed=i + 1)) for i in range(start, start + 100))
        )
        db.execute("commit")
    with_reader = connect()  # a second connection: shared memory in WAL mode, locks in the others
    assert with_reader.execute("select count(*) from t").fetchone() == (rows,)
    db.execute("begin immediate")
    with_reader.execute("pragma busy_timeout=0")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        with_reader.execute("begin immediate")
    db.execute("delete from t where id % 3 = 0")
    db.execute("rollback")
    check(db)
    db.execute("update t set body = cast(body || 'x' as blob) where id % 5 = 0")
    with_reader.close()
    db.close()
    mounted.remount()
    db = connect()
    check(db)
    for i, body in db.execute("select id, body from t order by id"):
        assert bytes(body) == pattern(i % 700, seed=i + 1) + (b"x" if i % 5 == 0 else b"")
    db.execute("delete from t where id > 10")
    db.execute("vacuum")
    check(db)
    db.close()
    mounted.drop_caches()
    db = connect()
    check(db)
    assert db.execute("select count(*) from t").fetchone() == (11,)
    db.close()
    assert sorted(set(os.listdir(mnt)) - {"db-journal"}) == ["db"]


def test_the_way_dpkg_installs(mnt: Path, mounted: Mount | Plain) -> None:
    """name.dpkg-new, fsync, link of the old one aside, rename over it; twice over 300 files, then a removal."""
    count = 1000 if FULL else 300
    for version in (1, 2):
        for i in range(count):
            d = mnt / "usr" / f"d{i % 20}"
            d.mkdir(parents=True, exist_ok=True)
            name, new, old = d / f"f{i}", d / f"f{i}.dpkg-new", d / f"f{i}.dpkg-tmp"
            with new.open("wb") as f:
                f.write(pattern(i * 37, seed=version))
                f.flush()
                os.fchmod(f.fileno(), 0o644)
                os.utime(f.fileno(), ns=(version * 10**9, version * 10**9))
                if i % 10 == 0:
                    os.fsync(f.fileno())
            if version == 2:
                os.link(name, old)
            os.rename(new, name)
            if version == 2:
                os.unlink(old)
        mounted.drop_caches()
        for i in range(count):
            name = mnt / "usr" / f"d{i % 20}" / f"f{i}"
            assert name.read_bytes() == pattern(i * 37, seed=version)
            assert name.stat().st_mtime_ns == version * 10**9
            assert name.stat().st_nlink == 1
    mounted.remount()
    assert sum(len(files) for _, _, files in os.walk(mnt)) == count
    run("rm", "-r", mnt / "usr")
    assert os.listdir(mnt) == []


def test_du_find_and_diff_agree(mnt: Path, mounted: Mount | Plain, everything: Path) -> None:
    run("cp", "-a", everything, mnt / "copy")
    mounted.drop_caches()
    listing = ("-printf", "%P %y %m %U %G\\n")
    assert sorted(run("find", mnt / "copy", *listing).split("\n")) == sorted(
        run("find", everything, *listing).split("\n")
    )
    apparent = int(run("du", "-s", "--apparent-size", "-B1", mnt / "copy" / "big").split()[0])
    assert apparent == (everything / "big").stat().st_size
    run("diff", "-r", "--no-dereference", everything / "dir1", mnt / "copy" / "dir1")
