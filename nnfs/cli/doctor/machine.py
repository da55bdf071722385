"""Checks of the machine: versions, FUSE, rights, helpers, clock, memory, space."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nnfs
from nnfs import kernelcache, names
from nnfs.cli import tables
from nnfs.cli.doctor.finding import Finding, fail, ok, warn
from nnfs.config import config_file, load_options
from nnfs.errors import UsageError
from nnfs.kernels import build

PACKAGES = ("lmdb", "numba", "numpy", "pyfuse3", "trio", "zstandard", "torch")
FUSE, FUSE_CONF = "/dev/fuse", "/etc/fuse.conf"
HELPERS = ("/sbin/mount.fuse.nnfs", "/sbin/umount.fuse.nnfs")
OLDEST_KERNEL = (5, 4)
FIRST_RELEASE = 1_790_000_000  # s: no clock that is right shows less
UNSYNCED = 0x40  # STA_UNSYNC of adjtimex(2)
LEAST_MEMORY = 512 << 20  # bytes: a worker with the network, and the daemon
LEAST_SPACE = 64 << 20  # bytes for kernels and logs
LEAST_FILES = 1024


def checks() -> Iterator[Finding]:
    """Yield what is found about this machine, one check after the other."""
    for check in (_versions, _kernel, _fuse, _fusermount, _allow_other, _helpers, _others, _config, _clock, _memory):
        yield check()
    yield from _space()
    yield _files()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter; "" for one that is not installed."""
    found = {"nnfs": nnfs.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _versions() -> Finding:
    found = versions()
    missing = [name for name, version in found.items() if not version and name != "torch"]
    if missing:
        return fail("versions", f"not installed: {', '.join(missing)}", "install nnfs again")
    return ok("versions", ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items()))


def _kernel() -> Finding:
    release, machine = platform.release(), platform.machine()
    numbers = tuple(int(word) for word in release.split("-")[0].split(".")[:2] if word.isdigit())
    if numbers < OLDEST_KERNEL:
        return warn("kernel", f"Linux {release}", "nnfs is tested with Linux 5.4 and later")
    return ok("kernel", f"Linux {release}, {machine}, {len(os.sched_getaffinity(0))} cores")


