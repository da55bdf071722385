"""The connection between the kernel and libfuse: it calls mount(2) itself, and corrects the INIT negotiation.

pyfuse3 3.5 mounts through libfuse and gives no access to ``fuse_conn_info``, so a filesystem on it is stuck with
libfuse's wishes: the kernel applies the umask (default ACLs cannot work), 12 background requests (that many stuck reads
freeze all readahead and writeback), no parallel look-ups, a getxattr before each write(2). So the mount is made here,
and libfuse gets one end of a socket pair in place of ``/dev/fuse``: the kernel's INIT request is handed through,
libfuse's reply is corrected on its way back, and then the real descriptor takes the socket's place (dup2). From there
on libfuse and the kernel are alone. ::

    options = nnfs.mount.options.parse_options(["noatime,suid"])
    connection = connect(ops, "/mnt/nn", options)   # the mount exists, every access to it waits
    try:
        await connection.handshake()                # it answers
        await connection.serve()                    # until it is unmounted, by us or by anybody
    finally:
        connection.close()

Users other than root mount through fusermount3, which hands us the descriptor; only the tuning in sysfs is lost then.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import functools
import logging
import os
import select
import socket
import struct
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from nnfs.errors import MountError
from nnfs.mount import statfsinode
from nnfs.mount.mountpoint import check_call, libc, mount_error, unmount_path, usable
from nnfs.mount.options import MS_NOSYMFOLLOW, MountOptions
from nnfs.mount.table import MountInfo, mounts

log = logging.getLogger(__name__)

# --- the INIT negotiation ---------------------------------------------------------------------------------------------

FUSE_INIT = 26
_IN = struct.Struct("<IIQQIIIIIIIII44x")  # fuse_in_header, fuse_init_in
_OUT_HEADER = struct.Struct("<IiQ")
_OUT = struct.Struct("<IIIIHHIIHHI")  # fuse_init_out, as far as it is known here
_OUT_SIZE = 64  # bytes of all of it: what stands behind the known fields is kept as libfuse wrote it

ASYNC_READ, ATOMIC_O_TRUNC, EXPORT_SUPPORT, BIG_WRITES, DONT_MASK = 1 << 0, 1 << 3, 1 << 4, 1 << 5, 1 << 6
SPLICE_READ, AUTO_INVAL_DATA, DO_READDIRPLUS, READDIRPLUS_AUTO = 1 << 9, 1 << 12, 1 << 13, 1 << 14
ASYNC_DIO, WRITEBACK_CACHE, PARALLEL_DIROPS, HANDLE_KILLPRIV = 1 << 15, 1 << 16, 1 << 18, 1 << 19
POSIX_ACL, MAX_PAGES, CACHE_SYMLINKS, HANDLE_KILLPRIV_V2, INIT_EXT = 1 << 20, 1 << 22, 1 << 23, 1 << 28, 1 << 30
DIRECT_IO_ALLOW_MMAP = 1 << 36  # of Linux 6.6, which keeps its cache true beside handles that go past it

# libfuse 3.14 forgets PARALLEL_DIROPS in its reply although it wants it. HANDLE_KILLPRIV_V2: the kernel asks for
# security.capability before the first write to a file, not before each (write(2) of 4 KiB: 2.7 us against 54 us with a
# trivial getxattr); it removes capabilities itself. suid and sgid of regular files are then for the filesystem to take
# away: at a setattr of uid or gid; and, by a caller who is not root, at a setattr of size, at one of no field at all
# (sent before such a caller's write to a file that has them), and at an open with O_TRUNC.
WANTED = DONT_MASK | PARALLEL_DIROPS | CACHE_SYMLINKS | HANDLE_KILLPRIV_V2 | INIT_EXT | DIRECT_IO_ALLOW_MMAP
UNWANTED = HANDLE_KILLPRIV
MAX_BACKGROUND = 1024


@dataclass(frozen=True)
class Negotiated:
    """The result of the INIT negotiation: flags as in ``fuse_init_out`` (flags2 in the upper half) and the limits."""

    offered: int
    flags: int
    max_readahead: int
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int


def negotiate(request: bytes, reply: bytes) -> tuple[bytes, Negotiated]:
    """Correct libfuse's *reply* to the kernel's INIT *request*; only flags that the kernel offered are set."""
    (_, opcode, unique, *_, kernel_readahead, low, high) = _IN.unpack_from(request.ljust(_IN.size, b"\0"))
    if opcode != FUSE_INIT:
        raise MountError(f"the kernel began with request {opcode} and not with INIT")
    length, error, answered = _OUT_HEADER.unpack_from(reply)
    if error or answered != unique or length < _OUT_HEADER.size + _OUT_SIZE:
        raise MountError(f"libfuse refused the kernel's INIT: {os.strerror(-error) if error else 'reply too short'}")
    fields = list(_OUT.unpack_from(reply, _OUT_HEADER.size))
    offered = low | (high << 32 if low & INIT_EXT else 0)
    flags = (fields[3] | fields[10] << 32 | offered & WANTED) & ~UNWANTED
    fields[2] = kernel_readahead
    fields[3], fields[10] = flags & 0xFFFFFFFF, flags >> 32
    fields[4], fields[5] = MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4
    fields[7] = 1
    agreed = Negotiated(offered, flags, fields[2], fields[4], fields[5], fields[6], fields[7], fields[8])
    corrected = bytearray(reply)
    _OUT.pack_into(corrected, _OUT_HEADER.size, *fields)
    return bytes(corrected), agreed


# --- mount(2) -------------------------------------------------------------------------------------------------------


def _mount_as_root(mountpoint: str, options: MountOptions) -> int:
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as problem:
        code = problem.errno or errno.EIO
        advice = {errno.ENOENT: "run: modprobe fuse", errno.ENODEV: "run: modprobe fuse",
                  errno.EPERM: "in a container: give it /dev/fuse", errno.EACCES: "run as root"}  # fmt: skip
        raise mount_error(code, "cannot open /dev/fuse", advice) from problem
    try:
        data = [f"fd={fuse}", "rootmode=40000", f"user_id={os.getuid()}", f"group_id={os.getgid()}"]
        data += [word for word in ("default_permissions", "allow_other") if getattr(options, word)]
        data += [f"max_read={options.max_read}"] if options.max_read else []
        kind = f"fuse.{options.subtype}"
        words = [os.fsencode(word) for word in (options.fsname, mountpoint, kind)]
        advice = {errno.EPERM: "mounting needs root (CAP_SYS_ADMIN)", errno.ENODEV: "run: modprobe fuse"}
        done = libc.mount(*words, ctypes.c_ulong(options.flags), ",".join(data).encode())
        check_call(done, f"cannot mount on {mountpoint}", advice)
    except BaseException:
        os.close(fuse)
        raise
    return fuse


def _mount_as_user(mountpoint: str, options: MountOptions) -> int:
    """Mount by fusermount3 (setuid root), which sends the descriptor over the socket named by _FUSE_COMMFD."""
    if options.flags & MS_NOSYMFOLLOW:  # a protection: not to be left out in silence
        raise MountError("fusermount3 does not know the option nosymfollow: mount as root, or without it")
    escaped = options.fsname.replace("\\", "\\\\").replace(",", "\\,")
    words = [*options.flag_names(), f"fsname={escaped}", f"subtype={options.subtype}"]
    words += [word for word in ("default_permissions", "allow_other") if getattr(options, word)]
    words += [f"max_read={options.max_read}"] if options.max_read else []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = ["fusermount3", "-o", ",".join(words), "--", mountpoint]
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        try:
            done = subprocess.run(
                command, env=environment, pass_fds=[theirs.fileno()], capture_output=True, check=False,
                text=True, errors="surrogateescape",
            )  # fmt: skip
        except FileNotFoundError:
            raise MountError("fusermount3 is missing: install fuse3, or mount as root") from None
        if done.returncode:
            is_closed = not os.access("/dev/fuse", os.R_OK | os.W_OK)
            hint = " (users need /dev/fuse with mode 0666: chmod 666 /dev/fuse)" if is_closed else ""
            raise MountError(f"cannot mount on {mountpoint}: {done.stderr.strip()}{hint}")
        _, [(_, _, payload)], *_ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    fuse = array.array("i", payload[:4])[0]
    os.set_inheritable(fuse, False)
    return fuse


# --- the connection ---------------------------------------------------------------------------------------------------


class Connection:
    """One mounted filesystem; made by :func:`connect`. pyfuse3 allows one to a process."""

    def __init__(self, mount: MountInfo, kernel: int, libfuse: int, relay: socket.socket) -> None:
        self.mount = mount
        self.negotiated: Negotiated | None = None
        self._kernel, self._relay = kernel, relay
        self._fd = libfuse  # libfuse closes it in pyfuse3.close()
        self._closed = False

    async def handshake(self) -> None:
        """Let libfuse answer the kernel's INIT and correct the answer; when this returns, the mount works."""
        request = os.read(self._kernel, 1 << 16)  # mount(2) has queued it: this does not wait
        self._relay.send(request)
        _look_before_waiting(self._fd)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main, 1, 1)
            await trio.lowlevel.wait_readable(self._relay)
            reply, self.negotiated = negotiate(request, self._relay.recv(1 << 16))
            nursery.cancel_scope.cancel()  # the session loop waits for the next request: nothing is lost
        os.dup2(self._kernel, self._fd, inheritable=False)
        os.write(self._fd, reply)
        os.close(self._kernel)
        self._kernel = -1
        self._relay.close()

    @property
    def may_bypass_cache(self) -> bool:
        """Whether the kernel keeps its page cache true beside handles that go past it."""
        return self.negotiated is not None and bool(self.negotiated.flags & DIRECT_IO_ALLOW_MMAP)

    async def serve(self, min_tasks: int = 2, max_tasks: int = 2000) -> None:
        """Answer requests until the filesystem is unmounted. *max_tasks* bounds requests that wait at the same time.

        An unmount that meets a request now and then ends reads of the device with ECONNABORTED in place of ENODEV
        (Linux 6.18), which libfuse takes for an error: it is one only if the filesystem is still mounted.
        """
        try:
            await pyfuse3.main(min_tasks, max_tasks)
        except* ConnectionAbortedError:
            if self.mounted():
                raise

    def mounted(self) -> list[MountInfo]:
        """Return where the filesystem is mounted now in this mount namespace, bind mounts too; the newest first."""
        mine = (self.mount.device, self.mount.fstype, self.mount.source)  # device numbers are used again at once
        return [mount for mount in reversed(mounts()) if (mount.device, mount.fstype, mount.source) == mine]

    def mountpoint(self) -> str | None:
        """The place where the filesystem is mounted now (mount --move changes it), None when it is no more."""
        return next((mount.mountpoint for mount in self.mounted()), None)

    async def unmount(self, *, lazy: bool = False) -> None:
        """Unmount everywhere, if mounted, while :meth:`serve` goes on answering (writeback needs it)."""
        while (where := self.mountpoint()) is not None:
            await trio.to_thread.run_sync(functools.partial(unmount_path, where, device=self.mount.device, lazy=lazy))

    def tune(self, *, read_ahead_kb: int, max_bytes: int) -> None:
        """Set the mount's readahead and the bound of its dirty pages. Where sysfs cannot be written, do nothing.

        The bound is strict, as FUSE has it by default (with 1 % of memory): without it the kernel sends up to
        MAX_BACKGROUND writes of 1 MiB at once, and the daemon grew to 1.8 GB (tools/LOG.md).
        """
        for name, value in {"read_ahead_kb": read_ahead_kb, "strict_limit": 1, "max_bytes": max_bytes}.items():
            with contextlib.suppress(OSError):
                Path(f"/sys/class/bdi/{self.mount.device}/{name}").write_text(str(value))

    def close(self) -> None:
        """Cut the connection, and unmount if it is still mounted. Call it once :meth:`serve` has ended.

        A filesystem that is still mounted after serving has ended was left by a failure: accesses get an error at once.
        """
        if self._closed:
            return
        self._closed = True
        self._relay.close()
        if self._kernel >= 0:
            os.close(self._kernel)
        left = self.mounted()
        # The descriptor goes first: umount(2) flushes dirty pages, and nobody is left to answer.
        pyfuse3.close(unmount=False)
        for mount in left:
            with contextlib.suppress(MountError):
                unmount_path(mount.mountpoint, device=mount.device, lazy=True)


