"""The supervisor: keeps one worker process alive, feeds it from the board, and brings its answers back.

It is one thread with one loop over the worker's socket, its log and a descriptor that others wake it by. The process is
started by the first work item. When it dies, the batch that it was working on gets a strike: each of its items is tried
once more, alone, on a fresh process, and an item that kills that process, too, fails. All other items go back to the
board, as if they had never left it.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from nnfs.codec.progress import Stage
from nnfs.errors import CodecError, CodecUnavailable, KillsWorkers, ModelMissing, WireError, WorkerError
from nnfs.workers.batches import IDLE, NOT_WAITED_FOR
from nnfs.workers.board import Board, Outcome, PendingItem
from nnfs.workers.liveness import RunClock, Vitality, cpu_of, wants_cpu
from nnfs.workers.process import WorkerProcess, WorkerSpec
from nnfs.workers.startup import SHARED, TOLD
from nnfs.workers.throughput import Throughput
from nnfs.workers.wire import (
    ALONE,
    NO_MODEL,
    Answer,
    Begun,
    Cancel,
    Hello,
    Info,
    Message,
    Op,
    Progress,
    Request,
    Status,
    unpack_info,
)

log = logging.getLogger(__name__)

PINGS_BELOW = 0  # ranks that wait for no window
URGENT_BELOW = 1  # ranks that may use the last eighth of the window: decoding that somebody waits for
AHEAD_BELOW = NOT_WAITED_FOR  # ranks that may use the eighth before: somebody will wait
STRIKES = 2
FAILED_STARTS = 3  # in a row, before the items that wait fail
BACKOFF_MOST = 30.0  # seconds
LOOK_S = 1.0  # between two looks at a worker that has something to do


@dataclass(frozen=True, slots=True)
class WorkerState:
    """The facts that a supervisor knows about its worker."""

    name: str
    state: str = "stopped"  # or starting, running, resting (after a failure)
    pid: int = 0
    device: str = ""
    starts: int = 0
    deaths: int = 0
    answered: int = 0
    failed: int = 0
    outstanding: int = 0
    doing: str = ""  # or opening (imports, compiling, a model), coding
    last_error: str = ""
    encoding: dict[int, float] = field(default_factory=dict)  # seconds per MiB lately, by codec
    decoding: dict[int, float] = field(default_factory=dict)


class Supervisor:
    """The supervisor of one worker: a thread from `start` until the board is closed."""

    def __init__(
        self, spec: WorkerSpec, board: Board, find_model: Callable[[bytes], bytes | None], backoff_s: float
    ) -> None:
        self._spec = spec
        self.name = spec.name
        self._board = board
        self._find_model = find_model
        self._backoff_s = backoff_s
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_woken = False  # and has not looked since
        self._dropped: deque[int] = deque()
        self._thread = threading.Thread(target=self._run, name=f"worker-{spec.name}", daemon=True)
        self._failed_starts = self._deaths_in_a_row = 0
        self._running = RunClock()
        self._throughput = Throughput()
        self._forget_process()
        self.state = WorkerState(spec.name)

    def _forget_process(self) -> None:
        self._outstanding: dict[int, PendingItem] = {}
        self._throughput.forget_process()
        self._models: set[bytes] = set()
        self._loading: dict[int, bytes] = {}
        self._info: Info | None = None
        self._vitality, self._told = Vitality(self._running), 0
        self._idle_since = time.monotonic()

    def start(self) -> None:
        """Start the supervisor's thread. The worker starts with its first work item."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has ended, after the board was closed."""
        self._thread.join()

    def dispose(self) -> None:
        """Close the descriptor by which others wake this thread, once nobody does."""
        os.close(self._woken)

    def wake(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            os.eventfd_write(self._woken, 1)

    def drop(self, pending: PendingItem) -> None:
        self._dropped.append(pending.number)
        self.wake()

    def _update(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]

    # ---- the thread

    def _run(self) -> None:
        # A worker inherits this, so that none of these ends it before it has told what it makes of them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {*SHARED, *TOLD})
        wanted = self._spec.warm
        while not self._board.closed:
            self._board.expire()
            if not wanted and self._board.claim(self._spec.name, None, IDLE) is None:
                self._sleep(None)
                continue
            wanted = False
            try:
                self._keep_one()
                self._update(state="stopped", pid=0, doing="")
            except WorkerError as why:
                self._mourn(why)
                self._rest()
            except Exception as bug:  # a bug here must not leave work items waiting for ever
                log.exception("supervisor of worker %s", self._spec.name)
                self._mourn(WorkerError(f"supervisor of worker {self._spec.name}: {type(bug).__name__}: {bug}"))
                self._rest()
        self._board.put_back(self._outstanding.values())

    def _sleep(self, until: float | None) -> None:
        """Wait until another thread wakes this one, until a time, or until a deadline."""
        select.select([self._woken], [], [], self._seconds_to(until))
        self._take_wakes()

    def _seconds_to(self, until: float | None) -> float | None:
        times = [at for at in (until, self._board.next_deadline()) if at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _take_wakes(self) -> None:
        try:
            os.eventfd_read(self._woken)
        except BlockingIOError:
            pass
        self._is_woken = False  # from here on others write again; what they have changed before is seen behind this

    def _rest(self) -> None:
        """Wait before the next start, the longer the more starts have failed."""
        delay = min(BACKOFF_MOST, self._backoff_s * 2.0 ** min(self._deaths_in_a_row - 1, 20))
        until = time.monotonic() + delay
        self._update(state="resting")
        while not self._board.closed and time.monotonic() < until:
            self._sleep(until)
            self._board.expire()

    def _mourn(self, why: WorkerError) -> None:
        """Return the work items of a process that is gone to the board, or fail them."""
        log.warning("%s", why)
        guilty = self._throughput.under_way & self._outstanding.keys()
        self._deaths_in_a_row += 1
        self._failed_starts = 0 if guilty else self._failed_starts + 1  # strikes see to it that this comes to an end
        self._update(deaths=self.state.deaths + 1, pid=0, outstanding=0, doing="", last_error=str(why))
        back = []
        for number, pending in self._outstanding.items():
            pending.strikes += number in guilty
            if pending.strikes < STRIKES:
                back.append(pending)
            else:
                self._board.finish(pending, KillsWorkers(f"{why} (the work item has killed {STRIKES} workers)"))
        self._forget_process()
        self._board.put_back(back)
        if self._failed_starts >= FAILED_STARTS:
            self._board.abandon(self, why)

    def _keep_one(self) -> None:
        """Run one process until the board is closed or the worker has long been idle. Raises `WorkerError`."""
        self._forget_process()
        self._update(state="starting", starts=self.state.starts + 1)
        process = WorkerProcess(self._spec)
        kill = True
        try:
            self._update(pid=process.pid)
            with select.epoll() as poll:
                poll.register(self._woken, select.EPOLLIN)
                poll.register(process.log, select.EPOLLIN)
                poll.register(process.socket, select.EPOLLIN)
                self._serve(process, poll)
            kill = self._board.closed  # work that is under way when a mount ends is not worth waiting for
        finally:
            process.close(kill=kill)

    def _serve(self, process: WorkerProcess, poll: select.epoll) -> None:
        while not self._board.closed:
            self._board.expire()
            self._hand_over(process)
            process.flush()
            poll.modify(process.socket, select.EPOLLIN | (select.EPOLLOUT if process.wants_to_write else 0))
            seconds = self._seconds_to(self._patience())
            ready = {fd for fd, _ in poll.poll(None if seconds is None else seconds + 0.001)}
            if self._woken in ready:
                self._take_wakes()
            if process.log.fileno() in ready and not process.read_log():
                poll.unregister(process.log)
            if process.socket.fileno() in ready:
                for message in process.receive():
                    self._take_in(message)
            self._look()
            if self._has_been_idle():
                return

    def _hand_over(self, process: WorkerProcess) -> None:
        """Send the worker as many items as its window allows, and cancel those that nobody waits for."""
        while self._dropped:
            number = self._dropped.popleft()
            if number in self._outstanding:
                process.send(Cancel(number))
        if self._info is None:
            return
        window = min(self._spec.ahead, self._info.window)
        while True:
            pending = self._board.claim(self._spec.name, self, self._below(window))
            if pending is None:
                break
            if not self._outstanding:
                self._vitality.move()
            self._outstanding[pending.number] = pending
            self._send_model(process, pending.item.model)
            item, flags = pending.item, ALONE if pending.strikes else 0
            process.send(
                Request(pending.number, item.op, item.codec, item.data, item.plain, item.model, item.priority, flags)
            )
        self._update(outstanding=len(self._outstanding))

    def _below(self, window: int) -> int:
        """Return the rank below which there is room for another item in the worker's window."""
        room = window - len(self._outstanding)
        if room > window // 4:
            return IDLE
        return AHEAD_BELOW if room > window // 8 else URGENT_BELOW if room > 0 else PINGS_BELOW

    def _send_model(self, process: WorkerProcess, model: bytes) -> None:
        """Send a model that the worker does not have. If it cannot be found, the worker's answer will tell."""
        if model == NO_MODEL or model in self._models:
            return
        try:
            data = self._find_model(model)
        except Exception:
            log.exception("model %s", model.hex()[:16])
            data = None
        if data is not None:
            self._models.add(model)
            number = self._board.new_number()
            self._loading[number] = model
            process.send(Request(number, Op.LOAD, data=data, model=model, priority=0))

    def _take_in(self, message: Message) -> None:
        self._idle_since = time.monotonic()
        if isinstance(message, Progress):
            self._vitality.told(message)
            self._update(doing="opening" if message.stage is Stage.OPENING else "coding")
        elif not isinstance(message, Answer) or not self._by_the_reader(message):
            self._vitality.move()
        if isinstance(message, Hello) and message.info is not None:
            self._info = message.info
            self._models.update(message.info.models)
            self._update(state="running", device=message.info.device)
        elif isinstance(message, Begun):
            self._begun(message)
        elif isinstance(message, Answer):
            self._deaths_in_a_row = self._failed_starts = 0
            self._board.restore(self)
            self._measure(message)
            if message.number in self._loading:
                self._model_loaded(message)
            else:
                self._answered(message)

    def _begun(self, message: Begun) -> None:
        begun = {number: self._outstanding.get(number) for number in message.numbers}
        for pending in filter(None, begun.values()):
            self._board.begin(pending)
        self._throughput.begun({number: pending.item if pending else None for number, pending in begun.items()})

    def _measure(self, answer: Answer) -> None:
        pending = self._outstanding.get(answer.number)
        item = pending.item if pending else None
        self._throughput.answered(answer.number, item, is_coded=answer.status <= Status.NO_GAIN)
        if self.state.encoding is not self._throughput.encoding or self.state.decoding is not self._throughput.decoding:
            self._update(encoding=self._throughput.encoding, decoding=self._throughput.decoding)

    def _by_the_reader(self, answer: Answer) -> bool:
        """Return whether an answer comes from the worker's reader: the main thread may hang all the same."""
        pending = self._outstanding.get(answer.number)
        return answer.status == Status.CANCELLED or (pending is not None and pending.item.op == Op.PING)

    def _model_loaded(self, answer: Answer) -> None:
        model = self._loading.pop(answer.number)
        if answer.status != Status.OK:
            self._models.discard(model)
            log.error("worker %s refuses model %s: %s", self._spec.name, model.hex()[:16], answer.data.decode())

    def _answered(self, answer: Answer) -> None:
        pending = self._outstanding.pop(answer.number, None)
        if pending is None:
            raise WireError(f"worker {self._spec.name} answers a work item that it does not have")
        pending.holder = None
        outcome = _outcome(pending, answer)
        failed = isinstance(outcome, Exception) and answer.status != Status.CANCELLED
        device = outcome.device if isinstance(outcome, Info) else self.state.device  # "auto" has become something
        self._update(answered=self.state.answered + 1, failed=self.state.failed + failed, device=device)
        self._board.finish(pending, outcome)

    @property
    def _is_awaited(self) -> bool:
        """Whether the worker has to send something: its hello, or an answer."""
        return self._info is None or bool(self._outstanding)

    def _patience(self) -> float | None:
        """Return the time to look at the worker again, or the time at which it will have been idle for long enough."""
        if self._is_awaited:
            self._idle_since = time.monotonic()
            bound = self._spec.start_s if self._info is None else self._spec.hang_s
            return self._idle_since + min(LOOK_S, bound / 4)
        return None if self._spec.idle_s is None else self._idle_since + self._spec.idle_s

    def _has_been_idle(self) -> bool:
        """Return whether the worker may be ended because it has had no work for long."""
        until = self._patience()
        return until is not None and not self._is_awaited and time.monotonic() >= until

    def _look(self) -> None:
        """Tell the board if the worker makes progress. Raises `WorkerError` when it is taken for hung."""
        if not self._is_awaited:
            return
        pid, name = self.state.pid, self._spec.name
        if self._info is None:
            self._vitality.spent(cpu_of(pid))
        if self._vitality.moves != self._told:
            self._told = self._vitality.moves
            self._board.on_moved(name)
        silent = self._vitality.silent
        if self._info is None and silent >= self._spec.start_s and not wants_cpu(pid):
            raise WorkerError(f"worker {name} did not start: nothing moved for {self._spec.start_s:g} s")
        if self._info is not None and silent >= self._spec.hang_s and not wants_cpu(pid):
            raise WorkerError(f"worker {name} hangs: nothing moved for {self._spec.hang_s:g} s")


def _outcome(pending: PendingItem, answer: Answer) -> Outcome | Exception:
    """Return the result or the exception that an answer stands for."""
    if answer.status == Status.OK:
        return unpack_info(answer.data) if pending.item.op == Op.PING else answer.data
    if answer.status == Status.NO_GAIN:
        return None
    text = answer.data.decode(errors="replace")
    if answer.status == Status.BAD_PAYLOAD:
        return CodecError(text)
    if answer.status == Status.NO_MODEL:
        return ModelMissing(text)
    if answer.status == Status.NO_CODEC:
        return CodecUnavailable(text)
    return WorkerError(f"codec {pending.item.codec}: {text}")
