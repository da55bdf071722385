"""A worker's conversation with its peer: it receives frames, hands batches to the codecs, sends answers and progress.

There are three threads. The reader receives frames, queues requests, and answers pings at once. The main thread takes
batches and codes them. The pulse tells the peer the progress about once a second. More urgent requests overtake those
that wait, and also those that are being worked on: codecs call `between` several times a second, and more urgent
batches are done within that call. So a read waits for a fraction of a second even behind an hour of compression.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

from nnfs.codec import progress
from nnfs.errors import PeerGone, WireError
from nnfs.workers.batchcoding import BatchCoder
from nnfs.workers.batches import GATHER_S, IDLE, NOT_WAITED_FOR, RequestQueue, rank
from nnfs.workers.catalogue import Served
from nnfs.workers.wire import (
    RECEIVE,
    Alive,
    Answer,
    Begun,
    Bye,
    Cancel,
    Frames,
    Hello,
    Info,
    Message,
    Op,
    Progress,
    Request,
    Status,
    pack,
    pack_info,
)

log = logging.getLogger(__name__)

WINDOW = 1024  # requests that may wait; a client has no more bytes of them than it allows itself
ALIVE_S = 1.0


class Conversation:
    """The conversation with one peer, from hello to the end of the connection."""

    def __init__(
        self, peer: socket.socket, served: Served, most: int, threads: int, *, at_end: Callable[[], None]
    ) -> None:
        self._peer = peer
        self._served = served
        self._coder = BatchCoder(served, most, threads)
        self._at_end = at_end
        self._queue = RequestQueue(WINDOW, threads, self._coder.patience)
        self._sending = threading.Lock()
        self._gone = False
        self._info = Info(pid=os.getpid(), window=WINDOW)
        self._depth = 0
        self._works = threading.Event()  # something is under way
        self._over = threading.Event()
        self._version = 1  # of the peer
        self._reader: threading.Thread | None = None

    def run(self) -> None:
        """Serve until the peer goes away."""
        reader = self._reader = threading.Thread(target=self._read, name="reader", daemon=True)
        try:
            self._send(Hello(self._current_info()))
            reader.start()
            threading.Thread(target=self._beat, name="pulse", daemon=True).start()
            while batch := self._queue.take(IDLE, self._coder.limit, wait=True):
                self._do(batch)
        except PeerGone:
            pass
        finally:
            self._gone = True
            self._over.set()
            self._works.set()
            self._queue.close()
            _hang_up(self._peer)
            if reader.ident is not None:
                reader.join()
            self._peer.close()

    # ---- the reader's thread

    def _read(self) -> None:
        frames = Frames(from_worker=False)
        try:
            while data := self._peer.recv(RECEIVE):
                for message in frames.feed(data):
                    self._take_in(message)
        except WireError as why:
            log.error("%s: the connection is closed", why)
            self._try_send(Bye(str(why)))
        except (OSError, PeerGone):
            pass
        finally:
            self._gone = True
            self._queue.close()
            _hang_up(self._peer)
            self._at_end()

    def _take_in(self, message: Message) -> None:
        if isinstance(message, Request):
            if message.op == Op.PING:
                self._send(Answer(message.number, Status.OK, pack_info(self._current_info())))
            else:
                self._queue.add(message, self._check_peer)
        elif isinstance(message, Cancel):
            if self._queue.cancel(message.number):
                self._send(Answer(message.number, Status.CANCELLED))
        elif isinstance(message, Hello):
            self._version = message.version
        elif isinstance(message, Bye):
            log.error("the client gave up: %s", message.why)

    def _check_peer(self) -> None:
        """Raise `PeerGone` if the peer has hung up. While the queue is full nothing is read to show that."""
        poll = select.poll()
        poll.register(self._peer, select.POLLRDHUP)
        if poll.poll(0):
            raise PeerGone

    # ---- both threads

    def _send(self, *messages: Message) -> None:
        frames = b"".join(map(pack, messages))
        try:
            with self._sending:
                self._peer.sendall(frames)
        except OSError as error:
            raise PeerGone from error

    def _try_send(self, message: Message) -> None:
        try:
            self._send(message)
        except PeerGone:
            pass

    def _current_info(self) -> Info:
        info = self._info
        info.queued = len(self._queue)
        info.memory = _resident_peak()
        info.device, info.codecs, info.models = self._served.device, self._served.names(), self._served.models()
        return info

    # ---- the pulse's thread

    def _beat(self) -> None:
        """Send the progress while there is work, even in the middle of a long call of the main thread."""
        begun = time.thread_time()
        while not self._over.wait(ALIVE_S):
            self._works.wait()
            if self._gone:
                return
            self._try_send(self._progress(begun))

    def _progress(self, begun: float) -> Message:
        if self._version < 2:
            return Alive()
        aside = time.thread_time() - begun + _cpu_of(self._reader)
        cpu = max(0.0, time.process_time() - aside)
        return Progress(progress.stage, progress.columns, int(cpu * 1e6))

    # ---- the main thread

    def _between(self, place: int) -> None:
        """Do the batches that are more urgent than the one of this rank that is being coded. Codecs call this.

        Requests that nobody waits for overtake nothing: they gather to one large batch.
        """
        place = min(place, NOT_WAITED_FOR)
        if self._gone:
            raise PeerGone
        while self._queue.urgent < place:
            batch = self._queue.take(place, self._coder.limit, wait=False)
            if batch:
                self._do(batch)

    def _do(self, batch: list[Request]) -> None:
        """Code the requests of a batch, and answer them."""
        self._send(Begun(tuple(request.number for request in batch)))
        self._depth += 1
        self._works.set()
        start = time.monotonic()
        outbox = _Outbox(self._send, batch, self._info)
        try:
            self._coder.code(batch, partial(self._between, rank(batch[0])), outbox.add)
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._works.clear()
        if self._depth == 0:
            self._info.busy_us += int((time.monotonic() - start) * 1e6)
        outbox.send()


class _Outbox:
    """The answers of a batch, sent as they come; those that nobody waits for, with others of the same milliseconds."""

    def __init__(self, send: Callable[..., None], batch: list[Request], info: Info) -> None:
        self._send, self._info = send, info
        self._seconds = 0.0 if rank(batch[0]) < NOT_WAITED_FOR else GATHER_S
        self._plain = {request.number: request.plain for request in batch}
        self._answers: list[Answer] = []
        self._sent = 0.0

    def add(self, answer: Answer) -> None:
        """Count an answer, and send it now or with the next ones."""
        self._info.done += 1
        self._info.failed += answer.status > Status.NO_GAIN
        self._info.plain += self._plain.get(answer.number, 0)
        self._answers.append(answer)
        if time.monotonic() - self._sent >= self._seconds:
            self.send()

    def send(self) -> None:
        """Send all answers."""
        if self._answers:
            answers, self._answers = self._answers, []
            self._send(*answers)
            self._sent = time.monotonic()


def _cpu_of(thread: threading.Thread | None) -> float:
    """Return the CPU time of a thread in seconds; 0 once it has ended."""
    try:
        assert thread is not None
        assert thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(thread.ident)) if thread.is_alive() else 0.0
    except OSError:
        return 0.0


def _hang_up(peer: socket.socket) -> None:
    try:
        peer.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side was faster


def _resident_peak() -> int:
    """Return the peak of this process's resident memory in bytes."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
