"""The wire between a mount and a codec worker: frames over a stream socket. Version 2.

All integers are little-endian. A frame is `length u32 | kind u8 | body`; length counts kind and body. Nothing on the
wire is executable or self-describing: no Python objects, no JSON.

======== ==== ======== ==========================================================================================
frame    kind from     body
======== ==== ======== ==========================================================================================
hello    1    both     magic "nnfswire", version u16; from the worker also `Info`. The first frame of each side.
request  2    client   number u64, op u8, codec u8, priority u8, flags u8, plain u32, fingerprint 64 bytes, data
answer   3    worker   number u64, status u8, data: the result, or UTF-8 text that says what is wrong
begun    4    worker   number u64, ...: these work items are being worked on from now on, together
alive    5    worker   nothing: work goes on (about once a second, so that a worker that hangs is told from a slow one)
cancel   6    client   number u64: nobody waits for it. It is answered with status 6 if it has not begun.
bye      7    both     UTF-8 text: why the connection is closed now
progress 8    worker   stage u8, columns u64, CPU time u64: how far its work has come (about once a second)
======== ==== ======== ==========================================================================================

==== ====== =================================== ===============================================================
op   name   data, plain                         answer's data
==== ====== =================================== ===============================================================
1    encode the chunk, its length               the payload; status 1 and nothing: it does not become smaller
2    decode the payload, the chunk's length     the chunk
3    ping   nothing, 0                          `Info`; answered at once, also while the worker is busy
4    load   a model's file, 0                   nothing; later requests may name its fingerprint
==== ====== =================================== ===============================================================

`Info` is: pid u32, window u32, queued u32, done u64, failed u64, plain u64, busy u64 (microseconds), memory u64 (most
resident bytes), then device (u8 length, UTF-8), number of codecs u8 and each one's id u8 and name (u8 length, UTF-8),
number of models u16 and each one's fingerprint (64 bytes).

A stage is 1, opening (imports, compiling, self-tests, a model), or 2, coding. Columns are counted from the start of
the process over all work items; CPU time, in microseconds, is that of the threads that work. A client of version 2 is
told progress in place of alive; the other frames are those of version 1, and either side takes both versions.

A request's number names its work item. A fingerprint of zeros: the codec needs no model, or uses its default. Priority:
the smallest number first, decode before encode within it; a model is loaded before anything else. Flag 1: the work item
is never batched with others (it has killed a worker once). A client keeps at most `window` of them unanswered; a worker
with more waiting stops reading, so that its memory is bounded whoever sends.

A frame that breaks a rule (a length over its limit, an unknown kind or op, the wrong side's frame, a number of bytes
that does not fit, another version) raises `WireError`, and the connection is closed: there is no way to find the next
frame. A limit is checked as soon as the bytes it concerns are there, before the rest is received.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from struct import error as StructError  # noqa: N812 - a class in all but name
from typing import TypeAlias

from nnfs.codec.progress import Stage
from nnfs.errors import WireError

MAGIC = b"nnfswire"
VERSION = 2
OLDEST = 1  # version of the other side that is taken, too
FINGERPRINT = 64  # bytes
NO_MODEL = bytes(FINGERPRINT)
MAX_CHUNK = 4 << 20  # plain bytes
MAX_PAYLOAD = MAX_CHUNK + 4096  # a codec that gains nothing may add a header
MAX_MODEL = 256 << 20
MAX_TEXT = 4096
MAX_BEGUN = 4096  # numbers in one frame
ALONE = 1  # flag
RECEIVE = 1 << 18  # bytes that either side reads at once

_LENGTH = Struct("<I")
_HELLO = Struct("<8sH")
_REQUEST = Struct("<QBBBBI64s")
_ANSWER = Struct("<QB")
_NUMBER = Struct("<Q")
_INFO = Struct("<IIIQQQQQ")
_PROGRESS = Struct("<BQQ")


class Kind(enum.IntEnum):
    """The kinds of frames."""

    HELLO = 1
    REQUEST = 2
    ANSWER = 3
    BEGUN = 4
    ALIVE = 5
    CANCEL = 6
    BYE = 7
    PROGRESS = 8


class Op(enum.IntEnum):
    """The operations that a client may request."""

    ENCODE = 1
    DECODE = 2
    PING = 3
    LOAD = 4


class Status(enum.IntEnum):
    """The outcomes of a work item."""

    OK = 0
    NO_GAIN = 1
    BAD_PAYLOAD = 2  # CodecError
    NO_MODEL = 3  # ModelMissing
    NO_MEMORY = 4
    BUG = 5  # anything unexpected
    CANCELLED = 6
    NO_CODEC = 7  # this worker cannot run the codec: the data may be all right


@dataclass(slots=True)
class Info:
    """The facts that a worker tells about itself."""

    pid: int = 0
    window: int = 0
    queued: int = 0
    done: int = 0
    failed: int = 0
    plain: int = 0
    busy_us: int = 0
    memory: int = 0
    device: str = ""
    codecs: dict[int, str] = field(default_factory=dict)
    models: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame; a client has no `info`."""

    info: Info | None = None
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Request:
    """A work item for a worker."""

    number: int
    op: Op
    codec: int = 0
    data: bytes = b""
    plain: int = 0
    model: bytes = NO_MODEL
    priority: int = 1
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request: the end of a work item."""

    number: int
    status: Status
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Begun:
    """The frame that tells which work items are being worked on."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Alive:
    """The frame that tells a client of version 1 that work goes on."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a worker's work."""

    stage: Stage
    columns: int
    cpu_us: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """The frame that cancels a work item that nobody waits for any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Bye:
    """The last frame of a side that closes the connection, with the reason."""

    why: str


Message: TypeAlias = Hello | Request | Answer | Begun | Alive | Progress | Cancel | Bye


def pack(message: Message) -> bytes:
    """Return the frame of a message."""
    if isinstance(message, Request):
        kind, head, data = Kind.REQUEST, _pack_request(message), message.data
    elif isinstance(message, Answer):
        kind, head, data = Kind.ANSWER, _ANSWER.pack(message.number, message.status), message.data
    elif isinstance(message, Hello):
        kind, head = Kind.HELLO, _HELLO.pack(MAGIC, message.version)
        data = b"" if message.info is None else pack_info(message.info)
    elif isinstance(message, Begun):
        kind, head, data = Kind.BEGUN, b"", b"".join(map(_NUMBER.pack, message.numbers))
    elif isinstance(message, Progress):
        kind, data = Kind.PROGRESS, b""
        head = _PROGRESS.pack(message.stage, message.columns, message.cpu_us)
    elif isinstance(message, Cancel):
        kind, head, data = Kind.CANCEL, b"", _NUMBER.pack(message.number)
    elif isinstance(message, Bye):
        kind, head, data = Kind.BYE, b"", message.why.encode()[:MAX_TEXT]
    else:
        kind, head, data = Kind.ALIVE, b"", b""
    return b"".join((_LENGTH.pack(1 + len(head) + len(data)), bytes((kind,)), head, data))


def _pack_request(request: Request) -> bytes:
    return _REQUEST.pack(
        request.number, request.op, request.codec, request.priority, request.flags, request.plain, request.model
    )


def _short_text(text: str) -> bytes:
    raw = text.encode()[:255]
    return bytes((len(raw),)) + raw


def pack_info(info: Info) -> bytes:
    """Return `Info` as bytes."""
    counts = (info.pid, info.window, info.queued, info.done, info.failed, info.plain, info.busy_us, info.memory)
    codecs = [bytes((number,)) + _short_text(name) for number, name in info.codecs.items()]
    head = _INFO.pack(*counts) + _short_text(info.device)
    models = len(info.models).to_bytes(2, "little") + b"".join(info.models)
    return b"".join((head, bytes((len(codecs),)), *codecs, models))


class _Bytes:
    """The body of a frame, read from its beginning. Raises `WireError` where it ends too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise WireError("a hello or info that ends too early")
        self._at += count
        return piece

    def text(self) -> str:
        return self.take(self.take(1)[0]).decode(errors="replace")

    def done(self) -> None:
        if self._at != len(self._data):
            raise WireError("a hello or info with bytes to spare")


