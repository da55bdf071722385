"""The worker: a process that owns one device and codes for whoever holds the other end of its socket.

Three threads. The reader takes frames in, puts requests in their queue, and answers pings at once. The main thread
takes batches out and codes. The pulse tells the peer about once a second how far the work has come. What is more urgent
overtakes what waits, and also what is being worked on: codecs call `between` several times a second, and more urgent
batches are done right there. So a read waits for a fraction of a second even behind an hour of compression.

A worker started with --fd belongs to one peer and ends with it, in the middle of whatever it does. With --socket it
serves one peer after the other. It never forks; torch is imported by the first job that needs it.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import TypeAlias

from nnfs.codec import progress
from nnfs.codec.progress import Stage
from nnfs.errors import CodecError, ModelMissing, PeerGone, WireError
from nnfs.kernelcache import clean_environment
from nnfs.workers.batches import IDLE, NOT_WAITED_FOR, RequestQueue, rank
from nnfs.workers.catalogue import Served
from nnfs.workers.wire import (
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

WINDOW = 512  # requests that may wait: 64 MiB of chunks
FIRST_BATCH = 1 << 20  # plain bytes in a batch, before the codec has said how many it wants
ALIVE_S = 1.0
SHARED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)  # not for it
TOLD = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
RECEIVE = 1 << 18
WAITED_FOR = 2  # priorities below it are somebody's who waits, or soon will
BATCH_S = 10.0  # seconds that a batch of theirs may take: long ones hold up whoever comes next
LEAST_BATCH = 1 << 18  # plain bytes per thread: however slow the device, shorter ones are no quicker


Results: TypeAlias = Sequence[bytes | CodecError | None]
Kind: TypeAlias = tuple[int, int, bytes]  # op, codec, model: what can go together


class Conversation:
    """One peer's requests, from hello to the end of the connection."""

    def __init__(
        self, peer: socket.socket, served: Served, most: int, threads: int, *, at_end: Callable[[], None]
    ) -> None:
        self._peer = peer
        self._served = served
        self._most = most
        self._threads = threads
        self._at_end = at_end
        self._jobs = RequestQueue(WINDOW, threads)
        self._batches: dict[Kind, int] = {}  # most plain bytes at once
        self._paced: dict[Kind, int] = {}  # the same of what is waited for
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
            while batch := self._jobs.take(IDLE, self._limit, wait=True):
                self._do(batch)
        except PeerGone:
            pass
        finally:
            self._gone = True
            self._over.set()
            self._works.set()
            self._jobs.close()
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
            self._jobs.close()
            _hang_up(self._peer)
            self._at_end()

    def _take_in(self, message: Message) -> None:
        if isinstance(message, Request):
            if message.op == Op.PING:
                self._send(Answer(message.job, Status.OK, pack_info(self._current_info())))
            else:
                self._jobs.add(message, self._check_peer)
        elif isinstance(message, Cancel):
            if self._jobs.cancel(message.job):
                self._send(Answer(message.job, Status.CANCELLED))
        elif isinstance(message, Hello):
            self._version = message.version
        elif isinstance(message, Bye):
            log.error("the client gave up: %s", message.why)

    def _check_peer(self) -> None:
        """Raises `PeerGone` when the peer is not connected any more: we do not read what it sends, so we do not see."""
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
        info.queued = len(self._jobs)
        info.memory = resident_peak()
        info.device, info.codecs, info.models = self._served.device, self._served.names(), self._served.models()
        return info

    # ---- the pulse's thread

    def _beat(self) -> None:
        """Say how far the work has come while there is some, whatever the main thread is in the middle of."""
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

    def _limit(self, request: Request) -> int:
        key = _kind(request)
        most = min(self._most, self._batches.get(key, FIRST_BATCH))
        return min(most, self._paced.get(key, FIRST_BATCH)) if request.priority < WAITED_FOR else most

    def _between(self, place: int) -> None:
        """Called by codecs while they work on something of this rank.

        What nobody waits for overtakes nothing: it gathers, and goes as one large batch.
        """
        place = min(place, NOT_WAITED_FOR)
        if self._gone:
            raise PeerGone
        while self._jobs.urgent < place:
            batch = self._jobs.take(place, self._limit, wait=False)
            if batch:
                self._do(batch)

    def _do(self, batch: list[Request]) -> None:
        """Work on requests that go together, and answer them."""
        self._send(Begun(tuple(request.job for request in batch)))
        self._depth += 1
        self._works.set()
        start = time.monotonic()
        try:
            answers = self._answers(batch)
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._works.clear()
        info = self._info
        if self._depth == 0:
            info.busy_us += int((time.monotonic() - start) * 1e6)
        info.done += len(answers)
        info.failed += sum(answer.status > Status.NO_GAIN for answer in answers)
        info.plain += sum(request.plain for request in batch)
        self._send(*answers)

    def _answers(self, batch: list[Request]) -> list[Answer]:
        head = batch[0]
        progress.stage = Stage.OPENING
        try:
            if head.op == Op.LOAD:
                self._served.load(head.model, head.data)
                return [Answer(head.job, Status.OK)]
            codec = self._served.find(head.codec, head.model)
        except PeerGone:
            raise
        except Exception as error:
            if head.op != Op.LOAD and not isinstance(error, CodecError) and not _out_of_memory(error):
                log.exception("codec %d", head.codec)  # a broken installation, most likely
                name = self._served.names().get(head.codec, head.codec)
                error = CodecError(f"codec {name} cannot be opened: {type(error).__name__}: {error}")
            refused = Status.BAD_PAYLOAD if head.op == Op.LOAD else Status.NO_CODEC
            return [_failure(request, error, refused) for request in batch]
        finally:
            progress.stage = Stage.CODING
        self._batches.setdefault(_kind(head), codec.batch)
        work: Callable[..., Results] = codec.encode_many if head.op == Op.ENCODE else codec.decode_many
        start = time.monotonic()
        answers = self._attempt(batch, partial(work, between=partial(self._between, rank(head))))
        plain = sum(request.plain for request in batch)
        self._paced[_kind(head)] = next_batch(plain, time.monotonic() - start, self._threads)
        return answers

    def _attempt(self, batch: list[Request], work: Callable[..., Results]) -> list[Answer]:
        """Do a batch. If it fails as a whole, do its halves: neither a bad job nor too little memory spoils others."""
        try:
            if batch[0].op == Op.ENCODE:
                results = work([request.data for request in batch])
            else:
                results = work([(request.data, request.plain) for request in batch])
            return [_answer(request, result) for request, result in zip(batch, results, strict=True)]
        except PeerGone:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            if len(batch) == 1:
                return [_failure(batch[0], error)]
            half = len(batch) // 2
            if _out_of_memory(error):
                key = _kind(batch[0])
                self._batches[key] = min(self._batches[key], max(request.plain for request in batch) * half)
        return self._attempt(batch[:half], work) + self._attempt(batch[half:], work)


