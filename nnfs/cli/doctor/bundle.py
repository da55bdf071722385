"""The bundle of `nnfs doctor`: facts for a report of a bug, without names or content of the user's files.

Each text is made of facts that are listed here; for the log see `logtext`. At last all private words (the machine's
name, the user's, the paths of store and mount) are replaced in every text.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import platform
import pwd
import re
import socket
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnfs import names
from nnfs.cli import wholefile
from nnfs.cli.doctor import logtext, machine
from nnfs.cli.doctor.finding import Finding
from nnfs.cli.locate import FSTYPE, Place, check_answers, mounts
from nnfs.config import as_texts, config_file, load_options
from nnfs.errors import UsageError

README = """\
This is the bundle of `nnfs doctor`, for a report of a bug. It has:

  README.txt     this text
  checks.txt     what the checks have found, and checks.json the same for programs
  versions.json  versions of nnfs, Python and the packages that nnfs uses, the kernel, the distribution
  cpu.txt        model and abilities of the processor; memory.json its memory
  config.json    the options of nnfs that hold, from its configuration
  mounts.json    mounts of nnfs: their type and options
  status.json    figures of the daemon, if PATH was given and is mounted
  log.txt        the end of the daemon's log, if it can be read

It has no content and no names of files, no paths of the store or the mount, no name of the machine or a user.
In log.txt stands "..." for what could be a name.
"""

STATUS = frozenset({
    "version", "uptime", "commit", "commits", "last_commit", "dirty_bytes", "free_bytes", "no_space", "inodes",
    "open_handles", "known_inodes", "cache_bytes", "cache_hits", "cache_misses", "reads_waiting", "damaged_blocks",
    "thawed_bytes", "thawed_hits", "thawed_misses", "thawed_damaged", "wrong_decodes", "scrubbed", "speeds",
    "thaw_seconds_per_mib", "clean", "created", "chunk_size", "compat", "ro_compat", "incompat",
})  # fields of a status that hold no text of the user's  # fmt: skip
WORKER = ("name", "device", "state", "starts", "deaths", "answered", "failed")
LOG_BYTES = 1 << 18
JOURNAL_LINES = 2000
_NAME = re.compile(r"[/'\"\\`]")


def check(file: Path) -> None:
    """Raise `UsageError` where a bundle cannot be written."""
    check_answers(os.fspath(file))
    if file.exists():
        raise UsageError(f"{file} exists: give another name, or remove it")
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent} is not a directory")


def write(file: Path, findings: Sequence[Finding], place: Place | None, status: Mapping[str, Any] | None) -> list[str]:
    """Write the bundle, a tar archive. It appears when it is complete. Return the names of its members.

    Raises `OutOfSpace`, OSError.
    """
    words = _private(place)
    texts = {name: _without(text, words) for name, text in _texts(findings, place, status).items()}
    wholefile.write(file, _packed(texts))
    return list(texts)


def _packed(texts: Mapping[str, str]) -> bytes:
    room = io.BytesIO()
    with tarfile.open(fileobj=room, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, text in texts.items():
            data = text.encode(errors="backslashreplace")
            member = tarfile.TarInfo(f"nnfs-doctor/{name}")
            member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(room.getvalue(), mtime=0)


def _texts(findings: Sequence[Finding], place: Place | None, status: Mapping[str, Any] | None) -> dict[str, str]:
    told = [
        replace(finding, text=_cut(finding.text), advice=_cut(finding.advice)) if finding.names_files else finding
        for finding in findings
    ]
    found = {
        "README.txt": README,
        "checks.txt": "".join(f"{finding.line()}\n" for finding in told),
        "checks.json": _json([finding.as_dict() for finding in told]),
        "versions.json": _json({**machine.versions(), "kernel": platform.release(), "system": _system()}),
        "cpu.txt": _cpu(),
        "memory.json": _json(machine.memory()),
        "config.json": _json(_config(place)),
        "mounts.json": _json([_mount(entry.super_options) for entry in mounts() if entry.fstype == FSTYPE]),
    }
    if status is not None:
        facts = {name: value for name, value in status.items() if name in STATUS}
        workers = [{name: worker.get(name) for name in WORKER} for worker in status.get("workers", [])]
        found["status.json"] = _json({**facts, "workers": workers})
        found["log.txt"] = log_of(str(status.get("log", "")), status.get("pid"))
    return found


def _json(value: Any) -> str:
    return json.dumps(names.for_json(value), indent=1, sort_keys=True) + "\n"


def _system() -> dict[str, str]:
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        return {}
    return {name: system[name] for name in ("ID", "VERSION_ID") if name in system}


def _cpu() -> str:
    """Return the lines about the first processor that say what it can do."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return ""
    wanted = ("vendor_id", "model", "model name", "stepping", "microcode", "flags", "Features", "CPU part", "bugs")
    return "".join(f"{line}\n" for line in first.splitlines() if line.partition(":")[0].strip() in wanted)


def _config(place: Place | None) -> dict[str, str]:
    try:
        options = as_texts(load_options(place.store if place is not None else Path("/"), {}))
    except UsageError:
        return {"error": f"{config_file()} cannot be used"}
    return {name: text for name, text in options.items() if name != "metrics"} | {
        "metrics": "off" if options["metrics"] == "off" else "on"
    }


def _mount(options: str) -> list[str]:
    return sorted(word for word in options.split(",") if not word.startswith(("fsname=", "user_id=", "group_id=")))


def log_of(place: str, pid: object) -> str:
    """Return the end of a daemon's log, without names. `place` is a file, or where else the log goes."""
    if place.startswith("/"):
        try:
            with open(place, "rb") as file:
                file.seek(max(0, os.stat(place).st_size - LOG_BYTES))
                text = file.read(LOG_BYTES).decode(errors="replace")
        except OSError as error:
            return f"the log cannot be read: {error.strerror}\n"
    elif place == "journal":
        command = ["journalctl", f"_PID={pid}", "--output=short-iso", "--no-hostname", f"--lines={JOURNAL_LINES}"]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the journal cannot be read: {type(error).__name__}\n"
        text = done.stdout.decode(errors="replace")
    else:
        return f"the log goes to {place or 'an unknown place'}\n"
    return "".join(f"{logtext.shown(line)}\n" for line in text.splitlines())


def _cut(message: str) -> str:
    """Return a message up to where a name could begin."""
    found = _NAME.search(message)
    return message if found is None else message[: found.start()] + logtext.HIDDEN


def _private(place: Place | None) -> list[str]:
    """Return words that no text may have, the longest first."""
    words = {socket.gethostname(), os.path.expanduser("~")}
    for uid in {os.getuid(), int(os.environ.get("SUDO_UID", os.getuid()))}:
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            continue
        words |= {entry.pw_name, entry.pw_dir} if uid else set()
    if place is not None:
        words |= {os.fspath(place.store), os.fspath(place.path)}
        words |= {place.mount.mountpoint, place.mount.source} if place.mount is not None else set()
    return sorted((word for word in words if len(word) > 2), key=len, reverse=True)


def _without(text: str, words: Sequence[str]) -> str:
    for word in words:
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "[hidden]", text)
    return text
