"""Limits of the daemon's process: `ulimit` values that would stop it, and the memory that glibc keeps."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import resource

log = logging.getLogger(__name__)

_LIFTED = {"RLIMIT_FSIZE": "the size of its files", "RLIMIT_CPU": "its CPU time"}


def lift() -> None:
    """Lift the limits of a shell's `ulimit` as far as that is allowed. Return the limits that remain."""
    for name, what in _LIFTED.items():
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        for limit in ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (hard, hard)):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(number, limit)
                break
        soft, _ = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY:
            log.warning("%s is limited to %d (%s): the mount will end or fail there", what, soft, name)


KEPT, KEPT_SHARE = 64 << 20, 32  # bytes of free memory that are kept; where memory is limited, that part of it


def give_back() -> None:
    """Give free memory back to the system, also between what is in use: where it is limited, workers need it."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_buffers(memory: int = 0) -> None:
    """Let glibc reuse the memory of request buffers: by default each 1 MiB is mapped, faulted in and unmapped.

    That took 40 % of the CPU time of a sequential write. There is one arena, so that a thread can use memory that
    another has freed: it takes 0.85 times the peak memory of two. `memory`: bytes that there are, 0 for plenty.
    """
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8  # malloc.h
    with contextlib.suppress(AttributeError):  # another libc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_threshold, 8 << 20)
        mallopt(m_trim_threshold, min(KEPT, memory // KEPT_SHARE) if memory else KEPT)
        mallopt(m_arena_max, 1)