def _kind(request: Request) -> Kind:
    return request.op, request.codec, request.model


def next_batch(plain: int, seconds: float, threads: int) -> int:
    """Return the most plain bytes of the batch after one: twice as many, or so few that they take `BATCH_S`."""
    return max(int(plain * min(2.0, BATCH_S / max(seconds, 1e-3))), LEAST_BATCH * threads)


def _answer(request: Request, result: bytes | CodecError | None) -> Answer:
    """The answer that a codec's result makes. Raises `ValueError` for one that it must not give."""
    if isinstance(result, CodecError):
        return _failure(request, result)
    if result is None and request.op == Op.ENCODE:
        return Answer(request.job, Status.NO_GAIN)
    if result is None or (request.op == Op.DECODE and len(result) != request.plain):
        raise ValueError(f"{'no' if result is None else len(result)} bytes decoded, not {request.plain}")
    return Answer(request.job, Status.OK, result)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, not imported here


def _failure(request: Request, error: Exception, refused: Status = Status.BAD_PAYLOAD) -> Answer:
    """The answer that an exception makes; `refused` is what a `CodecError` means."""
    text = str(error)
    if isinstance(error, ModelMissing):
        status = Status.NO_MODEL
    elif isinstance(error, CodecError):
        status = refused
    else:
        status = Status.NO_MEMORY if _out_of_memory(error) else Status.BUG
        text = f"{type(error).__name__}: {text}"
        log.error("job failed", exc_info=error)
    return Answer(request.job, status, text.encode(errors="replace")[:1000])


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