def unpack_info(data: bytes) -> Info:
    """Return the `Info` in these bytes. Raises `WireError`."""
    body = _Bytes(data)
    info = Info(*_INFO.unpack(body.take(_INFO.size)))
    info.device = body.text()
    for _ in range(body.take(1)[0]):
        number = body.take(1)[0]
        info.codecs[number] = body.text()
    count = int.from_bytes(body.take(2), "little")
    info.models = tuple(body.take(FINGERPRINT) for _ in range(count))
    body.done()
    return info


_FIXED = {  # bytes of the body that have a fixed place, and most bytes after them
    Kind.HELLO: (_HELLO.size, 1 << 23),  # 65,535 fingerprints
    Kind.REQUEST: (_REQUEST.size, MAX_MODEL),
    Kind.ANSWER: (_ANSWER.size, 1 << 23),
    Kind.BEGUN: (0, MAX_BEGUN * _NUMBER.size),
    Kind.ALIVE: (0, 0),
    Kind.CANCEL: (_NUMBER.size, 0),
    Kind.BYE: (0, MAX_TEXT),
    Kind.PROGRESS: (_PROGRESS.size, 0),
}
_FROM_CLIENT = frozenset((Kind.HELLO, Kind.REQUEST, Kind.CANCEL, Kind.BYE))
_FROM_WORKER = frozenset((Kind.HELLO, Kind.ANSWER, Kind.BEGUN, Kind.ALIVE, Kind.PROGRESS, Kind.BYE))


