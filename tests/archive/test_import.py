"""`nnfs import`: archives of other programs and of `nnfs export`, damaged ones, and hostile ones."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from nnfs.cli.tar import member
from nnfs.cli.tar.member import Member
from tests.archive import kit
from tests.caches import sync_fs
from tests.harness import WAIT_S, Mount, command, environment, nnfs
from tests.semantics.kit import acl

pytestmark = pytest.mark.nnfs_only("a command of nnfs")
CHUNK = 16384


def archive(out: Path, *members: tuple[Member, bytes], end: bool = True) -> Path:
    """An archive of these members."""
    data = b""
    for one, content in members:
        one.stored = len(content)
        data += member.encode(one) + member.padded(content)
    (out / "x.tar").write_bytes(data + bytes(1024 if end else 0))
    return out / "x.tar"


def imported(file: Path, target: Path, *options: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """The exit code of an import and its report; no temporary file is left, in whatever way it ends."""
    done = nnfs("import", str(file), str(target), "--json", *options, check=False)
    assert not [name for _, _, files in os.walk(target) for name in files if "nnfs-import" in name]
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout or "{}")


def names(target: Path) -> list[str]:
    """All that lies below a directory."""
    return sorted(os.fspath(path.relative_to(target)) for path in target.rglob("*"))


@pytest.mark.parametrize("program", kit.PROGRAMS)
def test_an_archive_of_another_program(mnt: Path, out: Path, program: str) -> None:
    tree = out / "tree"
    kit.make_everything(tree)
    if program == "bsdtar":  # libarchive 3.6 writes -1.5 as -2.5
        for path in tree.rglob("*"):
            if (found := path.lstat().st_mtime_ns) < 0:
                os.utime(path, ns=(found // 10**9 * 10**9,) * 2, follow_symlinks=False)
    kit.make_names(tree / "names")
    before = kit.times(tree)
    kit.create(program, tree, out / "x.tar")
    (mnt / "again").mkdir()
    nnfs("import", str(out / "x.tar"), str(mnt / "again"))
    if program == "tar":  # bsdtar stores no atimes
        assert {name: kit.times(mnt / "again")[name][1] for name in before} == {n: t[1] for n, t in before.items()}
    kit.same(tree, mnt / "again")
    sync_fs(mnt)
    assert (mnt / "again" / "sparse").stat().st_blocks < 1000


@pytest.mark.parametrize(
    "form", ["gnu", "oldgnu", "ustar", "v7", "posix --sparse-version=0.0", "posix --sparse-version=0.1"]
)
def test_other_forms_of_gnu_tar(mnt: Path, out: Path, form: str) -> None:
    tree = out / "tree"
    tree.mkdir()
    (tree / "plain").write_bytes(b"text" * 1000)
    with (tree / "holes").open("wb") as file:
        for number in range(40):
            file.seek(number * 100_000)
            file.write(b"island %d" % number)
        file.truncate(5_000_000)
    sparse = [] if form in ("ustar", "v7") else ["--sparse"]
    if sparse:
        (tree / ("n" * 250)).symlink_to("t" * 250)
    words = form.split()
    subprocess.run(
        ["tar", f"--format={words[0]}", *words[1:], *sparse, "-cf", out / "x.tar", "-C", tree, "."], check=True
    )
    nnfs("import", str(out / "x.tar"), str(mnt))
    assert names(mnt) == names(tree)
    for name in ("plain", "holes"):
        assert (mnt / name).read_bytes() == (tree / name).read_bytes()


def test_export_and_import(mnt: Path, out: Path) -> None:
    tree = mnt / "tree"
    kit.make_everything(tree)
    kit.make_names(tree / "names")
    os.setxattr(tree / "dir1", "user.nnfs.policy", b"never")
    with (tree / "large").open("wb") as file:
        file.truncate(1 << 36)
        file.seek(9 << 30)
        file.write(b"island")
    kit.times(tree)
    nnfs("export", str(tree), str(out / "x.tar"))
    before = kit.times(tree)
    (mnt / "again").mkdir()
    nnfs("import", str(out / "x.tar"), str(mnt / "again"))
    assert kit.times(mnt / "again") == before
    large = mnt / "again" / "large"
    assert os.getxattr(large, "user.nnfs.fingerprint") == os.getxattr(tree / "large", "user.nnfs.fingerprint")
    (tree / "large").unlink()
    large.unlink()
    for path in (tree, mnt / "again"):
        os.utime(path, ns=(0, 0))
    kit.same(tree, mnt / "again")


def test_a_pipe_between_stores_with_other_chunks(mnt: Path, fresh_mount: Mount) -> None:
    kit.make_names(mnt / "tree")
    (mnt / "tree" / "big").write_bytes(os.urandom(3 << 20) + bytes(1 << 20))
    with subprocess.Popen(command("export", str(mnt / "tree"), "-"), env=environment(), stdout=subprocess.PIPE) as one:
        other = subprocess.run(
            command("import", "-", str(fresh_mount.path)), env=environment(), stdin=one.stdout, timeout=WAIT_S
        )
        assert (one.wait(WAIT_S), other.returncode) == (0, 0)
    kit.same(mnt / "tree", fresh_mount.path)


def test_wrong_content_never_has_a_name(mnt: Path, out: Path) -> None:
    (mnt / "tree").mkdir()
    for name in ("a", "bad", "z"):
        (mnt / "tree" / name).write_bytes(name.encode() * 20_000)
    os.link(mnt / "tree" / "bad", mnt / "tree" / "link to it")
    nnfs("export", str(mnt / "tree"), str(out / "x.tar"))
    data = (out / "x.tar").read_bytes()
    place = data.index(b"badbadbad") + 30_000
    (out / "x.tar").write_bytes(data[:place] + b"B" + data[place + 1 :])
    (mnt / "again").mkdir()
    (mnt / "again" / "bad").write_bytes(b"older")
    code, report = imported(out / "x.tar", mnt / "again")
    assert code == 7
    assert [(entry["path"], "fingerprint" in entry["why"]) for entry in report["failed"]] == [
        ("bad", True), ("link to it", False),
    ]  # fmt: skip
    assert names(mnt / "again") == ["a", "bad", "z"]
    assert (mnt / "again" / "bad").read_bytes() == b"older"


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.999])
def test_an_archive_that_is_cut_off(mnt: Path, out: Path, share: float) -> None:
    (mnt / "tree").mkdir()
    for number in range(5):
        (mnt / "tree" / f"f{number}").write_bytes(os.urandom(20_000))
    os.chmod(mnt / "tree", 0o751)
    nnfs("export", str(mnt / "tree"), str(out / "x.tar"))
    size = len((out / "x.tar").read_bytes().rstrip(b"\0"))
    os.truncate(out / "x.tar", int(size * share))
    (mnt / "again").mkdir()
    code, report = imported(out / "x.tar", mnt / "again")
    assert code == 7
    assert report["failed"][0]["why"].startswith("it is cut off" if share else "it is empty")
    for name in names(mnt / "again"):
        assert (mnt / "again" / name).read_bytes() == (mnt / "tree" / name).read_bytes()
    if share:
        assert stat.S_IMODE((mnt / "again").stat().st_mode) == 0o751


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"garbage " * 1000, "this is no tar archive"), (b"\x28\xb5\x2f\xfd" * 300, "zstdcat TAR | nnfs import - PATH"),
     (b"\x1f\x8b" * 300, "zcat TAR"), (b"short", "it is cut off"), (b"\xff" * 10240, "no tar archive")],
)  # fmt: skip
def test_something_else(mnt: Path, out: Path, data: bytes, why: str) -> None:
    (out / "x.tar").write_bytes(data)
    code, report = imported(out / "x.tar", mnt)
    assert (code, why in report["failed"][0]["why"], names(mnt)) == (7, True, [])


def test_hostile_names(mnt: Path, out: Path) -> None:
    """Nothing appears outside, whatever the way there; the rest of the archive is extracted."""
    target, outside = mnt / "target", mnt / "outside"
    for path in (target, outside):
        path.mkdir()
    (outside / "secret").write_bytes(b"secret")
    bad = [
        (Member(b"../outside/1"), b"x"), (Member(b"a/../../outside/2"), b"x"),
        (Member(b"way", member.SYMLINK, link=b"../outside"), b""), (Member(b"way/3"), b"x"),
        (Member(b"way/4", member.DIRECTORY), b""), (Member(b"way/5", member.FIFO), b""),
        (Member(b"6", member.HARD_LINK, link=b"../outside/secret"), b""),
        (Member(b"7", member.HARD_LINK, link=b"way/secret"), b""), (Member(b""), b"x"), (Member(b"nul", size=1), b"x"),
        (Member(b"..", member.DIRECTORY, mode=0), b""), (Member(b"8", member.HARD_LINK, link=b""), b""),
    ]  # fmt: skip
    bad[9][0].records[b"path"] = b"a\0b"
    code, report = imported(archive(out, *bad, (Member(b"/absolute"), b"y"), (Member(b"good"), b"z")), target)
    assert code == 1
    assert len(report["failed"]) == len(bad) - 1  # the link itself is an ordinary one
    assert names(target) == ["a", "absolute", "good", "way"] or names(target) == ["absolute", "good", "way"]
    assert (names(outside), (outside / "secret").stat().st_nlink) == (["secret"], 1)
    assert stat.S_IMODE(mnt.stat().st_mode) == 0o777


def test_the_later_of_two_members_holds(mnt: Path, out: Path) -> None:
    members = [
        (Member(b"a"), b"1"), (Member(b"a"), b"2"), (Member(b"d/", member.DIRECTORY), b""), (Member(b"d"), b"file"),
        (Member(b"f"), b"file"), (Member(b"f/", member.DIRECTORY, mode=0o750), b""), (Member(b"f/x"), b"in it"),
        (Member(b"l", member.SYMLINK, link=b"a"), b""), (Member(b"l"), b"3"),
        (Member(b"h", member.HARD_LINK, link=b"a"), b""), (Member(b"a"), b"4"),
    ]  # fmt: skip
    assert imported(archive(out, *members), mnt)[0] == 0
    assert {name: (mnt / name).read_bytes() for name in ("a", "d", "f/x", "l", "h")} == {
        "a": b"4", "d": b"file", "f/x": b"in it", "l": b"3", "h": b"2",
    }  # fmt: skip
    assert not (mnt / "l").is_symlink()
    assert stat.S_IMODE((mnt / "f").stat().st_mode) == 0o750


def test_damaged_headers(mnt: Path, out: Path) -> None:
    """Numbers that fit nothing, maps that lie, headers without bounds: errors, and quickly."""
    for one in (
        Member(b"f", records={b"size": b"-5"}), Member(b"f", records={b"uid": b"99999999999"}),
        Member(b"f", records={b"mtime": b"never"}), Member(b"f", records={b"size": b"9" * 30}),
        Member(b"f", size=100, extents=[(50, 10), (20, 10)]), Member(b"f", size=10, extents=[(0, 100)]),
        Member(b"f", records={b"GNU.sparse.map": b"0,5,x,1", b"GNU.sparse.size": b"9"}),
        Member(b"f", records={b"mtime": b"9" * 19}),
    ):  # fmt: skip
        code, report = imported(archive(out, (one, b"x" * 512)), mnt)
        assert (code != 0, len(report["failed"]), names(mnt)) == (True, 1, []), one
    head = bytearray(member.encode(Member(b"f", member.EXTENDED, stored=8**11 - 1)))
    (out / "x.tar").write_bytes(bytes(head) + bytes(4096))
    code, report = imported(out / "x.tar", mnt)
    assert (code, "bytes of headers" in report["failed"][0]["why"]) == (7, True)


def test_times_at_the_edges(mnt: Path, out: Path) -> None:
    """Times before 1970 and those that are just possible are kept; others are named, and the content is there."""
    times = [-1, -(10**9), -1_500_000_000, -(2**63), 2**63 - 1, -(2**63) - 1, 2**63, 253_402_300_799 * 10**9]
    files = [(Member(b"%d" % number, mtime=ns, atime=7), b"content") for number, ns in enumerate(times)]
    folder = Member(b"d/", member.DIRECTORY, mtime=2**63)
    began = time.time_ns()
    code, report = imported(archive(out, (folder, b""), *files, (Member(b"a", mtime=5, atime=2**63), b"content")), mnt)
    assert (code, [entry["path"] for entry in report["failed"]]) == (1, ["5", "6", "7", "a", "d/"])
    assert "its mtime could not be set: 9223372036 s since 1970" in report["failed"][1]["why"]
    assert [(mnt / str(number)).stat().st_mtime_ns for number in range(5)] == times[:5]
    assert [(mnt / str(number)).stat().st_atime_ns for number in range(8)] == [7] * 8
    assert {(mnt / str(number)).read_bytes() for number in range(8)} == {b"content"}
    assert all(began <= (mnt / str(number)).stat().st_mtime_ns <= time.time_ns() for number in range(5, 8))
    assert (mnt / "a").stat().st_mtime_ns == 5


def test_acls_of_other_programs(mnt: Path, out: Path) -> None:
    (mnt / "d").mkdir()
    os.setxattr(mnt / "d", "system.posix_acl_default", acl(7, 7, 7, mask=7, users={12001: 7}))
    texts = {
        b"star": b"user::rw-,user:nobody:r--:4711,user:no such:r-x:12002,group::r--,mask::r-x,other::---",
        b"gnu": b"user::rw-\nuser:12002:r-x\nuser:root:rw-\t#effective:r--\ngroup::r--\nmask::r-x\nother::---\n",
    }
    files = [(Member(b"d/" + name, mode=0o650, records={member.ACCESS: text}), b"") for name, text in texts.items()]
    broken = (Member(b"d/broken", mode=0o600, records={member.ACCESS: b"user::rw-,everybody::rwx"}), b"")
    code, report = imported(archive(out, *files, broken, (Member(b"d/none", mode=0o640), b"")), mnt)
    assert (code, [entry["path"] for entry in report["failed"]]) == (1, ["d/broken"])
    assert os.getxattr(mnt / "d" / "star", "system.posix_acl_access") == acl(
        6, 4, 0, mask=5, users={65534: 4, 12002: 5}
    )
    assert os.getxattr(mnt / "d" / "gnu", "system.posix_acl_access") == acl(6, 4, 0, mask=5, users={0: 6, 12002: 5})
    assert os.listxattr(mnt / "d" / "none") == []
    assert stat.S_IMODE((mnt / "d" / "none").stat().st_mode) == 0o640


def test_owners(mnt: Path, out: Path) -> None:
    file = archive(out, (Member(b"f", uid=4711, gid=4712, user=b"nobody", group=b"no such group"), b""))
    assert imported(file, mnt)[0] == 0
    assert ((mnt / "f").stat().st_uid, (mnt / "f").stat().st_gid) == (65534, 4712)
    assert imported(file, mnt, "--numeric-owner")[0] == 0
    assert ((mnt / "f").stat().st_uid, (mnt / "f").stat().st_gid) == (4711, 4712)


def test_computed_attributes_are_not_set(mnt: Path, out: Path) -> None:
    one = Member(b"d/", member.DIRECTORY)
    one.xattrs = {b"user.nnfs.policy": b"hot", b"user.nnfs.ino": b"7", b"user.x": b"\0\xff"}
    assert imported(archive(out, (one, b"")), mnt)[0] == 0
    assert sorted(os.listxattr(mnt / "d")) == ["user.nnfs.policy", "user.x"]


def test_wrong_usage(mnt: Path, mounted: Mount, out: Path) -> None:
    (mnt / "f").touch()
    file = str(archive(out, (Member(b"f"), b"")))
    for args, why in (
        ([file, str(mounted.store)], "is not a directory on a"), ([file, str(mnt / "f")], "is not a directory on a"),
        ([file, str(out)], "neither a store nor on an nnfs mount"),
    ):  # fmt: skip
        done = nnfs("import", *args, check=False)
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
    for path, why in ((out / "none", "No such file"), (out, "Is a directory")):
        done = nnfs("import", str(path), str(mnt), check=False)
        assert (done.returncode, why in done.stderr) == (1, True), done.stderr


def test_python_reads_what_is_exported(mnt: Path, out: Path) -> None:
    (mnt / "f").write_bytes(b"content")
    data = subprocess.run(command("export", str(mnt), "-"), env=environment(), capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        assert found.getnames() == [".", "f"]
