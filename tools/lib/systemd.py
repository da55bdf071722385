"""Checks of nnfs under a real systemd in a container; see tools/test-systemd, which installs the packages."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = Path(os.environ.get("NNFS_SYSTEMD_CACHE", "/var/tmp/nnfs-systemd"))
SUITE = "bookworm"
PACKAGES = (
    "systemd,systemd-sysv,dbus,fuse3,procps,mount,util-linux,python3,libsqlite3-0,libreadline8,kmod,libgomp1,libstdc++6"
)
LIMIT_S = 120.0  # for one step: generous, other work may run beside
PYTHON = f"{ROOT}/.venv/bin/python -I -m nnfs"

FSTAB = """\
/stores/boot  /mnt/boot  fuse.nnfs  noatime,nofail                                                  0 0
/stores/auto  /mnt/auto  fuse.nnfs  noauto,x-systemd.automount,x-systemd.idle-timeout=3,big_writes  0 0
"""
LOCAL = "[Service]\nWatchdogSec={watchdog}\nTimeoutAbortSec=2\n"


class Failed(Exception):
    """A check has failed."""


def image() -> Path:
    """Return the container's files as an archive. Build it when there is none of this recipe."""
    recipe = hashlib.blake2b(f"{SUITE} {PACKAGES}".encode(), digest_size=6).hexdigest()
    archive = CACHE / f"{SUITE}-{recipe}.tar"
    if not archive.exists():
        print(f"building {archive}", file=sys.stderr)
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob("*.tar*"):
            old.unlink()
        partial = archive.with_name(archive.name + ".partial.tar")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(partial)]
        subprocess.run(command, check=True)
        partial.rename(archive)
    return archive


class Container:
    """A booted machine; its files are removed at the end."""

    def __init__(self, deb: Path | None = None) -> None:
        archive = image()  # makes the folder, too
        self.deb = deb  # a package to try, instead of the checkout
        self.files = Path(tempfile.mkdtemp(prefix="machine-", dir=CACHE))
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0
        subprocess.run(["tar", "-xf", archive, "-C", self.files], check=True)

    def boot(self) -> None:
        """Start it, and wait until everything is started."""
        python = Path(sys.base_prefix)
        binds = [f"--bind-ro={ROOT}", *([] if python == Path("/usr") else [f"--bind-ro={python}"])]
        binds = [] if self.deb is not None else binds
        log = (self.files.parent / f"{self.files.name}.log").open("ab")
        with log:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", "--quiet", f"--directory={self.files}", "--boot", "--keep-unit", "--register=no",
                 "--private-network", "--bind=/dev/fuse", "--bind=/dev/autofs", "--capability=all", "--console=pipe",
                 *binds],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._init = int(wait("the first process", self._child))
        wait("systemd", lambda: self.sh("systemctl is-system-running").strip() in ("running", "degraded"), 3 * LIMIT_S)

    def _child(self) -> str:
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise Failed(f"systemd-nspawn ended: {self.console()[-2000:]}")
        pid = self._nspawn.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split(" ")[0]

    def console(self) -> str:
        """Return the text that has been printed on the console."""
        return (self.files.parent / f"{self.files.name}.log").read_text(errors="replace")

    def run(self, script: str, limit: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
        """Run a shell script inside."""
        path = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        command = ["nsenter", "--all", f"--target={self._init}", "env", "-i", path, "sh", "-c", script]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd="/", check=False)
        except subprocess.TimeoutExpired:
            raise Failed(f"hangs: {script}") from None

    def sh(self, script: str) -> str:
        """Return the output of a script, which may fail."""
        return self.run(script).stdout

    def do(self, script: str) -> str:
        """Return the output of a script, which must not fail."""
        done = self.run(script)
        if done.returncode:
            raise Failed(f"{script}: exit {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def off(self) -> None:
        """Power it off, and wait until it is."""
        assert self._nspawn is not None
        self.run("systemctl --no-block poweroff")
        self._nspawn.wait(LIMIT_S * 2)
        self._nspawn = None

    def remove(self) -> None:
        """End it and remove its files."""
        if self._nspawn is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init or self._nspawn.pid, 9)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._nspawn.wait(30)
        shutil.rmtree(self.files, ignore_errors=True)
        (self.files.parent / f"{self.files.name}.log").unlink(missing_ok=True)


