"""Metrics: the meter of requests, the text for Prometheus, the ways to it, the rules and the dashboard."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from nnfs.config import parse_own
from nnfs.errors import UsageError
from nnfs.mount import meter
from nnfs.mount.meter import SUM, cumulated, histogram, total
from tests.harness import Mount, environment, nnfs

SHIPPED = Path(meter.__file__).with_name("prometheus")


def samples(text: str) -> dict[str, list[Sample]]:
    """All samples by name. Each has a help text, and its labels occur once."""
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    for name, each in found.items():
        labels = [frozenset(sample.labels.items()) for sample in each]
        assert len(labels) == len(set(labels)), name
        assert all({"vol_name", "mp"} <= sample.labels.keys() for sample in each), name
    return found


def value(found: dict[str, list[Sample]], name: str, **labels: str) -> float:
    (sample,) = [one for one in found[name] if labels.items() <= one.labels.items()]
    return sample.value


def test_a_histogram_counts_below_powers_of_two() -> None:
    counts = histogram()
    for one in (0, 1, 7, 8, 9, 1 << 40):
        counts[one.bit_length()] += 1
        counts[SUM] += one
    assert cumulated(counts, 3, 5) == [(8, 3), (16, 5), (32, 5)]
    assert (total(counts), counts[SUM]) == (6, 25 + (1 << 40))


@pytest.mark.mount
def test_requests_are_counted(fresh_mount: Mount) -> None:
    file = fresh_mount.path / "file"
    file.write_bytes(os.urandom(300_000))
    with file.open("rb") as content:
        os.fsync(content.fileno())
        os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        content.read()
        now = samples(nnfs("metrics", str(fresh_mount.path)).stdout)
    (fresh_mount.path / "full" / "folder").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        os.rmdir(fresh_mount.path / "full")
    later = samples(nnfs("metrics", str(fresh_mount.path)).stdout)
    times = "nnfs_fuse_ops_durations_histogram_seconds"
    assert value(now, f"{times}_count", method="create") == 1
    assert value(now, f"{times}_sum", method="write") > 0
    buckets = [one for one in now[f"{times}_bucket"] if one.labels["method"] == "write"]
    assert all(a.value <= b.value for a, b in itertools.pairwise(buckets))
    assert buckets[-1].labels["le"] == "+Inf"
    assert buckets[-1].value == value(now, f"{times}_count", method="write")
    assert value(now, "nnfs_fuse_written_size_bytes_sum") == 300_000
    assert value(now, "nnfs_fuse_read_size_bytes_sum") >= 300_000
    assert value(now, "nnfs_fuse_open_handlers") == 1
    assert value(later, "nnfs_fuse_open_handlers") == 0
    assert value(now, "nnfs_used_space") == 300_000
    assert value(now, "nnfs_used_inodes") == 2
    assert value(now, "nnfs_transaction_durations_histogram_seconds_count") == value(now, "nnfs_commits_total") >= 1
    assert value(now, "nnfs_transaction_durations_histogram_seconds_sum") > 0
    assert value(now, "nnfs_snapshots") == value(now, "nnfs_queue") == value(now, "nnfs_decoded_bytes_total") == 0
    assert value(later, "nnfs_uptime") > value(now, "nnfs_uptime")
    assert value(now, "nnfs_damaged_blocks") == value(now, "nnfs_read_only") == value(now, "nnfs_lost") == 0
    assert sum(one.value for one in now["nnfs_stored_bytes"]) >= 300_000
    assert value(later, "nnfs_fuse_errors_total", method="rmdir", errno="ENOTEMPTY") == 1


@pytest.mark.mount
def test_metrics_over_http(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with Mount(tmp_path / "store", options=["metrics=127.0.0.1:0"]) as mount:
        (address,) = re.findall(r"metrics: (http://127\.0\.0\.1:\d+/metrics)", mount.log())
        (mount.path / "file").write_bytes(b"content")
        for _ in range(2):
            with urllib.request.urlopen(address) as answer:
                assert answer.headers["Content-Type"].startswith("text/plain")
                found = samples(answer.read().decode())
        assert value(found, "nnfs_uptime") > 0
        assert found["nnfs_uptime"][0].labels == {"vol_name": str(mount.store), "mp": str(mount.path)}
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)


@pytest.mark.mount
def test_an_address_that_is_taken_ends_the_mount(tmp_path: Path) -> None:
    nnfs("mkfs", str(tmp_path / "store"))
    (tmp_path / "mnt").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"metrics=127.0.0.1:{other.getsockname()[1]}"
        words = ["mount", str(tmp_path / "store"), str(tmp_path / "mnt"), "-o", taken]
        done = nnfs(*words, check=False)
    assert done.returncode != 0
    assert f"option {taken}: Address already in use; another mount may use it: choose another port" in done.stderr
    assert not os.path.ismount(tmp_path / "mnt")


@pytest.mark.mount
def test_the_textfile_appears_whole(fresh_mount: Mount, tmp_path: Path) -> None:
    file = tmp_path / "nnfs.prom"
    file.write_text("old")
    before = file.stat().st_ino
    nnfs("metrics", str(fresh_mount.path), "--textfile", str(file))
    assert samples(file.read_text())["nnfs_uptime"]
    assert (file.stat().st_ino != before, file.stat().st_mode & 0o777) == (True, 0o644)
    assert os.listdir(tmp_path) == ["nnfs.prom"]
    failed = nnfs("metrics", str(fresh_mount.path), "--textfile", str(tmp_path / "none" / "x"), check=False)
    assert (failed.returncode, "No such file" in failed.stderr) == (1, True)


@pytest.mark.mount
def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    store = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    store.mkdir()
    with Mount(store) as mount:
        assert samples(nnfs("metrics", str(mount.path)).stdout)["nnfs_uptime"][0].labels["vol_name"].endswith(r"\xff")


@pytest.mark.parametrize("text", ["127.0.0.1", "9567", ":9567", "127.0.0.1:65536", "127.0.0.1:x", "on"])
def test_addresses_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="say off, or an address and a port"):
        parse_own({"metrics": text})


def test_addresses() -> None:
    assert parse_own({"metrics": "off"}).metrics is None
    assert parse_own({"metrics": "127.0.0.1:9567"}).metrics == ("127.0.0.1", 9567)
    assert parse_own({"metrics": "[::1]:80"}).metrics == ("::1", 80)


def _names_in(text: str) -> set[str]:
    return set(re.findall(r"\bnnfs_[a-z_]+", text))


@pytest.mark.mount
def test_rules_and_dashboard_name_metrics_that_exist(fresh_mount: Mount) -> None:
    dashboard = json.loads((SHIPPED / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = _names_in("\n".join(queries)) | _names_in((SHIPPED / "alerts.yml").read_text())
    known = {
        name
        for family in text_string_to_metric_families(nnfs("metrics", str(fresh_mount.path)).stdout)
        for name in (family.name, *(f"{family.name}_{suffix}" for suffix in ("total", "bucket", "sum", "count")))
    }
    assert len(asked) > 20
    assert asked <= known


PROMTOOL = shutil.which("promtool", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool (Debian's prometheus)")
def test_promtool_accepts_rules_and_metrics(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    shutil.copy(SHIPPED / "alerts.yml", tmp_path)
    shutil.copy(Path(__file__).with_name("alerts.test.yml"), tmp_path)
    for words in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]):
        done = _promtool(words, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    mount: Mount = request.getfixturevalue("fresh_mount")
    done = _promtool(["check", "metrics"], tmp_path, input=nnfs("metrics", str(mount.path)).stdout)
    assert done.stderr.splitlines() == [  # a name that others have given it
        f"nnfs_{what}_durations_histogram_seconds metric name should not include type 'histogram'"
        for what in ("fuse_ops", "transaction")
    ]


def _promtool(words: list[str], folder: Path, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROMTOOL), *words], cwd=folder, capture_output=True, text=True, check=False, env=environment(), **how
    )
