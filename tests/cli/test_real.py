"""The commands of the cold tier on a real mount with real workers: once through all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import why_no_mount
from tests.harness import REPO, Mount, nnfs

needs_mount = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")
LIMIT_S = 3600.0  # workers import, compile and test themselves, and share the machine with whatever runs


def told(*args: object) -> dict[str, Any]:
    """The JSON that a command prints; of one that waits, its last line."""
    out = nnfs(*map(str, args), "--json", timeout=LIMIT_S).stdout
    answer: dict[str, Any] = json.loads(out.splitlines()[-1] if "--wait" in args else out)
    return answer


@pytest.fixture
def mount() -> Iterator[Mount]:
    with Mount(options=["compact=off"]) as mount:
        mount.deadline(LIMIT_S)
        yield mount
        mount.deadline(0)


@needs_mount
@pytest.mark.mount
def test_compact_thaw_and_scrub(mount: Mount) -> None:
    text = (REPO / "README.md").read_bytes()[:6000]
    folder = mount.path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(text)
    (mount.path / "b").write_bytes(text[::-1])

    assert told("compact", mount.path, "--wait")["done_chunks"] == 0  # too young
    estimate = told("compact", folder, "--all", "--dry-run")["result"]
    assert (estimate["chunks"], estimate["plain_bytes"]) == (1, 6000)
    assert estimate["estimated_bytes"] < estimate["stored_bytes"]

    done = told("compact", folder, "--all", "--wait")
    assert (done["state"], done["done_chunks"], done["cold_chunks"], done["failed_chunks"]) == ("done", 1, 1, 0)
    assert done["stored_after"] < done["stored_before"]
    codecs = {line["codec"]: line["chunks"] for line in told("df", mount.path)["codecs"]}
    assert codecs == {"neural": 1, "zstd": 1}
    assert told("stat", folder / "a")["codecs"][0]["codec"] == "neural"
    model = told("model", "list", mount.path)["models"][0]
    assert (model["blocks"], model["copies"], model["base"]) == (1, "ok", 0)
    assert 0 <= told("df", mount.path)["model_bytes"] - 2 * model["bytes"] < 1 << 20  # both copies, in pages
    assert any(line["answered"] for line in told("status", mount.path)["workers"])

    mount.remount()
    mount.deadline(LIMIT_S)
    assert (folder / "a").read_bytes() == text
    scrub = told("scrub", mount.path, "--deep", "--wait")
    assert (scrub["state"], scrub["failed_chunks"], scrub["result"]["damaged"]) == ("done", 0, [])

    done = told("thaw", mount.path, "--wait")
    assert done["stored_after"] > done["stored_before"] > 0
    assert {line["codec"] for line in told("df", mount.path)["codecs"]} == {"zstd"}
    assert "is retired" in nnfs("model", "retire", str(mount.path), model["fingerprint"][:8]).stdout
    [gone] = told("model", "list", mount.path)["models"]  # nothing needed it; that it is retired is remembered
    assert (gone["copies"], gone["bytes"], gone["retired"]) == ("gone", 0, True)
    assert "gone" in nnfs("model", "list", str(mount.path)).stdout


@needs_mount
@pytest.mark.mount
def test_paused_work_is_cancelled(mount: Mount) -> None:
    (mount.path / "file").write_bytes(b"some text " * 100)
    nnfs("pause", str(mount.path))
    job = told("compact", mount.path, "--all")["job"]
    again = told("compact", mount.path, "--all")["job"]  # the first one has begun: it may have passed something by
    assert again != job
    assert told("compact", mount.path, "--all")["job"] == again
    assert f"task {job} ends: compact {mount.path}" in nnfs("compact", str(mount.path), "--cancel").stdout
    nnfs("resume", str(mount.path))
    assert "no compact under way" in nnfs("compact", str(mount.path), "--cancel").stdout
    assert [line["codec"] for line in told("df", mount.path)["codecs"]] == ["zstd"]


@needs_mount
@pytest.mark.mount
def test_what_the_daemon_refuses(mount: Mount, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"no model")
    done = nnfs("model", "add", str(mount.path), str(file), check=False)
    assert done.returncode in (10, 11)
    assert str(file) in done.stderr
    assert done.stderr.count("\n") == 1
    mount.options.append("ro")
    mount.remount()
    for args in (["compact"], ["thaw"]):
        done = nnfs(*args, str(mount.path), check=False)
        assert done.returncode == 2
        assert "read-only" in done.stderr