def wait(what: str, ready: Callable[[], object], limit: float = LIMIT_S) -> str:
    """Ask again and again until something is true; return it as text."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if found := ready():
            return str(found)
        time.sleep(0.2)
    raise Failed(f"waited {limit:.0f} s in vain for {what}")


def furnish(machine: Container) -> None:
    """Put nnfs, stores, fstab and units into the machine's files."""
    files = machine.files
    for folder in ("mnt/boot", "mnt/auto", "mnt/unit", "mnt/none", "stores", "stores/none", "etc/nnfs"):
        (files / folder).mkdir(parents=True, exist_ok=True)
    for name in ("boot", "auto", "unit"):
        subprocess.run([*PYTHON.split(), "mkfs", files / "stores" / name], check=True, capture_output=True, cwd="/")
    units = install(machine, machine.deb) if machine.deb is not None else link(files)
    (files / "etc/fstab").write_text(FSTAB)
    (files / "etc/nnfs/unit.conf").write_text("STORE=/stores/unit\nMNT=/mnt/unit\nOPTIONS=noatime\n")
    (files / "etc/nnfs/none.conf").write_text("STORE=/stores/none\nMNT=/mnt/none\nOPTIONS=noatime\n")
    wanted = files / "etc/systemd/system/multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "nnfs@unit.service").symlink_to(f"{units}/nnfs@.service")


def link(files: Path) -> str:
    """Put links to the checkout, and the units, into a machine's files. Return the folder of the units."""
    for name in ("mount", "umount"):
        (files / f"sbin/{name}.fuse.nnfs").symlink_to(ROOT / "nnfs/cli/sbin" / f"{name}.nnfs")
    command = files / "usr/local/bin/nnfs"
    command.write_text(f'#!/bin/sh\nexec {PYTHON} "$@"\n')
    command.chmod(0o755)
    for unit in (ROOT / "systemd").glob("nnfs*"):
        shutil.copy(unit, files / "etc/systemd/system")
    return "/etc/systemd/system"


