"""The daemon's log: on stderr in the foreground, otherwise in journald, otherwise in a file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import select
import socket
import stat
import sys
import threading
import time
from io import TextIOWrapper
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import cast

from nnfs import names
from nnfs.store import privacy

JOURNAL, STDERR, NOWHERE = "journal", "stderr", "nowhere"  # places of a log that are no file
JOURNAL_SOCKET = "/run/systemd/journal/socket"
JOURNAL_STREAM = "/run/systemd/journal/stdout"
LOG_DIR = Path("/var/log/nnfs")
FILE_MAX, FILES_KEPT = 8 << 20, 3
HELD = 1000  # records, before the log file is made all the same
NAME_MAX = 100  # bytes of a store's name in the name of its log
MESSAGE_MAX = 100_000  # bytes: the journal takes datagrams of about 200 KB

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def priority(level: int) -> int:
    """Return the syslog priority of a logging level."""
    for least, number in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return number
    return 7


class OneLine(logging.Formatter):
    """A formatter with milliseconds and zone: a message has one line, a traceback follows on lines of its own."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 logging's name
        now = time.localtime(record.created)
        return time.strftime("%Y-%m-%dT%H:%M:%S", now) + f".{int(record.msecs):03d}" + time.strftime("%z", now)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's name
        record.message = names.one_line(record.message)  # names of files may hold anything
        return super().formatMessage(record)


class Prefixed(OneLine):
    """A formatter for a stderr that goes to the journal: lines begin with <priority>, and the journal adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        mark = f"<{priority(record.levelno)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


class JournalHandler(logging.Handler):
    """A handler that speaks journald's native protocol: one datagram per record, multi-line messages whole."""

    def __init__(self, address: str = JOURNAL_SOCKET, **fields: str) -> None:
        super().__init__()
        self._address = address
        self._fields = fields
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record).encode(errors=names.ERRORS)[:MESSAGE_MAX]
            fields = {
                "PRIORITY": str(priority(record.levelno)), "SYSLOG_IDENTIFIER": "nnfs", "LOGGER": record.name,
                "CODE_FILE": record.pathname, "CODE_LINE": str(record.lineno), "CODE_FUNC": record.funcName,
                **self._fields,
            }  # fmt: skip
            packet = field("MESSAGE", text)
            for name, value in fields.items():
                packet += field(name, value.encode(errors="surrogateescape"))
            self._socket.sendto(packet, self._address)
        except OSError:
            pass  # the journal restarts or is full: a lost line of log must not hurt a request
        except Exception:  # noqa: BLE001 as every logging handler does
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()


def field(name: str, value: bytes) -> bytes:
    """Return a field of the journal's native protocol; values with line feeds carry their length."""
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"


def default_file(store: Path) -> Path | None:
    """Return the log file of a store: its name is unique, its place is among the user's logs when not root.

    Return None for a user whose home does not exist: it is not made.
    """
    directory = LOG_DIR
    if os.geteuid() != 0:
        state, home = os.environ.get("XDG_STATE_HOME", ""), os.path.expanduser("~")
        if not os.path.isabs(state):
            if not (os.path.isabs(home) and os.path.isdir(home)):
                return None
            state = os.path.join(home, ".local", "state")
        directory = Path(state) / "nnfs"
    mark = hashlib.blake2b(os.fsencode(store), digest_size=4).hexdigest()
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in store.name) or "root"
    short = name.encode()[:NAME_MAX].decode(errors="ignore")  # of 255 that a name may have, ".1" and all
    return directory / f"{short}-{mark}.log"


def file_of(store: Path, *, foreground: bool, file: Path | None) -> Path | None:
    """Return the file that `configure` would log to, None when it would be no file."""
    if file is not None or foreground or os.path.exists(JOURNAL_SOCKET):
        return file
    return default_file(store)


