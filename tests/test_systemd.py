"""The units: systemd accepts them, and nothing in them hides the mount from the machine or forbids a JIT."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parent.parent / "systemd").glob("nnfs*"))
COMMAND = "/usr/local/bin/nnfs"

# exec_needs_mount_namespace() of systemd and what it follows from, plus what later versions added. In a mount namespace
# of its own the service would mount for itself alone.
PRIVATE_MOUNTS = set(
    """
    BPFDelegateCommands BindPaths BindReadOnlyPaths DelegateNamespaces DynamicUser ExecPaths
    ExtensionDirectories ExtensionImages IPCNamespacePath ImportCredential InaccessiblePaths JoinsNamespaceOf
    LoadCredential LoadCredentialEncrypted LogNamespace MountAPIVFS MountFlags MountImages NetworkNamespacePath
    NoExecPaths PrivateBPF PrivateDevices PrivateIPC PrivateMounts PrivateNetwork PrivatePIDs PrivateTmp
    PrivateUsers ProcSubset ProtectClock ProtectControlGroups ProtectHome ProtectHostname ProtectKernelLogs
    ProtectKernelModules ProtectKernelTunables ProtectProc ProtectSystem ReadOnlyPaths ReadWritePaths
    RootDirectory RootHash RootImage SetCredential SetCredentialEncrypted TemporaryFileSystem
    """.split()
)
NO_JIT = {"MemoryDenyWriteExecute"}
NEEDED_CALLS = set("@mount @process @resources @system-service mmap mprotect memfd_create mount umount2".split())


def directives(unit: Path) -> list[tuple[str, str, str]]:
    """(section, key, value) in order, continued lines joined."""
    found, section = [], ""
    for line in unit.read_text().replace("\\\n", " ").splitlines():
        if re.match(r"\s*([#;]|$)", line):
            continue
        if header := re.fullmatch(r"\[(\w+)\]", line.strip()):
            section = header[1]
        else:
            key, _, value = line.partition("=")
            found.append((section, key.strip(), value.strip()))
    return found


def hindrances(unit: Path) -> list[str]:
    """Settings that would make the mount private or prevent compilation at run time are absent."""
    found = [key for _, key, _ in directives(unit) if key in PRIVATE_MOUNTS | NO_JIT]
    for _, key, value in directives(unit):
        calls = set(value.removeprefix("~").split())
        if key == "SystemCallFilter" and (not value.startswith("~") or calls & NEEDED_CALLS):
            found.append(f"{key}={value}")
        if key == "CapabilityBoundingSet" and value.startswith("~"):
            found.append(f"{key}={value}")
    return found


def verify(folder: Path) -> str:
    """Return the complaints of `systemd-analyze verify` about the units of a folder, whose command exists."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing (Debian: systemd)")
    command = folder / "nnfs"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    units = sorted(folder.glob("*.*"))
    assert len(units) == len(UNITS)
    for unit in units:
        unit.write_text(unit.read_text().replace(COMMAND, str(command)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units], capture_output=True, text=True
    )
    complaints = [line for line in done.stderr.splitlines() if "nnfs" in line or str(folder) in line]
    return "\n".join(complaints) or ("" if done.returncode == 0 else done.stderr)


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """The units in a folder of their own."""
    for unit in UNITS:
        shutil.copy(unit, tmp_path)
    return tmp_path


def test_all_units_are_there() -> None:
    assert [unit.name for unit in UNITS] == [
        "nnfs-scrub@.service", "nnfs-scrub@.timer", "nnfs-snapshot@.service", "nnfs-snapshot@.timer", "nnfs@.service",
    ]  # fmt: skip


def test_systemd_accepts_the_units(copies: Path) -> None:
    assert verify(copies) == ""


@pytest.mark.parametrize("line", ["KillMode=mixd", "Tpye=notify", "TimeoutStopSec=soon", "ExecStop=/nowhere/nnfs"])
def test_a_mistake_would_be_seen(copies: Path, line: str) -> None:
    unit = copies / "nnfs@.service"
    unit.write_text(unit.read_text().replace("[Service]\n", f"[Service]\n{line}\n"))
    assert verify(copies) != ""


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_mounts_stay_visible_and_code_can_be_compiled(unit: Path) -> None:
    assert hindrances(unit) == []


@pytest.mark.parametrize(
    "line",
    [
        "PrivateTmp=yes",
        "PrivateTmp = \\\n yes",
        "ProtectSystem=full",
        "MemoryDenyWriteExecute=yes",
        "SystemCallFilter=~@mount",
        "SystemCallFilter=@basic-io",
    ],
)
def test_a_hindrance_would_be_seen(copies: Path, line: str) -> None:
    unit = copies / "nnfs@.service"
    unit.write_text(f"{unit.read_text()}\n[Service]\n{line}\n")
    assert hindrances(unit) != []


def test_the_mount_service_stops_cleanly() -> None:
    unit = {key: value for section, key, value in directives(UNITS[-1]) if section == "Service"}
    assert unit["Type"] == "notify"
    assert unit["KillMode"] == "mixed"  # SIGTERM to the daemon alone: it ends its workers after the last commit
    assert unit["OOMPolicy"] == "continue"
    assert unit["ExecReload"].endswith("kill -HUP $MAINPID")
    assert unit["ExecStopPost"].split()[1:3] == ["umount", "-ql"]  # after a clean stop there is nothing to say
    assert "-f" in unit["ExecStart"].split()
    assert "infinity" not in unit["TimeoutStopSec"]
    assert {"AF_UNIX", "AF_INET", "AF_INET6"} <= set(unit["RestrictAddressFamilies"].split())  # option metrics
    assert "CAP_SYS_ADMIN" in unit["CapabilityBoundingSet"].split()
