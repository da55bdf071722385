"""Signals of the daemon: some end it in order, some make it reload, some make it log its state.

| signal | the daemon |
|---|---|
| TERM, INT, and others that would end a process: ALRM, XCPU, PWR, ... | unmounts, commits, ends |
| HUP | reads its configuration again and opens its log again; never ends, whatever became of the terminal |
| QUIT, USR1 | writes stacks, tasks and status to its log, and goes on |
| USR2 | writes stacks even if Python hangs, and goes on: the last resort, see below |
| ABRT | as QUIT; under a service manager's watchdog, which sends it, it ends as well |
| PIPE, XFSZ, TSTP, TTIN, TTOU | goes on: a write fails by itself, and a stopped daemon is a mount that hangs |

QUIT and its kin are taken by a thread of their own (`sigwait`) and are blocked in all others: it answers while the
event loop stands still, or sleeps in a system call that no signal interrupts. USR2 goes to faulthandler's handler in C,
which needs no Python at all, but walking the stacks of threads that run may crash.
"""

from __future__ import annotations

import faulthandler
import logging
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import trio

log = logging.getLogger(__name__)

_REAL_TIME = range(signal.SIGRTMIN, signal.SIGRTMAX + 1)
ENDING = frozenset({
    signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGXCPU, signal.SIGPWR,
    signal.SIGIO, signal.SIGSTKFLT, *_REAL_TIME,
})  # fmt: skip
TELLING = frozenset({signal.SIGQUIT, signal.SIGUSR1, signal.SIGABRT})
IGNORED = frozenset({signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
ANSWER_S = 2.0  # for the event loop to show that it runs
DEEPEST = 60  # frames of one stack

Describe = Callable[[], dict[str, Any]]


def name_of(number: int) -> str:
    """Return a signal's name, or the number of a real-time signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def block() -> None:
    """Block the signals of the thread of `Signals`. Call it before anything (a library, too) starts a thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, TELLING | {signal.SIGUSR2})


class Signals:
    """A context that handles the daemon's signals. After it, those that end a process are ignored."""

    def __init__(self, describe: Describe, dump: int) -> None:
        """`describe` gives the status and is called in another thread; `dump` is a descriptor of the log."""
        self._describe, self._dump = describe, dump
        self._thread = threading.Thread(target=self._take, name="signals", daemon=True)
        self._stopped = False
        self._root: trio.lowlevel.Task | None = None

    def __enter__(self) -> Self:
        import trio

        block()
        self._token, self._root = trio.lowlevel.current_trio_token(), trio.lowlevel.current_root_task()
        self._came, self.received = trio.open_memory_channel[int](1000)  # one of each that came and was not seen to
        for number in TELLING - {signal.SIGABRT}:  # for a thread that does not block them after all
            signal.signal(number, self._tell_beside)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        for number in ENDING | {signal.SIGHUP}:
            signal.signal(number, self._take_in)
        faulthandler.enable(file=self._dump)  # faults (and abort(3)) end the process: their stacks belong into the log
        faulthandler.register(signal.SIGUSR2, file=self._dump)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number in ENDING | {signal.SIGHUP}:  # a second TERM must not make a failure of the end
            signal.signal(number, signal.SIG_IGN)
        self._stopped = True
        signal.pthread_kill(self._thread.ident or 0, signal.SIGUSR1)
        self._thread.join()

    def _take_in(self, number: int, _frame: object) -> None:
        self._token.run_sync_soon(self._came.send_nowait, number, idempotent=True)

    def _take(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})  # faulthandler's handler runs here
        while True:
            number = signal.sigwait(TELLING)
            if self._stopped:
                return
            self._tell(number)
            if number == signal.SIGABRT:
                self._take_in(number, None)

    def _tell_beside(self, number: int, _frame: object = None) -> None:
        threading.Thread(target=self._tell, args=(number,), name="telling", daemon=True).start()

    def _tell(self, number: int) -> None:
        """Write stacks, tasks and status to the log."""
        try:
            text = report(self._token, self._root, self._describe)
        except Exception:
            log.exception("%s: what the daemon does cannot be told", name_of(number))
            return
        record = logging.LogRecord(
            log.name, logging.WARNING, __file__, 0, "%s: what the daemon is doing", (name_of(number),), None
        )
        record.stack_info = text  # on lines of its own, where a message is one line
        log.handle(record)


def report(token: trio.lowlevel.TrioToken, root: trio.lowlevel.Task | None, describe: Describe) -> str:
    """Return status, stacks of all threads and trio's tasks as text. It never waits for the event loop for long."""
    parts = [_answers(token)]
    try:
        parts += ["status", *(f"  {name}: {value}" for name, value in describe().items())]
    except Exception as error:  # noqa: BLE001 - a status that cannot be had must not cost the stacks
        parts.append(f"status: not to be had ({error!r})")
    parts += _threads()
    if root is not None:
        parts += ["tasks", *_task(root, "  ")]
    return "\n".join(parts)


def _answers(token: trio.lowlevel.TrioToken) -> str:
    answered = threading.Event()
    try:
        token.run_sync_soon(answered.set)
    except RuntimeError:  # trio.RunFinishedError
        return "event loop: has ended"
    if answered.wait(ANSWER_S):
        return "event loop: runs"
    return f"event loop: does not answer within {ANSWER_S:g} s; it stands where the thread MainThread does"


def _threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        if ident == threading.get_ident():
            continue
        yield f"thread {names.get(ident, ident)}"
        at: FrameType | None = frame
        for _ in range(DEEPEST):
            if at is None:
                break
            yield _place(at, at.f_lineno)
            at = at.f_back


def _place(frame: FrameType, line: int) -> str:
    return f"  {frame.f_code.co_filename}:{line} {frame.f_code.co_name}"


def _task(task: trio.lowlevel.Task, indent: str) -> Iterator[str]:
    """Yield lines of a task and those below it; tasks that are alike (thousands of requests) are counted."""
    yield f"{indent}{task.name}"
    for frame, line in list(task.iter_await_frames())[-DEEPEST:]:
        yield indent + _place(frame, line)
    for nursery in list(task.child_nurseries):
        alike = Counter("\n".join(_task(child, indent + "    ")) for child in list(nursery.child_tasks))
        for text, count in alike.items():
            yield f"{indent}  {count} alike:\n{text}" if count > 1 else text
