"""Metrics of a mount in the text format of Prometheus, and the server for them (option `metrics`).

Names are those of JuiceFS with the prefix `nnfs_` where they mean the same
(https://juicefs.com/docs/community/reference/p8s_metrics), so that dashboards can be carried over; counters have the
suffix `_total` on top, as the format demands. Every metric has the labels `vol_name`, the store's directory, and `mp`,
the mount point.
"""

from __future__ import annotations

import errno
import functools
import logging
import resource
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from nnfs import names
from nnfs.errors import MountError
from nnfs.mount.meter import SUM, Counts, Meter, cumulated, total

log = logging.getLogger(__name__)

OURS = ("vol_name", "mp")
TIMES = 13, 37  # bits of ns: bounds from 8 us to 137 s
SIZES = 9, 20  # bits of bytes: bounds from 512 to 1 MiB
PAGE = 4096  # bytes

Rows = Iterable[tuple[tuple[str, ...], float]]  # values of labels, and the value


class Figures(NamedTuple):
    """The figures of a mount at one time: `nnfs status`, `nnfs df`, and the meter of its requests."""

    status: Mapping[str, Any]
    df: Mapping[str, Any]
    meter: Meter


def exposition(figures: Figures) -> str:
    """Return all metrics as text."""
    return generate_latest(_registry(lambda: figures)).decode()


def serve(address: tuple[str, int], ask: Callable[[], Figures]) -> Callable[[], None]:
    """Answer HTTP requests on an address with what `ask` tells, in threads. Return the function that ends this.

    Raises `MountError` if the address cannot be used.
    """
    host, port = address
    try:
        server, thread = start_http_server(port, host, _registry(ask))
    except OSError as error:
        why = error.strerror or str(error)
        advice = "another mount may use it: choose another port" if error.errno == errno.EADDRINUSE else "check it"
        raise MountError(f"option metrics={host}:{port}: {why}; {advice}") from error
    log.info("metrics: http://%s:%d/metrics", host, server.server_port)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close


def _registry(ask: Callable[[], Figures]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(ask))
    return registry


class _Collector(Collector):
    """Makes the families anew for each request."""

    def __init__(self, ask: Callable[[], Figures]) -> None:
        self._ask = ask

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is asked when it is registered

    def collect(self) -> Iterator[Metric]:
        figures = self._ask()
        family = functools.partial(_family, _ours(figures))
        yield from _space(family, figures.df, figures.status)
        yield from _quotas(family, figures.df["quotas"])
        yield from _process(family, figures.status)
        yield from _requests(family, figures)
        yield from _caches(family, figures.status)
        yield from _health(family, figures.status)
        yield from _background(family, figures.status)


def _ours(figures: Figures) -> tuple[str, str]:
    """Return the values of the labels that every metric has. Text has no bytes that are no UTF-8."""
    return names.printable(figures.status["store"]), names.printable(figures.status["mountpoint"])


Family = Callable[..., Metric]
GAUGE, COUNTER = GaugeMetricFamily, CounterMetricFamily


def _family(
    ours: tuple[str, str], kind: type[Any], name: str, text: str, rows: Rows, labels: Sequence[str] = ()
) -> Metric:
    """Return one metric with its rows; a row without labels of its own is `((), value)`."""
    family: Metric = kind(f"nnfs_{name}", text, labels=[*OURS, *labels])
    for values, value in rows:
        family.add_metric([*ours, *values], value)  # type: ignore[attr-defined]
    return family


def _one(value: float) -> Rows:
    return [((), value)]


