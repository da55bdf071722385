"""The set-up of a worker process: threads, priority, signals, the socket that it listens at."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
from collections.abc import MutableMapping

from nnfs.kernelcache import clean_environment

SHARED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)  # not for it
SCORE, IDLE_SCORE = 500, 1000  # of 1000: see proc(5), oom_score_adj
TOLD = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def quiet_threads(environment: MutableMapping[str, str], threads: int) -> None:
    """Make OpenMP's and numba's threads sleep while they wait, unless the user wants otherwise.

    Other settings of numba in the environment are removed: they are meant for other programs.

    Spinning barriers collapse when cores are shared: a step of 5 ms took 60 ms beside one busy process. The libraries
    read their variables when they are imported, so this comes first.
    """
    clean_environment(environment)
    for name, value in (("KMP_BLOCKTIME", "0"), ("OMP_WAIT_POLICY", "PASSIVE")):
        environment.setdefault(name, value)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        environment[name] = str(threads)


def give_way() -> None:
    """Let this process run only on an idle processor. Call it before there are threads: they inherit it."""
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


def die_first(*, idle: bool) -> None:
    """Have the kernel kill this process, and not the mount, when there is no memory left: a worker is replaced."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+", encoding="ascii") as score:
        wanted = IDLE_SCORE if idle else SCORE
        if int(score.read()) < wanted:
            score.seek(0)
            score.write(str(wanted))


def take_signals() -> None:
    """Ignore the signals that the mount and its workers get together: ^C, a closed terminal, the end of a unit.

    The mount still needs its workers then; a worker ends with its socket. The signals that people send to a process
    that hangs are answered with the stacks of its threads.
    """
    for number in SHARED:
        signal.signal(number, signal.SIG_IGN)
    for number in TOLD[:-1]:  # by Python, which stops the other threads: their stacks can be read safely
        signal.signal(number, lambda *_: faulthandler.dump_traceback())
    faulthandler.register(TOLD[-1])  # at once, also where the interpreter hangs
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SHARED, *TOLD, signal.SIGABRT})


def listen(path: str) -> socket.socket:
    """Return a listening socket at this path, for the owner only. A socket that nobody listens at is replaced."""
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
