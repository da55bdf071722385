"""nnfs's own mount options: `-o name=value`, or the same names in a config file.

The file is `/etc/nnfs.toml` (the environment's `NNFS_CONFIG` names another one)::

    [default]
    write_age = "2h"

    ["/data"]            # the store's directory
    device = "cuda:0"

An option of `-o` comes before one of the store's table, and that before one of `[default]`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nnfs.constants import POLICIES
from nnfs.errors import UsageError

CONFIG_FILE = "/etc/nnfs.toml"
CONFIG_ENVIRONMENT = "NNFS_CONFIG"

Resolve = Callable[[str], str]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SPANS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
DEVICE = re.compile(r"cpu|cuda(:\d+)?")
MIN_DIRTY = 4 << 20  # bytes
LEAST_MEMORY, PLENTY = 128 << 20, 1 << 30  # bytes; with plenty of memory no option depends on it


def parse_size(text: str) -> int:
    """Parse a number of bytes with an optional K, M, G or T. Raises ValueError."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", text, re.IGNORECASE | re.ASCII)
    if match is None:
        raise ValueError("say a number of bytes: 33554432 or 32M")
    return int(match[1]) * _UNITS[match[2].upper()]


def format_size(size: int) -> str:
    """Return a number of bytes as a person would give it: 33554432 -> "32M"."""
    unit = next((unit for unit in "TGMK" if size and size % _UNITS[unit] == 0), "")
    return f"{size // _UNITS[unit]}{unit}"


def parse_duration(text: str) -> float:
    """Parse a duration with an optional unit (s, m, h, d) into seconds. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([smhd]?)", text, re.ASCII)
    if match is None:
        raise ValueError("say a duration: 90, 90s, 30m, 1h or 7d")
    return float(match[1]) * _SPANS[match[2]]


def format_duration(seconds: float) -> str:
    """Return a duration as a person would give it: 3600.0 -> "1h"."""
    unit = next((unit for unit in "dhm" if seconds and seconds % _SPANS[unit] == 0), "s")
    return f"{seconds / _SPANS[unit]:g}{unit}"


def _positive_duration(text: str) -> float:
    if not (seconds := parse_duration(text)):
        raise ValueError("must be more than 0")
    return seconds


def _dirty_size(text: str) -> int:
    if (size := parse_size(text)) < MIN_DIRTY:
        raise ValueError("must be at least 4M")
    return size


def _memory_size(text: str) -> int:
    """Parse the memory that a mount may use, 0 for "auto"."""
    if text == "auto":
        return 0
    if (size := parse_size(text)) < LEAST_MEMORY:
        raise ValueError(f"must be auto, or at least {format_size(LEAST_MEMORY)}")
    return size


def _format_memory(size: int) -> str:
    return format_size(size) if size else "auto"


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII):
        raise ValueError("say a number of threads, 0 to 9999")
    return int(text)


def _share(text: str) -> float:
    match = re.fullmatch(r"0?\.\d+|1(?:\.0*)?", text, re.ASCII)
    if match is None or not float(text):
        raise ValueError("say a share of the cores, more than 0 and at most 1, as in 0.25")
    return float(text)


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("say on or off")
    return text == "on"


def parse_policy(text: str) -> str:
    """Return `text` if it names a policy. Raises ValueError."""
    if text not in POLICIES:
        raise ValueError(f"say one of {', '.join(POLICIES)}")
    return text


def parse_device(text: str) -> str:
    """Return devices as `auto`, or as `cpu`, `cuda:N` joined by `+`. The text may have commas. Raises ValueError."""
    if text == "auto":
        return text
    names = re.split("[+,]", text)
    if len(set(names)) < len(names) or not all(map(DEVICE.fullmatch, names)):
        raise ValueError("say auto, or cpu, cuda:0, cuda:1, ... or several with + or a comma between, each once")
    return "+".join(names)


def parse_address(text: str) -> tuple[str, int] | None:
    """Return host and port of "HOST:PORT" ("[::1]:9567" for IPv6), None for "off". Raises ValueError.

    Port 0 is any free port, which the log tells.
    """
    if text == "off":
        return None
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) >= 1 << 16:
        raise ValueError("say off, or an address and a port, as in 127.0.0.1:9567")
    return host, int(port)


def _format_address(address: tuple[str, int] | None) -> str:
    if address is None:
        return "off"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _option(default: Any, parse: Callable[[str], Any], shown: str, meaning: str) -> Any:
    """Return a field with its default, its parser, its default as text, and its line in `nnfs mount --help`."""
    return field(default=default, metadata={"parse": parse, "shown": shown, "meaning": meaning})


@dataclass(frozen=True)
class Options:
    """The options of one mount. Sizes are bytes, durations seconds."""

    cache: int = _option(32 << 20, parse_size, "32M", "decoded chunks kept in memory")
    dirty: int = _option(24 << 20, _dirty_size, "24M", "uncommitted data at which writers wait")
    read_timeout: float = _option(120.0, _positive_duration, "2m", "a read is EIO when no worker gets on for this long")
    compact: bool = _option(True, _switch, "on", "recompress cold data in the background; off: only on command")
    policy: str = _option("auto", parse_policy, "auto", "auto, hot, cold or never: where no directory says otherwise")
    write_age: float = _option(3600.0, parse_duration, "1h", "a file is cold if not written for this long (s, m, h, d)")
    read_age: float = _option(86400.0, parse_duration, "1d", "... and neither read for this long")
    thaw_limit: float = _option(8.0, parse_duration, "8", "seconds per MiB that auto may make a reader wait")
    neural: bool = _option(True, _switch, "on", "off: the network encodes nothing; its data can still be read")
    device: str = _option(
        "auto", parse_device, "auto", "for the neural codec: auto, cpu, cuda:0 or several: cuda:0+cpu"
    )
    threads: int = _option(0, _count, "0", "for reading cold data; 0: all cores")
    compact_threads: int = _option(0, _count, "0", "for recompression; 0: as many as cpu_budget says")
    cpu_budget: float = _option(0.5, _share, "0.5", "share of the cores for recompression in the background")
    thawed: int = _option(512 << 20, parse_size, "512M", "disk space for copies of cold data that was read; 0: none")
    memory: int = _option(0, _memory_size, "auto", "that mount and workers may use; auto: the control group's limit")
    search: bool = _option(True, _switch, "on", "vectors for nnfs search; off: names only, vectors are deleted")
    search_memory: int = _option(128 << 20, parse_size, "128M", "for names and vectors while somebody searches")
    metrics: tuple[str, int] | None = _option(None, parse_address, "off", "address for Prometheus: 127.0.0.1:9567")

    def background(self, cores: int) -> tuple[int, float]:
        """Return the threads of background recompression, and the share of the time in which they work."""
        if self.compact_threads:
            return self.compact_threads, 1.0
        budget = self.cpu_budget * cores
        threads = max(1, math.floor(budget))
        return threads, min(1.0, budget / threads)

    @property
    def is_short_of_memory(self) -> bool:
        """Whether caches, windows and workers have to be small; `nnfs.mount.memory` finds out."""
        return 0 < self.memory < PLENTY

    @property
    def devices(self) -> list[str]:
        """The devices that `device` joins."""
        return self.device.split("+")


def meant(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean WORD?", the end of a message, for the known word most like this one; "" without one."""
    import difflib  # late: only who errs needs it

    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def described() -> Iterator[tuple[str, str]]:
    """Yield every option as `name=default`, with its line of help."""
    for option in fields(Options):
        yield f"{option.name}={option.metadata['shown']}", option.metadata["meaning"]


