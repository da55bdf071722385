"""Options of a mount: `-o`, the config file, and which of them comes first."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from nnfs.config import (
    Options,
    described,
    format_duration,
    load_options,
    parse_device,
    parse_duration,
    parse_own,
    parse_size,
)
from nnfs.errors import UsageError


def test_all_options() -> None:
    words = {
        "cache": "1G", "dirty": "4m", "read_timeout": "2m", "compact": "off", "policy": "cold", "write_age": "0",
        "read_age": "1.5d", "thaw_limit": "0.5", "neural": "off", "device": "cuda:0+cpu", "threads": "3",
        "compact_threads": "1", "cpu_budget": "0.25", "thawed": "0",
        "metrics": "127.0.0.1:9567", "memory": "2G", "search": "off", "search_memory": "64M",
    }  # fmt: skip
    assert set(words) == {option.name for option in fields(Options)}
    options = parse_own(words)
    assert options == Options(
        cache=1 << 30, dirty=4 << 20, read_timeout=120, compact=False, policy="cold", write_age=0, read_age=129600,
        thaw_limit=0.5, neural=False, device="cuda:0+cpu", threads=3, compact_threads=1, cpu_budget=0.25,
        thawed=0, metrics=("127.0.0.1", 9567), memory=2 << 30, search=False,
        search_memory=64 << 20,
    )  # fmt: skip
    assert options.devices == ["cuda:0", "cpu"]


def test_the_defaults_are_as_described() -> None:
    words = dict(text.split("=") for text, _ in described())
    assert parse_own(words) == Options() == parse_own({})
    assert Options().devices == ["auto"]


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("17", 17), ("2k", 2048), ("3M", 3 << 20), ("1T", 1 << 40)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("1.5s", 1.5), ("2m", 120), ("1h", 3600), ("7d", 604800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "device"), [("auto", "auto"), ("cpu", "cpu"), ("cuda", "cuda"), ("cuda:0,cuda:11", "cuda:0+cuda:11")]
)
def test_devices(text: str, device: str) -> None:
    assert parse_device(text) == device


@pytest.mark.parametrize(
    "bad",
    """cache= cache=-1 cache=1.5M cache=M cache=1KB cache=٣ dirty=1M dirty=x read_timeout=0 read_timeout=-1
    read_timeout=nan read_timeout=inf read_timeout=1w compact= compact=yes policy= policy=warm policy=AUTO write_age=-1h
    read_age=soon thaw_limit=-1 device= device=gpu device=auto+cpu device=cpu+cpu device=cuda: device=cuda:0+
    threads=-1 threads=two threads=1.5 compact_threads=100000 thawed=lots thawed=-512M nonsense=1 Cache=1""".split(),
)
def test_bad_options_are_named(bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, value = bad.partition("=")
    with pytest.raises(UsageError, match=f"^mount option: .*{name}"):
        parse_own({name: value})
    file = tmp_path / "nnfs.toml"
    file.write_text(f'[default]\n{name} = "{value}"\n')
    monkeypatch.setenv("NNFS_CONFIG", str(file))
    with pytest.raises(UsageError, match=name) as caught:
        load_options(tmp_path / "store", {})
    assert str(caught.value).startswith(f"{file} [default]: ")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config file."""
    path = tmp_path / "nnfs.toml"
    monkeypatch.setenv("NNFS_CONFIG", str(path))
    return path


def test_the_nearest_word_counts(file: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to("store")
    file.write_text(f"""
        [default]
        policy = "hot"
        threads = 2
        compact = false
        [{str(tmp_path / "link")!r}]
        policy = "never"
        thaw_limit = 1.5
        ["/somewhere/else"]
        threads = 9
        """)
    options = load_options(tmp_path / "store", {"thaw_limit": "3"})
    assert options == Options(policy="never", threads=2, compact=False, thaw_limit=3)
    assert load_options(tmp_path / "other", {}) == Options(policy="hot", threads=2, compact=False)
    assert load_options(tmp_path / "store", {"compact": "on", "policy": "auto"}).compact


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy = \n", "line 1"),
        ("policy = 'hot'", "neither"),
        ("[defaults]", "'defaults' is neither"),
        ("['relative/store']", "'relative/store' is neither"),
        ("[default]\ncache = [1]", "cache="),
        ("[default.cache]", "cache="),
        ("[default]\ncompact = 1", "say on or off"),
        ("[default]\nthreads = true", "threads=on"),
        ("['/store']\npolicy = 'x'", "[/store]: policy=x: say one of auto, hot, cold, never"),
        ("\udcff", "utf-8"),
    ],
)
def test_a_bad_file_is_named(file: Path, text: str, message: str) -> None:
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as caught:
        load_options(Path("/store"), {})
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)


def test_other_stores_mistakes_do_not_matter(file: Path) -> None:
    file.write_text("['/other']\npolicy = 'x'\n")
    assert load_options(Path("/store"), {}) == Options()


def test_no_file(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\(NNFS_CONFIG\): no such file"):
        load_options(Path("/store"), {})
    file.mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        load_options(Path("/store"), {})
    monkeypatch.delenv("NNFS_CONFIG")
    monkeypatch.setattr("nnfs.config.CONFIG_FILE", str(tmp_path / "none.toml"))
    assert load_options(Path("/store"), {}) == Options()


@pytest.mark.parametrize(
    ("seconds", "text"), [(3600.0, "1h"), (0.0, "0s"), (172800.0, "2d"), (90.5, "90.5s"), (120.0, "2m")]
)
def test_durations_as_a_person_gives_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
