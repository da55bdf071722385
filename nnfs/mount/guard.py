"""The guard of every FUSE handler: it turns errors into errnos, and keeps a bug from ending the mount."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from time import monotonic_ns
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import pyfuse3
from pyfuse3 import FUSEError

from nnfs.errors import FsError, NnfsError, RecordDamaged, kept
from nnfs.mount.meter import SUM, Meter

log = logging.getLogger(__name__)

TOLD = 1000  # messages about damage that are not logged again

P = ParamSpec("P")
T = TypeVar("T")
Handler: TypeAlias = "Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]"


def guard(handler: Handler[P, T]) -> Handler[P, T]:
    """Wrap a handler so that no exception but FUSEError leaves it: any other would end the mount.

    A bug is logged once with its traceback, answered with EIO, and turns the mount read-only.
    """

    name = handler.__name__

    @functools.wraps(handler)
    async def guarded(self: GuardedOperations, *args: P.args, **kwargs: P.kwargs) -> T:
        began = monotonic_ns()
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError as error:
            self.meter.errors[name, error.errno] += 1
            raise
        except Exception as error:  # noqa: BLE001 - that is the point
            number = self.errno_of(name, error)
            self.meter.errors[name, number] += 1
            raise FUSEError(number) from None
        finally:
            taken, counts = monotonic_ns() - began, self.meter.nanoseconds[name]
            counts[taken.bit_length()] += 1
            counts[SUM] += taken

    return guarded  # type: ignore[return-value]  # functools.wraps makes a type of its own


class GuardedOperations(pyfuse3.Operations):
    """Handlers whose bugs turn the mount read-only. `read_only` is the reason why it is, "" while it is not."""

    def __init__(self, *, read_only: bool) -> None:
        super().__init__()
        self.read_only = "mounted read-only" if read_only else ""
        self.meter = Meter()
        self._told: set[str] = set()  # damage that was logged

    def errno_of(self, where: str, error: Exception) -> int:
        """Return the errno that answers a request in which something was raised. Damage and bugs are logged."""
        if isinstance(error, FsError):
            return error.errno
        if isinstance(error, NnfsError):
            self.tell(where, error)
            return kept(error).errno
        if isinstance(error, MemoryError):
            return errno.ENOMEM
        if isinstance(error, OSError):
            return error.errno or errno.EIO
        self.trip(where, error)
        kept(error)
        return errno.EIO

    def trip(self, where: str, bug: Exception) -> None:
        """Turn the mount read-only because of a bug."""
        if not self.read_only:
            self.read_only = f"a bug in {where}: {bug!r}"
        log.error("bug in %s, the mount is read-only from here on: unmount and mount again", where, exc_info=bug)

    def tell(self, where: str, error: NnfsError) -> None:
        """Log why a request fails. Each damage is logged as an error once: it may be read again and again."""
        is_news = isinstance(error, RecordDamaged) and str(error) not in self._told
        if is_news:
            if len(self._told) == TOLD:
                self._told.clear()
            self._told.add(str(error))
        log.log(logging.ERROR if is_news else logging.DEBUG, "%s: %s", where, error)
