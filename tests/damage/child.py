"""Judging a damaged store in a child process: the engine may abort on damaged pages, or never come back."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from nnfs.errors import NnfsError
from nnfs.fs import fsck
from nnfs.store.env import Store
from tests.damage.truth import Offline, Truth, Verdict, judge
from tests.harness import WAIT_S

CPU_S = 30  # an engine that runs in circles uses its processor; on a busy machine the clock says nothing
T = TypeVar("T")


@dataclass
class Outcome:
    """The result of a look at a damaged store."""

    refused: int = 0  # exit code of the error with which the store did not open
    message: str = ""
    verdict: Verdict = field(default_factory=Verdict)
    bug: str = ""  # traceback of an exception outside the error tree
    killed: int = 0  # signal by which the engine ended the process

    def __str__(self) -> str:
        v = self.verdict
        return f"refused {self.refused} killed {self.killed} right {v.right} errors {v.errors} lies {len(v.lies)}"


def look(store: Path, truth: Truth) -> Outcome:
    """Open a store and compare everything, here."""
    outcome = Outcome()
    try:
        opened = Store.open(store)
        outcome.message = "; ".join(opened.problems)
        outcome.verdict = judge(Offline(opened), truth)
    except NnfsError as error:
        outcome.refused, outcome.message = error.exit_code, str(error)
    except Exception:  # noqa: BLE001  whatever it is, it is the finding
        outcome.bug = traceback.format_exc()
    return outcome


class Killed(Exception):
    """The child was ended by a signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"ended by signal {signal_number}")
        self.signal = signal_number


def in_child(work: Callable[[], T], limit: int = CPU_S) -> T:
    """Return the result of `work` in a child process, which may use `limit` seconds of a processor.

    Raises `Killed`; AssertionError for what it raised.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            faulthandler.disable()
            signal.setitimer(signal.ITIMER_PROF, limit)
            signal.alarm(int(10 * WAIT_S))
            try:
                answer: object = (work(), "")
            except BaseException:  # noqa: BLE001  the parent raises it
                answer = (None, traceback.format_exc())
            with open(theirs, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        raise Killed(os.WTERMSIG(status))
    result, error = pickle.loads(answer)
    if error:
        raise AssertionError(error)
    return cast("T", result)


def examine(store: Path, truth: Truth) -> Outcome:
    """`look` in a child process."""
    try:
        return in_child(lambda: look(store, truth))
    except Killed as error:
        return Outcome(killed=error.signal)


def fsck_code(store: Path) -> int:
    """Exit code of `nnfs fsck --data`; a signal of the engine counts as noticed (-1)."""
    try:
        return in_child(lambda: fsck.run(store, data=True, repair=False, progress=lambda *_: None).exit_code)
    except Killed:
        return -1
