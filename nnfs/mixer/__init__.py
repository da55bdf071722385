"""Context mixing: what a chunk's own past says of its next bit, in integers."""

from __future__ import annotations
