"""`nnfs set`: options of a mount, changed and shown while it is mounted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from nnfs.config import Options, as_texts, parse_own
from tests.harness import Mount, nnfs, wait_for

pytestmark = pytest.mark.mount


def shown(mount: Mount) -> dict[str, str]:
    found: dict[str, str] = json.loads(nnfs("set", str(mount.path), "--json").stdout)
    return found


def test_options_are_shown_as_they_are_given(fresh_mount: Mount) -> None:
    text = nnfs("set", str(fresh_mount.path)).stdout
    assert dict(line.split(maxsplit=1) for line in text.splitlines()) == {
        **as_texts(Options()),
        "log_level": "info",
    }
    assert shown(fresh_mount)["cache"] == "32M"


def test_options_change_at_once_and_stay_until_the_unmount(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    config = tmp_path / "nnfs.toml"
    config.write_text('[default]\nread_age = "2h"\ncache = "1M"\n')
    with Mount(tmp_path / "store", env={"NNFS_CONFIG": str(config)}) as mount:
        assert nnfs("set", str(mount.path), "cache=8M", "write_age=90s", "log_level=debug").stdout == ""
        now = shown(mount)
        assert (now["cache"], now["write_age"], now["read_age"], now["log_level"]) == ("8M", "90s", "2h", "debug")
        assert "option cache is 8388608 now\n" in mount.log()
        (mount.path / "f").write_bytes(b"x")
        config.write_text('[default]\nread_age = "3h"\ncache = "2M"\n')
        os.kill(mount.pid, signal.SIGHUP)
        wait_for("the configuration", lambda: shown(mount)["read_age"] == "3h")
        assert shown(mount)["cache"] == "8M", "what was set holds against the file, as -o does"
        mount.remount()
        now = shown(mount)
        assert (now["cache"], now["log_level"]) == ("2M", "info")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["cache"], "write cache=VALUE"),
        (["cache=lots"], "cache=lots: say a number of bytes"),
        (["cash=1M"], "unknown option 'cash'; did you mean cache?"),
        (["loglevel=info"], "did you mean log_level?"),
        (["log_level=loud"], "say one of debug, info, warning, error"),
        (["write_age=1m", "device=cpu"], "option device waits for the next mount"),
    ],
)
def test_what_cannot_be_set_changes_nothing(fresh_mount: Mount, words: list[str], why: str) -> None:
    done = nnfs("set", str(fresh_mount.path), *words, check=False)
    assert (done.returncode, why in done.stderr) == (2, True), done.stderr
    assert shown(fresh_mount) == {**as_texts(Options()), "log_level": "info"}


@pytest.mark.parametrize(
    "words",
    [
        {}, {"cache": "33000", "metrics": "[::1]:9567", "compact": "off"}, {"thaw_limit": "0.5", "read_age": "90m"},
        {"thawed": "0", "device": "cuda:0+cpu", "cpu_budget": "0.25", "metrics": "127.0.0.1:80", "write_age": "0"},
    ],
)  # fmt: skip
def test_texts_of_options_mean_the_same(words: dict[str, str]) -> None:
    options = parse_own(words)
    assert parse_own(as_texts(options)) == options