def _parse(words: Mapping[str, str], source: str, others: Iterable[str] = ()) -> dict[str, Any]:
    known = {option.name: option for option in fields(Options)}
    values = {}
    for name, text in words.items():
        if name not in known:
            raise UsageError(
                f"{source}: unknown option {name!r}{meant(name, [*known, *others])} (nnfs mount --help lists them)"
            )
        try:
            values[name] = known[name].metadata["parse"](text)
        except ValueError as error:
            raise UsageError(f"{source}: {name}={text}: {error}") from error
    return values


def parse_own(words: Mapping[str, str], others: Iterable[str] = ()) -> Options:
    """Return the options of `-o` alone. Raises `UsageError` for unknown names and bad values."""
    return Options(**_parse(words, "mount option", others))


def as_texts(options: Options) -> dict[str, str]:
    """Return the values of all options as `-o` takes them."""
    formats: dict[Any, Callable[[Any], str]] = {
        parse_size: format_size, _dirty_size: format_size, parse_duration: format_duration,
        _positive_duration: format_duration, _switch: lambda on: "on" if on else "off", parse_address: _format_address,
        _memory_size: _format_memory,
    }  # fmt: skip
    return {
        option.name: formats.get(option.metadata["parse"], str)(getattr(options, option.name))
        for option in fields(Options)
    }


def load_options(
    store: Path, own: Mapping[str, str], others: Iterable[str] = (), *, resolve: Resolve = os.path.realpath
) -> Options:
    """Return the options of a store's mount from `-o` and the config file. Raises `UsageError`.

    `others` are further words that -o may have, to be suggested for an unknown word.
    `resolve` does as realpath(3) for the file's directories, which may lie on a mount that hangs.
    """
    return Options(**{**_from_file(store, resolve), **_parse(own, "mount option", others)})


def config_file() -> str:
    """Return the path of the config file."""
    return os.environ.get(CONFIG_ENVIRONMENT) or CONFIG_FILE


def _from_file(store: Path, resolve: Resolve) -> dict[str, Any]:
    import tomllib  # late: most commands read no config

    file = config_file()
    try:
        with open(file, "rb") as stream:
            tables = tomllib.load(stream)
    except FileNotFoundError as error:
        if file == CONFIG_FILE:
            return {}
        raise UsageError(f"{file} ({CONFIG_ENVIRONMENT}): no such file") from error
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from error
    default, own = dict[str, Any](), dict[str, Any]()
    for name, table in tables.items():
        if not isinstance(table, dict) or not (name == "default" or os.path.isabs(name)):
            raise UsageError(f'{file}: {name!r} is neither [default] nor the table of a store, ["/data"] say')
        if name == "default":
            default = table
        elif resolve(name) == resolve(os.fspath(store)):
            own = table
    return {
        **_parse(_words(default), f"{file} [default]"),
        **_parse(_words(own), f"{file} [{os.fspath(store)}]"),
    }


def _words(table: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a table as words of `-o`."""
    switches = {True: "on", False: "off"}
    return {name: switches[value] if isinstance(value, bool) else str(value) for name, value in table.items()}