def _space(family: Family, df: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[Metric]:
    yield family(GAUGE, "used_space", "Bytes of the content of all files", _one(df["logical_bytes"]))
    yield family(GAUGE, "used_inodes", "Number of inodes", _one(status["inodes"]))
    yield family(GAUGE, "physical_bytes", "Bytes that the store occupies", _one(df["physical_bytes"]))
    yield family(GAUGE, "free_bytes", "Bytes that can still be written", _one(status["free_bytes"]))
    lines = [((line["codec"], (line["fingerprint"] or "")[:12]), line) for line in df["codecs"]]
    for field, text in (("plain", "Bytes of chunks before compression"), ("stored", "Bytes of their payloads")):
        rows = [(labels, line[f"{field}_bytes"]) for labels, line in lines]
        yield family(GAUGE, f"{field}_bytes", text, rows, ("codec", "model"))
    yield family(
        GAUGE, "chunks", "Number of chunks", [(key, line["chunks"]) for key, line in lines], ("codec", "model")
    )


def _quotas(family: Family, quotas: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    for field, text in (
        ("bytes", "Bytes that count for the quota of a directory"), ("inodes", "Inodes that count for it"),
        ("max_bytes", "Limit of bytes, 0: none"), ("max_inodes", "Limit of inodes, 0: none"),
    ):  # fmt: skip
        rows = [((names.printable(line["path"]),), line[field]) for line in quotas]
        yield family(GAUGE, f"quota_{field}", text, rows, ("directory",))


def _process(family: Family, status: Mapping[str, Any]) -> Iterator[Metric]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm", encoding="ascii") as statm:
        resident = int(statm.read().split()[1]) * PAGE
    yield family(GAUGE, "uptime", "Seconds since the mount", _one(status["uptime"]))
    yield family(
        COUNTER, "cpu_usage", "Seconds of CPU of the daemon without workers", _one(used.ru_utime + used.ru_stime)
    )
    yield family(GAUGE, "memory", "Bytes of memory of the daemon without workers", _one(resident))


def _requests(family: Family, figures: Figures) -> Iterator[Metric]:
    meter, ours = figures.meter, _ours(figures)
    times = HistogramMetricFamily(
        "nnfs_fuse_ops_durations_histogram_seconds", "Seconds that requests took", labels=[*OURS, "method"]
    )
    for method, counts in list(meter.nanoseconds.items()):
        _add(times, (*ours, method), counts, TIMES, 1e-9)
    yield times
    commits = HistogramMetricFamily(
        "nnfs_transaction_durations_histogram_seconds", "Seconds that commits took", labels=OURS
    )
    _add(commits, ours, meter.commits, TIMES, 1e-9)
    yield commits
    for name, text, counts in (
        ("read", "Bytes of read requests", meter.read), ("written", "Bytes of write requests", meter.written),
    ):  # fmt: skip
        sizes = HistogramMetricFamily(f"nnfs_fuse_{name}_size_bytes", text, labels=OURS)
        _add(sizes, ours, counts, SIZES, 1)
        yield sizes
    rows = [
        ((method, errno.errorcode.get(number, str(number))), count)
        for (method, number), count in list(meter.errors.items())
    ]
    yield family(COUNTER, "fuse_errors", "Requests answered with an error", rows, ("method", "errno"))
    handles = _one(figures.status["open_handles"])
    yield family(GAUGE, "fuse_open_handlers", "Number of open files", handles)


def _add(
    family: HistogramMetricFamily, labels: Sequence[str], counts: Counts, bits: tuple[int, int], unit: float
) -> None:
    counts = counts[:]  # it is counted on while this thread reads
    buckets = [(str(bound * unit), float(below)) for bound, below in cumulated(counts, *bits)]
    family.add_metric(labels, [*buckets, ("+Inf", total(counts))], sum_value=counts[SUM] * unit)


def _caches(family: Family, status: Mapping[str, Any]) -> Iterator[Metric]:
    yield family(GAUGE, "blockcache_bytes", "Bytes of decoded chunks in memory", _one(status["cache_bytes"]))
    yield family(COUNTER, "blockcache_hits", "Chunks found in memory", _one(status["cache_hits"]))
    yield family(COUNTER, "blockcache_miss", "Chunks not found in memory", _one(status["cache_misses"]))
    yield family(GAUGE, "blockcache_blocks", "Number of decoded chunks in memory", _one(status["cache_blocks"]))
    rows = _one(status["cache_evicts"])
    yield family(COUNTER, "blockcache_evicts", "Chunks dropped from memory for others", rows)
    yield family(COUNTER, "decoded_bytes", "Bytes that cold chunks were decoded to", _one(status["decoded_bytes"]))
    yield family(GAUGE, "thawed_bytes", "Bytes of copies of cold data on disk", _one(status["thawed_bytes"]))
    yield family(COUNTER, "thawed_hits", "Cold chunks found in such a copy", _one(status["thawed_hits"]))
    yield family(COUNTER, "thawed_miss", "Cold chunks that had to be decoded", _one(status["thawed_misses"]))


def _health(family: Family, status: Mapping[str, Any]) -> Iterator[Metric]:
    yield family(GAUGE, "dirty_bytes", "Bytes written and not committed yet", _one(status["dirty_bytes"]))
    yield family(COUNTER, "commits", "Commits of this mount", _one(status["commits"]))
    rows = _one(status["last_commit"])
    yield family(GAUGE, "last_commit_timestamp_seconds", "When the last commit was made, or the mount", rows)
    yield family(GAUGE, "damaged_blocks", "Blocks that were found damaged", _one(status["damaged_blocks"]))
    yield family(GAUGE, "read_only", "1: the mount takes no changes", _one(bool(status["read_only"])))
    yield family(GAUGE, "no_space", "1: the last commit found no space", _one(status["no_space"]))
    yield family(GAUGE, "lost", "1: the data file was deleted, moved or replaced", _one(bool(status["lost"])))
    snapshots = status["snapshots"]
    yield family(GAUGE, "snapshots", "Number of snapshots", _one(snapshots["count"]))
    rows = _one(snapshots["since"]) if snapshots["since"] else ()
    yield family(GAUGE, "newest_snapshot_timestamp_seconds", "When the newest snapshot was taken", rows)
    yield family(GAUGE, "reads_waiting", "Reads that wait for a worker", _one(status["reads_waiting"]))
    yield family(GAUGE, "queue", "Work items that workers have not answered", _one(status["queue"]))
    rows = _one(status["wrong_decodes"])
    yield family(COUNTER, "wrong_decodes", "Results of workers that had the wrong hash", rows)
    scrubs = [((kind,), at) for kind, at in status["scrubbed"].items() if at]
    text = "When the last scrub without damage began; deep: everything was decoded"
    yield family(GAUGE, "scrub_timestamp_seconds", text, scrubs, ("kind",))
    out = [((codec,), 1) for codec in sorted({one["codec"] for one in status["codecs_out"]})]
    yield family(GAUGE, "codec_out", "1: a codec that cannot run here", out, ("codec",))


def _background(family: Family, status: Mapping[str, Any]) -> Iterator[Metric]:
    recompression = status["compaction"]
    rows = _one(recompression["saved_bytes"])
    yield family(GAUGE, "recompression_saved_bytes", "Bytes that recompression has saved in this mount", rows)
    yield family(GAUGE, "recompression_paused", "1: held by nnfs pause", _one(recompression["paused"]))
    running = Counter(task["kind"] for task in status["jobs"])
    rows = [((kind,), count) for kind, count in running.items()]
    yield family(GAUGE, "tasks", "Tasks that run or wait", rows, ("kind",))
    workers: dict[str, dict[str, float]] = {}
    for worker in status["workers"]:  # a name may be that of several, one for each device
        own = workers.setdefault(worker["name"], {})
        for field in ("starts", "deaths", "answered", "failed"):
            own[field] = own.get(field, 0) + worker[field]
    for field, text in (
        ("starts", "Starts of workers"), ("deaths", "Workers that died"),
        ("answered", "Work items that were answered"), ("failed", "Work items that failed"),
    ):  # fmt: skip
        rows = [((name,), own[field]) for name, own in workers.items()]
        yield family(COUNTER, f"worker_{field}", text, rows, ("worker",))
    for way, text in (("encode", "encode"), ("decode", "decode")):
        rows = [
            ((speed["worker"], speed["codec"]), speed[f"{way}_seconds_per_mib"])
            for speed in status["speeds"] if speed[f"{way}_seconds_per_mib"]
        ]  # fmt: skip
        yield family(
            GAUGE,
            f"{way}_seconds_per_mib",
            f"Seconds that workers took to {text} a MiB lately",
            rows,
            ("worker", "codec"),
        )
