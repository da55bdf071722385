"""Search: files by words and by likeness. `content` makes vectors, `catalog` keeps them in memory, `find` answers."""

from __future__ import annotations