def _fuse() -> Finding:
    try:
        mode = os.stat(FUSE).st_mode
        os.close(os.open(FUSE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return fail("fuse", f"there is no {FUSE}", "modprobe fuse; a container needs --device /dev/fuse")
    except OSError as error:
        who = "chmod 666 /dev/fuse" if os.geteuid() else "a container needs the right to use it: --device /dev/fuse"
        return fail("fuse", f"{FUSE} cannot be opened ({error.strerror})", who)
    if mode & 0o006 != 0o006:
        return warn("fuse", f"{FUSE} is for root alone", "chmod 666 /dev/fuse lets other users mount")
    return ok("fuse", f"{FUSE} can be opened")


def _fusermount() -> Finding:
    path = shutil.which("fusermount3")
    worse = fail if os.geteuid() else warn
    if path is None:
        return worse("fusermount3", "not installed", "install fuse3: without it only root mounts")
    status = os.stat(path)
    if not (status.st_mode & stat.S_ISUID and status.st_uid == 0) and not _has_capability(path):
        return worse("fusermount3", f"{path} is not setuid root", f"chmod 4755 {path}: without that only root mounts")
    return ok("fusermount3", f"{path}, setuid root")


def _has_capability(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _allow_other() -> Finding:
    try:
        lines = Path(FUSE_CONF).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if "user_allow_other" in [line.split("#")[0].strip() for line in lines]:
        return ok("allow_other", f"{FUSE_CONF} has user_allow_other: users may share their mounts")
    if os.geteuid() == 0:
        return ok("allow_other", "mounts of root are for all users; those of other users for themselves")
    return warn(
        "allow_other", "a mount of yours is for yourself alone", f"user_allow_other in {FUSE_CONF} lets you share"
    )


def _helpers() -> Finding:
    absent = [path for path in HELPERS if not os.access(path, os.X_OK)]
    if absent:
        advice = "as root: tools/run in a checkout, or nnfs integrate, makes them"
        return warn("helpers", f"no {', '.join(absent)}: fstab and mount -t fuse.nnfs do not work", advice)
    return ok("helpers", f"{', '.join(HELPERS)}: fstab and mount -t fuse.nnfs work")


def _others() -> Finding:
    for name in (sys.executable, os.path.dirname(nnfs.__file__)):
        if closed := _closed(name):
            advice = "install nnfs where all can enter (/opt/nnfs) if they are to use it"
            return warn("others", f"other users cannot run this nnfs: they may not enter {closed}", advice)
    return ok("others", "other users can run this nnfs, too")


def _closed(name: str) -> str:
    """Return the first folder on the way to a file that other users cannot enter, "" without one."""
    path = Path(os.path.realpath(name))
    return next((os.fspath(one) for one in [*reversed(path.parents), path] if not one.stat().st_mode & 0o001), "")


def _config() -> Finding:
    try:
        load_options(Path("/"), {})
    except UsageError as error:
        return fail("config", names.message_of(error), "correct it: no store can be mounted with it")
    there = os.path.exists(config_file())
    return ok("config", f"{config_file()} is read" if there else f"no {config_file()}: defaults hold")


def _clock() -> Finding:
    now = time.time()
    if not FIRST_RELEASE < now < 1 << 33:
        date = time.strftime("%Y-%m-%d", time.gmtime(now))
        return fail("clock", f"it shows {date}", "set it: which files are cold is told by times")
    if _is_unsynced():
        return warn("clock", f"{tables.date(now)}, not synchronised", "run chrony or systemd-timesyncd")
    return ok("clock", tables.date(now))


def _is_unsynced() -> bool:
    """Return whether the kernel says that its clock is not synchronised."""
    room = (ctypes.c_long * 64)()  # struct timex, `modes` 0: reads only; its fifth word begins with `status`
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(ctypes.byref(room)) < 0:
        return False
    return bool(ctypes.c_int.from_buffer(room, 5 * ctypes.sizeof(ctypes.c_long)).value & UNSYNCED)


def memory() -> dict[str, int]:
    """Return bytes of memory: `MemTotal` and `MemAvailable`, and the bound of our control group, if there is one."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            found[name] = int(rest.split()[0]) << 10
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < found["MemTotal"]:
            found["bound"] = int(text)
    return found


def _memory() -> Finding:
    found = memory()
    least = min(found["MemAvailable"], found.get("bound", 1 << 62))
    text = f"{tables.size(found['MemTotal'])}, {tables.size(least)} to be had"
    if least < LEAST_MEMORY:
        return warn("memory", text, "the network's codec wants 512 MiB: -o neural=off does without")
    return ok("memory", text)


def _space() -> Iterator[Finding]:
    """Yield the space of the folders that nnfs writes to besides a store."""
    kept = next((place for place in [*build.folders(), *kernelcache.roots()] if _usable(place)), None)
    if kept is None:
        advice = "each worker compiles them anew: install nnfs as root, or set HOME"
        yield warn("kernels", "no folder for compiled kernels can be written", advice)
    else:
        yield _room("kernels", kept)
    yield _room("temporary", tempfile.gettempdir())
    log = "/var/log" if os.geteuid() == 0 else os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~")
    yield _room("logs", log)


def _usable(folder: str) -> bool:
    path = Path(folder)
    while not path.exists():
        path = path.parent
    return os.access(path, os.W_OK | os.X_OK)


def _room(check: str, folder: str) -> Finding:
    path = Path(folder)
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    free = found.f_bavail * found.f_frsize
    text = f"{tables.size(free)} free in {names.printable(folder)}"
    if free < LEAST_SPACE:
        return warn(check, text, "make room")
    if not os.access(path, os.W_OK | os.X_OK):
        return warn(check, f"{names.printable(folder)} cannot be written", "nothing is kept there")
    return ok(check, text)


def _files() -> Finding:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < LEAST_FILES:
        return warn("files", f"at most {hard} files may be open", f"raise the limit: ulimit -n {LEAST_FILES}")
    return ok("files", f"{soft} may be open, {hard} at most")
