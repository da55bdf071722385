"""`nnfs df`, `status`, `stat` and `policy`: what they print of a daemon's answers, and on a real mount."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnfs.cli import tables
from nnfs.config import Options, described
from nnfs.errors import DaemonError, UsageError
from nnfs.mount import logs
from tests.cli.conftest import Run
from tests.cli.kit import FakeDaemon, job
from tests.conftest import why_no_mount
from tests.harness import Mount, nnfs, umount
from tests.mount.kit import bind

needs_mount = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")

DF: dict[str, Any] = {
    "logical_bytes": 4 << 20, "stored_bytes": 1 << 20, "physical_bytes": 2 << 20, "codecs": [
        {"codec": "zstd", "model": 0, "fingerprint": None, "chunks": 8, "plain_bytes": 1 << 20,
         "stored_bytes": 1 << 18},
        {"codec": "neural", "model": 1, "fingerprint": "ab" * 64, "chunks": 24, "plain_bytes": 3 << 20,
         "stored_bytes": 3 << 18},
    ],
}  # fmt: skip
STATUS: dict[str, Any] = {
    "pid": 17, "uptime": 90061.0, "dirty_bytes": 2048, "no_space": False, "read_only": "",
    "compaction": {"state": "running", "paused": False, "phase": "compressing", "queue_chunks": 5, "rate": 102400.0,
                   "saved_bytes": 1 << 20, "last_error": "",
                   "rungs": [{"codec": "cm", "plain_bytes": 2 << 40, "saves_bytes": 1 << 39, "seconds": 432000.0}]},
    "workers": [
        {"name": "read", "device": "cuda:0", "state": "running", "pid": 18, "starts": 1, "deaths": 0, "answered": 5,
         "failed": 0, "last_error": ""},
        {"name": "compact", "device": "", "state": "stopped", "pid": 0, "starts": 2, "deaths": 2, "answered": 0,
         "failed": 3, "last_error": "out of memory"},
    ],
    "thaw_seconds_per_mib": {"neural": 13.1, "cm": 4.0}, "version": "9.9", "log": "/var/log/nnfs/a.log",
    "scrubbed": {"checksums": 1e9, "deep": None},
    "speeds": [
        {"worker": "read", "codec": "neural", "encode_seconds_per_mib": 8.0, "decode_seconds_per_mib": 16.0},
        {"worker": "read", "codec": "cm", "encode_seconds_per_mib": None, "decode_seconds_per_mib": 4.0},
    ],
    "damaged": [{"block": 5, "why": "damaged block 5: payload"}],
    "jobs": [
        job(job=0, kind="background", phase="encoding"),
        job(kind="scrub", path="/mnt", total_bytes=1000, done_bytes=250), job(job=4, state="queued", phase=""),
    ],
}  # fmt: skip


def lines_of(text: str) -> dict[str, str]:
    """Names and values of `tables.pairs`."""
    found = [line.partition("  ") for line in text.splitlines()]
    return {name: value.strip() for name, _, value in found}


def test_df_is_a_table_by_codec_and_model(store: Path, run: Run) -> None:
    with FakeDaemon(store, df={**DF, "model_bytes": 3 << 20, "gain": 100 << 10, "thawed_bytes": 5 << 20}):
        status, out, _ = run("df", store)
    assert status == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["codec", "model", "chunks", "plain", "stored", "ratio", "bits/byte"]
    assert rows[1] == ["zstd", "-", "8", "1.00", "MiB", "256", "KiB", "4.00", "2.000"]
    assert rows[2] == ["neural", "ab" * 6, "24", "3.00", "MiB", "768", "KiB", "4.00", "2.000"]
    assert rows[3] == ["all", "32", "4.00", "MiB", "1.00", "MiB", "4.00", "2.000"]
    found = lines_of(out)
    assert "ratio 2.00, 4.000 bits/byte" in found["physical"]
    assert found["models"] == "3.00 MiB of that, two copies of each"
    assert found["to gain"].startswith("about 100 KiB")
    assert found["thawed"].startswith("5.00 MiB")


def test_df_tells_what_each_codec_has_before_it(store: Path, run: Run) -> None:
    rungs = [
        {"codec": "ppm", "plain_bytes": 3 << 30, "saves_bytes": 1 << 20, "seconds": 7200.0},
        {"codec": "cm", "plain_bytes": 4 << 30, "saves_bytes": None, "seconds": 36000.0},
    ]
    with FakeDaemon(store, df={**DF, "model_bytes": 0, "gain": None, "thawed_bytes": 0, "rungs": rungs}):
        found = lines_of(run("df", store)[1])
    assert found["ahead: ppm"] == "3.00 GiB of content, about 1.00 MiB less, 2 h 0 s"
    assert found["ahead: cm"] == "4.00 GiB of content, not known yet what it saves, 10 h 0 s"


def test_df_says_nothing_of_what_is_not_known(store: Path, run: Run) -> None:
    with FakeDaemon(store, df={**DF, "codecs": DF["codecs"][:1], "model_bytes": 0, "gain": None, "thawed_bytes": 0}):
        out = run("df", store)[1]
    assert "all" not in [line.split()[0] for line in out.splitlines() if line]
    assert not {"models", "to gain", "thawed"} & lines_of(out).keys()


def test_status_shows_a_device_that_errs_and_how_thawed_copies_serve(store: Path, run: Run) -> None:
    counted = {"thawed_bytes": 4096, "thawed_hits": 7, "thawed_misses": 8, "thawed_damaged": 1, "wrong_decodes": 2}
    with FakeDaemon(store, status={**STATUS, **counted, "device_errs": "cuda:0 computed wrong bytes: do this"}):
        shown = lines_of(run("status", store)[1])
    assert (shown["thawed"], shown["thawed hits"], shown["thawed misses"]) == ("4.00 KiB", "7", "8")
    assert (shown["thawed damaged"], shown["wrong decodes"]) == ("1", "2")
    assert shown["device errs"] == "cuda:0 computed wrong bytes: do this"


@needs_mount
def test_status_of_a_mount_has_the_counts(mount: Mount, run: Run) -> None:
    answer = json.loads(run("status", mount.path, "--json")[1])
    for name in ("thawed_bytes", "thawed_hits", "thawed_misses", "thawed_damaged", "wrong_decodes"):
        assert answer[name] == 0
    assert answer["device_errs"] == ""


def test_status_shows_recompression_workers_and_damage(store: Path, run: Run) -> None:
    with FakeDaemon(store, status=STATUS):
        status, out, _ = run("status", store)
        assert json.loads(run("status", store, "--json")[1]) == {"store": str(store), "mounted": True, **STATUS}
    assert status == 0
    found = lines_of(out)
    assert found["recompression state"] == "running"
    assert found["recompression rate"] == "100 KiB/s"
    assert found["recompression saved"] == "1.00 MiB"
    assert found["recompression last error"] == "-"
    assert found["ahead: cm"] == "2.00 TiB of content, about 512 GiB less, 5 d 0 s"
    assert found["thaw"] == "4.00 s per MiB (cm)"
    assert "13.10 s per MiB (neural)" in out
    assert found["damaged"] == "block 5: payload"
    assert f"nnfs scrub {store} --wait" in out
    assert [line.split(None, 1) for line in out.splitlines()[:2]] == [
        ["now", "background, encoding, 0 % of 1000 B"], ["now", "scrub /mnt, compressing, 25 % of 1000 B"],
    ]  # fmt: skip
    assert "task 0" not in found
    assert (found["version"], found["log"]) == ("9.9", "/var/log/nnfs/a.log")
    assert found["scrubbed"].startswith("checksums 2001-09-09")
    assert found["scrubbed"].endswith("; decoded never")
    assert "neural (worker read): encodes 128 KiB/s, decodes 64.0 KiB/s" in out
    assert "cm (worker read): decodes 256 KiB/s" in out
    assert found["task 3"] == "scrub /mnt, compressing, 25 % of 1000 B"
    assert found["task 4"].startswith("compact, queued")
    paused = {**STATUS, "compaction": {**STATUS["compaction"], "paused": True}}
    with FakeDaemon(store, status=paused):
        assert lines_of(run("status", store)[1])["task 3"].startswith("scrub /mnt, paused, 25 %")
    assert found["uptime"] == "1 d 1 h"
    rows = [line.split() for line in out.splitlines()]
    assert ["read", "cuda:0", "running", "18", "1", "0", "5", "0"] in rows
    assert ["compact", "-", "stopped", "-", "2", "2", "0", "3"] in rows
    assert "compact: out of memory" in out.splitlines()


def test_flat_leaves_lists_out() -> None:
    fields = {"a_bytes": 2048, "b": {"c": True, "rate": 2.0}, "d": [1], "eta": None, "seconds": 61.0, "since": 0.0}
    assert tables.flat(fields) == [
        ("a", "2.00 KiB"), ("b c", "yes"), ("b rate", "2 B/s"), ("eta", "-"), ("seconds", "1 min 1 s"),
        ("since", tables.date(0.0)),
    ]  # fmt: skip
    assert (tables.bits(1000, 125), tables.bits(0, 0)) == ("1.000", "-")


def test_help_of_mount_lists_all_options(run: Run) -> None:
    out = run("mount", "--help")[1]
    for name, meaning in described():
        assert name in out
        assert meaning in out


def test_policy_needs_a_mount(store: Path, run: Run) -> None:
    assert run("policy", store)[0] == 2
    assert "give a path on its mount" in run("policy", store, "cold")[2]
    assert run("policy", "/etc", "cold")[0] == 2
    assert "invalid choice" in run("policy", store, "warm")[2]


STAT = {
    "ino": 1, "type": "directory", "size": 0, "chunk_size": 16384, "chunks": 0, "holes": 0, "shared": 0, "damaged": 0,
    "plain_bytes": 0, "stored_bytes": 0, "inodes": 1, "codecs": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "policy"),
    [({"compaction": {"policy": "cold"}}, "cold"), ({}, "hot"), (DaemonError("only who has mounted it may"), "hot")],
)
def test_the_mounts_policy(
    status: Any, policy: str, store: Path, mnt: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mnt.parent / "nnfs.toml"
    config.write_text("[default]\npolicy = 'hot'\n")
    monkeypatch.setenv("NNFS_CONFIG", str(config))
    with FakeDaemon(store, stat=STAT, status=status):
        assert run("policy", mnt) == (0, f"{mnt}: {policy}, option of the mount\n", "")
        assert lines_of(run("stat", mnt)[1])["policy"] == f"{policy}, option of the mount"
        answer = json.loads(run("stat", mnt, "--json")[1])
    assert (answer["policy"], answer["policy_from"]) == (policy, None)


@pytest.fixture
def mount() -> Iterator[Mount]:
    with Mount(chunk_size=16384, options=["policy=cold", "compact=off"]) as mount:
        mount.deadline()
        yield mount


@needs_mount
@pytest.mark.mount
def test_policy_is_set_inherited_and_taken_back(mount: Mount) -> None:
    outer, inner = mount.path / "outer", mount.path / "outer" / "inner"
    inner.mkdir(parents=True)
    file, link = inner / "file", mount.path / "link"
    file.write_bytes(b"text" * 1000)
    link.symlink_to("outer/inner")

    def policy(*args: object) -> str:
        return nnfs("policy", *map(str, args)).stdout.strip()

    assert policy(file) == f"{file}: cold, option of the mount"
    assert policy(outer, "hot") == f"{outer}: hot, set on {outer}"
    assert policy(file) == f"{file}: hot, set on {outer}"
    assert policy(link, "never") == f"{inner}: never, set on {inner}"
    assert policy(link / "file") == f"{file}: never, set on {inner}"
    assert os.getxattr(inner, "user.nnfs.policy") == b"never"
    stat = json.loads(nnfs("stat", "--json", str(link / "file")).stdout)
    assert (stat["policy"], stat["policy_from"]) == ("never", str(inner))
    assert f"never, set on {inner}" in nnfs("stat", str(file)).stdout
    assert json.loads(nnfs("stat", "--json", str(link)).stdout)["policy"] == "cold"
    for _ in range(2):
        assert policy(inner, "inherit") == f"{inner}: hot, set on {outer}"
    mount.remount()
    assert policy(file) == f"{file}: hot, set on {outer}"
    with pytest.raises(OSError, match="Invalid argument") as caught:
        os.setxattr(outer, "user.nnfs.policy", b"warm")
    assert caught.value.errno == errno.EINVAL
    mount.deadline(0)


@needs_mount
@pytest.mark.mount
def test_a_policy_is_found_above_a_bind_mount(mount: Mount, tmp_path: Path) -> None:
    inner, alias = mount.path / "outer" / "inner", tmp_path / "alias"
    inner.mkdir(parents=True)
    bind(inner, alias)
    nnfs("policy", str(mount.path / "outer"), "hot")
    told = nnfs("policy", str(alias)).stdout.strip()
    umount(alias)
    assert told == f"{alias}: hot, set on {mount.path / 'outer'}"


@needs_mount
@pytest.mark.mount
def test_a_bad_option_ends_the_mount_with_its_name(tmp_path: Path) -> None:
    config = tmp_path / "nnfs.toml"
    config.write_text("[default]\nthaw_limit = 'soon'\n")
    (tmp_path / "mnt").mkdir()
    for options, message in (
        (["-o", "write_age=soon"], "write_age=soon: say a duration"),
        (["--device", "cuda:0,gpu"], "device=cuda:0+gpu: say auto"),
        (["-o", "thaw=1"], "unknown option 'thaw'"),
    ):
        done = nnfs("mount", str(tmp_path / "store"), str(tmp_path / "mnt"), *options, check=False)
        assert done.returncode == UsageError.exit_code
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        log = logs.default_file(tmp_path / "store")
        assert log is not None
        assert not log.exists()
    with (
        pytest.raises(AssertionError, match=r"nnfs.toml \[default\]: thaw_limit=soon"),
        Mount(env={"NNFS_CONFIG": str(config)}),
    ):
        pass
    assert Options().thaw_limit == 8