def is_journal(descriptor: int, stream: str) -> bool:
    """Return whether a descriptor is the one that JOURNAL_STREAM ("device:inode") names, and no other in its place."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


class _File(RotatingFileHandler):
    """A log file, made with its directory when the first record comes. Only its owner reads it: it names paths."""

    is_mute = False

    def _open(self) -> TextIOWrapper:
        file = self.baseFilename
        Path(file).parent.mkdir(mode=privacy.FOLDER, parents=True, exist_ok=True)
        stream = open(file, self.mode, encoding=self.encoding, errors=self.errors, opener=privacy.opener)  # noqa: SIM115
        for number in range(1, FILES_KEPT + 1):  # of an earlier version
            with contextlib.suppress(OSError):
                os.chmod(f"{file}.{number}", privacy.FILE)
        _dump_into(stream.fileno())
        return cast(TextIOWrapper, stream)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 logging's name
        """Print once that the file cannot be written: no request needs it, and a full disk must not fill stderr."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        if not self.is_mute:
            _tell(f"the log {self.baseFilename} cannot be written: {error.strerror}")
        self.is_mute = True

    def reopen(self) -> None:
        """Open the file of this name, which may be another one by now. On OSError keep the open one, and raise."""
        with self.lock or contextlib.nullcontext():
            stream = self._open()
            old, self.stream = self.stream, stream
            if old is not None:
                old.close()


class _Held(MemoryHandler):
    """A handler that keeps records for a log file until `write_out`, a bug, or too many of them."""

    def flush(self) -> None:
        """Do nothing: logging calls this at the end of every process."""

    def emit(self, record: logging.LogRecord) -> None:
        self.buffer.append(record)
        if self.shouldFlush(record):
            self.write_out()

    def write_out(self) -> None:
        """Write the records that are kept."""
        super().flush()


def _file_handler(file: Path) -> logging.Handler:
    """Return the handler of a log file that is made when there is a mount (`mounted`) or a bug, not before.

    Raises OSError when it cannot be written.
    """
    there = next(path for path in (file, *file.absolute().parents) if os.path.exists(path))
    code = errno.EISDIR if file.is_dir() else errno.ENOTDIR if there != file and not there.is_dir() else 0
    if code or not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise OSError(code or errno.EACCES, os.strerror(code or errno.EACCES), os.fspath(file))
    handler = _File(
        file, maxBytes=FILE_MAX, backupCount=FILES_KEPT, encoding="utf-8", errors=names.ERRORS, delay=True
    )  # fmt: skip
    handler.setFormatter(OneLine(FORMAT))
    return _Held(HELD, flushLevel=logging.CRITICAL, target=handler, flushOnClose=False)


def mounted() -> None:
    """Write the records kept so far, and from now on each record at once."""
    root = logging.getLogger()
    for held in [handler for handler in root.handlers if isinstance(handler, _Held)]:
        if held.target is not None:
            held.write_out()
            root.addHandler(held.target)
        root.removeHandler(held)


def _handler(store: Path, foreground: bool, file: Path | None) -> tuple[logging.Handler, str]:
    """Return the handler of the log that was asked for, else of the best possible one: no mount fails for its log."""
    if file is not None:
        try:
            return _file_handler(file), str(file)
        except OSError as error:
            handler, where = _handler(store, foreground, None)
            if where != NOWHERE:  # the problem has been printed
                _tell(f"the log {file} cannot be written ({error.strerror}): logging to {shown(where)}")
            return handler, where
    if foreground:
        return _stderr_handler()
    if os.path.exists(JOURNAL_SOCKET):
        handler = JournalHandler(NNFS_STORE=os.fspath(store))
        handler.setFormatter(OneLine("%(name)s: %(message)s"))
        return handler, JOURNAL
    file = default_file(store)
    why = "there is no home directory to keep it in"
    if file is not None:
        try:
            return _file_handler(file), str(file)
        except OSError as error:
            why = f"{file} cannot be written ({error.strerror})"
    _tell(f"no log is kept: {why}; --log FILE names another one")
    return logging.NullHandler(), NOWHERE