def connect(ops: pyfuse3.Operations, mountpoint: str, options: MountOptions) -> Connection:
    """Mount *ops* on *mountpoint*. When this returns, it is mounted; it answers after :meth:`Connection.handshake`."""
    path = usable(mountpoint)
    kernel = (_mount_as_root if os.geteuid() == 0 else _mount_as_user)(path, options)
    libfuse, relay = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        mount = next(m for m in reversed(mounts()) if m.mountpoint == path)  # our mount is the newest one there
        statfsinode.install()
        pyfuse3.init(ops, f"/dev/fd/{libfuse.fileno()}", {"allow_root"} if options.allow_root else set())
    except BaseException as problem:
        libfuse.close()
        relay.close()
        os.close(kernel)
        unmount_path(path, lazy=True)
        if isinstance(problem, RuntimeError):
            raise MountError(f"cannot mount on {mountpoint}: {problem}") from problem
        raise
    return Connection(mount, kernel, libfuse.detach(), relay)


WAIT = "_wait_fuse_readable"  # a private name of pyfuse3 3.5: another version need not have it


def _look_before_waiting(fd: int) -> None:
    """Put a `_Waiter` in the place of pyfuse3's own wait, where this pyfuse3 has one."""
    original = getattr(pyfuse3, WAIT, None)
    if original is None:
        log.warning("this pyfuse3 has no %s: its own loop serves, metadata requests take three times as long", WAIT)
        return
    if isinstance(earlier := getattr(original, "__self__", None), _Waiter):  # an earlier mount of this process
        original = earlier.original
    setattr(pyfuse3, WAIT, _Waiter(fd, original).wait)


