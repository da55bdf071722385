"""Where the daemon's log goes: stderr in the foreground, otherwise journald, otherwise a file."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sys
import threading
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType

JOURNAL_SOCKET = "/run/systemd/journal/socket"
LOG_DIR = Path("/var/log/nnfs")
FILE_MAX, FILES_KEPT = 8 << 20, 3
MESSAGE_MAX = 100_000  # bytes: the journal takes datagrams of about 200 KB

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def priority(level: int) -> int:
    """The syslog priority of a logging level."""
    for least, number in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return number
    return 7


class OneLine(logging.Formatter):
    """Time with milliseconds and zone; a message is kept to one line, a traceback follows on lines of its own."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 logging's name
        now = time.localtime(record.created)
        return time.strftime("%Y-%m-%dT%H:%M:%S", now) + f".{int(record.msecs):03d}" + time.strftime("%z", now)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's name
        record.message = record.message.replace("\n", "\\n")
        return super().formatMessage(record)


class Prefixed(OneLine):
    """For a stderr that is a stream into the journal: every line begins with <priority>, the journal adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        mark = f"<{priority(record.levelno)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


class JournalHandler(logging.Handler):
    """journald's native protocol: one datagram per record, multi-line messages whole."""

    def __init__(self, address: str = JOURNAL_SOCKET, **fields: str) -> None:
        super().__init__()
        self._address = address
        self._fields = fields
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record).encode(errors="backslashreplace")[:MESSAGE_MAX]
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
    """One field of the journal's native protocol; values with line feeds carry their length."""
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"


def default_file(store: Path) -> Path:
    """The log file of a store, told apart from others of its name; beside the user's other logs when not root."""
    directory = LOG_DIR
    if os.geteuid() != 0:
        directory = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "nnfs"
    mark = hashlib.blake2b(os.fsencode(store), digest_size=4).hexdigest()
    return directory / f"{store.name or 'root'}-{mark}.log"


def is_journal(descriptor: int, stream: str) -> bool:
    """Whether a descriptor is the one that JOURNAL_STREAM ("device:inode") tells of, and not one put in its place."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


def _file_handler(file: Path) -> logging.Handler:
    file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    handler = RotatingFileHandler(file, maxBytes=FILE_MAX, backupCount=FILES_KEPT, errors="backslashreplace")
    handler.setFormatter(OneLine(FORMAT))
    return handler


def _handler(store: Path, foreground: bool, file: Path | None) -> tuple[logging.Handler, str]:
    if file is not None:
        return _file_handler(file), str(file)
    if foreground:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        if is_journal(2, os.environ.get("JOURNAL_STREAM", "")):
            handler.setFormatter(Prefixed("%(name)s: %(message)s"))
            return handler, "journal"
        handler.setFormatter(OneLine(FORMAT))
        return handler, "stderr"
    if os.path.exists(JOURNAL_SOCKET):
        handler = JournalHandler(NNFS_STORE=os.fspath(store))
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        return handler, "journal"
    file = default_file(store)
    return _file_handler(file), str(file)


def configure(store: Path, *, foreground: bool, level: str = "INFO", file: Path | None = None) -> str:
    """Set up logging of this process and the hooks for what nobody catches; return where the log goes.

    Raises OSError when a log file cannot be opened.
    """
    handler, where = _handler(store, foreground, file)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    log = logging.getLogger("nnfs")

    def uncaught(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            log.critical("uncaught exception", exc_info=(kind, value, trace))

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
            name = args.thread.name if args.thread else "?"
            log.critical("uncaught in thread %s", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    return where