class Frames:
    """Cuts the bytes of one side into messages. It does no I/O.

    It holds at most one frame that is not complete, and never more bytes than were fed.
    """

    def __init__(self, *, from_worker: bool) -> None:
        self._from_worker = from_worker
        self._kinds = _FROM_WORKER if from_worker else _FROM_CLIENT
        self._greeted = False
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take in bytes as they come, and yield the messages that are complete with them. Raises `WireError`."""
        self._buffer += data
        while (length := self._checked_length()) is not None and len(self._buffer) >= _LENGTH.size + length:
            body = bytes(memoryview(self._buffer)[_LENGTH.size + 1 : _LENGTH.size + length])
            kind = Kind(self._buffer[_LENGTH.size])
            del self._buffer[: _LENGTH.size + length]
            message = self._parse(kind, body)
            self._greeted = True
            yield message

    def _checked_length(self) -> int | None:
        """Return the length of the frame that the buffer begins with, None while too little of it is there.

        Raises `WireError`.
        """
        if len(self._buffer) <= _LENGTH.size:
            return None
        length: int = _LENGTH.unpack_from(self._buffer)[0]
        number = self._buffer[_LENGTH.size]
        if number not in self._kinds:
            raise WireError(f"frame of kind {number} from the {'worker' if self._from_worker else 'client'}")
        kind = Kind(number)
        if not self._greeted and kind != Kind.HELLO:
            raise WireError("no hello: the other side is not nnfs")
        if self._greeted and kind == Kind.HELLO:
            raise WireError("a second hello")
        fixed, most = _FIXED[kind]
        if not 1 + fixed <= length <= 1 + fixed + most:
            raise WireError(f"{kind.name.lower()} frame of {length} bytes")
        at = _LENGTH.size + 1
        if kind == Kind.REQUEST:
            if len(self._buffer) < at + fixed:
                return None
            _check_request(_REQUEST.unpack_from(self._buffer, at), length - 1 - fixed)
        elif kind == Kind.HELLO and len(self._buffer) >= at + fixed:
            _check_hello(*_HELLO.unpack_from(self._buffer, at))
        return length

    def _parse(self, kind: Kind, body: bytes) -> Message:
        if kind == Kind.REQUEST:
            number, op, codec, priority, flags, plain, model = _REQUEST.unpack_from(body)
            return Request(number, Op(op), codec, body[_REQUEST.size :], plain, model, priority, flags)
        if kind == Kind.ANSWER:
            number, status = _ANSWER.unpack_from(body)
            if status not in Status.__members__.values():
                raise WireError(f"answer of status {status}")
            return Answer(number, Status(status), body[_ANSWER.size :])
        if kind == Kind.HELLO:
            version = _HELLO.unpack_from(body)[1]
            if self._from_worker:
                return Hello(unpack_info(body[_HELLO.size :]), version)
            if len(body) != _HELLO.size:
                raise WireError("a client's hello with bytes to spare")
            return Hello(version=version)
        if kind == Kind.BEGUN:
            try:
                return Begun(tuple(number for (number,) in _NUMBER.iter_unpack(body)))
            except StructError:
                raise WireError(f"begun frame of {len(body)} bytes") from None
        if kind == Kind.PROGRESS:
            return _progress(body)
        if kind == Kind.BYE:
            return Bye(body.decode(errors="replace"))
        return Cancel(_NUMBER.unpack(body)[0]) if kind == Kind.CANCEL else Alive()


def _progress(body: bytes) -> Progress:
    stage, columns, cpu_us = _PROGRESS.unpack(body)
    if stage not in Stage.__members__.values():
        raise WireError(f"progress in stage {stage}")
    return Progress(Stage(stage), columns, cpu_us)


def _check_hello(magic: bytes, version: int) -> None:
    if magic != MAGIC:
        raise WireError("no hello: the other side is not nnfs")
    if not OLDEST <= version <= VERSION:
        raise WireError(f"the other side speaks version {version}, this side {VERSION}: two versions of nnfs?")


def _check_request(head: tuple[int, int, int, int, int, int, bytes], size: int) -> None:
    _, op, _, _, flags, plain, _ = head
    fits = {
        Op.ENCODE: size == plain <= MAX_CHUNK,
        Op.DECODE: plain <= MAX_CHUNK and size <= MAX_PAYLOAD,
        Op.PING: size == plain == 0,
        Op.LOAD: plain == 0,
    }
    if op not in fits:
        raise WireError(f"request for op {op}")
    if not fits[Op(op)]:
        raise WireError(f"request to {Op(op).name.lower()} {size} bytes, {plain} plain")
    if flags & ~ALONE:
        raise WireError(f"request with flags {flags:#x}")
