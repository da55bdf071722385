"""`nnfs doctor`: each check where something is wrong, and a bundle without names and content of files."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnfs import __version__
from nnfs.cli.doctor import bundle, codecs, logtext, machine, main, place
from nnfs.cli.doctor.finding import FAIL, OK, WARN, Finding, ok
from nnfs.errors import StoreDamaged
from nnfs.mount import logs
from nnfs.store.env import Store
from nnfs.workers import selfcheck
from nnfs.workers.catalogue import Catalogue
from tests.cli.conftest import Run
from tests.cli.kit import FakeDaemon
from tests.cli.test_show import STATUS
from tests.conftest import why_no_mount
from tests.format import make
from tests.harness import Mount, command, nnfs

needs_mount = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")
SECRET = "Secret-Name-Of-A-File"
BUG = "bug in %s, the mount is read-only from here on: unmount and mount again"  # a format of mount/guard.py
HEALTHY: dict[str, Any] = STATUS | {
    "lost": "", "commit": 5, "damaged_blocks": 0, "damaged": [], "wrong_decodes": 0, "device_errs": "",
    "codecs_out": [], "workers": [], "version": __version__, "uptime": 7.0,
    "scrubbed": {"checksums": None},
}  # fmt: skip


def verdicts(findings: Iterator[Finding]) -> dict[str, str]:
    """Check to verdict."""
    return {finding.check: finding.verdict for finding in findings}


# ------------------------------------------------------------------------------------------------------- the machine


def test_a_line_has_verdict_check_finding_and_advice() -> None:
    assert Finding("fuse", FAIL, "there\nis none", "load it").line() == "fail  fuse         there\\nis none: load it"
    assert ok("fuse", "there").line() == "ok    fuse         there"


@pytest.mark.parametrize("kind", ["none", "no device"])
def test_fuse(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "fuse"
    if kind == "no device":
        path.mkdir()
    monkeypatch.setattr(machine, "FUSE", os.fspath(path))
    found = machine._fuse()
    assert (found.verdict, bool(found.advice)) == (FAIL, True)


def test_fusermount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert machine._fusermount().verdict in (FAIL, WARN)
    (tmp_path / "fusermount3").write_text("")
    (tmp_path / "fusermount3").chmod(0o755)
    assert "not setuid" in machine._fusermount().text
    if os.geteuid() == 0:
        (tmp_path / "fusermount3").chmod(0o4755)
        assert machine._fusermount().verdict == OK


def test_who_may_share_a_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "FUSE_CONF", os.fspath(tmp_path / "conf"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert machine._allow_other().verdict == WARN
    (tmp_path / "conf").write_text("#user_allow_other\nmount_max = 5\n")
    assert machine._allow_other().verdict == WARN
    (tmp_path / "conf").write_text("  user_allow_other # yes\n")
    assert machine._allow_other().verdict == OK


def test_helpers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "HELPERS", (os.fspath(tmp_path / "mount"), sys.executable))
    assert (machine._helpers().verdict, os.fspath(tmp_path / "mount") in machine._helpers().text) == (WARN, True)


def test_a_folder_that_others_cannot_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "closed" / "file").touch()
    inside = machine._closed(os.fspath(tmp_path / "closed" / "file"))
    assert (tmp_path / "closed").is_relative_to(inside), "any directory above may be closed, too"
    assert inside


def test_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NNFS_CONFIG", os.fspath(tmp_path / "nnfs.toml"))
    (tmp_path / "nnfs.toml").write_text('[default]\ncache = "much"\n')
    assert machine._config().verdict == FAIL
    (tmp_path / "nnfs.toml").write_text('[default]\ncache = "5M"\n')
    assert machine._config().verdict == OK


@pytest.mark.parametrize(("now", "verdict"), [(0.0, FAIL), (9e9, FAIL)])
def test_a_clock_that_stands_wrong(now: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: now)
    assert machine._clock().verdict == verdict


def test_a_clock_that_nobody_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_unsynced, verdict in ((True, WARN), (False, OK)):
        monkeypatch.setattr(machine, "_is_unsynced", lambda found=is_unsynced: found)
        assert machine._clock().verdict == verdict


def test_little_memory_and_little_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "memory", lambda: {"MemTotal": 1 << 34, "MemAvailable": 1 << 33, "bound": 1 << 28})
    assert machine._memory().verdict == WARN
    monkeypatch.setattr(machine, "LEAST_SPACE", 1 << 62)
    assert machine._room("logs", os.fspath(tmp_path / "not" / "there")).verdict == WARN


# -------------------------------------------------------------------------------------------------------- the codecs


def test_the_golden_payloads_are_those_of_the_tests() -> None:
    """Once written, for ever. Those of the network change with the model that is shipped, as there."""
    *known, _ = json.loads(make.GOLDEN.read_text())
    told = {one["name"]: (one["codec"], one["plain"], one["payload"]) for one in known}
    ours = json.loads(Path(selfcheck.GOLDEN).read_text())
    assert {one["name"]: (one["codec"], one["plain"], one["payload"]) for one in ours}.items() <= told.items()
    assert {one["codec"] for one in ours} == {1, 16, 17, 19, 20, 21}


def test_a_codec_that_decodes_something_else_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    payloads = json.loads(Path(selfcheck.GOLDEN).read_text())
    quick = [one for one in payloads if one["codec"] in (1, 19)]
    quick[1]["plain"] = base64.b64encode(b"x" * len(base64.b64decode(quick[1]["plain"]))).decode()
    (tmp_path / "golden.json").write_text(json.dumps(quick))
    monkeypatch.setattr(selfcheck, "GOLDEN", os.fspath(tmp_path / "golden.json"))
    found = [*selfcheck.exactness(Catalogue("cpu"))]
    assert [line["why"] for line in found] == ["", "wrong bytes", ""]
    finding = codecs._exact("exactness", found, "")
    assert (finding.verdict, finding.text) == (FAIL, "ppm: wrong bytes")


def test_what_is_not_installed_is_no_failure() -> None:
    lines = [{"golden": "a", "codec": 16, "why": "codec neural needs torch, which is not installed"}]
    assert codecs._exact("exactness", lines, "").verdict == WARN


@pytest.mark.parametrize("script", ["import os; os.abort()", "raise SystemExit(3)"])
def test_a_check_that_dies_is_a_failure(script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nulimit -c 0\nexec {sys.executable} -c '{script}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", os.fspath(program))
    found, trouble = codecs.run("cpu", b"")
    assert (found, trouble.startswith("ended with ")) == ([], True)
    assert [finding.verdict for finding in codecs._path(found, trouble)] == [FAIL]
    assert codecs._exact("exactness", found, trouble).verdict == FAIL


def test_kernels_that_do_not_compute_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NNFS_KERNELS", raising=False)
    for level, verdict in (("amx", OK), ("avx2", FAIL), (None, WARN)):
        line = {"levels": ["amx", "avx2"], "level": level, "device": "cpu"}
        assert [finding.verdict for finding in codecs._path([line], "")] == [verdict]


def test_speeds_are_told_and_errors_too() -> None:
    lines = [{"speed": 17, "why": "does not give back"}, {"speed": 19, "why": "", "encode": 2e6, "decode": 3e6}]
    assert [finding.verdict for finding in codecs._speeds(lines)] == [FAIL, OK]


def test_this_machine_is_exact(run: Run) -> None:
    """The whole command, with the codecs: all golden payloads on the usual engines."""
    found = {finding.check: finding for finding in codecs.checks(with_speed=False)}
    assert (found["exactness"].verdict, found["reference"].verdict) == (OK, OK)
    assert "speed" not in found


# ------------------------------------------------------------------------------------------------- a store, a mount


def test_a_path_that_is_no_store(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("doctor", tmp_path, "--quick")
    assert (code, "neither a store nor on an nnfs mount" in out) == (1, True)


def test_a_store_at_rest(run: Run, store: Path) -> None:
    assert verdicts(place.checks(os.fspath(store)))["store"] == OK
    (store / "data.mdb").chmod(0o644)
    assert verdicts(place.checks(os.fspath(store)))["rights"] == WARN
    with (store / "data.mdb").open("r+b") as file:
        file.write(bytes(16384))
    found = verdicts(place.checks(os.fspath(store)))
    assert found["store"] == FAIL
    assert run("doctor", store, "--quick")[0] == 1


def test_a_daemon_that_is_well(store: Path, mnt: Path) -> None:
    with FakeDaemon(store, status=HEALTHY):
        found = verdicts(place.checks(os.fspath(store)))
    found.pop("room")  # of this machine
    found.pop("disk")
    assert set(found.values()) == {OK}


@pytest.mark.parametrize(
    ("told", "check", "verdict"),
    [
        ({"lost": "was deleted"}, "writes", FAIL),
        ({"no_space": True}, "writes", FAIL),
        ({"read_only": "a bug in unlink: KeyError(1)"}, "writes", FAIL),
        ({"read_only": "mounted read-only"}, "writes", OK),
        ({"damaged_blocks": 3}, "damage", FAIL),
        ({"wrong_decodes": 1}, "damage", WARN),
        ({"device_errs": "cuda:0 computes wrong bytes"}, "damage", WARN),
        ({"scrubbed": {"checksums": 1e9}}, "scrub", WARN),
        ({"uptime": 1e8}, "scrub", WARN),
        ({"codecs_out": [{"codec": "cm", "why": "no numba", "cure": "install it"}]}, "codecs", WARN),
        ({"workers": STATUS["workers"]}, "workers", WARN),
        ({"version": "0.0.1"}, "version", WARN),
    ],
)  # fmt: skip
def test_troubles_of_a_daemon(told: dict[str, Any], check: str, verdict: str, store: Path) -> None:
    with FakeDaemon(store, status=HEALTHY | told):
        assert verdicts(place.checks(os.fspath(store)))[check] == verdict


def test_json(run: Run, store: Path) -> None:
    code, out, _ = run("doctor", store, "--quick", "--json")
    found = json.loads(out)["checks"]
    assert code == 1 or not [one for one in found if one["verdict"] == FAIL]
    assert {name: found[-1][name] for name in ("check", "verdict")} == {"check": "store", "verdict": OK}


# ---------------------------------------------------------------------------------------------------------- the bundle

STAMP = "2026-11-30T10:00:00.123+0000"
LINES = {
    f"{STAMP} ERROR nnfs.background.scrub: block 7 is damaged: /a/Secret x, /b":
        f"{STAMP} ERROR nnfs.background.scrub: block 7 is damaged: ...",
    f"{STAMP} WARNING nnfs.blockio.commit: commit 7: [Errno 28] No space left on device: 'Secret'; trying again":
        f"{STAMP} WARNING nnfs.blockio.commit: commit 7: [Errno 28] No space left on device ...; trying again",
    f"{STAMP} WARNING nnfs.blockio.cold: block -1 is repaired by a small change of its stored bytes": None,
    f"{STAMP} WARNING nnfs.blockio.cold: Secret": f"{STAMP} WARNING nnfs.blockio.cold: ...",
    f"{STAMP} WARNING nnfs.no.module: Secret": f"{STAMP} WARNING nnfs.no.module: ...",
    f"{STAMP} WARNING py.warnings: Secret": f"{STAMP} WARNING py.warnings: ...",
    "2026-11-30T10:00:00+00:00 nnfs[17]: nnfs.background.scrub: block 7 is damaged: Secret":
        "2026-11-30T10:00:00+00:00 nnfs[17]: nnfs.background.scrub: block 7 is damaged: ...",
    "Traceback (most recent call last):": None,
    "Thread 0x00007f1d6ffff6c0 (most recent call first):": None,
    '  File "/opt/Secret/lib/python3.11/site-packages/nnfs/fs/apply.py", line 7, in apply':
        "  File nnfs/fs/apply.py, line 7, in apply",
    '  File "/opt/Secret/nnfs/fs/apply.py", line 7 in Apply.<lambda>':
        "  File nnfs/fs/apply.py, line 7, in Apply.<lambda>",
    "    raise RecordDamaged(Secret)": "...",
    "nnfs.errors.RecordDamaged: table 5: Secret": "nnfs.errors.RecordDamaged: ...",
    "  | OSError: [Errno 5] Input/output error: 'Secret'": "  | OSError: [Errno 5] Input/output error ...",
    "KeyError: Secret": "KeyError: ...",
    "KeyError": None,
    "Secret: of a file": "...",
    "SecretError": "...",
    "Secret": "...",
    "": None,
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_lines_of_a_log_without_names(line: str) -> None:
    assert logtext.shown(line) == (line if LINES[line] is None else LINES[line])


def members(file: Path) -> dict[str, str]:
    """The texts of a bundle."""
    with tarfile.open(file) as archive:
        found = {}
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            found[member.name.removeprefix("nnfs-doctor/")] = content.read().decode()
        return found


def test_a_bundle_of_a_machine(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("doctor", "--quick", "--bundle", tmp_path / "b.tar.gz")
    assert code in (0, 1)
    texts = members(tmp_path / "b.tar.gz")
    assert set(texts) == {
        "README.txt", "checks.txt", "checks.json", "versions.json", "cpu.txt", "memory.json", "config.json",
        "mounts.json",
    }  # fmt: skip
    assert stat.S_IMODE((tmp_path / "b.tar.gz").stat().st_mode) == 0o600
    assert json.loads(texts["versions.json"])["lmdb"]
    if len(socket.gethostname()) > 5:
        assert not any(socket.gethostname() in text for text in texts.values())
    assert out.splitlines()[-1].startswith(f"{tmp_path}/b.tar.gz has README.txt")
    code, _, err = run("doctor", "--quick", "--bundle", tmp_path / "b.tar.gz")
    assert (code, "exists" in err) == (2, True)
    assert run("doctor", "--quick", "--bundle", tmp_path / "none" / "b.tar.gz")[0] == 2
    assert os.listdir(tmp_path) == ["b.tar.gz"]


def test_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    assert bundle.log_of(os.fspath(tmp_path / "none"), 1) == "the log cannot be read: No such file or directory\n"
    assert bundle.log_of(logs.STDERR, 1) == "the log goes to stderr\n"


def test_a_log_as_it_is_written(tmp_path: Path) -> None:
    """A record with an exception, by the daemon's own formatter."""
    room = io.StringIO()
    handler = logging.StreamHandler(room)
    handler.setFormatter(logs.OneLine(logs.FORMAT))
    try:
        raise StoreDamaged(f"/{SECRET} is damaged")
    except StoreDamaged:
        error = sys.exc_info()
    record = logging.LogRecord("nnfs.mount.guard", logging.ERROR, __file__, 1, BUG, (SECRET,), error)
    handler.handle(record)
    (tmp_path / "log").write_text(room.getvalue())
    text = bundle.log_of(os.fspath(tmp_path / "log"), 1)
    assert SECRET not in text
    assert "ERROR nnfs.mount.guard: bug in ..., the mount is read-only from here on" in text
    assert "in test_a_log_as_it_is_written" in text
    assert "nnfs.errors.StoreDamaged: ..." in text