BURST = 64  # requests answered between two visits to trio's scheduler
BUSY_BURST = 4  # the same while other handlers wait for something: they must get on, too
IDLE_MS = 1  # how long to wait for the next request before the scheduler is visited


class _Waiter:
    """A wait for requests that polls the descriptor before it goes to trio, in place of pyfuse3's own wait.

    The way through trio (a lock, epoll_ctl and epoll_wait twice, a task switch) costs 60-120 us, three quarters of a
    request; looking first makes metadata requests three to four times as fast (tools/LOG.md). The look blocks for up to
    1 ms, which gives the core to the client, but only while no other handler is waiting: nothing that a request depends
    on is held up.

    It also looks after trio has waited: the descriptor blocks (pyfuse3 takes EAGAIN for the end), and a request can
    vanish between trio's epoll and the read, when its process is killed. The daemon would hang, GIL held, until another
    one came.
    """

    def __init__(self, fd: int, original: Callable[[], Awaitable[bool]]) -> None:
        self.original = original
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._ready = poll.poll
        self.serving: set[trio.lowlevel.Task] = set()  # session tasks that have taken a request and not come back
        self._taken = 0

    async def wait(self) -> bool:
        """Wait for a request. Return False at the end of the connection."""
        task, serving, ready = trio.lowlevel.current_task(), self.serving, self._ready
        serving.discard(task)
        if self._taken < (BUSY_BURST if serving else BURST):
            self._taken += 1
            if ready(0) or (not serving and ready(IDLE_MS)):
                serving.add(task)
                return True
        self._taken = 0
        if serving and task.parent_nursery is not None:  # pyfuse3 ends superfluous tasks without a word to us
            serving &= task.parent_nursery.child_tasks
        while await self.original():
            if ready(0):
                serving.add(task)
                return True
        return False


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a log record is news: an answer that nobody waits for any more is no error."""
    return "fuse_reply_* failed with No such file" not in record.getMessage()


logging.getLogger("pyfuse3").addFilter(_is_news)