def resident_peak() -> int:
    """Most bytes of memory that this process ever had resident."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def quiet_threads(environment: MutableMapping[str, str], threads: int) -> None:
    """Have OpenMP's and numba's threads sleep while they wait, where their users do not say otherwise.

    What else the environment says of numba is not for us.

    Spinning barriers collapse when cores are shared: a step of 5 ms took 60 ms beside one busy process. They read
    their variables when they are imported, so this comes first.
    """
    clean_environment(environment)
    for name, value in (("KMP_BLOCKTIME", "0"), ("OMP_WAIT_POLICY", "PASSIVE")):
        environment.setdefault(name, value)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        environment[name] = str(threads)


def give_way() -> None:
    """Run only when nobody else wants the processor. For a process without threads yet: they take after the first."""
    try:  # I/O becomes idle with it: ioprio_set(2)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        os.nice(19)
    if os.getsid(0) == os.getpid():  # else the group is not ours alone
        try:
            with open("/proc/self/autogroup", "w", encoding="ascii") as group:
                group.write("19")
        except OSError:
            pass  # a kernel without such groups


def _listen(path: str) -> socket.socket:
    """Return a listening socket at this path, for the owner only. One that nobody listens at any more is replaced."""
    listener = socket.socket(socket.AF_UNIX)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            os.unlink(path)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(1)
    return listener


def take_signals() -> None:
    """Leave to the mount what is sent to all: ^C, a closed terminal, the end of a unit. It still needs its workers.

    A worker ends with its socket. To those that people send to a process that hangs it answers with its stacks.
    """
    for number in SHARED:
        signal.signal(number, signal.SIG_IGN)
    for number in TOLD[:-1]:  # by Python, which stops the other threads: their stacks can be read safely
        signal.signal(number, lambda *_: faulthandler.dump_traceback())
    faulthandler.register(TOLD[-1])  # at once, also where the interpreter hangs
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SHARED, *TOLD, signal.SIGABRT})


def main(arguments: list[str] | None = None) -> None:
    """Serve."""
    parser = argparse.ArgumentParser("nnfs-worker", description="Codes chunks for the other end of a socket.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, metavar="N", help="a connected socket: serve it, and end with it")
    where.add_argument("--socket", metavar="PATH", help="listen there, and serve one peer after the other")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument(
        "--batch", type=int, default=1 << 30, metavar="BYTES", help="at most so many plain bytes at once"
    )
    parser.add_argument("--warm", action="store_true", help="be ready before the first job, not with it")
    parser.add_argument("--idle", action="store_true", help="run only when nobody else wants the processor")
    parser.add_argument("--serve", default="nnfs.workers.catalogue:Catalogue", metavar="MODULE:NAME", help="the codecs")
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    take_signals()
    quiet_threads(os.environ, args.threads)
    if args.idle:
        give_way()
    module, _, name = args.serve.partition(":")
    served: Served = getattr(importlib.import_module(module), name)(args.device, args.threads)
    if args.fd is not None:
        peer = socket.socket(fileno=args.fd)
        if args.warm:
            served.warm()
        Conversation(peer, served, args.batch, args.threads, at_end=lambda: os._exit(0)).run()
        return
    with _listen(args.socket) as listener:
        if args.warm:
            served.warm()
        while True:
            Conversation(listener.accept()[0], served, args.batch, args.threads, at_end=lambda: None).run()


if __name__ == "__main__":
    main()
