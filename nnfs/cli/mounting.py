"""The commands `nnfs mount` and `nnfs umount`."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import pwd
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nnfs
from nnfs.cli import bymount, client
from nnfs.cli.locate import (
    FSTYPE,
    MountEntry,
    Place,
    check_answers,
    found_by_mount,
    locate,
    mount_from,
    mount_of,
    mounts,
)
from nnfs.cli.witness import Witness, where_log
from nnfs.config import config_file
from nnfs.constants import MNT_DETACH, MNT_FORCE
from nnfs.errors import DaemonError, MountError, StoreBusy, StoreError, UsageError
from nnfs.mount import holders, ownpaths, rendezvous
from nnfs.mount.mountpoint import check_uncovered, umount2
from nnfs.mount.mountpoint import is_dead as mountpoint_is_dead
from nnfs.mount.table import resolve
from nnfs.names import say
from nnfs.workers import prepared

READY = b"+"
SAY_AFTER_S = 5  # an unmount that takes longer says what it waits for


def mount(args: argparse.Namespace) -> int:
    """Mount a store. Without -f return when it is mounted."""
    ownpaths.make_absolute(os.environ)
    store, mountpoint = Path(resolve(args.store)), Path(resolve(args.mountpoint))
    _check_places(store, mountpoint, args.log)
    if args.ready_fd is None:  # else done by who started us
        _provide(store, args)
        prepared.before_a_mount()
    if args.foreground:
        return _foreground(store, mountpoint, args)
    return _background(store, mountpoint, args)


def _check_places(store: Path, mountpoint: Path, log: Path | None) -> None:
    try:
        there = mount_of(os.fspath(mountpoint))
        is_ours = there is not None and there.fstype == FSTYPE and there.mountpoint == os.fspath(mountpoint)
        for path in (os.fspath(store), config_file(), *([os.fspath(log)] if log is not None else [])):
            check_answers(path)
        if not is_ours:
            check_answers(os.fspath(mountpoint))
        if not is_ours and not mountpoint.is_dir():  # a mount of nnfs may hang: the daemon checks it
            raise UsageError(f"{mountpoint} is not a directory to mount on: mkdir -p makes one")
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # the daemon unmounts a dead mount
            raise
    if store == mountpoint or mountpoint in store.parents:
        raise UsageError(f"the store {store} lies beneath its own mount point {mountpoint}: choose another directory")
    if store in mountpoint.parents:
        raise UsageError(f"the mount point {mountpoint} lies in the store {store}: choose another directory")
    entry = mount_of(os.fspath(store))
    if entry is not None and entry.fstype == FSTYPE and store.exists() and _same_store(entry, store):
        raise UsageError(f"the store {store} lies on its own mount {entry.mountpoint}: choose another directory")


def _same_store(entry: MountEntry, store: Path) -> bool:
    return resolve(entry.source) == os.fspath(store)


def _provide(store: Path, args: argparse.Namespace) -> None:
    """Check that there is a store, or make one, before a daemon is started."""
    from nnfs.cli import making
    from nnfs.config import load_options
    from nnfs.mount.options import parse_options, words

    options = parse_options(_options(args), fsname=os.fspath(store))
    load_options(store, options.own, words(), resolve=resolve)  # a wrong option is an error before anything is made
    making.provide(store, create=options.create, at_terminal=os.isatty(0) and os.isatty(2), chunk_size=args.chunk_size)


def _foreground(store: Path, mountpoint: Path, args: argparse.Namespace) -> int:
    from nnfs.mount import signals

    signals.block()  # before any library starts a thread
    from nnfs.mount import daemon, logs, notify

    in_background = args.ready_fd is not None
    ownpaths.check(mountpoint, store, logs.file_of(store, foreground=not in_background, file=args.log))
    logs.configure(store, foreground=not in_background, level=args.log_level, file=args.log)

    def ready() -> None:
        logs.mounted()
        notify.ready(f"{store} mounted on {mountpoint}")
        if in_background:
            logs.leave_stderr()
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            os.close(null)
            # Only now: autofs lets systemd's own process group through to the mount point, and nobody else.
            os.setsid()
            try:
                os.write(args.ready_fd, READY)
            except BrokenPipeError:
                logging.getLogger(__name__).warning("whoever asked for the mount has ended meanwhile: it is taken off")
                os.kill(os.getpid(), signal.SIGTERM)
            os.close(args.ready_fd)

    return daemon.run(store, mountpoint, _options(args), ready)


def _options(args: argparse.Namespace) -> list[str]:
    """Return the options of -o and --device; --device is short for the option `device`."""
    device = [f"device={args.device.replace(',', '+')}"] if args.device is not None else []
    return [*args.options, *device]


def _background(store: Path, mountpoint: Path, args: argparse.Namespace) -> int:
    """Start the daemon, and wait until it is mounted or has failed. It prints the reason itself."""
    ours, theirs = os.pipe()
    # -P: its working directory is "/", and what lies in /nnfs, a mount perhaps, is not this program.
    command = [sys.executable, "-P", "-m", "nnfs", "mount", "-f", "--ready-fd", str(theirs)]
    command += ["--log-level", args.log_level]
    command += ["--log", os.fspath(args.log)] if args.log else []
    command += [word for option in _options(args) for word in ("-o", option)]
    with open(ours, "rb", buffering=0) as pipe:
        try:
            child = subprocess.Popen(
                [*command, "--", os.fspath(store), os.fspath(mountpoint)], stdin=subprocess.DEVNULL, cwd="/",
                pass_fds=[theirs], env=environment(),
            )  # fmt: skip
        finally:
            os.close(theirs)
        try:
            is_ready = pipe.read(1) == READY
        except BaseException:
            child.terminate()
            raise
    if is_ready:
        child.returncode = 0  # it goes on without us: Popen need not warn of a child that still runs
        return 0
    code = child.wait()
    if code < 0:
        raise MountError(f"the daemon was ended by {signal.Signals(-code).name} before the mount was there")
    return code or MountError.exit_code


def environment() -> dict[str, str]:
    """Return the environment of a child: from any working directory (a daemon's is "/") it finds this package."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(nnfs.__file__)))
    path = [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


def umount(args: argparse.Namespace) -> int:
    """Unmount, then wait until the daemon has committed everything and ended."""
    try:
        place = _mounted_place(args.mountpoint, anyhow=args.lazy or args.force)
    except (UsageError, FileNotFoundError):
        if args.quiet:
            return 0
        raise
    assert place.mount is not None
    mountpoint, device = place.mount.mountpoint, place.mount.device
    try:
        pid = client.daemon_pid(place.store)
    except DaemonError:
        if not (args.lazy or args.force):
            raise
        pid = None
    if pid is not None and _serves_another(pid, device):
        pid = None  # this one's daemon is dead, and the store was mounted again
    witness = None if args.force or pid is None else Witness(place.store)
    waiter = _pidfd(pid) if pid is not None else None
    has_died = pid is None and mountpoint_is_dead(mountpoint)
    try:
        if pid is not None and not args.lazy:
            client.refuse_stopped(place.store, pid)
        check_uncovered(mountpoint, device)
        _unmount(mountpoint, lazy=args.lazy, force=args.force)
        if args.lazy and witness is not None:
            witness.check_lost()
        if has_died:
            _judge_dead(place.store, place.mount)
        if waiter is None or pid is None or args.lazy:
            return 0
        if left := [mount.mountpoint for mount in mounts() if mount.device == device]:
            say(f"{place.store} stays mounted on {', '.join(left)}")
            return 0
        _wait(waiter, mountpoint, device, pid, place.store)
    finally:
        if waiter is not None:
            os.close(waiter)
    (witness or Witness(place.store, ask=False)).check()
    return 0


def _judge_dead(store: Path, entry: MountEntry) -> None:
    """Print that the daemon of a mount had died. Raises `MountError` if data may be lost with it."""
    said = f"{entry.mountpoint} is unmounted; its daemon had died before"
    if "ro" in entry.super_options.split(",") or mount_from(entry.source) is not None:  # it was mounted again
        say(said)
        return
    raise MountError(f"{said}: what was not synced is lost{where_log(store)}")


def _serves_another(pid: int, device: str) -> bool:
    """Return whether a daemon serves another mount than the one with this device number."""
    others = [entry for entry in mounts() if entry.fstype == FSTYPE and entry.device != device]
    return any(bymount.daemon_of(entry.device, entry.source) == pid for entry in others)


def _mounted_place(text: str, *, anyhow: bool) -> Place:
    """Return the mount at a mount point, or of a store; with `anyhow` even if its daemon does not answer."""
    path = resolve(text)
    entry = mount_of(path)
    of_store = mount_from(path)
    if entry is not None and entry.mountpoint == path and not (entry.fstype != FSTYPE and of_store is not None):
        if entry.fstype != FSTYPE:
            raise UsageError(f"{text} is a mount of type {entry.fstype}, not of nnfs")
        try:
            return locate(path)
        except DaemonError:
            if not anyhow:
                raise
            return found_by_mount(Path(entry.source), entry, Path(path))
    of_store = of_store or _mount_of_moved(path)
    if of_store is not None:
        return found_by_mount(Path(path), of_store, Path(of_store.mountpoint))
    os.stat(path)
    raise UsageError(f"{text} is not mounted (findmnt -t {FSTYPE} lists what is)")


def _mount_of_moved(path: str) -> MountEntry | None:
    """Return the mount of a store that was renamed after it was mounted, as its daemon tells."""
    try:
        told = client.ask(Path(path), "status")["mountpoint"]
    except (OSError, KeyError, DaemonError):
        return None
    return next((entry for entry in mounts() if (entry.fstype, entry.mountpoint) == (FSTYPE, told)), None)


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _wait(pidfd: int, mountpoint: str, device: str, pid: int, store: Path) -> None:
    """Wait until the daemon has ended. Raises `StoreBusy` when another mount namespace keeps the filesystem in use."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    told = False
    while not poll.poll(SAY_AFTER_S * 1000):
        client.refuse_stopped(store, pid)
        held = holders.look(device)
        if held.users and any(user.pid != pid for user in held.users):
            raise StoreBusy(
                f"{mountpoint} is unmounted here, and everything is committed, but {held}. Until that ends, the daemon "
                f"(pid {pid}) serves it and keeps the store {store}; kill {pid} ends the daemon within a minute"
            )
        if not told:
            told = True
            why = f"it is {held}" if held.namespaces else f"to write to {store}"
            say(f"{mountpoint} is unmounted; waiting for the daemon (pid {pid}): {why}")


def _unmount(mountpoint: str, *, lazy: bool, force: bool) -> None:
    flags = (MNT_DETACH if lazy else 0) | (MNT_FORCE if force else 0)
    code = umount2(mountpoint, flags)
    if not code:
        return
    if code == errno.EPERM:
        _fusermount(["-u", *(["-z"] if lazy else []), "--", mountpoint])
    elif code == errno.EBUSY:
        raise MountError(
            f"{mountpoint} is busy: a process has a file open or its working directory there "
            f"(fuser -vm {mountpoint} or lsof +f -- {mountpoint} shows it); "
            f"end it, or use -l to detach the mount now and have it end with its last user"
        )
    else:
        raise MountError(f"cannot unmount {mountpoint}: {os.strerror(code)}")


def _fusermount(words: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            ["fusermount3", *words], capture_output=True, text=True, errors="surrogateescape", check=False
        )
    except FileNotFoundError as error:
        raise StoreError("only root may unmount here (fusermount3 is not installed)") from error
    if done.returncode:
        why = done.stderr.strip().removeprefix("fusermount3: ") or "fusermount3 failed"
        raise MountError(_not_theirs(words[-1]) or why)


def _not_theirs(mountpoint: str) -> str:
    """Return a message about who may unmount a mount of another user, "" for a mount of this user."""
    entry = next((entry for entry in reversed(mounts()) if entry.mountpoint == mountpoint), None)
    owner = rendezvous.owner(entry.super_options) if entry is not None else None
    if owner is None or owner == os.geteuid():
        return ""
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"the user {owner}"
    return f"{mountpoint} was mounted by {name}: only that user and root may unmount it, use sudo"