def _stderr_handler() -> tuple[logging.Handler, str]:
    handler = logging.StreamHandler(sys.stderr)
    if is_journal(2, os.environ.get("JOURNAL_STREAM", "")):
        handler.setFormatter(Prefixed("%(name)s: %(message)s"))
        return handler, JOURNAL
    handler.setFormatter(OneLine(FORMAT))
    return handler, STDERR


def _tell(message: str) -> None:
    """Print a line for the user who waits for the mount; later nobody reads stderr."""
    with contextlib.suppress(OSError, ValueError):
        names.say(message)


def shown(where: str) -> str:
    """Return the place of a log in words for people."""
    return "the journal (journalctl -t nnfs)" if where == JOURNAL else names.printable(where)


class Place:
    """The place that this process logs to."""

    now = STDERR


def configure(store: Path, *, foreground: bool, level: str = "INFO", file: Path | None = None) -> str:
    """Set up logging of this process, and hooks for uncaught exceptions. Return where the log goes."""
    handler, where = _handler(store, foreground, file)
    Place.now = where
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    log = logging.getLogger("nnfs")

    def uncaught(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            log.critical("uncaught exception", exc_info=(kind, value, trace))
            if where == NOWHERE:
                sys.__excepthook__(kind, value, trace)
            elif where != STDERR:  # tell the user who waits for the mount; later, nobody reads this
                _tell(f"a bug: {kind.__name__}: {value}; its traceback is in {shown(where)}")

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
            name = args.thread.name if args.thread else "?"
            log.critical("uncaught in thread %s", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    return where


_dump = -1


def dump_descriptor() -> int:
    """Return a descriptor of the log, for dumps when Python cannot write any more. Its number never changes."""
    if _dump < 0:
        if Place.now == NOWHERE:
            _dump_into_null()
            return _dump
        _dump_into(2)
        if any(isinstance(handler, JournalHandler) for handler in logging.getLogger().handlers):
            _dump_into_journal()
    return _dump


def _dump_into(descriptor: int) -> None:
    global _dump  # noqa: PLW0603 - there is one log
    if _dump < 0:
        _dump = os.dup(descriptor)
    else:
        os.dup2(descriptor, _dump, inheritable=False)


def _dump_into_journal() -> None:
    """Lead dumps to a stream of the journal, as systemd gives one to services; to /dev/null if that fails."""
    header = f"nnfs\n\n{priority(logging.ERROR)}\n0\n0\n0\n0\n"  # identifier, unit, priority, prefixes, forwarding
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(JOURNAL_STREAM)
            sock.sendall(header.encode())
        except OSError:
            _dump_into_null()
            return
        _dump_into(sock.fileno())


def _dump_into_null() -> None:
    """Lead dumps to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    _dump_into(null)
    os.close(null)


def leave_stderr() -> None:
    """Close the caller's stderr, whose end the caller may wait for. Dumps that go there go to /dev/null."""
    if _dump >= 0 and os.path.sameopenfile(_dump, 2):
        _dump_into_null()


def current_file() -> str | None:
    """Return the file that is logged to, None if it is no file."""
    found = (handler.baseFilename for handler in logging.getLogger().handlers if isinstance(handler, _File))
    return next(found, None)


def reopen(store: Path) -> str:
    """Open the log again, or another one when its terminal is gone. Return the new place, if it has changed.

    Raises OSError, and leaves the log where it was.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _File):
            handler.reopen()
    if not any(_is_hung_up(descriptor) for descriptor in (0, 1, 2)):
        return ""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        if _is_hung_up(descriptor):
            os.dup2(null, descriptor)
    os.close(null)
    root = logging.getLogger()
    if not any(type(handler) is logging.StreamHandler for handler in root.handlers):
        return ""
    handler, where = _handler(store, foreground=False, file=None)
    old, root.handlers = root.handlers, [handler]
    for one in old:
        one.close()
    mounted()
    Place.now = where
    return where


def _is_hung_up(descriptor: int) -> bool:
    """Return whether a descriptor is a terminal that was closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    try:
        hung_up = any(event & select.POLLHUP for _, event in poll.poll(0))
        return hung_up and stat.S_ISCHR(os.fstat(descriptor).st_mode)
    except OSError:
        return False