@needs_mount
def test_a_bundle_of_a_mount_has_no_names(tmp_path: Path) -> None:
    """A daemon that logs as much as it can, and names that would be found anywhere."""
    log = tmp_path / "daemon.log"

    def argv(mount: Mount) -> list[str]:
        return command("mount", str(mount.store), str(mount.path), "-f", "--log", str(log), "--log-level", "debug")

    with Mount(argv=argv, chunk_size=16384) as mount:
        mount.deadline()
        (mount.path / SECRET).mkdir()
        (mount.path / SECRET / f"{SECRET}.txt").write_text(SECRET * 5000)
        os.setxattr(mount.path / SECRET, f"user.{SECRET}", SECRET.encode())
        nnfs("policy", str(mount.path / SECRET), "cold")
        nnfs("compact", str(mount.path / SECRET), "--quick", "--all", "--wait")
        nnfs("scrub", str(mount.path), "--wait")
        nnfs("snapshot", "create", str(mount.path), SECRET)
        done = nnfs("doctor", str(mount.path), "--quick", "--bundle", str(tmp_path / "b.tar.gz"), check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        texts = members(tmp_path / "b.tar.gz")
        for name, text in texts.items():
            for word in (SECRET, str(mount.store), str(mount.path), str(mount.base)):
                assert word not in text, name
        assert json.loads(texts["status.json"])["damaged_blocks"] == 0
        assert "INFO nnfs.mount.daemon: " in texts["log.txt"]
        assert "ok    damage" in texts["checks.txt"]


def test_the_command_prints_a_line_for_each_check() -> None:
    done = subprocess.run([*command("doctor", "--quick")], capture_output=True, text=True)
    assert done.returncode in (0, main.FAILED)
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines[:-1]} <= {OK, WARN, FAIL}
    assert lines[-1] == ", ".join(f"{sum(one.split()[0] == v for one in lines[:-1])} {v}" for v in (OK, WARN, FAIL))


def test_a_store_of_the_future_has_a_wrong_clock(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Store.open(store, readonly=True)
    made = opened.superblock.created / 1e9
    opened.close()
    monkeypatch.setattr(time, "time", lambda: made - 86400)
    assert verdicts(place.checks(os.fspath(store)))["created"] == WARN