def install(machine: Container, deb: Path) -> str:
    """Install a package into a machine's files. Return the folder of its units."""
    shutil.copy(deb, machine.files / "nnfs.deb")
    done = subprocess.run(
        ["chroot", machine.files, "dpkg", "-i", "/nnfs.deb"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"dpkg -i: {done.stdout}{done.stderr}")
    return "/usr/lib/systemd/system"


def is_mounted(machine: Container, where: str) -> bool:
    """Whether nnfs is mounted somewhere, without touching it."""
    return machine.run(f"grep -q ' {where} .* - fuse.nnfs ' /proc/self/mountinfo").returncode == 0


def pid_of(machine: Container, unit: str) -> str:
    """The main process of a unit."""
    return machine.sh(f"systemctl show -P MainPID {unit}").strip()


def journal(machine: Container, unit: str, *, least: str = "debug") -> str:
    """Return the log of a unit."""
    return machine.sh(f"journalctl --sync; journalctl -o cat -p {least} -u {unit}")


UNIT = "nnfs@unit.service"


def fstab(machine: Container) -> None:
    """A line of fstab is mounted at boot, and by mount(8); umount(8) waits for the daemon."""
    wait("the mount of fstab", lambda: is_mounted(machine, "/mnt/boot"))
    machine.do("echo kept >/mnt/boot/f && umount /mnt/boot && mount /mnt/boot && grep kept /mnt/boot/f")
    machine.do("systemctl stop mnt-boot.mount && nnfs fsck /stores/boot && systemctl start mnt-boot.mount")
    machine.do("mount -o remount,noatime /mnt/boot && grep kept /mnt/boot/f")


def automount(machine: Container) -> None:
    """The first access mounts."""
    if is_mounted(machine, "/mnt/auto"):
        raise Failed("mounted before anybody has asked")
    machine.do("echo kept >/mnt/auto/f && grep kept /mnt/auto/f && findmnt -t fuse.nnfs /mnt/auto")


def idle(machine: Container) -> None:
    """It is unmounted when it is idle, and comes back."""
    wait("the unmount", lambda: not is_mounted(machine, "/mnt/auto"))
    wait("the daemon's end", lambda: machine.run("nnfs fsck /stores/auto").returncode == 0)
    machine.do("grep kept /mnt/auto/f")


def waits(machine: Container) -> None:
    """`--wait` keeps it from idling away."""
    machine.do("ls /mnt/auto; nnfs pause /mnt/auto")
    machine.do("nnfs compact --all --wait /mnt/auto >/run/compact 2>&1 & echo $! >/run/waiter")
    machine.do("sleep 8")  # twice the timeout and more
    if not is_mounted(machine, "/mnt/auto"):
        raise Failed(f"unmounted below a command that waits: {machine.sh('cat /run/compact')}")
    machine.do("nnfs resume /stores/auto; tail --pid=$(cat /run/waiter) -f /dev/null")


def unit_starts(machine: Container) -> None:
    """The unit is started at boot, and is ready when it is mounted."""
    machine.do(f"systemctl is-active {UNIT} && findmnt -t fuse.nnfs /mnt/unit && echo kept >/mnt/unit/f")


def unit_reloads(machine: Container) -> None:
    """Reload reads the configuration; the process stays."""
    before = pid_of(machine, UNIT)
    machine.do(f"printf '[default]\\ncache = \"1M\"\\n' >/etc/nnfs.toml; systemctl reload {UNIT}")
    wait("the line", lambda: "option cache is 1048576 now" in journal(machine, UNIT))
    machine.do(f"systemctl is-active {UNIT} && grep kept /mnt/unit/f")
    if pid_of(machine, UNIT) != before:
        raise Failed("another process")


def unit_tells(machine: Container) -> None:
    """QUIT, to all of the unit, has stacks written to the journal; nothing ends."""
    before = pid_of(machine, UNIT)
    machine.do(f"systemctl kill -s QUIT {UNIT}")
    wait("the stacks", lambda: "SIGQUIT: what the daemon is doing" in journal(machine, UNIT))
    machine.do(f"systemctl kill -s HUP {UNIT}; grep kept /mnt/unit/f")
    if pid_of(machine, UNIT) != before:
        raise Failed("another process")


def unit_restarts(machine: Container) -> None:
    """Restart."""
    machine.do(f"systemctl restart {UNIT} && grep kept /mnt/unit/f")


def unit_stops(machine: Container) -> None:
    """A clean stop: nothing in the journal looks like an error, and the store is free and clean."""
    machine.do(f"journalctl --rotate -q; journalctl --vacuum-time=1s -q; echo more >/mnt/unit/g; systemctl stop {UNIT}")
    if (result := machine.sh(f"systemctl show -P Result {UNIT}").strip()) != "success":
        raise Failed(f"result {result}")
    text = journal(machine, UNIT)
    if "not mounted" in text or "rror" in text or "ail" in text or journal(machine, UNIT, least="warning").strip():
        raise Failed(f"the journal says: {text}")
    machine.do(f"nnfs fsck /stores/unit && systemctl start {UNIT} && grep more /mnt/unit/g")


def unit_fails(machine: Container) -> None:
    """A store that is none: the exit status is told, and it is not tried again."""
    if machine.run("systemctl start nnfs@none.service").returncode == 0:
        raise Failed("a store was made")
    state = machine.sh("systemctl show -P ExecMainStatus -P NRestarts -P ActiveState nnfs@none.service").split()
    if sorted(state) != ["0", "4", "failed"]:
        raise Failed(f"state {state}: {journal(machine, 'nnfs@none.service')}")
    machine.sh("systemctl reset-failed nnfs@none.service")


def _comes_back(machine: Container, before: str) -> None:
    def is_back() -> bool:
        return pid_of(machine, UNIT) not in ("0", before) and machine.run(f"systemctl is-active {UNIT}").returncode == 0

    wait("another process", is_back)
    machine.do("grep kept /mnt/unit/f")
    if (count := machine.sh("cut -d' ' -f5 /proc/self/mountinfo").split().count("/mnt/unit")) != 1:
        raise Failed(f"{count} mounts at /mnt/unit")


def killed(machine: Container) -> None:
    """After kill -9 systemd starts it again, on one mount."""
    machine.do("sync; sync -f /mnt/unit/f")
    before = pid_of(machine, UNIT)
    machine.do(f"kill -9 {before}")
    _comes_back(machine, before)


def watchdog(machine: Container) -> None:
    """A daemon that stands still is killed by the watchdog, and started again."""
    folder = f"/run/systemd/system/{UNIT}.d"
    machine.do(f"mkdir -p {folder}; printf '{LOCAL.format(watchdog=4)}' >{folder}/w.conf; systemctl daemon-reload")
    machine.do(f"systemctl restart {UNIT}; sleep 6; systemctl is-active {UNIT}")
    before = pid_of(machine, UNIT)
    machine.do(f"kill -STOP {before}")
    _comes_back(machine, before)
    machine.do(f"rm -r {folder}; systemctl daemon-reload; systemctl restart {UNIT}")


def private(machine: Container) -> None:
    """A service with mounts of its own, that only shows the mount, does not hold up the stop."""
    machine.do(
        "systemd-run -q --unit=shows -p PrivateMounts=yes -p MountFlags=private sleep 600; sleep 1; "
        f"timeout 60 systemctl stop {UNIT} && nnfs fsck /stores/unit && systemctl start {UNIT} && systemctl stop shows"
    )


def poweroff(machine: Container) -> None:
    """Data that was written and not synced is there after poweroff and boot."""
    if missing := [name for name in ("boot", "unit") if not is_mounted(machine, f"/mnt/{name}")]:
        raise Failed(f"not mounted: {missing}")
    script = "for m in boot auto unit; do head -c 3000000 /dev/urandom >/mnt/$m/dirty; done; cd /mnt; sha256sum */dirty"
    before = machine.do(script)
    machine.off()
    for name in ("boot", "auto", "unit"):
        command = [*PYTHON.split(), "status", "--json", str(machine.files / "stores" / name)]
        if not json.loads(subprocess.check_output(command, cwd="/"))["clean"]:
            raise Failed(f"{name} was not closed in order")
    machine.boot()
    after = machine.do("cd /mnt; sha256sum */dirty")
    if before != after:
        raise Failed(f"{before} before, {after} after")


def package(machine: Container) -> None:
    """A Debian package is whole, has its pages and completion, compiles no native kernels, and is exact."""
    if machine.deb is None:
        return
    machine.do("dpkg --verify nnfs && test -s /usr/share/man/man1/nnfs.1.gz && nnfs doctor --quick /mnt/unit")
    machine.do("test -s /usr/share/bash-completion/completions/nnfs && test ! -e /usr/local/bin/nnfs")
    told = json.loads(machine.run("nnfs doctor --json", 10 * LIMIT_S).stdout)["checks"]  # compiles numba's kernels
    found = {check["check"]: check["verdict"] for check in told}
    if (found["native"], found["exactness"], found["reference"]) != ("ok", "ok", "ok"):
        raise Failed(f"nnfs doctor: {told}")
    machine.do("nnfs compact --all --quick --wait /mnt/unit")


def purge(machine: Container) -> None:
    """It can be removed while it is not used, and leaves nothing but stores and configuration."""
    if machine.deb is None:
        return
    machine.do(f"systemctl stop {UNIT}; umount /mnt/boot; systemctl stop mnt-auto.automount; umount /mnt/auto || true")
    machine.do(
        "dpkg --purge nnfs && test ! -e /usr/lib/nnfs && test ! -e /sbin/mount.fuse.nnfs && test -d /stores/unit"
    )


CHECKS = (
    fstab, automount, idle, waits, unit_starts, unit_reloads, unit_tells, unit_restarts, unit_stops, unit_fails, killed,
    watchdog, private, package, poweroff, purge,
)  # fmt: skip


@contextlib.contextmanager
def booted(deb: Path | None) -> Iterator[Container]:
    """A machine with nnfs."""
    machine = Container(deb)
    try:
        furnish(machine)
        machine.boot()
        yield machine
    finally:
        machine.remove()


def main() -> int:
    """Do all checks, or those named; one line each."""
    parser = argparse.ArgumentParser("test-systemd", description="Checks of nnfs under a real systemd.")
    parser.add_argument(
        "--deb", type=Path, metavar="FILE", help="a package of tools/build-deb, instead of the checkout"
    )
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=", ".join(check.__name__ for check in CHECKS))
    args = parser.parse_args()
    chosen = [check for check in CHECKS if not args.checks or check.__name__ in args.checks]
    failed = 0
    with booted(args.deb) as machine:
        for check in chosen:
            start = time.monotonic()
            try:
                check(machine)
                verdict = "ok"
            except (Failed, subprocess.SubprocessError) as error:
                failed += 1
                verdict = f"FAILED: {error}"
            what = (check.__doc__ or "").strip()
            print(f"{check.__name__:<14} {time.monotonic() - start:5.1f} s  {what} {verdict}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
