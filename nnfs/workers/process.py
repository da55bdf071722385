"""One worker process for its owner: it is spawned, written to and read without blocking, and reaped."""

from __future__ import annotations

import importlib.util
import logging
import os
import select
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from nnfs.constants import OTHER_ENGINE, PRODUCT_VARIABLE
from nnfs.errors import WireError, WorkerError
from nnfs.workers.startup import quiet_threads
from nnfs.workers.wire import RECEIVE, Bye, Frames, Hello, Message, pack

log = logging.getLogger(__name__)

LINE = 4096  # longest line of a worker's log that is kept whole
END_S = 5.0  # for a worker to end by itself once its socket is closed


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The settings with which a worker is started and supervised."""

    name: str  # in logs and answers, and for work items that only it may do
    device: str = "auto"
    threads: int = 1
    batch: int | None = None  # most plain bytes at once, less than the codec would take
    warm: bool = False  # start with the pool, and be ready before the first work item
    ahead: int = 512  # work items handed over before earlier ones are answered
    start_s: float = 60.0  # without CPU time before it says hello, then it is taken for hung
    hang_s: float = 30.0  # in which nothing moves, with work to do, then it is taken for hung
    idle_s: float | None = None  # without work, before it is ended to free its memory
    idle: bool = False  # runs only when nobody else wants the processor, and so does its I/O
    environment: tuple[tuple[str, str], ...] = ()  # variables that it has besides ours
    serve: str = "nnfs.workers.catalogue:Catalogue"


def reference_environment() -> tuple[tuple[str, str], ...]:
    """Return the environment variables of a reference worker, which has other engines than the other workers have."""
    return ((PRODUCT_VARIABLE, OTHER_ENGINE),) if importlib.util.find_spec("numba") else ()


class WorkerProcess:
    """A spawned worker. Every call but `close` may raise `WorkerError`: it has died, or sends invalid frames."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._name = spec.name
        self._frames = Frames(from_worker=True)
        self._unsent: deque[memoryview] = deque()
        self._partial_line = b""
        self._last_line = ""
        self.socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _spawn(spec, theirs)
            except OSError as error:
                self.socket.close()
                raise WorkerError(f"worker {spec.name} cannot be started: {error}") from error
        self.socket.setblocking(False)
        assert self._process.stderr is not None
        self.log = self._process.stderr
        os.set_blocking(self.log.fileno(), False)
        self.pid = self._process.pid
        self.send(Hello())

    def send(self, message: Message) -> None:
        """Queue a message behind those that are not sent yet."""
        self._unsent.append(memoryview(pack(message)))

    @property
    def wants_to_write(self) -> bool:
        """Whether `flush` has something to send."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Send as much as the socket takes."""
        try:
            while self._unsent:
                sent = self.socket.send(self._unsent[0])
                if sent == len(self._unsent[0]):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = self._unsent[0][sent:]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()  # it is dying: what it has to say, and how it ends, is seen by reading

    def receive(self) -> Iterator[Message]:
        """Yield the messages that have arrived."""
        try:
            data = self.socket.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise WorkerError(f"worker {self._name} {self._how_it_ended()}")
        try:
            for message in self._frames.feed(data):
                if isinstance(message, Bye):
                    raise WireError(f"gave up: {message.why}")
                yield message
        except WireError as why:
            raise WireError(f"worker {self._name}: {why}") from None

    def read_log(self) -> bool:
        """Log the lines that the worker has logged. Return False when there will be no more."""
        try:
            data = os.read(self.log.fileno(), 1 << 16)
        except BlockingIOError:
            return True
        *lines, self._partial_line = (self._partial_line + data).split(b"\n")
        if not data or len(self._partial_line) > LINE:
            lines.append(self._partial_line)
            self._partial_line = b""
        for line in filter(None, lines):
            self._last_line = line[:LINE].decode(errors="replace").rstrip()
            log.warning("worker %s: %s", self._name, self._last_line)
        return bool(data)

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "closed its socket"
        while select.select([self.log], [], [], 0)[0] and self.read_log():
            pass
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{how}: {self._last_line}" if self._last_line else how

    def close(self, *, kill: bool = True) -> None:
        """End and reap the process. Without `kill` it gets time to notice that its socket is closed."""
        self.socket.close()
        if not kill:
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                log.warning("worker %s does not end: killed", self._name)
        self._process.kill()
        self._process.wait()
        self.log.close()


def _spawn(spec: WorkerSpec, theirs: socket.socket) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "nnfs.workers.worker", "--fd", str(theirs.fileno()), "--device", spec.device]
    command += ["--threads", str(spec.threads), "--serve", spec.serve]
    command += [] if spec.batch is None else ["--batch", str(spec.batch)]
    command += ["--warm"] if spec.warm else []
    command += ["--idle"] if spec.idle else []
    environment = {**os.environ, **dict(spec.environment)}
    quiet_threads(environment, spec.threads)
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
    # Its own group: ^C is for the mount, which still needs its workers then. Its own session, if it is to be idle: only
    # then has it a scheduling group of its own, whose niceness counts against other sessions (sched(7), "autogroup").
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0,
        env=environment, cwd="/", pass_fds=(theirs.fileno(),),
        process_group=None if spec.idle else 0, start_new_session=spec.idle,
        umask=0o022,  # all that it writes is compiled kernels, which other users of this checkout need as well
    )  # fmt: skip
