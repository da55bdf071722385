"""Context mixing: the probability of the next bit by the chunk's own past, in integers."""

from __future__ import annotations
