"""Limits of the process that somebody else has set, and that would end the daemon or its writing."""

from __future__ import annotations

import contextlib
import logging
import resource

log = logging.getLogger(__name__)

_LIFTED = {"RLIMIT_FSIZE": "the size of its files", "RLIMIT_CPU": "its CPU time"}


def lift() -> None:
    """Lift what a shell's `ulimit` has left, as far as that is allowed; tell what remains."""
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
